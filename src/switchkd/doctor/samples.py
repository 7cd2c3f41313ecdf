"""What the checks share: the samples of a stage that they look at, encoded once, and each model with what it reads."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from io import BytesIO
from time import perf_counter
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from switchkd.batch import TEACHER, Batch, Inputs
from switchkd.data.collate import Collator, EncodedSample
from switchkd.data.images import open_image
from switchkd.data.row_videos import videos_of
from switchkd.losses import cross_entropy
from switchkd.models import Pathway
from switchkd.train.context import StageContext

#: How many samples the doctor examines; each is encoded with its own and with other images.
SAMPLES = 8
#: Where samples with images are looked for.
SEARCHED = 1024
#: Answer positions whose logits exist at a time.
_CHUNK = 256


class Model(NamedTuple):
    """One of the models, and what it reads."""

    name: str
    pathway: Pathway
    inputs: Inputs


class Examined:
    """A stage, and the samples of it that are looked at: the longest one with images, and the first others."""

    def __init__(self, context: StageContext) -> None:
        self.context = context
        #: Of encoding the samples, one after the other.
        self.encoding_s: list[float] = []

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Rows with images, else with videos, else the first ones; the longest one is the first."""
        head = self.context.rows[:SEARCHED]
        shown = [n for n, count in enumerate(head["image_count"]) if count]
        pictures = [n for n in shown if head["images"][n]]
        numbers = pictures or shown or list(range(len(head["length"])))
        longest = max(numbers, key=lambda number: head["length"][number])
        chosen = [longest, *(number for number in numbers if number != longest)][:SAMPLES]
        return [self.context.rows[number] for number in chosen]

    @property
    def has_images(self) -> bool:
        """Whether the samples have images."""
        return bool(self.rows[0]["images"])

    @property
    def has_videos(self) -> bool:
        """Whether the samples have videos and no images."""
        return not self.has_images and bool(videos_of(self.rows[0]))

    @property
    def collator(self) -> Collator:
        """What makes batches of these rows, which one teacher teaches, or none."""
        assert isinstance(self.context.collator, Collator), "of several teachers by tags, each is examined by itself"
        return self.context.collator

    @cached_property
    def samples(self) -> list[EncodedSample]:
        """These rows, encoded."""
        encoded = []
        for row in self.rows:
            begin = perf_counter()
            encoded.append(self.collator.encode(row))
            self.encoding_s.append(perf_counter() - begin)
        return encoded

    @cached_property
    def images(self) -> list[Image.Image]:
        """All images of these rows."""
        most = self.context.run.recipe.data.max_pixels
        return [open_image(image, max_pixels=most) for row in self.rows for image in row["images"]]

    @cached_property
    def samples_with_other_images(self) -> list[EncodedSample]:
        """The same rows, each with the image of another in the place of its own, in the size of its own."""
        images = self.images
        others = [other.resize(own.size) for own, other in zip(images, images[1:] + images[:1], strict=True)]
        left = iter(others)
        rows = [{**row, "images": [_stored(next(left)) for _ in row["images"]]} for row in self.rows]
        return [self.collator.encode(row) for row in rows]

    def batch(self, samples: list[EncodedSample] | None = None) -> Batch:
        """Of all samples or of these, as in training, on the student's device."""
        joined = self.collator.join(self.samples if samples is None else samples)
        return joined.to(self.context.pair.student.model.device)

    def models(self, batch: Batch) -> list[Model]:
        """The student, and the teacher where there is one; both may read the same."""
        models = [Model("student", self.context.pair.student, batch.student)]
        if self.context.pair.teacher is not None:
            read = self.context.pair.crossing.over(batch.readers.get(TEACHER, batch.student))
            models.append(Model("teacher", self.context.pair.teacher, read))
        return models

    @property
    def shortest(self) -> EncodedSample:
        """The one that is run where one is enough."""
        return min(self.samples, key=lambda sample: len(sample.student.tokens))

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """In which the models run, as in training."""
        train, pair = self.context.run.recipe.train, self.context.pair
        dtype = torch.bfloat16 if train.bf16 else torch.float16
        with (
            torch.autocast(pair.crossing.student.type, dtype, enabled=train.bf16 or train.fp16),
            pair.crossing.precision(),
        ):
            yield

    @torch.no_grad()
    def answer_losses(self, pathway: Pathway, inputs: Inputs) -> Float[Tensor, " answers"]:
        """The cross-entropy of every answer token, in nats, in eval mode; the logits of some positions at a time."""
        training = pathway.training
        pathway.eval()
        with self.autocast():
            hidden = pathway.say(pathway.see(inputs), inputs).split(_CHUNK)
        targets = inputs.targets.split(_CHUNK)
        pathway.train(training)
        return torch.cat([cross_entropy(pathway.logits(h), t) for h, t in zip(hidden, targets, strict=True)])


def _stored(image: Image.Image) -> dict[str, Any]:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}
