"""LoRA on the student's language model, through PEFT; the saved student is plain again."""

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor

from switchkd.models import Pathway


def add(student: Pathway, *, r: int, alpha: int, dropout: float) -> None:
    """Put adapters on every linear layer of the language model; its own weights stay frozen from here on."""
    config = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules="all-linear")
    inject_adapter_in_model(config, student.part("language")[0])


def present(student: Pathway) -> bool:
    """Whether the student has adapters."""
    return any(isinstance(module, LoraLinear) for module in student.model.modules())


def merged(student: Pathway, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of the plain model: W + (alpha / r)·B·A in the place of each adapted layer."""
    plain = {name.replace(".base_layer.", "."): value for name, value in state.items() if ".lora_" not in name}
    for path, module in student.model.named_modules():
        if isinstance(module, LoraLinear):
            plain[f"{path}.weight"] = plain[f"{path}.weight"] + module.get_delta_weight("default").detach()
    return plain
