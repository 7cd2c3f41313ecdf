"""`switchkd data check` and `switchkd data convert`."""

import io
import json
import random
import re
import resource
from contextlib import contextmanager

import pytest
from data.test_forms import FORMS, SAME, SOURCES, archive, comparable, filled, llava, vqa, write
from data.test_forms import folder as folder  # a fixture
from hostile import HOSTILE
from PIL import Image

from switchkd.cli import main
from switchkd.data.answer_file import AnswerFile
from switchkd.data.errors import DataError
from switchkd.data.formats import load_rows
from switchkd.data.llava_rows import write_llava
from switchkd.data.overview import look_over

TAGS = {
    *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "ul", "li"),
    *("code", "article", "figure", "img", "figcaption", "dl", "dt", "dd"),
}


def test_every_form_is_converted_to_rows_that_read_back_the_same(folder, tmp_path_factory):
    rows = [filled(folder, row) for row, _ in FORMS.values()]
    data = write(folder, [*rows, llava("B?", id="b", kind="k"), {"messages": [], "id": "none"}])
    read = load_rows(data)
    for place in (folder, tmp_path_factory.mktemp("elsewhere")):
        done = write_llava(data, place / "out.jsonl")
        assert (done.rows, done.left_out) == (len(FORMS) + 2, [])
        assert comparable(load_rows(place / "out.jsonl")) == comparable(read)
        assert done.referenced + done.written == sum(len(row["images"]) for row in read)
        assert (done.referenced > 10) == (place == folder)


@pytest.mark.parametrize("source", ["archive", "saved set", "picture folder", "copy of a set of the hub"])
def test_pictures_inside_of_data_are_written_beside_the_rows(folder, tmp_path_factory, source):
    output = tmp_path_factory.mktemp("elsewhere") / "new" / "out.jsonl"
    assert main(["data", "convert", str(SOURCES[source](folder)), str(output)]) == 0
    assert comparable(load_rows(output)) == comparable(load_rows(write(folder, SAME)))
    assert sorted(path.name for path in output.parent.iterdir()) == ["out-pictures", "out.jsonl"]
    assert [json.loads(line)["image"] for line in output.read_text().splitlines()] == [
        f"out-pictures/0000000{number}-0.png" for number in range(2)
    ]


def test_what_cannot_be_converted_is_named(folder, capsys):
    rows = [vqa, vqa | {"image": "images/lost.png"}, vqa | {"image": "../x.png"}, vqa | {"choices": ["a"]}]
    marked = {
        "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "A <image> tag?"}]}]
    }
    marked = {"messages": [*marked["messages"], {"role": "assistant", "content": "Yes."}], "images": ["images/a.png"]}
    data, output = write(folder, [*rows, marked]), folder / "out.jsonl"
    assert main(["data", "convert", str(data), str(output)]) == 0
    said = capsys.readouterr().err
    for part in (
        "1 rows in",
        "4 left out",
        "lost.png' is missing",
        "names a parent folder",
        "`choices`",
        "<image> as text",
    ):
        assert part in said
    assert main(["data", "convert", str(data), str(output)]) == 1
    assert "is there already" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"must end in \.jsonl"):
        write_llava(data, folder / "out.json")
    with pytest.raises(DataError, match=r"no row is left; .*is missing"):
        write_llava(write(folder, [rows[1]]), folder / "none.jsonl")
    assert not list(folder.glob("*none.jsonl*"))


@contextmanager
def full_disk():
    """No file grows beyond 64 KiB: a disk that takes no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def asked(*sizes):
    """Rows with a picture inside of so many pixels a side."""
    rows = []
    for number, size in enumerate(sizes):
        file = io.BytesIO()
        Image.frombytes("RGB", (size, size), random.Random(number).randbytes(3 * size**2)).save(file, "PNG")
        rows.append({"id": f"r{number}", "question": "What?", "answer": f"A{number}", "image": file.getvalue()})
    return rows


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_full_disk_ends_a_conversion_and_leaves_nothing(tmp_path):
    output = tmp_path / "out.jsonl"
    with full_disk(), pytest.raises(OSError, match=r"out-pictures cannot be written: .*make room"):
        write_llava(asked(8, 200, 8), output)
    assert files_of(tmp_path) == []
    done = write_llava(asked(8, 200, 8), output)
    assert (done.rows, done.written, done.left_out) == (3, 3, [])


def test_a_full_disk_ends_answers_and_a_further_start_writes_these_rows(tmp_path):
    rows, output = list(load_rows(asked(8, 200, 8))), tmp_path / "new.jsonl"
    file = AnswerFile(output, {"teacher": "a"})
    with full_disk(), pytest.raises(OSError, match=r"cannot be written: .*make room"):
        file.write(rows)
    file.close()
    assert not list(tmp_path.rglob("00000001-*"))  # no half of a picture
    again = AnswerFile(output, {"teacher": "a"})
    again.write(rows[again.taken :])
    done = again.finish()
    again.close()
    assert (done.rows, done.left_out) == (3, [])
    assert comparable(load_rows(output)) == comparable(load_rows(rows_as_given(tmp_path)))


def rows_as_given(folder):
    write_llava(asked(8, 200, 8), folder / "given.jsonl")
    return folder / "given.jsonl"


def test_a_conversion_that_fails_does_not_stand_in_the_way_of_the_next(tmp_path):
    def cut():
        yield from asked(8, 8)
        raise DataError("cut off")

    output = tmp_path / "out.jsonl"
    with pytest.raises(DataError, match="cut off"):
        write_llava(cut(), output)
    assert files_of(tmp_path) == []
    kept, left = asked(8, 8)
    left |= {"image": [left["image"], str(tmp_path / "lost.png")]}
    done = write_llava([left, kept], output)
    assert (done.rows, done.written, len(done.left_out)) == (1, 1, 1)
    assert files_of(tmp_path) == ["out-pictures", "out-pictures/00000000-0.png", "out.jsonl"]


def test_check_counts_what_is_understood(folder, capsys):
    rows = [
        vqa | {"source": "web"},
        llava("A?", answers=["B."]),
        vqa | {"image": "images/lost.png"},
        vqa | {"img": "x", "image": None},
    ]
    data, page = write(folder, rows), folder / "pages" / "page.html"
    assert main(["data", "check", str(data), "--page", str(page)]) == 1
    said = capsys.readouterr()
    assert "4 rows, 2 of them can be used" in said.out
    assert "3 answers, 3 of them are learned; pictures: 3 in files, 0 inside" in said.out
    assert "form question and answer (2), conversations (1); read" in said.out
    assert "left unread `source`" not in said.out
    assert "left unread source (1)" in said.out
    assert "lost.png' is missing" in said.out
    assert "has `img` and no image" in said.out
    assert f"2 rows with their pictures: {page}" in said.err
    assert page.read_text().count('<img src="data:image/png;base64,') == 2
    assert main(["data", "check", str(archive(folder, "d.tar")), "--page", str(page)]) == 0
    assert "pictures: 0 in files, 2 inside" in capsys.readouterr().out


def test_check_shows_three_rows_and_reads_all(folder):
    seen = look_over([vqa | {"id": str(number)} for number in range(7)], folder)
    assert (seen.rows, seen.bad, [row["id"] for row in seen.examples]) == (7, 0, ["0", "1", "2"])
    assert seen.sources["the rows given"].forms == {"question and answer": 7}


def test_texts_are_never_markup_in_the_page(folder):
    page = folder / "page.html"
    for start in range(0, len(HOSTILE), 3):
        texts = HOSTILE[start : start + 3]
        rows = [
            {"id": text, "question": text, "answer": text, "system": text, "image": "images/a.png"} for text in texts
        ]
        data = write(folder, [row | {"question": row["question"].replace("<image>", "")} for row in rows])
        assert main(["data", "check", str(data), "--page", str(page)]) == 0
        text = page.read_text()
        assert set(re.findall(r"<(\w+)", text)) <= TAGS
        assert text.count("<img ") == len(texts)
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in text


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["data", "check", "nothing.jsonl"], 1, "nothing.jsonl: no such file or folder"),
        (["data", "check", "owner/name"], 1, "as a data set of the Hugging Face hub"),
        (["data", "check", "x", "--columns", "q"], 1, "--columns q: write our name, =, and the data's"),
        (["data"], 2, "Expected one of {check, convert, answer}"),
    ],
)
def test_mistakes_are_told(folder, monkeypatch, capsys, words, code, message):
    monkeypatch.chdir(folder)
    assert main(words) == code
    assert message in " ".join(capsys.readouterr().err.split())
