"""Weights that are spread over processes (FSDP2): how the step is cut up, and its tensors whole again for files and back."""

from typing import Any

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from switchkd.models.layers import repeated_layers
from switchkd.train.step import DistillationStep


def cut_by_layers(plugin: FullyShardedDataParallelPlugin | None, step: DistillationStep, *, bf16: bool) -> None:
    """Tell accelerate's FSDP what it gathers at a time, and in which precision; nothing where it is not used (None).

    Layers of both models are gathered one by one, as they name themselves; all else, heads included, with the step itself. Under `bf16`
    weights are gathered in bfloat16 and gradients are added in float32: with autocast over float32 weights, a copy of every
    layer that has run would stay in memory. Results keep their precision, which accelerate's own setting rounds too.
    """
    if plugin is None:
        return
    from torch.distributed.fsdp import MixedPrecisionPolicy
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    # anew for each stage: accelerate keeps what it made of those of the first
    plugin.auto_wrap_policy = transformer_auto_wrap_policy
    plugin.transformer_cls_names_to_wrap = sorted({type(layer).__name__ for layer in repeated_layers([step])})
    plugin.mixed_precision_policy = (
        MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
        if bf16
        else MixedPrecisionPolicy()
    )


def gathered(step: DistillationStep) -> dict[str, Tensor]:
    """The whole tensors of the student and of what learns with it, by their names in the step; in the main process, on the CPU.

    Every process must call this. The teacher is left out: it is in no checkpoint.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    modules = {"student.model": step.pair.student.model, **step.auxiliary_modules}
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: dict[str, Tensor] = {}
    for place, module in modules.items():
        if module is None:
            continue
        own: dict[str, Any] = get_model_state_dict(module, options=options)
        tied: dict[int, str] = {}  # one tensor under several names stays one
        first = {name: tied.setdefault(id(p), name) for name, p in module.named_parameters(remove_duplicate=False)}
        state |= {f"pair.{place}.{name}": own[first.get(name, name)] for name in own}
    return state


def put(state: dict[str, Tensor], module: nn.Module, *, strict: bool = True) -> None:
    """`module.load_state_dict(state)`, where the module may be sharded: then every process must call this with the whole tensors."""
    if not any(isinstance(parameter, DTensor) for parameter in module.parameters()):
        module.load_state_dict(state, strict=strict)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    set_model_state_dict(module, {**state}, options=StateDictOptions(full_state_dict=True, strict=strict))


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be sharded, on every process; every process must call this."""
    sharded: Any = tensor
    result: Tensor = sharded.full_tensor() if isinstance(tensor, DTensor) else tensor
    return result
