"""What the tests of methods that look inside both models share."""

import torch
from tiny_models import VOCABULARY, tiny_batch, tiny_llava
from torch import nn

from switchkd.methods import Method
from switchkd.models import Pathway
from switchkd.pairing import Pair
from switchkd.types import Head, Inner, Look

#: Rows with one image, two, and none.
IMAGES = (1, 2, 0)


def make_pair(method: Method, *, train=("vision", "projector", "language"), **student) -> Pair:
    """A tiny pair in float64, in training mode."""
    learner = Pathway(tiny_llava(seed=2, **student).double())
    learner.train_only(train)
    teacher = Pathway(tiny_llava(hidden=40, depth=3, seed=1).double())
    learned = method.learned(learner.sizes, teacher.sizes)
    learned = None if learned is None else learned.double()
    return Pair(learner, teacher, needs=method.needs, vocabulary=VOCABULARY - 6, learned=learned).train()


def look(pair: Pair, method: Method) -> tuple[Inner, Inner]:
    """What the method sees in both models on the tiny batch."""
    hidden = pair(tiny_batch(images=IMAGES), method.needs, lambda hidden: hidden)
    return hidden.student_inner, hidden.teacher_inner


def inner(look: Look, *rows: list, **others: list[torch.Tensor]) -> Inner:
    """One thing that was looked at, written out; its channels are the logits."""
    width = len(rows[0][0])
    tensors = [torch.tensor(row, dtype=torch.float64).view(-1, width) for row in rows]
    return Inner({look: tensors, **others}, Head(torch.eye(width, dtype=torch.float64)))


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
