"""Which logits a leader compares: its order (descending, ties by id) and the knee of that curve."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from switchkd.losses.checks import check_at_least_two, check_logits

#: Logits that share one maximum where the largest are sought in two stages.
BLOCK = 64
#: Two stages pay where they leave out at least three quarters of the vocabulary.
BLOCKS_PAY = 4
#: Rows whose candidates exist at a time on a CPU: they fit its caches, and their memory does not grow with the tokens.
_ROWS = 64


def knee(logits: Float[Tensor, "*n vocab"], *, window: int | None = 128, min_k: int = 3) -> Int[Tensor, "*n"]:
    """k = 1 + argmax_r (1 − x_r) − y_r, x_r = r/(W−1), y_r = (v_r − v_last)/(v_first − v_last) (Switch-KD, 2604.14629).

    v are the W largest logits in descending order, both axes are normalised to [0, 1], and the knee is the point
    furthest below the chord: a steep head gives a small k, a flat one a large k. The first of equal points counts.
    A curve that is flat or lies nowhere below its chord has no knee and gives `min_k`.

    Args:
        logits: over the vocabulary at each position; logits, not probabilities, on which k would collapse.
        window: W; None, or more than there are tokens, means the whole vocabulary.
        min_k: the least k, or the window where that is smaller.
            With k = 2 the only pair has probability 1, and `dbild` has nothing to compare.

    Returns:
        k per position: 1-based, at least `min_k`, never above the window.

    Raises:
        ValueError: wrong shape, non-finite logits, window, min_k or vocabulary below 2.
        TypeError: logits that are not floating point.
    """
    check_logits("logits", logits)
    check_selection(logits, window, min_k)
    rows = logits.reshape(-1, logits.shape[-1])
    return knee_rank(rows.gather(1, leader_order(rows, window)), min_k).view(logits.shape[:-1])


def check_selection(logits: Float[Tensor, "*n vocab"], window: int | None, min_k: int) -> None:
    """Raise ValueError where window, min_k or the vocabulary leave no pair to compare."""
    check_at_least_two("the vocabulary", logits.shape[-1])
    check_at_least_two("min_k", min_k)
    if window is not None:
        check_at_least_two("window", window)


def choose(
    leader: Float[Tensor, "n vocab"], window: int | None, min_k: int
) -> tuple[Int[Tensor, "n k"], Int[Tensor, " n"]]:
    """The ids that a leader compares, in its order and as many as the longest k asks for, and k itself; no checks.

    On CUDA a window's ids stay as many as they are: cutting them would make the host wait for the longest k.
    """
    ids = leader_order(leader, window)
    k = knee_rank(leader.gather(1, ids), min_k)
    if len(k) and (window is None or not leader.is_cuda):
        ids = ids[:, : int(k.max())]
    return ids, k


def leader_order(logits: Float[Tensor, "n vocab"], window: int | None) -> Int[Tensor, "n window"]:
    """Ids of the `window` largest logits, descending, equal logits by the lower id: exact at the window's edge too.

    bf16 and fp16 need no copy in float32 here: that conversion changes neither the order nor the ties.
    """
    vocab = logits.shape[1]
    if window is None or window >= vocab:
        return logits.sort(dim=-1, descending=True, stable=True).indices
    if vocab > BLOCKS_PAY * BLOCK * window:
        if logits.is_cuda or len(logits) <= _ROWS:
            return _order_by_blocks(logits, window)
        return torch.cat([_order_by_blocks(rows, window) for rows in logits.split(_ROWS)])
    if by_keys(logits):
        return largest_by_keys(logits, window)
    # topk promises nothing about ties. Inside the window, a sort by id and a stable sort by value settle them.
    values, ids = logits.topk(window + 1, dim=-1)
    ids = ids[:, :window].sort(dim=-1).values
    order = logits.gather(1, ids).sort(dim=-1, descending=True, stable=True).indices
    ids = ids.gather(1, order)
    # Where the first value outside equals the last inside, topk may have kept the wrong ids: rare, except in bf16.
    crossing = (values[:, window] == values[:, window - 1]).nonzero().squeeze(-1)
    if len(crossing):
        ids[crossing] = _order_down_to(values[crossing, window], logits[crossing], window)
    return ids


def _order_by_blocks(logits: Float[Tensor, "n vocab"], window: int) -> Int[Tensor, "n window"]:
    """`leader_order` in two small selections instead of one over the vocabulary; exact, ties included.

    An id outside the `window` best blocks (by their largest logit, the lower block first among equals) has `window` ids
    ahead of it, one in each of these blocks: greater, or equal and lower. So the best blocks hold all that is sought, and
    of their logits only those that reach the lowest of these maxima.
    """
    blocks = logits.shape[1] // BLOCK
    whole, rest = logits[:, : blocks * BLOCK].unflatten(1, (blocks, BLOCK)), logits[:, blocks * BLOCK :]
    largest = whole.amax(dim=-1)
    best = leader_order(largest, window).sort(dim=-1).values
    row = torch.arange(len(logits), device=logits.device)[:, None]
    # Ascending blocks, then the incomplete last one: candidates stand in the order of their ids, so ties stay right.
    candidates = whole[row, best].flatten(1)
    if rest.shape[1]:
        candidates = torch.cat([candidates, rest], dim=1)
    if by_keys(logits):
        place = largest_by_keys(candidates, window)
    else:
        place = _order_down_to(largest.gather(1, best).amin(dim=-1), candidates, window)
    in_block = best.gather(1, (place // BLOCK).clamp(max=window - 1)) * BLOCK + place % BLOCK
    in_rest = place + (blocks - window) * BLOCK
    return torch.where(place < window * BLOCK, in_block, in_rest)


def by_keys(logits: Tensor) -> bool:
    """Whether the largest are sought as integers: on a GPU, where a tie or a count would make the host wait for the device."""
    return logits.is_cuda and logits.dtype != torch.float64


def largest_by_keys(logits: Float[Tensor, "n vocab"], window: int) -> Int[Tensor, "n window"]:
    """`leader_order` by one topk over 64-bit integers that order by value, then by the lower id: no two are equal, so none tie."""
    bits = (logits.float() + 0.0).view(torch.int32)  # + 0 makes −0 equal to 0
    order = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # the larger a negative number's bits, the smaller it is
    order = order.masked_fill(logits.isnan(), 0x7FFFFFFF)  # NaN first, as when sorting
    keys = (order.long() << 32) - torch.arange(logits.shape[1], device=logits.device)
    return keys.topk(window, dim=-1).indices


def _order_down_to(edge: Float[Tensor, " n"], logits: Float[Tensor, "n vocab"], window: int) -> Int[Tensor, "n window"]:
    """`leader_order` by sorting, in each row, all logits that are not below its edge (at least `window` of them)."""
    reaches = (logits < edge[:, None]).logical_not_()  # and not `>=`, which would lose NaN
    row, token = reaches.nonzero().unbind(dim=1)  # ascending ids within each row
    count = row.bincount(minlength=len(logits))
    column = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    ids = token.new_zeros(len(logits), int(count.max()) if len(count) else window)
    values = logits.new_full(ids.shape, -torch.inf)
    ids[row, column], values[row, column] = token, logits[row, token]
    return ids.gather(1, values.sort(dim=-1, descending=True, stable=True).indices[:, :window])


def knee_rank(values: Float[Tensor, "n window"], min_k: int) -> Int[Tensor, " n"]:
    """k of `knee` for logits already in descending order."""
    window = values.shape[1]
    # float64, so that k is the formula's own even where two points are almost equally far below the chord
    values = values.double()
    height = values - values[:, -1:]
    span = height[:, :1]
    y = height / torch.where(span > 0, span, 1)
    x = torch.arange(window, dtype=values.dtype, device=values.device) / (window - 1)
    return (((1 - x) - y).argmax(dim=-1) + 1).clamp(min=min_k).clamp(max=window)
