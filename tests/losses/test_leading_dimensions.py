"""Logits of any number of leading dimensions: one value for each position, and the values and gradients of the flat rows."""

import pytest
import torch

from switchkd.losses import bild, cross_entropy, dbild, forward_kl, jsd, knee, reverse_kl, soft_cross_entropy

LOSSES = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "soft_cross_entropy": soft_cross_entropy,
    "jsd": lambda student, teacher: jsd(student, teacher, beta=0.3),
    "bild": bild,
    "dbild": dbild,
    "dbild_by_rows": lambda student, teacher: dbild(student, teacher, window=8, softmax="row", t_squared=True),
    "cross_entropy": lambda student, teacher: cross_entropy(student, teacher.argmax(dim=-1)),
}


def logits(*shape):
    generator = torch.Generator().manual_seed(3)
    student, teacher = (3 * torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return student.requires_grad_(), teacher


@pytest.mark.parametrize("lead", [(), (5,), (1, 5), (2, 3), (2, 1, 3), (0, 4), (2, 0)], ids=str)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_values_and_gradients_are_those_of_the_rows(loss, lead):
    student, teacher = logits(*lead, 17)
    values = loss(student, teacher)
    assert values.shape == lead
    weights = torch.arange(1.0, values.numel() + 1, dtype=torch.float64).view(lead)
    (values * weights).sum().backward()
    rows = student.detach().reshape(-1, 17).requires_grad_()
    flat = loss(rows, teacher.reshape(-1, 17))
    (flat * weights.reshape(-1)).sum().backward()
    assert torch.equal(values.reshape(-1), flat)
    assert torch.equal(student.grad.reshape(-1, 17), rows.grad)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_gradients_through_a_view_that_is_not_contiguous(loss):
    student, teacher = logits(4, 11, 3)
    # [batch, vocab, time], as convolutions have it, seen as [batch, time, vocab]
    assert torch.autograd.gradcheck(lambda z: loss(z.mT, teacher.mT), student)


@pytest.mark.parametrize("lead", [(), (5,), (2, 3)], ids=str)
def test_the_knee_of_every_position(lead):
    _, teacher = logits(*lead, 40)
    assert torch.equal(knee(teacher).reshape(-1), knee(teacher.reshape(-1, 40)))
    assert knee(teacher).shape == lead
