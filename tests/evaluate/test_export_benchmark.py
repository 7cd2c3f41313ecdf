"""A user's questions as rows of a benchmark: there and back."""

import json
import re

import pytest
from datasets import Dataset
from PIL import Image
from tiny import IMAGE_SIZE, tiny_processor
from tiny_models import tiny_llava

from switchkd import cli
from switchkd.data.errors import DataError
from switchkd.evaluate.benchmarks import BENCHMARKS, run
from switchkd.evaluate.benchmarks.export import export_benchmark
from switchkd.evaluate.generate import Answer

OPEN = [("What colour is it?", "Dark blue"), ("How many?", "2")]
CHOICE = [
    (
        "What is it?\nA. a cat\nB. a dog\nC. a cow\nAnswer with the option's letter from the given choices directly.",
        "B",
    ),
    ("Which?\n(A) up\n(B) down", "(A) up"),
    ("Where?\nA: here\nB: there\nC: nowhere\nD: everywhere", "Everywhere."),
]
YES_NO = [("Is it a dog?\nAnswer the question using a single word or phrase.", "Yes"), ("Is it a cow?", "no.")]
KINDS = {"mme": "existence", "pope": "popular"}
ASKED = dict.fromkeys(("mmbench_en", "mmbench_cn", "scienceqa", "mmmu"), CHOICE) | {"mme": YES_NO, "pope": YES_NO}


def write(folder, *pairs, images=("0.png",), kind=None, **more):
    """One row that asks every pair, and its picture."""
    for index, image in enumerate(("0.png", "1.png")):
        Image.new("RGB", (20, 24), ("red", "blue")[index]).save(folder / image)
    marks = "<image>" * len(images)
    turns = [{"from": who, "value": text} for pair in pairs for who, text in zip(("human", "gpt"), pair, strict=True)]
    turns[0]["value"] = f"{marks}\n{turns[0]['value']}"
    row = {"id": "a", "image": list(images), "conversations": turns, "kind": kind, **more}
    (folder / "mine.json").write_text(json.dumps([row]))
    return folder / "mine.json"


@pytest.fixture(scope="module")
def parts():
    processor = tiny_processor()
    return tiny_llava(vocabulary=len(processor.tokenizer), image_size=IMAGE_SIZE), processor


def test_the_right_answers_earn_full_marks_in_every_benchmark(parts, tmp_path, monkeypatch, capsys):
    model, processor = parts
    right = {}
    for name in BENCHMARKS:
        data = write(tmp_path, *ASKED.get(name, OPEN), kind=KINDS.get(name))
        assert cli.main(["data", "export-benchmark", name, str(data), "--output", str(tmp_path / "b")]) == 0
        assert f"--benchmarks {name} --data {tmp_path / 'b'}" in capsys.readouterr().err
        file = tmp_path / "b" / f"{name}.parquet"
        for number, row in enumerate(Dataset.from_parquet(str(file))):
            answer = row["answers"][0] if "answers" in row else row["answer"]
            answer = answer["answer"] if isinstance(answer, dict) else answer
            right[f"{file}, row {number}"] = "ABCD"[answer] if isinstance(answer, int) else answer
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == sorted(f"{name}.parquet" for name in BENCHMARKS)
    asked = []

    def answers(model, processor, rows, *, max_new_tokens):
        asked.extend(rows)
        return [Answer(right[row["id"]], False) for row in rows]

    monkeypatch.setattr(run, "answers", answers)
    results = run.evaluate_benchmarks(model, list(BENCHMARKS), data=tmp_path / "b", processor=processor)
    assert {name: result.percent for name, result in results.benchmarks.items()} == dict.fromkeys(BENCHMARKS, 100.0)
    assert {name: result.samples for name, result in results.benchmarks.items()} == {
        name: 2 if name not in ASKED else 9 if "mmbench" in name else len(ASKED[name]) for name in BENCHMARKS
    }
    assert {row["images"][0]["bytes"] for row in asked} == {(tmp_path / "0.png").read_bytes()}
    science = results.benchmarks["scienceqa"].prompt.split("\n")
    assert science[:4] == ["<image>What is it?", "A. a cat", "B. a dog", "C. a cow"]
    assert len(science) == 5
    assert results.benchmarks["pope"].prompt.count("single word") == 1
    assert [right[f"{tmp_path / 'b' / 'mmbench_en.parquet'}, row {number}"] for number in range(9)] == list("BACABDCBA")


def test_several_images_stand_where_they_stood(tmp_path):
    data = write(tmp_path, ("is the first, and <image> the second. Alike?", "no"), images=("0.png", "1.png"))
    data.write_text(data.read_text().replace("<image><image>", "<image>"))
    file, rows = export_benchmark("mmmu", data, tmp_path)
    (row,) = Dataset.from_parquet(str(file)).with_format("arrow")[:].to_pylist()
    assert (rows, row["question"]) == (1, "<image 1>is the first, and <image 2> the second. Alike?")
    assert [row[f"image_{n}"]["bytes"] for n in (1, 2)] == [(tmp_path / f"{n}.png").read_bytes() for n in (0, 1)]
    assert row["image_3"] is None


REFUSED = {
    "no options": ("mmbench_en", OPEN[:1], {}, "it has no options, and MMBench asks"),
    "five options": (
        "mmbench_cn",
        [("?\nA. 1\nB. 2\nC. 3\nD. 4\nE. 5", "A")],
        {},
        "it has 5 options, and MMBench knows 4",
    ),
    "another answer": ("scienceqa", [("?\nA. cat\nB. dog", "cow")], {}, "its answer 'cow' is none of its options A, B"),
    "options": ("vqav2", CHOICE[:1], {}, "it has options, which mmbench_en"),
    "not yes or no": ("pope", OPEN[:1], {}, "its answer is 'Dark blue', not yes or no"),
    "no category": ("mme", YES_NO, {}, "its kind is None, and must be an MME category"),
    "no pair": ("mme", YES_NO[:1], {"kind": "color"}, "its row has 1 questions, and MME needs two"),
    "two images": ("gqa", OPEN[:1], {"images": ("0.png", "1.png")}, "it has 2 images, and GQA shows one"),
    "no image": ("mmmu", OPEN[:1], {"images": ()}, "it has no image"),
    "a mark": ("mmmu", [("Look at <image 1>", "x")], {}, "its text holds <image 1>, the mark of an image"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_asked_is_refused_and_nothing_is_written(case, tmp_path):
    name, pairs, row, message = REFUSED[case]
    data = write(tmp_path, *pairs, **row)
    with pytest.raises(
        DataError, match=r"mine\.json, row 0 \(id 'a.*" + re.escape(f"{BENCHMARKS[name].title}: {message}")
    ):
        export_benchmark(name, data, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
    data = write(tmp_path, *OPEN)
    (tmp_path / "0.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"mine\.json, row 0 \(id 'a/1'\) cannot be asked in GQA: .*cannot be read"):
        export_benchmark("gqa", data, tmp_path / "b")


def test_a_file_that_is_there_is_not_replaced(tmp_path):
    data = write(tmp_path, *OPEN)
    (tmp_path / "gqa.parquet").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"gqa\.parquet exists; delete it first"):
        export_benchmark("gqa", data, tmp_path)
    assert (tmp_path / "gqa.parquet").read_bytes() == b"mine"


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    data = write(tmp_path, *OPEN)

    def fail(self, path):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(Dataset, "to_parquet", fail)
    with pytest.raises(OSError, match="no space left"):
        export_benchmark("gqa", data, tmp_path / "b")
    assert list((tmp_path / "b").iterdir()) == []
