"""How far one language model looks elsewhere than another."""

import math

import oracles
import pytest
import torch

from switchkd.losses import attention_distance


def attention(*shapes, seed=0):
    """Weights as a softmax leaves them, of more keys than are compared."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (3 * torch.randn(*shape[:-1], 2 * shape[-1], generator=generator, dtype=torch.float64)).softmax(dim=-1)[
            ..., : shape[-1]
        ]
        for shape in shapes
    ]


def test_hand_computed():
    # Two layers of the student, three of the teacher, so windows of two; one query, two keys. Teacher: (.2 0), (.2 .4), (.6 .8) → means
    # (.2 .2), (.4 .6). Student: (.3 0): cos = 1/√2; (.2 .3): cos 1. The sum is 1 − 1/√2.
    student = torch.tensor([[[0.3, 0.0]], [[0.2, 0.3]]]).double()
    teacher = torch.tensor([[[0.2, 0.0]], [[0.2, 0.4]], [[0.6, 0.8]]]).double()
    assert attention_distance(student, teacher).item() == pytest.approx(1 - 1 / math.sqrt(2), abs=1e-12)


def test_without_peaks_hand_computed():
    # One layer each; teacher (.1 .1 .7 .1): mean .25, deviation .26, so the third is left out. The rest is (.1 .1 .1) and (.3 0 0): 1/√3.
    student, teacher = torch.tensor([[[0.3, 0.0, 0.9, 0.0]]]).double(), torch.tensor([[[0.1, 0.1, 0.7, 0.1]]]).double()
    assert attention_distance(student, teacher, without_peaks=True).item() == pytest.approx(
        1 - 1 / math.sqrt(3), abs=1e-12
    )
    assert attention_distance(student, teacher).item() != pytest.approx(1 - 1 / math.sqrt(3), abs=1e-3)


@pytest.mark.parametrize("without_peaks", [False, True])
@pytest.mark.parametrize("layers", [(1, 1), (2, 2), (1, 3), (2, 5)])
def test_oracle_and_gradient(layers, without_peaks):
    student, teacher = attention((layers[0], 3, 4), (layers[1], 3, 4), seed=sum(layers))
    value = attention_distance(student, teacher, without_peaks=without_peaks)
    assert value.item() == pytest.approx(oracles.attention_distance(student, teacher, without_peaks), abs=1e-12)
    assert 0 < value < layers[0]
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda a: attention_distance(a, teacher, without_peaks=without_peaks), student)


def test_properties():
    (teacher,) = attention((3, 4, 5))
    assert attention_distance(teacher, teacher).item() == pytest.approx(0, abs=1e-14)
    assert attention_distance(0.1 * teacher, teacher).item() == pytest.approx(0, abs=1e-14)  # proportions alone
    assert attention_distance(torch.zeros_like(teacher), teacher).item() == 3  # one that looks at nothing
    assert attention_distance(teacher[:, :, :0], teacher[:, :, :0]) == 0


def test_half_precision_is_bounded_by_its_inputs_rounding():
    inputs = attention((2, 20, 30), (4, 20, 30))
    halved = [x.bfloat16() for x in inputs]
    found = attention_distance(*halved)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(oracles.attention_distance(*halved, False), abs=1e-6)
    assert found.item() == pytest.approx(oracles.attention_distance(*inputs, False), abs=2**-8)


@pytest.mark.usefixtures("unchecked_shapes")
def test_what_cannot_be_compared_is_refused():
    student, teacher, other = attention((3, 4, 5), (2, 4, 5), (3, 4, 6))
    with pytest.raises(
        ValueError, match="the student has 3 of them and the teacher 2: choose a teacher that is at least as deep"
    ):
        attention_distance(student, teacher)
    with pytest.raises(ValueError, match=r"got \[queries, keys\] of \[4, 5\] and \[4, 6\]"):
        attention_distance(student, other)
    with pytest.raises(ValueError, match="a teacher that requires grad: True"):
        attention_distance(student, student.clone().requires_grad_())
