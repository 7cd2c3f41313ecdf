"""Weights that are no numbers: NaN or infinite values that no row may feel, and that are saved with the others."""

from collections.abc import Mapping

import torch
from torch import Tensor

#: Tensors that a message names.
_NAMED = 3


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors that hold a NaN or an infinite value; whole numbers, which quantised weights are, hold none."""
    names = [name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()]
    # A NaN spreads to both ends, an infinity is one of them; no mask as large as the tensor, and one look at the device for all.
    ends = [torch.stack(torch.aminmax(tensors[name].detach())).double().cpu() for name in names]
    return [name for name, pair in zip(names, ends, strict=True) if not bool(torch.isfinite(pair).all())]


def describe(tensors: Mapping[str, Tensor], names: list[str]) -> str:
    """How many tensors these are, and the first of them with the numbers of their values that are not finite."""
    counts = [(name, int((~torch.isfinite(tensors[name])).sum()), tensors[name].numel()) for name in names[:_NAMED]]
    first = ", ".join(f"{name} ({bad:,} of {all_of_it:,} values)" for name, bad, all_of_it in counts)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{len(names)} of {len(tensors)} tensors are not finite: {first}{more}"
