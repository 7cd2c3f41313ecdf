"""The loop of the examples takes the Trainer's steps, and leaves a plain student."""

import pytest
import torch
from run_files import write_data, write_model
from transformers import AutoModelForImageTextToText, AutoProcessor

from examples.own_loop import train


@pytest.fixture
def files(tmp_path):
    write_model(tmp_path / "teacher", seed=1, hidden=40, depth=3)
    write_model(tmp_path / "student", seed=2)
    write_data(tmp_path / "data.json", 6)
    return [tmp_path / name for name in ("student", "teacher", "data.json", "out")]


@pytest.mark.long
def test_the_loss_falls_and_the_student_is_written(files):
    student, _, _, out = files
    losses = list(train(*files, epochs=6, batch_size=3, rate=2e-3))
    assert len(losses) == 12
    assert sum(losses[-2:]) < 0.8 * sum(losses[:2])
    trained, before = (AutoModelForImageTextToText.from_pretrained(path).state_dict() for path in (out, student))
    vision = [name for name in trained if "vision_tower" in name]
    assert any(not torch.equal(trained[name], before[name]) for name in vision)
    assert AutoProcessor.from_pretrained(out).chat_template
