"""Odd rows: each is a bad row with a reason and never stops its file; and what is read that others drop."""

import json
import logging
import math
import re

import pytest
from datasets import Dataset
from PIL import Image
from tiny import tiny_processor

from switchkd.data.collate import Collator
from switchkd.data.errors import DataError
from switchkd.data.formats import load_rows
from switchkd.data.index import build_index
from switchkd.data.reader import Reader
from switchkd.evaluate.questions import questions


@pytest.fixture
def folder(tmp_path):
    for name, colour in (("a", "red"), ("b", "blue"), ("frame12:30", "green")):
        Image.new("RGB", (8, 6), colour).save(tmp_path / f"{name}.png")
    return tmp_path


def talk(question="What?", answer="A cat.", **more):
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}], **more}


def chat(question="What?", answer="A cat.", *, of_answer=None, **more):
    answered = {"role": "assistant", "content": answer, **(of_answer or {})}
    return {"messages": [{"role": "user", "content": question}, answered], **more}


def parts(*content, images=("a.png", "b.png")):
    turns = [{"role": "user", "content": list(content)}, {"role": "assistant", "content": "Yes."}]
    return {"messages": turns, "images": list(images)}


def read(folder, *rows):
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_rows(path)


def said(row):
    return [
        (message["role"], "".join(part["text"] or "#" for part in message["content"])) for message in row["messages"]
    ]


@pytest.mark.parametrize("row", [talk, chat], ids=["conversations", "messages"])
def test_a_system_beside_the_turns_is_the_first_of_them(folder, row):
    rows = read(folder, row(system="Be brief."), row(system=""), row(system=None), row())
    assert said(rows[0]) == [("system", "Be brief."), ("user", "What?"), ("assistant", "A cat.")]
    assert [said(rows[number]) for number in (1, 2, 3)] == [said(rows[0])[1:]] * 3
    reader = Reader(tiny_processor())
    assert "Be brief." in reader.processor.tokenizer.decode(reader.encode(rows[0]).tokens)


PICTURE = "`{}` and no image, and pictures are read from `image` or `images` alone: name it so"
ODD = {
    "two systems": (
        {"messages": [{"role": "system", "content": "A"}, {"role": "user", "content": "B"}], "system": "C"},
        "a `system` and another system turn",
    ),
    "a system that is no text": (talk(system=["A"]), "`system` must be text, not list"),
    **{
        name: (talk("What?", **{name: "a.png"}), PICTURE.format(name))
        for name in ("img", "image_path", "imgs", "Image", "file_name", "image_url", "picture", "photo", "image_file", "filename")
    },
    "a list of pictures": (talk(image_paths=["a.png"]), PICTURE.format("image_paths")),
    "a picture by its value": (talk(screenshot="shots/a.JPG"), PICTURE.format("screenshot")),
    "metadata.jsonl": (talk("<image>\nWhat?", file_name="a.png"), PICTURE.format("file_name")),
    **{name: (talk(**{name: "a.mp4"}), f"has `{name}`, which is not read; only images") for name in ("video", "videos", "audio")},
    **{name: (talk(**{name: [{"type": "function"}]}), f"has `{name}`, which is not read; tools") for name in ("tools", "functions")},
    **{name: (talk(**{name: "A dog."}), f"has `{name}`, which is not read; pref") for name in ("rejected", "rejected_messages")},
    "a system under another name": (talk(system_prompt="A"), "`system_prompt`, which is not read; name it `system`"),
    "a weight of the row": (talk(weight=0), "`weight`, which is not read; a turn"),
    "a loss of the row": (talk(loss=False), "`loss`, which is not read; a turn"),
    "an image that was lost": (talk("<image>\nWhat?"), "a question holds <image>, and the row has no image"),
    "an image that was lost from parts": (parts({"type": "text", "text": "<image>A"}, images=()), "holds <image>, and the row"),
    "a mark too many": (talk("<image><image>", image="a.png"), r"2 image marks \(<image>\) but 1 images"),
    "no mark": (talk(image="a.png"), r"0 image marks \(<image>\) but 1 images"),
    "an image without a name": (talk(image=""), "0 image marks|is empty"),
    "a list of one without a name": (talk("<image>", image=[""]), "image path '' is empty"),
    "a list of nothing": (talk("<image>", image=[None]), "an image must be a path"),
    "no number": (talk(image=math.nan), "must be a path.* not nan; a row of text has no `image`"),
    "no object": ("text", "a row must be an object, not str"),
    "no turns": ({"prompt": "A"}, "unknown format; looked for a list `conversations`"),
    "two lists of turns": (talk() | chat(), "both `conversations` and `messages`"),
    "half a character": (talk("\ud800"), "half a Unicode character"),
    "half a character in its reasoning": (chat(of_answer={"reasoning_content": "\ud800"}), "half a Unicode character"),
    "a speaker nobody knows": ({"messages": [{"role": "tool", "content": "A"}]}, "`role` to be one of user"),
    "a call of a tool": (chat(of_answer={"tool_calls": [{"id": 1}]}), "a turn has `tool_calls`, which is not read"),
    "a picture in a turn": (chat(of_answer={"images": ["a.png"]}), "a turn has `images`: list the row's pictures under"),
    "half a weight": (chat(of_answer={"weight": 0.5}), "a turn has `weight` 0.5; supported are 0 and 1"),
    "a weight in words": (chat(of_answer={"loss": "no"}), "a turn has `loss` 'no'; supported are 0 and 1"),
    "a question to be learned": (
        {"messages": [{"role": "user", "content": "A", "loss": True}, {"role": "assistant", "content": "B"}]},
        "a user turn has `loss` True; only answers can be learned",
    ),
    "an index beyond the images": (parts({"type": "image", "index": 2}, {"type": "image", "index": 0}), r"the indices \[2, 0\]"),
    "an image twice": (parts({"type": "image", "index": 0}, {"type": "image", "index": 0}), r"the indices \[0, 0\]"),
    "an index that is no number": (parts({"type": "image", "index": "0"}, {"type": "image", "index": 1}), "has `index` '0'"),
}  # fmt: skip


@pytest.mark.parametrize(("odd", "message"), ODD.values(), ids=ODD)
def test_an_odd_row_is_a_bad_row_and_does_not_stop_its_file(folder, odd, message):
    named = odd | {"id": "odd"} if isinstance(odd, dict) else odd
    rows = read(folder, talk(id="one"), named, talk(id="two"))
    index = build_index(rows, Collator(Reader(tiny_processor())), max_bad_fraction=0.4)
    assert list(index.rows["id"]) == ["one", "two"]
    ((name, reason),) = index.bad
    assert name == ("odd" if isinstance(odd, dict) else "1")
    assert re.search(message, reason)
    if not rows[1]["images"]:  # a refused path names itself
        assert "data.jsonl, line 2, row 1 (id " in reason
    with pytest.raises(DataError, match="1 of 3 samples"):
        build_index(rows, Collator(Reader(tiny_processor())), max_bad_fraction=0.3)


def test_a_file_in_which_every_row_is_odd_is_an_error(folder):
    with pytest.raises(DataError, match=r"line 1, row 0 \(id '0'\): has `img` and no image.* None of the 2 rows"):
        read(folder, talk(img="a.png"), talk(img="b.png"))


def test_keys_that_nobody_reads_are_named_once_for_each_file(folder, caplog):
    rows = [talk(image_id=number, source="web", width=None, tools=[], video={"path": None}) for number in range(3)]
    rows.append(chat(of_answer={"name": "Ann"}, **{"file_name": "a.png", "image": "a.png"}) | {"width": 3})
    rows[-1]["messages"][0]["content"] = "<image>What?"
    with caplog.at_level(logging.WARNING):
        loaded = read(folder, *rows)
    assert [row["problem"] for row in loaded] == [None] * 4
    (line,) = [record.getMessage() for record in caplog.records if "not read" in record.getMessage()]
    for part in (
        "data.jsonl",
        "`image_id` (3)",
        "`source` (3)",
        "`width` (1)",
        "`messages.name` (1)",
        "`file_name` (1)",
    ):
        assert part in line
    assert "tools" not in line
    assert "video" not in line


FLAGS = [
    {"loss": False},
    {"weight": 0},
    {"weight": 0.0},
    {"train": False},
    {"loss_scale": 0},
    {"loss": None, "weight": 0},
]


@pytest.mark.parametrize("flag", FLAGS, ids=str)
@pytest.mark.parametrize("form", ["messages", "conversations"])
def test_a_turn_that_is_marked_is_not_learned(folder, flag, form):
    who, what = ("role", "content") if form == "messages" else ("from", "value")
    names = ("user", "assistant") if form == "messages" else ("human", "gpt")
    turns = [{who: names[number % 2], what: text} for number, text in enumerate(("A?", "Yes.", "B?", "No."))]
    marked = [turns[0] | {"loss": False}, turns[1] | flag, turns[2], turns[3] | {"loss": True, "weight": 1}]
    rows = read(folder, {form: turns}, {form: marked}, {form: [turns[0], turns[1] | flag]})
    reader = Reader(tiny_processor())
    whole, part = reader.encode(rows[0]), reader.encode(rows[1])
    assert part.tokens == whole.tokens
    learned = [reader.processor.tokenizer.decode([e.tokens[place] for place in e.answers]) for e in (whole, part)]
    assert learned == ["Yes.<|im_end|>No.<|im_end|>", "No.<|im_end|>"]
    with pytest.raises(DataError, match="all its answers are marked as not to be learned"):
        reader.encode(rows[2])


def test_reasoning_goes_along(folder):
    rows = read(folder, chat(of_answer={"reasoning_content": "It purrs."}), chat(of_answer={"reasoning_content": None}))
    assert [[message["reasoning"] for message in row["messages"]] for row in rows] == [
        [None, "It purrs."],
        [None, None],
    ]


def test_parts_as_trl_writes_them_and_their_indices(folder):
    text = {"index": None, "text": "Same?", "type": "text"}
    images = [{"index": number, "text": None, "type": "image"} for number in (0, 1)]
    rows = read(
        folder, parts(*images, text), parts(*images[::-1], text), parts({"type": "image"}, text, {"type": "image"})
    )
    assert [said(row)[0] for row in rows] == [("user", "##Same?"), ("user", "##Same?"), ("user", "#Same?#")]
    names = [[image["path"][-5:] for image in row["images"]] for row in rows]
    assert names == [["a.png", "b.png"], ["b.png", "a.png"], ["a.png", "b.png"]]


def test_marks_in_answers_and_system_turns_are_text(folder):
    (row,) = read(folder, talk("What tag?", "The <image> tag.", system="Write <image> where it stands."))
    assert row["problem"] is None
    assert said(row) == [
        ("system", "Write <image> where it stands."),
        ("user", "What tag?"),
        ("assistant", "The <image> tag."),
    ]


def test_a_name_with_a_colon_is_no_url(folder):
    (row,) = read(folder, talk("<image>", image="frame12:30.png"))
    assert row["problem"] is None
    assert row["images"][0]["path"] == str(folder / "frame12:30.png")


def test_an_embedded_picture_that_cannot_be_read_is_named_by_file_row_and_id(folder):
    turns = chat("<image>What?")["messages"]
    good = {"bytes": (folder / "a.png").read_bytes(), "path": "x.png"}
    rows = [
        {"id": f"s{n}", "messages": turns, "images": [good if n else {"bytes": b"<html>", "path": "x.png"}]}
        for n in (1, 0)
    ]
    Dataset.from_list(rows).to_parquet(folder / "rows.parquet")
    (bad,) = build_index(
        load_rows(folder / "rows.parquet"), Collator(Reader(tiny_processor())), max_bad_fraction=0.5
    ).bad
    assert bad.id == "s0"
    assert (
        f"sample 's0': embedded image ({folder / 'rows.parquet'}, row 1) cannot be read: it is no picture" in bad.reason
    )
    assert "object at 0x" not in bad.reason


def test_questions_have_ids_of_their_own_when_turns_are_told_apart_by_numbers(folder):
    two = {"conversations": talk()["conversations"] * 2, "id": "a"}
    asked, bad = questions(read(folder, talk(id="a/1"), two, talk(id="a/2")))
    assert bad == []
    assert [question.id for question in asked] == ["a/1", "a/1#1", "a/2", "a/2#2"]
