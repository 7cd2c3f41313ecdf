"""The numbers of a study's table, by hand."""

from dataclasses import replace

import pytest
from run_folders import write_results

from switchkd.results import Results, intervals
from switchkd.results.question_results import Prediction
from switchkd.results.study_results import CellResult, StudyResults, TeacherResult
from switchkd.study.study_table import bootstrap, markdown_kinds, markdown_table, tabulate
from switchkd.study.summary import _outcome


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 300)


def outcome(*right, questions=1):
    """One picture for each number of right answers, of one kind."""
    return {f"p{index}": {"": (number, questions)} for index, number in enumerate(right)}


def cell(arm, seed, score, *, rows=None, seconds=10.0, cpu=20.0, resumed=False, device="cpu", kinds=None, asked=""):
    return CellResult(arm, seed, rows, "", score, kinds or {}, seconds, cpu, 0, resumed, device, data_fingerprint=asked)


BASELINES = {"A": "A", "B": "A"}


def test_mean_spread_difference_and_cost():
    cells = [cell("A", 0, 50), cell("A", 1, 60), cell("B", 0, 53, cpu=30.0), cell("B", 1, 67, cpu=50.0)]
    a, b = tabulate(cells, [outcome(1, 0)] * 4, BASELINES)
    assert (a.arm, a.mean, a.difference, a.low, a.cost) == ("A", 55, None, None, 1)
    assert a.sd == pytest.approx(50**0.5)  # (50 − 55)² + (60 − 55)², by n − 1 = 1
    # seed by seed +3 and +7; not 60 − 55 of other seeds
    assert b.differences == (3, 7)
    assert (b.mean, b.difference, b.cost, b.cpu_seconds) == (60, 5, 2, 40)


def test_only_seeds_that_both_have_are_compared():
    cells = [cell("A", 0, 50), cell("B", 0, 53), cell("B", 1, 90)]
    _, b = tabulate(cells, [outcome(1, 0)] * 3, BASELINES)
    assert (b.seeds, b.difference) == (2, 3)


def test_sizes_of_data_are_compared_among_themselves():
    cells = [cell("A", 0, 40, rows=8), cell("B", 0, 41, rows=8), cell("A", 0, 50, rows=16), cell("B", 0, 55, rows=16)]
    rows = tabulate(cells, [outcome(1, 0)] * 4, BASELINES)
    assert [(row.arm, row.rows, row.difference) for row in rows] == [
        ("A", 8, None),
        ("B", 8, 1),
        ("A", 16, None),
        ("B", 16, 5),
    ]


def test_interrupted_cells_do_not_count_for_cost_and_a_gpu_is_counted_by_the_clock():
    cells = [cell("A", 0, 50), cell("B", 0, 50, seconds=1, cpu=1, resumed=True)]
    assert tabulate(cells, [outcome(1)] * 2, BASELINES)[1].cost is None
    cells = [cell("A", 0, 50, device="cuda"), cell("B", 0, 50, seconds=25.0, device="cuda")]
    assert tabulate(cells, [outcome(1)] * 2, BASELINES)[1].cost == 2.5


def test_a_difference_that_is_the_same_everywhere_has_no_width():
    better, worse = outcome(1, 1, 1), outcome(0, 0, 0)
    assert bootstrap([better, better], [worse, worse]) == (100, 100)
    assert bootstrap([better, better], [better, better]) == (0, 0)


def test_the_interval_holds_the_difference_and_is_wider_with_less_data():
    few = bootstrap([outcome(1, 0, 1, 1)], [outcome(0, 0, 1, 0)])
    many = bootstrap([outcome(*[1, 0, 1, 1] * 30)], [outcome(*[0, 0, 1, 0] * 30)])
    for low, high in (few, many):
        assert low < 50 < high
    assert many[1] - many[0] < few[1] - few[0]


def test_seeds_that_disagree_widen_the_interval():
    # the same mean difference, 50 points, without and with spread between the seeds
    agree = bootstrap([outcome(*[1, 0] * 50)] * 2, [outcome(*[0, 0] * 50)] * 2)
    disagree = bootstrap([outcome(*[1, 1] * 50), outcome(*[0, 0] * 50)], [outcome(*[0, 0] * 50)] * 2)
    assert disagree == (0, 100)
    assert agree[1] - agree[0] < 30


def test_pictures_that_all_seeds_share_are_drawn_once_for_all_of_them():
    better, worse = outcome(*[1, 0] * 30), outcome(*[0] * 60)

    def width(seeds, asked):
        cells = [cell(arm, seed, 50, asked=asked(seed)) for seed in range(seeds) for arm in "AB"]
        line = tabulate(cells, [worse, better] * seeds, BASELINES)[1]
        return line.high - line.low

    one, shared, own = width(1, str), width(5, lambda _: "f"), width(5, str)
    assert shared == pytest.approx(one, rel=0.2)  # five trainings that answer alike say no more than one
    assert own == pytest.approx(one / 5**0.5, rel=0.2)  # but of other pictures each, they do


def test_the_draws_are_those_of_published_tables():
    arm = [outcome(*[1, 0, 1, 1, 0] * 4), outcome(*[1, 1, 0, 0] * 5), outcome(*[1, 0] * 10)]
    baseline = [outcome(*[0, 1] * 10), outcome(*[0, 0, 1, 0] * 5), outcome(*[1, 0, 0, 0, 1] * 4)]
    assert bootstrap(arm, baseline) == pytest.approx((-6.666666666666667, 36.66666666666667), abs=1e-9)


def test_kinds_count_alike_however_many_questions_they_have():
    one = {f"p{i}": {"many": (10, 10), "few": (0, 1)} for i in range(5)}
    other = {f"p{i}": {"many": (0, 10), "few": (0, 1)} for i in range(5)}
    assert bootstrap([one], [other]) == (50, 50)


def test_answers_to_different_questions_are_not_compared():
    with pytest.raises(ValueError, match="1 and 2 pictures that are not the same"):
        bootstrap([outcome(1)], [outcome(1, 1)])
    with pytest.raises(ValueError, match="picture p0: 1 and 2 questions of kind "):
        bootstrap([outcome(1)], [outcome(1, questions=2)])


def test_a_study_counts_the_points_of_answers_as_its_scores_do(tmp_path):
    one = Prediction("p/0", "k", "q", "hello", "hallo", False, False, about="p", metric="anls", score=0.8)
    answers = (one, replace(one, id="p/1", score=1.0, right=True))
    write_results(tmp_path / "r.json", "111111")
    assert _outcome(replace(Results.load(tmp_path / "r.json"), predictions=answers)) == {"p": {"k": (1.8, 2)}}


def test_markdown():
    cells = [cell("A|", 0, 50), cell("B", 0, 53)]
    text = markdown_table(tabulate(cells, [outcome(1, 0)] * 2, {"A|": "A|", "B": "A|"}))
    assert text.splitlines() == [
        "| arm | seeds | mean | sd | difference | 95 % interval | wall-clock s | CPU s | cost |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| A\\| | 1 | 50.0 | – | – | – | 10 | 20 | 1.00 |",
        "| B | 1 | 53.0 | – | +3.0 | +0.0 … +0.0 | 10 | 20 | 1.00 |",
    ]


def test_kinds_are_means_over_seeds():
    def study(kinds, *teachers):
        cells = tuple(cell("A", seed, 50, kinds=of_seed) for seed, of_seed in enumerate(kinds))
        lines = tuple(tabulate(cells, [outcome(1)] * 2, {"A": "A"}))
        return StudyResults("s", "A", {}, ("A",), (0, 1), (), 2, cells, teachers, lines)

    kinds = [{"count": 10.0, "digit": 20.0}, {"count": 30.0, "digit": 20.0}]
    large = TeacherResult("runs/large", 0, "", 95.0, {"count": 90.0, "digit": 100.0})
    assert markdown_kinds(study(kinds, large)).splitlines()[2:] == [
        "| count | 90.0 | 20.0 |",
        "| digit | 100.0 | 20.0 |",
    ]
    assert markdown_kinds(study([{}, {}])) == ""
    small = TeacherResult("runs/small", 0, "", 75.0, {"count": 70.0, "digit": 80.0})
    head, _, count, _ = markdown_kinds(study(kinds, large, small)).splitlines()
    assert head == "| kind | teacher runs/large | teacher runs/small | A |"
    assert count == "| count | 90.0 | 70.0 | 20.0 |"
