"""Which tokens of two models belong together, and how they relate to text."""

import math

import numpy as np
import oracles
import pytest
import torch

from switchkd.losses import affinity, match_tokens
from switchkd.losses.checks import NotFiniteError
from switchkd.losses.matching import cheapest_pairs


def random(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]


def test_matching_hand_computed():
    # Two student tokens (0, 0), (4, 0) and three of the teacher (5, 0), (1, 0), (0, 9). Manhattan distances: 5 1 9 / 1 3 13. Token 0 with
    # 1 and token 1 with 0 cost 1 + 1 = 2, everything else more. Turned round, the third of three is left out.
    student, teacher = torch.tensor([[0.0, 0], [4, 0]]), torch.tensor([[5.0, 0], [1, 0], [0, 9]])
    assert [places.tolist() for places in match_tokens(student, teacher)] == [[0, 1], [1, 0]]
    assert [places.tolist() for places in match_tokens(teacher, student)] == [[0, 1], [1, 0]]


def test_the_nearest_is_given_away_where_the_sum_is_smaller_for_it():
    # Both rows like column 0 best; the first gives it up: 2 + 1 < 1 + 9.
    assert [places.tolist() for places in cheapest_pairs(np.array([[1.0, 2], [1, 9]]))] == [[0, 1], [1, 0]]


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 5), (4, 4), (3, 6), (6, 3), (5, 6), (0, 3), (3, 0)])
@pytest.mark.parametrize("seed", range(3))
def test_matching_oracle(n, m, seed):
    student, teacher = random((n, 4), (m, 4), seed=seed)
    rows, columns = match_tokens(student, teacher)
    least, pairs = oracles.matched(student, teacher)
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == pairs
    assert (student[rows] - teacher[columns]).abs().sum().item() == pytest.approx(least, abs=1e-12)


@pytest.mark.parametrize("most", [2, 1000])
def test_many_tokens_find_the_pairs_that_were_planted(most):
    """Costs of prices for row and column, and something on top but for the planted pairs: no way is cheaper than theirs."""
    draw = np.random.default_rng(0)
    planted = draw.permutation(90)[:60]
    on_top = draw.integers(1, most, (60, 90), endpoint=True).astype(float)
    on_top[np.arange(60), planted] = 0
    of_columns = draw.integers(0, 1000, 90)  # of one that no row gets, not cheaper than any that one gets
    of_columns[np.setdiff1d(np.arange(90), planted)] = 1000
    cost = draw.integers(0, 1000, (60, 1)) + of_columns + on_top
    rows, columns = cheapest_pairs(cost)
    assert rows.tolist() == list(range(60))
    assert columns.tolist() == planted.tolist()
    assert (columns != cost.argmin(axis=1)).any()  # not found by looking at single rows


def test_equal_tokens_are_matched_whatever_their_order():
    (teacher,) = random((7, 5))
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    rows, columns = match_tokens(teacher[order], teacher)
    assert rows.tolist() == list(range(7))
    assert columns.tolist() == order.tolist()


def test_half_precision_is_matched_in_float32():
    student, teacher = (x.bfloat16() for x in random((6, 200), (9, 200)))
    exact = match_tokens(student.double(), teacher.double())
    for found, expected in zip(match_tokens(student, teacher), exact, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.usefixtures("unchecked_shapes")
def test_what_cannot_be_matched_is_refused():
    student, teacher = random((2, 4), (3, 5))
    with pytest.raises(ValueError, match="logits of the same ids, got 4 of the student and 5 of the teacher"):
        match_tokens(student, teacher)
    student[1, 2] = math.nan
    with pytest.raises(NotFiniteError, match="student must be finite: nan at position 1, token 2"):
        match_tokens(student, teacher[:, :4])


def test_affinity_hand_computed():
    # Student: v (1, 0), (0, 2); t (3, 0): cosines 1, 0. Teacher (width 1): v (2), (−1); t (1): cosines 1, −1. Differences 0, 1 → ½ of 2.
    # At a difference of 2 the distance is 2 − ½.
    student, text = torch.tensor([[1.0, 0], [0, 2]]), torch.tensor([[3.0, 0]])
    teacher, teacher_text = torch.tensor([[2.0], [-1]]), torch.tensor([[1.0]])
    assert affinity(student, text, teacher, teacher_text).item() == pytest.approx(0.25, abs=1e-7)
    assert affinity(teacher[:1], teacher_text, teacher[1:], teacher_text).item() == pytest.approx(1.5, abs=1e-7)


def test_affinity_oracle_and_properties():
    student, text, teacher, teacher_text = random((5, 4), (3, 4), (5, 7), (3, 7))
    value = affinity(student, text, teacher, teacher_text)
    assert value.item() == pytest.approx(oracles.affinity(student, text, teacher, teacher_text), abs=1e-13)
    assert 0 < value < 1.5
    assert affinity(teacher, teacher_text, teacher, teacher_text) == 0
    assert affinity(3 * student, 0.5 * text, teacher, teacher_text).item() == pytest.approx(value.item(), abs=1e-13)
    assert affinity(student[:0], text, teacher[:0], teacher_text) == 0
    leaves = [x.requires_grad_() for x in (student, text)]
    assert torch.autograd.gradcheck(lambda v, t: affinity(v, t, teacher, teacher_text), leaves)


def test_half_precision_affinity_is_bounded_by_its_inputs_rounding():
    inputs = random((20, 300), (6, 300), (20, 200), (6, 200))
    halved = [x.bfloat16() for x in inputs]
    found = affinity(*halved)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(oracles.affinity(*halved), abs=1e-7)
    assert found.item() == pytest.approx(oracles.affinity(*inputs), rel=0.02)


@pytest.mark.usefixtures("unchecked_shapes")
def test_affinity_refuses_what_cannot_be_compared():
    student, text, teacher, teacher_text = random((5, 4), (3, 4), (6, 7), (3, 7))
    with pytest.raises(
        ValueError, match=r"got \(5, 3\) visual and text tokens of the student and \(6, 3\) of the teacher"
    ):
        affinity(student, text, teacher, teacher_text)
    with pytest.raises(ValueError, match="a teacher that requires grad: True"):
        affinity(student, text, teacher[:5].requires_grad_(), teacher_text)
