"""A teacher whose smallest weights are 0 and come back along a stage: `teacher: {path, mask: 0.2}`."""

import json
import logging
import shutil

import pytest
import torch
from caches import opened, recipe_of, write_pair
from safetensors.torch import load_file

from switchkd import distill
from switchkd.cli import main
from switchkd.models import load_pathway
from switchkd.models.masking import MagnitudeMask
from switchkd.recipe.schema import build_recipe, save_recipe
from switchkd.train.launch import check_launch
from switchkd.train.stage import open_run, open_stage
from switchkd.typed_fields import RecipeError

METHOD = {"name": "switch_kd", "window": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mask")
    write_pair(folder)
    return folder


def masked(folder, share=0.5, **sections):
    return recipe_of(folder, METHOD, cache=None, teacher={"mask": share}, **sections)


def digest(teacher):
    return {name: tensor.clone() for name, tensor in teacher.state_dict().items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_the_loss_of_a_step_is_that_of_a_teacher_that_was_masked_by_hand(folder, tmp_path):
    context = opened(masked(folder), tmp_path)
    batch = context.collator(list(context.rows))
    with torch.no_grad():
        along = [context.step(batch, progress).loss.item() for progress in (0.1, 0.2, 0.9, 0.5, 1.0)]
    whole = opened(recipe_of(folder, METHOD, cache=None), tmp_path)
    expected = []
    for share in (0.5, 0.375, 0.0, 0.25, 0.0):
        pair = whole.pair
        MagnitudeMask(pair.teacher, share).set(share)
        with torch.no_grad():
            expected.append(whole.step(batch).loss.item())
        pair.teacher.load_state_dict(load_pathway(str(folder / "teacher")).state_dict())
    assert along == expected
    assert len(set(expected)) == 4


def losses(run):
    return {
        line["step"]: line["loss"]
        for line in map(json.loads, (run / "1-train" / "metrics.jsonl").read_text().splitlines())
        if "loss" in line
    }


TRAIN = {"max_steps": 5, "save_steps": 1, "save_total_limit": None, "logging_steps": 1}


@pytest.mark.long
def test_a_run_through_the_command_line_and_a_resume_are_the_same(folder, tmp_path, caplog):
    file, run = tmp_path / "recipe.yaml", tmp_path / "run"
    save_recipe(masked(folder, train=TRAIN | {"output": str(run)}), file)
    with caplog.at_level(logging.INFO, "switchkd"):
        assert main(["train", str(file)]) == 0
    told = [
        message.split()[1] for message in caplog.messages if message.startswith("teacher.mask: ") and "%" in message
    ]
    assert told == ["37.5", "25.0", "12.5", "0.0"]  # five steps are too few for the first share
    student, of_steps = load_file(run / "student" / "model.safetensors"), losses(run)
    assert sorted(of_steps) == [1, 2, 3, 4, 5]
    shutil.rmtree(run / "student")
    for step in (3, 4, 5):  # in the middle of a share
        shutil.rmtree(run / "1-train" / f"checkpoint-{step}")
    assert main(["train", str(file)]) == 0
    assert losses(run) == of_steps
    assert_equal(load_file(run / "student" / "model.safetensors"), student)
    plain = tmp_path / "plain"
    assert main(["train", str(file), "--teacher.mask", "none", "--train.output", str(plain)]) == 0
    assert losses(plain)[1] != of_steps[1]


def test_after_a_stage_the_teacher_is_whole_for_the_next_one(folder, tmp_path):
    stages = [{"name": "first", "max_steps": 2}, {"name": "second", "max_steps": 1}]
    recipe = masked(folder, stages=stages, train={"output": str(tmp_path / "run")})
    run = open_run(recipe)
    first, second = recipe.resolved_stages()
    context = open_stage(run, first, tmp_path / "a")
    whole = digest(context.pair.teacher)
    batch = context.collator(list(context.rows))
    with torch.no_grad():
        context.step(batch, 0.1)
    assert any(not torch.equal(tensor, whole[name]) for name, tensor in context.pair.teacher.state_dict().items())
    context.step.unmask()
    assert_equal(digest(context.pair.teacher), whole)
    again = open_stage(run, second, tmp_path / "b")
    assert again.pair.teacher is context.pair.teacher
    with torch.no_grad():
        again.step(batch, 0.1)
        again.step(batch, 1.0)
    assert_equal(digest(again.pair.teacher), whole)


@pytest.mark.long
def test_each_stage_masks_the_teacher_of_its_own(folder, tmp_path, monkeypatch):
    seen, plain = [], MagnitudeMask.set
    monkeypatch.setattr(MagnitudeMask, "set", lambda self, share: (seen.append(share), plain(self, share)))
    teacher = str(folder / "teacher")
    stages = [
        {"name": "first", "max_steps": 5},
        {"name": "second", "max_steps": 1, "teacher": {"path": teacher}},
        {"name": "third", "max_steps": 2, "teacher": {"path": teacher, "mask": 0.1}},
    ]
    distill(masked(folder, 0.4, stages=stages, train={"output": str(tmp_path / "run")}))
    assert [round(share, 9) for share in seen if share] == [0.3, 0.2, 0.1, 0.05]
    assert seen[-1] == 0.0


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"mask": 0.0}, "mask is a share of the weights, above 0 and below 1, got 0.0; leave it out for none"),
        ({"mask": 1.0}, "mask is a share of the weights, above 0 and below 1, got 1.0"),
        ({"mask": 0.2, "cache": "c"}, "mask is 0.2 and cache is c: a cache holds what the whole teacher says; keep one"),
        ({"mask": 0.2, "quantization": "4bit"}, "mask is 0.2 and quantization is 4bit: quantised weights have no magnitudes"),
    ],
)  # fmt: skip
def test_what_cannot_be_masked_is_refused_when_the_recipe_is_read(teacher, message):
    plain = {"student": {"path": "s"}, "method": "kd", "data": {"train": "d"}, "train": {"output": "o"}}
    with pytest.raises(RecipeError, match=f"mine.yaml: teacher: {message}"):
        build_recipe(plain | {"teacher": {"path": "t"} | teacher}, "mine.yaml")


def test_weights_that_are_spread_over_processes_are_refused(folder, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(
        ValueError, match=r"teacher\.mask is 0\.5, and the smallest weights of a matrix cannot be found"
    ):
        check_launch(masked(folder))
