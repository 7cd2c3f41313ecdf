import pickle
from io import BytesIO

import pytest
import torch
from PIL import Image
from tiny import IMAGE_TOKENS, tiny_processor
from torch.utils.data import DataLoader
from transformers import AutoProcessor, CLIPImageProcessorPil

from switchkd.batch import TEACHER, Batch, Inputs, sample_id
from switchkd.data.collate import Collator
from switchkd.data.errors import DataError, SampleError
from switchkd.data.reader import Reader
from switchkd.pairing.reading import OwnInputs, SameInputs


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


def tensors(inputs: Inputs) -> dict[str, torch.Tensor]:
    """All tensors of a model's inputs, by name."""
    named = {name: value for name, value in inputs._asdict().items() if isinstance(value, torch.Tensor)}
    return named | {f"media.{name}": value for name, value in (inputs.images or {}).items()} | inputs.types


def assert_equal(first: Inputs, second: Inputs) -> None:
    assert tensors(first).keys() == tensors(second).keys()
    for name, tensor in tensors(first).items():
        assert torch.equal(tensor, tensors(second)[name]), name


@pytest.fixture(scope="module")
def reader():
    return Reader(tiny_processor())


def read(reader, rows=ROWS) -> Inputs:
    return reader.inputs([reader.encode(row) for row in rows])


def test_rows_rounded_up_to_a_multiple_hold_what_they_held(reader):
    rounded = Reader(tiny_processor(), multiple=64)
    assert rounded.fingerprint == reader.fingerprint
    inputs, plain = read(rounded), read(reader)
    width = plain.tokens.shape[1]
    assert width % 64
    assert inputs.tokens.shape == (len(ROWS), -(-width // 64) * 64)
    assert torch.equal(inputs.tokens[:, :width], plain.tokens)
    assert (inputs.tokens[:, width:] == rounded.processor.tokenizer.pad_token_id).all()
    assert torch.equal(inputs.tokens.flatten()[inputs.predicts + 1], inputs.targets)
    assert torch.equal(inputs.targets, plain.targets)
    assert torch.equal(inputs.lengths, plain.lengths)


def test_a_batch_of_one_two_and_no_images(reader):
    inputs = read(reader)
    tokens = inputs.tokens
    assert tokens.dtype == inputs.targets.dtype == inputs.predicts.dtype == torch.int64
    assert inputs.images["pixel_values"].shape == (3, 3, 32, 32)
    image = tokens == reader.format.image_token_id
    assert image.sum(dim=1).tolist() == [IMAGE_TOKENS, 2 * IMAGE_TOKENS, 0]
    assert max(inputs.lengths) == tokens.shape[1]
    for line, length in zip(tokens, inputs.lengths, strict=True):  # padded on the right
        assert (line[length:] == reader.processor.tokenizer.pad_token_id).all()
        assert (line[:length] != reader.processor.tokenizer.pad_token_id).all()
    assert torch.equal(inputs.is_text(), tokens != reader.processor.tokenizer.pad_token_id)
    decode = reader.processor.tokenizer.decode
    answers = [decode(inputs.targets[inputs.sample == number]) for number in range(3)]
    assert answers == ["A cat.<|im_end|>Yes.<|im_end|>", "No.<|im_end|>", "There.<|im_end|>"]


def test_images_come_in_the_order_of_their_marks(reader):
    means = read(reader).images["pixel_values"].mean(dim=(2, 3)).argmax(dim=1)
    assert means.tolist() == [0, 2, 1]  # red, blue, green


def test_text_only_batches_have_no_media(reader):
    inputs = read(reader, [ROWS[2]])
    assert inputs.media == {}
    assert inputs.images is None


def test_the_tokens_are_those_of_the_plain_processor(reader):
    processor = reader.processor
    text = processor.apply_chat_template(
        [[{"role": m["role"], "content": m["content"]} for m in ROWS[0]["messages"]]], tokenize=False
    )
    plain = processor(text=text, images=[Image.new("RGB", (40, 30), "red")], return_tensors="pt")
    inputs = read(reader, [ROWS[0]])
    assert torch.equal(inputs.tokens, plain["input_ids"])
    assert torch.equal(inputs.is_text().long(), plain["attention_mask"])
    assert torch.equal(inputs.images["pixel_values"], plain["pixel_values"])


def test_clip_with_a_class_token_gets_its_own_count():
    processor = tiny_processor()
    size = {"height": 32, "width": 32}
    processor.image_processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size)
    processor.num_additional_image_tokens, processor.vision_feature_select_strategy = 1, "default"
    encoded = Reader(processor).encode(ROWS[0])
    assert encoded.tokens.count(processor.image_token_id) == IMAGE_TOKENS
    processor.vision_feature_select_strategy = "full"
    assert Reader(processor).encode(ROWS[0]).tokens.count(processor.image_token_id) == IMAGE_TOKENS + 1


def test_only_the_end_of_an_answer_is_cut(reader):
    whole = reader.encode(ROWS[0])
    count = len(whole.tokens)
    short = Reader(reader.processor, max_length=count - 4).encode(ROWS[0])
    assert short.tokens == whole.tokens[:-4]
    assert short.answers == [place for place in whole.answers if place < count - 4]
    assert len(short.answers) < len(whole.answers)
    assert (short.whole_length, len(short.tokens)) == (count, count - 4)


def test_a_row_keeps_one_answer_token_or_is_refused(reader):
    whole = reader.encode(ROWS[0])
    first = whole.answers[0]
    assert Reader(reader.processor, max_length=first + 1).encode(ROWS[0]).answers == [first]
    with pytest.raises(
        SampleError, match=rf"'r': has {whole.whole_length} tokens.*begins at token {first}.*max_length is {first};"
    ):
        Reader(reader.processor, max_length=first).encode(ROWS[0])


def test_images_are_never_cut(reader):
    whole = reader.encode(ROWS[1])
    end = max(i for i, token in enumerate(whole.tokens, 1) if token == reader.format.image_token_id)
    with pytest.raises(
        SampleError, match=rf"has {whole.whole_length} tokens.*ends at token {end}.*max_length is {end - 1};"
    ):
        Reader(reader.processor, max_length=end - 1).encode(ROWS[1])


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
        Collator(Reader(tiny_processor(), max_pixels=1000))([bad])


def test_prompts_are_padded_left_and_end_where_the_answer_begins(reader):
    asked = [row("Which?", images=[picture()]), row("Hello", "There.", "Sure?"), row("A")]
    batch = reader.prompts(asked)
    assert set(batch) == {"input_ids", "attention_mask", "pixel_values"}
    assert batch["attention_mask"].tolist() == [sorted(line) for line in batch["attention_mask"].tolist()]
    assert batch["pixel_values"].shape == (1, 3, 32, 32)
    decode = reader.processor.tokenizer.decode
    assert {decode(line)[-22:] for line in batch["input_ids"]} == {"<|im_start|>assistant\n"}
    trained = reader.encode(row("Which?", "A cat.", images=[picture()]))
    assert batch["input_ids"][0][batch["attention_mask"][0] == 1].tolist() == trained.tokens[: trained.answers[0]]
    assert "pixel_values" not in reader.prompts(asked[1:])


def test_a_prompt_must_end_with_a_question(reader):
    with pytest.raises(SampleError, match="'r': cannot be asked"):
        reader.prompts([row("Hi", "Hello.")])


def test_a_saved_processor_reads_alike(reader, tmp_path):
    reader.processor.save_pretrained(tmp_path)
    loaded = Reader(
        AutoProcessor.from_pretrained(tmp_path, backend="pil")
    )  # torchvision, where it is, resizes differently
    assert_equal(read(loaded), read(reader))


def test_processors_that_cannot_serve_are_refused():
    processor = tiny_processor()
    processor.tokenizer.pad_token = processor.tokenizer.eos_token = None
    with pytest.raises(DataError, match="neither a padding nor an eos token"):
        Reader(processor)


def test_padding_is_never_the_image_token():
    processor = tiny_processor()
    processor.tokenizer.pad_token = "<image>"
    reader = Reader(processor)
    tokens = read(reader).tokens
    assert (tokens == processor.image_token_id).sum(dim=1).tolist() == [IMAGE_TOKENS, 2 * IMAGE_TOKENS, 0]
    assert tokens[2, -1] == processor.tokenizer.eos_token_id
    prompted = reader.prompts([row("Hello, who is there?"), row("A")])
    assert prompted["input_ids"][1, 0] == processor.tokenizer.eos_token_id
    processor.tokenizer.eos_token = None
    with pytest.raises(DataError, match="neither a padding nor an eos token that is not the image token"):
        Reader(processor)


# ---- batches of a student and its teachers

TEACHERS = {
    "none": lambda **limits: {},
    "same": lambda **limits: {TEACHER: SameInputs(320)},
    "own": lambda **limits: {TEACHER: OwnInputs(Reader(tiny_processor(), **limits), 320)},
}


def make(kind="same", **limits):
    return Collator(Reader(tiny_processor(), **limits), TEACHERS[kind](**limits))


def test_a_teacher_with_the_same_inputs_reads_the_students_own_object():
    batch = make()(ROWS)
    assert batch.readers[TEACHER] is batch.student
    aligned = batch.shared[TEACHER]
    assert aligned.student is None
    assert aligned.reader is None
    assert torch.equal(aligned.targets, batch.student.targets)


def test_an_answer_token_beyond_the_vocabulary_has_no_column():
    end = tiny_processor().tokenizer.convert_tokens_to_ids("es")
    batch = Collator(Reader(tiny_processor()), {TEACHER: SameInputs(end)})(ROWS)
    columns = batch.shared[TEACHER].targets
    assert columns.tolist() == [token if token < end else -1 for token in batch.student.targets.tolist()]
    assert -1 in columns


@pytest.mark.parametrize("kind", TEACHERS)
def test_a_collator_can_be_sent_to_workers(kind):
    collator = make(kind)
    sent = pickle.loads(pickle.dumps(collator))
    assert sent.fingerprint == collator.fingerprint
    first, second = collator(ROWS), sent(ROWS)
    assert first.keys == second.keys
    assert_equal(first.student, second.student)


@pytest.mark.parametrize("kind", ["same", "own"])
def test_batches_of_worker_processes_are_those_of_this_one(kind):
    collator = make(kind)
    loader = DataLoader(ROWS, batch_size=2, collate_fn=collator, num_workers=1)
    batches = list(loader)
    assert [type(batch) for batch in batches] == [Batch, Batch]
    for batch, expected in zip(batches, (collator(ROWS[:2]), collator(ROWS[2:])), strict=True):
        assert batch.keys == expected.keys
        assert_equal(batch.student, expected.student)
        assert_equal(batch.readers[TEACHER], expected.readers[TEACHER])
        assert torch.equal(batch.shared[TEACHER].targets, expected.shared[TEACHER].targets)
        assert (batch.readers[TEACHER] is batch.student) == (kind == "same")


MOVES = {
    "to": (lambda batch: batch.to("meta"), lambda tensor: tensor.device.type == "meta"),
    "pin_memory": (Batch.pin_memory, lambda tensor: getattr(tensor, "was_pinned", False)),
}


def pinned(tensor):
    """What a machine with a GPU does; here the copy is only marked."""
    copy = tensor.clone()
    copy.was_pinned = True
    return copy


@pytest.mark.parametrize("kind", ["same", "own"])
@pytest.mark.parametrize("name", MOVES)
def test_a_batch_that_moves_stays_one_object_where_both_read_alike(name, kind, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", pinned)
    move, has_moved = MOVES[name]
    batch = make(kind)(ROWS)
    moved = move(batch)
    assert moved.keys == batch.keys
    assert (moved.readers[TEACHER] is moved.student) == (kind == "same")
    for inputs in (moved.student, moved.readers[TEACHER]):
        assert tensors(inputs).keys() >= {"tokens", "lengths", "predicts", "targets", "sample", "media.pixel_values"}
        assert all(has_moved(tensor) for tensor in tensors(inputs).values())
        assert inputs.positions is None
    assert has_moved(moved.shared[TEACHER].targets)
    assert not any(has_moved(tensor) for tensor in tensors(batch.student).values())


@pytest.mark.parametrize("kind", TEACHERS)
def test_what_a_row_measures_is_what_is_encoded(kind):
    """Also of one whose last answer is cut."""
    for collator in (make(kind), make(kind, max_length=len(make().student.encode(ROWS[0]).tokens) - 3)):
        for one in ROWS[::2]:
            sample, measured = collator.encode(one), collator.measure(one)
            sides = [sample.student, *(r.teacher for r in sample.teachers.values() if r.teacher)]
            assert measured.length == max(len(side.tokens) for side in sides)
            assert measured.tokens == max(side.whole_length for side in sides)
            assert measured.answers == len(sample.student.answers) == len(collator([one]).student.targets)
            compared = [len(aligned.targets) for aligned in collator([one]).shared.values()]
            assert measured.compared == min(compared, default=measured.answers)


# ---- keys


def key(collator=None, one=ROWS[0]):
    (found,) = (collator or make())([one]).keys
    return found


def other_template():
    return Collator(Reader(tiny_processor(tiny_processor().chat_template + " ")), {TEACHER: SameInputs(320)})


def test_equal_rows_have_equal_keys():
    again = row("Which?", "A cat.", "Sure?", "Yes.", images=[picture()])
    assert key(one=again) == key()
    assert make()(ROWS).keys == tuple(key(one=one) for one in ROWS)


OTHER = {
    "id": lambda: key(one={**ROWS[0], "id": "s"}),
    "text": lambda: key(one=row("Which?", "A cat.", "Sure?", "No.", images=[picture()])),
    "image": lambda: key(one=row("Which?", "A cat.", "Sure?", "Yes.", images=[picture("blue")])),
    "template": lambda: key(other_template()),
    "max_length": lambda: key(make(max_length=300)),
    "max_pixels": lambda: key(make(max_pixels=5000)),
    "no teacher": lambda: key(make("none")),
    "another reading of the teacher": lambda: key(make("own")),
    "fewer ids": lambda: key(Collator(Reader(tiny_processor()), {TEACHER: SameInputs(300)})),
    "the teacher's limits": lambda: key(
        Collator(Reader(tiny_processor()), {TEACHER: OwnInputs(Reader(tiny_processor(), max_length=300), 320)})
    ),
    "the teacher's ids": lambda: key(
        Collator(Reader(tiny_processor()), {TEACHER: OwnInputs(Reader(tiny_processor()), 300)})
    ),
}


def test_what_makes_other_inputs_makes_another_key():
    keys = {"the row": key()} | {name: make_key() for name, make_key in OTHER.items()}
    assert len(set(keys.values())) == len(keys)


@pytest.mark.parametrize("name", ["r", "a@b", "", "@", "ü@1"])
def test_a_key_gives_the_id_back(name):
    assert sample_id(key(one={**ROWS[2], "id": name})) == name


def test_a_row_of_an_index_keeps_its_key():
    assert key(one={**ROWS[2], "key": "s7@0123"}) == "s7@0123"
