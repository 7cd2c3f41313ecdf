"""What an answer counts, by hand from the published formulas, and the metrics that need all answers against slow loops."""

import builtins
import math
import random
from functools import cache

import pytest

from switchkd.results.metrics import METRICS, check_accepted, chosen_letter, parse_metrics

CASES = {
    "exact": [(["A cat."], "a cat", 1), (["cat", "kitten"], "Kitten!", 1), (["cat"], "a cat", 0)],
    "contains": [
        (["cat"], "It is a Cat.", 1),
        (["cat"], "concatenate", 0),
        (["5"], "about 5 dogs", 1),
        (["5"], "15, -5, 5.3 or 1.5", 0),
        (["5"], "about .5, -.5, $.5 or (.5)", 0),
        (["5"], ".5 of it", 0),
        (["5"], "well...5", 1),
        ([".5"], "about .5", 1),
        ([".5"], "about 0.5, -.5 or .55", 0),
        (["net"], "It is .net", 1),
        (["5"], "It costs 5.", 1),
        (["no", "none"], "There are none.", 1),
        (["C++"], "In C++ it is.", 1),
    ],
    "anls": [
        (["hello"], "Hello", 1),
        (["hello"], "hallo", 0.8),
        (["abcd"], "abxy", 0),  # half of it is wrong: no points at all
        (["12/05/1998", "12 May"], "12  may", 1),
        (["yes"], "", 0),
    ],
    "relaxed": [
        (["100"], "105", 1),
        (["100"], "105.1", 0),
        (["-100"], "-96", 1),
        (["100"], "-100", 0),
        (["0"], "0.0", 1),
        (["0"], "0.01", 0),
        (["1,200"], "1190", 1),
        (["12 %"], "0.12", 1),
        (["12%"], "12", 0),
        (["$3.5"], "3.6", 1),
        (["Brazil"], "brazil.", 1),
        (["2010"], "in 2010", 0),
    ],
    "vqa": [
        (["yes"] * 10, "Yes.", 1),
        # 2 people of 10 said it: for these two one other did, for the other eight two did
        (["red"] * 2 + ["blue"] * 8, "red", (2 * (1 / 3) + 8 * (2 / 3)) / 10),
        (["2"] * 10, "two", 1),
        (["a dog"] * 10, "dog", 1),
        (["don't walk"] * 10, "dont walk", 1),
        (["3.5"] * 10, "35", 0),
        (["yes"] * 10, "no", 0),
        (["t shirt"] * 9 + ["shirt"], "t-shirt", 1),
        (["t-shirt"] * 9 + ["shirt"], "t shirt", 1),
        (["black/white"] * 10, "black white", 1),
        (["red - blue"] * 10, "red blue", 1),
        (["ab cd e f"] * 10, "a-b c-d e -f", 1),  # one stands beside a space: all are left out
        (["1,200 km/h"] * 10, "1200 kmh", 1),
        (["u.s."] * 10, "us", 1),
        (["50%"] * 10, "50", 0),  # no punctuation there
        ([".5"] * 10, "5", 0),
    ],
    "choice": [
        *((["B"], given, 1) for given in ("B", "(b)", "B.", "b) a dog", "The answer is B", "Answer: (B) dogs", "**B**")),
        (["B"], "I choose (B) here", 1),
        (["(B) a dog"], "b", 1),
        *((["B"], given, 0) for given in ("A", "A dog", "B and C (C) (B)", "", "Because", "The answer is C, not B")),
        (["A"], "A dog is here", 0),  # an article
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "accepted", "given", "points"), [(name, *case) for name, cases in CASES.items() for case in cases]
)
def test_an_answer_counts_what_the_formula_says(metric, accepted, given, points):
    assert METRICS[metric]([(accepted, given)]) == pytest.approx([points])


def test_edit_distances_are_those_of_the_recursion():
    @cache
    def edits(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(edits(a[1:], b) + 1, edits(a, b[1:]) + 1, edits(a[1:], b[1:]) + (a[0] != b[0]))

    draw = random.Random(0)
    for _ in range(100):
        a, b = ("".join(draw.choices("ab", k=draw.randint(1, 7))) for _ in range(2))
        nl = edits(a, b) / max(len(a), len(b))
        assert METRICS["anls"]([([a], b)]) == pytest.approx([1 - nl if nl < 0.5 else 0])


#: Three captions, and what cider_scorer.py of pycocoevalcap 1.2 gives them (n=4, sigma=6).
CAPTIONS = [
    (["a cat sits on the mat", "the cat is on a mat"], "a cat on the mat"),
    (["a red ball", "one red ball on grass"], "a red ball"),
    (["two dogs run", "dogs running in a park"], "a man and a dog"),
]


def test_cider_is_that_of_its_reference_implementation():
    assert METRICS["cider"](CAPTIONS) == pytest.approx([3.3297150306689014, 4.990294238241017, 0])
    # the order of questions does not matter, and a caption that no one would give counts nothing
    assert METRICS["cider"](CAPTIONS[::-1]) == pytest.approx([0, 4.990294238241017, 3.3297150306689014])
    assert METRICS["cider"]([([one], one) for one in ("a b c d e", "f g h i j")]) == pytest.approx([10, 10])
    assert METRICS["cider"]([]) == []


def test_rouge_is_the_longest_common_subsequence():
    pytest.importorskip("rouge_score")
    (points,) = METRICS["rouge"]([(["the cat sat on the mat", "dogs"], "the cat on a mat")])
    precision, recall = 4 / 5, 4 / 6  # the, cat, on, mat
    assert points == pytest.approx(2 * precision * recall / (precision + recall))


def test_a_package_that_is_missing_is_named(monkeypatch):
    imported = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("rouge_score"):
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'pip install "switchkd\[metrics\]"'):
        METRICS["rouge"]([])


def test_what_cannot_be_scored_says_why():
    assert check_accepted("vqa", ["yes"]) == (
        "the metric vqa compares with the answers of several people (ten in VQAv2), and `accepted` has 1"
    )
    assert "needs a letter to compare with, and the answer is 'a cat'" in str(check_accepted("choice", ["a cat"]))
    assert "is none of exact, contains, anls, relaxed, vqa, choice, rouge, cider" in str(check_accepted("bleu", ["a"]))
    assert all(check_accepted(metric, ["B", "b.", "(B)"]) is None for metric in METRICS)


def test_metrics_are_given_for_all_or_for_a_kind():
    assert parse_metrics(["anls", "count=exact", "a = b=relaxed"]) == {
        None: "anls",
        "count": "exact",
        "a = b": "relaxed",
    }
    with pytest.raises(ValueError, match="there is no metric 'bleu'; there are exact, contains"):
        parse_metrics(["count=bleu"])
    with pytest.raises(ValueError, match="two metrics are given for all questions"):
        parse_metrics(["anls", "exact"])


def test_letters():
    assert [chosen_letter(text) for text in ("(C)", "none", "D", "I")] == ["C", None, "D", "I"]
    assert not math.isnan(METRICS["choice"]([(["I"], "I")])[0])


@pytest.mark.parametrize(
    ("given", "letter"),
    [
        # an article, a pronoun and a part of a word are no letters
        *((given, None) for given in ("The correct answer is a dog", "There is no answer a person could give")),
        *(
            (given, None)
            for given in ("The answer is I don't know", "No option I like", "The answer is T-shirt", "The answers")
        ),
        # the first sure statement counts, whatever is said of other letters
        ("The answer is B because option A is wrong", "B"),
        ("B because option A is smaller", "B"),
        ("A because option B is smaller", "A"),
        ("Option A is wrong, so the answer is B", "B"),
        ("Option A is wrong. Option B is right.", "B"),
        ("Option A looks good, but the answer is option B", "B"),
        ("B\nA cat", "B"),
        *(
            (f"The answer is{given}", "B")
            for given in (": B", ": **B. cat**", ' "B"', "\n\nB", " **B**", r" \boxed{B}", ":** B")
        ),
        *(
            (given, "B")
            for given in ("The best choice is (B).", "Option B: cat", "The correct option is B, a cat", '"B"')
        ),
        # a small letter counts where it stands alone
        *(
            (given, "B")
            for given in ("b", "b.", "(b) a dog", "answer: b", "The answer is b.", "the answer is (b) a dog")
        ),
    ],
)
def test_a_letter_is_read_where_it_is_chosen(given, letter):
    assert chosen_letter(given) == letter
