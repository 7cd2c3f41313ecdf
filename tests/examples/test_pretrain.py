"""The command that makes the shipped weights, two steps of each part: everything it writes fits together."""

from types import SimpleNamespace

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from examples.world_weights import pretrain
from switchkd.models import load_pathway
from switchkd.pairing import Pair


class Inline:
    """A process that runs at once, here."""

    exitcode = 0

    def __init__(self, target, args, name):
        self.start = lambda: target(*args)

    def join(self):
        pass


@pytest.mark.slow
def test_the_command_writes_a_teacher_and_a_student_that_fit(tmp_path, monkeypatch):
    whole = pretrain.batches
    monkeypatch.setattr(pretrain, "batches", lambda stream, size, steps: whole(stream, 2, 2))
    monkeypatch.setattr(pretrain, "get_context", lambda method: SimpleNamespace(Process=Inline))
    pretrain.pretrain(tmp_path, seed=0)
    teacher, student = load_pathway(tmp_path / "teacher"), load_pathway(tmp_path / "student")
    student.train_only(("vision",))
    tokens = len(AutoProcessor.from_pretrained(tmp_path / "student").tokenizer)
    Pair(student, teacher, needs=frozenset({"student", "teacher", "switch"}), vocabulary=tokens)
    tower = teacher.model.model.vision_tower.encoder.layers
    pruned = student.model.model.vision_tower.encoder.layers
    assert len(pruned) == 2
    for kept, origin in ((pruned[0], tower[0]), (pruned[1], tower[-1])):
        assert all((a == b).all() for a, b in zip(kept.parameters(), origin.parameters(), strict=True))
    AutoModelForImageTextToText.from_pretrained(tmp_path / "student")
