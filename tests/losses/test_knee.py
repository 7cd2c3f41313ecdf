import sys

import oracles
import pytest
import torch

from switchkd.losses import knee
from switchkd.losses.knee import BLOCK, BLOCKS_PAY, largest_by_keys, leader_order


def language_like(positions: int, vocab: int, seed: int) -> torch.Tensor:
    """Gaussian logits with a few raised tokens: a confident head over a long tail."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(positions, vocab, generator=generator)
    logits[:, :40] += torch.rand(positions, 1, generator=generator) * 8 * torch.rand(positions, 40, generator=generator)
    return logits


def test_hand_computed_four_tokens():
    # Sorted: 5, 2, 1, 0. With x = 0, 1/3, 2/3, 1 and y = 1, 0.4, 0.2, 0 the gaps 1 − x − y are
    # 0, 0.267, 0.133, 0: the second point is furthest below the chord, so k = 2, or 3 with the usual minimum.
    logits = torch.tensor([[1.0, 5.0, 0.0, 2.0]])
    assert knee(logits, window=4, min_k=2).tolist() == [2]
    assert knee(logits, window=4).tolist() == [3]


def test_k_equals_the_full_sort_oracle_everywhere():
    logits = language_like(150, 3000, seed=0)
    for window, min_k in ((2, 2), (16, 2), (128, 3), (2999, 3), (5000, 3), (None, 3)):
        expected = [oracles.knee(row, window, min_k) for row in oracles.rows(logits)]
        assert knee(logits, window=window, min_k=min_k).tolist() == expected, f"window {window}"


def test_k_is_spread_out_and_not_stuck_at_the_minimum():
    # Gaussian logits: a wrong sign gives the minimum (or the window) everywhere; the true median is near W/5.
    logits = torch.randn(400, 20_000, generator=torch.Generator().manual_seed(1))
    k = knee(logits, window=128, min_k=3)
    assert (k == 3).float().mean() < 0.05
    assert 15 <= k.median() <= 40
    assert len(k.unique()) > 20
    assert k.max() < 100


def test_steeper_curves_give_smaller_k():
    ranks = torch.arange(128.0)
    curves = torch.stack([10 * torch.exp(-steepness * ranks) for steepness in (0.02, 0.05, 0.1, 0.3, 1.0)])
    k = knee(curves, window=128).tolist()
    assert k == sorted(k, reverse=True)
    assert len(set(k)) == len(k)


def test_a_cliff_is_the_knee():
    # Six plausible tokens, then the tail: the furthest point below the chord is the first one of the tail.
    logits = torch.cat([torch.full((6,), 9.0), torch.linspace(0.1, 0, 94)])[None]
    assert knee(logits, window=100).tolist() == [7]


@pytest.mark.parametrize(
    ("logits", "window", "min_k", "expected"),
    [
        ([[2.0] * 10], 8, 3, 3),  # flat: no knee
        ([[0.0, 9, 8, 7.9, 7.8, 7.7]], None, 3, 3),  # 9, 8, 7.9, 7.8, 7.7, 0: nothing lies below the chord
        ([[3.0, 2, 1]], 10, 5, 3),  # the vocabulary ends the window, and the window ends k
        ([[3.0, 2, 1]], 2, 3, 2),
        ([[3.0, 2]], 2, 2, 2),
    ],
)
def test_limits(logits, window, min_k, expected):
    assert knee(torch.tensor(logits), window=window, min_k=min_k).tolist() == [expected]


def test_first_of_equal_points_counts():
    # Sorted 4, 2, 1, 1, 0 (x in quarters, y = 1, 1/2, 1/4, 1/4, 0): the gaps are 0, 1/4, 1/4, 0, 0, all exact.
    assert knee(torch.tensor([[4.0, 2, 1, 1, 0]]), window=5, min_k=2).tolist() == [2]


def test_k_is_not_decided_by_float32_rounding():
    # y = (1 − x)² is almost equally far below its chord at ranks 64 and 65 of 128.
    curve = torch.linspace(1, 0, 128, dtype=torch.float64).square()
    logits = torch.stack([8 * curve, 5 * curve - 1, 3 * curve + 2]).float()
    expected = [oracles.knee(row, None, 3) for row in oracles.rows(logits)]
    assert sorted(set(expected)) == [64, 65]
    assert knee(logits, window=None).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_ranked_as_float32(dtype):
    logits = language_like(50, 2000, seed=2).to(dtype)
    assert torch.equal(knee(logits), knee(logits.float()))
    assert torch.equal(leader_order(logits, 128), leader_order(logits.float(), 128))


@pytest.mark.parametrize("window", [1, 2, 7, 50, 199, 200, 300, None])
@pytest.mark.parametrize("levels", [1, 2, 5, 30, 1000])
def test_order_is_descending_with_ties_by_lower_id(window, levels):
    # Few levels: many equal logits, inside the window and across its edge.
    logits = torch.randint(levels, (40, 200), generator=torch.Generator().manual_seed(levels)).float()
    expected = [oracles.order(row)[:window] for row in oracles.rows(logits)]
    assert leader_order(logits, window).tolist() == expected


@pytest.mark.parametrize(("window", "vocab"), [(1, 769), (1, 50_001), (2, 832), (3, 1000), (20, 6000)])
@pytest.mark.parametrize("levels", [1, 3, 40, 1000, 10**6])
def test_order_by_blocks_is_exact(vocab, window, levels):
    # Small windows in long rows take two stages (three in the longest). Ties lie inside blocks, between blocks with equal and with
    # different maxima, and in the rest behind the last whole block.
    assert vocab > BLOCKS_PAY * BLOCK * window
    logits = torch.randint(levels, (8, vocab), generator=torch.Generator().manual_seed(vocab)).float()
    logits[0, -5:] = levels
    expected = [oracles.order(row)[:window] for row in oracles.rows(logits)]
    assert leader_order(logits, window).tolist() == expected


def test_order_by_blocks_of_no_rows():
    assert leader_order(torch.zeros(0, 2000), 4).shape == (0, 4)


def test_order_by_blocks_keeps_what_is_not_a_number():
    logits = torch.randn(2, 2000, generator=torch.Generator().manual_seed(0))
    logits[1, 1700] = torch.nan
    assert leader_order(logits, 4)[1, 0] == 1700


def test_order_by_blocks_reads_part_of_a_row():
    logits = torch.randn(5, 2000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(leader_order(logits[:, :1500], 4), leader_order(logits[:, :1500].clone(), 4))


def test_order_counts_both_zeros_as_equal():
    logits = torch.tensor([[-0.0, 0.0, -0.0, 0.0, -1.0]])
    for window in (2, 3, 4, None):
        assert leader_order(logits, window).tolist() == [[0, 1, 2, 3, 4][:window]]


def test_keys_order_as_a_stable_sort_does():
    # What runs on a GPU: ties everywhere, both zeros, both infinities, NaN, and values a bit apart, in all that is not float64.
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(40, 700, generator=generator)
    logits[:20] = logits[:20].round(decimals=1)
    logits[5, ::3], logits[5, 1::3] = -0.0, 0.0
    logits[6] = torch.nextafter(logits[6, 0], torch.tensor(torch.inf)).repeat(700)
    logits[6, ::2] = logits[6, 0].nextafter(torch.tensor(torch.inf))
    logits[7, 40], logits[7, 41], logits[7, 42:300] = torch.inf, torch.nan, -torch.inf
    logits[8, 600] = -torch.tensor(torch.nan)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        expected = logits.to(dtype).sort(dim=-1, descending=True, stable=True).indices
        assert torch.equal(largest_by_keys(logits.to(dtype), 690), expected[:, :690])


def test_the_order_by_blocks_is_the_same_by_keys(monkeypatch):
    logits = language_like(5, BLOCKS_PAY * BLOCK * 8 + BLOCK + 7, seed=4)
    logits[2:] = logits[2:].round(decimals=1)
    expected = leader_order(logits, 8)
    assert torch.equal(expected, logits.sort(dim=-1, descending=True, stable=True).indices[:, :8])
    module = sys.modules[leader_order.__module__]
    monkeypatch.setattr(module, "by_keys", lambda logits: True)
    monkeypatch.setattr(module, "_order_down_to", None)
    assert torch.equal(leader_order(logits, 8), expected)
