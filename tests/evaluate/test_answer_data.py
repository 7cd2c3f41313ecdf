"""Answers that a teacher writes: as a data file that is complete or not there, and gone on with."""

import json

import pytest
from run_files import write_data, write_model
from tiny import tiny_processor
from tiny_models import tiny_llava

from switchkd.cli import main
from switchkd.data.errors import DataError
from switchkd.data.formats import load_rows
from switchkd.evaluate import answer_data as module
from switchkd.evaluate.answer_data import answer_data
from switchkd.evaluate.generate import Answer

#: Is not asked: `Teacher` stands in for its answers.
MODEL = tiny_llava(), tiny_processor()


@pytest.fixture
def data(tmp_path):
    write_data(tmp_path / "rows.json", 5)
    return tmp_path / "rows.json"


class Teacher:
    """Stands in for `generate.answers`: says which question it was asked, and stops the run after so many batches."""

    def __init__(self, stop_after=None):
        self.batches = 0
        self.asked = []
        self.stop_after = stop_after

    def __call__(self, model, processor, samples, *, max_new_tokens):
        if self.batches == self.stop_after:
            raise KeyboardInterrupt
        self.batches += 1
        said = []
        for sample in samples:
            self.asked.append([message["role"] for message in sample["messages"]])
            before = sum(message["role"] == "assistant" for message in sample["messages"])
            said.append(Answer(f"{sample['id']} answer {before}", False))
        return said


def write(monkeypatch, rows, output, teacher, **more):
    monkeypatch.setattr(module, "answers", teacher)
    return answer_data(*MODEL, rows, output, made_from={"teacher": "a"}, batch_size=2, **more)


def test_every_answer_is_the_teacher_s_and_later_ones_follow_its_own(data, tmp_path, monkeypatch):
    rows = load_rows(str(data))
    teacher = Teacher()
    done = write(monkeypatch, rows, tmp_path / "new.jsonl", teacher)
    assert (done.rows, done.left_out) == (5, [])
    again = load_rows(str(tmp_path / "new.jsonl"))
    assert again["id"][:] == rows["id"][:]
    texts = [[m["content"][0]["text"] for m in row["messages"] if m["role"] == "assistant"] for row in again]
    assert texts == [[f"{name} answer 0", f"{name} answer 1"] for name in rows["id"][:]]
    assert [image["path"] for row in again for image in row["images"]] == [
        image["path"] for row in rows for image in row["images"]
    ]
    assert teacher.batches == 6  # three of rows, each with two turns
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "new.jsonl", "rows.json"]


@pytest.mark.parametrize("after", range(6))
def test_a_start_that_was_ended_is_gone_on_with_to_the_same_bytes(data, tmp_path, monkeypatch, after):
    rows = load_rows(str(data))
    write(monkeypatch, rows, tmp_path / "whole.jsonl", Teacher())
    with pytest.raises(KeyboardInterrupt):
        write(monkeypatch, rows, tmp_path / "new.jsonl", Teacher(stop_after=after))
    assert not (tmp_path / "new.jsonl").exists()
    partial = tmp_path / ".new.jsonl.partial"
    with partial.open("a") as file:
        file.write('{"id": "half')  # as a kill leaves it
    teacher = Teacher()
    write(monkeypatch, rows, tmp_path / "new.jsonl", teacher)
    assert teacher.batches == 6 - after // 2 * 2
    assert (tmp_path / "new.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not partial.exists()


def test_answers_of_something_else_are_not_gone_on_with(data, tmp_path, monkeypatch):
    rows = load_rows(str(data))
    with pytest.raises(KeyboardInterrupt):
        write(monkeypatch, rows, tmp_path / "new.jsonl", Teacher(stop_after=2))
    with pytest.raises(DataError, match=r"made from something else: max_new_tokens: 512 then, 9 now"):
        write(monkeypatch, rows, tmp_path / "new.jsonl", Teacher(), max_new_tokens=9)
    (tmp_path / ".new.jsonl.partial").unlink()
    write(monkeypatch, rows, tmp_path / "new.jsonl", Teacher())
    with pytest.raises(DataError, match="is there already"):
        write(monkeypatch, rows, tmp_path / "new.jsonl", Teacher())
    with pytest.raises(DataError, match=r"must end in \.jsonl"):
        write(monkeypatch, rows, tmp_path / "new.json", Teacher())


def test_what_has_no_answer_is_left_out_and_named(data, tmp_path, monkeypatch):
    rows = load_rows(str(data))
    given = iter(["a", "", "b", "c", "d", "e", "f"])

    def some(model, processor, samples, *, max_new_tokens):
        return [Answer(text := next(given), text == "d") for _ in samples]

    monkeypatch.setattr(module, "answers", some)
    done = answer_data(*MODEL, rows.select(range(3)), tmp_path / "new.jsonl", made_from={}, max_new_tokens=7)
    assert done.rows == 1
    assert sorted(done.left_out) == [
        "sample 'rows-1': an answer is empty",
        "sample 'rows-2': an answer had not ended after 7 tokens",
    ]


def test_a_command_answers_data_and_what_a_recipe_names(tmp_path, capsys):
    write_model(tmp_path / "teacher", seed=1)
    write_data(tmp_path / "rows.json", 2)
    data, output = str(tmp_path / "rows.json"), tmp_path / "new.jsonl"
    assert main(["data", "answer", data, "-o", str(output)]) == 1
    assert "data answer needs --teacher" in capsys.readouterr().err
    command = ["data", "answer", data, "--teacher", str(tmp_path / "teacher"), "-o", str(output)]
    code = main([*command, "--max-new-tokens", "3"])
    told = capsys.readouterr().err
    if code == 0:
        assert all(json.loads(line)["conversations"] for line in output.read_text().splitlines())
    else:  # a random teacher seldom ends an answer
        assert "no row is left" in told
        assert "had not ended after 3 tokens" in told or "is empty" in told
