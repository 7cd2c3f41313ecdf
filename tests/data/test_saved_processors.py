"""What is saved asks as it was trained: plain `AutoProcessor` writes the ids that were learned, in every family."""

import io
import json

import pytest
import transformers
from PIL import Image
from tiny_processors import PROCESSORS
from transformers import AutoProcessor

from switchkd.data.processor_files import save_processor
from switchkd.data.reader import Reader
from switchkd.data.template_choice import use_format

#: Roles and texts, `<image>` where the picture is.
CONVERSATIONS = {
    "text": ["What is it?", "A cat."],
    "an image": ["<image>What is it?", "A cat."],
    "two turns": ["<image>What is it?", "A cat.", "Are you sure?", "Yes."],
    "an image between texts": ["Look:<image>What is it?", "A cat."],
}


def picture():
    return Image.linear_gradient("L").resize((32, 24)).convert("RGB")


def messages(texts, image):
    made = []
    for number, text in enumerate(texts):
        parts = []
        for place, piece in enumerate(text.split("<image>")):
            parts += [{"type": "image", **image}] * (place > 0) + [{"type": "text", "text": piece}] * bool(piece)
        made.append({"role": "assistant" if number % 2 else "user", "content": parts})
    return made


def row(texts):
    file = io.BytesIO()
    picture().save(file, "PNG")
    images = [{"bytes": file.getvalue(), "path": None}] * "".join(texts).count("<image>")
    return {"id": "r", "messages": messages(texts, {"text": None}), "images": images}


def plain_ids(processor, texts, *, prompt):
    asked = processor.apply_chat_template(
        [messages(texts, {"image": picture()})],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=prompt,
    )
    return asked["input_ids"][0].tolist()


#: Processors that need one for videos, which needs torchvision, and its class.
VIDEOS = {
    "llava_onevision": "LlavaOnevisionVideoProcessor",
    "qwen2_vl": "Qwen2VLVideoProcessor",
    "qwen2_5_vl": "Qwen2VLVideoProcessor",
    "qwen3_vl": "Qwen3VLVideoProcessor",
    "smolvlm": "SmolVLMVideoProcessor",
    "internvl-qwen2": "InternVLVideoProcessor",
}


@pytest.fixture(params=PROCESSORS)
def saved(request, tmp_path):
    """A reader, and the processor that plain code opens after training."""
    processor = PROCESSORS[request.param]()
    if request.param in VIDEOS:
        pytest.importorskip("torchvision")
        processor.video_processor = getattr(transformers, VIDEOS[request.param])()
    reader = Reader(processor)
    use_format(processor, reader.format)
    save_processor(processor, tmp_path)
    return reader, AutoProcessor.from_pretrained(tmp_path), tmp_path


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # PaliGemma's processor, with NumPy 2
def test_plain_code_asks_and_writes_what_was_trained(saved):
    reader, plain, _ = saved
    for kind, texts in CONVERSATIONS.items():
        if kind == "text" and isinstance(plain, transformers.PaliGemmaProcessor):
            continue  # it reads no text without an image
        whole = reader.encode(row(texts)).tokens
        written = plain_ids(plain, texts, prompt=False)
        # behind the last answer's end some templates write a line break, which nothing learns
        assert whole == written[: len(whole)], kind
        assert plain.tokenizer.decode(written[len(whole) :]).strip() == "", kind
        asked = plain_ids(plain, texts[:-1], prompt=True)
        assert asked == reader.prompts([row(texts[:-1])])["input_ids"][0].tolist(), kind
        assert asked == whole[: len(asked)], kind


def test_settings_of_images_stand_in_a_file_of_their_own(saved):
    _, plain, folder = saved
    own = json.loads((folder / "preprocessor_config.json").read_text())
    assert own["processor_class"] == type(plain).__name__
    assert not own["image_processor_type"].endswith("Pil")
    together = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    assert {name: own[name] for name in together if not name.endswith("_type")} == {
        name: value for name, value in together.items() if not name.endswith("_type")
    }


def test_no_saved_template_has_marks_that_other_engines_cannot_read(saved):
    reader, plain, _ = saved
    assert plain.chat_template == reader.format.saved
    assert "generation %}" not in plain.chat_template
