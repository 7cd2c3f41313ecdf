"""Which parameters learn, and how fast."""

import re

import pytest
import torch
from run_files import write_run
from safetensors.torch import load_file
from steps import make_trainer, read_metrics
from tiny_families import BUILDS, tiny
from tiny_models import tiny_llava

from switchkd import distill
from switchkd.models import Pathway
from switchkd.recipe.schema import load_recipe
from switchkd.train.parts import freeze


def learning(student):
    return {name for name, parameter in student.model.named_parameters() if parameter.requires_grad}


def student_of(parts=("vision", "projector", "language")):
    student = Pathway(tiny_llava())
    student.train_only(parts)
    return student


def test_parts_are_frozen_by_name():
    student = student_of()
    freeze(student, ["projector", "vision"])
    assert {name.split(".")[1] for name in learning(student)} == {"language_model", "weight"}  # lm_head.weight


def test_modules_and_parameters_are_frozen_by_dotted_names_and_patterns():
    student, everything = student_of(), learning(student_of())
    freeze(student, ["model.language_model.layers.0", "lm_head", "*.k_proj.bias"])
    frozen = everything - learning(student)
    assert frozen == {
        name
        for name in everything
        if name.startswith("model.language_model.layers.0.") or name == "lm_head.weight" or name.endswith("k_proj.bias")
    }
    assert len(frozen) > 13


@pytest.mark.parametrize("name", ["lm_head.weight", "lm_head", "model.language_model.embed_tokens.weight"])
def test_tied_weights_are_frozen_by_each_of_their_names(name):
    student = Pathway(tiny_llava(tied=True))
    student.train_only(("vision", "projector", "language"))
    everything = learning(student)
    freeze(student, [name])
    assert everything - learning(student) == {"model.language_model.embed_tokens.weight"}
    assert not student.head.weight.requires_grad


@pytest.mark.parametrize("name", ["vison", "model.language_model.layers.7", "layers.0", "*.gate"])
def test_a_name_of_nothing_is_refused(name):
    with pytest.raises(
        ValueError,
        match=rf"nothing in the model is called '{name.replace('*', '.')}'.*parts vision, projector, language",
    ):
        freeze(student_of(), [name])


def test_what_a_stage_does_not_train_stays_frozen():
    student = student_of(("projector",))
    freeze(student, ["vision"])
    assert {name.split(".")[1] for name in learning(student)} == {"multi_modal_projector"}


@pytest.mark.parametrize("name", BUILDS)
def test_the_parts_of_every_family_can_be_frozen(name):
    student = Pathway(tiny(name))
    for part in student.family.parts:
        student.train_only(("vision", "projector", "language"))
        freeze(student, [part])
        assert not any(parameter.requires_grad for parameter in student.part_parameters(part).values())
        assert learning(student)


def moved_after_a_step(tmp_path, **settings):
    """Part → how far each of its parameters went in one step of SGD."""
    trainer = make_trainer(tmp_path, steps=1, lr_scheduler_type="constant", **settings)
    student = trainer.pair.student
    before = {name: parameter.detach().clone() for name, parameter in student.model.named_parameters()}
    yield trainer
    trainer.train()
    yield {
        part: {name: parameter.detach() - before[name] for name, parameter in student.part_parameters(part).items()}
        for part in student.family.parts
    }


def test_each_part_moves_at_its_own_rate(tmp_path):
    _, plain = moved_after_a_step(tmp_path / "plain", learning_rate=1e-2, weight_decay=0.1)
    running = moved_after_a_step(tmp_path / "own", learning_rate=1e-2, weight_decay=0.1)
    next(running).rates = {"vision": 1e-3, "projector": 5e-2}
    own = next(running)
    for part, factor in {"vision": 0.1, "projector": 5.0, "language": 1.0}.items():
        assert any(step.abs().max() > 1e-5 for step in plain[part].values())
        for name, step in plain[part].items():
            torch.testing.assert_close(own[part][name], factor * step, rtol=1e-9, atol=1e-14, msg=name)


def test_a_resumed_run_keeps_the_rates(tmp_path):
    settings = {
        "optim": "adamw_torch",
        "save_strategy": "steps",
        "save_steps": 1,
        "steps": 2,
        "lr_scheduler_type": "linear",
    }
    groups = []
    for resume in (None, str(tmp_path / "checkpoint-1")):
        trainer = make_trainer(tmp_path, **settings)
        trainer.rates = {"vision": 1e-3, "language": 2e-2}
        trainer.train(resume_from_checkpoint=resume)
        groups.append(
            [
                (len(group["params"]), group["initial_lr"], group["weight_decay"])
                for group in trainer.optimizer.param_groups
            ]
        )
    assert groups[0] == groups[1]
    for line in read_metrics(tmp_path):
        assert line["learning_rate_vision"] == pytest.approx(line["learning_rate"] / 10)
        assert line["learning_rate_language"] == pytest.approx(line["learning_rate"] * 2)
    assert [line["learning_rate"] for line in read_metrics(tmp_path)][-2:] == [1e-2, 5e-3]
    assert {rate for _, rate, _ in groups[0]} == {1e-3, 1e-2, 2e-2}


@pytest.mark.long
def test_a_recipe_freezes_and_slows_parts(tmp_path):
    write_run(tmp_path)
    flags = [
        "--student.freeze",
        "model.language_model.layers.0",
        "*embeddings*",
        "--train.learning_rates.projector",
        "1e-12",
    ]
    student = distill(load_recipe(tmp_path / "recipe.yaml", [*flags, "--train.max_steps", "2"])).folder
    before, after = (load_file(folder / "model.safetensors") for folder in (tmp_path / "student", student))
    for name, tensor in before.items():
        moved = (after[name] - tensor).abs().max()
        if "language_model.model.layers.0." in name or ".embeddings." in name:
            assert moved == 0, name
        elif "multi_modal_projector" in name:
            assert moved < 1e-9, name
        elif re.search(r"vision_tower.encoder.layers.[01].mlp.*weight|language_model.model.layers.1.mlp", name):
            assert moved > 1e-6, name  # the vision encoder learns by default, as the method switches
    flags = ["--student.freeze", "model.language_modle", "--train.output", str(tmp_path / "other")]
    with pytest.raises(ValueError, match=r"student.freeze: nothing in the model is called 'model.language_modle'"):
        distill(load_recipe(tmp_path / "recipe.yaml", flags))
