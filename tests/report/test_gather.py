"""What is read from folders, and what is refused."""

import json
from dataclasses import replace

import pytest
from run_folders import LOSSES, write_benchmarks, write_fake_run, write_results, write_study

from switchkd.report.choose import changed, for_attention, to_picture, varied
from switchkd.report.gather import gather
from switchkd.results import Results

EMPTY = {
    "name": "", "baseline": "a", "baselines": {}, "arms": [], "seeds": [0], "rows": [], "planned": 0, "cells": [], "teachers": [],
    "table": [],
}  # fmt: skip


def test_a_folder_of_runs_is_its_runs_and_what_was_only_evaluated(tmp_path):
    write_fake_run(tmp_path / "sft", "100000")
    write_fake_run(tmp_path / "switch-kd", "110000", method="switch_kd")
    write_results(tmp_path / "teacher.results.json", "111111", model="teacher")
    evidence = gather([tmp_path])
    assert [model.name for model in evidence.models] == ["teacher", "sft", "switch-kd"]
    assert evidence.baseline == "sft"
    teacher, sft, switch = evidence.models
    assert teacher.recipe is None
    assert switch.method == "switch_kd"
    assert sft.curves["ce"] == [(line["step"], line["ce"]) for line in LOSSES]
    assert sft.cost == {"steps": 3, "train seconds": 6, "evaluation seconds": 3.5, "questions": 6}
    assert changed(switch, sft) == (["colour-1"], [])
    assert changed(sft, switch) == ([], ["colour-1"])
    assert evidence == gather([tmp_path / "teacher.results.json", tmp_path / "sft", tmp_path / "switch-kd"])


def test_stages_follow_one_another(tmp_path):
    run = write_fake_run(tmp_path / "run", None)
    second = run / "2-tune"
    second.mkdir()
    (second / "metrics.jsonl").write_text('{"step": 5, "loss": 1.0}\n{"step": 7, "train_runtime": 2.0}\n')
    (run / "10-last").mkdir()
    (run / "10-last" / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    (model,) = gather([run]).models
    assert model.stages == (("1-train", 3), ("2-tune", 10), ("10-last", 11))
    assert model.curves["loss"][-2:] == [(8, 1.0), (11, 0.5)]
    assert model.cost == {"steps": 11, "train seconds": 8}
    assert "evaluate" in model.missing["results"]


def test_folders_that_are_no_stages_are_left_alone(tmp_path):
    run = write_fake_run(tmp_path / "run", None)
    for name in ("my-notes", "1a-train", "-1"):
        (run / name).mkdir()
        (run / name / "metrics.jsonl").write_text('{"step": 9, "loss": 9.0}\n')
    (model,) = gather([run]).models
    assert model.stages == (("1-train", 3),)
    assert len(model.curves["loss"]) == len(LOSSES)


def test_a_single_model_has_no_baseline_and_another_can_be_named(tmp_path):
    runs = [write_fake_run(tmp_path / name, "100000", method="kd") for name in ("a", "b")]
    assert gather(runs[:1]).baseline is None
    assert gather(runs).baseline == "a"
    assert gather(runs, "b").baseline == "b"
    with pytest.raises(ValueError, match="there is no c to be the baseline; there are a, b"):
        gather(runs, "c")


def test_folders_of_one_name_are_told_apart(tmp_path):
    runs = [write_fake_run(tmp_path / top / "run", None) for top in ("one", "two")]
    assert [model.name for model in gather(runs).models] == ["one/run", "two/run"]
    with pytest.raises(ValueError, match="given twice"):
        gather([runs[0], runs[0]])


def test_the_public_benchmarks_are_read(tmp_path):
    run = write_fake_run(tmp_path / "run", None)
    write_benchmarks(run / "benchmarks.json", {"MME": 61.5}, 60.0)
    assert gather([run]).models[0].benchmarks == {"average of ten": 60.0, "MME": 61.5}
    write_benchmarks(run / "benchmarks.json", {"MME": 61.5}, None)
    assert gather([run]).models[0].benchmarks == {"MME": 61.5}
    (run / "benchmarks.json").write_text("{}")
    with pytest.raises(ValueError, match=r"benchmarks\.json: holds no results of the benchmarks"):
        gather([run])


def test_a_study_is_its_table_and_the_runs_of_one_seed(tmp_path):
    evidence = gather([write_study(tmp_path, {"SFT": [40.0, 50.0], "Switch-KD": [45.0, 57.0]})])
    study = evidence.study
    assert study is not None
    assert (study.baseline, study.planned, study.teacher_scores) == ("SFT", 5, {"teacher": (100.0,)})
    assert evidence.shown == (None, 0)
    assert [line.difference for line in study.table] == [None, 6.0]
    assert [model.name for model in evidence.models] == ["teacher", "SFT", "Switch-KD"]
    logged = {"steps": 3, "train seconds": 6, "evaluation seconds": 3.5, "questions": 6}
    measured = {"run seconds": 10, "cpu seconds": 9, "peak memory MiB": 300}
    assert evidence.models[1].cost == logged | measured
    tree = json.loads((tmp_path / "study.json").read_text())
    tree["cells"] = [cell | {"resumed": True} for cell in tree["cells"]]
    (tmp_path / "study.json").write_text(json.dumps(tree))
    cost = gather([tmp_path]).models[1].cost
    assert cost == {
        "steps": 3,
        "evaluation seconds": 3.5,
        "questions": 6,
        "peak memory MiB": 300,
    }  # no part's time as a whole's
    with pytest.raises(ValueError, match="give it alone"):
        gather([tmp_path, tmp_path])
    with pytest.raises(ValueError, match="leave --baseline out"):
        gather([tmp_path], "Switch-KD")


def test_sizes_of_a_study_begin_with_the_largest(tmp_path):
    study = json.loads((write_study(tmp_path, {"SFT": [40.0], "KD": [45.0]}) / "study.json").read_text())
    less = [cell | {"rows": rows, "folder": "gone"} for rows in (200, 1000) for cell in study["cells"]]
    (tmp_path / "study.json").write_text(json.dumps(study | {"cells": [*less, *study["cells"]]}))
    found = gather([tmp_path]).study
    assert found is not None
    assert found.sizes == [None, 1000, 200]
    (tmp_path / "study.json").write_text(json.dumps(study | {"cells": less}))
    evidence = gather([tmp_path])
    assert evidence.shown == (1000, 0)
    assert [model.name for model in evidence.models] == ["teacher"]  # the runs' folders are gone


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("recipe.yaml", "[", r"recipe\.yaml: cannot be read as a recipe"),
        ("recipe.yaml", "3", "it holds no fields"),
        ("results.json", "{}", "holds no results"),
        ("results.predictions.jsonl", '{"id": 1}', r"predictions\.jsonl, line 1: holds no prediction: expected, got, kind"),
        ("1-train/metrics.jsonl", '{"step": 1}\n[1]', r"metrics\.jsonl, line 2: no metrics: expected an object with `step`"),
        ("study.json", "{", r"study\.json: cannot be read as a study"),
        ("study.json", "{}", r"study\.json: holds no study that this version can read: arms, baseline"),
        ("study.json", json.dumps(EMPTY | {"arms": ["a"]}), "no run of this study"),
        ("study.json", json.dumps(EMPTY | {"cells": [{"arm": "a"}]}), r"cells\[0\].*: cpu_seconds, folder, .* is missing"),
        ("study.json", json.dumps(EMPTY), "a is not among its arms"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read_are_named(tmp_path, file, text, message):
    write_fake_run(tmp_path / "run", "100000")
    (tmp_path / "run" / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        gather([tmp_path / "run"])


def test_paths_without_runs_and_other_questions_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no such file or folder"):
        gather([tmp_path / "none"])
    with pytest.raises(ValueError, match="holds no run"):
        gather([tmp_path])
    write_fake_run(tmp_path / "a", "100000")
    write_fake_run(tmp_path / "b", "100000")
    file = tmp_path / "b" / "results.json"
    file.write_text(file.read_text().replace("f" * 64, "e" * 64))
    with pytest.raises(ValueError, match="b answers other questions than a"):
        gather([tmp_path / "a", tmp_path / "b"])


def test_other_metrics_are_refused(tmp_path):
    for name, metric in (("a", "exact"), ("b", "anls")):
        write_fake_run(tmp_path / name, "100000")
        file = tmp_path / name / "results.json"
        results = Results.load(file)
        predictions = tuple(replace(one, metric=metric, score=float(one.right)) for one in results.predictions)
        replace(results, metrics={metric: 6}, predictions=predictions).save(file)
    message = (
        "b is scored by other metrics than a: anls and exact; evaluate both with the same --metric, or make two reports"
    )
    with pytest.raises(ValueError, match=message):
        gather([tmp_path])
    (only,) = gather([tmp_path / "b"]).models
    assert only.results is not None
    assert only.results.heading == "Score in percent, by the metric anls"


def test_an_unfinished_last_line_is_left_out_and_said(tmp_path):
    run = write_fake_run(tmp_path / "run", None)
    log = run / "1-train" / "metrics.jsonl"
    log.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    (model,) = gather([run]).models
    assert model.curves == {"loss": [(1, 1.0)]}
    assert f"the last line of {log} was not written to its end" in model.missing["curves"]
    for text in ('{"step": 1, "lo\n{"step": 2, "loss": 1.0}\n', '{"step": 1, "loss": 1.0}\n{"step": 2, "lo\n'):
        log.write_text(text)
        with pytest.raises(ValueError, match="cannot be read as metrics"):
            gather([run])


def test_shown_questions_are_of_all_kinds(tmp_path):
    write_fake_run(tmp_path / "sft", "000011")
    write_fake_run(tmp_path / "switch-kd", "111101", method="switch_kd")
    evidence = gather([tmp_path])
    sft, switch = evidence.models
    won, lost = changed(switch, sft)
    assert (won, lost) == (["colour-0", "colour-1", "count-0", "count-1"], ["shape-0"])
    assert {name.split("-")[0] for name in varied(won, switch.answers, 2)} == {"colour", "count"}
    assert for_attention(evidence, 3) == [*varied(won, switch.answers, 2), "shape-0"]
    assert set(to_picture(evidence)) == {*won, *lost}
