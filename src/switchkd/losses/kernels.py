"""The loss of Switch-KD by Triton kernels, where a GPU's memory and launches bound it; importable without Triton.

For each pathway one kernel reads a chunk's logits once (`scan`), and one finds the largest of every row among the maxima of its blocks
(`select`). One compares a learner with the teacher at these ids, led by both (`compare`). For the student one writes softmax − one-hot in
the precision in which it is multiplied (`softmax_gradient`), and one adds what the comparison says to it (`add_sparse_`). One gathers the
rows of the head for the switch (`weighted_rows`). Nothing makes the host wait, and no shape depends on values.

They choose what torch chooses, ties included; sums differ in their rounding alone.
"""

import functools
import importlib.util
import math
import os
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from switchkd.losses.knee import BLOCK

#: The widest window that is compared in registers.
MOST_WINDOW = 256
#: Blocks of one program that scans: 4,096 logits, 16 kB.
_BLOCKS = 64
#: Columns of one program that writes the gradient, and of one that gathers rows of a head.
_STRIP, _GATHERED = 4096, 512


class Scan(NamedTuple):
    """What one pass over logits finds."""

    #: The largest logit of each block of `BLOCK`, NaN where there is one; the last block may be incomplete.
    maxima: Float[Tensor, "n blocks"]
    #: Of each strip of blocks max z, and Σ exp(z − max z).
    largest: Float[Tensor, "n strips"]
    total: Float[Tensor, "n strips"]


class Comparison(NamedTuple):
    """`dbild` of every row, led by the teacher and by the learner."""

    #: Of every row λ · dbild in nats, the learner's k and the teacher's.
    sums: Float[Tensor, "3 n"]
    #: Those that the teacher chose, then the learner's.
    ids: Int[Tensor, "n k"]
    gradient: Float[Tensor, "n k"]


def interpreted() -> bool:
    """Whether Triton runs kernels on the CPU, as the tests do; it decides that when it is imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def why_not(device: torch.device) -> str | None:
    """Why no kernel can run there; None where they can. Found out once: a small case is computed and compared with what it must give."""
    if device.type != "cuda" and not interpreted():
        return f"they need a GPU, and this is on {device.type}"
    return _what_fails(device)


@functools.cache
def _what_fails(device: torch.device) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install triton"
    from switchkd.losses.kernels_check import check_kernels

    try:
        return check_kernels(device)
    except Exception as error:  # whatever a compiler or a driver raises; it is told, and torch computes the same
        return f"{type(error).__name__}: {error}".partition("\n")[0]


def scan(logits: Float[Tensor, "n rows"], columns: int | None = None) -> Scan:
    """In one pass over float32 logits, the maxima that `select` seeks in (of the first `columns`) and the sums of the cross-entropy."""
    n, rows = logits.shape
    columns = rows if columns is None else columns
    blocks, strips = math.ceil(columns / BLOCK), math.ceil(rows / BLOCK / _BLOCKS)
    found = Scan(logits.new_empty(n, blocks), logits.new_empty(n, strips), logits.new_empty(n, strips))
    if n:
        _kernels().scan[(n, strips)](
            _rows(logits), logits.stride(0), rows, columns, blocks, strips, *found, BLOCK=BLOCK, BLOCKS=_BLOCKS
        )
    return found


def select(logits: Float[Tensor, "n rows"], scanned: Scan, window: int) -> Int[Tensor, "n window"]:
    """`leader_order`: ids of the `window` largest logits, descending, equal ones by the lower id.

    `scanned` has the maxima of these columns, of which there are at least `window`.
    """
    n, columns = logits.shape
    ids = torch.empty(n, window, dtype=torch.int64, device=logits.device)
    blocks = math.ceil(columns / BLOCK)
    if n:
        _kernels().select[(n,)](
            _rows(logits), logits.stride(0), columns, scanned.maxima, blocks, torch.empty_like(ids, dtype=torch.int32), ids,
            WINDOW=window, WIDTH=_power_of_two(window), BLOCK=BLOCK, BLOCKS=_power_of_two(blocks), num_warps=8,
        )  # fmt: skip
    return ids


def compare(
    learner: Float[Tensor, "n vocab"],
    teacher: Float[Tensor, "n vocab"],
    learner_ids: Int[Tensor, "n window"],
    teacher_ids: Int[Tensor, "n window"],
    *,
    weight: float,
    temperature: float,
    min_k: int | None,
    t_squared: bool,
) -> Comparison:
    """λ · (KL(p_X ‖ p_T) on the teacher's top k_T + KL(p_X ‖ p_T) on X's own top k_X), as `losses.dbild.dbild`, with its gradient.

    Direction: reverse. In nats, float64; the gradient with respect to the learner's logits is float32, and 0 beyond k.

    Args:
        learner: z_X in float32, a row for each answer.
        teacher: z_T.
        learner_ids: the learner's `window` largest, in their order.
        teacher_ids: the teacher's.
        weight: λ.
        temperature: τ.
        min_k: the least k of the knee; None takes all of the window instead.
        t_squared: times τ².
    """
    n, window = learner_ids.shape
    sums = learner.new_empty(3, n, dtype=torch.float64)
    found = Comparison(sums, learner_ids.new_empty(n, 2 * window), learner.new_empty(n, 2 * window))
    if n:
        _kernels().compare[(n,)](
            _rows(learner), learner.stride(0), _rows(teacher), teacher.stride(0), learner_ids, teacher_ids, weight, min_k or 0,
            *sums.unbind(), found.ids, found.gradient,
            WINDOW=window, WIDTH=_power_of_two(window), TEMPERATURE=temperature, SCALE=temperature**2 if t_squared else 1.0,
            FIXED=min_k is None,
        )  # fmt: skip
    return found


def cross_entropy(
    logits: Float[Tensor, "n rows"], scanned: Scan, targets: Int[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """log Σ exp z_v − z_y of every row in nats, float64, and log Σ exp z_v, float32."""
    n, strips = scanned.total.shape
    log_sum_exp, loss = logits.new_empty(n), logits.new_empty(n, dtype=torch.float64)
    if n:
        _kernels().cross_entropy[(n,)](
            _rows(logits), logits.stride(0), targets, strips, scanned.largest, scanned.total, log_sum_exp, loss,
            STRIPS=_power_of_two(strips),
        )  # fmt: skip
    return loss, log_sum_exp


def softmax_gradient(
    logits: Float[Tensor, "n rows"], log_sum_exp: Float[Tensor, " n"], targets: Int[Tensor, " n"], dtype: torch.dtype
) -> Float[Tensor, "n rows"]:
    """softmax(z) − one-hot(y), the gradient of the cross-entropy: in the place of its logits where they have that dtype."""
    n, rows = logits.shape
    out = logits if dtype == logits.dtype else torch.empty(n, rows, dtype=dtype, device=logits.device)
    if n:
        grid = (n, math.ceil(rows / _STRIP))
        _kernels().softmax_gradient[grid](
            _rows(logits), logits.stride(0), rows, log_sum_exp, targets, out, out.stride(0), WIDTH=_STRIP
        )
    return out


def add_sparse_(
    gradient: Float[Tensor, "n rows"],
    logits: Float[Tensor, "n rows"],
    log_sum_exp: Float[Tensor, " n"],
    targets: Int[Tensor, " n"],
    found: Comparison,
) -> None:
    """Add the gradient of a comparison to what `softmax_gradient` gave for these logits: rounded once where that was rounded."""
    n, both = found.ids.shape
    if n:
        _kernels().add_sparse[(n,)](
            logits, logits.stride(0), log_sum_exp, targets, found.ids, found.gradient, gradient, gradient.stride(0),
            IN_PLACE=gradient is logits, HALF=both // 2, WIDTH=_power_of_two(both // 2),
        )  # fmt: skip


def weighted_rows(
    ids: Int[Tensor, "n k"], values: Float[Tensor, "n k"], table: Float[Tensor, "rows hidden"]
) -> Float[Tensor, "n hidden"]:
    """Σ_j values_j · table[ids_j] of every row, in float32; rows of the table whose value is 0 are not read."""
    (n, count), columns = ids.shape, table.shape[1]
    out = torch.empty(n, columns, dtype=torch.float32, device=table.device)
    if n:
        grid = (n, math.ceil(columns / _GATHERED))
        _kernels().weighted_rows[grid](
            ids.contiguous(), values.contiguous(), count, _rows(table), table.stride(0), columns, out, WIDTH=_GATHERED
        )
    return out


@functools.cache
def _kernels() -> Any:
    from switchkd.losses import triton_kernels

    return triton_kernels


def _rows(x: Tensor) -> Tensor:
    """As it is, if its rows lie in one piece each: kernels are given the distance between rows, and no other."""
    if x.stride(1) != 1:
        raise ValueError(f"rows must lie in memory as they are, got strides {x.stride()} of {list(x.shape)}")
    return x


def _power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()
