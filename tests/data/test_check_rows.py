import json
import logging

import pytest
from datasets import Dataset
from PIL import Image
from tiny import tiny_processor

from switchkd.data.collate import Collator
from switchkd.data.errors import DataError
from switchkd.data.formats import load_rows
from switchkd.data.images import check_rows


@pytest.fixture(scope="module")
def collator():
    return Collator(tiny_processor(), max_length=120)


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


def test_five_percent_of_corrupt_images_are_skipped_and_listed(tmp_path, collator, caplog, capsys):
    corrupt = set(range(3, 1000, 20))
    rows = pictured(tmp_path, 1000, corrupt)
    names = [f"s{number}" for number in sorted(corrupt)]
    with caplog.at_level(logging.WARNING):
        kept = check_rows(rows, collator, max_bad_fraction=0.05, report_path=tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert [entry["id"] for entry in report["bad"]] == names
    assert len(names) == 50
    assert (report["rows"], report["kept"], report["truncated"]) == (1000, 950, [])
    assert all("cannot be read" in entry["reason"] for entry in report["bad"])
    assert all(f"skipped sample '{name}': image" in caplog.text for name in names)
    assert set(kept["id"]) == set(rows["id"]) - set(names)
    assert "checking samples: 1000 of 1000" in capsys.readouterr().err


def test_more_bad_rows_than_allowed_stop_the_run_after_the_report(tmp_path, collator):
    rows = pictured(tmp_path, 40, corrupt={7, 31})
    report = tmp_path / "report.json"
    with pytest.raises(
        DataError, match=r"2 of 40 samples \(5.0%\) are unusable, more than the allowed 4.0%.*report.json"
    ):
        check_rows(rows, collator, max_bad_fraction=0.04, report_path=report)
    assert [entry["id"] for entry in json.loads(report.read_text())["bad"]] == ["s7", "s31"]


def test_kept_rows_carry_their_lengths(tmp_path, collator):
    rows = [
        {"id": "one", "conversations": talk("Hi", "Yes.")},
        {"id": "two", "conversations": talk("Hi", "Yes.", "Sure?", "No.")},
    ]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    kept = check_rows(load_rows(tmp_path / "data.json"), collator)
    assert kept.column_names == ["id", "images", "messages", "kinds", "length", "answer_tokens"]
    batch = collator(list(kept))
    assert list(kept["length"]) == batch["attention_mask"].sum(dim=1).tolist()
    assert list(kept["answer_tokens"]) == (batch["labels"] != -100).sum(dim=1).tolist()


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
    kept = check_rows(
        load_rows(tmp_path / "data.json"), collator, max_bad_fraction=1.0, report_path=tmp_path / "report.json"
    )
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


def test_workers_give_the_same_verdicts(tmp_path, collator, monkeypatch):
    rows = pictured(tmp_path, 40, corrupt={7, 31})
    alone = check_rows(rows, collator, max_bad_fraction=0.1)
    monkeypatch.setattr("switchkd.data.images._ROWS_PER_WORKER", 20)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    shared = check_rows(rows, collator, max_bad_fraction=0.1)
    assert shared.to_list() == alone.to_list()
    assert len(shared) == 38


def test_nothing_usable_is_an_error_whatever_is_allowed(tmp_path, collator):
    rows = pictured(tmp_path, 2, corrupt={0, 1})
    with pytest.raises(DataError, match="2 of 2 samples"):
        check_rows(rows, collator, max_bad_fraction=1.0)
    with pytest.raises(DataError, match="no rows to check"):
        check_rows(Dataset.from_list([]), collator)


def test_the_check_leaves_the_global_random_state_alone(tmp_path, collator):
    import torch

    rows = pictured(tmp_path, 3)
    before = torch.get_rng_state()
    check_rows(rows, collator)
    assert torch.equal(torch.get_rng_state(), before)
