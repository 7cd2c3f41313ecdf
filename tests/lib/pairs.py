"""A tiny student and its teacher, joined, and what both say."""

from collections.abc import Iterable

import torch
from tiny_models import VOCABULARY, tiny_llava
from torch import Tensor, nn

from switchkd.batch import TEACHER, Batch, Inputs
from switchkd.models import Pathway
from switchkd.pairing import Pair
from switchkd.signals import ComparedLogits

ALL = frozenset({"student", "teacher", "switch"})
#: Without the switch.
ALIGN = frozenset({"student", "teacher"})
PARTS = ("vision", "projector", "language")


def make_pair(vision="siglip", language="qwen2", *, needs=ALL, train=PARTS, **student) -> Pair:
    teacher = Pathway(tiny_llava(vision, language, hidden=40, depth=3, seed=1))
    learner = Pathway(tiny_llava(vision, language, seed=2, **student))
    learner.train_only(train)
    return Pair(learner, teacher, needs=needs, vocabulary=VOCABULARY)


def compared(pair: Pair, batch: Batch) -> ComparedLogits:
    """The logits that are compared with the teacher's, and its own."""
    return pair(batch).logits().compared[TEACHER]


def own_logits(pathway: Pathway, inputs: Inputs) -> Tensor:
    """What the pathway says about its own images."""
    return pathway.logits(pathway.say(pathway.see(inputs), inputs))


def assert_gradient_on_exactly(parameters: Iterable[nn.Parameter], pair: Pair) -> None:
    """That of all the pair's parameters these have a gradient, and that it is felt."""
    expected = {id(parameter) for parameter in parameters if parameter.requires_grad}
    assert expected
    for name, parameter in pair.named_parameters():
        if id(parameter) in expected:
            assert parameter.grad is not None, name
            # softmax does not see a constant added to every key: its bias has no effect, whatever the loss
            assert "k_proj.bias" in name or torch.count_nonzero(parameter.grad) > 0, name
        else:
            assert parameter.grad is None, name
