import io
from dataclasses import replace

import pytest
from rich.console import Console

from switchkd.report.table import compare, markdown_table, rich_table
from switchkd.results import Results
from switchkd.results.question_results import MEAN, OVERALL, Prediction
from switchkd.results.score import Interval, Score


def results(accuracies: dict[str, float], overall: float, fingerprint: str = "f" * 64) -> Results:
    return Results(
        model="m",
        data="d",
        data_fingerprint=fingerprint,
        rows=10,
        questions=10,
        right=1,
        accuracy_percent=overall,
        kinds={kind: Score(questions=10, right=1, accuracy_percent=value) for kind, value in accuracies.items()},
        mean_over_kinds_percent=sum(accuracies.values()) / len(accuracies) if accuracies else None,
        questions_without_kind=0,
        truncated=0,
        generation={},
        image_backend="Pil",
        device="cpu",
        dtype="float32",
        versions={},
        seconds=1.0,
    )


@pytest.fixture
def write(tmp_path):
    def write(**named):
        for name, result in named.items():
            result.save(tmp_path / f"{name}.json")
        return {name: tmp_path / f"{name}.json" for name in named}

    return write


def shown(table) -> str:
    console = Console(width=120, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_models_stand_side_by_side_with_their_difference(write):
    files = write(
        sft=results({"count": 40.0, "shape": 50.0}, 44.0), switch_kd=results({"count": 70.0, "shape": 45.0}, 60.0)
    )
    comparison = compare(files, difference=("switch_kd", "sft"))
    assert comparison.columns == ("sft", "switch_kd", "switch_kd − sft")
    assert comparison.rows == {
        "count": (40, 70, 30),
        "shape": (50, 45, -5),
        MEAN: (45, 57.5, 12.5),
        OVERALL: (44, 60, 16),
    }
    assert markdown_table(comparison) == (
        "| kind | sft | switch\\_kd | switch\\_kd − sft |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| count | 40.0 | 70.0 | +30.0 |\n"
        "| shape | 50.0 | 45.0 | -5.0 |\n"
        "| mean of kinds | 45.0 | 57.5 | +12.5 |\n"
        "| all questions | 44.0 | 60.0 | +16.0 |\n"
    )
    text = shown(rich_table(comparison))
    assert "+12.5" in text


def answers(points: str, kinds: str = "cs") -> tuple[Prediction, ...]:
    """Two questions about each picture, one of each kind: `1` is right, `0` wrong."""
    return tuple(
        Prediction(
            id=f"p{place // 2}/{place}",
            kind={"c": "count", "s": "shape"}[kinds[place % 2]],
            question="q",
            expected="a",
            got="a",
            right=point == "1",
            truncated=False,
            about=f"p{place // 2}",
        )
        for place, point in enumerate(points)
    )


def test_a_difference_has_its_interval_where_the_answers_are_there(write):
    one, other = answers("11" * 20), answers("01" * 10 + "11" * 10)
    numbers = {"count": 50.0, "shape": 100.0}, {"count": 100.0, "shape": 100.0}
    sft, switch = results(numbers[0], 75.0), results(numbers[1], 100.0)
    files = write(sft=replace(sft, predictions=other), switch=replace(switch, predictions=one), bare=sft)
    found = compare({name: files[name] for name in ("sft", "switch")}, difference=("switch", "sft"))
    assert found.intervals["shape"] == Interval(0, 0)
    low, high = found.intervals["count"].low, found.intervals["count"].high
    assert 25 < low < 40 < 60 < high < 75  # of 20 pictures, half were gained
    assert (found.intervals[MEAN].low, found.intervals[MEAN].high) == pytest.approx((low / 2, high / 2))
    lines = markdown_table(found).splitlines()
    assert lines[0] == "| kind | sft | switch | switch − sft | 95 % interval |"
    assert lines[1] == "| --- | ---: | ---: | ---: | ---: |"
    assert lines[2] == f"| count | 50.0 | 100.0 | +50.0 | {low:+.1f} … {high:+.1f} |"
    assert lines[3] == "| shape | 100.0 | 100.0 | +0.0 | +0.0 … +0.0 |"
    assert f"{low:+.1f} … {high:+.1f}" in shown(rich_table(found))
    for pair in (("switch", "bare"), ("bare", "switch")):  # the answers of one were not kept
        without = compare({name: files[name] for name in pair}, difference=pair)
        assert without.intervals == {}
        assert "interval" not in markdown_table(without) + shown(rich_table(without))
    assert compare({name: files[name] for name in ("sft", "switch")}).intervals == {}


def test_without_kinds_only_the_accuracy_over_all_questions_is_left(write):
    comparison = compare(write(a=results({}, 44.0)))
    assert comparison.rows == {OVERALL: (44,)}
    assert "44.0" in shown(rich_table(comparison))


def test_names_are_text_and_never_markup(write, tmp_path):
    files = write(a=results({"[red]x[/red]|": 40.0}, 44.0))
    comparison = compare({"[bold]<script>": files["a"]})
    text = shown(rich_table(comparison))
    assert "[bold]<script>" in text
    assert "[red]x[/red]|" in text
    assert "\\[red\\]x\\[/red\\]\\| |" in markdown_table(comparison)
    assert "<script>" not in markdown_table(comparison)


def test_results_on_other_questions_are_not_compared(write):
    files = write(a=results({}, 1.0), b=results({}, 2.0, fingerprint="e" * 64))
    with pytest.raises(
        ValueError, match=r"b\.json answers other questions than .*a\.json: .* eeeeeeeeeeee and ffffffffffff"
    ):
        compare(files)


def test_results_by_other_metrics_are_not_compared_and_the_title_names_them(write):
    one, two = (replace(results({}, 1.0), metrics=metrics) for metrics in ({"anls": 10}, {"anls": 7, "vqa": 3}))
    with pytest.raises(
        ValueError, match=r"b\.json is scored by other metrics than .*a\.json: anls \(7\), vqa \(3\) and anls"
    ):
        compare(write(a=one, b=two))
    assert "Score in percent, by the metric anls" in " ".join(shown(rich_table(compare(write(a=one, b=one)))).split())
    swapped = [
        replace(
            two,
            predictions=tuple(replace(answer, metric=name) for answer, name in zip(answers("11"), names, strict=True)),
        )
        for names in (("anls", "vqa"), ("vqa", "anls"))
    ]
    with pytest.raises(ValueError, match="scored by other metrics"):
        compare(write(a=swapped[0], b=swapped[1]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as results"),
        ("[]", "holds no results"),
        ('{"kinds": {}}', "accuracy_percent, data, data_fingerprint"),
    ],
)
def test_a_file_that_holds_no_results_is_named(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=rf"x\.json: .*{message}"):
        compare({"x": tmp_path / "x.json"})
    with pytest.raises(ValueError, match=r"y\.json: cannot be read"):
        compare({"x": tmp_path / "y.json"})
    with pytest.raises(ValueError, match="no results to compare"):
        compare({})
