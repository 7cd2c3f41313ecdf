"""Models of other sizes for the ablations, from the shipped weights."""

import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from examples.world_weights import variants
from switchkd.world import student_path, teacher_path


def weights(model):
    return model.state_dict()


@pytest.fixture(scope="module")
def teacher():
    return LlavaForConditionalGeneration.from_pretrained(teacher_path())


def test_two_layers_are_the_usual_student():
    usual = weights(LlavaForConditionalGeneration.from_pretrained(student_path()))
    made = weights(variants.student(2))
    assert made.keys() == usual.keys()
    for name, value in usual.items():
        assert torch.equal(made[name], value), name


@pytest.mark.parametrize("count", variants.LAYERS)
def test_a_student_has_layers_of_the_teachers_tower_in_their_order(count, teacher):
    layers = variants.student(count).model.vision_tower.encoder.layers
    assert len(layers) == count
    for layer, number in zip(layers, variants.LAYERS[count], strict=True):
        for name, value in weights(teacher.model.vision_tower.encoder.layers[number]).items():
            assert torch.equal(weights(layer)[name], value), name


def test_the_small_teacher_begins_with_the_whole_tower_and_is_trained_twice(teacher, monkeypatch):
    lessons = []
    monkeypatch.setattr(
        variants, "train_teacher", lambda *_, steps, learning_rate: lessons.append((steps, learning_rate))
    )
    model = variants.small_teacher(AutoProcessor.from_pretrained(teacher_path()), seed=0)
    assert lessons == [(500, 1e-3), (1400, 1.5e-3)]
    assert len(model.model.vision_tower.encoder.layers) == len(teacher.model.vision_tower.encoder.layers)
    assert model.config.text_config.hidden_size < teacher.config.text_config.hidden_size


def test_what_is_there_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(variants, "small_teacher", lambda processor, seed: variants.student(4))
    variants.write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "student-1",
        "student-2",
        "student-3",
        "student-4",
        "teacher-small",
    }
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    variants.write(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    LlavaForConditionalGeneration.from_pretrained(tmp_path / "student-3")
    AutoProcessor.from_pretrained(tmp_path / "student-3")
