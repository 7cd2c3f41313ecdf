"""Going on from the finished student of another run."""

import json
from dataclasses import replace

import pytest
import torch
from cases import open_tiny
from run_files import write_data, write_model
from safetensors.torch import load_file

from switchkd.cli import main
from switchkd.methods import SFT, AlignKD
from switchkd.recipe.schema import load_recipe
from switchkd.train import checkpoint
from switchkd.train.continued import Continued, continued
from switchkd.train.stage import _learned


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run of two steps of `align_kd`, whose best checkpoint is its first."""
    folder = tmp_path_factory.mktemp("first")
    write_model(folder / "teacher", seed=1, hidden=40, depth=3)
    write_model(folder / "student", seed=2)
    write_data(folder / "data" / "train.json", 6)
    write_data(folder / "data" / "held.json", 2)
    (folder / "recipe.yaml").write_text(
        f"""
teacher: {{path: {folder}/teacher}}
student: {{path: {folder}/student}}
method: align_kd
data: {{train: {folder}/data/train.json, validation: {folder}/data/held.json, max_length: 256}}
train: {{output: {folder}/run, max_steps: 2, per_device_train_batch_size: 2, learning_rate: 1.0e-2, logging_steps: 1, eval_steps: 1,
  eval_questions: 2, early_stopping: 5, warmup_ratio: 0.0}}
"""
    )
    assert main(["train", str(folder / "recipe.yaml")]) == 0
    return folder


@pytest.mark.long
def test_a_command_measures_held_out_rows_and_keeps_the_best(first):
    stage = first / "run" / "1-train"
    lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    measured = [line for line in lines if "eval_loss" in line]
    assert [line["step"] for line in measured] == [1, 2]
    for line in measured:
        parts = ("ce", "soft", "attention", "projected", "focus")
        assert line["eval_loss"] == pytest.approx(sum(line[f"eval_{part}"] for part in parts), rel=1e-5)
        assert line["eval_exact_match"] in (0, 50, 100)
    best = min(measured, key=lambda line: line["eval_loss"])["step"]
    assert (stage / "best").resolve().name == f"checkpoint-{best}"
    assert list((stage / "tensorboard").glob("**/events*"))
    assert {path.name for path in stage.iterdir()} >= {"rows.json", "validation-rows.json"}


@pytest.mark.long
def test_student_and_maps_go_on_and_the_card_says_so(first):
    flags = ["--train.output", str(first / "second"), "--train.max-steps", "1", "--train.learning-rate", "1e-12"]
    assert main(["train", str(first / "recipe.yaml"), "--from", str(first / "run"), *flags]) == 0
    recipe = load_recipe(first / "second" / "recipe.yaml")
    assert (recipe.student.path, recipe.student.continue_run) == (str(first / "run"), True)
    ends = (checkpoint.latest(first / run / "1-train") for run in ("run", "second"))
    one, two = ({n: load_file(end / f"{n}.safetensors") for n in ("learned", "model")} for end in ends)
    for name in one:
        assert all(torch.allclose(one[name][key], two[name][key], rtol=0, atol=1e-9) for key in one[name]), name
    card = (first / "second" / "student" / "README.md").read_text()
    assert (
        f"| goes on from the run | `{first}/run` (align_kd, 2 steps of its last stage), with its learned maps |" in card
    )
    assert "goes on from the run" not in (first / "run" / "student" / "README.md").read_text()
    log = (first / "second" / "train.log").read_text()
    assert f"the learned maps go on from {first}/run/1-train/checkpoint-2/learned.safetensors" in log


def test_maps_of_other_sizes_are_an_error_and_of_another_method_are_left(first, tmp_path, caplog):
    caplog.set_level("INFO")
    before = continued(replaced(first))
    opened = open_tiny(tmp_path, method=AlignKD())  # other widths
    run = replace(opened.run, continued=before)
    with pytest.raises(ValueError, match=r"learned\.safetensors holds .* of another teacher or method"):
        _learned(run, opened.stage, opened.pair.teacher, None)
    assert _learned(run, replace(opened.stage, method=SFT()), opened.pair.teacher, None) is None
    assert "the learned maps of" in caplog.text
    assert "cannot go on: this pair has none" in caplog.text
    Continued(first / "run", ("sft",), None).take_over("learned", torch.nn.Linear(2, 2))
    assert "left none" in caplog.text


def replaced(first, **student):
    recipe = load_recipe(first / "recipe.yaml")
    return replace(recipe, student=replace(recipe.student, path=str(first / "run"), continue_run=True, **student))


@pytest.mark.parametrize(("path", "lacking"), [("teacher", "recipe.yaml"), ("data", "recipe.yaml")])
def test_what_is_no_finished_run_is_an_error(first, path, lacking):
    recipe = replaced(first)
    with pytest.raises(ValueError, match=f"{path} is no finished run: it has no {lacking}"):
        continued(replace(recipe, student=replace(recipe.student, path=str(first / path))))


def test_a_bridge_goes_on_and_is_not_fitted_again(tmp_path):
    from safetensors.torch import save_file

    from switchkd.pairing.bridge import Bridge

    torch.manual_seed(0)
    old, new = Bridge(6, 8), Bridge(6, 8)
    save_file(old.state_dict(), tmp_path / "bridge.safetensors")
    Continued(tmp_path, ("switch_kd",), tmp_path).take_over("bridge", new)
    assert new.fitted
    assert torch.equal(old.translate.weight, new.translate.weight)
