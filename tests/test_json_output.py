"""With --json the output stream holds JSON and nothing else; messages are on stderr."""

import json

import pytest
from run_files import write_data, write_model

from switchkd.cli import main
from switchkd.recipe.shipped_files import shipped


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("switchkd.train.memory.forecast", lambda recipe, stage: "about nothing")  # takes seconds
    write_data(tmp_path / "d.json", 2)
    return tmp_path


def printed(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_of_a_dry_run(place, capsys):
    found = printed(capsys, "train", shipped()["tiny"], "--dry-run", "--json", "--train.seed", "7")
    assert found["recipe"]["train"]["seed"] == 7
    assert [(stage["name"], stage["memory"]) for stage in found["stages"]] == [("train", "about nothing")]
    assert main(["train", str(shipped()["tiny"]), "--json"]) == 2
    assert "--json is for --dry-run" in capsys.readouterr().err


def test_of_a_look_at_data(place, capsys):
    found = printed(capsys, "data", "check", "d.json", "--json")
    assert (found["rows"], found["bad"], found["answers"], found["files"]) == (2, 0, 4, 2)
    assert found["sources"]["d.json"]["read"]["conversations"] == 2


def test_of_an_evaluation(place, capsys):
    write_model(place / "model", seed=2)
    found = printed(capsys, "evaluate", "model", "d.json", "--json", "--max-new-tokens", "1", "--output", "r.json")
    assert found == json.loads((place / "r.json").read_text())
