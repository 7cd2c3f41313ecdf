"""What a panel says is what evaluation hears, and what it shows is what the models see."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from run_files import write_model
from transformers import LlavaForConditionalGeneration

from switchkd.chat.panel import Member, load_models
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
    messages = [{"role": r, "content": c} for r, c in zip(("user", "assistant"), contents, strict=False)]
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
    reply = member.ask(content, "What is in the image?", max_new_tokens=5)
    (expected,) = answers(member.model, member.processor, [row(content, "What is in the image?")], max_new_tokens=5)
    assert (reply.text, reply.truncated) == (expected.text, expected.truncated)
    assert reply.seconds > 0

    shown = member.attention_map(content, "What is in the image?", "A red circle")
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
        member.attention_map(picture[0], "What?", "")
