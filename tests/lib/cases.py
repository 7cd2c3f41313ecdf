"""Stages in memory, of any family, sound until a test breaks something."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from datasets import Dataset
from PIL import Image
from tiny_processors import PROCESSORS, tiny_for

from switchkd.batch import TEACHER, Batch, Inputs
from switchkd.data.collate import Collator, EncodedSample
from switchkd.data.formats import FEATURES
from switchkd.data.index import build_index
from switchkd.data.reader import Reader
from switchkd.doctor import examine_stage
from switchkd.methods import Method, SwitchKD
from switchkd.models import Pathway
from switchkd.pairing import Pair
from switchkd.pairing.reading import SameInputs
from switchkd.recipe.schema import Data, Recipe, Student, Teacher, Train
from switchkd.train.context import RunContext, StageContext
from switchkd.train.open_teacher import KnownTeacher
from switchkd.train.step import DistillationStep
from switchkd.train.teachers import Teachers

SIZES = [[(32, 32)], [(16, 32), (32, 16)], [(16, 16)]]


def picture(height: int, width: int, seed: int) -> dict:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def rows(sizes=SIZES) -> list[dict]:
    """Two turns in each row; the images come first."""
    made = []
    for index, of_row in enumerate(sizes):
        turns = [("user", "Which?"), ("assistant", "A cat."), ("user", "Sure?"), ("assistant", "Yes. " * index + "No.")]
        messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
        messages[0]["content"] = [{"type": "image", "text": None} for _ in of_row] + messages[0]["content"]
        images = [picture(*size, seed=10 * index + place) for place, size in enumerate(of_row)]
        made.append(
            {
                "id": f"row-{index}",
                "source": None,
                "images": images,
                "videos": [],
                "messages": messages,
                "kinds": [None, None],
                "accepted": [],
                "metric": None,
                "teacher": None,
                "problem": None,
            }
        )
    return made


def open_tiny(
    folder: Path,
    name: str = "llava-siglip-qwen2",
    *,
    method: Method | None = None,
    sizes=SIZES,
    processor=None,
    samples=None,
) -> StageContext:
    """A stage as `stage.open_stage` gives it: a teacher of its own width and depth, a student, and the family's own processor.

    `samples`: its rows, in the place of some with images of these `sizes`.
    """
    processor = processor or PROCESSORS[name]()
    processor.tokenizer.save_pretrained(folder / "teacher")
    student, teacher = (
        Pathway(tiny_for(name, processor, seed=2)),
        Pathway(tiny_for(name, processor, hidden=32, depth=4, seed=1)),
    )
    student.train_only(("vision", "projector", "language"))
    method = method or SwitchKD(window=32)
    recipe = Recipe(
        student=Student(str(folder / "student")),
        teacher=Teacher(str(folder / "teacher")),
        method=method,
        data=Data("rows.json"),
        train=Train(str(folder / "run"), max_steps=2, per_device_train_batch_size=2),
    )
    learned = method.learned(student.sizes, teacher.sizes)
    pair = Pair(student, teacher, needs=method.needs, vocabulary=len(processor.tokenizer), learned=learned)
    (stage,) = recipe.resolved_stages()
    reading = SameInputs(len(processor.tokenizer))
    known = [KnownTeacher(stage.teacher, reading)] if stage.teacher is not None else []
    teachers = Teachers(known, lambda section, head_alone: teacher)
    run = RunContext(recipe, student, teachers, processor, Reader(processor), student.model.dtype)
    collator = run.collator(stage)
    index = build_index(Dataset.from_list(samples or rows(sizes), features=FEATURES), collator)
    return StageContext(run, stage, index.rows, DistillationStep(pair, method), collator, folder)


class Spoilt(Collator):
    """A collator whose batches `spoil` changes before anybody sees them."""

    def __init__(self, collator: Collator, spoil: Callable[[Batch], Batch]) -> None:
        super().__init__(collator.student, collator.teachers)
        self.spoil = spoil

    def join(self, samples: list[EncodedSample]) -> Batch:
        return self.spoil(super().join(samples))


def collated_by(opened: StageContext, spoil: Callable[[Batch], Batch]) -> StageContext:
    """The stage with batches that `spoil` changes."""
    return replace(opened, collator=Spoilt(opened.collator, spoil))


def with_inputs(batch: Batch, change: Callable[[Inputs], Inputs]) -> Batch:
    """The batch with changed inputs, which both models read."""
    inputs = change(batch.student)
    return batch._replace(student=inputs, readers={TEACHER: inputs})


def found(opened: StageContext) -> dict[str, tuple[str, str]]:
    """Check → level and detail, the worst of several."""
    order = ("ok", "warning", "failed")
    by_check: dict[str, tuple[str, str]] = {}
    for line in examine_stage(opened).lines:
        if line.check not in by_check or order.index(line.level) > order.index(by_check[line.check][0]):
            by_check[line.check] = line.level, line.detail
    return by_check


def failed(opened: StageContext) -> set[str]:
    """The checks that failed."""
    return {check for check, (level, _) in found(opened).items() if level == "failed"}
