from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from fused_cases import analytic, by_autograd, fused, gradients, inputs, plain

from switchkd.batch import TEACHER
from switchkd.losses import AutogradTerms
from switchkd.losses import projection as head
from switchkd.methods import KD, SFT, SwitchKD
from switchkd.signals import AnswerLogits, ComparedLogits, TokenTerm

METHOD = SwitchKD(window=32)
LOSSES = pytest.mark.parametrize("loss", [by_autograd(METHOD), analytic(METHOD)], ids=["autograd", "analytic"])


def many(dtype=torch.float64):
    return inputs(tokens=64, rows=400, teacher_rows=390).to(dtype)


def half_precision_torch(x):
    """What plain torch computes in bf16: logits rounded to bf16, and the gradients that follow."""
    student = F.linear(x.student, x.weight, x.bias)
    teacher, switch = (F.linear(hidden, x.teacher_weight, x.teacher_bias) for hidden in (x.teacher, x.switch))
    compared = {TEACHER: ComparedLogits(student, teacher, switch, x.targets)}
    terms = METHOD.token_terms(AnswerLogits(student, x.targets, compared))
    return {name: term.values.sum() for name, term in terms.items()}


def error(found, truth):
    return (found.double() - truth).abs().mean().item()


@LOSSES
def test_bf16_errs_less_than_plain_torch(loss):
    x = many(torch.bfloat16)
    exact = x.to(torch.float64)
    truth = fused(METHOD, exact, loss, vocabulary=390)
    truths = gradients(truth.loss, exact)
    ours = fused(METHOD, x, loss, vocabulary=390, chunk=10)
    theirs = half_precision_torch(x)
    assert ours.loss.dtype == torch.float32
    for name, value in truth.terms.items():
        assert error(ours.terms[name], value) < max(0.1 * error(theirs[name].detach(), value), 1e-3)
    their_gradients = gradients(torch.stack(list(theirs.values())).sum(), x)
    for mine, other, exactly, y in zip(gradients(ours.loss, x), their_gradients, truths, x.learned, strict=True):
        assert mine.dtype == y.dtype == torch.bfloat16
        assert error(mine, exactly) < 0.8 * error(other, exactly)
        # Rounded once, at the very end: half a step of bf16 is 2⁻⁹ of the value.
        assert ((mine.double() - exactly).abs() <= 2**-8 * exactly.abs() + 1e-4).all()


@LOSSES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_equals_float32_on_the_same_numbers(dtype, loss, monkeypatch):
    monkeypatch.setattr(head, "_WIDENED_ROWS", 100)  # several pieces, the last one shorter
    x = many(dtype)
    wide = x.to(torch.float32)
    ours, expected = fused(METHOD, x, loss, chunk=10), fused(METHOD, wide, loss, chunk=10)
    torch.testing.assert_close(ours.loss, expected.loss, rtol=1e-5, atol=0)
    for mine, other in zip(gradients(ours.loss, x), gradients(expected.loss, wide), strict=True):
        torch.testing.assert_close(mine, other.to(dtype), rtol=2**-7, atol=1e-4)


@pytest.fixture
def matrix_units(monkeypatch):
    """A stand-in for a GPU: products that take bf16, add in float32, and refuse operands that a GPU refuses."""
    mm, addmm = torch.mm, torch.addmm

    def checked(*operands):
        assert {x.dtype for x in operands} == {torch.bfloat16}
        return [x.float() for x in operands]

    def mm_float32(a, b, *, out_dtype, out=None):
        assert out_dtype == torch.float32
        return mm(*checked(a, b), out=out)

    def addmm_float32(total, a, b, *, beta, out_dtype, out):
        assert out_dtype == total.dtype == torch.float32
        return addmm(total, *checked(a, b), beta=beta, out=out)

    monkeypatch.setattr(head, "has_matrix_units", lambda weight: True)
    monkeypatch.setattr(torch, "mm", mm_float32)
    monkeypatch.setattr(torch, "addmm", addmm_float32)


@LOSSES
def test_matrix_units_give_the_same_logits_and_gradients_as_bf16_rounds_them(loss, request):
    x = many(torch.bfloat16)
    expected = fused(METHOD, x, loss, chunk=10)
    wide = gradients(expected.loss, x)
    request.getfixturevalue("matrix_units")
    found = fused(METHOD, x, loss, chunk=10)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-6, atol=0)
    for mine, other in zip(gradients(found.loss, x), wide, strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine - other).float().norm() < 2**-7 * other.float().norm()


@pytest.mark.usefixtures("matrix_units")
def test_matrix_units_are_used_under_autocast_and_not_behind_the_users_back():
    x = replace(many(torch.float32), bias=None, teacher_bias=None)  # a bias is added in float32, never rounded
    assert not head.Projection(head.Head(x.weight), 53, torch.float32, autocast=False).matrix_units
    assert not head.Projection(head.Head(x.weight.half()), 53, torch.float16, autocast=False).matrix_units
    with torch.autocast("cpu", torch.bfloat16):
        found = fused(METHOD, x, analytic(METHOD), chunk=10)
    rounded = x.to(torch.bfloat16)
    torch.testing.assert_close(found.loss, fused(METHOD, rounded, analytic(METHOD)).loss, rtol=1e-6, atol=0)
    found.loss.backward()
    assert x.weight.grad.dtype == x.student.grad.dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_equals_cpu(dtype):
    x = many(dtype)
    there = replace(x, **{name: y if y is None else y.detach().cuda() for name, y in vars(x).items()})
    for y in there.learned:
        y.requires_grad_()
    ours, expected = fused(METHOD, there, analytic(METHOD), chunk=10), fused(METHOD, x, analytic(METHOD), chunk=10)
    torch.testing.assert_close(ours.loss.cpu(), expected.loss, rtol=1e-5, atol=0)
    for mine, other in zip(gradients(ours.loss, there), gradients(expected.loss, x), strict=True):
        assert (mine.cpu() - other).float().norm() < 2**-7 * other.float().norm()


@LOSSES
def test_float32_matches_float64(loss):
    exact = many()
    x = exact.to(torch.float32)
    exact = x.to(torch.float64)
    ours, truth = fused(METHOD, x, loss), fused(METHOD, exact, loss)
    torch.testing.assert_close(ours.loss.double(), truth.loss, rtol=1e-6, atol=0)
    for mine, exactly in zip(gradients(ours.loss, x), gradients(truth.loss, exact), strict=True):
        torch.testing.assert_close(mine.double(), exactly, rtol=1e-4, atol=1e-4)


@LOSSES
def test_autocast_does_not_round_the_logits(loss):
    x = many(torch.float32)
    expected = fused(METHOD, x, loss)
    with torch.autocast("cpu", torch.bfloat16):
        found = fused(METHOD, x, loss)
        mixed = fused(METHOD, replace(x, student=x.student.bfloat16(), switch=x.switch.bfloat16()), loss)
    assert found.loss.dtype == mixed.loss.dtype == torch.float32
    assert torch.equal(found.loss, expected.loss)
    for mine, other in zip(gradients(found.loss, x), gradients(expected.loss, x), strict=True):
        assert torch.equal(mine, other)
    mixed.loss.backward()
    assert x.weight.grad.dtype == x.student.grad.dtype == torch.float32


def test_autocast_does_not_reach_into_a_loss_either():
    x = many(torch.float32)
    products = AutogradTerms(lambda logits: {"products": TokenTerm((logits.student @ logits.student.T).sum(dim=-1))})
    expected = fused(SFT(), x, products).loss
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fused(SFT(), x, products).loss, expected)


def test_student_and_teacher_may_differ_in_precision():
    x = many(torch.float32)
    student, teacher = x.to(torch.float64), x.to(torch.bfloat16)
    x = replace(x, **{name: getattr(student, name) for name in ("student", "weight", "bias")})
    x = replace(x, **{name: getattr(teacher, name) for name in ("teacher", "switch", "teacher_weight", "teacher_bias")})
    terms, _ = plain(METHOD, x)
    found = fused(METHOD, x, analytic(METHOD), chunk=9)
    for name, value in terms.items():
        torch.testing.assert_close(found.terms[name].double(), value.detach().double(), rtol=1e-5, atol=0)
    assert [g.dtype for g in gradients(found.loss, x)] == [y.dtype for y in x.learned]


def test_large_logits_stay_finite():
    x = many(torch.float32)
    with torch.no_grad():
        for state in (x.student, x.teacher, x.switch):
            state *= 1e3
    found = fused(METHOD, x, analytic(METHOD))
    assert found.loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(found.loss, x))
    torch.testing.assert_close(found.loss, sum(plain(METHOD, x)[0].values()), rtol=1e-5, atol=0)


def test_kd_is_as_exact_as_its_plain_loss_in_bf16():
    method = KD(beta=0.5)
    x = many(torch.bfloat16)
    expected = sum(plain(method, x)[0].values())
    torch.testing.assert_close(fused(method, x, chunk=10).loss, expected, rtol=1e-6, atol=0)
