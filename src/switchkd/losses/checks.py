"""What every loss asks of its inputs, said once: shapes, dtypes, finite logits, sensible settings."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from jaxtyping import Float
from torch import Tensor

_LOGIT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


#: Whether values on a GPU are looked at, for which the host must wait.
_WAITS: ContextVar[bool] = ContextVar("waits", default=True)


@contextmanager
def without_waiting() -> Iterator[None]:
    """Leave values on a GPU alone: shapes and types are looked at, an id outside a vocabulary stops the device with an assertion, and a
    logit that is not finite makes a loss that is not, which whoever sums the losses up must look for.
    """
    token = _WAITS.set(False)
    try:
        yield
    finally:
        _WAITS.reset(token)


class NotFiniteError(ValueError):
    """Logits that hold a NaN or an infinite value."""


def check_logits(name: str, logits: Tensor) -> None:
    """Refuse what are not finite floating-point logits, over the vocabulary at each position; `name` is how the message calls it.

    Raises:
        ValueError: no vocabulary; a NaN or infinite logit, as `NotFiniteError` (its position, token and value are named).
        TypeError: a dtype other than float16, bfloat16, float32 or float64.
    """
    if logits.ndim == 0:
        raise ValueError(f"{name} must have the shape [..., vocab], got the single number {logits.item()}")
    if logits.dtype not in _LOGIT_DTYPES:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {logits.dtype}")
    if logits.numel() == 0 or (logits.is_cuda and not _WAITS.get()):
        return
    # One pass over the data: a NaN spreads to both ends, an infinity is one of them, and nothing can overflow.
    lowest, highest = torch.aminmax(logits.detach())
    if not (torch.isfinite(lowest) & torch.isfinite(highest)):
        bad = (~torch.isfinite(logits)).nonzero()
        *position, token = bad[0].tolist()
        raise NotFiniteError(
            f"{name} must be finite: {logits[*position, token].item()} at {_place(position)}token {token} "
            f"({len(bad)} of {logits.numel()} values are not finite). Leave masked vocabulary rows out of the "
            "comparison; if these come from a model, check its precision and its weights"
        )


def _place(position: list[int]) -> str:
    """Where among the leading dimensions, for messages: one number, or as many as there are."""
    return f"position {position[0] if len(position) == 1 else tuple(position)}, " if position else ""


def check_pair(student: Tensor, teacher: Tensor) -> None:
    """Refuse logits that cannot be compared, and a teacher that would be trained.

    Raises:
        ValueError: as `check_logits`; two different shapes; teacher logits that require grad.
        TypeError: as `check_logits`.
    """
    check_logits("student", student)
    check_logits("teacher", teacher)
    if student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher must have the same shape [..., vocab], got {list(student.shape)} and "
            f"{list(teacher.shape)}: compare the same positions and the shared vocabulary ids only"
        )
    if teacher.requires_grad:
        raise ValueError(
            "teacher requires grad, but the target of a distillation loss is fixed: "
            "compute it under torch.no_grad() or detach it"
        )


def check_targets(targets: Tensor, logits: Tensor) -> None:
    """Refuse targets that are not one vocabulary id per position of these logits; errors as `check_answers`."""
    check_answers(targets, logits.shape[:-1], logits.shape[-1])


def check_answers(targets: Tensor, positions: Sequence[int], vocab: int) -> None:
    """Refuse targets that are not one vocabulary id per position, of which there are so many in each leading dimension.

    Raises:
        ValueError: wrong shape, or an id outside the vocabulary (its position is named).
        TypeError: targets that are not integers.
    """
    if targets.shape != tuple(positions):
        raise ValueError(
            f"targets must have the shape {list(positions)} of the logits' positions, got {list(targets.shape)}"
        )
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise TypeError(f"targets must be integers, got {targets.dtype}")
    is_outside = (targets < 0) | (targets >= vocab)
    if targets.is_cuda and not _WAITS.get():
        torch._assert_async(~is_outside.any(), f"targets must be ids from 0 to {vocab - 1}")
        return
    outside = is_outside.nonzero()
    if len(outside):
        position = outside[0].tolist()
        at = f" at {_place(position).removesuffix(', ')}" if position else ""
        raise ValueError(
            f"targets must be ids from 0 to {vocab - 1}: {int(targets[tuple(position)])}{at}. "
            "Losses know no ignored label: select the answer positions first"
        )


def check_temperature(temperature: float) -> None:
    """Raise ValueError unless the temperature is a positive, finite number."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")


def check_beta(beta: float) -> None:
    """Raise ValueError unless beta lies between 0 (forward KL) and 1 (reverse KL)."""
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must be between 0 (forward KL) and 1 (reverse KL), got {beta}")


def check_at_least_two(name: str, value: int) -> None:
    """Raise ValueError where fewer than two logits would be compared: they form no pair."""
    if value < 2:
        raise ValueError(f"{name} must be at least 2 (two logits make the first pair), got {value}")


def at_least_float32(logits: Float[Tensor, "*n vocab"]) -> Float[Tensor, "*n vocab"]:
    """Half precision becomes float32; float32 and float64 stay what they are."""
    return logits if logits.dtype == torch.float64 else logits.float()
