"""Triton kernels for the two passes over a chunk of logits that a GPU's memory bounds. Opt-in; importable without Triton.

They give what torch gives: the same maxima, sums that differ in their rounding alone. Triton's interpreter tests them; they have not been
measured on a GPU, so nothing uses them unasked.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import functools
import os
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from switchkd.losses.knee import BLOCK

try:
    import triton
    import triton.language as tl
    from triton.language import constexpr
except ImportError:
    triton = tl = constexpr = None

#: Blocks of one program: 4,096 logits, 16 kB.
_BLOCKS = 64


class Scan(NamedTuple):
    """What one pass over logits finds."""

    #: The largest logit of each block of `BLOCK`, NaN where there is one; the last block may be incomplete.
    maxima: Float[Tensor, "n blocks"]
    #: log Σ exp of each row.
    log_sum_exp: Float[Tensor, " n"]


def scan(logits: Float[Tensor, "n rows"]) -> Scan:
    """The maxima that `leader_order` seeks in and the sum that the cross-entropy needs, in one pass over float32 logits."""
    _check(logits)
    n, rows = logits.shape
    blocks = triton.cdiv(rows, BLOCK)
    strips = triton.cdiv(blocks, _BLOCKS)
    maxima = logits.new_empty(n, blocks)
    largest, total = logits.new_empty(n, strips), logits.new_empty(n, strips)
    if n:
        _compiled(_scan)[(n, strips)](
            logits, logits.stride(0), rows, blocks, strips, maxima, largest, total, BLOCK=BLOCK, BLOCKS=_BLOCKS
        )
    return Scan(maxima, (largest + total.log()).logsumexp(dim=-1))


def softmax_gradient_(
    logits: Float[Tensor, "n rows"], log_sum_exp: Float[Tensor, " n"], targets: Int[Tensor, " n"]
) -> Float[Tensor, "n rows"]:
    """softmax(z) − one-hot(y), the gradient of the cross-entropy, in the place of its float32 logits: one read, one write."""
    _check(logits)
    n, rows = logits.shape
    width = BLOCK * _BLOCKS
    if n:
        grid = (n, triton.cdiv(rows, width))
        _compiled(_softmax_gradient)[grid](logits, logits.stride(0), rows, log_sum_exp, targets, WIDTH=width)
    return logits


def _check(logits: Tensor) -> None:
    if triton is None:
        raise ImportError('kernels="triton" needs Triton: pip install triton, or use kernels="torch"')
    if logits.dtype != torch.float32 or logits.stride(1) != 1:
        raise TypeError(
            f'kernels="triton" reads rows of float32, got {logits.dtype} with strides {logits.stride()}: use kernels="torch"'
        )
    if not logits.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f'kernels="triton" needs a GPU, but the logits are on {logits.device}: use kernels="torch"')


@functools.cache
def _compiled(kernel: Any) -> Any:
    """The kernel as Triton runs it; not a decorator, so that this file needs no Triton."""
    return triton.jit(kernel)


def _scan(z, stride, rows, blocks, strips, maxima, largest, total, BLOCK: constexpr, BLOCKS: constexpr):
    row, strip = tl.program_id(0).to(tl.int64), tl.program_id(1)
    block = strip * BLOCKS + tl.arange(0, BLOCKS)
    column = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    x = tl.load(z + row * stride + column, mask=column < rows, other=-float("inf"))
    peak = tl.max(x, axis=1)
    undefined = tl.max((x != x).to(tl.int32), axis=1)  # a maximum overlooks NaN
    tl.store(maxima + row * blocks + block, tl.where(undefined > 0, float("nan"), peak), mask=block < blocks)
    highest = tl.max(peak, axis=0)
    tl.store(largest + row * strips + strip, highest)
    offset = tl.where(highest == -float("inf"), 0.0, highest)  # a strip of masked logits sums to 0
    tl.store(total + row * strips + strip, tl.sum(tl.sum(tl.exp(x - offset), axis=1), axis=0))


def _softmax_gradient(z, stride, rows, log_sum_exp, targets, WIDTH: constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    x = tl.load(z + row * stride + column, mask=column < rows, other=-float("inf"))
    p = tl.exp(x - tl.load(log_sum_exp + row))
    p = tl.where(column == tl.load(targets + row), p - 1, p)
    tl.store(z + row * stride + column, p, mask=column < rows)
