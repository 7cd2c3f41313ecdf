"""What the tests of methods that look inside both models share."""

import torch
from tiny_models import VOCABULARY, tiny_batch, tiny_llava
from torch import nn

from switchkd.batch import TEACHER
from switchkd.methods import Method
from switchkd.models import Pathway
from switchkd.models.capture import Site
from switchkd.pairing import Pair
from switchkd.signals import Activations, FromHidden, Head, Signals

#: Samples with one image, two, and none.
IMAGES = (1, 2, 0)


def make_pair(method: Method, *, train=("vision", "projector", "language"), **student) -> Pair:
    """A tiny pair in float64, in training mode."""
    learner = Pathway(tiny_llava(seed=2, **student).double())
    learner.train_only(train)
    teacher = Pathway(tiny_llava(hidden=40, depth=3, seed=1).double())
    learned = method.learned(learner.sizes, teacher.sizes)
    learned = None if learned is None else learned.double()
    return Pair(learner, teacher, needs=method.needs, vocabulary=VOCABULARY - 6, learned=learned).train()


def signals_of(pair: Pair) -> Signals:
    """What the pair makes of the tiny batch."""
    return pair(tiny_batch(images=IMAGES))


def samples(*values: list) -> list[torch.Tensor]:
    """One place's activations written out, a matrix for each sample; an empty list is a sample that has nothing there."""
    width = len(values[0][0])
    return [torch.tensor(rows, dtype=torch.float64).view(-1, width) for rows in values]


def written_out(
    student: dict[Site, list[torch.Tensor]], teacher: dict[Site, list[torch.Tensor]], logits: int
) -> Signals:
    """Signals with these activations, one answer in each sample; hidden states are logits, of so many ids."""
    identity = Head(torch.eye(logits, dtype=torch.float64))
    places = torch.arange(len(next(iter(student.values()))))
    keys = tuple(f"sample-{number}@0" for number in places.tolist())
    hidden = FromHidden(torch.zeros(len(keys), logits, dtype=torch.float64), identity)
    activations = Activations(student, teacher, identity, identity, keys)
    return Signals(hidden, torch.zeros_like(places), places, keys, {}, {TEACHER: activations})


def reached(pair: Pair, loss: torch.Tensor) -> set[str]:
    """Which of V_S, P_S, L_S and the learned maps get a gradient that is not 0; the teacher never does."""
    loss.backward()
    modules: dict[str, list[nn.Parameter]] = {
        part: list(pair.student.part_parameters(part).values()) for part in ("vision", "projector", "language")
    }
    modules["learned"] = [] if pair.learned is None else list(pair.learned.parameters())
    assert all(parameter.grad is None for parameter in pair.teacher.parameters())
    return {
        name
        for name, parameters in modules.items()
        if any(p.grad is not None and torch.count_nonzero(p.grad) for p in parameters)
    }
