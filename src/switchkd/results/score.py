"""Exact match after a normalisation that is stated in full, per kind of question and over all.

Normalisation of expected and given answer alike, in this order:
1. Unicode NFKC, so that full-width and composed characters compare equal;
2. lower case;
3. every run of white space becomes one space;
4. white space and punctuation (Unicode categories P*) are stripped from both ends, except before a digit a `-`, a `.` alone
   and both (`-5`, `.5`, `-.5`); a text of nothing but punctuation stays as it is.

Nothing else: no articles, number words or synonyms are treated as equal, and an answer that contains the right one is
wrong.
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

#: How a number begins: with a minus, with a point that is not the last of an ellipsis, or with both.
_NUMBER = re.compile(r"(?:-\.?|(?<!\.)\.)\d")


def normalise(text: str) -> str:
    """The form in which two answers are compared; see the top of this file."""
    text = " ".join(unicodedata.normalize("NFKC", text).lower().split())
    begin, end = 0, len(text)
    while begin < end and _strippable(text[begin]) and not _of_number(text, begin):
        begin += 1
    while end > begin and _strippable(text[end - 1]):
        end -= 1
    return text[begin:end] or text


def _strippable(character: str) -> bool:
    return character.isspace() or unicodedata.category(character).startswith("P")


def _of_number(text: str, index: int) -> bool:
    """Whether what stands here begins a number."""
    return _NUMBER.match(text, index) is not None


def is_right(expected: str, given: str) -> bool:
    """Whether the two are equal after normalisation."""
    return normalise(expected) == normalise(given)


#: The share of samples that an interval holds.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """Holds `CONFIDENCE` of what would be seen with other pictures; in percent, a difference in points."""

    low: float
    high: float

    @property
    def leaves_out_zero(self) -> bool:
        """Whether a difference is one."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Score:
    """How many of how many; `accuracy_percent` is the mean of the points, which `right` ones have all of."""

    questions: int
    right: int
    accuracy_percent: float


def score(points: Iterable[float]) -> Score:
    """The score over all questions; there must be one."""
    marks = list(points)
    return Score(len(marks), sum(mark >= 1 for mark in marks), 100 * sum(marks) / len(marks))


def score_by_kind(kinds: Iterable[str | None], points: Iterable[float]) -> dict[str, Score]:
    """One score for each kind, by name; questions without a kind are left out."""
    marks = sorted((kind, mark) for kind, mark in zip(kinds, points, strict=True) if kind is not None)
    return {kind: score(mark for _, mark in group) for kind, group in groupby(marks, key=lambda pair: pair[0])}
