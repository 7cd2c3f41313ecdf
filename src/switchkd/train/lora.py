"""LoRA on the student's language model, through PEFT; the saved student is plain again.

PEFT is imported by what uses it: it takes seconds, because it brings bitsandbytes where that is installed, and a compiler with it.
"""

from copy import deepcopy
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from switchkd.models import Pathway
from switchkd.models.fill import fill


def add(student: Pathway, *, r: int, alpha: int, dropout: float) -> None:
    """Put adapters on every linear layer of the language model; its own weights stay frozen from here on."""
    from peft import LoraConfig, inject_adapter_in_model

    body = student.part("language")[0]
    names = [name for name, module in student.model.named_modules() if isinstance(module, nn.Linear)]
    inside = {id(module) for module in body.modules()}
    targets = [name for name in names if id(student.model.get_submodule(name)) in inside]
    config = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets)
    inject_adapter_in_model(config, student.model)


def present(student: Pathway) -> bool:
    """Whether the student has adapters."""
    from peft.tuners.lora import LoraLayer

    return any(isinstance(module, LoraLayer) for module in student.model.modules())


def plain(student: Pathway, state: dict[str, Tensor]) -> PreTrainedModel:
    """The student without adapters: W + (alpha / r)·B·A in the place of each adapted layer, where W may have been quantised.

    Args:
        student: with adapters.
        state: its state dict, whole.
    """
    from peft.tuners.lora import LoraLayer
    from peft.utils.integrations import dequantize_module_weight

    layers: dict[str, Any] = {
        path: module for path, module in student.model.named_modules() if isinstance(module, LoraLayer)
    }
    inside = tuple(f"{path}." for path in layers)
    merged = {name: value for name, value in state.items() if not name.startswith(inside)}
    for path, module in layers.items():
        base = f"{path}.base_layer."
        if f"{base}bias" in state:
            merged[f"{path}.bias"] = state[f"{base}bias"]
        weight = state[f"{base}weight"]
        if not weight.is_floating_point():
            weight = dequantize_module_weight(module.get_base_layer()).to(student.model.dtype)
        down, up = (state[f"{path}.lora_{name}.default.weight"] for name in ("A", "B"))
        merged[f"{path}.weight"] = weight + (up @ down * module.scaling["default"]).to(weight.dtype)
    config = deepcopy(student.model.config)
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    model = fill(type(student.model), config, merged)
    if (names := vars(student.model).get("_weight_conversions")) is not None:
        vars(model)["_weight_conversions"] = names  # its files get the names that the student's own have
    model.generation_config = student.model.generation_config
    return model
