"""Rows that name their teacher: read from every form, kept when they are written, and made into a batch for each teacher."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from switchkd.batch import Batch, TaggedBatch
from switchkd.data.collate import Collator, EncodedSample
from switchkd.data.errors import SampleError
from switchkd.data.formats import load_rows
from switchkd.data.llava_rows import write_llava
from switchkd.data.reader import Encoded
from switchkd.data.streaming import RowStream
from switchkd.data.tagged import TaggedCollator, taught_by

TALK = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]


def written(folder, rows, kind):
    file = folder / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif kind == "json":
        file.write_text(json.dumps(rows))
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet"])
@pytest.mark.parametrize(
    "talk",
    [{"conversations": TALK}, {"messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]},
     {"question": "What?", "answer": "That."}, {"texts": [{"user": "What?", "assistant": "That."}]}],
    ids=["conversations", "messages", "question", "texts"],
)  # fmt: skip
def test_every_form_has_a_teacher(tmp_path, kind, talk):
    rows = [{"id": "a", "teacher": "ocr", **talk}, {"id": "b", "teacher": None, **talk}]
    read = load_rows(written(tmp_path, rows, kind))
    assert (read["teacher"][:], read["problem"][:]) == (["ocr", None], [None, None])


def test_a_column_of_another_name_can_be_it(tmp_path):
    file = written(tmp_path, [{"question": "What?", "answer": "That.", "source_task": "docs"}], "jsonl")
    assert load_rows(file, columns={"teacher": "source_task"})["teacher"][:] == ["docs"]


def test_other_peoples_columns_of_that_name_do_no_harm(tmp_path):
    rows = [{"conversations": TALK, "teacher": value} for value in ({"answer": "x"}, 3, "a long text " * 20)]
    read = load_rows(written(tmp_path, rows, "jsonl"))
    assert read["problem"][:] == [None] * 3
    assert read["teacher"][:] == ["{'answer': 'x'}", "3", ("a long text " * 20)[:61]]


def test_files_say_it_for_rows_that_do_not_and_a_stream_too(tmp_path):
    for name in ("a", "b"):
        rows = [{"id": f"{name}{number}", "conversations": TALK} for number in range(2)]
        rows[1]["teacher"] = "own"
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    names, tags = [str(tmp_path / f"{name}.json") for name in ("a", "b")], ["ocr", None]
    assert load_rows(names, teachers=tags)["teacher"][:] == ["ocr", "own", None, "own"]
    assert load_rows(names)["teacher"][:] == [None, "own"] * 2  # not what the cache has of the other
    stream, other = RowStream(names, None, {}, tags), RowStream(names, None, {})
    assert stream.head(4)["teacher"][:] == ["ocr", "own", None, "own"]
    assert stream.identity != other.identity


def test_rows_are_written_with_their_teacher(tmp_path):
    file = written(tmp_path, [{"conversations": TALK, "teacher": "ocr"}, {"conversations": TALK}], "jsonl")
    write_llava(file, tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line.get("teacher") for line in lines] == ["ocr", None]


# ---- batches


class Named(Collator):
    """A sample is its name, and a batch has those that were joined."""

    def __init__(self, name):
        self.name = name

    fingerprint = property(lambda self: self.name)

    def encode(self, row):
        return EncodedSample(f"{self.name}/{row['id']}", Encoded([1], [], [None], 1, {}, {}), {})

    def join(self, samples, packs=None):
        return Batch((*(sample.key for sample in samples), str(packs)), None, {}, {})


def row(name, teacher, **more):
    return {"id": name, "teacher": teacher, "source": "d.json, row 0", **more}


ROWS = [row("1", "b"), row("2", "a"), row("3", "b"), row("4", "b")]


def parts(batch):
    assert isinstance(batch, TaggedBatch)
    return {tag: part.keys for tag, part in batch.parts.items()}


def test_each_part_has_the_samples_of_one_teacher_in_order():
    collator = TaggedCollator({"a": Named("a"), "b": Named("b")})
    batch = collator(ROWS)
    assert parts(batch) == {"a": ("a/2", "None"), "b": ("b/1", "b/3", "b/4", "None")}
    assert list(batch.parts) == ["a", "b"]
    assert batch.keys == ("a/2", "None", "b/1", "b/3", "b/4", "None")
    assert parts(collator(ROWS[2:])) == {"b": ("b/3", "b/4", "None")}


def test_samples_that_share_a_packed_row_still_share_one_with_those_of_their_teacher():
    collator = TaggedCollator({"a": Named("a"), "b": Named("b")})
    samples = [collator.encode(one) for one in ROWS]
    assert parts(collator.join(samples, [3, 1])) == {"a": ("a/2", "[1]"), "b": ("b/1", "b/3", "b/4", "[2, 1]")}


def test_a_row_is_keyed_by_its_teachers_reading_and_the_whole_by_all():
    collator = TaggedCollator({"a": Named("a"), "b": Named("b")})
    assert [collator.fingerprint_of(one) for one in ROWS] == ["b", "a", "b", "b"]
    assert collator.fingerprint_of(row("5", "c")) == collator.fingerprint
    assert collator.fingerprint != TaggedCollator({"a": Named("a"), "b": Named("c")}).fingerprint
    assert collator.fingerprint != TaggedCollator({"a": Named("b"), "b": Named("a")}).fingerprint


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (row("5", None), r"d\.json, row 0 \(id '5'\): names no teacher, and the recipe has the teachers a, b: give the row one"),
        (row("5", "c"), r"d\.json, row 0 \(id '5'\): is to be taught by 'c', and the recipe has the teachers a, b"),
        (row("5", None, problem="the image is gone"), "^the image is gone$"),
    ],
)  # fmt: skip
def test_a_row_that_nobody_teaches_is_refused(given, message):
    collator = TaggedCollator({"a": Named("a"), "b": Named("b")})
    for read in (collator.encode, collator.measure):
        with pytest.raises(SampleError, match=message):
            read(given)


def test_rows_of_one_teacher_are_chosen(tmp_path):
    rows = [{"id": str(number), "conversations": TALK, "teacher": "ab"[number % 2]} for number in range(5)]
    read = load_rows(written(tmp_path, rows, "json"))
    assert taught_by(read, "a")["id"][:] == ["0", "2", "4"]
    assert len(taught_by(read, "c")) == 0
    assert taught_by(taught_by(read, "b"), "b")["id"][:] == ["1", "3"]
