"""What a panel says is what evaluation hears, and what it shows is what the models see."""

import threading
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from run_files import write_model
from tiny_processors import tiny_for
from tiny_videos import video_processor, write_clip
from transformers import LlavaForConditionalGeneration

from switchkd.chat.panel import Member, Turn, load_models
from switchkd.data.reader import Reader
from switchkd.evaluate.attention import attention_maps
from switchkd.evaluate.generate import answers
from switchkd.models import load_pathway


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    write_model(tmp_path_factory.mktemp("panel") / "a=b", seed=1)
    return tmp_path_factory.getbasetemp().glob("panel*/a=b").__next__()


@pytest.fixture(scope="module")
def picture():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue(), pixels


def row(picture, *texts):
    """The conversation, as the data of an evaluation has it."""
    contents = [[{"type": "image", "text": None}, {"type": "text", "text": texts[0]}]]
    contents += [[{"type": "text", "text": text}] for text in texts[1:]]
    messages = [{"role": r, "content": c} for r, c in zip(("user", "assistant", "user"), contents, strict=False)]
    return {"id": "0", "images": [{"bytes": picture, "path": None}], "messages": messages}


def test_models_get_the_names_they_are_given(folder, tmp_path):
    first, second = load_models([str(folder), f"again={folder}"])  # a folder with = in its name is a folder
    assert (first.name, second.name) == (str(folder), "again")
    assert isinstance(second.model, LlavaForConditionalGeneration)
    with pytest.raises(ValueError, match="two models are called 'a': give each its own name, NAME=PATH"):
        load_models(["a=x", "a=y"])
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        load_models([f"a={folder}", "b=nowhere"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_member_answers_as_in_an_evaluation_and_shows_what_it_looked_at(folder, picture, dtype):
    (member,) = load_models([str(folder)])
    member = Member("m", member.model.to(dtype), member.processor)
    content, pixels = picture
    *parts, reply = member.ask([content], [], "What is in the image?", max_new_tokens=5)
    (expected,) = answers(member.model, member.processor, [row(content, "What is in the image?")], max_new_tokens=5)
    assert (reply.text, reply.truncated) == (expected.text, expected.truncated)
    assert reply.seconds > 0
    texts = [part.text for part in parts]
    assert all(reply.text.startswith(text) for text in texts)
    assert texts == sorted(texts, key=len)

    (shown,) = member.attention_maps([content], [], "What is in the image?", "A red circle")
    assert np.array_equal(np.asarray(shown.picture), pixels) or dtype == torch.bfloat16
    reader = Reader(member.processor)
    inputs = reader.inputs([reader.encode(row(content, "What is in the image?", "A red circle"))])
    inputs.images["pixel_values"] = inputs.images["pixel_values"].to(dtype)
    (expected_map,) = attention_maps(load_pathway(member.model), inputs)
    assert shown.attention.shape == (4, 4)
    torch.testing.assert_close(shown.attention, expected_map, rtol=0, atol=1e-6)


def test_what_was_not_answered_has_no_look(folder, picture):
    (member,) = load_models([str(folder)])
    with pytest.raises(ValueError, match="empty answer"):
        member.attention_maps([picture[0]], [], "What?", "")


def test_a_follow_up_is_the_conversation_as_evaluation_reads_it_and_its_map_is_of_the_last_answer(folder, picture):
    (member,) = load_models([str(folder)])
    other = BytesIO()
    Image.new("RGB", (32, 32), "green").save(other, format="PNG")
    images, turns = [picture[0], other.getvalue()], [Turn("What is this?", "A red circle")]
    *_, reply = member.ask(images, turns, "And this?", max_new_tokens=5)
    whole = row(picture[0], "What is this?", "A red circle", "And this?")
    whole["images"].append({"bytes": images[1], "path": None})
    whole["messages"][0]["content"].insert(0, {"type": "image", "text": None})
    (expected,) = answers(member.model, member.processor, [whole], max_new_tokens=5)
    assert reply.text == expected.text
    maps = member.attention_maps(images, turns, "And this?", "A circle")
    assert [shown.attention.shape for shown in maps] == [(4, 4), (4, 4)]
    assert [shown.picture.size for shown in maps] == [(32, 32)] * 2
    assert not torch.equal(maps[0].attention, member.attention_maps(images, [], "And this?", "A circle")[0].attention)


def test_a_model_is_stopped_in_the_middle_and_can_be_asked_again(folder, picture, monkeypatch):
    (member,) = load_models([str(folder)])
    monkeypatch.setattr(member.model.generation_config, "eos_token_id", -1)  # it never ends by itself
    asked = member.ask([picture[0]], [], "What?", max_new_tokens=60)
    first = next(asked)
    threads = threading.active_count()
    asked.close()
    assert threading.active_count() < threads  # and has stopped
    assert first.truncated
    *_, whole = member.ask([picture[0]], [], "What?", max_new_tokens=60)
    assert whole.truncated
    assert len(whole.text) > len(first.text)


def test_temperature_0_is_greedy_and_others_are_drawn(folder, picture):
    (member,) = load_models([str(folder)])

    def said(temperature):
        torch.manual_seed(1)
        return [*member.ask([picture[0]], [], "What?", max_new_tokens=12, temperature=temperature)][-1].text

    assert said(0) == said(0)
    assert len({said(0), said(1.5), said(2)}) == 3


def test_a_conversation_that_is_longer_than_the_model_reads_says_both_numbers(folder, picture, monkeypatch):
    (member,) = load_models([str(folder)])
    monkeypatch.setattr(member.model.config.get_text_config(), "max_position_embeddings", 40)
    *_, reply = member.ask([picture[0]], [], "What?", max_new_tokens=500)  # up to the last position
    assert reply.text
    turns = [Turn("What is this?", "A red circle")] * 4
    message = r"has \d\d+ tokens, its pictures included, and the model has 40 positions: begin a new conversation"
    with pytest.raises(ValueError, match=message):
        list(member.ask([picture[0]], turns, "And?", max_new_tokens=5))


@pytest.mark.long
def test_a_member_answers_about_a_video_as_evaluation_does(folder, picture, tmp_path):
    pytest.importorskip("torchvision")
    clip = write_clip(tmp_path / "a.mp4").read_bytes()
    processor = video_processor("smolvlm")
    model = tiny_for("smolvlm", processor).eval()
    member = Member("m", model, processor)
    *_, reply = member.ask([picture[0]], [], "What moves?", video=clip, max_new_tokens=4)
    content = [{"type": kind, "text": None} for kind in ("image", "video")] + [{"type": "text", "text": "What moves?"}]
    seen = {
        "id": "0",
        "images": [{"bytes": picture[0], "path": None}],
        "videos": [{"bytes": clip, "path": None, "frames": []}],
        "messages": [{"role": "user", "content": content}],
    }
    (expected,) = answers(model, processor, [seen], max_new_tokens=4)
    assert (reply.text, reply.truncated) == (expected.text, expected.truncated)
    (blind,) = load_models([str(folder)])
    with pytest.raises(ValueError, match="has 1 videos, and"):
        list(blind.ask([], [], "What moves?", video=clip, max_new_tokens=4))
    with pytest.raises(ValueError, match="cannot be read as a video"):
        list(member.ask([], [], "What moves?", video=b"#EXTM3U", max_new_tokens=4))
