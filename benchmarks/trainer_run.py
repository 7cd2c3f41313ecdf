"""A whole `switchkd train` on generated JPEGs and models of random weights: a step from files, and the end of a run."""

import argparse
import json
import os
import random
import string
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import step
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
)

from switchkd import distill
from switchkd.models.families.chat_blocks import CHATML
from switchkd.recipe.schema import load_recipe
from switchkd.train.trainer import DistillationTrainer

#: Characters of an answer, each a token, like those of `step.py`; the closing token comes to them.
_ANSWER = 119
#: Characters of the shortest and the longest question.
_QUESTION = (10, 20)


def write_processor(folder: Path, config: LlavaConfig) -> None:
    """A tokenizer of as many ids as the head has rows, whose characters are tokens, and an image processor."""
    vision, rows = config.vision_config, config.text_config.vocab_size
    known = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words = [*known, *(f"<unused {number}>" for number in range(rows - len(known) - 1)), "<image>"]
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<image>"],
        model_max_length=4096,
    )
    side = vision.image_size
    LlavaProcessor(
        image_processor=SiglipImageProcessorPil(size={"height": side, "width": side}),
        tokenizer=special,
        patch_size=vision.patch_size,
        vision_feature_select_strategy="full",
        chat_template=CHATML,
    ).save_pretrained(folder)


def write_model(folder: Path, config: LlavaConfig, device: str) -> None:
    """Random weights, in bf16."""
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    write_processor(folder, config)


def write_rows(file: Path, count: int) -> None:
    """Photographs of noise over a gradient, with questions and answers of random letters."""
    draw = random.Random(0)
    made = []
    for number in range(count):
        gradient = Image.linear_gradient("L").resize((640, 480))
        noise = Image.effect_noise((640, 480), 60)
        Image.merge("RGB", (gradient, noise, noise)).save(file.parent / f"{number}.jpg")
        letters = [
            "".join(draw.choices(string.ascii_lowercase, k=length)) for length in (draw.randint(*_QUESTION), _ANSWER)
        ]
        turns = [
            {"from": who, "value": text}
            for who, text in zip(("human", "gpt"), ("<image>\n" + letters[0], letters[1]), strict=True)
        ]
        made.append({"id": str(number), "image": f"{number}.jpg", "conversations": turns})
    file.write_text(json.dumps(made))


def measure(given: argparse.Namespace) -> dict:
    """Milliseconds of a step between two lines of the log, and seconds from the last step to the finished student."""
    on_gpu = given.device == "cuda"
    steps, logged, workers = (40, 10, 4) if on_gpu else (3, 1, 0)
    lines: list[tuple[int, float]] = []
    log = DistillationTrainer.log

    def timed(self: DistillationTrainer, logs: dict[str, float], *rest: float) -> None:
        log(self, logs, *rest)  # asks for values, so everything before it is done
        if "loss" in logs:
            lines.append((self.state.global_step, time.perf_counter()))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        student, teacher = step.paper() if on_gpu else step.tiny()
        for who, config in (("student", student), ("teacher", teacher)):
            write_model(folder / who, config, given.device)
        if on_gpu:
            torch.cuda.empty_cache()
        (folder / "data").mkdir()
        write_rows(folder / "data" / "rows.json", given.batch * (8 if on_gpu else 2))
        recipe = folder / "recipe.yaml"
        recipe.write_text(
            f"""
student: {{path: {folder}/student}}
teacher: {{path: {folder}/teacher, dtype: {"bfloat16" if on_gpu else "float32"}}}
method: {{name: switch_kd}}
data: {{train: {folder}/data/rows.json}}
train: {{output: {folder}/run, max_steps: {steps}, per_device_train_batch_size: {given.batch},
  learning_rate: 1.0e-6, bf16: {str(on_gpu).lower()}, logging_steps: {logged}, save_steps: 1000,
  dataloader_num_workers: {workers}, kernels: {given.layers}, report_to: []}}
"""
        )
        where = {} if on_gpu else {"ACCELERATE_USE_CPU": "true"}
        with patch.dict(os.environ, where), patch.object(DistillationTrainer, "log", timed):
            finished = distill(load_recipe(recipe)).folder
        finish_s = time.perf_counter() - lines[-1][1]
        written = sum(file.stat().st_size for file in finished.rglob("*") if file.is_file())
    (first, begun), (last, ended) = lines[0], lines[-1]
    return {
        "benchmark": "gpu",
        "case": "switchkd train",
        "sizes": {
            "batch": given.batch,
            "device": given.device,
            "steps": steps,
            "workers": workers,
            "student_bytes": written,
        },
        "step_ms": 1e3 * (ended - begun) / (last - first),
        "finish_s": finish_s,
    }
