"""What the checks share: the rows that they look at, and each model with what it reads."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from switchkd.losses import cross_entropy
from switchkd.models import Pathway
from switchkd.train.stage import OpenStage
from switchkd.types import Batch, answer_targets, to_device

#: Rows that are looked at; each is run through both models with its own, with blank and with other images.
ROWS = 8
#: Where rows with images are looked for.
SEARCHED = 64
#: Answer positions whose logits exist at a time.
_CHUNK = 256


class Reader(NamedTuple):
    """One of the models, and what it reads."""

    name: str
    pathway: Pathway
    batch: Batch


def rows_with_images(opened: OpenStage) -> list[dict]:
    """The first rows with images."""
    rows = opened.rows.select(range(min(len(opened.rows), SEARCHED)))
    return [row for row in rows if row["images"]][:ROWS]


def some_rows(opened: OpenStage) -> list[dict]:
    """Rows with images, or the first ones where there are none."""
    return rows_with_images(opened) or [opened.rows[index] for index in range(min(len(opened.rows), ROWS))]


def collate(opened: OpenStage, rows: list[dict]) -> Batch:
    """As in training, on the student's device."""
    return to_device(opened.collator(rows), opened.pair.student.model.device)


def readers(opened: OpenStage, batch: Batch) -> list[Reader]:
    """The student, and the teacher where there is one; both may read the same."""
    found = [Reader("student", opened.pair.student, batch)]
    if opened.pair.teacher is not None:
        found.append(Reader("teacher", opened.pair.teacher, batch.get("teacher", batch)))
    return found


def autocast(opened: OpenStage) -> torch.autocast:
    """In which the models run, as in training."""
    train = opened.session.recipe.train
    dtype = torch.bfloat16 if train.bf16 else torch.float16
    return torch.autocast(opened.pair.student.model.device.type, dtype, enabled=train.bf16 or train.fp16)


@torch.no_grad()
def answer_losses(opened: OpenStage, pathway: Pathway, batch: Batch) -> Float[Tensor, " answers"]:
    """The cross-entropy of every answer token, in nats, in eval mode; the logits of some positions at a time."""
    training = pathway.training
    pathway.eval()
    with autocast(opened):
        hidden = pathway.say(pathway.see(batch), batch).split(_CHUNK)
    targets = answer_targets(batch["labels"]).split(_CHUNK)
    pathway.train(training)
    return torch.cat([cross_entropy(pathway.logits(h), t) for h, t in zip(hidden, targets, strict=True)])
