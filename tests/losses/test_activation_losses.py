"""Losses between what is inside two models: the relation of tokens, and logits that are not kept."""

import math

import oracles
import pytest
import torch

from switchkd.losses import Head, SummedLoss, forward_kl, of_logits, relation, with_samples
from switchkd.signals import FromHidden, Signals


def random(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]


def test_every_answer_token_carries_the_value_of_its_sample():
    # Samples with 3, 5, no and 1 answers: 10 + (1·3 + 2·5 + 7·0 + 0·1) = 23. Packed rows need not keep them together.
    sums = SummedLoss(torch.tensor(10.0), {"ce": torch.tensor(10.0)}, {"knee": torch.tensor(4.0)}, 9, 6, 4)
    sample = torch.tensor([0, 1, 1, 0, 0, 1, 1, 3, 1])
    hidden = FromHidden(torch.zeros(9, 2), Head(torch.eye(2)))
    signals = Signals(hidden, torch.zeros_like(sample), sample, ("a@0", "b@0", "c@0", "d@0"), {}, {})
    values = torch.tensor([1.0, 2.0, 7.0, 0.0], requires_grad=True)
    found = with_samples(sums, {"visual": values}, signals)
    assert found.loss.item() == 23
    assert {name: value.item() for name, value in found.terms.items()} == {"ce": 10, "visual": 13}
    assert found._replace(loss=sums.loss, terms=sums.terms) == sums
    assert not found.terms["visual"].requires_grad
    found.loss.backward()
    assert values.grad.tolist() == [3, 5, 0, 1]
    with pytest.raises(ValueError, match="ce is a term of the answers and of the samples: give each a name of its own"):
        with_samples(sums, {"ce": values}, signals)


def test_relation_hand_computed():
    # Two tokens. y_S = (1, 0), (1, 1) → R_S = 1 1 / 1 2, length √7. y_T = (2), (0) → R_T = 4 0 / 0 0, length 4. Product 4.
    # cos = 4 / (4 √7), so L = 1 − 1/√7.
    student = torch.tensor([[1.0, 0], [1, 1]], dtype=torch.float64)
    teacher = torch.tensor([[2.0], [0]], dtype=torch.float64)
    assert relation(student, teacher).item() == pytest.approx(1 - 1 / math.sqrt(7), abs=1e-14)


def test_relation_oracle_and_properties():
    student, teacher, turn = random((7, 5), (7, 9), (5, 5))
    value = relation(student, teacher)
    assert value.item() == pytest.approx(oracles.relation(student, teacher), abs=1e-13)
    assert 0 < value < 2
    assert relation(teacher, teacher).item() == pytest.approx(0, abs=1e-14)
    orthogonal = torch.linalg.qr(turn).Q
    assert relation(3 * student @ orthogonal, teacher).item() == pytest.approx(value.item(), abs=1e-13)
    assert torch.autograd.gradcheck(lambda y: relation(y, teacher), student.requires_grad_())


@pytest.mark.usefixtures("unchecked_shapes")
def test_relation_refuses_what_cannot_be_compared():
    student, teacher = random((7, 5), (6, 9))
    with pytest.raises(ValueError, match="got 7 and 6 tokens"):
        relation(student, teacher)
    with pytest.raises(ValueError, match="requires grad: True"):
        relation(student, student.clone().requires_grad_())


def test_half_precision_is_multiplied_in_float32():
    student, teacher = (y.bfloat16() for y in random((20, 300), (20, 200)))
    assert relation(student, teacher).dtype == torch.float32
    assert relation(student, teacher).item() == pytest.approx(oracles.relation(student, teacher), abs=1e-6)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_logits_are_not_kept_for_the_backward_pass(softcap):
    student, teacher, ours, theirs, bias = random((6, 4), (6, 8), (500, 4), (500, 8), (500,))
    leaves = [student, ours, bias]
    found = []
    for remembering in (True, False):
        for leaf in leaves:
            leaf.grad = None
            leaf.requires_grad_()
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x.numel()) or x, lambda x: x):
            heads = Head(ours, bias, softcap), Head(theirs)
            if remembering:
                value = forward_kl(heads[0].logits(student), heads[1].logits(teacher)).mean()
            else:
                value = of_logits(lambda s, t: forward_kl(s, t).mean(), student, heads[0], teacher, heads[1])
        value.backward()
        found.append((value.item(), [leaf.grad for leaf in leaves], max(kept, default=0)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-14)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    assert found[0][2] >= 6 * 500 > found[1][2]
