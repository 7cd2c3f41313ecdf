import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from counting import Counting
from datasets import Dataset
from PIL import Image
from tiny import tiny_processor

from switchkd.batch import TEACHER
from switchkd.data.collate import Collator
from switchkd.data.errors import DataError
from switchkd.data.formats import load_rows
from switchkd.data.index import Measured, build_index
from switchkd.data.reader import Reader
from switchkd.data.verdicts import row_key
from switchkd.pairing.reading import OwnInputs, SameInputs


@pytest.fixture(scope="module")
def collator():
    return Collator(Reader(tiny_processor(), max_length=120))


ADDED = ["key", "length", "answers", "compared", "tokens", "answers_by_words", "compared_by_words", "image_count"]


def written(folder, count, name="data.json"):
    rows = [{"id": f"s{number}", "conversations": talk(f"Question {number}?", "Yes.")} for number in range(count)]
    (folder / name).write_text(json.dumps(rows))
    return folder / name


def talk(*values):
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


def pictured(folder, count, corrupt=()):
    """`count` rows with an image each, the images of the rows in `corrupt` cut in half."""
    (folder / "images").mkdir()
    rows = []
    for number in range(count):
        path = folder / "images" / f"{number}.png"
        Image.new("RGB", (16, 16), (number % 256, 0, 0)).save(path)
        if number in corrupt:
            path.write_bytes(path.read_bytes()[:45])
        rows.append({"id": f"s{number}", "image": f"images/{number}.png", "conversations": talk("<image>\nA?", "Yes.")})
    (folder / "data.json").write_text(json.dumps(rows))
    return load_rows(folder / "data.json")


@pytest.mark.slow
def test_five_percent_of_corrupt_images_are_skipped_and_listed(tmp_path, collator, caplog, capsys):
    corrupt = set(range(3, 1000, 20))
    rows = pictured(tmp_path, 1000, corrupt)
    names = [f"s{number}" for number in sorted(corrupt)]
    with caplog.at_level(logging.WARNING):
        kept = build_index(rows, collator, max_bad_fraction=0.05, report_path=tmp_path / "report.json").rows
    report = json.loads((tmp_path / "report.json").read_text())
    assert [entry["id"] for entry in report["bad"]] == names
    assert len(names) == 50
    assert (report["rows"], report["kept"], report["truncated"]) == (1000, 950, [])
    assert all("cannot be read" in entry["reason"] for entry in report["bad"])
    assert all(f"skipped sample '{name}': image" in caplog.text for name in names)
    assert set(kept["id"]) == set(rows["id"]) - set(names)
    assert "checking samples: 1,000 of 1,000" in capsys.readouterr().err


@pytest.mark.parametrize("corrupt", [{0}, {4}, {2}, {0, 1, 4}], ids=str)
def test_the_good_rows_are_left_wherever_the_bad_ones_are(tmp_path, collator, corrupt):
    kept = build_index(pictured(tmp_path, 5, corrupt), collator, max_bad_fraction=0.6).rows
    assert kept["id"][:] == [f"s{number}" for number in range(5) if number not in corrupt]


def test_more_bad_rows_than_allowed_stop_the_run_after_the_report(tmp_path, collator):
    rows = pictured(tmp_path, 40, corrupt={7, 31})
    report = tmp_path / "report.json"
    with pytest.raises(
        DataError, match=r"2 of 40 samples \(5.0%\) are unusable, more than the allowed 4.0%.*report.json"
    ):
        build_index(rows, collator, max_bad_fraction=0.04, report_path=report)
    assert [entry["id"] for entry in json.loads(report.read_text())["bad"]] == ["s7", "s31"]


def test_kept_rows_carry_their_lengths(tmp_path, collator):
    rows = [
        {"id": "one", "conversations": talk("Hi", "Yes.")},
        {"id": "two", "conversations": talk("Hi", "Yes.", "Sure?", "No.")},
    ]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    kept = build_index(load_rows(tmp_path / "data.json"), collator).rows
    assert kept.column_names == [
        "id",
        "source",
        "images",
        "videos",
        "messages",
        "kinds",
        "accepted",
        "metric",
        "teacher",
        *ADDED,
    ]
    batch = collator(list(kept))
    assert list(kept["length"]) == batch.student.lengths.tolist()
    assert list(kept["answers"]) == batch.student.sample.bincount().tolist()
    assert batch.keys == tuple(kept["key"])


def test_every_kind_of_bad_row_is_listed_with_its_reason(tmp_path, collator):
    Image.new("RGB", (16, 16)).save(tmp_path / "ok.png")
    Image.new("1", (8000, 7000)).save(tmp_path / "large.png")
    question = "<image>\nA?"
    rows = [
        {"id": "good", "image": "ok.png", "conversations": talk(question, "Yes.")},
        {"id": "large", "image": "large.png", "conversations": talk(question, "Yes.")},
        {"id": "missing", "image": "none.png", "conversations": talk(question, "Yes.")},
        {"id": "outside", "image": "../none.png", "conversations": talk(question, "Yes.")},
        {"id": "url", "image": "http://127.0.0.1/x.png", "conversations": talk(question, "Yes.")},
        {"id": "silent", "image": "ok.png", "conversations": talk(question)},
        {"id": "long question", "conversations": talk("A" * 500, "Yes.")},
        {"id": "long answer", "conversations": talk("A?", "A" * 500)},
        {"id": "late image", "image": "ok.png", "conversations": talk("A" * 500 + question, "Yes.")},
    ]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    index = build_index(
        load_rows(tmp_path / "data.json"), collator, max_bad_fraction=1.0, report_path=tmp_path / "report.json"
    )
    kept = index.rows
    report = json.loads((tmp_path / "report.json").read_text())
    reasons = {entry["id"]: entry["reason"] for entry in report["bad"]}
    expected = {
        "large": "8000 x 7000 = 56,000,000 pixels, limit 50,000,000",
        "missing": "none.png' is missing",
        "outside": "'../none.png' names a parent folder",
        "url": "is a URL",
        "silent": "no answer token",
        "long question": "its first answer begins at token",
        "late image": "its last image ends at token",
    }
    assert set(reasons) == set(expected)
    for name, part in expected.items():
        assert part in reasons[name]
        assert f"sample {name!r}" in reasons[name]
    assert list(kept["id"]) == ["good", "long answer"]
    (cut,) = report["truncated"]
    assert cut["id"] == "long answer"
    assert cut["kept_tokens"] == 120 == kept[1]["length"]
    assert cut["tokens"] > 500
    assert [row._asdict() for row in index.bad] == report["bad"]
    assert [row._asdict() for row in index.truncated] == report["truncated"]


def test_workers_give_the_same_verdicts(tmp_path, collator, monkeypatch):
    rows = pictured(tmp_path, 40, corrupt={7, 31})
    alone = build_index(rows, collator, max_bad_fraction=0.1).rows.to_list()
    monkeypatch.setenv("SWITCHKD_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr("switchkd.data.verdicts._SHARD_ROWS", 20)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert build_index(rows, collator, max_bad_fraction=0.1).rows.to_list() == alone
    assert len(alone) == 38


def test_nothing_usable_is_an_error_whatever_is_allowed(tmp_path, collator):
    rows = pictured(tmp_path, 2, corrupt={0, 1})
    with pytest.raises(DataError, match="2 of 2 samples"):
        build_index(rows, collator, max_bad_fraction=1.0)
    with pytest.raises(DataError, match="no rows to index"):
        build_index(Dataset.from_list([]), collator)


def test_the_index_leaves_the_global_random_state_alone(tmp_path, collator):
    import torch

    rows = pictured(tmp_path, 3)
    before = torch.get_rng_state()
    build_index(rows, collator)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.long
def test_each_row_is_encoded_once_and_never_again(tmp_path):
    encoder = Counting(tmp_path)
    path = written(tmp_path, 24)
    index = build_index(load_rows(path), encoder)
    assert encoder.encoded == [f"s{number}" for number in range(24)]
    again = build_index(load_rows(path), Counting(tmp_path))
    assert len(encoder.encoded) == 24
    assert again.rows.to_list() == index.rows.to_list()
    assert again.rows[3]["compared"] == 2
    assert [process.communicate()[0].strip() for process in [started(build_script(path, 0))]] == ["24"]
    assert len(encoder.encoded) == 24


BUILD = """
from pathlib import Path
from counting import Counting
from switchkd.data import verdicts
from switchkd.data.formats import load_rows
from switchkd.data.index import build_index
verdicts._SHARD_ROWS = 10
verdicts._BATCH_ROWS = 2
print(len(build_index(load_rows({path!r}), Counting(Path({folder!r}), seconds={seconds})).rows))
"""


def build_script(path, seconds):
    return BUILD.format(path=str(path), folder=str(path.parent), seconds=seconds)


def started(script):
    """A Python process that imports what this one imports."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_the_rows_are_mapped_into_memory_and_images_stay_undecoded(tmp_path):
    rows = build_index(pictured(tmp_path, 5), Counting(tmp_path)).rows
    assert {Path(file["filename"]).suffix for file in rows.cache_files} == {".arrow"}
    assert all(os.environ["SWITCHKD_CACHE"] in file["filename"] for file in rows.cache_files)
    assert rows[3]["images"] == [{"bytes": None, "path": str(tmp_path / "images" / "3.png")}]
    assert [row["image_count"] for row in rows.select([4, 0])] == [1, 1]


CHANGES = {
    "another processor": lambda path: {"fingerprint": "b"},
    "another file": lambda path: written(path.parent, 24).write_text(path.read_text().replace("s3", "t3")) and {},
    "touched": lambda path: os.utime(path, ns=(1, 1)) or {},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_changes_the_rows_or_their_reader_makes_a_new_index(tmp_path, change):
    path = written(tmp_path, 24)
    first = build_index(load_rows(path), Counting(tmp_path))
    changed = Counting(tmp_path, **change(path))
    second = build_index(load_rows(path), changed)
    assert len(changed.encoded) == 48
    same = set(first.rows["key"]) & set(second.rows["key"])
    assert len(same) == (0 if changed.fingerprint == "b" else 23 if "t3" in path.read_text() else 24)


def test_rows_in_memory_are_known_by_their_content(tmp_path):
    encoder = Counting(tmp_path)
    rows = load_rows(written(tmp_path, 4))
    for _ in range(2):
        build_index(Dataset.from_list(rows.to_list(), features=rows.features), encoder)
    assert len(encoder.encoded) == 4
    build_index(Dataset.from_list(rows.to_list()[::-1], features=rows.features), encoder)
    assert len(encoder.encoded) == 8


def test_the_first_rows_of_a_file_have_an_index_of_their_own(tmp_path):
    encoder = Counting(tmp_path)
    path = written(tmp_path, 24)
    for _ in range(2):
        assert len(build_index(load_rows(path).select(range(6)), encoder).rows) == 6
    assert len(encoder.encoded) == 6
    assert build_index(load_rows(path).select([5, 2]), encoder).rows["id"][:] == ["s5", "s2"]


def test_a_readers_fingerprint_is_of_processor_template_and_limits(collator):
    def fingerprint(**limits):
        return Reader(processor, **{"max_length": 120, **limits}).fingerprint

    same = collator.student.fingerprint
    processor = tiny_processor()
    assert fingerprint() == same
    processor(text=["<image> a"], images=[Image.new("RGB", (9, 9))], padding=True, return_tensors="pt")
    assert fingerprint() == same
    others = [fingerprint(max_length=121), fingerprint(max_pixels=9)]
    processor.chat_template = processor.chat_template + " "
    others.append(fingerprint())
    processor = tiny_processor()
    processor.image_processor.size = {"height": 40, "width": 40}
    others.append(fingerprint())
    assert len({same, *others}) == 5


def test_a_collators_fingerprint_is_of_its_readers_and_of_the_ids_that_are_compared(collator):
    def fingerprint(**teachers):
        return Collator(Reader(tiny_processor(), max_length=120), teachers).fingerprint

    assert fingerprint() == collator.fingerprint
    own = Reader(tiny_processor(), max_length=120)
    made = [
        fingerprint(),
        fingerprint(**{TEACHER: SameInputs(320)}),
        fingerprint(**{TEACHER: SameInputs(319)}),
        fingerprint(other=SameInputs(320)),
        fingerprint(**{TEACHER: OwnInputs(own, 320)}),
        fingerprint(**{TEACHER: OwnInputs(own, ([0, 1], [1, 0]))}),
        fingerprint(**{TEACHER: OwnInputs(Reader(tiny_processor(), max_length=121), 320)}),
    ]
    assert len(set(made)) == len(made)


@pytest.mark.long
def test_a_killed_build_goes_on_behind_its_last_shard(tmp_path, monkeypatch):
    monkeypatch.setenv("SWITCHKD_CACHE", str(tmp_path / "cache"))
    path = written(tmp_path, 95)
    process = started(build_script(path, 0.02))
    while len(shards := list(tmp_path.glob("cache/index/*/shards/*.parquet"))) < 3:
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    shards = len(list(tmp_path.glob("cache/index/*/shards/*.parquet")))
    encoder = Counting(tmp_path)
    before = len(encoder.encoded)
    assert 10 * shards <= before < 95
    monkeypatch.setattr("switchkd.data.verdicts._SHARD_ROWS", 10)
    assert build_index(load_rows(path), encoder).rows["id"][:] == [f"s{number}" for number in range(95)]
    assert len(encoder.encoded) - before == 95 - 10 * shards
    assert not list(tmp_path.glob("cache/index/*/shards"))


@pytest.mark.long
def test_of_two_processes_one_builds_and_the_other_reads(tmp_path):
    path = written(tmp_path, 24)
    processes = [started(build_script(path, 0.01)) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in processes] == ["24", "24"]
    assert sorted(Counting(tmp_path).encoded) == sorted(f"s{number}" for number in range(24))


def test_a_bad_row_is_measured_again_when_its_image_has_come(tmp_path):
    encoder = Counting(tmp_path)
    rows = pictured(tmp_path, 12)
    picture = tmp_path / "images" / "7.png"
    content = picture.read_bytes()
    picture.unlink()
    index = build_index(rows, encoder, max_bad_fraction=0.1)
    assert [row.id for row in index.bad] == ["s7"]
    assert build_index(rows, encoder, max_bad_fraction=0.1).bad == index.bad
    assert len(encoder.encoded) == 12
    picture.write_bytes(content)
    index = build_index(rows, encoder)
    assert index.bad == ()
    assert index.rows["id"][:] == rows["id"][:]
    assert encoder.encoded[12:] == ["s7"]


def test_a_row_for_which_there_is_no_memory_is_bad_until_there_is(tmp_path, monkeypatch):
    def measure(self, row):
        if row["id"] == "s1":
            raise MemoryError
        return Measured(9, 3, 3, 9)

    rows = load_rows(written(tmp_path, 3))
    with monkeypatch.context() as patch:
        patch.setattr(Counting, "measure", measure)
        (bad,) = build_index(rows, Counting(tmp_path), max_bad_fraction=0.5).bad
    assert bad == ("s1", "sample 's1': there was not enough memory to encode it")
    assert build_index(rows, Counting(tmp_path)).bad == ()


def test_keys_tell_rows_apart_by_content_and_images(tmp_path):
    rows = pictured(tmp_path, 3)
    (row, other, third) = rows.to_list()
    assert row_key(row, "a").startswith("s0@")
    assert len(row_key(row, "a")) == len("s0@") + 16
    keys = {row_key(row, "a"), row_key(other | {"id": "s0"}, "a"), row_key(row, "b"), row_key(row | {"kinds": []}, "a")}
    assert len(keys) == 4
    os.utime(row["images"][0]["path"], ns=(1, 1))
    assert row_key(row, "a") not in keys
    content = Path(third["images"][0]["path"]).read_bytes()
    embedded = [row_key(third | {"images": [{"bytes": data, "path": None}]}, "a") for data in (content, content[1:])]
    assert embedded[0] != embedded[1]
