import pytest

from switchkd.results.score import is_right, normalise, score, score_by_kind


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("  Yes.\n", "yes"),
        ("(A)", "a"),
        ("two   red\tcircles", "two red circles"),
        ("don't", "don't"),
        ("“left”", "left"),
        ("ＡＢ１", "ab1"),  # full-width letters
        ("e\u0301te\u0301", "été"),  # composed and decomposed accents
        ("3.5", "3.5"),
        ("-5", "-5"),
        (".5", ".5"),
        ("(.5)", ".5"),
        ("-.5.", "-.5"),
        ("...5", "5"),  # an ellipsis
        (". five", "five"),
        ("- five", "five"),
        ("5 -", "5"),
        ("$5", "$5"),  # a currency sign is no punctuation
        ("?!", "?!"),
        ("…", "..."),  # NFKC, then nothing but punctuation
        ("是。", "是"),
        ("", ""),
    ],
)
def test_the_normalisation_is_the_one_that_is_stated(text, form):
    assert normalise(text) == form
    assert normalise(form) == form


def test_nothing_is_right_but_the_same_words():
    assert is_right("Yes", " yes. ")
    for expected, given in [
        ("the cat", "cat"),
        ("two", "2"),
        ("yes", "yes it is"),
        ("-5", "5"),
        ("5", ".5"),
        ("0.5", ".5"),  # words, not numbers
        ("-.5", ".5"),
        ("?", "!"),
        ("yes", ""),
    ]:
        assert not is_right(expected, given)


def test_kinds_are_counted_apart():
    kinds = ["count", "yes/no", "count", None, "count"]
    scores = score_by_kind(kinds, [True, False, False, True, True])
    assert list(scores) == ["count", "yes/no"]
    assert (scores["count"].questions, scores["count"].right) == (3, 2)
    assert scores["count"].accuracy_percent == pytest.approx(200 / 3)
    assert scores["yes/no"].accuracy_percent == 0
    assert score([True, True, False, True]).accuracy_percent == 75
