"""What explains a training that stopped because something was not finite, as a file beside its checkpoints."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from switchkd.files import write_together
from switchkd.models import Pathway
from switchkd.models.finite import not_finite


def explain(
    file: Path,
    *,
    reason: str,
    step: int,
    student: Pathway,
    auxiliary: Mapping[str, nn.Module | None],
    batches: list[tuple[str, ...]],
    terms: Mapping[str, Tensor],
    pathways: Mapping[str, list[str]],
    rates: list[float],
) -> Path:
    """Write the samples of the step, the terms of its loss, and the norms of weights and gradients of each part; returns the file.

    Args:
        file: to write.
        reason: what was not finite.
        step: the one that was not taken.
        student: what is trained. Sharded tensors count as far as this process has them.
        auxiliary: what learns with it, by name.
        batches: keys of the samples of every micro-batch of the step on this process; the last one is where it stopped.
        terms: sums over the answers of the last micro-batch.
        pathways: sample → the pathways whose logits were not finite, where that could be found out.
        rates: the learning rates of the optimizer's groups.
    """
    parts = {part: student.part_parameters(part) for part in student.family.parts}
    for name, module in auxiliary.items():
        if module is not None:
            parts[name] = dict(module.named_parameters())
    found = {
        "reason": reason,
        "step": step,
        "batches": [list(keys) for keys in batches],
        "terms": {name: _number(value) for name, value in terms.items()},
        "pathways": dict(pathways),
        "learning_rates": rates,
        "parts": {name: _norms(parameters) for name, parameters in parts.items()},
    }
    write_together({file: json.dumps(found, indent=1) + "\n"})
    return file


def _norms(parameters: Mapping[str, nn.Parameter]) -> dict[str, Any]:
    """Of the weights and of their gradients, with the names of those that are not finite."""
    weights = {name: _own(p) for name, p in parameters.items()}
    gradients = {name: _own(p.grad) for name, p in parameters.items() if p.grad is not None}
    return {
        name: {"tensors": len(tensors), "norm": _norm(tensors.values()), "not_finite": not_finite(tensors)}
        for name, tensors in (("weights", weights), ("gradients", gradients))
    }


def _own(tensor: Tensor) -> Tensor:
    """What this process has of it."""
    whole: Any = tensor.detach()
    local: Tensor = whole.to_local() if hasattr(whole, "to_local") else whole
    return local


def _norm(tensors: Iterable[Tensor]) -> float | str:
    squares = [
        torch.linalg.vector_norm(tensor, dtype=torch.float64) ** 2 for tensor in tensors if tensor.is_floating_point()
    ]
    return _number(torch.stack(squares).sum().sqrt()) if squares else 0.0


def _number(value: Tensor) -> float | str:
    """JSON has no NaN."""
    number = value.item()
    return number if math.isfinite(number) else str(number)
