"""A tiny student and its teacher, joined."""

from tiny_models import VOCABULARY, tiny_llava

from switchkd.models import Pathway
from switchkd.pairing import Pair

ALL = frozenset({"student", "teacher", "switch"})


def make_pair(vision="siglip", language="qwen2", *, needs=ALL, train=("vision", "projector", "language"), **student):
    teacher = Pathway(tiny_llava(vision, language, hidden=40, depth=3, seed=1))
    learner = Pathway(tiny_llava(vision, language, seed=2, **student))
    learner.train_only(train)
    return Pair(learner, teacher, needs=needs, vocabulary=VOCABULARY)
