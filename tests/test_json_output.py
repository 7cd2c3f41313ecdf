"""With --json the output stream holds JSON and nothing else; messages are on stderr, and with --quiet nowhere."""

import json

import pytest
from run_files import write_data, write_model

from switchkd.cli import main
from switchkd.commands.verb import print_json
from switchkd.recipe.shipped_files import shipped


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("switchkd.train.memory.forecast", lambda recipe, stage: "about nothing")  # takes seconds
    write_data(tmp_path / "d.json", 2)
    return tmp_path


def printed(capsys, *arguments):
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_of_a_dry_run(place, capsys):
    found = printed(capsys, "train", shipped()["tiny"], "--dry-run", "--train.seed", "7")
    assert found["recipe"]["train"]["seed"] == 7
    assert [(stage["name"], stage["memory"]) for stage in found["stages"]] == [("train", "about nothing")]
    assert main(["train", str(shipped()["tiny"]), "--json"]) == 2
    assert "--json is for --dry-run" in capsys.readouterr().err


def test_of_the_families(capsys):
    found = {one.pop("model_type"): one for one in printed(capsys, "models")}
    assert found["smolvlm"]["class"] == "SmolVLMForConditionalGeneration"
    assert {tuple(one) for one in found.values()} == {("class", "vision_encoders_tested", "language_models_tested")}
    assert "siglip_vision_model" in found["llava"]["vision_encoders_tested"]


def test_of_an_examination(place, capsys, monkeypatch):
    from switchkd.doctor import Finding, Findings

    found = Findings([Finding("warning", "eyes", "“half” closed"), Finding("ok", "steps", "some")])
    monkeypatch.setattr("switchkd.commands.doctor._examine", lambda recipe: found)
    assert printed(capsys, "doctor", shipped()["tiny"]) == found.to_dict()
    assert main(["doctor", str(shipped()["tiny"]), "--quiet"]) == 0
    assert "“half” closed" in capsys.readouterr().err  # the table is the result
    assert main(["doctor", str(shipped()["tiny"]), "--quiet", "--json"]) == 0
    assert capsys.readouterr().err == ""


def test_of_text_that_cannot_be_written_as_it_is(capsys):
    print_json({"read": "“half” \ud83d"})
    assert capsys.readouterr().out == '{\n  "read": "“half” \\ud83d"\n}\n'


def test_of_a_look_at_data(place, capsys):
    found = printed(capsys, "data", "check", "d.json")
    assert (found["rows"], found["bad"], found["answers"], found["files"]) == (2, 0, 4, 2)
    assert found["sources"]["d.json"]["read"]["conversations"] == 2


def test_of_an_evaluation(place, capsys):
    write_model(place / "model", seed=2)
    found = printed(capsys, "evaluate", "model", "d.json", "--max-new-tokens", "1", "--output", "r.json")
    assert found == json.loads((place / "r.json").read_text())


@pytest.mark.parametrize(
    "command",
    [["train", str(shipped()["tiny"]), "--dry-run"], ["data", "check", "d.json"]],
    ids=["dry run", "look at data"],
)
def test_quiet_leaves_the_result_alone(place, capsys, command):
    assert main(command) == 0
    told = capsys.readouterr()
    assert told.err
    assert main([*command, "--quiet"]) == 0
    assert capsys.readouterr() == (told.out, "")
    assert main(command) == 0
    assert capsys.readouterr().err == told.err


def test_quiet_keeps_errors_and_what_is_lost(place, capsys):
    assert main(["data", "check", "nowhere.json", "--quiet"]) == 1
    assert capsys.readouterr().err == "switchkd: nowhere.json: no such file or folder\n"
    rows = json.loads((place / "d.json").read_text())
    (place / "e.json").write_text(json.dumps([*rows, {**rows[0], "image": "no.png"}]))
    assert main(["data", "--quiet", "convert", "e.json", "out.jsonl"]) == 0
    lost, counted = capsys.readouterr().err.splitlines()
    assert lost.startswith("left out: ")
    assert "2 rows in out.jsonl, 1 left out" in counted
    assert main(["data", "convert", "d.json", "whole.jsonl", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
