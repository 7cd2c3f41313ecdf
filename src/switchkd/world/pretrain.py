"""Make the shipped assets again: `python -m switchkd.world.pretrain --out DIR`.

Four stages, each on endless fresh pictures of the training split: the teacher's tower on the labels of every patch,
its projector and words on the same labels (without this the language model stays blind far longer), the whole teacher on
answers, and the student's tower on shapes and colours of easy pictures only, so that much is left to learn.
"""

import argparse
import itertools
import math
import time
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerBase, SiglipVisionModel

from switchkd.types import answer_positions, answer_targets

from .models import VISION_WIDTH, build_processor, student_vision_config, teacher_config, train_tokenizer
from .packing import Packer, batches, patch_labels, pixels
from .scenes import COLOURS, DIGITS, GRID, ROWS, SHAPES, SIZES, Difficulty
from .write import samples

LOG_EVERY = 100


def pretrain(out: Path, seed: int) -> None:
    """Write `out/teacher` and `out/tower`."""
    torch.manual_seed(seed)
    texts = (
        text
        for _, questions, _ in itertools.islice(samples(seed, "train", "medium"), 4000)
        for question in questions
        for text in (question.text, question.answer)
    )
    processor = build_processor(train_tokenizer(texts))
    processor.save_pretrained(out / "teacher")

    teacher = LlavaForConditionalGeneration(teacher_config())
    # Row and column too: a tower that was not asked where things are forgets it, and mixes up neighbouring cells.
    classes = [len(SHAPES) + len(DIGITS) + 1, len(COLOURS) + 1, len(SIZES) + 1, GRID, GRID]
    train_tower(teacher.model.vision_tower, classes, "medium", steps=1200, seed=seed + 1)
    train_projector(teacher, processor.tokenizer, steps=300, seed=seed + 4)
    train_teacher(teacher, Packer(processor.tokenizer), steps=4000, seed=seed + 2)
    teacher.save_pretrained(out / "teacher")

    tower = SiglipVisionModel(student_vision_config())
    train_tower(tower, [len(SHAPES) + 2, len(COLOURS) + 1], "easy", steps=500, seed=seed + 3)
    tower.save_pretrained(out / "tower")


def train_tower(tower: SiglipVisionModel, classes: list[int], difficulty: Difficulty, *, steps: int, seed: int) -> None:
    """Teach a tower what fills the cell of each patch: form, colour, size, row, column, as many of these as `classes` has numbers.

    Labels above the last class of an attribute become that class: with `len(SHAPES) + 2` forms all digits are one.
    """
    heads = nn.Linear(VISION_WIDTH, sum(classes))
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, steps))
    started = time.monotonic()
    for step, batch in enumerate(batches(samples(seed, "train", difficulty), 64, steps)):
        labels = patch_labels([scene for scene, _, _ in batch])
        features = tower(pixels([picture for _, _, picture in batch]), output_hidden_states=True).hidden_states[-1]
        logits = heads(features).split(classes, dim=-1)
        loss = torch.stack(
            [
                F.cross_entropy(logit.flatten(0, 1), labels[..., index].flatten().clamp(max=logit.shape[-1] - 1))
                for index, logit in enumerate(logits)
            ]
        ).sum()
        _update(loss, parameters, optimizer, schedule)
        if step % LOG_EVERY == 0 or step == steps - 1:
            print(f"tower {step:5d}/{steps}  loss {loss.item():.3f}  {time.monotonic() - started:.0f} s", flush=True)


def train_projector(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, *, steps: int, seed: int
) -> None:
    """Turn each visual token towards the embeddings of the words for what it shows: form, colour, size and row."""
    projector, words = model.model.multi_modal_projector, model.model.language_model.embed_tokens
    names = [(*SHAPES, *DIGITS), COLOURS, SIZES, ROWS]
    ids = torch.tensor(tokenizer.convert_tokens_to_ids([name for group in names for name in group]))
    parameters = [*projector.parameters(), *words.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, steps))
    for batch in batches(samples(seed, "train", "medium"), 32, steps):
        labels = patch_labels([scene for scene, _, _ in batch])
        with torch.no_grad():
            pictures = pixels([picture for _, _, picture in batch])
            features = model.model.vision_tower(pictures, output_hidden_states=True).hidden_states[-1]
        visual = projector(features)
        logits = F.rms_norm(visual, visual.shape[-1:]) @ words.weight[ids].T
        filled = labels[..., 0] > 0
        form, colour, size, row = logits[filled].split([len(group) for group in names], dim=-1)
        targets = labels[filled]
        loss = F.cross_entropy(row, targets[:, 3])
        for index, logit in enumerate((form, colour, size)):
            loss = loss + F.cross_entropy(logit, targets[:, index] - 1)
        _update(loss, parameters, optimizer, schedule)
    print(f"projector {steps}/{steps}  loss {loss.item():.3f}", flush=True)


def train_teacher(model: LlavaForConditionalGeneration, packer: Packer, *, steps: int, seed: int) -> None:
    """Train the whole model on the answers; its tower, which can see already, ten times more slowly."""
    model.train()
    tower = list(model.model.vision_tower.parameters())
    rest = [parameter for name, parameter in model.named_parameters() if "vision_tower" not in name]
    groups = [{"params": rest, "lr": 2e-3}, {"params": tower, "lr": 3e-4}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, steps))
    started = time.monotonic()
    for step, drawn in enumerate(batches(samples(seed, "train", "medium"), 16, steps)):
        batch = packer.batch(drawn)
        labels = batch["labels"]
        hidden = model.model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], pixel_values=batch["pixel_values"]
        ).last_hidden_state
        logits = model.lm_head(hidden[answer_positions(labels)])
        loss = F.cross_entropy(logits, answer_targets(labels))
        _update(loss, [*rest, *tower], optimizer, schedule)
        if step % LOG_EVERY == 0 or step == steps - 1:
            right = (logits.argmax(-1) == answer_targets(labels)).float().mean().item()
            print(
                f"teacher {step:5d}/{steps}  loss {loss.item():.3f}  answer tokens right {right:.3f}"
                f"  {time.monotonic() - started:.0f} s",
                flush=True,
            )
    model.eval()


def warm_cosine(step: int, steps: int) -> float:
    """Share of the peak learning rate: 100 steps up, then half a cosine down to 0."""
    return min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _update(
    loss: torch.Tensor,
    parameters: Iterable[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    schedule.step()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory for teacher/ and tower/")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    pretrain(arguments.out, arguments.seed)
