"""Results that were saved are loaded as they were, and files that hold something else are named with what is wrong."""

import dataclasses
import json
from pathlib import Path

import pytest
from run_folders import write_results

from switchkd.results import BenchmarkResults, Results, StudyResults
from switchkd.results.study_results import CellRecord
from switchkd.results.training_log import read_training_log

PUBLISHED = sorted((Path(__file__).parents[2] / "benchmarks" / "results").glob("study-*.json"))


def test_results_with_and_without_their_predictions(tmp_path):
    write_results(tmp_path / "a.json", "110100")
    loaded = Results.load(tmp_path / "a.json")
    assert [answer.right for answer in loaded.predictions] == [True, True, False, True, False, False]
    assert loaded.kinds["colour"].right == 2
    loaded.save(tmp_path / "b.json")
    assert Results.load(tmp_path / "b.json") == loaded
    (tmp_path / "a.predictions.jsonl").unlink()
    assert Results.load(tmp_path / "a.json").predictions == ()


def test_an_answer_may_hold_every_character_that_ends_a_line(tmp_path):
    write_results(tmp_path / "a.json", "111111")
    results = Results.load(tmp_path / "a.json")
    answer = "".join(f"{end}x" for end in "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")
    told = dataclasses.replace(results.predictions[0], got=answer)
    changed = dataclasses.replace(results, predictions=(told, *results.predictions[1:]))
    changed.save(tmp_path / "b.json")
    assert Results.load(tmp_path / "b.json") == changed


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_studies_that_were_published_are_read_whole(path):
    study, tree = StudyResults.load(path), json.loads(path.read_text())
    assert json.loads(study.to_json()) == tree


def test_a_cells_record(tmp_path):
    record = CellRecord("A", 0, None, 0, 1.5, 2.5, 3, False, "cpu", {"torch": "2"}, {"method": {"name": "sft"}})
    record.save(tmp_path / "0.json")
    assert CellRecord.load(tmp_path / "0.json") == record


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"questions": "six"}, r"a\.json: holds no results of an evaluation: questions must be int, not 'six'"),
        ({"questions": True}, "questions must be int, not True"),
        ({"kinds": {"count": {"questions": 1}}}, r"kinds\.count: .*: accuracy_percent, right is missing"),
        ({"versions": ["torch"]}, "versions must be dict"),
        ({"mean_over_kinds_percent": "x"}, "mean_over_kinds_percent must be float, not 'x'"),
    ],
)
def test_a_field_of_another_type_is_named(tmp_path, change, message):
    write_results(tmp_path / "a.json", "110100")
    tree = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps(tree | change | {"a field of a later version": 1}))
    with pytest.raises(ValueError, match=message):
        Results.load(tmp_path / "a.json")


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xff")
    for kind in (Results, BenchmarkResults, StudyResults, CellRecord):
        with pytest.raises(ValueError, match=r"a\.json: cannot be read as"):
            kind.load(tmp_path / "a.json")
    with pytest.raises(ValueError, match=r"none\.jsonl: cannot be read as metrics"):
        read_training_log(tmp_path / "none.jsonl")
