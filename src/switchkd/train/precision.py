"""Weights that learn are kept in float32, whatever the precision of their file: in half of it, small updates are rounded away."""

import torch
from torch import Tensor

from switchkd.models import Pathway

HALF = (torch.bfloat16, torch.float16)
#: Parts that meet without a change of precision in between; in most families what enters the language model is brought to its precision.
_TOGETHER = (("vision", "projector"), ("language",))
_ALL_TOGETHER = (("vision", "projector", "language"),)


def widen_learning(student: Pathway) -> list[str]:
    """Make float32 of half-precision weights that learn; call it when `requires_grad` is set.

    bfloat16 has 8 significant bits: an update below 1/512 of a weight leaves it as it is, and most are, at usual rates. The parts in
    which something learns are widened whole, because most layers want one precision; of parts with adapters, the adapters alone. Parts
    that are frozen keep their precision. `train.bf16` computes in bfloat16 all the same.

    Returns:
        The parts that were widened.
    """
    widened: list[str] = []
    for parts in _ALL_TOGETHER if student.family.one_precision else _TOGETHER:
        parameters = {name: p for part in parts for name, p in student.part_parameters(part).items()}
        learning = {name: p for name, p in parameters.items() if p.requires_grad}
        tensors: list[Tensor] = list(learning.values())
        if any(".lora_" not in name for name in learning):
            buffers = [buffer for part in parts for module in student.part(part) for buffer in module.buffers()]
            tensors = [*parameters.values(), *buffers]
        half = [tensor for tensor in tensors if tensor.dtype in HALF]
        for tensor in half:
            tensor.data = tensor.data.float()
        widened += parts if half else ()
    return widened
