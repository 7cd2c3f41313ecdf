"""What is written down of finished cells, against the cells' own numbers."""

from dataclasses import replace
from pathlib import Path

import pytest

from switchkd.recipe.schema import recipe_to_dict
from switchkd.results import Prediction, Results, intervals
from switchkd.results.score import score, score_by_kind
from switchkd.results.study_results import CellRecord, StudyResults
from switchkd.study.plan import Cell, Study, cells
from switchkd.study.run_study import _teachers as find_teachers
from switchkd.study.summary import summarise

RECIPE = str(Path(__file__).parents[2] / "recipes" / "tiny.yaml")
ARMS = {"SFT": {"method": {"name": "sft"}}, "Switch-KD": {"method": {"name": "switch_kd"}}}


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 300)


@pytest.fixture
def study(tmp_path):
    return Study(recipe=RECIPE, output=str(tmp_path / "out"), arms=ARMS, baseline="SFT", seeds=(0, 1))


def write_answers(file: Path, points, kinds, *, asked: str = "f", model: str = "m") -> None:
    """Results of one question about each picture."""
    total, of_kinds = score(points), score_by_kind(kinds, points)
    means = [one.accuracy_percent for one in of_kinds.values()]
    file.parent.mkdir(parents=True, exist_ok=True)
    Results(
        model=model,
        data="test.json",
        data_fingerprint=asked * 64,
        rows=total.questions,
        questions=total.questions,
        right=total.right,
        accuracy_percent=total.accuracy_percent,
        kinds=of_kinds,
        mean_over_kinds_percent=sum(means) / len(means) if means else None,
        questions_without_kind=sum(kind is None for kind in kinds),
        truncated=0,
        generation={},
        image_backend="PIL",
        device="cpu",
        dtype="float32",
        versions={},
        seconds=1.0,
        predictions=tuple(
            Prediction(
                f"row-{n}", kind, "?", "yes", "yes", of_it >= 1, False, about=f"picture-{n}", metric="anls", score=of_it
            )
            for n, (of_it, kind) in enumerate(zip(points, kinds, strict=True))
        ),
    ).save(file)


def finish(cell: Cell, points, kinds, *, asked: str = "f") -> None:
    """Leave what a finished cell leaves."""
    write_answers(cell.folder / "results.json", points, kinds, asked=asked)
    CellRecord(cell.arm, cell.seed, cell.rows, 0, 1.0, 1.0, 1, False, "cpu", {}, recipe_to_dict(cell.recipe)).save(
        cell.file("json")
    )


def test_the_interval_is_one_of_points_where_answers_are_graded(study):
    planned = cells(study)
    for cell in planned:
        finish(cell, [0.5, 0.7] * 20 if cell.arm == "SFT" else [0.6, 0.9] * 20, ["k"] * 40)
    _, line = summarise(study, planned, 4, {})
    assert line.difference == pytest.approx(15)
    assert 10 < line.low < 15 < line.high < 20


def test_questions_of_no_kind_count_in_the_interval_as_little_as_in_the_score(study):
    planned, kinds = cells(study), ["k"] * 20 + [None] * 20
    for cell in planned:
        finish(cell, [0.0] * 20 + [1.0] * 20 if cell.arm == "SFT" else [0.3] * 20 + [0.0] * 20, kinds)
    _, line = summarise(study, planned, 4, {})
    assert (line.difference, line.low, line.high) == pytest.approx((30, 30, 30))
    for cell in planned:  # where none has a kind, all count
        finish(cell, [0.0] * 40 if cell.arm == "SFT" else [0.3] * 40, [None] * 40)
    _, line = summarise(study, planned, 4, {})
    assert (line.difference, line.low, line.high) == pytest.approx((30, 30, 30))


def test_an_arm_renamed_within_its_folder_stays_in_the_table(study):
    for cell in cells(study):
        finish(cell, [1.0, 0.0], ["k", "k"])
    renamed = replace(study, arms={"SFT": ARMS["SFT"], "switch KD": ARMS["Switch-KD"]})
    assert [line.arm for line in summarise(renamed, cells(renamed), 4, {})] == ["SFT", "switch KD"]
    written = StudyResults.load(Path(study.output) / "study.json")
    assert [(cell.arm, cell.seed) for cell in written.cells] == [(arm, seed) for seed in (0, 1) for arm in renamed.arms]


def test_of_cells_asked_different_questions_only_one_is_to_go(study):
    planned = cells(study)
    for cell in planned:
        finish(cell, [1.0, 0.0], ["k", "k"], asked="g" if cell == planned[-1] else "f")
    with pytest.raises(ValueError, match="different questions") as error:
        summarise(study, planned, 4, {})
    for cell in planned[-2:]:
        assert str(cell.file("json")) in str(error.value)
    assert "begin anew" not in str(error.value)


def test_a_teacher_asked_other_questions_than_the_cells_is_refused(study, tmp_path):
    planned, file = cells(study), tmp_path / "teacher" / "results.json"
    for cell in planned:
        finish(cell, [1.0, 0.0], ["k", "k"])
    write_answers(file, [1.0, 1.0], ["k", "other"], asked="g")
    with pytest.raises(ValueError, match=r"the teacher was asked other questions than SFT, seed 0: .*Remove it"):
        summarise(study, planned, 4, {file: planned[0]})
    write_answers(file, [1.0, 1.0], ["k", "k"])
    summarise(study, planned, 4, {file: planned[0]})


def test_every_teacher_has_a_file_of_its_own_and_earlier_ones_stay(study):
    paths = ["runs/teacher/a", "runs/teacher-a", "/home/" + "somebody/" * 40 + "teacher"]
    arms = {f"arm {n}": {"teacher": {"path": path}} for n, path in enumerate(paths)}
    several = replace(study, arms=arms, baseline="arm 0", seeds=(0,))
    files = list(find_teachers(several, cells(several)))
    assert len(set(files)) == 3
    assert max(len(file.parent.name.encode()) for file in files) < 256
    earlier = Path(study.output) / "teachers" / "runs-teacher-a-runs-demo-data-test.json" / "results.json"
    write_answers(earlier, [1.0], ["k"], model="runs/teacher-a")
    assert list(find_teachers(several, cells(several))) == [files[0], earlier, files[2]]
