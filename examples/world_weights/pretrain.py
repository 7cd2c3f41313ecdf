"""Make the shipped assets again: `python -m examples.world_weights.pretrain --out DIR`.

On endless fresh scenes of the training split. The teacher: its tower on the labels of every patch; its language model on
pictures given in words, captions before all other questions; its projector, to turn what the tower sees into such words;
then the whole on pictures. (Trained on pictures alone, a language model of this size stays nearly blind for thousands of
steps, and without captions first it learns to look nothing up.) What students start from: a smaller
language model pre-trained in the same way, a projector that connects it to the teacher's tower, and of that tower the first
and the last layer, as encoders are pruned for deployment. It sees badly until it is healed.
"""

import argparse
import itertools
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
    SiglipVisionModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from examples.world_weights.models import (
    VISION_WIDTH,
    build_processor,
    connected_config,
    student_config,
    teacher_config,
    teacher_vision_config,
    train_tokenizer,
)
from examples.world_weights.packing import Packer, Sample, batches, patch_labels, pixels
from switchkd.world.question_kinds import KINDS, Question, UnaskableError
from switchkd.world.scenes import COLOURS, COLUMNS, DIGITS, GRID, ROWS, SHAPES, SIZES, Scene
from switchkd.world.write import samples

LOG_EVERY = 100
#: What the teacher is asked of every second picture in the end: the kinds that take it longest.
HARD_KINDS = (
    "choice",
    "choice",
    "choice",
    "digit",
    "digit",
    "count",
    "count",
    "perception",
    "perception",
    "relation",
    "yes_no",
)


def pretrain(out: Path, seed: int) -> None:
    """Write `out/teacher` and `out/student`, on two cores. Parts that `out` holds already are not made again."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    texts = (
        text
        for _, questions, _ in itertools.islice(samples(seed, "train", "medium"), 4000)
        for question in questions
        for text in (question.text, question.answer)
    )
    processor = build_processor(train_tokenizer(itertools.chain(texts, COLUMNS)))
    processor.save_pretrained(out / "teacher")
    parts = {"vision": pretrain_vision, "language": pretrain_language, "student-language": pretrain_student_language}
    processes = [
        get_context("spawn").Process(target=part, args=(out / folder, processor, seed), name=folder)
        for folder, part in parts.items()
        if not (out / folder / "model.safetensors").exists()
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
            raise RuntimeError(f"{process.name} ended with exit code {process.exitcode}")

    language = LlavaForConditionalGeneration.from_pretrained(out / "language")
    teacher = LlavaForConditionalGeneration(teacher_config())
    vision = SiglipVisionModel.from_pretrained(out / "vision")
    teacher.model.vision_tower.load_state_dict(vision.state_dict())
    teacher.model.language_model.load_state_dict(language.model.language_model.state_dict())
    teacher.lm_head.load_state_dict(language.lm_head.state_dict())
    torch.manual_seed(seed)
    train_projector(teacher, processor.tokenizer, steps=400, seed=seed + 4)
    packer = Packer(processor.tokenizer)
    train_teacher(teacher, packer, samples(seed + 2, "train", "medium"), steps=500, learning_rate=1e-3)
    lessons = revised(samples(seed + 9, "train", "medium"), seed + 9)
    train_teacher(teacher, packer, lessons, steps=1400, learning_rate=1.5e-3)
    teacher.save_pretrained(out / "teacher")

    talker = LlavaForConditionalGeneration.from_pretrained(out / "student-language")
    connected = LlavaForConditionalGeneration(connected_config())
    connected.model.language_model.load_state_dict(talker.model.language_model.state_dict())
    connected.lm_head.load_state_dict(talker.lm_head.state_dict())
    connected.model.vision_tower.load_state_dict(teacher.model.vision_tower.state_dict())
    torch.manual_seed(seed + 8)
    train_projector(connected, processor.tokenizer, steps=300, seed=seed + 8)
    cut(connected).save_pretrained(out / "student")
    processor.save_pretrained(out / "student")


def cut(connected: LlavaForConditionalGeneration) -> LlavaForConditionalGeneration:
    """Give the student that has the first and the last layer of the tower, and everything else."""
    layers = "model.vision_tower.encoder.layers."
    place = {"0": "0", str(len(connected.model.vision_tower.encoder.layers) - 1): "1"}
    state = {}
    for name, value in connected.state_dict().items():
        if name.startswith(layers):
            layer, rest = name.removeprefix(layers).split(".", 1)
            if layer in place:
                state[f"{layers}{place[layer]}.{rest}"] = value
        else:
            state[name] = value
    student = LlavaForConditionalGeneration(student_config())
    student.load_state_dict(state)
    return student


def pretrain_vision(out: Path, processor: LlavaProcessor, seed: int) -> None:
    """Write the teacher's tower, which knows all that is in a picture and has no words for it yet."""
    torch.manual_seed(seed + 1)
    torch.set_num_threads(1)
    tower = SiglipVisionModel(teacher_vision_config())
    # Row and column too: a tower that was not asked where things are forgets it, and mixes up neighbouring cells.
    classes = [len(SHAPES) + len(DIGITS) + 1, len(COLOURS) + 1, len(SIZES) + 1, GRID, GRID]
    train_tower(tower, classes, steps=800, seed=seed + 1)
    tower.save_pretrained(out)


def pretrain_language(out: Path, processor: LlavaProcessor, seed: int) -> None:
    """Write the teacher's language model, which has never seen a picture."""
    _pretrain_language(out, teacher_config(), processor, seed + 3)


def pretrain_student_language(out: Path, processor: LlavaProcessor, seed: int) -> None:
    """Write the students' language model, which has never seen a picture either."""
    _pretrain_language(out, student_config(), processor, seed + 7)


def _pretrain_language(out: Path, config: LlavaConfig, processor: LlavaProcessor, seed: int) -> None:
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    model = LlavaForConditionalGeneration(config)
    captioned = captions(samples(seed, "train", "medium"), seed)
    train_language(model, processor.tokenizer, captioned, steps=1500, enough=0.99)
    train_language(model, processor.tokenizer, samples(seed + 20, "train", "medium"), steps=2500)
    model.save_pretrained(out)


def train_tower(tower: SiglipVisionModel, classes: list[int], *, steps: int, seed: int) -> None:
    """Teach a tower what fills the cell of each patch: form, colour, size, row, column; `classes` has their numbers."""
    heads = nn.Linear(VISION_WIDTH, sum(classes))
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, steps))
    started = time.monotonic()
    for step, batch in enumerate(batches(samples(seed, "train", "medium"), 64, steps)):
        labels = patch_labels([scene for scene, _, _ in batch])
        features = tower(pixels([picture for _, _, picture in batch]), output_hidden_states=True).hidden_states[-1]
        logits = heads(features).split(classes, dim=-1)
        loss = torch.stack(
            [F.cross_entropy(logit.flatten(0, 1), labels[..., index].flatten()) for index, logit in enumerate(logits)]
        ).sum()
        _update(loss, parameters, optimizer, schedule)
        if step % LOG_EVERY == 0 or step == steps - 1:
            print(f"tower {step:5d}/{steps}  loss {loss.item():.3f}  {time.monotonic() - started:.0f} s", flush=True)


def train_projector(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, *, steps: int, seed: int
) -> None:
    """Turn each visual token into the description in words that the language model knows (least squares)."""
    projector = model.model.multi_modal_projector
    for layer in (projector.linear_1, projector.linear_2):
        layer.reset_parameters()  # scaled to the width: the model's own small weights take much longer
    describe = Describer(model, tokenizer)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, steps))
    for batch in batches(samples(seed, "train", "medium"), 32, steps):
        scenes, pictures = [scene for scene, _, _ in batch], pixels([picture for _, _, picture in batch])
        with torch.no_grad():
            features = model.model.vision_tower(pictures, output_hidden_states=True).hidden_states[-1]
            described = describe(scenes)
        loss = F.mse_loss(projector(features), described) / described.var()
        _update(loss, list(projector.parameters()), optimizer, schedule)
    print(f"projector {steps}/{steps}  unexplained variance {loss.item():.3f}", flush=True)


class Describer:
    """Scenes in words: in the place of a visual token, the sum of the embeddings of the words for what it shows."""

    def __init__(self, model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> None:
        self.words = model.model.language_model.embed_tokens
        names = [(*SHAPES, *DIGITS), COLOURS, SIZES, ROWS, COLUMNS]
        self.ids = [torch.tensor(tokenizer.convert_tokens_to_ids(list(group))) for group in names]

    def __call__(self, scenes: list[Scene]) -> Float[Tensor, "images patches hidden"]:
        """One vector for each patch."""
        shown = patch_labels(scenes)
        described: Tensor = self.words(self.ids[3][shown[..., 3]]) + self.words(self.ids[4][shown[..., 4]])
        for index in range(3):  # counted from 1; an empty cell has no form, colour or size
            there = (shown[..., index] > 0).unsqueeze(-1)
            described = described + there * self.words(self.ids[index][(shown[..., index] - 1).clamp(min=0)])
        return described


def captions(stream: Iterator[Sample], seed: int) -> Iterator[Sample]:
    """Ask of every picture ten captions and nothing else.

    To look up the thing that a question names is a part of every kind. A caption needs that alone and shows it in three
    words; among ten kinds the language models here had not found it after 2,500 steps.
    """
    rng = Random(seed)
    for scene, _, picture in stream:
        yield scene, [Question("caption", *KINDS["caption"](scene, rng)) for _ in range(10)], picture


def revised(stream: Iterator[Sample], seed: int) -> Iterator[Sample]:
    """Ask of every second picture the kinds that are hard to learn, where the scene allows them."""
    rng = Random(seed)
    for number, (scene, questions, picture) in enumerate(stream):
        if number % 2:
            with suppress(UnaskableError):
                questions = [
                    Question(kind, *KINDS[kind](scene, rng)) for kind in rng.sample(HARD_KINDS, len(HARD_KINDS))
                ]
        yield scene, questions, picture


def train_teacher(
    model: LlavaForConditionalGeneration, packer: Packer, stream: Iterator[Sample], *, steps: int, learning_rate: float
) -> None:
    """Train the whole model on the answers; its tower, which can see already, more slowly."""
    model.train()
    tower = list(model.model.vision_tower.parameters())
    rest = [parameter for name, parameter in model.named_parameters() if "vision_tower" not in name]
    groups = [{"params": rest, "lr": learning_rate}, {"params": tower, "lr": 3e-4}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, steps))
    started = time.monotonic()
    for step, drawn in enumerate(batches(stream, 16, steps)):
        inputs = packer.inputs(drawn)
        hidden = model.model(
            input_ids=inputs.tokens, attention_mask=inputs.is_text().long(), **inputs.media["image"]
        ).last_hidden_state
        logits = model.lm_head(hidden.flatten(0, 1)[inputs.predicts])
        loss = F.cross_entropy(logits, inputs.targets)
        _update(loss, [*rest, *tower], optimizer, schedule)
        if step % LOG_EVERY == 0 or step == steps - 1:
            right = (logits.argmax(-1) == inputs.targets).float().mean().item()
            print(
                f"teacher {step:5d}/{steps}  loss {loss.item():.3f}  answer tokens right {right:.3f}"
                f"  {time.monotonic() - started:.0f} s",
                flush=True,
            )
    model.eval()


def train_language(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    stream: Iterator[Sample],
    *,
    steps: int,
    enough: float = 1.0,
) -> None:
    """Train a language model on the answers while pictures are given in words, as language models are trained on text.

    The descriptions are blurred with noise, as a projector's will be. Ends before `steps` where the share of answer
    tokens that are right, over the last hundred steps, is above `enough`.
    """
    model.train()
    describe, packer = Describer(model, tokenizer), Packer(tokenizer)
    parameters = [*model.model.language_model.parameters(), *model.lm_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, steps))
    started, right = time.monotonic(), 0.0
    for step, drawn in enumerate(batches(stream, 16, steps), start=1):
        described = describe([scene for scene, _, _ in drawn])
        described = described + 0.3 * described.detach().std() * torch.randn_like(described)
        inputs = packer.inputs(drawn)
        hidden = model.model(
            input_ids=inputs.tokens,
            attention_mask=inputs.is_text().long(),
            mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=cast(Any, list(described)))},
        ).last_hidden_state
        logits = model.lm_head(hidden.flatten(0, 1)[inputs.predicts])
        loss = F.cross_entropy(logits, inputs.targets)
        _update(loss, parameters, optimizer, schedule)
        right += (logits.argmax(-1) == inputs.targets).float().mean().item() / LOG_EVERY
        if step % LOG_EVERY == 0:
            print(
                f"language {step:5d}/{steps}  loss {loss.item():.3f}  answer tokens right {right:.3f}"
                f"  {time.monotonic() - started:.0f} s",
                flush=True,
            )
            if right > enough:
                break
            right = 0.0
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
    parser.add_argument("--out", type=Path, required=True, help="directory for teacher/ and student/")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    pretrain(arguments.out, arguments.seed)
