"""What was found, as a table, as text and as JSON."""

import json

import pytest

from switchkd.doctor import Finding, Findings, Sample

FOUND = Findings(
    [Finding("ok", "steps", "2 optimizer steps"), Finding("failed", "teacher sees images", "the model is blind")],
    [Sample("row-0", [("prompt", "USER: "), ("image", "<image ×729>"), ("answer", "A cat.</s>")])],
)


def test_the_table_and_the_samples_can_be_read_without_colours(capsys):
    FOUND.print()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].split() == ["failed", "teacher", "sees", "images", "the", "model", "is", "blind"]
    assert "row-0\nUSER: <image ×729>⟦A cat.</s>⟧" in err


def test_answers_have_a_colour_of_their_own():
    text = FOUND.samples[0].text()
    styles = {text.plain[span.start : span.end]: str(span.style) for span in text.spans}
    assert styles == {"row-0\n": "bold", "USER: ": "dim", "<image ×729>": "cyan", "⟦A cat.</s>⟧": "bold green"}


def test_what_looks_like_markup_is_text():
    assert Sample("r", [("answer", "[red]no[/red]")]).text().plain == "r\n⟦[red]no[/red]⟧"


def test_they_are_plain_values_too():
    assert json.loads(json.dumps(FOUND.to_dict())) == {
        "ok": False,
        "findings": [
            {"level": "ok", "check": "steps", "detail": "2 optimizer steps"},
            {"level": "failed", "check": "teacher sees images", "detail": "the model is blind"},
        ],
        "samples": [
            {"name": "row-0", "pieces": [["prompt", "USER: "], ["image", "<image ×729>"], ["answer", "A cat.</s>"]]}
        ],
    }


def test_stages_keep_their_names():
    together = Findings()
    together.add(FOUND, stage="second")
    assert [line.check for line in together.lines] == ["second: steps", "second: teacher sees images"]
    assert [sample.name for sample in together.samples] == ["second: row-0"]


def test_what_failed_is_raised_and_warnings_are_not():
    with pytest.raises(ValueError, match=r"^the doctor refuses to train: teacher sees images: the model is blind$"):
        FOUND.raise_if_failed()
    passing = Findings([Finding("warning", "memory", "tight")])
    assert passing.ok
    passing.raise_if_failed()
