"""Which serving engines read a model, and whether its folder is laid out as they expect it.

What vLLM lists stands in its docs/models/supported_models.md, what llama.cpp's converter takes in its conversion/__init__.py (both read on
2026-11-27; docs/export.md has the table). Neither engine is run here.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as CLASSES

_TOWER = ("vision_tower.vision_model.encoder.layers", "language_model.model.layers")
_QWEN = ("visual.blocks", "model.layers")
_TILES = ("model.vision_model.encoder.layers", "model.text_model.layers")
#: `model_type` → where published checkpoints have the layers of both sides.
HUB_LAYERS = {
    "llava": _TOWER,
    "llava_next": _TOWER,
    "llava_onevision": _TOWER,
    "paligemma": _TOWER,
    "gemma3": _TOWER,
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": ("model.visual.blocks", "model.language_model.layers"),
    "idefics3": _TILES,
    "smolvlm": _TILES,
    "internvl": ("vision_tower.encoder.layer", "language_model.model.layers"),
    "mistral3": ("vision_tower.transformer.layers", "language_model.model.layers"),
}
#: What vLLM lists: every family that switchkd reads.
VLLM = frozenset(HUB_LAYERS)
#: What llama.cpp's converter takes, language model and vision encoder.
LLAMA_CPP = frozenset({"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "idefics3", "smolvlm", "gemma3", "mistral3"})
#: Of these, llama.cpp's converter goes by `text_config.architectures` and not by the model's own.
LANGUAGE_NAMED = frozenset({"idefics3", "smolvlm"})
#: One file of each line must be there.
_FILES = (
    ("config.json",),
    ("generation_config.json",),
    ("tokenizer.json", "vocab.json", "vocab.txt"),
    ("tokenizer_config.json",),
    ("preprocessor_config.json",),
    ("chat_template.jinja",),
    ("model.safetensors", "model.safetensors.index.json"),
)


@dataclass(frozen=True)
class Serving:
    """What an engine makes of a model: the commands, or why there are none."""

    engine: str
    commands: tuple[str, ...] = ()
    reason: str = ""


def serving(model_type: str, folder: str) -> tuple[Serving, ...]:
    """How vLLM and llama.cpp serve a model in a folder."""
    architecture = CLASSES[model_type]
    vllm = (
        Serving("vLLM", (f"vllm serve {folder}",))
        if model_type in VLLM
        else Serving("vLLM", reason=f"its list of models has no {architecture}")
    )
    if model_type in LLAMA_CPP:
        commands = (
            f"python convert_hf_to_gguf.py {folder} --outfile model.gguf",
            f"python convert_hf_to_gguf.py {folder} --mmproj --outfile mmproj.gguf",
            "llama-server -m model.gguf --mmproj mmproj.gguf",
        )
        return vllm, Serving("llama.cpp", commands)
    reason = f"its converter takes no {architecture}"
    if model_type == "llava":
        reason = f"its converter takes {architecture} with a Pixtral encoder alone"
    return vllm, Serving("llama.cpp", reason=reason)


def check_layout(folder: Path) -> None:
    """Look at what was written: files, architecture, names of tensors, shards.

    Raises:
        ValueError: something is not as engines expect it.
    """
    for names in _FILES:
        if not any((folder / name).is_file() for name in names):
            raise ValueError(
                f"{folder} has no {' or '.join(names)}: engines need it, and the model has nothing to make it of"
            )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = config["model_type"]
    if config.get("architectures") != [CLASSES[kind]]:
        raise ValueError(
            f"{folder}/config.json names the architectures {config.get('architectures')}, not {CLASSES[kind]}"
        )
    tensors = _tensors(folder)
    layers = {name.split(".0.")[0] for name in tensors if ".0." in name}
    for expected in HUB_LAYERS[kind]:
        if expected not in layers:
            raise ValueError(
                f"{folder}: no tensor begins with {expected}.0, where checkpoints of the hub have the layers of a {kind}: engines would "
                f"not find them (there are {', '.join(sorted(layers)[:4])})"
            )


def _tensors(folder: Path) -> set[str]:
    """The names of all tensors. Raises ValueError where the index of shards names others, or shards that are not there."""
    index, names = folder / "model.safetensors.index.json", set()
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            names |= set(weights.keys())
    if index.is_file():
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        absent = sorted({shard for shard in listed.values() if not (folder / shard).is_file()})
        if absent or set(listed) != names:
            raise ValueError(
                f"{index} names {len(listed)} tensors, the files hold {len(names)}; missing files: {absent or 'none'}"
            )
    return names
