import dataclasses
import json
import logging
from importlib.metadata import version

import pytest
import torch
from PIL import Image
from tiny import IMAGE_SIZE, tiny_processor
from tiny_models import tiny_llava
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from switchkd.data.errors import DataError
from switchkd.data.formats import load_rows
from switchkd.data.reader import Reader
from switchkd.evaluate import evaluate_model, evaluation
from switchkd.evaluate.generate import Answer, answers
from switchkd.evaluate.questions import fingerprint, prompt, questions, text_of
from switchkd.results import Results
from switchkd.results.score import Interval


@pytest.fixture(scope="module")
def processor() -> LlavaProcessor:
    return tiny_processor()


@pytest.fixture(scope="module")
def model(processor) -> LlavaForConditionalGeneration:
    """Random, and talkative: it ends some of its answers only."""
    tokenizer = processor.tokenizer
    model = tiny_llava(vocabulary=len(tokenizer), image_size=IMAGE_SIZE)
    model.config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def turns(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [
        {"from": who, "value": value}
        for question, answer in pairs
        for who, value in (("human", question), ("gpt", answer))
    ]


@pytest.fixture
def data(tmp_path):
    """Five questions: three about one picture, one about two pictures, one without."""
    for index, colour in enumerate(["red", "green", "blue"]):
        Image.new("RGB", (20, 24), colour).save(tmp_path / f"{index}.png")
    several = turns(("<image>\nWhat is it?", "A circle."), ("How many?", "One"), ("Is there a cat?", "No"))
    rows = [
        {"id": "a", "image": "0.png", "conversations": several, "kinds": ["shape", "count", None]},
        {"id": "b", "image": ["1.png", "2.png"], "conversations": turns(("<image> and <image>: the same?", "No")), "kind": "same"},
        {"id": "c", "conversations": turns(("Two and two?", "Four")), "kind": "count"},
    ]  # fmt: skip
    path = tmp_path / "test.json"
    path.write_text(json.dumps(rows))
    return path


def test_each_question_is_asked_alone_with_its_images(data):
    rows = load_rows(data)
    asked, bad = questions(rows)
    assert bad == []
    assert [question.id for question in asked] == ["a/1", "a/2", "a/3", "b", "c"]
    assert [question.kind for question in asked] == ["shape", "count", None, "same", "count"]
    assert asked[1].text == "How many?"
    second = prompt(rows[0], asked[1].turn)
    assert [part["type"] for part in second["messages"][0]["content"]] == ["image", "text"]
    assert len(second["messages"]) == 1
    assert second["images"] == rows[0]["images"]
    # images that stand inside the question stay where they are
    pair = prompt(rows[1], asked[3].turn)
    assert [part["type"] for part in pair["messages"][0]["content"]] == ["image", "text", "image", "text"]


def test_answers_say_which_pictures_they_are_about(data, model, processor, tmp_path):
    given = evaluate_model(model, data, processor=processor, max_new_tokens=2, output=tmp_path / "r.json").predictions
    assert [[file.removeprefix(f"{tmp_path}/") for file in answer.pictures] for answer in given] == [
        ["0.png"], ["0.png"], ["0.png"], ["1.png", "2.png"], [],
    ]  # fmt: skip
    keys = [answer.picture_key for answer in given]
    assert len(set(keys)) == 3
    assert keys[0] == keys[1] == keys[2]
    assert keys[4] == "c"
    assert Results.load(tmp_path / "r.json").predictions == given
    # the same pictures in rows of another name, inside the data
    (tmp_path / "copy.png").write_bytes((tmp_path / "0.png").read_bytes())
    row = {"id": "coco/train/7", "image": "copy.png", "conversations": turns(("<image>What?", "A circle."))}
    (tmp_path / "more.json").write_text(json.dumps([row]))
    (other,) = evaluate_model(model, tmp_path / "more.json", processor=processor, max_new_tokens=2).predictions
    assert other.picture_key == keys[0]


def test_each_question_is_scored_by_its_own_metric_that_of_its_kind_or_that_of_all(
    model, processor, monkeypatch, tmp_path
):
    given = {
        "sign": "stopp",
        "n": "105",
        "which": "(b) this",
        "plain": "Yes",
        "soft": "red",
        "caption": "a cat on a mat",
    }
    rows = [
        {"id": "sign", "question": "?", "answer": "stop", "kind": "ocr"},
        {"id": "n", "question": "?", "answer": 100, "metric": "relaxed", "kind": "ocr"},
        {"id": "which", "question": "?", "answer": "B", "kind": "choice"},
        {"id": "plain", "question": "?", "answer": "yes."},
        {"id": "soft", "question": "?", "accepted": ["red"] * 2 + ["blue"] * 8, "metric": "vqa"},
        {
            "id": "caption",
            "question": "?",
            "accepted": ["a cat on a mat", "one cat"],
            "metric": "cider",
            "kind": "text",
        },
        {"id": "other", "question": "?", "answer": "a dog runs", "metric": "cider", "kind": "text"},
    ]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answer = lambda model, processor, asked, **_: [Answer(given.get(one["id"], "?"), False) for one in asked]  # noqa: E731
    monkeypatch.setattr(evaluation, "answers", answer)
    metrics = {"ocr": "anls", "choice": "choice"}
    results = evaluate_model(
        model, tmp_path / "d.jsonl", processor=processor, metrics=metrics, output=tmp_path / "r.json"
    )
    marks = {one.id: (one.metric, round(one.points, 2), one.right) for one in results.predictions}
    assert marks == {
        "sign": ("anls", 0.8, False),
        "n": ("relaxed", 1, True),
        "which": ("choice", 1, True),
        "plain": ("exact", 1, True),
        "soft": ("vqa", 0.6, False),
        "caption": ("cider", marks["caption"][1], True),
        "other": ("cider", 0, False),
    }
    assert 1 < marks["caption"][1] < 10
    assert results.metrics == {"anls": 1, "relaxed": 1, "choice": 1, "exact": 1, "vqa": 1, "cider": 2}
    assert results.kinds["ocr"].accuracy_percent == pytest.approx(90)
    assert results.predictions[4].expected == "blue"  # what most say
    assert results.intervals_percent["ocr"] == Interval(80, 100)
    assert [one.id for one in results.wrong(3)] == ["other", "soft", "sign"]
    assert Results.load(tmp_path / "r.json") == results


def test_results_of_before_metrics_are_read_as_exact_match(data, model, processor, tmp_path):
    results = evaluate_model(model, data, processor=processor, max_new_tokens=2, output=tmp_path / "r.json")
    assert results.scored_by == "exact"
    for name, new in (
        ("r.json", ("metrics", "intervals_percent")),
        ("r.predictions.jsonl", ("accepted", "metric", "score")),
    ):
        lines = (tmp_path / name).read_text().splitlines() if name.endswith("l") else [(tmp_path / name).read_text()]
        trees = [{key: value for key, value in json.loads(line).items() if key not in new} for line in lines]
        (tmp_path / name).write_text("\n".join(map(json.dumps, trees)) + "\n")
    old = Results.load(tmp_path / "r.json")
    assert [one.points for one in old.predictions] == [one.points for one in results.predictions]
    assert (old.scored_by, old.intervals_percent) == ("exact", {})


@pytest.mark.parametrize(
    ("row", "metrics", "message"),
    [
        ({}, {"colour": "anls"}, "a metric is given for the kind colour, and the questions have shape"),
        ({"metric": "bleu"}, {}, "question '0': its metric 'bleu' is none of exact"),
        ({}, {None: "choice"}, "the metric choice needs a letter to compare with, and the answer is 'A circle.'"),
        ({"metric": 3}, {}, "`metric` must be the name of a metric, not 3"),
        ({"accepted": "x"}, {}, "`accepted` must be a list of the answers that are right"),
    ],
)
def test_a_metric_that_fits_no_question_is_said_before_the_model_is_asked(
    model, processor, tmp_path, monkeypatch, row, metrics, message
):
    monkeypatch.setattr(evaluation, "answers", None)
    (tmp_path / "d.json").write_text(json.dumps([{"question": "?", "answer": "A circle.", "kind": "shape"} | row]))
    with pytest.raises(ValueError, match=message):
        evaluate_model(model, tmp_path / "d.json", processor=processor, metrics=metrics)


def test_a_system_message_stays_before_every_question(data):
    row = load_rows(data)[0]
    row["messages"].insert(0, {"role": "system", "content": [{"type": "text", "text": "Be brief."}]})
    assert [message["role"] for message in prompt(row, 3)["messages"]] == ["system", "user"]


def test_an_answer_does_not_depend_on_what_shares_its_batch(data, model, processor):
    rows = load_rows(data)
    conversations = [prompt(rows[question.sample], question.turn) for question in questions(rows)[0]]
    together = answers(model, processor, conversations, max_new_tokens=12)
    alone = [answers(model, processor, [one], max_new_tokens=12)[0] for one in conversations]
    assert together == alone
    assert len({answer.text for answer in together}) > 1


def test_generation_is_greedy_whatever_the_checkpoint_prefers(data, model, processor):
    rows = load_rows(data)
    row = prompt(rows[0], 0)
    model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=3.0, num_beams=2)
    try:
        (given,) = answers(model, processor, [row], max_new_tokens=6)
    finally:
        model.generation_config.update(do_sample=False, temperature=1.0, repetition_penalty=1.0, num_beams=1)
    batch = Reader(processor).prompts([row])
    tokens = batch.pop("input_ids")
    start = tokens.shape[1]
    for _ in range(6):  # the slow definition: argmax, one token after another
        with torch.no_grad():
            logits = model(input_ids=tokens, pixel_values=batch["pixel_values"]).logits
        tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
        if tokens[0, -1] == processor.tokenizer.eos_token_id:
            break
    assert given.text == processor.tokenizer.decode(tokens[0, start:], skip_special_tokens=True).strip()


def test_results_count_right(data, model, processor, monkeypatch, tmp_path):
    said = {"What is it?": "a circle", "How many?": "Two", "a cat?": "no.", "the same?": "yes", "two?": " FOUR "}

    def answer(model, processor, rows, *, max_new_tokens):
        asked = [text_of(row["messages"][-1]) for row in rows]
        return [Answer(next(said[end] for end in said if text.endswith(end)), False) for text in asked]

    monkeypatch.setattr(evaluation, "answers", answer)
    results = evaluate_model(model, data, processor=processor, batch_size=2, output=tmp_path / "out" / "sft.json")
    assert [prediction.right for prediction in results.predictions] == [True, False, True, False, True]
    assert (results.rows, results.questions, results.right, results.truncated) == (3, 5, 3, 0)
    assert results.accuracy_percent == 60
    assert {kind: score.accuracy_percent for kind, score in results.kinds.items()} == {
        "count": 50,
        "same": 0,
        "shape": 100,
    }
    assert results.mean_over_kinds_percent == 50
    assert results.percentages() == {"count": 50, "same": 0, "shape": 100, "mean of kinds": 50, "all questions": 60}
    assert results.questions_without_kind == 1
    written = json.loads((tmp_path / "out" / "sft.json").read_text())
    assert set(written) == {field.name for field in dataclasses.fields(Results)} - {"predictions"}
    assert written["kinds"]["count"] == {"questions": 2, "right": 1, "accuracy_percent": 50.0}
    assert written["generation"]["max_new_tokens"] == 64
    assert written["generation"]["do_sample"] is False
    assert written["image_backend"].endswith("(pil)")
    assert written["versions"]["torch"] == version("torch")
    lines = (tmp_path / "out" / "sft.predictions.jsonl").read_text().splitlines()
    assert len(lines) == 5
    first = json.loads(lines[0])
    assert (first["id"], first["question"], first["expected"], first["got"]) == (
        "a/1",
        "What is it?",
        "A circle.",
        "a circle",
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["sft.json", "sft.predictions.jsonl"]


def test_a_directory_gives_what_the_model_in_memory_gives(data, model, processor, tmp_path, caplog):
    model.save_pretrained(tmp_path / "student")
    processor.save_pretrained(tmp_path / "student")
    with caplog.at_level(logging.WARNING):
        loaded = evaluate_model(tmp_path / "student", data, max_new_tokens=5)
    memory = evaluate_model(model, data, processor=processor, max_new_tokens=5, batch_size=2)
    assert loaded.predictions == memory.predictions
    assert loaded.data_fingerprint == memory.data_fingerprint
    assert loaded.model == str(tmp_path / "student")
    assert loaded.truncated == sum(prediction.truncated for prediction in loaded.predictions) > 0
    assert f"{loaded.truncated} of 5 answers were cut at max_new_tokens=5" in caplog.text


def test_a_model_in_training_mode_stays_so(data, model, processor):
    model.train()
    try:
        evaluate_model(model, data, processor=processor, max_new_tokens=1)
        assert model.training
    finally:
        model.eval()


def test_the_fingerprint_follows_content_and_nothing_else(data, tmp_path):
    first = fingerprint(load_rows(data))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for file in tmp_path.glob("*.png"):
        (elsewhere / file.name).write_bytes(file.read_bytes())
    rows = json.loads(data.read_text())
    (elsewhere / "test.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert fingerprint(load_rows(elsewhere / "test.jsonl")) == first
    for change in ({"kind": "colour"}, {"conversations": turns(("<image> and <image>: the same?", "Yes"))}):
        (elsewhere / "other.json").write_text(json.dumps([rows[0], rows[1] | change, rows[2]]))
        assert fingerprint(load_rows(elsewhere / "other.json")) != first
    Image.new("RGB", (20, 24), "black").save(elsewhere / "2.png")
    assert fingerprint(load_rows(elsewhere / "test.jsonl")) != first


BAD_ROWS = {
    "an image that is missing": (lambda rows: rows[0].update(image="9.png"), r"sample 'a'.*9\.png.*missing"),
    "an image outside": (lambda rows: rows[0].update(image="../9.png"), r"sample 'a'.*names a parent folder"),
    "no answer": (lambda rows: rows[2]["conversations"].pop(), r"sample 'c': has no answer to compare with"),
    "an empty answer": (lambda rows: rows[2]["conversations"][1].update(value=" "), r"sample 'c': answer 1 is empty"),
    "an answer to nothing": (lambda rows: rows[2]["conversations"].pop(0), r"sample 'c': answer 1 follows no question"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_row_that_cannot_be_asked_stops_the_evaluation(data, model, processor, case, tmp_path):
    change, message = BAD_ROWS[case]
    rows = json.loads(data.read_text())
    change(rows)
    data.write_text(json.dumps(rows))
    with pytest.raises(DataError, match=message):
        evaluate_model(model, data, processor=processor, max_new_tokens=1, output=tmp_path / "r.json")
    assert not (tmp_path / "r.json").exists()


@pytest.fixture
def many(tmp_path):
    """Two hundred questions about one picture each, `r0` to `r199`; and a function that writes them again after a change."""
    Image.new("RGB", (20, 24), "red").save(tmp_path / "0.png")
    rows = [{"id": f"r{i}", "image": "0.png", "conversations": turns(("<image> What?", "Red"))} for i in range(200)]
    path = tmp_path / "many.json"

    def write(**changes):
        for name, change in changes.items():
            rows[int(name[1:])].update(change)
        path.write_text(json.dumps(rows))
        return path

    return write


def echo(model, processor, rows, *, max_new_tokens):
    """Reads what it is asked, as a model does, and answers with the id."""
    Reader(processor).prompts(rows)
    return [Answer(row["id"], False) for row in rows]


NO_ANSWER = {"conversations": [{"from": "human", "value": "<image> What?"}]}


@pytest.mark.long
def test_a_share_of_bad_rows_is_skipped_listed_and_counted(many, model, processor, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(evaluation, "answers", echo)
    Image.new("RGB", (20, 24)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:40])
    data = many(r3={"image": "none.png"}, r40={"image": "cut.png"}, r41=NO_ANSWER)
    with pytest.raises(
        DataError, match=r"3 of 200 rows \(1.5%\) cannot be asked, more than the allowed 1.0%.*sample 'r41'"
    ):
        evaluate_model(model, data, processor=processor, batch_size=8)
    results = evaluate_model(
        model, data, processor=processor, batch_size=8, max_bad_fraction=0.02, output=tmp_path / "r.json"
    )
    assert (results.rows, results.questions, results.bad_rows) == (200, 197, 3)
    assert [one.id for one in results.skipped] == ["r41", "r3", "r40"]
    reasons = {one.id: one.reason for one in results.skipped}
    assert "none.png' is missing" in reasons["r3"]
    assert "cut.png' cannot be read" in reasons["r40"]
    assert "has no answer to compare with" in reasons["r41"]
    assert [p.got for p in results.predictions] == [f"r{i}" for i in range(200) if i not in (3, 40, 41)]
    assert Results.load(tmp_path / "r.json") == results
    assert {r for r in reasons if f"skipped sample '{r}'" in caplog.text} == {"r3", "r40", "r41"}
    # the same questions have the same fingerprint, whoever was asked with others that could not be
    rows = load_rows(data)
    assert results.data_fingerprint == fingerprint(rows.select([i for i in range(200) if i not in (3, 40, 41)]))


def test_one_question_of_a_row_that_cannot_be_read_leaves_the_others(many, model, processor, monkeypatch):
    monkeypatch.setattr(evaluation, "answers", echo)
    both = {"conversations": turns(("<image> What?", "Red"), ("".join(map(chr, range(0xFDD0, 0xFDF0))), "Red"))}
    results = evaluate_model(model, many(r7=both), processor=processor)
    assert (results.questions, results.bad_rows, [one.id for one in results.skipped]) == (200, 1, ["r7/2"])
    plain = evaluate_model(model, many(r7={"conversations": turns(("<image> What?", "Red"))}), processor=processor)
    assert (plain.questions, plain.bad_rows, plain.data_fingerprint != results.data_fingerprint) == (200, 0, True)


@pytest.mark.parametrize("ending", [RuntimeError("out of memory"), KeyboardInterrupt(), SystemExit(143)])
def test_answers_already_made_are_never_lost(many, model, processor, monkeypatch, tmp_path, caplog, ending):
    calls = []

    def fail_later(*args, **kwargs):
        calls.append(1)
        if len(calls) > 3:
            raise ending
        return echo(*args, **kwargs)

    monkeypatch.setattr(evaluation, "answers", fail_later)
    with pytest.raises(type(ending)):
        evaluate_model(model, many(), processor=processor, batch_size=8, output=tmp_path / "out" / "r.json")
    (kept,) = (tmp_path / "out").iterdir()
    assert [json.loads(line)["got"] for line in kept.read_text().splitlines()] == [f"r{i}" for i in range(24)]
    assert f"the 24 answers made so far are in {kept}" in caplog.text


def test_answers_are_in_the_file_while_others_are_made(many, model, processor, monkeypatch, tmp_path):
    """What a process that is killed leaves behind."""
    seen = []

    def look(*args, **kwargs):
        seen.append(sum(len(file.read_text().splitlines()) for file in tmp_path.glob("r.predictions.partial-*.jsonl")))
        return echo(*args, **kwargs)

    monkeypatch.setattr(evaluation, "answers", look)
    evaluate_model(model, many(), processor=processor, batch_size=50, output=tmp_path / "r.json")
    assert seen == [0, 50, 100, 150]
    assert sorted(file.name for file in tmp_path.glob("r.*")) == ["r.json", "r.predictions.jsonl"]


def test_results_that_cannot_be_written_in_the_end_leave_every_answer(many, model, processor, monkeypatch, tmp_path):
    def full(results, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evaluation, "answers", echo)
    monkeypatch.setattr(Results, "save", full)
    with pytest.raises(OSError, match="No space left"):
        evaluate_model(model, many(), processor=processor, output=tmp_path / "r.json")
    (kept,) = tmp_path.glob("r.*")
    assert len(kept.read_text().splitlines()) == 200


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("a file/r.json", "Not a directory|File exists"),
        ("a folder.json", "a folder.json is a folder"),
        ("answers.json", "answers.predictions.jsonl is a folder"),
        ("/proc/none/r.json", "No such file"),
    ],
)
def test_an_output_that_cannot_be_opened_is_seen_before_the_first_question(
    many, model, processor, monkeypatch, tmp_path, output, reason
):
    (tmp_path / "a file").touch()
    (tmp_path / "a folder.json").mkdir()
    (tmp_path / "answers.predictions.jsonl").mkdir()
    monkeypatch.setattr(evaluation, "answers", None)
    monkeypatch.setattr(evaluation, "load_rows", None)
    with pytest.raises(OSError, match=f"results cannot be written there: .*({reason})"):
        evaluate_model(model, many(), processor=processor, output=tmp_path / output)


def test_a_generation_that_fails_is_never_an_empty_answer(data, model, processor, monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model, "generate", fail, raising=False)
    with pytest.raises(RuntimeError, match="out of memory"):
        evaluate_model(model, data, processor=processor, output=tmp_path / "r.json")
    assert not (tmp_path / "r.json").exists()


def test_answers_that_go_missing_are_noticed(data, model, processor, monkeypatch):
    monkeypatch.setattr(evaluation, "answers", lambda *args, **kwargs: [Answer("yes", False)])
    with pytest.raises(RuntimeError, match="2 questions were asked and 1 answers came back"):
        evaluate_model(model, data, processor=processor, batch_size=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "at least 1, got 0"),
        ({"max_new_tokens": 0}, "at least 1, got 32 and 0"),
        ({"processor": None}, "needs its `processor`"),
        ({"output": "results.txt"}, "must end in .json"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(data, model, processor, arguments, message, tmp_path):
    if "output" in arguments:
        arguments = {"output": tmp_path / arguments["output"]}
    with pytest.raises(ValueError, match=message):
        evaluate_model(model, data, **({"processor": processor} | arguments))
