"""What is asked of a benchmark's files, and the command line over them."""

import json
import re
from dataclasses import fields
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import datasets
import pytest
from shown_diffs import hold
from ten_rows import TYPED, picture, write
from tiny import IMAGE_SIZE, tiny_processor
from tiny_models import tiny_llava
from tiny_processors import PROCESSORS, tiny_for
from transformers import LlavaForConditionalGeneration

from switchkd import cli
from switchkd.data.errors import DataError, SampleError
from switchkd.evaluate.benchmarks import BENCHMARKS, parse_names
from switchkd.evaluate.benchmarks import ask_benchmarks as run
from switchkd.evaluate.benchmarks import benchmark_samples as data
from switchkd.evaluate.benchmarks.adapter import upstream_config
from switchkd.evaluate.benchmarks.ask_benchmarks import evaluate_benchmarks
from switchkd.evaluate.generate import Answer
from switchkd.results.benchmark_results import BenchmarkResult, BenchmarkResults, Given
from switchkd.results.ten_way_mean import TEN


def rows(name):
    return [dict(row) for row, _ in TYPED[name]]


@pytest.fixture(scope="module")
def parts():
    processor = tiny_processor()
    model = tiny_llava(vocabulary=len(processor.tokenizer), image_size=IMAGE_SIZE)
    model.config.image_token_id = processor.tokenizer.convert_tokens_to_ids("<image>")
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    return model, processor


@pytest.fixture(scope="module")
def checkpoint(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    for part in parts:
        part.save_pretrained(folder)
    return folder


def ask(parts, name, folder, **options):
    model, processor = parts
    return evaluate_benchmarks(model, [name], data=folder, processor=processor, max_new_tokens=1, **options)


#: Benchmark, row, changes to it, and the message about it.
BAD = {
    "no question": ("gqa", 1, {"question": " "}, r"gqa\.parquet, row 1: `question` must be text"),
    "no answer": ("gqa", 0, {"answer": None}, r"row 0: `answer` must be text, not None"),
    "no picture": ("vizwiz", 1, {"image": None}, r"row 1: `image` holds no image"),
    "a category": ("mme", 3, {"category": "colour"}, r"row 3: `category` 'colour' is none of existence"),
    "not a pair": ("mme", 4, {"question_id": "x"}, r"question_id 'x' of category position has 1 rows"),
    "maybe": ("pope", 2, {"answer": "maybe"}, r"row 2: `answer` must be yes or no, not 'maybe'"),
    "people": (
        "vqav2",
        0,
        {"answers": [{"answer": "red", "answer_id": 1}] * 10},
        r"row 0: `answers` need an `answer_id`",
    ),
    "people without names": (
        "vqav2",
        1,
        {"answers": None},
        r"row 1: `answers` must be a list of objects with an `answer`, not None",
    ),
    "silence": ("vqav2", 1, {"answers": [{"answer": " ", "answer_id": 1}]}, r"row 1: `answers` holds no `answer`"),
    "nobody": ("textvqa", 0, {"answers": []}, r"row 0: `answers` must be a list of texts"),
    "no such choice": ("scienceqa", 1, {"answer": 2}, r"row 1: `answer` must be the index of one of the 2 choices"),
    "no such letter": ("mmbench_cn", 4, {"answer": "D"}, r"row 4: `answer` must be one of A, B, not 'D'"),
    "a lost question": ("mmbench_en", 0, {"index": 5}, r"index \d+ is a rotation of index 7, which has no row"),
    "no such option": ("mmmu", 0, {"answer": "E"}, r"row 0: `answer` must be the letter of one of the 4 options"),
    "no second picture": ("mmmu", 1, {"image_2": None}, r"row 1: `image_2` holds no image"),
    "no such index": ("ai2d", 1, {"answer": "2"}, r"row 1: `answer` must be the index of one of the 2 options as text"),
    "one option": ("ai2d", 0, {"options": ["root"]}, r"row 0: `options` must be a list of at least two texts"),
    "options": ("mmmu", 0, {"options": "A or B"}, r"row 0: `options` must be the text of a list"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_row_that_cannot_be_scored_is_named_before_anything_is_asked(case, tmp_path):
    name, number, changes, message = BAD[case]
    changed = rows(name)
    changed[number] |= changes
    write(tmp_path, name, changed)
    with pytest.raises(DataError, match=message):
        data.load(BENCHMARKS[name], tmp_path, {})


@pytest.mark.parametrize("content", [b"", picture(1)["bytes"][:60], b"no picture"], ids=["empty", "cut off", "text"])
def test_a_broken_picture_is_named_and_nothing_is_written(content, parts, tmp_path):
    changed = rows("gqa")
    changed[1]["image"] = {"bytes": content, "path": None}
    write(tmp_path, "gqa", changed)
    with pytest.raises(SampleError, match=r"gqa\.parquet, row 1.*embedded image cannot be read"):
        ask(parts, "gqa", tmp_path, output=tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_files_that_are_missing_or_wrong_are_named(tmp_path):
    with pytest.raises(
        DataError, match=r"pope: neither the file .*pope\.parquet nor Parquet files in the folder .*pope"
    ):
        data.load(BENCHMARKS["pope"], tmp_path, {})
    (tmp_path / "pope.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match=r"pope\.parquet: not readable as Parquet"):
        data.load(BENCHMARKS["pope"], tmp_path, {})
    write(tmp_path, "pope", [{k: v for k, v in row.items() if k != "category"} for row in rows("pope")])
    with pytest.raises(
        DataError, match=r"POPE needs the columns .*category.*; there is no category, but id, question_id"
    ):
        data.load(BENCHMARKS["pope"], tmp_path, {})
    paths = datasets.Dataset.from_list([row | {"image": "a.png"} for row in rows("pope")])
    paths.to_parquet(tmp_path / "pope.parquet")
    with pytest.raises(DataError, match=r"pope\.parquet: `image` must hold images with their bytes inside"):
        data.load(BENCHMARKS["pope"], tmp_path, {})
    (tmp_path / "pope").mkdir()
    with pytest.raises(DataError, match=r"there are both .*pope\.parquet and .*pope; keep one"):
        data.load(BENCHMARKS["pope"], tmp_path, {})


def test_a_folder_of_parts_is_read_in_the_order_of_their_names(tmp_path):
    write(tmp_path / "parts", "pope", rows("pope")[:2]).rename(tmp_path / "b.parquet")
    write(tmp_path / "parts", "pope", rows("pope")[2:]).rename(tmp_path / "a.parquet")
    (tmp_path / "pope").mkdir()
    for file in ("a", "b"):
        (tmp_path / f"{file}.parquet").rename(tmp_path / "pope" / f"{file}.parquet")
    loaded = data.load(BENCHMARKS["pope"], tmp_path, {})
    assert [loaded.doc(i)["category"] for i in range(6)] == ["popular"] * 2 + ["random"] * 2 + ["adversarial"] * 2


def test_gqas_images_may_be_a_file_of_their_own(tmp_path):
    write(tmp_path, "gqa", [{k: v for k, v in row.items() if k != "image"} for row in rows("gqa")])
    images = [{"id": row["imageId"], "image": row["image"]} for row in reversed(rows("gqa"))]
    features = datasets.Features({"id": datasets.Value("string"), "image": datasets.Image()})
    datasets.Dataset.from_list(images, features=features).to_parquet(tmp_path / "gqa-images.parquet")
    loaded = data.load(BENCHMARKS["gqa"], tmp_path, {})
    assert [loaded.doc(number)["image"]["bytes"] for number in range(2)] == [
        row["image"]["bytes"] for row in rows("gqa")
    ]
    datasets.Dataset.from_list(images[:1], features=features).to_parquet(tmp_path / "gqa-images.parquet")
    with pytest.raises(DataError, match="row 0: `image` holds no image"):
        data.load(BENCHMARKS["gqa"], tmp_path, {})


def test_without_a_folder_the_rows_come_from_the_hub_or_the_message_says_how_to_do_without(monkeypatch, tmp_path):
    asked = []

    def load_dataset(path, config, *, split):
        asked.append((path.split("/")[1], config, split))
        if path.endswith("MME"):
            raise ConnectionError("offline mode is enabled")
        return datasets.Dataset.from_parquet(str(write(tmp_path, path.split("/")[1].lower())))

    monkeypatch.setattr(data, "load_dataset", load_dataset)
    for name in ("pope", "gqa"):
        assert len(data.load(BENCHMARKS[name], None, upstream_config(BENCHMARKS[name]))) == len(TYPED[name])
    with pytest.raises(
        DataError, match=r"mme: .*MME/test cannot be loaded from the hub \(offline mode is enabled\); .*--data"
    ):
        data.load(BENCHMARKS["mme"], None, upstream_config(BENCHMARKS["mme"]))
    assert asked == [("POPE", None, "test"), ("GQA", "testdev_balanced_instructions", "testdev"), ("MME", None, "test")]


def test_names_of_benchmarks():
    assert parse_names("all") == list(TEN) == list(BENCHMARKS)[:10]
    assert parse_names("pope, mme") == ["pope", "mme"]
    assert parse_names("ai2d, all") == ["ai2d", *TEN]
    for wrong, message in (("popes", "there is no benchmark 'popes'; there are mme"), ("mme,all", "named twice")):
        with pytest.raises(ValueError, match=message):
            parse_names(wrong)


def test_a_generation_that_fails_is_never_an_empty_answer(parts, tmp_path, monkeypatch):
    write(tmp_path, "mmmu")
    calls = []

    def answers(model, processor, asked, *, max_new_tokens):
        calls.append(asked)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return [Answer("A", True) for _ in asked]

    monkeypatch.setattr(run, "answers", answers)
    with pytest.raises(RuntimeError, match="out of memory"):
        ask(parts, "mmmu", tmp_path, batch_size=3, output=tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()
    monkeypatch.setattr(run, "answers", lambda *args, **kwargs: [Answer("A", False)])
    with pytest.raises(RuntimeError, match="4 questions were asked and 1 answers came back"):
        ask(parts, "mmmu", tmp_path)


def test_the_command_asks_a_real_model_with_one_and_with_several_images(checkpoint, tmp_path, capsys):
    for name in ("mmmu", "pope"):
        write(tmp_path, name)
    output = tmp_path / "results.json"
    flags = ["--data", str(tmp_path), "--max-new-tokens", "3", "--batch-size", "4", "--output", str(output)]
    assert cli.main(["evaluate", str(checkpoint), "--benchmarks", "mmmu,pope", *flags]) == 0
    captured = capsys.readouterr()
    assert "MMMU" in captured.out
    assert "6 of 9000" in captured.out
    assert f"results in {output}" in captured.err
    written = json.loads(output.read_text())
    assert {name: result["samples"] for name, result in written["benchmarks"].items()} == {"mmmu": 4, "pope": 6}
    assert written["benchmarks"]["mmmu"]["max_new_tokens"] == 3
    answers = [json.loads(line)["answer"] for line in (tmp_path / "results.answers.jsonl").read_text().splitlines()]
    assert len(answers) == 10
    assert any(answers)


@pytest.mark.parametrize("name", PROCESSORS)
def test_every_family_answers_the_same_in_batches_and_alone(name, tmp_path):
    processor = PROCESSORS[name]()
    model = tiny_for(name, processor)
    write(tmp_path, "mmmu")  # one image and several in a batch

    def said(batch_size):
        sizes = {"batch_size": batch_size, "max_new_tokens": 2}
        results = evaluate_benchmarks(model, ["mmmu"], data=tmp_path, processor=processor, **sizes)
        return [given.answer for given in results.given]

    together = said(4)
    assert len(together) == 4
    assert any(together)
    assert together == said(1)


def test_the_command_fails_when_a_generation_fails(checkpoint, tmp_path, capsys, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("the device is gone")

    write(tmp_path, "pope")
    monkeypatch.setattr(LlavaForConditionalGeneration, "generate", fail)
    flags = ["--data", str(tmp_path), "--output", str(tmp_path / "out.json")]
    assert cli.main(["evaluate", str(checkpoint), "--benchmarks", "pope", *flags]) == 1
    assert "the device is gone" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["pope.parquet"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "evaluate needs DATA (questions of your own) or --benchmarks"),
        (["test.json", "--benchmarks", "all"], "takes DATA (test.json) or --benchmarks, not both"),
        (["test.json", "--data", "folder"], "--data is the folder of --benchmarks"),
        (["--benchmarks", "all", "--image-root", "x"], "--image-root is for DATA"),
    ],
)
def test_the_command_takes_questions_or_benchmarks(arguments, message, capsys):
    assert cli.main(["evaluate", "model", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_without_lmms_eval_the_message_says_how_it_is_installed(parts, tmp_path, monkeypatch):
    def version(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(run, "version", version)
    with pytest.raises(ImportError, match=re.escape(" && ".join(run.INSTALL))):
        ask(parts, "pope", tmp_path)


def test_the_page_says_how_it_is_installed_and_what_results_hold():
    page = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text()
    assert "\n".join(run.INSTALL) in page
    kinds = (BenchmarkResults, BenchmarkResult, Given)
    names = {field.metadata.get("stored", field.name) for kind in kinds for field in fields(kind)} - {"given"}
    assert [name for name in [*names, *BENCHMARKS] if f"`{name}`" not in page] == []
    for benchmark in BENCHMARKS.values():
        (row,) = [line for line in page.splitlines() if re.match(rf"\| .*`{benchmark.name}`.* \|", line)]
        written = row.replace("`A` to `D`", "`A`, `B`, `C`, `D`")
        assert [column for column in benchmark.columns if f"`{column}`" not in written] == []


def test_the_page_shows_all_of_a_benchmark():
    hold("benchmarks.md", "src/switchkd/evaluate/benchmarks/ai2d.py")
