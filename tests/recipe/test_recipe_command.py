"""`switchkd recipe`: a recipe to start from, and those that ship."""

import json

import pytest
import yaml
from run_files import write_model

from switchkd.cli import main
from switchkd.recipe.schema import load_recipe
from switchkd.recipe.shipped_files import described, shipped
from switchkd.recipe.starter import PairSeen, starter


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.json").write_text("[]")
    return tmp_path


def test_a_starter_of_two_models_can_be_run_and_says_how_they_read(place, capsys, monkeypatch):
    monkeypatch.setattr("switchkd.train.memory.forecast", lambda recipe, stage: "about nothing")  # takes seconds
    write_model(place / "teacher", seed=1, hidden=40, depth=3)
    write_model(place / "student", seed=2)
    assert main(["recipe", "teacher", "student", "d.json", "-o", "mine.yaml"]) == 0
    recipe = load_recipe("mine.yaml")
    assert (recipe.teacher.path, recipe.student.path, recipe.data.train) == ("teacher", "student", "d.json")
    assert "# Student and teacher read the same pictures and the same tokens." in (place / "mine.yaml").read_text()
    capsys.readouterr()
    assert main(["train", "mine.yaml", "--dry-run"]) == 0
    assert "memory: about" in capsys.readouterr().err


def test_models_that_are_not_here_yet_are_said(place, capsys):
    assert main(["recipe", "owner/big", "owner/small", "d.json"]) == 0
    assert "owner/small and owner/big: not here, and not to be had" in capsys.readouterr().err
    assert "could not be looked at" in (place / "recipe.yaml").read_text()
    assert load_recipe("recipe.yaml").train.output == "runs/small-from-big"


@pytest.mark.parametrize(
    ("seen", "value", "words"),
    [
        (PairSeen((), True, False, True), ("bf16", True), "computes in bfloat16"),
        (PairSeen(("width: bridge",), True, True), ("switch", 1.0), "the switch goes over a bridge here"),
        (PairSeen(("tiles: refused for the switch",), False), ("switch", 0.0), "the switch cannot join these two"),
        (PairSeen(), ("bf16", False), "could not be looked at"),
    ],
)
def test_a_starter_goes_by_what_was_seen_and_comments_every_line(seen, value, words):
    names = ("a b: #1", "yes", "data/*.json")
    text = starter(*names, "1e3", seen)
    tree = yaml.safe_load(text)
    assert (tree["teacher"]["path"], tree["student"]["path"], tree["data"]["train"]) == names
    assert tree["train"]["output"] == "1e3"
    assert words in text
    assert value[1] == {**tree["train"], **tree["method"]}[value[0]]
    assert [line for line in text.splitlines() if line and "# " not in line] == []


def test_nothing_is_written_over(place, capsys):
    (place / "recipe.yaml").write_text("mine")
    assert main(["recipe", "owner/big", "owner/small", "d.json"]) == 1
    assert "is there already, and stays as it is" in capsys.readouterr().err
    assert main(["recipe", "tiny", "-o", "recipe.yaml"]) == 1
    assert (place / "recipe.yaml").read_text() == "mine"


WRONG = {
    "one name less": (["teacher", "student"], 2, "TEACHER STUDENT DATA, or the NAME"),
    "no such name": (["tinyy"], 2, "did you mean `tiny`"),
    "no such data": (["owner/a", "owner/b", "nowhere.json"], 1, "nowhere.json: no such file"),
    "no such folder": (["./nowhere", "owner/b", "d.json"], 1, "./nowhere: no such folder"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_written_is_one_message(place, case, capsys):
    names, code, message = WRONG[case]
    assert main(["recipe", *names]) == code
    assert message in capsys.readouterr().err
    assert [path.name for path in place.iterdir()] == ["d.json"]


def test_what_ships_is_listed_with_a_line_each_and_copied(place, capsys):
    assert main(["recipe", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(shipped())
    assert all(len(line.split(maxsplit=1)) == 2 for line in lines)
    assert main(["recipe", "--list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"name": n, "about": a} for n, a in described().items()]
    for name, file in shipped().items():
        assert main(["recipe", name]) == 0
        assert (place / f"{name}.yaml").read_text() == file.read_text()
    assert "switchkd study study-tiny.yaml --dry-run" in capsys.readouterr().err
    assert main(["recipe", "tiny", "-o", "-"]) == 0
    assert capsys.readouterr().out == shipped()["tiny"].read_text()
