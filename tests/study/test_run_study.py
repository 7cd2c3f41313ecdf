"""A small study from start to end: what it leaves, and that what is finished is never run again."""

import fcntl
import json
import sys
from dataclasses import replace

import pytest
import yaml
from run_files import write_run

from switchkd import cli
from switchkd.study import load_study
from switchkd.study.plan import cells
from switchkd.study.run_study import run_study

driver = sys.modules["switchkd.study.run_study"]  # as an attribute of the package it is the function of that name


pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    recipe = write_run(folder)
    study = {
        "recipe": str(recipe),
        "output": str(folder / "out"),
        "seeds": [0],
        "rows": [8],
        "baseline": "SFT",
        "arms": {"SFT": {"method": {"name": "sft"}}, "Switch-KD": {"method": {"name": "switch_kd"}}},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    steps = ["--train.max_steps", "2", "--train.save_steps", "2"]
    return load_study(folder / "study.yaml"), steps, run_study(load_study(folder / "study.yaml"), steps)


def test_the_table_and_the_results(finished):
    study, _, rows = finished
    assert [(row.arm, row.rows, row.seeds) for row in rows] == [("SFT", 8, 1), ("Switch-KD", 8, 1)]
    written = json.loads((cells(study)[0].folder.parents[3] / "study.json").read_text())
    assert [cell["folder"] for cell in written["cells"]] == ["cells/sft/8/0", "cells/switch-kd/8/0"]
    for cell, row in zip(written["cells"], rows, strict=True):
        assert cell["score"] == row.mean == pytest.approx(sum(cell["kinds"].values()) / len(cell["kinds"]))
        assert cell["cpu_seconds"] > 0
        assert cell["peak_rss_bytes"] > 2**20
        assert not cell["resumed"]
    assert rows[1].difference == pytest.approx(rows[1].mean - rows[0].mean)
    (teacher,) = written["teachers"]
    assert 0 <= teacher["score"] <= 100
    assert written["planned"] == 2
    assert written["baselines"] == {"SFT": "SFT", "Switch-KD": "SFT"}
    table = (cells(study)[0].folder.parents[3] / "table.md").read_text()
    assert table.startswith("| arm | rows | seeds |")
    assert "\n| kind | teacher | SFT, 8 rows | Switch-KD, 8 rows |\n" in table
    assert (cells(study)[0].folder.parents[3] / "figure.svg").read_text().startswith("<svg")


def test_the_weights_are_gone_and_the_answers_are_not(finished):
    study, *_ = finished
    for cell in cells(study):
        left = {path.name for path in cell.folder.rglob("*") if path.is_file()}
        assert not [name for name in left if name.endswith(".safetensors")]
        assert left >= {"recipe.yaml", "metrics.jsonl", "results.json", "results.predictions.jsonl"}


def test_what_is_finished_is_not_run_again(finished, monkeypatch):
    study, steps, rows = finished

    def no_jobs(jobs, **_):
        assert list(jobs) == []
        return iter(())

    monkeypatch.setattr(driver, "run_jobs", no_jobs)
    assert run_study(study, steps) == rows


def test_a_finished_cell_of_another_recipe_is_not_taken_for_this_one(finished):
    study, *_ = finished
    with pytest.raises(ValueError, match=r"the cell SFT, 8 rows, seed 0 was finished with another recipe"):
        run_study(study, ["--train.max_steps", "3"])


def test_studies_can_share_cells(finished, tmp_path, monkeypatch):
    study, steps, rows = finished
    alone = {"SFT": study.arms["SFT"]}
    other = replace(study, arms=alone, output=str(tmp_path / "other"), shared_with=study.output)
    monkeypatch.setattr(driver, "run_jobs", lambda jobs, **_: iter(jobs))  # there is none
    assert run_study(other, steps) == rows[:1]
    (cell,) = json.loads((tmp_path / "other" / "study.json").read_text())["cells"]
    assert (tmp_path / "other" / cell["folder"] / "results.json").exists()


def test_a_study_in_use_is_left_alone(finished):
    study, steps, _ = finished
    with open(cells(study)[0].folder.parents[3] / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="is in use: a study runs there"):
            run_study(study, steps)


def test_questions_that_are_missing_are_seen_before_any_cell_is_trained(finished, monkeypatch):
    study, steps, _ = finished
    monkeypatch.setattr(driver, "run_jobs", None)
    with pytest.raises(ValueError, match=r"evaluate.data of the cell SFT, 8 rows, seed 1: nowhere.json: no such file"):
        run_study(replace(study, seeds=(1,)), [*steps, "--evaluate.data", "nowhere.json"])


def test_a_failing_cell_is_named_and_the_others_count(finished, monkeypatch):
    study, steps, _ = finished
    wider = replace(study, arms={**study.arms, "broken": {"data": {"train": "nowhere.json"}}})
    with pytest.raises(RuntimeError, match=r"1 of 1 jobs failed; .*broken, 8 rows, seed 0: exit code 1, .*log"):
        run_study(wider, steps)
    written = json.loads((cells(study)[0].folder.parents[3] / "study.json").read_text())
    assert [cell["arm"] for cell in written["cells"]] == ["SFT", "Switch-KD"]
    log = cells(wider)[2].folder.with_name("0.log").read_text()
    assert "nowhere.json" in log


def test_the_command_lists_and_runs(finished, tmp_path, capsys):
    study, steps, _ = finished
    file = tmp_path / "again.yaml"
    file.write_text(
        yaml.safe_dump(
            {name: getattr(study, name) for name in ("recipe", "output", "arms", "baseline")}
            | {"seeds": [0], "rows": [8]}
        )
    )
    assert cli.main(["study", str(file), "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == ["SFT, 8 rows, seed 0", "Switch-KD, 8 rows, seed 0"]
    assert cli.main(["study", str(file), *steps]) == 0
    assert "Switch-KD" in capsys.readouterr().out
