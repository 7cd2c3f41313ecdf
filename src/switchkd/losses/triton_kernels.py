"""What `losses.kernels` launches, in Triton; importable only where Triton is. One program works on one row of logits, or on a strip of it.

Rows of logits are float32. What is compared among a row's few largest is float64, as in `losses.knee` and `losses.pairs`.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import triton
import triton.language as tl

_INF: tl.constexpr = tl.constexpr(float("inf"))


@triton.jit
def scan(z, stride, rows, columns, blocks, strips, maxima, largest, total, BLOCK: tl.constexpr, BLOCKS: tl.constexpr):
    """One strip of a row: max z and Σ exp(z − max z), and the largest logit of each block of the first columns."""
    row, strip = tl.program_id(0).to(tl.int64), tl.program_id(1)
    block = strip * BLOCKS + tl.arange(0, BLOCKS)
    column = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    x = tl.load(z + row * stride + column, mask=column < rows, other=-_INF)
    peak = tl.max(tl.where(column < columns, x, -_INF), axis=1)
    undefined = tl.max(((column < columns) & (x != x)).to(tl.int32), axis=1)  # a maximum overlooks NaN
    tl.store(maxima + row * blocks + block, tl.where(undefined > 0, float("nan"), peak), mask=block < blocks)
    highest = tl.max(tl.max(x, axis=1), axis=0)
    tl.store(largest + row * strips + strip, highest)
    offset = tl.where(highest == -_INF, 0.0, highest)  # a strip of masked logits sums to 0
    tl.store(total + row * strips + strip, tl.sum(tl.sum(tl.exp(x - offset), axis=1), axis=0))


@triton.jit
def _order(x):
    """Integers in the order of floats: −0 equals 0, and NaN is the greatest, as when torch sorts."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    order = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return tl.where(x != x, 0x7FFFFFFF, order)


@triton.jit
def _largest(order, count):
    """Which are the `count` largest, the first among equals: a mask, and the place of each among the chosen."""
    # the greatest threshold that `count` reach, bit by bit; the sign's bit flipped makes the order that of unsigned numbers
    key = order.to(tl.uint32, bitcast=True) ^ 0x80000000
    edge = tl.full([], 0, tl.uint32)
    bit = tl.full([], 0x80000000, tl.uint32)
    for _ in range(32):
        higher = edge | bit
        edge = tl.where(tl.sum((key >= higher).to(tl.int32), axis=0) >= count, higher, edge)
        bit = bit >> 1
    above, level = key > edge, key == edge
    room = count - tl.sum(above.to(tl.int32), axis=0)
    chosen = above | (level & (tl.cumsum(level.to(tl.int32), axis=0) <= room))
    return chosen, tl.cumsum(chosen.to(tl.int32), axis=0) - 1


@triton.jit
def select(
    z, stride, columns, maxima, blocks, scratch, ids,
    WINDOW: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """The ids of a row's `WINDOW` largest logits, descending, equal ones by the lower id.

    An id outside the `WINDOW` best blocks has `WINDOW` ids ahead of it, one in each of these, so two small selections do.
    """
    row = tl.program_id(0).to(tl.int64)
    z, scratch, ids = z + row * stride, scratch + row * WINDOW, ids + row * WINDOW
    lowest = -0x80000000  # below the order of −∞: there is nothing
    block = tl.arange(0, BLOCKS)
    peak = tl.load(maxima + row * blocks + block, mask=block < blocks, other=0.0)
    chosen, place = _largest(tl.where(block < blocks, _order(peak), lowest), WINDOW)
    tl.store(scratch + place, block, mask=chosen)
    tl.debug_barrier()
    # ascending blocks: candidates stand in the order of their ids
    candidate = tl.arange(0, WIDTH * BLOCK)
    inside = candidate < min(WINDOW, BLOCKS) * BLOCK
    column = tl.load(scratch + candidate // BLOCK, mask=inside, other=0) * BLOCK + candidate % BLOCK
    inside = inside & (column < columns)
    x = tl.load(z + column, mask=inside, other=0.0)
    chosen, place = _largest(tl.where(inside, _order(x), lowest), WINDOW)
    tl.debug_barrier()
    tl.store(scratch + place, column, mask=chosen)
    tl.debug_barrier()
    rank = tl.arange(0, WIDTH)
    column = tl.load(scratch + rank, mask=rank < WINDOW, other=0)
    order = _order(tl.load(z + column))
    key = (order.to(tl.int64) << 32) + (0x7FFFFFFF - column)
    key = tl.sort(tl.where(rank < WINDOW, key, -0x8000000000000000), descending=True)
    tl.store(ids + rank, 0x7FFFFFFF - (key & 0xFFFFFFFF), mask=rank < WINDOW)


@triton.jit
def _log_add(x, y):
    """log(exp x + exp y); −∞ is the logarithm of nothing."""
    high, low = tl.maximum(x, y), tl.minimum(x, y)
    return tl.where(high == -_INF, high, high + tl.log(1 + tl.exp(low - high)))


@triton.jit
def _log_sum(x):
    high = tl.max(x, axis=0)
    return high + tl.log(tl.sum(tl.exp(x - high), axis=0))


@triton.jit
def _knee(value, rank, WINDOW: tl.constexpr, min_k):
    """k of `losses.knee.knee_rank`: the same operations in float64."""
    last = tl.sum(tl.where(rank == WINDOW - 1, value, 0), axis=0)
    span = tl.sum(tl.where(rank == 0, value, 0), axis=0) - last
    y = (value - last) / tl.where(span > 0, span, 1)
    x = rank.to(tl.float64) / (WINDOW - 1)
    below = (1 - x) - y
    below = tl.where(below != below, _INF, below)  # what is undefined counts as the furthest, as in torch
    k = tl.argmax(tl.where(rank < WINDOW, below, -_INF), axis=0, tie_break_left=True) + 1
    return tl.minimum(tl.maximum(k, min_k), WINDOW)


@triton.jit
def _scaled(z, ids, rank, k, TEMPERATURE: tl.constexpr):
    """z/τ at the ids of these ranks; 0 where there is none."""
    inside = (rank >= 0) & (rank < k)
    column = tl.load(ids + rank, mask=inside, other=0)
    value = tl.load(z + column, mask=inside, other=0.0).to(tl.float64)
    return value / tl.full([], TEMPERATURE, tl.float64), inside


@triton.jit
def compare(
    learner, learner_stride, teacher, teacher_stride, learner_ids, teacher_ids, weight, min_k,
    loss, learner_k, teacher_k, ids, gradient,
    WINDOW: tl.constexpr, WIDTH: tl.constexpr, TEMPERATURE: tl.constexpr, SCALE: tl.constexpr, FIXED: tl.constexpr,
):  # fmt: skip
    """`dbild` of one row, led by the teacher and by the learner, times λ; its gradient at the ids that each of them chose.

    The equations are those of `losses.pairs.pair_reverse_kl`. Sums over the ranks before or after one are scans of what stands one rank
    further, read from memory again.
    """
    row = tl.program_id(0).to(tl.int64)
    learner, teacher = learner + row * learner_stride, teacher + row * teacher_stride
    rank = tl.arange(0, WIDTH)
    total = tl.full([], 0, tl.float64)
    for by_learner in tl.static_range(2):
        if by_learner:
            leader, order, ks = learner, learner_ids + row * WINDOW, learner_k
        else:
            leader, order, ks = teacher, teacher_ids + row * WINDOW, teacher_k
        column = tl.load(order + rank, mask=rank < WINDOW, other=0)
        if FIXED:
            k = tl.full([], WINDOW, tl.int32)
        else:
            value = tl.load(leader + column, mask=rank < WINDOW, other=0.0).to(tl.float64)
            k = _knee(value, rank, WINDOW, min_k)
        tl.store(ks + row, k.to(tl.float64))

        a, inside = _scaled(learner, order, rank, k, TEMPERATURE)
        b, inside = _scaled(teacher, order, rank, k, TEMPERATURE)
        a_next, has_next = _scaled(learner, order, rank + 1, k, TEMPERATURE)
        b_next, has_next = _scaled(teacher, order, rank + 1, k, TEMPERATURE)
        a_before, has_before = _scaled(learner, order, rank - 1, k, TEMPERATURE)
        b_before, has_before = _scaled(teacher, order, rank - 1, k, TEMPERATURE)
        least = tl.min(tl.where(inside, a - b, _INF), axis=0)
        d = tl.where(inside, a - b - least, 0)

        first, second = tl.where(inside, a, -_INF), tl.where(inside, -a, -_INF)
        later = tl.where(has_next, -a_next, -_INF)
        earlier = tl.where(has_before, a_before, -_INF)
        log_later = tl.log(tl.where(has_next, a_next - b_next - least, 0))
        log_earlier = tl.log(tl.where(has_before, a_before - b_before - least, 0))
        after = tl.associative_scan(later, 0, _log_add, reverse=True)
        before = tl.associative_scan(earlier, 0, _log_add)
        d_after = tl.associative_scan(later + log_later, 0, _log_add, reverse=True)
        d_before = tl.associative_scan(earlier + log_earlier, 0, _log_add)
        teachers_after = tl.associative_scan(tl.where(has_next, -b_next, -_INF), 0, _log_add, reverse=True)

        log_z = _log_sum(first + after)
        teachers_log_z = _log_sum(tl.where(inside, b, -_INF) + teachers_after)
        R, C = tl.exp(first + after - log_z), tl.exp(second + before - log_z)
        E = tl.sum(d * (R - C), axis=0)
        moved = tl.exp(first + d_after - log_z) + tl.exp(second + d_before - log_z)
        divergence = E - log_z + teachers_log_z
        divergence = tl.where(divergence < 0, 0, divergence)  # it is never negative, its rounding error can be
        slope = tl.where(inside, R * (d - E) + C * (d + E) - moved, 0)
        infinite = tl.sum((inside & ~(tl.abs(a) + tl.abs(b) < _INF)).to(tl.int32), axis=0) > 0
        total += tl.where(infinite, float("nan"), divergence)
        slope = tl.where(infinite, float("nan"), slope)
        at = row * 2 * WINDOW + by_learner * WINDOW + rank
        tl.store(ids + at, column, mask=rank < WINDOW)
        scale = tl.full([], SCALE, tl.float64) * weight
        tl.store(
            gradient + at, (slope * scale / tl.full([], TEMPERATURE, tl.float64)).to(tl.float32), mask=rank < WINDOW
        )
    tl.store(loss + row, total * (tl.full([], SCALE, tl.float64) * weight))


@triton.jit
def cross_entropy(z, stride, targets, strips, largest, total, log_sum_exp, loss, STRIPS: tl.constexpr):
    """log Σ exp z of a row from its strips, and that minus the logit of the target."""
    row = tl.program_id(0).to(tl.int64)
    strip = tl.arange(0, STRIPS)
    some = strip < strips
    peak = tl.load(largest + row * strips + strip, mask=some, other=-_INF)
    part = tl.load(total + row * strips + strip, mask=some, other=0.0)
    undefined = tl.sum((part != part).to(tl.int32), axis=0) > 0
    high = tl.max(peak, axis=0)
    value = high + tl.log(tl.sum(tl.where(part == 0, 0, part * tl.exp(peak - high)), axis=0))
    value = tl.where(undefined, float("nan"), value)
    tl.store(log_sum_exp + row, value)
    tl.store(loss + row, (value - tl.load(z + row * stride + tl.load(targets + row))).to(tl.float64))


@triton.jit
def softmax_gradient(z, stride, rows, log_sum_exp, targets, out, out_stride, WIDTH: tl.constexpr):
    """softmax(z) − one-hot(y) of one strip of a row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    x = tl.load(z + row * stride + column, mask=column < rows, other=-_INF)
    p = tl.exp(x - tl.load(log_sum_exp + row))
    p = tl.where(column == tl.load(targets + row), p - 1, p)
    tl.store(out + row * out_stride + column, p.to(out.dtype.element_ty), mask=column < rows)


@triton.jit
def add_sparse(
    z, stride, log_sum_exp, targets, ids, gradient, out, out_stride, IN_PLACE: tl.constexpr, HALF: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """Into softmax(z) − one-hot(y) of a row, the gradients at two lists of ids, rounded once. An id stands at most once in a list."""
    row = tl.program_id(0).to(tl.int64)
    ids, gradient, out = ids + row * 2 * HALF, gradient + row * 2 * HALF, out + row * out_stride
    target, offset = tl.load(targets + row), tl.load(log_sum_exp + row)
    rank = tl.arange(0, WIDTH)
    some = rank < HALF
    first = tl.load(ids + rank, mask=some, other=-1)
    second = tl.load(ids + HALF + rank, mask=some, other=-2)
    of_first = tl.load(gradient + rank, mask=some, other=0.0)
    of_second = tl.load(gradient + HALF + rank, mask=some, other=0.0)
    same = first[:, None] == second[None, :]
    of_first += tl.sum(tl.where(same, of_second[None, :], 0.0), axis=1)
    alone = some & (tl.sum(same.to(tl.int32), axis=0) == 0)
    if IN_PLACE:
        of_first += tl.load(out + first, mask=some, other=0.0)
        of_second += tl.load(out + second, mask=alone, other=0.0)
    else:
        of_first += tl.exp(tl.load(z + row * stride + first, mask=some, other=-_INF) - offset)
        of_second += tl.exp(tl.load(z + row * stride + second, mask=alone, other=-_INF) - offset)
        of_first -= (first == target).to(tl.float32)
        of_second -= (second == target).to(tl.float32)
    tl.store(out + first, of_first.to(out.dtype.element_ty), mask=some)
    tl.store(out + second, of_second.to(out.dtype.element_ty), mask=alone)


@triton.jit
def weighted_rows(ids, values, count, table, table_stride, columns, out, WIDTH: tl.constexpr):
    """Σ values · rows of a table, some of their columns; rows whose value is 0 are not read."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = column < columns
    total = tl.zeros([WIDTH], tl.float32)
    for place in range(count):
        value = tl.load(values + row * count + place)
        if value != 0:
            which = tl.load(ids + row * count + place)
            total += value * tl.load(table + which * table_stride + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * columns + column, total, mask=inside)
