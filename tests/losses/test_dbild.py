import math

import oracles
import pytest
import torch

from switchkd.losses import dbild, knee
from switchkd.losses.knee import leader_order
from switchkd.losses.pairs import pair_reverse_kl


def pair(positions=5, vocab=200, scale=3.0, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (scale * torch.randn(2, positions, vocab, generator=generator, dtype=torch.float64)).to(dtype)
    return student, teacher


def plain_dbild(student, teacher, temperature=3.0, window=128, min_k=3):
    """The definition in plain torch, in the dtype it is given: topk, every pair, autograd."""
    losses = []
    for s, t in zip(student, teacher, strict=True):
        loss = 0
        for leader in (t, s):
            values, ids = leader.detach().topk(min(window, len(leader)))
            y = (values - values[-1]) / (values[0] - values[-1])
            x = torch.linspace(0, 1, len(values), dtype=y.dtype)
            ids = ids[: max(int((1 - x - y).argmax()) + 1, min_k)]
            i, j = torch.triu_indices(len(ids), len(ids), offset=1)
            log_p, log_q = (((z[ids][i] - z[ids][j]) / temperature).log_softmax(0) for z in (s, t))
            loss = loss + (log_p.exp() * (log_p - log_q)).sum()
        losses.append(loss)
    return torch.stack(losses)


def test_hand_computed_four_tokens():
    # In units of log 2, τ = 1, whole vocabulary (4 tokens).
    # Teacher (6, 3, 1, 0): y = 1, 1/2, 1/6, 0 against x = 0, 1/3, 2/3, 1: gaps 0, 1/6, 1/6, 0; the knee is at
    #   rank 2 or 3, k = 3 by the minimum; ids 0, 1, 2.
    # Student (1, 2, 0, 6): sorted 6, 2, 1, 0, y = 1, 1/3, 1/6, 0, gaps 0, 1/3, 1/6, 0; k = 3; ids 3, 1, 0.
    # Teacher leads: student's d = −1, 1, 2 → weights ½, 2, 4 (1, 4, 8 of 13); teacher's d = 3, 5, 2 → 8, 32, 4 (of 44).
    #   KL(p_S‖p_T) = (1·log(1/16) + 4·log(1/16) + 8·log 1)/13 + log(44/6.5)
    # Student leads: student's d = 4, 5, 1 → 16, 32, 2 (8, 16, 1 of 25); teacher's d = −3, −6, −3 → ⅛, 1/64, ⅛ (17/64).
    #   KL(p_S‖p_T) = (8·log 128 + 16·log 2048 + 1·log 16)/25 + log((17/64)/50)
    teacher = torch.tensor([[6.0, 3, 1, 0]], dtype=torch.float64) * math.log(2)
    student = torch.tensor([[1.0, 2, 0, 6]], dtype=torch.float64) * math.log(2)
    assert knee(teacher).tolist() == knee(student).tolist() == [3]
    teacher_led = 5 * math.log(1 / 16) / 13 + math.log(44 / 6.5)
    student_led = (8 * math.log(128) + 16 * math.log(2048) + math.log(16)) / 25 + math.log(17 / 64 / 50)
    assert dbild(student, teacher, temperature=1.0).item() == pytest.approx(teacher_led + student_led, abs=1e-13)


@pytest.mark.parametrize("scale", [0.5, 2.0, 8.0, 20.0])
@pytest.mark.parametrize("window", [2, 3, 64, 128, 200, 999, None])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_oracle(scale, window, temperature):
    # Independent draws: in the teacher's order the student's logits are as unsorted as they can be, and k is ragged.
    student, teacher = pair(scale=scale)
    expected = torch.tensor(oracles.dbild(student, teacher, temperature, window, 3), dtype=torch.float64)
    ours = dbild(student, teacher, temperature=temperature, window=window)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("k", [2, 3, 10, 64])
@pytest.mark.parametrize("scale", [0.5, 20.0])
def test_oracle_at_a_given_k(scale, k):
    student, teacher = pair(scale=scale, vocab=64, seed=k)
    expected = torch.tensor(oracles.dbild(student, teacher, 3.0, k, k), dtype=torch.float64)
    torch.testing.assert_close(dbild(student, teacher, window=k, min_k=k), expected, rtol=0, atol=1e-10)


def test_oracle_with_ties():
    # Eight levels: ties in the order, at the knee and across the window's edge.
    student, teacher = torch.randint(8, (2, 30, 100), generator=torch.Generator().manual_seed(0)).double()
    for window in (10, 30, None):
        expected = torch.tensor(oracles.dbild(student, teacher, 3.0, window, 3), dtype=torch.float64)
        torch.testing.assert_close(dbild(student, teacher, window=window), expected, rtol=0, atol=1e-10)


def test_close_to_convergence():
    # A student one rounding step of bf16 away from its teacher: small losses keep their digits.
    _, teacher = pair(positions=20)
    student = teacher.bfloat16().double()
    expected = torch.tensor(oracles.dbild(student, teacher, 3.0, 128, 3), dtype=torch.float64)
    torch.testing.assert_close(dbild(student, teacher), expected, rtol=1e-6, atol=1e-13)


def test_properties():
    student, teacher = pair(positions=100)
    loss = dbild(student, teacher)
    assert loss.shape == (100,)
    assert (loss > 0).all()
    shift = torch.linspace(-30, 30, 100, dtype=torch.float64)[:, None]
    torch.testing.assert_close(dbild(student + shift, teacher - shift), loss, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equal_models_give_exactly_zero_and_no_gradient(dtype):
    _, teacher = pair(positions=20, dtype=dtype)
    student = teacher.clone().requires_grad_()
    loss = dbild(student, teacher)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert torch.equal(loss, torch.zeros_like(loss))
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_positions_are_independent():
    student, teacher = pair(positions=6)
    together = dbild(student, teacher)
    alone = torch.cat([dbild(student[n : n + 1], teacher[n : n + 1]) for n in range(6)])
    torch.testing.assert_close(together, alone, rtol=1e-13, atol=0)


@pytest.mark.parametrize("window", [3, 16, None])
@pytest.mark.parametrize("scale", [0.5, 5.0])
def test_gradient(window, scale):
    student, teacher = pair(positions=4, vocab=24, scale=scale)
    assert torch.autograd.gradcheck(lambda z: dbild(z, teacher, window=window), student.requires_grad_())


def test_gradient_equals_autograd_of_the_definition():
    student, teacher = pair(positions=8, vocab=300)
    student.requires_grad_()
    weights = torch.linspace(-1, 2, 8, dtype=torch.float64)
    (ours,) = torch.autograd.grad((weights * dbild(student, teacher)).sum(), student)
    (plain,) = torch.autograd.grad((weights * plain_dbild(student, teacher)).sum(), student)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-13)


def test_a_second_derivative_is_refused():
    student, teacher = pair()
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(dbild(student, teacher).square().sum(), student, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_bf16_is_closer_to_the_truth_than_plain_torch():
    student, teacher = pair(positions=64, vocab=500, dtype=torch.float32)
    truth = dbild(student, teacher)
    student, teacher = student.bfloat16().requires_grad_(), teacher.bfloat16()
    ours = dbild(student, teacher)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, dbild(student.float(), teacher.float()))
    plain = plain_dbild(student.detach(), teacher).float()
    assert (ours - truth).abs().mean() < 0.8 * (plain - truth).abs().mean()

    # The gradient is rounded once, to the student's dtype: half a step of bf16 is 2⁻⁹ of the value.
    (gradient,) = torch.autograd.grad(ours.sum(), student)
    exact_student = student.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(dbild(exact_student, teacher.double()).sum(), exact_student)
    assert gradient.dtype == torch.bfloat16
    assert ((gradient.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-12).all()


def test_float32_matches_float64():
    student, teacher = pair(positions=64, dtype=torch.float32)
    torch.testing.assert_close(
        dbild(student, teacher).double(), dbild(student.double(), teacher.double()), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("scale", [1e3, 1e4])
@pytest.mark.parametrize("window", [64, None])
def test_extreme_logits(scale, window):
    student, teacher = pair(positions=20, scale=scale)
    student.requires_grad_()
    loss = dbild(student, teacher, window=window)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    expected = torch.tensor(oracles.dbild(student, teacher, 3.0, window, 3), dtype=torch.float64)
    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=1e-7)
    assert gradient.isfinite().all()


def test_pairs_far_below_the_range_of_the_row_do_not_vanish():
    # Rising student logits: every a_i − a_j with i < j is at least 1000 nats below max a − min a.
    # P is (a_0−a_1, a_0−a_2, a_1−a_2) = (−1000, −1001, −1): all on the last pair. Q is uniform up to e^±1.
    student = torch.tensor([[0.0, 1000.0, 1001.0]], dtype=torch.float64)
    teacher = torch.tensor([[0.0, 0.0, 0.0]], dtype=torch.float64)
    divergence, gradient = pair_reverse_kl(student, teacher, torch.tensor([3]))
    assert divergence.item() == pytest.approx(math.log(3), abs=1e-10)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-9)


def test_logits_beyond_the_length_are_ignored():
    student, teacher = pair(positions=3, vocab=10)
    lengths = torch.tensor([2, 5, 10])
    divergence, gradient = pair_reverse_kl(student, teacher, lengths)
    for n, length in enumerate(lengths.tolist()):
        alone, alone_gradient = pair_reverse_kl(
            student[n : n + 1, :length], teacher[n : n + 1, :length], torch.tensor([length])
        )
        torch.testing.assert_close(divergence[n : n + 1], alone)
        torch.testing.assert_close(gradient[n : n + 1, :length], alone_gradient)
        assert not gradient[n, length:].any()


def test_gradient_touches_the_two_leaders_choices_only():
    student, teacher = pair(positions=10)
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(dbild(student, teacher).sum(), student)
    for n in range(10):
        chosen = set()
        for leader in (student.detach(), teacher):
            chosen |= set(leader_order(leader, 128)[n, : knee(leader)[n]].tolist())
        assert set(gradient[n].nonzero().squeeze(-1).tolist()) == chosen


def test_no_positions():
    student = torch.zeros(0, 9, requires_grad=True)
    loss = dbild(student, torch.zeros(0, 9))
    loss.sum().backward()
    assert loss.shape == (0,)
    assert student.grad.shape == (0, 9)
