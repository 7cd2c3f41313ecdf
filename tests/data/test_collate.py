import pickle
from io import BytesIO

import pytest
import torch
from PIL import Image
from tiny import IMAGE_TOKENS, tiny_processor
from transformers import AutoProcessor, CLIPImageProcessorPil

from switchkd.data.collate import Collator, prompts
from switchkd.data.errors import DataError, SampleError
from switchkd.types import answer_positions, answer_targets


def picture(color="red"):
    buffer = BytesIO()
    Image.new("RGB", (40, 30), color).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def row(*turns, images=(), name="r"):
    """Turns alternate, the user begins; the images come first."""
    messages = []
    for position, value in enumerate(turns):
        content = [{"type": "image", "text": None} for _ in images] if position == 0 else []
        content.append({"type": "text", "text": value})
        messages.append({"role": "assistant" if position % 2 else "user", "content": content})
    return {"id": name, "images": list(images), "messages": messages, "kinds": [], "problem": None}


ROWS = [
    row("Which?", "A cat.", "Sure?", "Yes.", images=[picture()]),
    row("Same?", "No.", images=[picture("blue"), picture("green")]),
    row("Hello", "There."),
]


@pytest.fixture(scope="module")
def collator():
    return Collator(tiny_processor())


def test_a_batch_of_one_two_and_no_images(collator):
    batch = collator(ROWS)
    ids, mask, labels = batch["input_ids"], batch["attention_mask"], batch["labels"]
    assert ids.shape == mask.shape == labels.shape
    assert ids.dtype == labels.dtype == torch.int64
    assert batch["pixel_values"].shape == (3, 3, 32, 32)
    image = ids == collator.format.image_token_id
    assert image.sum(dim=1).tolist() == [IMAGE_TOKENS, 2 * IMAGE_TOKENS, 0]
    assert (labels[image] == -100).all()
    assert (labels[mask == 0] == -100).all()
    assert mask.tolist() == [sorted(line, reverse=True) for line in mask.tolist()]  # padded on the right
    decode = collator.processor.tokenizer.decode
    answers = [decode(line[line != -100]) for line in labels]
    assert answers == ["A cat.<|im_end|>Yes.<|im_end|>", "No.<|im_end|>", "There.<|im_end|>"]


def test_images_come_in_the_order_of_their_marks(collator):
    means = collator(ROWS)["pixel_values"].mean(dim=(2, 3)).argmax(dim=1)
    assert means.tolist() == [0, 2, 1]  # red, blue, green


def test_answer_positions_are_the_same_on_either_padding_side(collator):
    right = collator(ROWS)
    widths = right["attention_mask"].sum(dim=1).tolist()
    rolled = [line.roll(len(line) - width) for line, width in zip(right["labels"], widths, strict=True)]
    left = torch.stack(rolled)
    assert torch.equal(answer_targets(right["labels"]), answer_targets(left))
    for labels in (right["labels"], left):
        positions = answer_positions(labels)
        assert int(positions.sum()) == int((labels != -100).sum())
        rows, columns = positions.nonzero(as_tuple=True)
        assert torch.equal(labels[rows, columns + 1], answer_targets(labels))


def test_text_only_batches_have_no_pixel_values(collator):
    assert "pixel_values" not in collator([ROWS[2]])


def test_the_tokens_are_those_of_the_plain_processor(collator):
    processor = collator.processor
    text = processor.apply_chat_template(
        [[{"role": m["role"], "content": m["content"]} for m in ROWS[0]["messages"]]], tokenize=False
    )
    plain = processor(text=text, images=[Image.new("RGB", (40, 30), "red")], return_tensors="pt")
    ours = collator([ROWS[0]])
    for name in ("input_ids", "attention_mask", "pixel_values"):
        assert torch.equal(ours[name], plain[name]), name


def test_clip_with_a_class_token_gets_its_own_count():
    processor = tiny_processor()
    size = {"height": 32, "width": 32}
    processor.image_processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size)
    processor.num_additional_image_tokens, processor.vision_feature_select_strategy = 1, "default"
    encoded = Collator(processor).encode(ROWS[0])
    assert encoded.input_ids.count(processor.image_token_id) == IMAGE_TOKENS
    processor.vision_feature_select_strategy = "full"
    assert Collator(processor).encode(ROWS[0]).input_ids.count(processor.image_token_id) == IMAGE_TOKENS + 1


def test_only_the_end_of_an_answer_is_cut(collator):
    whole = collator.encode(ROWS[0])
    short = Collator(collator.processor, max_length=len(whole.input_ids) - 4).encode(ROWS[0])
    assert short.input_ids == whole.input_ids[:-4]
    assert short.labels == whole.labels[:-4]
    assert (short.tokens, len(short.input_ids)) == (len(whole.input_ids), len(whole.input_ids) - 4)


def test_a_row_keeps_one_answer_token_or_is_refused(collator):
    whole = collator.encode(ROWS[0])
    first = next(i for i, label in enumerate(whole.labels) if label != -100)
    assert Collator(collator.processor, max_length=first + 1).encode(ROWS[0]).labels[-1] == whole.input_ids[first]
    with pytest.raises(
        SampleError, match=rf"'r': has {whole.tokens} tokens.*begins at token {first}.*max_length is {first};"
    ):
        Collator(collator.processor, max_length=first).encode(ROWS[0])


def test_images_are_never_cut(collator):
    whole = collator.encode(ROWS[1])
    end = max(i for i, token in enumerate(whole.input_ids, 1) if token == collator.format.image_token_id)
    with pytest.raises(SampleError, match=rf"has {whole.tokens} tokens.*ends at token {end}.*max_length is {end - 1};"):
        Collator(collator.processor, max_length=end - 1).encode(ROWS[1])


BAD_ROWS = {
    "no answer": (row("Hi"), "'r': has no answer token: no assistant turn"),
    "empty answer": (row("Hi", " \n"), "'r': has an empty answer"),
    "missing image": (row("Hi", "x", images=[{"bytes": None, "path": "/nowhere.png"}]), "'/nowhere.png' is missing"),
    "large image": (row("Hi", "x", images=[picture()]), "1,200 pixels, limit 1,000"),
    "refused path": (row("Hi", "x") | {"problem": "image path 'x:' is a URL"}, "'r': image path 'x:' is a URL"),
}


@pytest.mark.parametrize(("bad", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_rows_that_cannot_be_used_name_themselves(bad, message):
    with pytest.raises(SampleError, match=message):
        Collator(tiny_processor(), max_pixels=1000)([bad])


def test_prompts_are_padded_left_and_end_where_the_answer_begins(collator):
    asked = [row("Which?", images=[picture()]), row("Hello", "There.", "Sure?"), row("A")]
    batch = prompts(collator.processor, asked)
    assert set(batch) == {"input_ids", "attention_mask", "pixel_values"}
    assert batch["attention_mask"].tolist() == [sorted(line) for line in batch["attention_mask"].tolist()]
    assert batch["pixel_values"].shape == (1, 3, 32, 32)
    decode = collator.processor.tokenizer.decode
    assert {decode(line)[-22:] for line in batch["input_ids"]} == {"<|im_start|>assistant\n"}
    trained = collator.encode(row("Which?", "A cat.", images=[picture()]))
    first = next(i for i, label in enumerate(trained.labels) if label != -100)
    assert batch["input_ids"][0][batch["attention_mask"][0] == 1].tolist() == trained.input_ids[:first]
    assert "pixel_values" not in prompts(collator.processor, asked[1:])


def test_a_prompt_must_end_with_a_question(collator):
    with pytest.raises(SampleError, match="'r': cannot be asked"):
        prompts(collator.processor, [row("Hi", "Hello.")])


def test_the_collator_can_be_sent_to_workers(collator):
    sent = pickle.loads(pickle.dumps(collator))
    for name, tensor in collator(ROWS).items():
        assert torch.equal(sent(ROWS)[name], tensor), name


def test_a_saved_processor_collates_alike(collator, tmp_path):
    collator.processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    for name, tensor in collator(ROWS).items():
        assert torch.equal(Collator(loaded)(ROWS)[name], tensor), name


def test_processors_that_cannot_serve_are_refused():
    processor = tiny_processor()
    processor.tokenizer.pad_token = processor.tokenizer.eos_token = None
    with pytest.raises(DataError, match="neither a padding nor an eos token"):
        Collator(processor)
