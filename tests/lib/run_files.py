"""A whole run on disk for the tests: teacher, student, pictures and LLaVA JSON, all tiny."""

import json
import random
from pathlib import Path

from PIL import Image
from tiny import IMAGE_SIZE, tiny_processor
from tiny_models import tiny_llava

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


def write_model(folder: Path, *, seed: int, processor=None, **sizes) -> None:
    """A LLaVA of 320 tokens and 16 visual tokens, with its processor."""
    processor = processor or tiny_processor()
    model = tiny_llava(**{"vocabulary": 320, "image_size": IMAGE_SIZE, "seed": seed, **sizes})
    model.config.image_token_id = model.config.image_token_index = processor.tokenizer.convert_tokens_to_ids("<image>")
    model.config.text_config.eos_token_id = model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def write_data(file: Path, rows: int) -> None:
    """Pictures of one colour, and two questions about each."""
    draw = random.Random(7)
    (file.parent / "images").mkdir(parents=True, exist_ok=True)
    made = []
    for index in range(rows):
        colour = draw.choice(list(COLOURS))
        Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), COLOURS[colour]).save(
            file.parent / "images" / f"{file.stem}-{index}.png"
        )
        turns = [
            ("human", "<image>\nWhat is in the image?"),
            ("gpt", colour),
            ("human", f"Is it {colour}?"),
            ("gpt", "Yes."),
        ]
        made.append(
            {
                "id": f"{file.stem}-{index}",
                "image": f"images/{file.stem}-{index}.png",
                "conversations": [{"from": speaker, "value": text} for speaker, text in turns],
                "kinds": ["perception", "yes_no"],
            }
        )
    file.write_text(json.dumps(made))


def write_run(folder: Path) -> Path:
    """Everything, and the recipe that ties it together; returns the recipe's file."""
    write_model(folder / "teacher", seed=1, hidden=40, depth=3)
    write_model(folder / "student", seed=2)
    write_data(folder / "data" / "train.json", 24)
    write_data(folder / "data" / "test.json", 3)
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"""
teacher: {{path: {folder}/teacher}}
student: {{path: {folder}/student}}
method: {{name: switch_kd, window: 32}}
data: {{train: {folder}/data/train.json, max_length: 256}}
train: {{output: {folder}/run, max_steps: 6, per_device_train_batch_size: 4, learning_rate: 1.0e-3, logging_steps: 2, save_steps: 4}}
evaluate: {{data: {folder}/data/test.json, max_new_tokens: 4}}
"""
    )
    return recipe


#: A program that answers with a finished student where `switchkd` cannot be imported: STUDENT IMAGE.
ANSWER_ALONE = """
import sys
sys.modules["switchkd"] = None  # any import of it fails
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1])
processor = AutoProcessor.from_pretrained(sys.argv[1])
question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is in the image?"}]}]
text = processor.apply_chat_template(question, add_generation_prompt=True)
inputs = processor(images=Image.open(sys.argv[2]), text=text, return_tensors="pt")
answer = model.generate(**inputs, max_new_tokens=3, do_sample=False)[0, inputs["input_ids"].shape[1]:]
assert len(answer) >= 1
print("answered", answer.tolist())
"""
