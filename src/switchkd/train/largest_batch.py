"""The largest batch that a recipe allows, before there are rows: for the estimate of the memory that it needs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

from switchkd.batch import TEACHER, Aligned, Batch, Inputs, Media, Stored, TopLogits
from switchkd.data.reader import Encoded, join
from switchkd.models import Pathway
from switchkd.models.families import Family
from switchkd.pairing import Pair
from switchkd.recipe.schema import Recipe, ResolvedStage
from switchkd.signals import Head

#: Tokens of a row besides its image, where neither the recipe nor rows say how many there are.
TEXT = 1_024


def largest_batch(recipe: Recipe, stage: ResolvedStage, pair: Pair) -> Batch:
    """The largest batch of a device: blank images, and answers wherever there is room."""
    rows = stage.per_device_train_batch_size
    student = _Sizes.of(pair.student, rows, recipe.data.max_length)
    teacher = None
    if pair.teacher is not None and pair.separate_inputs:
        teacher = _Sizes.of(pair.teacher, rows, recipe.data.max_length)
    packs = None
    if recipe.data.packing:  # an image and a word for an answer, as often as both can read them in one row
        least = [one.length // (one.visual_tokens + 2) for one in (student, teacher) if one is not None]
        packs = [max(min(least), 1)] * rows
    inputs, readers, shared = _inputs(student, rows, packs), {}, {}
    if pair.teacher is not None:
        readers[TEACHER] = inputs if teacher is None else _inputs(teacher, rows, packs)
        places = None
        if teacher is not None:  # as many as both have
            places = real(lambda: torch.arange(min(len(inputs.targets), len(readers[TEACHER].targets))))
        targets = inputs.targets if places is None else inputs.targets[: len(places)]
        on_host = None if places is None else real(places.numpy)
        shared[TEACHER] = Aligned(places, places, targets, on_host)
    elif pair.teacher_head is not None:
        readers[TEACHER] = inputs._replace() if pair.separate_inputs else inputs  # it is not read
        shared[TEACHER] = Aligned(None, None, inputs.targets)
    given, head = stage.teacher, pair.teacher or pair.teacher_head
    if head is not None and given is not None and given.cache is not None:
        stored = _stored(len(shared[TEACHER].targets), given.cache_logits, head.head)
        shared[TEACHER] = shared[TEACHER]._replace(stored=stored)
    return Batch(tuple(f"{sample}@" for sample in range(len(inputs.lengths))), inputs, readers, shared)


def _stored(answers: int, top_k: int | None, head: Head) -> Stored:
    """What a cache has of so many answers."""
    if top_k is None:
        return torch.zeros(answers, head.weight.shape[1], dtype=head.weight.dtype)
    return TopLogits(torch.zeros(answers, top_k), torch.zeros(answers, top_k, dtype=torch.int32), torch.zeros(answers))


@dataclass(frozen=True)
class _Sizes:
    """What the largest row of a model holds."""

    family: Family
    images: Media
    visual_tokens: int
    length: int

    @classmethod
    def of(cls, pathway: Pathway, rows: int, max_length: int | None) -> "_Sizes":
        family = pathway.family
        images, count = _image(pathway, family.blank)
        room = min(max_length or family.positions, family.positions)
        if (
            count * real(lambda: _cells(family, family.photograph()) / _cells(family, family.blank())) < 2 * room
        ):  # else it cannot fit
            photograph, larger = _image(pathway, family.photograph)
            if larger < room:
                images, count = photograph, larger
        length = max_length or min(count + TEXT, family.positions)
        if count >= length:
            raise ValueError(
                f"{rows} images are {rows * count} visual tokens, but {rows} rows of {length} tokens hold {rows * length}: raise "
                "data.max_length"
            )
        return cls(family, images, count, length)


def _inputs(sizes: _Sizes, rows: int, packs: list[int] | None) -> Inputs:
    """So many rows, each of one sample or of as many as `packs` says."""
    family, count = sizes.family, sizes.visual_tokens
    samples = packs[0] if packs else 1
    image, word = family.image_token_id, 0 if family.image_token_id else 1
    length = sizes.length // samples
    tokens, answers = [image] * count + [word] * (length - count), list(range(max(count, 1), length))
    types = family.token_types(tokens, [place >= count for place in range(length)], image)
    sample = Encoded(tokens, answers, [None] * length, length, types, {"image": sizes.images})
    inputs: Inputs = real(lambda: join([sample] * (rows * samples), word, packs))
    return inputs


def _cells(family: Family, images: Media) -> int:
    return sum(height * width for height, width in family.grid_shapes(images))


def _image(pathway: Pathway, make: Callable[[], Media]) -> tuple[Media, int]:
    """An image, and how many visual tokens it is."""
    device, family = pathway.head.weight.device, pathway.family
    images: Media = real(lambda: {name: tensor.to(device) for name, tensor in make().items()})
    with torch.no_grad():
        projected = family.project(pathway.model, family.see(pathway.model, images), images)
        return images, len(family.tokens_of(projected["image"]))


def real(make: Callable[[], Any]) -> Any:
    """Tensors with values, also where tensors are without."""
    with unset_fake_temporarily(), torch.device("cpu"), _undispatched():
        return make()


@contextmanager
def _undispatched() -> Iterator[None]:
    with torch.utils._python_dispatch._disable_current_modes():
        yield
