"""Weights that learn are float32, whatever their file's precision."""

import json

import pytest
import torch
from run_files import write_run
from safetensors.torch import load_file
from tiny_families import BUILDS, inputs_for, tiny
from tiny_models import tiny_llava
from transformers import AutoModelForImageTextToText

from switchkd import distill
from switchkd.models import Pathway, load_pathway
from switchkd.recipe.schema import load_recipe
from switchkd.train import lora
from switchkd.train.memory import estimate
from switchkd.train.precision import widen_learning
from switchkd.train.stage import open_run, open_stage


def dtypes(student):
    return {
        part: {(p.requires_grad, str(p.dtype).removeprefix("torch.")) for p in student.part_parameters(part).values()}
        for part in student.family.parts
    }


def test_parts_that_learn_are_widened_and_frozen_ones_are_not():
    student = Pathway(tiny_llava().to(torch.bfloat16))
    student.train_only(("projector",))
    before = {name: p.clone() for name, p in student.model.named_parameters()}
    assert widen_learning(student) == ["vision", "projector"]
    assert dtypes(student) == {
        "vision": {(False, "float32")},
        "projector": {(True, "float32")},
        "language": {(False, "bfloat16")},
    }
    assert all(torch.equal(p, before[name].to(p.dtype)) for name, p in student.model.named_parameters())
    assert widen_learning(student) == []


def test_of_a_part_with_adapters_the_adapters_are_widened():
    student = Pathway(tiny_llava().to(torch.float16))
    lora.add(student, r=2, alpha=4, dropout=0.0)
    student.train_only(("language",))
    assert widen_learning(student) == ["language"]
    assert dtypes(student)["language"] == {(True, "float32"), (False, "float16")}


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("learns", [("vision", "projector"), ("language",)], ids=["pictures", "text"])
@pytest.mark.parametrize("bf16", [False, True], ids=["as they are", "autocast"])
def test_parts_of_two_precisions_meet_in_every_family(name, learns, bf16):
    """As in a run with adapters, or in a stage that trains some parts, of a student whose file is bfloat16."""
    student, inputs = Pathway(tiny(name).to(torch.bfloat16)), inputs_for(name)
    student.train_only(learns)
    widen_learning(student)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        hidden = student.say(student.see(inputs), inputs)
    hidden.float().sum().backward()
    found = {p.grad.dtype for part in learns for p in student.part_parameters(part).values() if p.grad is not None}
    assert found == {torch.float32}


def test_wider_weights_stay_as_wide():
    student = Pathway(tiny_llava().double())
    student.train_only(("vision", "projector", "language"))
    assert widen_learning(student) == []
    assert {p.dtype for p in student.parameters()} == {torch.float64}


@pytest.fixture
def halved(tmp_path):
    """A recipe whose student's file is bfloat16."""
    file = write_run(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "student")
    model.to(torch.bfloat16).save_pretrained(tmp_path / "student")
    text = file.read_text()
    file.write_text(text[: text.index("evaluate:")])
    return file


@pytest.mark.long
@pytest.mark.parametrize(
    ("dtype", "bf16"),
    [
        ("auto", "false"),
        ("bfloat16", "true"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("auto", "true"), ("bfloat16", "false"))),
    ],
)
def test_half_precision_files_learn_as_float32(halved, dtype, bf16):
    """At a small rate: in bfloat16 most weights would stand still."""
    flags = ["--student.dtype", dtype, "--train.bf16", bf16, "--train.learning_rate", "2e-5", "--train.save_steps", "3"]
    recipe = load_recipe(halved, flags)
    distill(recipe)
    run = open_run(recipe)
    (stage,) = recipe.resolved_stages()
    start = {name: p.float() for name, p in run.student.model.named_parameters()}
    context = open_stage(run, stage, halved.parent / "other")
    from switchkd.train import checkpoint

    checkpoint.load_student(context.pair.student, halved.parent / "run" / "1-train" / "checkpoint-6")
    learned = {name: p for name, p in context.pair.student.model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in learned.values()} == {torch.float32}
    assert_saved_as(halved.parent / "run", torch.bfloat16)
    moved = sum(int((p != start[name]).sum()) for name, p in learned.items())
    assert moved / sum(p.numel() for p in learned.values()) > 0.8


def assert_saved_as(run, dtype):
    """The finished student is the last checkpoint, rounded; its config says so, and its card."""
    last, student = run / "1-train" / "checkpoint-6", run / "student"
    learned, saved = (load_file(folder / "model.safetensors") for folder in (last, student))
    assert learned.keys() == saved.keys()
    assert {tensor.dtype for tensor in saved.values()} == {dtype}
    assert all(torch.equal(learned[name].to(dtype), saved[name]) for name in saved)
    named = str(dtype).removeprefix("torch.")
    assert json.loads((student / "config.json").read_text())["dtype"] == named
    assert f"| precision of the weights | {named} |" in (student / "README.md").read_text()
    assert load_pathway(student).model.dtype == dtype  # its checksums hold


@pytest.mark.long
def test_a_precision_that_the_recipe_names_is_the_students(halved):
    distill(load_recipe(halved, ["--student.dtype", "float32"]))
    run = halved.parent / "run"
    assert_saved_as(run, torch.float32)
    files = [run / "1-train" / "checkpoint-6" / "model.safetensors", run / "student" / "model.safetensors"]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.long
def test_the_estimate_counts_what_is_widened(halved):
    sizes = []
    for parts in (["projector"], ["vision", "projector", "language"]):
        flags = ["--student.dtype", "bfloat16", "--method.name", "kd", "--stages.0.train", *parts]
        recipe = load_recipe(halved, flags)
        (stage,) = recipe.resolved_stages()
        config = AutoModelForImageTextToText.from_pretrained(halved.parent / "student").config
        teacher = AutoModelForImageTextToText.from_pretrained(halved.parent / "teacher").config
        sizes.append(estimate(recipe, stage, config, teacher).weights)
    student = AutoModelForImageTextToText.from_pretrained(halved.parent / "student")
    language = sum(p.numel() for p in Pathway(student).part_parameters("language").values())
    assert sizes[1] - sizes[0] == 2 * language
