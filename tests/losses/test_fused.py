from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from fused_cases import TOKENS, VOCABULARY, analytic, by_autograd, fused, gradients, inputs, plain, signals

from switchkd.losses import AutogradTerms, CrossEntropyDBiLD, fused_loss, plain_loss
from switchkd.methods import KD, SFT, BiLD, SwitchKD
from switchkd.signals import TokenTerm

SWITCH_KDS = [
    SwitchKD(window=16),
    SwitchKD(window=None, temperature=1.0),
    SwitchKD(align=0.3, switch=2.0, window=8, min_k=2),
    SwitchKD(switch=0.0, window=16),
    SwitchKD(align=0.0, window=16),
]
CASES = [(method, by_autograd(method)) for method in (SFT(), KD(), KD(beta=1.0), KD(beta=0.5, temperature=2.0), BiLD())]
CASES += [(SFT(), CrossEntropyDBiLD(align=0, switch=0))]
CASES += [(method, kind(method)) for method in SWITCH_KDS for kind in (by_autograd, analytic)]
IDS = [f"{method}-{type(loss).__name__}" for method, loss in CASES]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("method", "loss"), CASES, ids=IDS)
def test_equal_to_the_plain_loss(method, loss, bias):
    x = inputs(bias=bias)
    terms, statistics = plain(method, x)
    found = fused(method, x, loss, chunk=4)
    assert list(found.terms) == list(terms)
    for name, value in terms.items():
        torch.testing.assert_close(found.terms[name], value.detach(), rtol=0, atol=1e-10)
    for name, value in found.statistics.items():
        assert value == statistics[name]
    expected = torch.stack(list(terms.values())).sum()
    torch.testing.assert_close(found.loss, expected, rtol=0, atol=1e-10)
    for ours, theirs in zip(gradients(3 * found.loss, x), gradients(3 * expected, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("method", "loss"), CASES, ids=IDS)
def test_soft_capped_heads_equal_the_plain_loss(method, loss):
    x = replace(inputs(), softcap=2.0)  # low enough to bend the logits of a few nats
    expected = torch.stack(list(plain(method, x)[0].values())).sum()
    assert (expected - torch.stack(list(plain(method, replace(x, softcap=None))[0].values())).sum()).abs() > 0.1
    found = fused(method, x, loss, chunk=4)
    torch.testing.assert_close(found.loss, expected, rtol=0, atol=1e-10)
    for ours, theirs in zip(gradients(found.loss, x), gradients(expected, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_knees_are_reported():
    method = SwitchKD(window=16)
    x = inputs()
    assert fused(method, x, analytic(method)).statistics == plain(method, x)[1]


@pytest.mark.parametrize("loss", [by_autograd(SwitchKD()), analytic(SwitchKD())], ids=["autograd", "analytic"])
@pytest.mark.parametrize("chunk", [1, 3, 7, TOKENS, TOKENS + 5])
def test_any_chunk_gives_the_same(chunk, loss):
    x = inputs()
    whole, parts = (fused(SwitchKD(), x, loss, chunk=size) for size in (None, chunk))
    assert parts.chunk == min(chunk, TOKENS)
    torch.testing.assert_close(parts.loss, whole.loss, rtol=0, atol=1e-12)
    for ours, theirs in zip(gradients(parts.loss, x), gradients(whole.loss, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("method", "loss"),
    [(SwitchKD(window=6), analytic(SwitchKD(window=6))), (KD(beta=0.5), by_autograd(KD(beta=0.5)))],
    ids=["analytic", "autograd"],
)
def test_gradcheck(method, loss):
    x = inputs(tokens=3, rows=9, teacher_rows=8)

    def value(student, weight, bias, switch):
        return fused(method, replace(x, student=student, weight=weight, bias=bias, switch=switch), loss, 7, 2).loss

    assert torch.autograd.gradcheck(value, x.learned)


@pytest.mark.parametrize(("method", "loss"), CASES, ids=IDS)
def test_no_tokens(method, loss):
    x = inputs(tokens=0)
    found = fused(method, x, loss)
    assert found.loss == 0
    assert set(found.terms) == set(plain(method, x)[0])
    for gradient, y in zip(gradients(found.loss, x), x.learned, strict=True):
        assert torch.equal(gradient, torch.zeros_like(y))


def test_a_second_backward_gives_the_same_again():
    x = inputs()
    loss = fused(SwitchKD(), x, analytic(SwitchKD()), chunk=4).loss
    first, second, other = (
        torch.autograd.grad(scale * loss, x.learned, retain_graph=True) for scale in (1.0, 1.0, 0.25)
    )
    for a, b, c in zip(first, second, other, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(c, a / 4, rtol=1e-14, atol=0)
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_accumulated_gradients_are_those_of_the_whole():
    x = inputs()
    whole = gradients(fused(SwitchKD(), x, analytic(SwitchKD())).loss / TOKENS, x)
    for part in (slice(0, 4), slice(4, TOKENS)):
        micro = replace(x, **{name: getattr(x, name)[part] for name in ("targets", "student", "teacher", "switch")})
        (fused(SwitchKD(), micro, analytic(SwitchKD()), chunk=3).loss / TOKENS).backward()
    for y, gradient in zip(x.learned, whole, strict=True):
        torch.testing.assert_close(y.grad, gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("frozen", ["student", "weight", "bias", "switch"])
def test_what_is_frozen_gets_no_gradient_and_changes_none(frozen):
    x = inputs()
    expected = dict(zip(("student", "weight", "bias", "switch"), gradients(fused(SwitchKD(), x).loss, x), strict=True))
    getattr(x, frozen).requires_grad_(False)
    fused(SwitchKD(), x, analytic(SwitchKD())).loss.backward()
    for name, gradient in expected.items():
        found = getattr(x, name).grad
        assert found is None if name == frozen else torch.allclose(found, gradient, rtol=0, atol=1e-12)


def test_without_gradients():
    x = inputs()
    with torch.no_grad():
        found = fused(SwitchKD(), x, analytic(SwitchKD()))
    assert not found.loss.requires_grad
    assert found.loss == fused(SwitchKD(), x, analytic(SwitchKD())).loss
    assert all(not value.requires_grad for value in (found.loss, *found.terms.values()))


def test_a_tied_head_gets_both_gradients():
    x = inputs(bias=False)
    tied = x.weight.detach().clone().requires_grad_()
    x = replace(x, student=F.embedding(x.targets, tied).tanh(), weight=tied)
    theirs = torch.stack(list(plain(SwitchKD(), x)[0].values())).sum()
    ours = fused(SwitchKD(), x, analytic(SwitchKD())).loss
    found, expected = (torch.autograd.grad(loss, tied, retain_graph=True)[0] for loss in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_padding_rows_are_never_compared():
    x = inputs()
    before = fused(SwitchKD(), x, analytic(SwitchKD()))
    with torch.no_grad():
        x.weight[VOCABULARY:] *= 100
        x.teacher_weight[VOCABULARY:] *= 100
    after = fused(SwitchKD(), x, analytic(SwitchKD()))
    assert after.terms["ce"] != before.terms["ce"]  # which is over all rows of the student's head
    assert after.terms["align"] == before.terms["align"]
    assert after.terms["switch"] == before.terms["switch"]


@pytest.mark.parametrize("loss", [by_autograd(KD()), by_autograd(SwitchKD())], ids=["kd", "switch_kd"])
def test_a_term_of_another_length_says_which_answers_it_is_about(loss):
    """One value fewer than there are answers could be about any of them."""

    def terms(logits):
        whole = loss.terms(logits)
        return whole | {"short": TokenTerm(whole["ce"].values[1:])}

    batch = signals(SwitchKD(), inputs())
    for summed in (
        lambda terms: fused_loss(AutogradTerms(terms), batch),
        lambda terms: plain_loss(AutogradTerms(terms), batch),
        lambda statistics: fused_loss(AutogradTerms(loss.terms, statistics), batch),
        lambda statistics: plain_loss(AutogradTerms(loss.terms, statistics), batch),
    ):
        with pytest.raises(ValueError, match=r"term 'short' has 10 values for 11 answers: .*`ComparedLogits.term`"):
            summed(terms)


def test_switch_equal_to_the_teacher_gives_exactly_nothing():
    # Rows of one matrix product that hold equal numbers need not be equal to the last bit, unless nothing is rounded: eighths are exact.
    x = inputs()
    for name in ("teacher", "teacher_weight", "teacher_bias"):
        setattr(x, name, (8 * getattr(x, name)).round() / 8)
    x = replace(x, switch=x.teacher.clone().requires_grad_())
    found = fused(SwitchKD(), x, analytic(SwitchKD()), chunk=4)
    found.loss.backward()
    assert found.terms["switch"] == 0
    assert not x.switch.grad.any()


@pytest.mark.parametrize("bad", ["teacher", "switch", "student"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_state_never_gives_a_finite_loss(bad, value):
    x = inputs()
    with torch.no_grad():
        getattr(x, bad)[3] = value
    assert not fused(SwitchKD(), x, analytic(SwitchKD()), chunk=4).loss.isfinite()
    with pytest.raises(ValueError, match="must be finite"):
        fused(SwitchKD(), x, by_autograd(SwitchKD()), chunk=4)
