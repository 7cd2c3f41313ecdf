"""Checkpoints that cannot be used, told by their files before anything is loaded: each is refused with its cause and the way out.

A model on the hub is told by its small files, which are fetched first. transformers is imported by what asks it: the other refusals are
made at once.
"""

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from switchkd.manifest import MANIFEST, find_damage
from switchkd.models.run_folder import model_folder

#: The files that say what a checkpoint is and how it reads.
_SMALL = ["*.json", "*.jinja", "*.model", "*.txt"]
_INDEX = "model.safetensors.index.json"
#: What a model, its processor or its tokenizer is read from.
_LOADED = (
    "*.safetensors", "*.index.json", "*config.json", "*token*.json", "chat_template*", "*.model", "vocab*", "merges.txt", "adapter_*",
)  # fmt: skip
#: Begins a file that Git LFS has not fetched yet.
_LFS = b"version https://git-lfs"
#: Entries of a config that only the code of LLaVA's authors reads; `mm_tokens_per_image` is Gemma 3's.
_LLAVA = ("mm_vision", "mm_projector", "mm_hidden_size", "mm_use_im", "mm_patch_merge", "mm_resampler")
#: Files that hold a tokenizer's vocabulary: one of these sets is needed.
_VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",))
#: Vocabularies that need a package to be read.
_OTHER_VOCABULARIES = {
    "tokenizer.model": "sentencepiece",
    "spiece.model": "sentencepiece",
    "tekken.json": "mistral-common",
}
_TRANSFORMERS = "the same model as `save_pretrained` of transformers writes it (config.json, *.safetensors)"


def refuse_unreadable(name: str | Path) -> None:
    """Raise ValueError for a checkpoint that cannot be used, or that lacks its vocabulary or image processor."""
    name = model_folder(name)
    refuse_unusable(name)
    refuse_without_vocabulary(name)
    folder = _folder(name)
    if folder is not None:
        _check_image_processor(name, folder)


def refuse_unusable(name: str | Path) -> None:
    """Raise ValueError, with the cause and what to do, for a checkpoint that is no vision-language model of a known family."""
    name = model_folder(name)
    refuse_other_forms(name)
    folder = _folder(name)
    if folder is not None:
        _check_format(name, read_object(folder / "config.json"))


def refuse_absent(name: str | Path) -> None:
    """Raise ValueError for what is neither here nor a model of the hub, as far as that can be told: asks the hub where it may be one."""
    if Path(name).exists():
        return
    if not _may_be_of_hub(name):
        raise ValueError(f"{name}: no such folder, and not a name on the Hugging Face hub (OWNER/NAME)")
    try:
        snapshot_download(str(name), allow_patterns=_SMALL)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{name}: no such folder, and no model of this name can be had from the Hugging Face hub: {reason}"
        ) from error


def refuse_other_forms(name: str | Path) -> None:
    """Raise ValueError for what is not in transformers' form, whatever model it is. It may lie here without weights."""
    name = model_folder(name)
    path = Path(name)
    if path.is_file():
        kind = {".gguf": "a GGUF file, llama.cpp's form", ".safetensors": "a file of weights"}.get(
            path.suffix, "a file"
        )
        raise ValueError(f"{name} is {kind}, not a checkpoint: give the directory of {_TRANSFORMERS}")
    folder = _folder(name)
    if folder is None:  # transformers says what is wrong with the name
        return
    if path.is_dir():  # of a hub name, the small files alone are there
        _check_sums(path)
    _check_fetched(folder)
    _check_adapter(name, folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{name} has no config.json: {_kind_without_config(folder)}")
    _check_weight_files(name, folder)


def refuse_without_vocabulary(name: str | Path) -> None:
    """Raise ValueError for a checkpoint whose tokenizer would have no ordinary tokens, or needs another package to be read."""
    folder = _folder(name)
    if folder is None or any(all((folder / file).is_file() for file in files) for files in _VOCABULARIES):
        return
    for file, package in _OTHER_VOCABULARIES.items():
        if (folder / file).is_file():
            raise ValueError(
                f"{name} has its tokenizer as {file} alone, which {package} reads: write tokenizer.json from it once, with that package "
                "installed:\n"
                f"  from transformers import AutoTokenizer; AutoTokenizer.from_pretrained({str(name)!r}).save_pretrained({str(name)!r})"
            )
    wanted = ", or ".join(" and ".join(files) for files in _VOCABULARIES)
    raise ValueError(
        f"{name} has no vocabulary ({wanted}): its tokenizer would know its special tokens alone. Fetch tokenizer.json of the model"
    )


def refuse_other_tensors(name: str | Path) -> None:
    """Raise ValueError where the tensors of a directory are not those of its config, by name and shape.

    Headers are read, no weight is. Quantised tensors have shapes of their own and are left to transformers.
    """
    from transformers import AutoModelForImageTextToText

    folder = Path(name)
    if not folder.is_dir() or "quantization_config" in read_object(folder / "config.json"):
        return
    shards = (
        sorted(set(read_object(folder / _INDEX).get("weight_map", {}).values())) if (folder / _INDEX).is_file() else []
    )
    if absent := [shard for shard in shards if not (folder / shard).is_file()]:
        raise ValueError(
            f"{folder / _INDEX} names {len(shards)} files of weights, and {len(absent)} are not there, {absent[0]} first: fetch them"
        )
    if not _weights(folder):
        raise ValueError(f"{name} holds no weights (*.safetensors): fetch all of the checkpoint")
    loaded: Any = AutoModelForImageTextToText.from_pretrained(
        str(name),
        device_map="meta",
        ignore_mismatched_sizes=True,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
    )
    model, info = loaded
    if others := sorted(info["mismatched_keys"]):
        tensor, written, expected = others[0]
        raise ValueError(
            f"{name}: {len(others)} tensors have another shape than config.json says, {tensor} first: {list(written)} in the weights, "
            f"{list(expected)} by the config. They belong to different models: take both from one place"
        )
    check_loaded(name, model.config.model_type, info)


def check_loaded(name: str | Path, kind: str, info: dict[str, Any]) -> None:
    """Raise ValueError for tensors that were missing or left over when a model was loaded with `output_loading_info`."""
    missing = set(map(str, info["missing_keys"]))
    if missing and all("lm_head" in key for key in missing):
        raise ValueError(
            f"{name}: the weights hold no {min(missing)}, and config.json does not tie the head to the embeddings, so it would be random. "
            "If the model was trained with tied embeddings, set tie_word_embeddings to true in config.json (at its top, and in text_config "
            "where it stands there); else fetch all of the checkpoint"
        )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if keys := sorted(map(str, info[problem])):
            raise ValueError(
                f"{name}: {len(keys)} {problem.replace('_', ' ')} for a {kind}, {keys[0]} first: its weights would be "
                "random in part. Take config and weights from one place, and all of them"
            )


def _may_be_of_hub(name: str | Path) -> bool:
    return str(name).count("/") == 1 and not str(name).startswith((".", "/"))


def _folder(name: str | Path) -> Path | None:
    """Where the checkpoint's small files are; None where there is no such directory and no such model that can be reached."""
    if Path(name).is_dir():
        return Path(name)
    if not _may_be_of_hub(name):
        return None
    try:
        return Path(snapshot_download(str(name), allow_patterns=_SMALL))
    except (OSError, ValueError):
        return None


def read_object(file: Path) -> dict[str, Any]:
    """The content of a JSON file. Raises ValueError, naming it, where that is no object."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON ({error}): fetch it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__} where a mapping is expected: fetch it again")
    return content


def _check_sums(folder: Path) -> None:
    """Raise ValueError where a student that `switchkd train` saved is no longer what it was; only files that are loaded matter."""
    if not (folder / MANIFEST).exists():
        return
    damage = find_damage(folder, lambda name: any(fnmatch(name, pattern) for pattern in _LOADED))
    if damage is not None:
        raise ValueError(
            f"{folder} is not what was saved: {damage}. Copy it again from where it is whole, or run its `switchkd train` again; if "
            f"the change is meant, remove {folder / MANIFEST}"
        )


def _check_fetched(folder: Path) -> None:
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.stat().st_size < 1024:
            with file.open("rb") as opened:
                if opened.read(len(_LFS)) == _LFS:
                    raise ValueError(
                        f"{file} is a pointer of Git LFS, not the file itself: run `git lfs pull` in {folder}"
                    )


def _check_adapter(name: str | Path, folder: Path) -> None:
    settings = folder / "adapter_config.json"
    if not settings.is_file() and not any(folder.glob("adapter_model.*")):
        return
    base = read_object(settings).get("base_model_name_or_path") if settings.is_file() else None
    merged = " If its weights are merged already, remove adapter_config.json." if _weights(folder) else ""
    raise ValueError(
        f"{name} holds a LoRA adapter for {base or 'another model'}, not a model. Merge it first:\n"
        "  from transformers import AutoModelForImageTextToText, AutoProcessor; from peft import PeftModel\n"
        f"  base = AutoModelForImageTextToText.from_pretrained({base or 'BASE'!r}, dtype='auto')\n"
        f"  PeftModel.from_pretrained(base, {str(name)!r}).merge_and_unload().save_pretrained('merged')\n"
        f"  AutoProcessor.from_pretrained({base or 'BASE'!r}).save_pretrained('merged'){merged}"
    )


def _kind_without_config(folder: Path) -> str:
    """What a folder without config.json is, and what to take in its place."""
    if any(folder.glob("*.gguf")):
        return f"it holds GGUF weights, llama.cpp's form, which cannot be trained. Take {_TRANSFORMERS}"
    if (folder / "params.json").is_file():
        return f"it holds weights in their authors' own form (params.json). Take {_TRANSFORMERS}"
    if (folder / "model_index.json").is_file():
        return "it is a pipeline of diffusers, not a vision-language model"
    inside = sorted(file.parent for file in folder.glob("*/config.json"))
    if inside:
        return f"did you mean {inside[-1]}?"
    return f"it is no checkpoint of transformers. Take {_TRANSFORMERS}"


def _check_format(name: str | Path, config: dict[str, Any]) -> None:
    kind = config.get("model_type")
    (architecture, *_) = config.get("architectures") or ["an unnamed architecture"]
    if kind == "tinyllava":
        raise ValueError(
            f"{name} is a TinyLLaVA checkpoint: `switchkd convert {name} OUTPUT` makes a LLaVA of it, with the same weights"
        )
    written = [key for key in config if key.startswith(_LLAVA)]
    if written and "vision_config" not in config:
        raise ValueError(
            f"{name} is a checkpoint of LLaVA's original code ({', '.join(written[:2])} in config.json, {architecture}), whose tensors no "
            "class of transformers has. Take its converted form (on the hub under llava-hf, for example llava-hf/llava-1.5-7b-hf), or "
            "convert your own with convert_llava_weights_to_hf.py of transformers (src/transformers/models/llava)"
        )
    if not isinstance(kind, str):
        raise ValueError(f"{name}: config.json has no model_type, so its architecture is not known: fetch it again")
    import transformers
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    from switchkd.models.families import require_family

    if kind not in transformers.CONFIG_MAPPING:
        code = (config.get("auto_map") or {}).get("AutoConfig", "")
        own = f": its code lies in its own folder ({code}), and switchkd runs no code of checkpoints" if code else ""
        raise ValueError(
            f"{name}: transformers {transformers.__version__} has no class for {architecture}, model_type {kind!r}{own}. Take a "
            "release of the model in transformers' own form where there is one (InternVL: the names that end in -hf), or a newer "
            "transformers, or another model"
        )
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(
            f"{name} is a {kind}, a language model that sees no images: `switchkd init OUTPUT --vision VISION --language {name}` "
            "makes a vision-language model of it"
        )
    require_family(kind)


def _weights(folder: Path) -> list[str]:
    """The names of the safetensors files in transformers' form."""
    return [file.name for file in folder.glob("*.safetensors") if not file.name.startswith(("adapter", "consolidated"))]


def _check_weight_files(name: str | Path, folder: Path) -> None:
    if _weights(folder) or (folder / _INDEX).is_file():
        return
    if any(folder.glob("pytorch_model*.bin*")):
        raise ValueError(
            f"{name} holds its weights as pickles alone (pytorch_model.bin), which can run code as they are opened. Where you trust "
            "them, write them anew once:\n"
            "  from transformers import AutoModelForImageTextToText\n"
            f"  AutoModelForImageTextToText.from_pretrained({str(name)!r}, dtype='auto', use_safetensors=False).save_pretrained('safe')\n"
            "and copy the processor's files into that folder"
        )
    if any(folder.glob("*.gguf")):
        raise ValueError(f"{name} holds GGUF weights, llama.cpp's form, which cannot be trained. Take {_TRANSFORMERS}")
    if any(folder.glob("consolidated*")):
        raise ValueError(f"{name} holds weights in their authors' own form (consolidated). Take {_TRANSFORMERS}")


def _check_image_processor(name: str | Path, folder: Path) -> None:
    nested = folder / "processor_config.json"
    if (folder / "preprocessor_config.json").is_file() or (
        nested.is_file() and "image_processor" in read_object(nested)
    ):
        return
    raise ValueError(
        f"{name} has no image processor (preprocessor_config.json, or processor_config.json with `image_processor`): fetch it"
    )
