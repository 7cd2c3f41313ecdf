"""The readings of DBiLD that are not the default: a fixed k, forward KL, a softmax for each row, a factor of τ²."""

import math
from dataclasses import replace

import oracles
import pytest
import torch
from fused_cases import analytic, by_autograd, fused, gradients, inputs, plain

from switchkd.losses import bild, dbild
from switchkd.losses.pairs import pair_forward_kl
from switchkd.methods import SwitchKD

#: Knobs of `dbild`, and so of `switch_kd`.
OPTIONS = [
    {"top_k": 8},
    {"direction": "forward"},
    {"direction": "forward", "top_k": 5, "temperature": 1.0},
    {"softmax": "row"},
    {"softmax": "row", "direction": "forward"},
    {"softmax": "row", "top_k": 3, "t_squared": True},
    {"t_squared": True, "temperature": 2.0},
]


def pair(positions=6, vocab=60, scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = scale * torch.randn(2, positions, vocab, generator=generator, dtype=torch.float64)
    return student.requires_grad_(), teacher


def definition(
    student,
    teacher,
    temperature=3.0,
    window=128,
    min_k=3,
    top_k=None,
    direction="reverse",
    softmax="all",
    t_squared=False,
):
    """All pairs written out, for autograd."""
    losses = []
    for s, t in zip(student, teacher, strict=True):
        loss = 0
        for leader in (t.tolist(), s.tolist()):
            ids = oracles.order(leader)[: oracles.knee(leader, window, min_k) if top_k is None else top_k]
            i, j = torch.triu_indices(len(ids), len(ids), offset=1)
            groups = [i >= 0] if softmax == "all" else [i == row for row in range(len(ids) - 1)]
            for group in groups:
                log_s, log_t = (((z[ids][i] - z[ids][j])[group] / temperature).log_softmax(0) for z in (s, t))
                log_p, log_q = (log_s, log_t) if direction == "reverse" else (log_t, log_s)
                loss = loss + (log_p.exp() * (log_p - log_q)).sum() / len(groups)
        losses.append(temperature**2 * loss if t_squared else loss)
    return torch.stack(losses)


def test_hand_computed_forward_kl_on_a_fixed_k():
    # In units of log 2, τ = 1, k = 3. Teacher (6, 3, 1, 0), ids 0, 1, 2; student (1, 2, 0, 6), ids 3, 1, 0.
    # Teacher leads: its d = 3, 5, 2 → 8, 32, 4 (2, 8, 1 of 11); the student's d = −1, 1, 2 → ½, 2, 4 (of 6½).
    #   KL(p_T‖p_S) = (2·log 16 + 8·log 16 + 1·log 1)/11 + log(6.5/44)
    # Student leads: the teacher's d = −3, −6, −3 → 8, 1, 8 of 64ths (of 17); the student's d = 4, 5, 1 → 16, 32, 2 (of 50).
    #   KL(p_T‖p_S) = (8·log(1/128) + 1·log(1/2048) + 8·log(1/16))/17 + log(50·64/17)
    teacher = torch.tensor([[6.0, 3, 1, 0]], dtype=torch.float64) * math.log(2)
    student = torch.tensor([[1.0, 2, 0, 6]], dtype=torch.float64) * math.log(2)
    teacher_led = 10 * math.log(16) / 11 + math.log(6.5 / 44)
    student_led = -(8 * math.log(128) + math.log(2048) + 8 * math.log(16)) / 17 + math.log(50 * 64 / 17)
    found = dbild(student, teacher, temperature=1.0, top_k=3, direction="forward")
    assert found.item() == pytest.approx(teacher_led + student_led, abs=1e-13)


def test_hand_computed_softmax_by_row():
    # In units of log 2, τ = 1, k = 3, both lead with ids 0, 1, 2. Row 0 has the pairs (0,1), (0,2), row 1 the pair (1,2) alone: 0.
    # Student (3, 2, 1): its row is 1, 2 → 2, 4 of 6: ⅓, ⅔. Teacher (3, 1, 1): 2, 2 → ½, ½.
    # KL(p_S‖p_T) = ⅓ log ⅔ + ⅔ log 4/3 = 5/3 log 2 − log 3; the mean of two rows is half of it, two leaders make it whole again.
    student = torch.tensor([[3.0, 2, 1]], dtype=torch.float64) * math.log(2)
    teacher = torch.tensor([[3.0, 1, 1]], dtype=torch.float64) * math.log(2)
    expected = 5 / 3 * math.log(2) - math.log(3)
    found = dbild(student, teacher, temperature=1.0, top_k=3, softmax="row")
    assert found.item() == pytest.approx(expected, abs=1e-13)
    # At τ = 2 with the logits doubled the distributions are the same, and τ² is 4.
    found = dbild(2 * student, 2 * teacher, temperature=2.0, top_k=3, softmax="row", t_squared=True)
    assert found.item() == pytest.approx(4 * expected, abs=1e-12)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("scale", [0.5, 20.0])
def test_oracle_and_gradient(options, scale):
    student, teacher = pair(scale=scale)
    ours = dbild(student, teacher, **options)
    knobs = {"temperature": 3.0, "window": 128, "min_k": 3} | options
    expected = torch.tensor(oracles.dbild(student, teacher, **knobs), dtype=torch.float64)
    torch.testing.assert_close(ours.detach(), expected, rtol=0, atol=1e-10)
    upstream = torch.linspace(-1, 2, 6, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((upstream * ours).sum(), student)
    (slow,) = torch.autograd.grad((upstream * definition(student, teacher, **options)).sum(), student)
    torch.testing.assert_close(gradient, slow, rtol=0, atol=1e-11)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradcheck(options):
    student, teacher = pair(positions=3, vocab=12)
    assert torch.autograd.gradcheck(lambda z: dbild(z, teacher, **options), student)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_oracle_with_ties(options):
    student, teacher = torch.randint(8, (2, 10, 40), generator=torch.Generator().manual_seed(0)).double()
    knobs = {"temperature": 3.0, "window": 10, "min_k": 3} | options
    expected = torch.tensor(oracles.dbild(student, teacher, **knobs), dtype=torch.float64)
    torch.testing.assert_close(dbild(student, teacher, **knobs), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_bf16_is_compared_in_float32_and_rounded_once(options):
    student, teacher = pair()
    rounded = student.detach().bfloat16().requires_grad_()
    exact = rounded.detach().double().requires_grad_()
    ours, truth = dbild(rounded, teacher.bfloat16(), **options), dbild(exact, teacher.bfloat16().double(), **options)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), truth, rtol=1e-6, atol=0)
    (gradient,), (slow,) = torch.autograd.grad(ours.sum(), rounded), torch.autograd.grad(truth.sum(), exact)
    assert ((gradient.double() - slow).abs() <= 2**-8 * slow.abs() + 1e-12).all()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equal_models_give_exactly_zero_and_no_gradient_and_shifts_change_nothing(options):
    student, teacher = pair()
    same = teacher.clone().requires_grad_()
    loss = dbild(same, teacher, **options)
    (gradient,) = torch.autograd.grad(loss.sum(), same)
    assert not loss.any()
    assert not gradient.any()
    loss = dbild(student, teacher, **options)
    assert (loss > 0).all()
    torch.testing.assert_close(dbild(student + 30, teacher - 30, **options), loss, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_extreme_logits(options):
    student, teacher = pair(scale=1e4)
    loss = dbild(student, teacher, **options)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    (slow,) = torch.autograd.grad(definition(student, teacher, **options).sum(), student)
    torch.testing.assert_close(loss, definition(student, teacher, **options), rtol=1e-11, atol=1e-7)
    torch.testing.assert_close(gradient, slow, rtol=0, atol=1e-7)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_fused_loss_says_the_same(options):
    method, x = SwitchKD(align=0.3, switch=2.0, **options), inputs()
    terms, statistics = plain(method, x)
    slow = gradients(torch.stack(list(terms.values())).sum(), x)
    for kind in (by_autograd, analytic):
        found = fused(method, x, kind(method), chunk=4)
        assert found.statistics == statistics
        for name, value in terms.items():
            torch.testing.assert_close(found.terms[name], value.detach(), rtol=0, atol=1e-10)
        for ours, theirs in zip(gradients(found.loss, x), slow, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_gradient_of_the_fused_loss_by_differences(options):
    method, x = SwitchKD(**options), inputs(tokens=2, rows=9, teacher_rows=8)

    def value(student, weight, bias, switch):
        changed = replace(x, student=student, weight=weight, bias=bias, switch=switch)
        return fused(method, changed, analytic(method), 7, 2).loss

    # in one random direction: entry by entry they equal autograd's above, and differences are by the defaults' own test (test_fused.py)
    assert torch.autograd.gradcheck(value, x.learned, fast_mode=True)


def test_a_fixed_k_and_forward_kl_are_bild():
    student, teacher = pair()
    found = dbild(student, teacher, top_k=8, direction="forward")
    torch.testing.assert_close(found, bild(student, teacher), rtol=1e-12, atol=0)


def test_a_fixed_k_beyond_the_vocabulary_is_all_of_it():
    student, teacher = pair(vocab=9)
    assert torch.equal(dbild(student, teacher, top_k=99), dbild(student, teacher, top_k=9))


def test_forward_kl_of_pairs_far_below_the_range_of_the_row():
    # P, of the student, is all on the last of three pairs, Q uniform: Σ ⅓ (log ⅓ − log P) with log P = −999, −1000, 0.
    student, teacher = torch.tensor([[0.0, 1000, 1001]]).double(), torch.zeros(1, 3).double()
    divergence, gradient = pair_forward_kl(student, teacher, torch.tensor([3]))
    assert divergence.item() == pytest.approx(1999 / 3 - math.log(3), abs=1e-9)
    # R − C of P is (0, 1, −1), of Q (2/3, 0, −2/3)
    torch.testing.assert_close(gradient, torch.tensor([[-2 / 3, 1, -1 / 3]], dtype=torch.float64), rtol=0, atol=1e-9)
