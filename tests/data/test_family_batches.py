"""Batches of every family: held against what the family's own processor makes, and run through a model."""

import copy
import io

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_processors import PROCESSORS, tiny_for

from switchkd.data.errors import DataError, SampleError
from switchkd.data.reader import Reader
from switchkd.evaluate.generate import answers
from switchkd.models import Pathway
from switchkd.models.families import family_of, family_of_processor

every_family = pytest.mark.parametrize("name", PROCESSORS)


@pytest.fixture(scope="module")
def processors():
    return {name: build() for name, build in PROCESSORS.items()}


def picture(height, width, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
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
    row("Which?", "A cat.", "Sure?", "Yes.", images=[picture(40, 40)]),
    row("Same?", "No.", images=[picture(24, 40, 1), picture(48, 20, 2)]),
    row("Hello", "There."),
]

GOLDEN = {
    "qwen2_vl": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>*<|vision_end|>Which?"
    "<|im_end|>\n<|im_start|>assistant\n[A cat.<|im_end|>]\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n[Yes.<|im_end|>]\n",
    "qwen3_vl": "<|im_start|>user\n<|vision_start|>*<|vision_end|>Which?<|im_end|>\n<|im_start|>assistant\n[A cat.<|im_end|>]\n"
    "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n[Yes.<|im_end|>]\n",
    "idefics3": "<|im_start|>User:<fake_token_around_image><row_1_col_1>*<fake_token_around_image><row_1_col_2>*\n"
    "<fake_token_around_image><row_2_col_1>*<fake_token_around_image><row_2_col_2>*\n\n"
    "<fake_token_around_image><global-img>*<fake_token_around_image>Which?<end_of_utterance>\nAssistant:[ A cat.<end_of_utterance>]\n"
    "User: Sure?<end_of_utterance>\nAssistant:[ Yes.<end_of_utterance>]\n",
    "internvl-qwen2": "<|im_start|>user\n<img>*</img>\nWhich?<|im_end|>\n<|im_start|>assistant\n[A cat.<|im_end|>]\n"
    "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n[Yes.<|im_end|>]\n",
    "paligemma": "*<bos>Which?\n[A cat.<eos>]Sure?\n[Yes.<eos>]",
    "gemma3": "<bos><start_of_turn>user\n\n\n<start_of_image>*<end_of_image>\n\nWhich?<end_of_turn>\n<start_of_turn>model\n"
    "[A cat.<end_of_turn>]\n<start_of_turn>user\nSure?<end_of_turn>\n<start_of_turn>model\n[Yes.<end_of_turn>]\n",
    "mistral3": "<s>[INST]*[IMG_BREAK]*[IMG_BREAK]*[IMG_BREAK]*[IMG_END]Which?[/INST]⟦A cat.</s>⟧[INST]Sure?[/INST]⟦Yes.</s>⟧",
}
GOLDEN |= {"qwen2_5_vl": GOLDEN["qwen2_vl"], "smolvlm": GOLDEN["idefics3"], "paligemma2": GOLDEN["paligemma"]}


def read(reader, rows=ROWS):
    return reader.inputs([reader.encode(row) for row in rows])


def bracketed(reader, encoded):
    """The text of a row: answers in brackets, each run of visual tokens as one `*`."""
    written, inside, before = "", False, None
    for place, token in enumerate(encoded.tokens):
        answer = place in encoded.answers
        written += "⟦" * (answer and not inside) + "⟧" * (inside and not answer)
        visual = token == reader.format.image_token_id
        if not (visual and before == token):
            written += "*" if visual else reader.processor.tokenizer.decode([token])
        inside, before = answer, token
    return written + "⟧" * inside


@every_family
def test_a_processor_belongs_to_the_family_of_its_models(name, processors):
    model = tiny_for(name, processors[name])
    assert family_of_processor(processors[name]) is type(family_of(model.config))


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_rendering_and_mask(name, processors):
    reader = Reader(processors[name])
    golden = GOLDEN[name] if "⟦" in GOLDEN[name] else GOLDEN[name].replace("[", "⟦").replace("]", "⟧")
    assert bracketed(reader, reader.encode(ROWS[0])) == golden


def test_what_the_system_says_begins_the_first_turn_of_gemma(processors):
    reader = Reader(processors["gemma3"])
    asked = row("Which?", "A cat.")
    asked["messages"].insert(0, {"role": "system", "content": [{"type": "text", "text": "Be brief."}]})
    begin = "<bos><start_of_turn>user\nBe brief.\n\nWhich?<end_of_turn>\n<start_of_turn>model\n⟦A cat.<end_of_turn>⟧\n"
    assert bracketed(reader, reader.encode(asked)) == begin


@every_family
def test_answers_are_predicted_one_token_before_them(name, processors):
    """Against the definition, place by place: a flat place whose next token is an answer."""
    reader = Reader(processors[name])
    encoded = [reader.encode(one) for one in ROWS]
    inputs = reader.inputs(encoded)
    width = inputs.tokens.shape[1]
    predicts, targets, sample = [], [], []
    for number, one in enumerate(encoded):
        for column in range(width):
            if column + 1 in one.answers:
                predicts.append(number * width + column)
                targets.append(int(inputs.tokens[number, column + 1]))
                sample.append(number)
    assert inputs.predicts.tolist() == predicts
    assert inputs.targets.tolist() == targets
    assert inputs.sample.tolist() == sample
    assert inputs.lengths.tolist() == [len(one.tokens) for one in encoded]
    assert {len(one.answers) for one in encoded} != {1}


@every_family
def test_tokens_and_pixels_are_those_of_the_processor(name, processors):
    processor = processors[name]
    reader = Reader(processor)
    if name.startswith("paligemma"):  # its processor writes the prompt by itself, around one question
        rows = [
            row("Which?", "A cat.", images=[picture(40, 40)]),
            row("Same?", "No.", images=[picture(24, 40), picture(9, 9)]),
        ]
        images = [[Image.open(io.BytesIO(image["bytes"])) for image in r["images"]] for r in rows]
        own = processor(
            text=["<image>Which?", "<image><image>Same?"],
            suffix=["A cat.", "No."],
            images=images,
            padding="longest",
            padding_side="right",
            images_kwargs={"return_tensors": "pt"},
        )
        own = {key: torch.as_tensor(value) for key, value in own.items()}
        inputs = read(reader, rows)
        labels = own.pop("labels").masked_fill(own["attention_mask"] == 0, -100)  # it puts some on padding
        assert torch.equal(labels[labels != -100], inputs.targets)
        assert torch.equal((labels != -100).flatten().nonzero().flatten() - 1, inputs.predicts)
    else:
        rows = ROWS
        rendered = [
            processor.tokenizer.apply_chat_template(r["messages"], chat_template=reader.format.template, tokenize=False)
            for r in rows
        ]
        images = [[Image.open(io.BytesIO(image["bytes"])) for image in r["images"]] for r in rows if r["images"]]
        # A row without images among others is more than some processors can take: it goes by itself.
        own = processor(text=rendered[:2], images=images, padding=True, padding_side="right", return_tensors="pt")
        inputs = read(reader, rows[:2])
        alone = read(reader, rows[2:])
        text = processor.tokenizer(rendered[2:], return_tensors="pt", add_special_tokens=False)
        assert torch.equal(alone.tokens, text["input_ids"])
        assert alone.media == {}
    assert own.keys() == plain(inputs).keys()
    for key, tensor in plain(inputs).items():
        torch.testing.assert_close(tensor, own[key], msg=key)


def plain(inputs):
    """What the model's own forward takes."""
    mask = inputs.is_text().long()
    return {"input_ids": inputs.tokens, "attention_mask": mask, **inputs.types, **(inputs.images or {})}


@every_family
def test_a_model_reads_the_batch(name, processors):
    processor = processors[name]
    model = tiny_for(name, processor).double()
    inputs = read(Reader(processor))
    images = {key: made.double() if made.is_floating_point() else made for key, made in inputs.images.items()}
    inputs = inputs._replace(media={"image": images})
    pathway = Pathway(model)
    logits = pathway.logits(pathway.say(pathway.see(inputs), inputs))
    expected = model(**plain(inputs)).logits.flatten(0, 1)[inputs.predicts]
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-9)


@every_family
def test_a_question_has_the_same_answer_in_a_batch_and_alone(name, processors):
    """Padded on the left in float32, with and without pictures, and in another order."""
    processor = processors[name]
    model = tiny_for(name, processor)
    asked = [{**r, "messages": r["messages"][:-1]} for r in ROWS]
    alone = [answers(model, processor, [r], max_new_tokens=4)[0] for r in asked]
    assert answers(model, processor, asked, max_new_tokens=4) == alone
    assert answers(model, processor, asked[::-1], max_new_tokens=4) == alone[::-1]


@every_family
def test_a_prompt_is_the_beginning_of_the_training_sequence(name, processors):
    reader = Reader(processors[name])
    asked = [{**r, "messages": r["messages"][:-1]} for r in ROWS]
    prompt, inputs = reader.prompts(asked), read(reader)
    batch = plain(inputs)
    keys = [key for key in prompt if prompt[key].shape == prompt["input_ids"].shape and key != "attention_mask"]
    for index in range(len(ROWS)):
        real = prompt["attention_mask"][index].bool()
        length = int(real.sum())
        for key in keys:
            assert torch.equal(prompt[key][index, real], batch[key][index, :length]), key
        # its last token predicts the first token of the last answer
        assert index * batch["input_ids"].shape[1] + length - 1 in inputs.predicts
    assert torch.equal(prompt["pixel_values"], batch["pixel_values"])


@every_family
def test_no_answer_is_on_an_image_and_no_cut_goes_through_one(name, processors):
    reader = Reader(processors[name])
    for r in ROWS[:2]:
        encoded = reader.encode(r)
        image = reader.format.image_token_id
        visual = [index for index, token in enumerate(encoded.tokens) if token == image]
        assert not set(visual) & set(encoded.answers)
        first = encoded.answers[0]
        assert Reader(reader.processor, max_length=first + 1).encode(r).tokens == encoded.tokens[: first + 1]
        for length in (visual[0] + 1, visual[-1]):
            with pytest.raises(SampleError, match=f"its last image ends at token .* but max_length is {length}"):
                Reader(reader.processor, max_length=length).encode(r)


def test_the_marks_behind_an_image_belong_to_it(processors):
    reader = Reader(processors["idefics3"])
    encoded = reader.encode(ROWS[0])
    last = max(index for index, token in enumerate(encoded.tokens) if token == reader.format.image_token_id)
    assert reader.processor.tokenizer.decode([encoded.tokens[last + 1]]) == "<fake_token_around_image>"
    with pytest.raises(SampleError, match=f"its last image ends at token {last + 2}, but max_length is {last + 1};"):
        Reader(reader.processor, max_length=last + 1).encode(ROWS[0])


def test_token_types_of_paligemma_divide_what_it_sees_both_ways_from_what_it_says(processors):
    encoded = Reader(processors["paligemma"]).encode(ROWS[0])
    first = encoded.answers[0]
    assert encoded.types["token_type_ids"] == [0] * first + [1] * (len(encoded.tokens) - first)


def test_an_image_that_the_processor_refuses_is_a_bad_sample(processors):
    with pytest.raises(SampleError, match=r"sample 'thin': Qwen2VLProcessor cannot process its images: .*aspect ratio"):
        Reader(processors["qwen2_vl"]).encode(row("What?", "A line.", images=[picture(2, 600)], name="thin"))


def test_typed_image_tokens_stay_text(processors):
    for name in ("gemma3", "internvl-qwen2", "mistral3"):
        reader = Reader(processors[name])
        typed = " ".join(["What is", reader.format.image_token, "?"])
        ids = reader.encode(row(typed, "Text.")).tokens
        assert reader.format.image_token_id not in ids
        assert reader.processor.tokenizer.convert_tokens_to_ids(reader.format.image_token) not in ids


def test_an_unknown_template_that_cannot_be_used_is_refused(processors):
    processor = PROCESSORS["llava-siglip-qwen2"]()
    processor.chat_template = "{% for m in messages %}{{ m['role'] }}{% endfor %}"
    with pytest.raises(DataError, match=r"cannot be used .* and none of ours fits it"):
        Reader(processor)


def with_padding(name, model, processor, padding):
    """The same model and processor, whose padding token is another in every config."""
    processor.tokenizer.pad_token = processor.tokenizer.convert_ids_to_tokens(padding)
    config = copy.deepcopy(model.config)
    for part in (config, config.get_text_config()):
        part.pad_token_id = padding
    other = type(model)(config).eval()
    other.load_state_dict(model.state_dict())
    other.generation_config = copy.deepcopy(model.generation_config)
    other.generation_config.pad_token_id = padding
    return other


#: One of each way in which pictures enter; the others take as long again.
_PADDED = ("llava_next-llama", "qwen2_5_vl", "idefics3", "gemma3", "mistral3")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in _PADDED else pytest.mark.slow) for n in PROCESSORS])
def test_a_padding_token_that_is_the_image_token_changes_nothing(name):
    """In rows with and without pictures together, two steps of training and answers of which some end before others."""
    processor = PROCESSORS[name]()
    plain = tiny_for(name, processor)
    reader = Reader(processor)
    asked = [{**r, "messages": r["messages"][:1], "id": str(number)} for number, r in enumerate(ROWS)]
    ends = list(range(0, plain.get_input_embeddings().num_embeddings, 3))
    plain.generation_config.eos_token_id = [end for end in ends if end != reader.format.image_token_id]
    said, learned = [], []
    for padding in (processor.tokenizer.pad_token_id, reader.format.image_token_id):
        model = with_padding(name, plain, processor, padding)
        assert processor.tokenizer.pad_token_id == padding
        said.append(answers(model, processor, asked, max_new_tokens=8))
        pathway, inputs = Pathway(model), read(Reader(processor))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(2):
            loss = torch.nn.functional.cross_entropy(
                pathway.logits(pathway.say(pathway.see(inputs), inputs)), inputs.targets
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        learned.append(loss.item())
    assert {answer.truncated for answer in said[0]} >= {False}
    assert said[0] == said[1]
    assert learned[0] == pytest.approx(learned[1], rel=1e-6)
