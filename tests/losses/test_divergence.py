import math

import oracles
import pytest
import torch

from switchkd.losses import cross_entropy, forward_kl, jsd, reverse_kl

DIVERGENCES = {
    "forward": forward_kl,
    "reverse": reverse_kl,
    "jsd 0.1": lambda student, teacher, **kw: jsd(student, teacher, beta=0.1, **kw),
    "jsd 0.5": lambda student, teacher, **kw: jsd(student, teacher, beta=0.5, **kw),
}
each_divergence = pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES)


def pair(positions=5, vocab=30, scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = scale * torch.randn(2, positions, vocab, generator=generator, dtype=torch.float64)
    return student, teacher


def test_hand_computed_four_tokens():
    # Logits are log weights: p_S = (4, 2, 1, 1)/8 and p_T = (1, 1, 4, 2)/8; m = (5, 3, 5, 3)/16 at beta 1/2.
    student = torch.tensor([[4.0, 2, 1, 1]], dtype=torch.float64).log()
    teacher = torch.tensor([[1.0, 1, 4, 2]], dtype=torch.float64).log()
    two = math.log(2)
    # −log(1/8)
    assert cross_entropy(student, torch.tensor([2])).item() == pytest.approx(3 * two, abs=1e-14)
    # Σ p_T log(p_T/p_S) = (1·log ¼ + 1·log ½ + 4·log 4 + 2·log 2)/8 = (−2 − 1 + 8 + 2)/8 log 2
    assert forward_kl(student, teacher).item() == pytest.approx(7 / 8 * two, abs=1e-14)
    # Σ p_S log(p_S/p_T) = (4·log 4 + 2·log 2 + 1·log ¼ + 1·log ½)/8 = (8 + 2 − 2 − 1)/8 log 2: equal by chance
    assert reverse_kl(student, teacher).item() == pytest.approx(7 / 8 * two, abs=1e-14)
    # Temperature ½ squares the weights: p_S ∝ 16, 4, 1, 1 (22), p_T ∝ 1, 1, 16, 4 (22), ratios 1/16, 1/4, 16, 4:
    # (−4 − 2 + 64 + 8)/22 log 2
    assert forward_kl(student, teacher, temperature=0.5).item() == pytest.approx(3 * two, abs=1e-14)
    # ½ Σ p_T log(p_T/m) + ½ Σ p_S log(p_S/m), with p/m = 2/5, 2/3, 8/5, 4/3 and 8/5, 4/3, 2/5, 2/3
    half = (math.log(2 / 5) + math.log(2 / 3) + 4 * math.log(8 / 5) + 2 * math.log(4 / 3)) / 8
    other = (4 * math.log(8 / 5) + 2 * math.log(4 / 3) + math.log(2 / 5) + math.log(2 / 3)) / 8
    assert jsd(student, teacher, beta=0.5).item() == pytest.approx((half + other) / 2, abs=1e-14)


def test_directions_differ_as_named():
    # The teacher is sure of token 0, the student knows nothing: log 2 nats are the most forward KL can see,
    # reverse KL sees the student's mass where the teacher has none: ½ log(½) − ½ (log p_T0 + log p_T1).
    student = torch.zeros(1, 2, dtype=torch.float64)
    teacher = torch.tensor([[40.0, 0.0]], dtype=torch.float64)
    assert forward_kl(student, teacher).item() == pytest.approx(math.log(2), abs=1e-12)
    assert reverse_kl(student, teacher).item() == pytest.approx(20 - math.log(2), abs=1e-12)


@pytest.mark.parametrize("scale", [0.5, 5.0, 20.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_oracle(scale, temperature):
    student, teacher = pair(scale=scale)
    targets = torch.tensor([0, 29, 3, 3, 17])
    close = {"rtol": 0, "atol": 1e-10}
    checks = [
        (cross_entropy(student, targets), oracles.cross_entropy(student, targets)),
        (forward_kl(student, teacher, temperature=temperature), oracles.forward_kl(student, teacher, temperature)),
        (reverse_kl(student, teacher, temperature=temperature), oracles.reverse_kl(student, teacher, temperature)),
    ]
    checks += [
        (jsd(student, teacher, beta=beta, temperature=temperature), oracles.jsd(student, teacher, beta, temperature))
        for beta in (0.1, 0.5, 0.9)
    ]
    for ours, expected in checks:
        torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64), **close)


def test_beta_ends_are_the_two_kls():
    student, teacher = pair()
    assert torch.equal(jsd(student, teacher, beta=0, temperature=2.0), forward_kl(student, teacher, temperature=2.0))
    assert torch.equal(jsd(student, teacher, beta=1, temperature=2.0), reverse_kl(student, teacher, temperature=2.0))
    # and what the docstring says about the approach to them
    small = 1e-7
    near_forward = jsd(student, teacher, beta=small) / small
    near_reverse = jsd(student, teacher, beta=1 - small) / small
    torch.testing.assert_close(near_forward, forward_kl(student, teacher), rtol=1e-2, atol=0)
    torch.testing.assert_close(near_reverse, reverse_kl(student, teacher), rtol=1e-2, atol=0)


@each_divergence
def test_properties(divergence):
    student, teacher = pair(positions=50)
    loss = divergence(student, teacher)
    assert loss.shape == (50,)
    assert (loss > 0).all()
    assert divergence(teacher, teacher).abs().max() < 1e-15
    shift = torch.linspace(-30, 30, 50, dtype=torch.float64)[:, None]
    torch.testing.assert_close(divergence(student + shift, teacher - 2 * shift), loss, rtol=1e-10, atol=1e-10)


def test_cross_entropy_ignores_a_shift():
    student, _ = pair()
    targets = torch.arange(5)
    torch.testing.assert_close(cross_entropy(student + 7, targets), cross_entropy(student, targets))


@each_divergence
def test_gradient(divergence):
    student, teacher = pair(positions=3, vocab=8)
    assert torch.autograd.gradcheck(lambda z: divergence(z, teacher, temperature=2.0), student.requires_grad_())


def test_gradient_of_cross_entropy():
    student, _ = pair(positions=3, vocab=8)
    targets = torch.tensor([1, 0, 7], dtype=torch.int32)
    assert torch.autograd.gradcheck(lambda z: cross_entropy(z, targets), student.requires_grad_())


@each_divergence
def test_bf16_is_closer_to_the_truth_than_plain_torch(divergence):
    student, teacher = pair(positions=64, vocab=500)
    truth = divergence(student.float(), teacher.float())
    student, teacher = student.bfloat16(), teacher.bfloat16()
    ours = divergence(student, teacher)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, divergence(student.float(), teacher.float()))
    log_s, log_t = student.log_softmax(-1), teacher.log_softmax(-1)
    if divergence is forward_kl:
        plain = (log_t.exp() * (log_t - log_s)).sum(-1)
    elif divergence is reverse_kl:
        plain = (log_s.exp() * (log_s - log_t)).sum(-1)
    else:
        beta = 0.1 if divergence is DIVERGENCES["jsd 0.1"] else 0.5
        log_m = (beta * log_t.exp() + (1 - beta) * log_s.exp()).log()
        kl_t, kl_s = ((log.exp() * (log - log_m)).sum(-1) for log in (log_t, log_s))
        plain = beta * kl_t + (1 - beta) * kl_s
    assert (ours - truth).abs().mean() < (plain - truth).abs().mean()
    assert (ours - truth).abs().max() < 0.02 * truth.max()


def test_extreme_logits_stay_finite():
    student, teacher = (z.float().requires_grad_() for z in pair(scale=1e4))
    for divergence in DIVERGENCES.values():
        loss = divergence(student, teacher.detach())
        (gradient,) = torch.autograd.grad(loss.sum(), student)
        assert loss.isfinite().all()
        assert gradient.isfinite().all()


def test_no_positions():
    empty = torch.zeros(0, 6)
    assert cross_entropy(empty, torch.zeros(0, dtype=torch.long)).shape == (0,)
    for divergence in DIVERGENCES.values():
        assert divergence(empty, empty).shape == (0,)
