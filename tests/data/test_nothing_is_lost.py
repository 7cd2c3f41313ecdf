"""Nothing is lost in silence: each thing that a row, a file or a start could lose → its error, or its effect.

1. Keys that nobody reads, and a `system` (`ERRORS`, `EFFECTS`). 2. Marks of pictures in rows without images, or by other tools
(`ERRORS`, `EFFECTS`). 3. Pictures and answers of chat and evaluation, 4. folders, trackers and packages, 5. characters that a tokenizer
does not know (`ELSEWHERE` names their tests). 5a. Odd rows (`ERRORS`), flags, reasoning and parts (`EFFECTS`), pictures (`ELSEWHERE`).
"""

import ast
import json
import logging
import math
import re
from pathlib import Path

import pytest
from data.test_forms import DATA_URL, TEXT, A, Q, assistant, comparable, user
from datasets import Dataset, load_dataset
from datasets import Image as ImageOfDatasets
from PIL import Image
from tiny import tiny_processor

from switchkd.data.collate import Collator
from switchkd.data.errors import DataError
from switchkd.data.formats import load_rows
from switchkd.data.index import build_index
from switchkd.data.llava_rows import write_llava
from switchkd.data.reader import Reader
from switchkd.evaluate.questions import questions

#: What other tools write for `<image>`.
MARKS = ["<img>", "<image 1>", "<image_1>", "<|image|>", "<|image_1|>", "<IMAGE>", "<image1>", "<image_placeholder>", "<ImageHere>",
         "<image/>", "<|vision_start|><|image_pad|><|vision_end|>", "<start_of_image>", "[IMG]",
         "<im_start><im_patch><im_patch><im_end>", "<img><IMG_CONTEXT><IMG_CONTEXT></img>"]  # fmt: skip

OTHER_MEDIA = ["<video>", "<audio>", "<|video|>", "<video_1>", "<|audio_pad|>", "<VIDEO>"]


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


def filled(folder, row):
    return json.loads(json.dumps(row).replace("{root}", str(folder)))


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
TALK = talk("<image>\nWhat?", image="a.png")
vqa = {"question": Q, "answer": A, "image": "a.png"}
two = {"images": ["a.png", "b.png"]}
NO_IMAGE = r"a question holds {}, and the row has no image: name its picture under `image`.*backticks"
NO_VIDEO = r"a question holds {}, and the row has no video: name it under `video`, or several under `videos`; mark each"
NO_SOUND = r"a question holds {}, and sound is not carried to the models: leave the row out, or put it in backticks"
NOT_EACH = r"mark pictures with {}, which does not say where each of its {} images stands: write <image> once for each"

#: What a row would lose (1, 2, 5a of the table above) → the row, and words of its error.
ERRORS = {
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
    **{name: (talk(**{name: "a.mp4"}), f"has `{name}`, which is not read; videos, as") for name in ("video_path", "clip", "mp4")},
    **{name: (talk(**{name: "a.mp4"}), "0 video marks .<video>. but 1 videos") for name in ("video", "videos")},
    "audio": (talk(audio="a.wav"), "has `audio`, which is not read; sound is not carried"),
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
    "choices that are not in the question": (vqa | {"choices": ["a", "b"]}, "has `choices`, which is not read; write it into"),
    "a context": (vqa | {"context": "Cats."}, "has `context`, which is not read; write it into"),
    "answers that differ": ({"question": Q, "answers": ["a", "b"]}, "`answers` holds 2 answers that differ: .*data.columns"),
    "two questions": (vqa | {"prompt": "B"}, "has `question`, `prompt`: name the one"),
    "two answers": (vqa | {"response": "B"}, "has `answer`, `response`: name the one"),
    "preferences": ({"prompt": Q, "chosen": A, "rejected": "B"}, "unknown format"),
    "preferences beside": ({"query": Q, "response": A, "rejected_response": "B"}, "`rejected_response`, which is not read; pref"),
    "a picture under another name": ({"question": Q, "answer": A, "img": "a.png"}, r"has `img` and no image.*columns: \{image: img\}"),
    "a picture of the web": (vqa | {"image": "https://example.org/a.png"}, "is a URL or names a drive, and nothing is fetched"),
    "a picture of the web in a part": (
        {"messages": [user({"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}}, TEXT), assistant()]},
        "is a URL or names a drive, and nothing is fetched",
    ),
    "an absolute path elsewhere": (vqa | {"image": "/etc/passwd"}, "is not relative, nor in that folder"),
    "an absolute path that leads out": (vqa | {"image": "{root}/../../a.png"}, "names a parent folder"),
    "a data: URL of no picture": (vqa | {"image": DATA_URL + "AAAA"}, "holds no picture"),
    "a data: URL that is broken": (vqa | {"image": DATA_URL + "A"}, "cannot be decoded"),
    "a data: URL of a page": (vqa | {"image": "data:text/html,x"}, "no data: URL of a picture"),
    "pictures twice": (
        {"messages": [user({"type": "image", "image": "a.png"}, TEXT), assistant()], "images": ["a.png"]},
        "pictures in its turns and others under `image`",
    ),
    "one part of two pictures": (
        {"messages": [user({"type": "image", "image": "a.png", "url": "b.png"}, TEXT), assistant()]},
        "carries `image` and `url`",
    ),
    "one part of both": ({"messages": [user(TEXT | {"image": "a.png"}, TEXT), assistant()]}, "carries `image` too"),
    "an answer that is no text": (vqa | {"answer": {"x": 1}}, "`answer` must be text"),
    "neither question nor picture": ({"prompt": "", "answer": A, "instruction": ""}, "unknown format"),
    "a turn that says two things": ({"messages": [user(Q) | {"value": "B"}, assistant()]}, "a second time under `value`; keep one"),
    "history that is no pairs": ({"query": Q, "response": A, "history": ["a"]}, "each of `history`"),
    "texts without an answer": ({"texts": [{"user": Q}]}, "content of a assistant turn must be text|content of an"),
    "a second picture under a key of its own": (vqa | {"image_2": "b.png"}, "`image_2`, which is not read: list all pictures"),
    "frames": (vqa | {"frames": ["a.mp4"]}, "`frames`, which is not read; videos, as files"),
    "a system by a short name": (vqa | {"sys": "Be brief."}, "`sys`, which is not read; name it `system`"),
    "a system of a developer": (vqa | {"developer_message": "Be brief."}, "name it `system`"),
    "a mask of the loss": (TALK | {"loss_mask": [0]}, "`loss_mask`, which is not read; a turn may be left out"),
    "a weight of the sample": (vqa | {"sample_weight": 0.5}, "`sample_weight`, which is not read"),
    "a thought": ({"messages": [user(Q), assistant() | {"thought": "Hm."}]}, "name it `reasoning_content`"),
    **{
        f"a turn with {name} {value}": (
            {"messages": [user(Q), assistant(), user(Q), assistant() | {name: value}]},
            f"a turn has `{name}`, which is not read; say with `loss`",
        )
        for name, value in (("trainable", False), ("ignore", True), ("mask", 1), ("masked", False), ("learnable", 0))
    },
    **{f"{mark} without an image": (talk(f"{mark}\nWhat?"), NO_IMAGE.format(re.escape(mark))) for mark in MARKS},
    **{
        f"{mark} without an image, in a part": (parts({"type": "text", "text": f"{mark}A"}, images=()), NO_IMAGE.format(re.escape(mark)))
        for mark in MARKS
    },
    **{
        f"{mark}": (talk(f"{mark}\nWhat?"), (NO_SOUND if "audio" in mark else NO_VIDEO).format(re.escape(mark)))
        for mark in OTHER_MEDIA
    },
    "<video> and a picture": (talk("<image><video>", image="a.png"), NO_VIDEO.format("<video>")),
    "<video> in a column": (vqa | {"question": "What happens in <video>?"}, NO_VIDEO.format("<video>")),
    "<video> in a part": (parts({"type": "image"}, {"type": "image"}, {"type": "text", "text": "<video>"}), NO_VIDEO.format("<video>")),
    "a picture's number that is another": (talk("<image 2>What?", image="a.png"), NOT_EACH.format("<image 2>", 1)),
    "a picture's number twice": (talk("<image 1>Is <image 1> red?", image="a.png"), NOT_EACH.format("<image 1>, <image 1>", 1)),
    "numbers of too few pictures": (talk("<image_1> or <image_2>", image=["a.png"] * 3), NOT_EACH.format("<image_1>, <image_2>", 3)),
    "marks of two kinds": (talk("<img><|image|>", **two), NOT_EACH.format(r"<img>, <\|image\|>", 2)),
    "too many marks of another tool": (talk("<img><img>", image="a.png"), NOT_EACH.format("<img>, <img>", 1)),
    "a name between marks": (talk("<img>a.png</img>What?", image="a.png"), NOT_EACH.format("<img>", 1)),
    **{
        f"{key} {value}": (vqa | {key: value}, f"has `{key}`, which is not read; {way_out}")
        for key, value, way_out in (
            ("tool_choice", "required", "tools are not carried"),
            ("available_tools", [{"name": "f"}], "tools are not carried"),
            ("tool_choice", {"type": "function"}, "tools are not carried"),
            ("train_on_input", True, "answers alone are learned: leave it out"),
            ("train_on_inputs", "true", "answers alone are learned: leave it out"),
            ("train_on_prompt", 1, "answers alone are learned: leave it out"),
            ("mask_prompt", False, "answers alone are learned: leave it out"),
            ("mask_history", True, "every answer is learned: mark those before the last"),
            ("mask", [0, 1], "say in the turns with `loss`"),
            ("mask", 1, "say in the turns with `loss`"),
            ("masked", True, "say in the turns with `loss`"),
            ("trainable", False, "say in the turns with `loss`"),
            ("ignore", "true", "say in the turns with `loss`"),
            ("train", False, "a turn may be left out with it, a row cannot be weighed"),
            ("loss_scale", 0, "a turn may be left out with it, a row cannot be weighed"),
            ("weight", "0.5", "a turn may be left out with it, a row cannot be weighed"),
            ("rationale", "It purrs.", "name it `reasoning_content`"),
            ("rationales", ["It purrs."], "name it `reasoning_content`"),
            ("chain_of_thought", "It purrs.", "name it `reasoning_content`"),
            ("lecture", "Cats purr.", "write it into the question, or leave it out"),
        )
    },
}  # fmt: skip

#: Words of every error that say what to do.
WAY_OUT = re.compile(
    "must|keep|leave|name|write|list|give|say|supported are|only answers|make two|needs?|encode|put|counts|each marked once|is no JSON"
)


@pytest.mark.parametrize(("row", "message"), ERRORS.values(), ids=ERRORS)
def test_what_would_be_lost_is_an_error_that_names_file_row_and_way_out(folder, row, message):
    row = filled(folder, row)
    rows = read(folder, TALK, row | {"id": "odd"} if isinstance(row, dict) else row, vqa)
    assert [rows[number]["problem"] for number in (0, 2)] == [None, None]
    where, reason = rows[1]["problem"].split("): ", 1)
    assert where == f"{folder}/data.jsonl, line 2, row 1 (id '{'odd' if isinstance(row, dict) else 1}'"
    assert re.search(message, reason)
    assert WAY_OUT.search(reason)


def test_bad_rows_are_left_out_listed_and_counted(folder):
    odd = [filled(folder, row) for row, _ in ERRORS.values()]
    rows = read(folder, talk(id="one"), *odd, talk(id="two"))
    collator = Collator(Reader(tiny_processor()))
    index = build_index(rows, collator, max_bad_fraction=len(odd) / len(rows))
    assert list(index.rows["id"]) == ["one", "two"]
    assert [bad.reason.split(", line ")[1].split(",")[0] for bad in index.bad] == [str(2 + n) for n in range(len(odd))]
    with pytest.raises(DataError, match=f"{len(odd)} of {len(rows)} samples"):
        build_index(rows, collator, max_bad_fraction=(len(odd) - 1) / len(rows))


def turns(*turns):
    return {"conversations": list(turns)}


def said_by_gpt(**more):
    return {"from": "gpt", "value": A, **more}


ASKED = {"from": "human", "value": "What?"}
#: What was lost once and is read (1, 2, 5a) → the row, and the same in LLaVA JSON.
EFFECTS = {
    "a system": (talk(system="Be brief."), turns({"from": "system", "value": "Be brief."}, *talk()["conversations"])),
    "a system of messages": (chat(system="S"), turns({"from": "system", "value": "S"}, *talk()["conversations"])),
    "a turn without loss": (chat(of_answer={"weight": 0}), turns(ASKED, said_by_gpt(loss=False))),
    "reasoning": (chat(of_answer={"reasoning_content": "It purrs."}), turns(ASKED, said_by_gpt(reasoning_content="It purrs."))),
    "parts of TRL": (
        parts(*({"index": number, "text": None, "type": "image"} for number in (1, 0)), {"index": None, "text": "Same?", "type": "text"}),
        talk("<image><image>Same?", "Yes.", image=["b.png", "a.png"]),
    ),
    "a name with a colon": (talk("<image>", image="frame12:30.png"), talk("<image>", image="./frame12:30.png")),
    **{f"{mark} for <image>": (talk(f"{mark}\nWhat?", image="a.png"), talk("<image>What?", image="a.png")) for mark in MARKS},
    **{f"{mark} in a column": (vqa | {"question": f"Is {mark} red?"}, talk("Is <image> red?", image="a.png")) for mark in MARKS},
    "numbers in their order": (talk("<image 1>Or <image 2>?", **two), talk("<image>Or <image>?", **two)),
    "numbers in another order": (talk("<image_2>Or <image_1>?", **two), talk("<image>Or <image>?", image=["b.png", "a.png"])),
    "numbers from 0": (talk("<image_0>Or <image_1>?", **two), talk("<image>Or <image>?", **two)),
    "two marks of another tool": (talk("<img>Or <img>?", **two), talk("<image>Or <image>?", **two)),
    "a number next to <image>": (
        talk("<image>Is <image 1> red?", "Yes.", image="a.png"),
        parts({"type": "image"}, {"type": "text", "text": "Is <image 1> red?"}, images=["a.png"]),
    ),
    "flags that change nothing": (
        TALK | {"train_on_input": False, "mask_prompt": True, "train": True, "weight": 1, "masked": False, "tool_choice": "auto"},
        TALK,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("row", "same"), EFFECTS.values(), ids=EFFECTS)
def test_what_was_lost_is_read(folder, row, same):
    ours, theirs = (comparable(read(folder, one)) for one in (row, same))
    assert [row["problem"] for row in (*ours, *theirs)] == [None, None]
    assert ours == theirs


TEXTS = [
    'Where does <img src="a.png"> load from?',
    'Why is <video controls src="a.mp4"></video> empty?',
    "What does the `<video>` tag do, and `<img>`, and `<image>`?",
    "Is 1 < image and image > 2?",
    "Use <images> or <imagery>, <image1a>, [image] and {image}.",
]


@pytest.mark.parametrize("text", TEXTS)
def test_ordinary_text_about_marks_stays_text(folder, text):
    rows = read(folder, talk(text), talk(f"<image>\n{text}", image="a.png"), vqa | {"question": text})
    assert [row["problem"] for row in rows] == [None] * 3
    assert [said(row)[0] for row in rows] == [("user", text), ("user", f"#{text}"), ("user", f"#{text}")]
    write_llava(folder / "data.jsonl", folder / "out.jsonl")
    assert comparable(load_rows(folder / "out.jsonl")) == comparable(rows)


def test_a_picture_behind_a_backtick_is_not_converted_to_text(folder):
    row = parts({"type": "text", "text": "`"}, {"type": "image"}, images=["a.png"])
    (folder / "data.jsonl").write_text(json.dumps(TALK) + "\n" + json.dumps(row))
    done = write_llava(folder / "data.jsonl", folder / "out.jsonl")
    assert done.rows == 1
    assert "<image> as text, which LLaVA JSON cannot say" in done.left_out[0]


def test_pictures_in_files_of_rows_that_python_hands_over(folder, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    path = folder / "a.png"
    row = {"question": Q, "answer": A, "image": str(path)}
    (folder / "shown").mkdir()
    path.rename(folder / "shown" / "a.png")
    path = folder / "shown" / "a.png"
    (folder / "shown" / "metadata.jsonl").write_text(json.dumps(row | {"file_name": "a.png", "image": None}))
    pictured = Dataset.from_list([row | {"image": str(path)}]).cast_column("image", ImageOfDatasets())
    shown = load_dataset("imagefolder", data_dir=str(folder / "shown"), split="train", cache_dir=str(folder / "c"))
    for data in (pictured, shown, [row | {"image": path}], [row | {"image": str(path)}]):
        (loaded,) = load_rows(data)
        assert (loaded["problem"], loaded["images"]) == (None, [{"bytes": None, "path": str(path)}])
    (confined,) = load_rows(pictured, folder / "c")
    assert f"the rows given, row 0 (id '0'): image 1 of 1: image path '{path}' is not relative" in confined["problem"]
    assert "is not relative, nor in that folder" in read(folder / "c", row | {"image": str(path)})[0]["problem"]
    (below,) = load_rows(folder / "c" / "data.jsonl", "/")
    assert (below["problem"], below["images"][0]["path"]) == (None, str(path))


#: The other losses, and the tests that hold their errors or effects.
ELSEWHERE = {
    "3: two images of chat": "chat/test_conversation.py::test_the_command_shows_every_image_that_it_is_given",
    "3: old answers next to a new picture": "chat/test_web_page_in_browser.py::test_what_cannot_be_asked_is_a_message_on_the_page",
    "3: the first bad row of an evaluation": "evaluate/test_evaluation.py::test_a_share_of_bad_rows_is_skipped_listed_and_counted",
    "3: a row that cannot be asked": "evaluate/test_evaluation.py::test_a_row_that_cannot_be_asked_stops_the_evaluation",
    "3: an output that cannot be opened": "evaluate/test_evaluation.py"
    "::test_an_output_that_cannot_be_opened_is_seen_before_the_first_question",
    "3: answers of an evaluation that fails": "evaluate/test_evaluation.py::test_answers_already_made_are_never_lost",
    "4: a start that took no step": "train/test_output.py::test_a_start_that_took_no_step_leaves_the_folder_to_the_next_recipe",
    "4: what claims a folder": "train/test_output.py::test_the_first_checkpoint_or_line_of_metrics_claims_it",
    "4: a cell of a study that fails": "study/test_run_study.py::test_a_failing_cell_is_named_and_the_others_count",
    "4: trackers": "recipe/test_packages.py::test_a_tracker_that_nobody_knows_is_refused",
    "4: packages": "recipe/test_packages.py::test_a_package_that_is_missing_is_named_before_anything_is_loaded",
    "5: unknown words and emoji in questions": "data/test_reader.py::test_unknown_characters_are_text_and_no_control_tokens",
    "5: in answers": "data/test_reader.py::test_unknown_characters_in_an_answer_are_not_learned_and_the_rest_is",
    "5a: flags of turns, in tokens": "data/test_nothing_is_lost.py::test_a_turn_that_is_marked_is_not_learned",
    "5a: reasoning, in tokens": "data/test_reader.py::test_reasoning_is_learned_where_the_template_shows_it",
    "5a: reasoning that a template does not show": "data/test_reader.py::test_reasoning_that_the_template_does_not_show_is_refused",
    "5a: two gigabytes of pictures": "data/test_formats.py::test_what_arrow_cannot_read_at_once_is_read_row_by_row_from_there_on",
    "5a: transparent pictures": "data/test_images.py::test_what_is_transparent_is_white",
}


@pytest.mark.parametrize("test", ELSEWHERE.values(), ids=ELSEWHERE)
def test_every_other_loss_has_its_test(test):
    file, name = test.split("::")
    module = ast.parse((Path(__file__).parents[1] / file).read_text(encoding="utf-8"))
    assert name in [node.name for node in module.body if isinstance(node, ast.FunctionDef)]


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
