"""Ids for which a model has no embedding: left out where nothing gives them, an error where the template, the processor or text does."""

import io

import pytest
from PIL import Image
from tiny import tiny_processor
from tiny_families import BUILDS
from tokenizers import AddedToken

from switchkd.data.errors import DataError, SampleError
from switchkd.data.reader import Reader
from switchkd.models.families.chat_blocks import CHATML
from switchkd.pairing.pair_report import compare_models


def with_extra(template=CHATML, *, special=True, text="<end_of_utterance>"):
    """A processor with one id more than 320 rows."""
    processor = tiny_processor(template)
    processor.tokenizer.add_tokens([AddedToken(text, special=special)], special_tokens=special)
    assert len(processor.tokenizer) == 321
    return processor


def report(processor, rows):
    config = BUILDS["llava-siglip-qwen2"].config(16, 3)
    config.text_config.vocab_size = rows
    return compare_models((config, processor), (config, with_extra()))


def row(answer, *, image=False):
    file = io.BytesIO()
    Image.new("RGB", (40, 40)).save(file, "PNG")
    asked = [{"type": "image", "text": None}] * image + [{"type": "text", "text": "What is it?"}]
    messages = [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]
    return {"id": "seven", "messages": messages, "images": [{"bytes": file.getvalue(), "path": None}] * image}


def test_an_id_without_a_row_that_nothing_gives_is_left_out():
    assert Reader(with_extra(), rows=321).ids == 321
    reader = Reader(with_extra(), rows=320)
    assert reader.ids == 320
    assert report(with_extra(), 320).vocabulary == 320
    typed = reader.encode(row("Say <end_of_utterance>"))  # typed, it is ordinary characters
    assert max(typed.tokens) < 320


USED = {
    "the template": (
        lambda: with_extra(CHATML.replace("<|im_end|>", "<end_of_utterance>")),
        "the chat template or the processor writes it",
    ),
    "text": (lambda: with_extra(special=False), "text can give it"),
}


def image_token_last():
    processor = tiny_processor(CHATML.replace("<image>", "<picture>"))
    processor.tokenizer.add_special_tokens({"additional_special_tokens": ["<picture>"]})
    processor.image_token, processor.image_token_id = "<picture>", 320
    return processor


USED["the processor"] = (image_token_last, "the chat template or the processor writes it")


@pytest.mark.parametrize("used", USED)
def test_an_id_without_a_row_that_is_used_is_named(used):
    make, why = USED[used]
    says = rf"the tokenizer has 321 ids and its model 320 embedding rows: id 320 \('<\w+>'\) has none, and {why}"
    with pytest.raises(DataError, match=says):
        _ = Reader(make(), rows=320).ids
    with pytest.raises(DataError, match=says):
        report(make(), 320)


def test_a_row_with_an_id_beyond_the_rows_is_a_bad_row():
    """Whatever the looks in advance say: here, they are left out."""
    reader = Reader(with_extra(special=False), rows=320)
    says = r"sample 'seven': holds id 320 \('<end_of_utterance>'\), and the model has 320 embedding rows"
    with pytest.raises(SampleError, match=says):
        reader.encode(row("A <end_of_utterance>"))
    asked = row("A <end_of_utterance>")
    asked["messages"] = [*asked["messages"], asked["messages"][0]]
    with pytest.raises(SampleError, match=says):
        reader.prompts([asked])
    assert max(reader.encode(row("A cat.", image=True)).tokens) < 320
