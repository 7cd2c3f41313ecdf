"""Intervals of means and of differences, against a loop that does what is promised and nothing faster."""

import random
from statistics import fmean, quantiles

import pytest

from switchkd.results import Prediction, intervals
from switchkd.results.question_results import MEAN, OVERALL


def answer(name, right, kind=None, about=""):
    return Prediction(name, kind, "?", "yes", "yes" if right else "no", bool(right), False, about=about)


def answered(pattern, about="picture", kinds=("a", "b")):
    """Four questions about each picture, two of each kind; `pattern` repeats."""
    return [
        answer(f"{p}-{q}", pattern[(3 * p + q) % len(pattern)], kinds[q % 2], f"{about}-{p}")
        for p in range(12)
        for q in range(4)
    ]


def drawn_by_a_loop(values, keys):
    """The interval of the mean of `values`, pictures (`keys`) drawn with all their questions."""
    rng, groups = random.Random(3), {}
    for value, key in zip(values, keys, strict=True):
        groups.setdefault(key, []).append(value)
    means = sorted(
        100 * fmean(value for group in rng.choices(list(groups.values()), k=len(groups)) for value in group)
        for _ in range(4000)
    )
    cuts = quantiles(means, n=40)
    return cuts[0], cuts[-1]


@pytest.mark.parametrize("pattern", ["1101", "10000", "0111011"])
def test_intervals_of_means_are_those_of_a_loop(pattern):
    answers = answered([int(mark) for mark in pattern])
    found = intervals.intervals(answers)
    assert set(found) == {"a", "b", MEAN, OVERALL}
    for name, kind in ((OVERALL, ("a", "b")), ("a", ("a",))):
        of_kind = [one for one in answers if one.kind in kind]
        low, high = drawn_by_a_loop([one.right for one in of_kind], [one.about for one in of_kind])
        assert (found[name].low, found[name].high) == pytest.approx((low, high), abs=2.1)
    # two questions of each kind about every picture: the mean of kinds is the mean over all
    assert found[MEAN] == found[OVERALL]


def test_intervals_of_differences_are_paired():
    one, other = answered([1, 1, 0]), answered([1, 0, 0])
    found = intervals.intervals(one, other)[OVERALL]
    gained = [a.right - b.right for a, b in zip(one, other, strict=True)]
    low, high = drawn_by_a_loop(gained, [a.about for a in one])
    assert (found.low, found.high) == pytest.approx((low, high), abs=2.1)
    assert found.leaves_out_zero
    assert intervals.intervals(one, one)[OVERALL] == intervals.Interval(0, 0)
    assert not intervals.intervals(one, one)[OVERALL].leaves_out_zero


def test_the_order_of_the_other_answers_does_not_matter_and_other_questions_are_refused():
    one, other = answered([1, 1, 0]), answered([1, 0, 0])
    assert intervals.intervals(one, other[::-1]) == intervals.intervals(one, other)
    with pytest.raises(ValueError, match="48 and 47 answers are not to the same questions"):
        intervals.intervals(one, other[1:])


def test_many_questions_about_one_picture_say_less_than_one_about_each_of_many():
    alike = [answer(str(n), n % 4 < 2, about=str(n // 4 % 2)) for n in range(40)]
    apart = [answer(str(n), n % 4 < 2, about=str(n)) for n in range(40)]
    together = intervals.intervals([answer(str(n), n < 20, about=str(n // 20)) for n in range(40)])[OVERALL]
    assert together == intervals.Interval(0, 100)
    for answers in (alike, apart):
        assert intervals.intervals(answers)[OVERALL].high < 100


def test_a_kind_of_one_picture_and_no_answers_at_all():
    rare = [*answered([1, 0]), answer("last", 1, "rare", "alone")]
    assert intervals.intervals(rare)["rare"] == intervals.Interval(100, 100)
    assert intervals.intervals([]) == {}


def test_drawing_a_few_at_a_time_draws_the_same(monkeypatch):
    answers = answered([1, 1, 0])
    whole = intervals.intervals(answers)
    monkeypatch.setattr(intervals, "_DRAWN_AT_A_TIME", 30)
    assert intervals.intervals(answers) == whole


def test_what_an_answer_is_about_is_known_from_files_of_before_too():
    assert answer("scene/2", 1).picture_key == answer("scene/11", 1).picture_key == "scene"
    assert answer("coco/train/a", 1).picture_key == "coco/train/a"
    assert answer("scene/2#7", 1).picture_key == "scene"
    assert answer("scene/2", 1, about="digest").picture_key == "digest"
