"""llava_mod: cross-entropy with the teacher's soft answers."""

import math
from pathlib import Path

import oracles
import pytest
import torch

from switchkd.batch import TEACHER
from switchkd.losses import forward_kl, soft_cross_entropy
from switchkd.methods import KD, LLaVAMoD
from switchkd.recipe.schema import load_recipe
from switchkd.signals import AnswerLogits, ComparedLogits

RECIPE = Path(__file__).parents[2] / "recipes" / "llava-mod-0.5b-from-3b.yaml"


def logits(seed):
    return 3 * torch.randn(5, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def terms(method, student, teacher, targets):
    """The method's terms, a value for each answer."""
    answers = AnswerLogits(student, targets, {TEACHER: ComparedLogits(student, teacher, None, targets)})
    return {name: term.values for name, term in method.token_terms(answers).items()}


def test_hand_computed():
    # Teacher (log 2, 0, 0): p_T = ½, ¼, ¼. Student (0, log 2, 0): p_S = ¼, ½, ¼.
    # −½ log ¼ − ¼ log ½ − ¼ log ¼ = log 2 + ¼ log 2 + ½ log 2 = 1¾ log 2; at weight 2, 3½ log 2. The answer is id 1: CE = log 2.
    unit = math.log(2)
    student, teacher = torch.tensor([[0.0, unit, 0.0]]), torch.tensor([[unit, 0.0, 0.0]])
    found = terms(LLaVAMoD(mimic=2.0), student, teacher, torch.tensor([1]))
    assert found["mimic"].item() == pytest.approx(3.5 * unit, abs=1e-6)
    assert found["ce"].item() == pytest.approx(unit, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_oracle(temperature):
    student, teacher = logits(0), logits(1)
    expected = [
        -math.fsum(math.exp(t) * s for t, s in zip(*map(oracles.log_softmax, both), strict=True))
        for both in zip(*(oracles.rows(z / temperature) for z in (teacher, student)), strict=True)
    ]
    found = soft_cross_entropy(student, teacher, temperature=temperature)
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_it_is_the_forward_kl_and_the_teachers_entropy():
    student, teacher = logits(0), logits(1)
    entropy = soft_cross_entropy(teacher, teacher)
    assert torch.allclose(soft_cross_entropy(student, teacher), forward_kl(student, teacher) + entropy, atol=1e-12)
    gradients = []
    for method in (LLaVAMoD(), KD(beta=0.0)):
        leaf = logits(0).requires_grad_()
        values = terms(method, leaf, teacher, torch.arange(5)).values()
        (gradient,) = torch.autograd.grad(torch.stack(list(values)).sum(), leaf)
        gradients.append(gradient)
    assert torch.allclose(*gradients, atol=1e-12)


def test_gradcheck():
    assert torch.autograd.gradcheck(
        lambda z: soft_cross_entropy(z, logits(1), temperature=2.0), (logits(0).requires_grad_(),)
    )


def test_the_recipe_mimics_in_its_last_stage():
    stages = load_recipe(RECIPE).resolved_stages()
    assert [(stage.train, stage.method.name) for stage in stages] == [
        (("projector",), "sft"),
        (("projector", "language"), "llava_mod"),
    ]
