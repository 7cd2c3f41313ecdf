"""TinyLLaVA Factory checkpoints to Hugging Face's LLaVA and back: the same tensors under other names.

TinyLLaVA Factory writes two layouts, and both are read: one model (`config.json`, `model.safetensors` or shards), and after
pre-training three folders (`language_model/`, `vision_tower/`, `connector/`, each with a `pytorch_model.bin`).
"""

import json
import logging
import re
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict, snapshot_download
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from switchkd.convert.checkpoint_files import complete_or_nothing, has_weights, read_weights, tensor_names
from switchkd.convert.processor import llava_processor, place_image_token
from switchkd.data.processor_files import save_processor
from switchkd.models import load_pathway
from switchkd.models.families import family_of
from switchkd.models.families.llava import VICUNA
from switchkd.models.fill import fill
from switchkd.models.opening import load_processor
from switchkd.models.refusals import refuse_unusable
from switchkd.models.run_folder import model_folder

#: TinyLLaVA's prefixes → those of `LlavaForConditionalGeneration`. Every tensor has one of them.
PREFIXES = {
    "language_model.model.": "model.language_model.",
    "language_model.lm_head.": "lm_head.",
    "vision_tower._vision_tower.vision_model.": "model.vision_tower.",
    "connector._connector.0.": "model.multi_modal_projector.linear_1.",
    "connector._connector.2.": "model.multi_modal_projector.linear_2.",
}
#: Folders of the layout in parts → prefix of their tensors in the layout of one model.
FOLDERS = {
    "language_model": "language_model.",
    "vision_tower": "vision_tower._vision_tower.",
    "connector": "connector.",
}
#: Which features the projector receives, in TinyLLaVA's words and in Hugging Face's.
STRATEGIES = {"patch": "default", "cls_patch": "full"}
CONNECTOR = "mlp2x_gelu"
#: TinyLLaVA marks an image in `input_ids` by this, which is no token.
IMAGE_TOKEN_INDEX = -200
_ONLY_MLP = (
    f"Supported is {CONNECTOR}: Hugging Face's LLaVA has no other projector, so no LLaVA has this model's logits. Run it with the code it "
    "was published with, and choose a teacher or student with an MLP here"
)
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")
_log = logging.getLogger(__name__)


def convert(source: str, target: Path, *, language: str | None = None, vision: str | None = None) -> str:
    """Convert a checkpoint directory or hub name to the other format, and return what was made of what.

    Args:
        source: a TinyLLaVA checkpoint becomes a LLaVA, a LLaVA becomes a TinyLLaVA checkpoint.
        target: a new directory.
        language: for TinyLLaVA's config, the hub name of the language model; an imported checkpoint remembers its own.
        vision: the hub name of the vision encoder, likewise.
    """
    directory = Path(model_folder(source))
    if not directory.is_dir():
        if directory.exists() or source.count("/") != 1 or source.startswith((".", "/")):
            raise ValueError(
                f"{source} is neither a checkpoint directory nor the name of a model on the Hugging Face hub"
            )
        directory = Path(snapshot_download(source, allow_patterns=["*.json"]))
        if _config(directory).get("model_type") != "llava":
            _check(_config(directory), directory)  # before the weights are fetched
        directory = Path(snapshot_download(source, ignore_patterns=["*.py", "*.md"]))
    model_type = _config(directory).get("model_type")
    if model_type == "llava":
        export_tinyllava(directory, target, language=language, vision=vision)
        return f"TinyLLaVA checkpoint in {target}, of the LLaVA in {source}"
    import_tinyllava(directory, target)
    return f"LLaVA in {target}, of the TinyLLaVA checkpoint in {source}"


def import_tinyllava(source: Path, target: Path) -> None:
    """Write the TinyLLaVA checkpoint in `source` as a plain `LlavaForConditionalGeneration` with its processor into `target`.

    Raises:
        ValueError: if it is no TinyLLaVA checkpoint, has a connector or parts that LLaVA has not, or any tensor is missing or left over.
    """
    written = _config(source)
    _check(written, source)
    tensors = _read(source)
    tokenizer = _tokenizer(written, source)
    rows = _entry(written, "text_config", source).get("vocab_size")
    image_token = place_image_token(tokenizer)
    if rows is not None and image_token >= rows:
        raise ValueError(
            f"{source}: the tokenizer's {image_token} tokens fill all {rows} rows of the embeddings, so there is no free row for the image "
            "token and the weights could not stay as they are"
        )
    config = _llava_config(written, source, image_token)
    family_of(config)  # refuses members that have not been tested
    renamed = {_rename(name): tensor for name, tensor in tensors.items()}
    if len(renamed) != len(tensors):
        raise ValueError(
            f"{source}: {len(tensors) - len(renamed)} tensors are there twice, under an old and a new name"
        )
    try:
        model = fill(LlavaForConditionalGeneration, config, renamed, called=_rename_back)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    assert model.generation_config is not None
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    _log.info(
        "%s does not say how it was spoken to: its chat template is assumed to be Vicuna's (USER: … ASSISTANT: …). If its data was "
        "prepared otherwise, put that template into %s",
        source,
        target / "chat_template.jinja",
    )
    processor = llava_processor(tokenizer, config, VICUNA, written.get("image_aspect_ratio") or "square")
    with complete_or_nothing(target) as folder:
        model.save_pretrained(folder)
        save_processor(processor, folder)


def export_tinyllava(source: Path, target: Path, *, language: str | None = None, vision: str | None = None) -> None:
    """Write the LLaVA in `source` in TinyLLaVA Factory's layout of one model into `target`.

    Raises:
        ValueError: if the model has no TinyLLaVA counterpart, or the names that TinyLLaVA loads classes by are not known.
    """
    model = load_pathway(source).model
    config = model.config
    processor: Any = load_processor(source)
    if (
        config.projector_hidden_act != "gelu"
        or not config.multimodal_projector_bias
        or not isinstance(config.vision_feature_layer, int)
    ):
        raise ValueError(
            f"{source}: TinyLLaVA's {CONNECTOR} is two linear layers with biases and a GELU, on the features of one layer; here are "
            f"{config.projector_hidden_act}, bias {config.multimodal_projector_bias}, feature layer {config.vision_feature_layer}"
        )
    remembered: dict[str, Any] = getattr(config, "tinyllava", None) or {}
    language = language or remembered.get("llm_model_name_or_path")
    vision = vision or remembered.get("vision_model_name_or_path")
    if not language or not vision:
        raise ValueError(
            f"{source} does not say what TinyLLaVA should call its parts: give --language and --vision, the hub names of the models it was "
            "made of, such as Qwen/Qwen2.5-0.5B and google/siglip-so400m-patch14-384"
        )
    strategy = {llava: tinyllava for tinyllava, llava in STRATEGIES.items()}[config.vision_feature_select_strategy]
    padded = processor.image_processor.to_dict().get("do_pad")
    written = {
        "tokenizer_name_or_path": language, "tokenizer_padding_side": "right", "tokenizer_model_max_length": 2048,
        "pad_token": processor.tokenizer.pad_token, "pad_token_id": processor.tokenizer.pad_token_id, "use_cache": True,
        **remembered,
        "architectures": ["TinyLlavaForConditionalGeneration"], "model_type": "tinyllava",
        "llm_model_name_or_path": language, "vision_model_name_or_path": vision, "connector_type": CONNECTOR,
        "hidden_size": config.text_config.hidden_size, "vocab_size": config.text_config.vocab_size,
        "vision_hidden_size": config.vision_config.hidden_size, "image_token_index": IMAGE_TOKEN_INDEX, "ignore_index": -100,
        "image_aspect_ratio": "pad" if padded else "square",
        "vision_feature_layer": config.vision_feature_layer, "vision_feature_select_strategy": strategy,
        "text_config": _old_rope(_architecture(config.text_config)),
        "vision_config": {**_architecture(config.vision_config), "model_name_or_path": vision, "model_name_or_path2": ""},
        "torch_dtype": str(model.dtype).removeprefix("torch."),
    }  # fmt: skip
    tied = model.all_tied_weights_keys or {}
    tensors = {_rename_back(name): value for name, value in model.state_dict().items() if name not in tied}
    with complete_or_nothing(target) as folder:
        (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
        save_torch_state_dict(tensors, folder)
        processor.tokenizer.save_pretrained(folder)


def _config(directory: Path) -> dict[str, Any]:
    file = directory / "config.json"
    if not file.is_file():
        raise ValueError(f"{directory} has no config.json, so it is no checkpoint")
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return config


def _check(config: dict[str, Any], source: Path) -> None:
    """Refuse what has no LLaVA of the same function, with what was found and what can be done."""
    connector = config.get("connector_type")
    pooled = re.search(r"\bldp(net)?(v2)?\b", json.dumps(config), re.IGNORECASE)
    if pooled is not None or any(".peg.peg." in name for name in tensor_names(source)):
        connector = pooled[0] if pooled else "LDPNetV2"
        raise ValueError(
            f"{source}: its connector is {connector}, which pools visual tokens (576 to 144 in the Switch-KD authors' release). {_ONLY_MLP}"
        )
    if config.get("model_type") != "tinyllava" and connector is None:
        refuse_unusable(source)  # with a better reason, where there is one
        raise ValueError(
            f"{source}: model_type {config.get('model_type')!r} is neither 'tinyllava', to import, nor 'llava', to export"
        )
    if connector != CONNECTOR:
        raise ValueError(f"{source}: its connector is {connector}. {_ONLY_MLP}")
    if (source / "adapter_config.json").exists():
        raise ValueError(f"{source} holds LoRA adapters: merge them into the weights with TinyLLaVA Factory first")
    for field, known in (
        ("vision_feature_select_strategy", tuple(STRATEGIES)),
        ("image_aspect_ratio", ("square", "pad")),
    ):
        if config.get(field) not in (None, *known):
            raise ValueError(f"{source}: {field} is {config[field]!r}; supported: {', '.join(known)}")


def _entry(config: dict[str, Any], name: str, source: Path) -> dict[str, Any]:
    entry = config.get(name)
    if not isinstance(entry, dict) or "model_type" not in entry:
        raise ValueError(f"{source}: config.json has no {name} with a model_type, so the architecture is not known")
    return {key: value for key, value in entry.items() if key not in _NOT_ARCHITECTURE}


_NOT_ARCHITECTURE = {
    "_name_or_path", "architectures", "auto_map", "torch_dtype", "dtype", "transformers_version", "model_name_or_path",
    "model_name_or_path2",
}  # fmt: skip


def _llava_config(written: dict[str, Any], source: Path, image_token: int) -> LlavaConfig:
    parts: dict[str, Any] = {name: _entry(written, name, source) for name in ("text_config", "vision_config")}
    kept = {key: value for key, value in written.items() if key not in {*parts, *_NOT_ARCHITECTURE, "model_type"}}
    features: dict[str, Any] = {
        "vision_feature_layer": written.get("vision_feature_layer", -2),
        "vision_feature_select_strategy": STRATEGIES[written.get("vision_feature_select_strategy") or "patch"],
        "tinyllava": kept,  # what an export writes again
    }
    return LlavaConfig(**parts, **features, image_token_index=image_token, projector_hidden_act="gelu")


def _read(source: Path) -> dict[str, Tensor]:
    """The tensors of either layout, by their names in the layout of one model."""
    if has_weights(source):
        return read_weights(source)
    if absent := [folder for folder in FOLDERS if not (source / folder).is_dir()]:
        raise ValueError(
            f"{source} holds neither model.safetensors nor the folders {', '.join(FOLDERS)} ({', '.join(absent)} missing): fetch all of it"
        )
    return {
        prefix + name: tensor
        for folder, prefix in FOLDERS.items()
        for name, tensor in read_weights(source / folder).items()
    }


def _tokenizer(config: dict[str, Any], source: Path) -> PreTrainedTokenizerBase:
    """The checkpoint's own tokenizer, or like TinyLLaVA the one that its config names."""
    local = any((source / name).exists() for name in _TOKENIZER_FILES)
    place = str(source) if local else config.get("tokenizer_name_or_path") or config.get("llm_model_name_or_path")
    if not place:
        raise ValueError(f"{source} holds no tokenizer ({', '.join(_TOKENIZER_FILES)}) and its config names none")
    if not local:
        _log.info("%s holds no tokenizer: using %s, which its config names", source, place)
    text = AutoConfig.for_model(
        **_entry(config, "text_config", source)
    )  # the config.json beside it has a type that AutoTokenizer does not know
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(place, config=text, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = config.get("pad_token") or tokenizer.eos_token
    return tokenizer


def _rename(name: str) -> str:
    """Hugging Face's name of a TinyLLaVA tensor; a name without a counterpart stays as it is, and is reported as unexpected."""
    tower = FOLDERS["vision_tower"]
    if name.startswith(tower) and not name.startswith(f"{tower}vision_model."):  # written by transformers 5
        name = f"{tower}vision_model.{name.removeprefix(tower)}"
    return next((llava + name.removeprefix(own) for own, llava in PREFIXES.items() if name.startswith(own)), name)


def _rename_back(name: str) -> str:
    return next((own + name.removeprefix(llava) for own, llava in PREFIXES.items() if name.startswith(llava)), name)


def _architecture(config: PretrainedConfig) -> dict[str, Any]:
    """A part's config without what every config of transformers has."""
    common = PretrainedConfig().to_dict().keys() - {"model_type"}
    return {key: value for key, value in config.to_dict().items() if key not in common | _NOT_ARCHITECTURE}


def _old_rope(text: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings as transformers 4 reads them, which TinyLLaVA Factory runs on."""
    rope = text.pop("rope_parameters", None) or {}
    if "rope_theta" in rope:
        text["rope_theta"] = rope["rope_theta"]
    if rope.get("rope_type", "default") != "default":
        text["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    return text
