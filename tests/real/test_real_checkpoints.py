"""Public checkpoints with their own files through the whole product; the folder `SWITCHKD_REAL` holds them, `.ci/run` names it.

Weights are random: what is asked, learned and saved is looked at here, not what is answered.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from real_checkpoints import CHECKPOINTS, REAL, write_checkpoint
from transformers import AutoModelForImageTextToText, AutoProcessor

from switchkd import distill
from switchkd.convert import convert
from switchkd.data.reader import Reader
from switchkd.doctor import examine_pair
from switchkd.recipe.schema import load_recipe

pytestmark = pytest.mark.skipif(REAL is None, reason="public files are elsewhere: SWITCHKD_REAL names no folder")
#: Their template writes a space where an answer ends.
NO_END = ("llava-1.5-7b-hf", "llava-finetune-transformers5")
#: They read videos, too.
VIDEOS = ("qwen2.5-vl-7b-instruct", "smolvlm2-500m-video-instruct")
#: Question and answer texts, `<image>` where an image is; a first part with `system:` is the system's.
ROWS = {
    "text": ["What is it?", "A cat."],
    "a system prompt": ["system:You are brief.", "What is it?", "A cat."],
    "a system prompt and an image": ["system:You are brief.", "<image>What is it?", "A cat."],
    "an image": ["<image>What is it?", "A cat."],
    "an image at the end": ["What is it?<image>", "A cat."],
    "an image between texts": ["Look:<image>What is it?", "A cat."],
    "two images": ["<image><image>Which is larger?", "The first."],
    "two turns": ["What is it?", "A cat.", "Are you sure?", "Yes."],
    "two turns about an image": ["<image>What is it?", "A cat.", "What colour?", "Red."],
    "an image in the second turn": ["Hello.", "Hello!", "<image>What is it?", "A cat."],
    "one word": ["<image>One word.", "Cat"],
    "one letter": ["<image>Which?", "A"],
    "a number": ["How many?", "3,141"],
    "several lines": ["List:\n- one\n- two", "1. One\n2. Two\n\nDone."],
    "code": ["Write it.", "```python\nfor i in range(3):\n    print(i)\n```"],
    "braces": ["What is {{ x }}?", '{"answer": "{% if %}"}'],
    "other scripts": ["这是什么?", "Это кошка: 猫 🐈‍⬛ é"],
    "spaces inside": ["What  is   it?", "A  black   cat."],
    "a long answer": ["Tell me.", "Once there was a cat. " * 20 + "The end."],
}


def picture(index: int = 0) -> Image.Image:
    return Image.linear_gradient("L").resize((60 + 8 * index, 44)).convert("RGB")


def stored(image: Image.Image) -> dict[str, Any]:
    file = io.BytesIO()
    image.save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def messages(texts: list[str]) -> list[dict[str, Any]]:
    """A conversation in the form that both our rows and processors take, but for the pictures."""
    made, roles = [], ["user", "assistant"]
    for text in texts:
        if text.startswith("system:"):
            made.append({"role": "system", "content": [{"type": "text", "text": text.removeprefix("system:")}]})
            continue
        parts: list[dict[str, Any]] = []
        for number, piece in enumerate(text.split("<image>")):
            parts += [{"type": "image"}] * (number > 0) + [{"type": "text", "text": piece}] * bool(piece)
        made.append({"role": roles[0], "content": parts})
        roles.reverse()
    return made


def own_ids(processor: Any, texts: list[str], *, prompt: bool = False) -> list[int]:
    """What the processor's own `apply_chat_template` makes of it."""
    conversation, pictures = messages(texts), iter(range(9))
    for message in conversation:
        message["content"] = [
            {**part, "image": picture(next(pictures))} if part["type"] == "image" else part
            for part in message["content"]
        ]
    asked = processor.apply_chat_template(
        [conversation], tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=prompt
    )
    return asked["input_ids"][0].tolist()


def row(texts: list[str]) -> dict[str, Any]:
    count = "".join(texts).count("<image>")
    conversation = messages(texts)
    for message in conversation:
        message["content"] = [{"text": None, **part} for part in message["content"]]
    return {"id": "r", "messages": conversation, "images": [stored(picture(index)) for index in range(count)]}


def check_rows(name: str, folder: Path, own: Any, reader: Reader) -> None:
    """Every kind of row is read as the checkpoint's own template says."""
    rows = json.loads((folder / "config.json").read_text())["text_config"].get("vocab_size") or 262208
    assert (reader.format.closing is None) == (name in NO_END)
    different = {}
    for kind, texts in ROWS.items():
        encoded, expected = reader.encode(row(texts)), own_ids(own, texts)
        tokens = encoded.tokens
        if name in NO_END:  # the end is learned behind the last answer all the same
            *tokens, end = tokens
            assert (end, encoded.answers[-1]) == (own.tokenizer.eos_token_id, len(tokens)), kind
        # some templates write a line break or a space behind the last answer's end, which nothing reads
        if (
            tokens != expected[: len(tokens)]
            or own.tokenizer.decode(expected[len(tokens) :], skip_special_tokens=True).strip()
        ):
            different[kind] = own.tokenizer.decode(encoded.tokens), own.tokenizer.decode(expected)
            continue
        answers = [text.strip() for text in texts if not text.startswith("system:")][1::2]
        learned = own.tokenizer.decode([encoded.tokens[place] for place in encoded.answers], skip_special_tokens=True)
        assert "".join(learned.split()) == "".join("".join(answers).split()), kind
        assert max(encoded.tokens) < rows, kind
    assert not different


def train(folder: Path, *, videos: bool) -> None:
    """Two steps of Switch-KD, the doctor before and an evaluation behind them, into `folder/run`."""
    lines = []
    for index, texts in enumerate([ROWS["an image"], ROWS["two turns"]]):
        images = []
        for number in range("".join(texts).count("<image>")):
            picture(number).save(folder / f"{index}-{number}.png")
            images.append(f"{index}-{number}.png")
        lines.append(json.dumps({"id": str(index), "messages": messages(texts), "images": images}))
    if videos:
        frames = [f"{index}.png" for index in range(4)]
        for index, name in enumerate(frames):
            Image.fromarray(np.asarray(picture(0)) // (1 + index)).save(folder / name)
        parts = [{"type": "video", "video": frames}, {"type": "text", "text": "What happens?"}]
        talk = [{"role": "user", "content": parts}, {"role": "assistant", "content": "It rains."}]
        lines[-1] = json.dumps({"id": "a video", "messages": talk})
    (folder / "train.jsonl").write_text("\n".join(lines))
    (folder / "recipe.yaml").write_text(
        f"""
teacher: {{path: {folder}/teacher}}
student: {{path: {folder}/student}}
method: {{name: switch_kd, window: 32}}
data: {{train: {folder}/train.jsonl, max_length: 8192}}
train: {{output: {folder}/run, max_steps: 2, per_device_train_batch_size: 2, logging_steps: 1, save_steps: 2}}
evaluate: {{data: {folder}/train.jsonl, max_new_tokens: 2}}
"""
    )
    distill(load_recipe(folder / "recipe.yaml"))
    logged = [json.loads(line) for line in (folder / "run/1-train/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged if "loss" in line] == [1, 2]
    assert json.loads((folder / "run/results.json").read_text())["questions"] > 0


def generates(model: Any, asked: Any) -> bool:
    return model.generate(**asked, max_new_tokens=2, do_sample=False).shape[1] > asked["input_ids"].shape[1]


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def check_video(model: Any, own: Any, saved: Any) -> None:
    """The saved student is asked about a video as the checkpoint is, token for token, by plain code and by ours, and answers."""
    reader = Reader(own, max_length=16384)
    fps = reader.sampling.fps
    known = {"total_num_frames": 4, "fps": fps, "duration": 4 / fps, "frames_indices": [0, 1, 2, 3]}
    frames = np.stack([np.asarray(picture(0)) // (1 + index) for index in range(4)])
    parts = [{"type": "video", "video": frames}, {"type": "text", "text": "What happens?"}]
    before, asked = (
        processor.apply_chat_template(
            [[{"role": "user", "content": parts}]],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
            processor_kwargs={"do_sample_frames": False, "video_metadata": [known]},
        )
        for processor in (own, saved)
    )
    assert asked["input_ids"].tolist() == before["input_ids"].tolist()
    stored = [{"bytes": png(pixels), "path": None} for pixels in frames]
    content = [{"type": "video", "text": None}, {"type": "text", "text": "What happens?"}]
    of_ours = {"id": "r", "images": [], "videos": [{"bytes": None, "path": None, "frames": stored}]}
    made = reader.prompts([of_ours | {"messages": [{"role": "user", "content": content}]}])
    assert made.keys() == before.keys()
    for key, tensor in made.items():
        torch.testing.assert_close(tensor, torch.as_tensor(before[key]), rtol=0, atol=0, msg=key)
    assert generates(model, asked)


#: Of the normal suite: with a template that writes no end, and with one that does, videos, and positions in three dimensions.
SHORT = ("llava-1.5-7b-hf", "qwen2.5-vl-7b-instruct")


@pytest.mark.long
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in SHORT else pytest.mark.slow) for name in CHECKPOINTS]
)
def test_rows_two_steps_and_the_saved_student_are_as_the_checkpoints_own_template_says(name, tmp_path):
    """One test for a checkpoint: to write it and to load its tokenizer is most of the time."""
    write_checkpoint(name, tmp_path / "student", depth=1, seed=1)
    write_checkpoint(name, tmp_path / "teacher", depth=2, seed=2)
    own = AutoProcessor.from_pretrained(tmp_path / "student")
    reader = Reader(own, max_length=16384)
    check_rows(name, tmp_path / "student", own, reader)

    findings, _ = examine_pair(str(tmp_path / "student"), str(tmp_path / "teacher"))
    assert findings.ok
    train(tmp_path, videos=name in VIDEOS)

    student = tmp_path / "run/student"
    model, saved = AutoModelForImageTextToText.from_pretrained(student), AutoProcessor.from_pretrained(student)
    question = ROWS["an image"][:1]
    prompt = own_ids(saved, question, prompt=True)
    assert reader.prompts([row(question)])["input_ids"][0].tolist() == prompt
    assert reader.encode(row(ROWS["an image"])).tokens[: len(prompt)] == prompt
    text = saved.apply_chat_template(messages(["Hello."]), add_generation_prompt=True)
    assert generates(model, saved(text=text, return_tensors="pt"))
    assert (saved.chat_template or "").count("generation %}") == 0
    assert (getattr(own, "video_processor", None) is not None) == (name in VIDEOS)
    if name in VIDEOS:
        check_video(model, own, saved)


def test_the_page_says_what_was_run_with_real_files():
    page = (Path(__file__).parents[2] / "docs/families.md").read_text()
    assert REAL is not None
    for name, folders in CHECKPOINTS.items():
        family = json.loads((REAL / "checkpoints" / folders[0] / "config.json").read_text())["model_type"]
        assert f"| `{family}` | {name} | {'read' if name in VIDEOS else '–'} |" in page


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tinyllava-gemma3-1b-siglip2", r"a TinyLLaVA checkpoint: `switchkd convert .* OUTPUT`"),
        ("llava-finetune-transformers5", r"(?s)LoRA adapter for .*not a model. Merge it first"),
        ("qwen2.5-vl-7b-instruct", r"has no vocabulary"),
        ("gemma-3-4b-it", r"has no vocabulary"),
    ],
)
def test_what_the_public_files_lack_is_said(name, said):
    assert REAL is not None
    folder = str(REAL / "checkpoints" / name)
    with pytest.raises(ValueError, match=said):
        examine_pair(folder, folder)


def test_a_tinyllava_on_gemma_is_refused_by_the_part_that_llava_lacks(tmp_path):
    assert REAL is not None
    with pytest.raises(ValueError, match="tinyllava-gemma3-1b-siglip2"):
        convert(str(REAL / "checkpoints" / "tinyllava-gemma3-1b-siglip2"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
