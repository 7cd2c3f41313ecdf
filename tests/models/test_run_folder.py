"""The folder of a run is accepted wherever its student is meant."""

import json
import shutil

import pytest
from run_files import write_data, write_model

from switchkd.cli import main
from switchkd.evaluate import evaluate_model
from switchkd.models import load_pathway
from switchkd.models.opening import load_config, load_processor
from switchkd.models.revision import at_revision
from switchkd.models.run_folder import model_folder
from switchkd.report.gather import gather


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "mine"
    write_model(folder / "student", seed=2, depth=3)
    (folder / "recipe.yaml").write_text("method: {name: sft}\n")
    write_data(folder.parent / "test.json", 1)
    return folder


OPENED = {
    "weights": lambda run: load_pathway(run).model.name_or_path,
    "config": lambda run: load_config(run).name_or_path,
    "a model of a recipe": lambda run: at_revision(str(run), None),
}


@pytest.mark.parametrize("what", OPENED)
def test_what_opens_models_opens_the_student(run, what):
    assert OPENED[what](run) == str(run / "student")


def test_the_processor_is_the_students(run):
    assert load_processor(run).chat_template == load_processor(run / "student").chat_template


COMMANDS = {
    "evaluate": lambda run: ["evaluate", run, run.parent / "test.json", "--max-new-tokens", "2"],
    "chat": lambda run: ["chat", run, "--question", "What?", "--max-new-tokens", "1"],
    "chat by a name": lambda run: ["chat", f"mine={run}", "--question", "What?", "--max-new-tokens", "1"],
    "doctor": lambda run: ["doctor", "--student", run, "--teacher", run],
    "init": lambda run: ["init", "cut", "--from-teacher", run, "--language-layers", "2"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_take_a_run(run, command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([str(argument) for argument in COMMANDS[command](run)]) == 0, capsys.readouterr().err


def test_results_keep_the_name_that_was_given(run, tmp_path):
    evaluate_model(run, run.parent / "test.json", max_new_tokens=2, output=tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["model"] == str(run)


def test_a_report_takes_the_student_of_a_run_for_the_run(run):
    (model,) = gather([run / "student"]).models
    assert model.name == "mine"


def test_a_model_with_a_recipe_in_its_folder_is_itself(run, tmp_path):
    shutil.copytree(run / "student", tmp_path / "model")
    shutil.copy(run / "recipe.yaml", tmp_path / "model")
    for name in (str(tmp_path / "model"), str(run / "student"), "owner/name", "nowhere"):
        assert model_folder(name) == name


def test_a_run_without_a_student_says_how_to_get_one(tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text("")
    (tmp_path / "1-train" / "checkpoint-4").mkdir(parents=True)
    for command in (["chat", str(tmp_path)], ["evaluate", str(tmp_path), str(tmp_path)]):
        assert main(command) == 1
        told = capsys.readouterr().err
        assert f"is a run that has no student yet: finish it, switchkd train {tmp_path}/recipe.yaml" in told
        assert "1-train/checkpoint-4" in told
