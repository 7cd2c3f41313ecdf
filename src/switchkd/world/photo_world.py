"""The world of photographs on disk: pictures composed of photographs of one split, as LLaVA JSON; and what can be said of it beforehand."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from statistics import mean
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from switchkd.data.errors import DataError, SampleError
from switchkd.files import write_together
from switchkd.world.grid_questions import ask_about
from switchkd.world.grids import Grid, compose, grids, square
from switchkd.world.photographs import Photographs
from switchkd.world.question_kinds import Question
from switchkd.world.scenes import SPLITS, Split
from switchkd.world.write import Asked, write_split

ScaleName = Literal["cpu", "gpu"]
SCALE_NAMES: tuple[ScaleName, ...] = get_args(ScaleName)
#: Side of a picture in pixels, for models of each scale. For a CPU cells are 32 pixels in a grid of 3 × 3, and 48 in one of 2 × 2.
IMAGE_SIZES: Mapping[ScaleName, int] = {"cpu": 96, "gpu": 192}

#: A row as it is written: `cells` has the class in each cell, `photographs` the digests of what is shown.
Row = Mapping[str, Any]


def grid_samples(
    seed: int | str, split: Split, photographs: Photographs
) -> Iterator[tuple[Grid, list[Question], Random]]:
    """Yield grids of one split's photographs, their questions, and the random state that a picture is composed with."""
    rng = Random(f"{seed} {split} photographs")
    for grid in grids(rng, photographs.by_split[split]):
        questions = ask_about(grid, photographs.classes, rng)
        if questions is not None:
            yield grid, questions, Random(rng.getrandbits(64))


def write_photos(
    directory: str | Path,
    photographs: Photographs,
    *,
    train: int,
    validation: int,
    test: int,
    seed: int | str,
    image_size: int = IMAGE_SIZES["cpu"],
) -> None:
    """Write as many pictures as asked for, each with one question of every kind, as `switchkd.world.write` does.

    Pictures of a split show photographs of that split alone. Each row also has `cells`, the class in each cell, and `photographs`, the
    SHA-256 of the files that are shown.

    Raises:
        FileExistsError: a split's file is there already.
        DataError: a photograph cannot be decoded, or one is in two splits.
    """
    directory = Path(directory)
    for split, number in zip(SPLITS, (train, validation, test), strict=True):
        if number < 0:
            raise ValueError(f"{split}={number}: the number of pictures cannot be negative")
        if number:
            write_split(directory, split, number, _rows(seed, split, photographs, image_size))
    check_disjoint(directory)


def _rows(seed: int | str, split: Split, photographs: Photographs, image_size: int) -> Iterator[Asked]:
    @lru_cache(maxsize=4096)
    def cell(digest: str, side: int) -> UInt8[np.ndarray, "side side 3"]:
        return square(opened(photographs, digest), side)

    for grid, questions, rng in grid_samples(seed, split, photographs):
        squares = [cell(one.digest, image_size // grid.side) for one in grid.shown]
        more = {"cells": grid.rows(), "photographs": [one.digest for one in grid.shown]}
        yield questions, compose(grid, squares, image_size, rng), more


def opened(photographs: Photographs, digest: str) -> Image.Image:
    """A photograph.

    Raises:
        DataError: it cannot be decoded.
    """
    try:
        return photographs.open(digest)
    except SampleError as error:
        raise DataError(f"{photographs.source}: {error}; repair or remove it") from error


@dataclass(frozen=True)
class Blind:
    """What is right without looking, in percent: of each kind, and the mean over kinds."""

    kinds: Mapping[str, float]

    @property
    def score(self) -> float:
        """The mean over kinds."""
        return mean(self.kinds.values())


def blind_score(train: Sequence[Row], test: Sequence[Row]) -> Blind:
    """Score the best answers without a picture: the most common answer that training rows give to the same text, or to the same kind."""
    by_text: dict[str, Counter[str]] = defaultdict(Counter)
    by_kind: dict[str, Counter[str]] = defaultdict(Counter)
    for kind, text, answer in _questions(train):
        by_text[text][answer] += 1
        by_kind[kind][answer] += 1
    right: dict[str, list[bool]] = defaultdict(list)
    for kind, text, answer in _questions(test):
        counted = by_text.get(text) or by_kind[kind]
        best = max(sorted(counted), key=counted.__getitem__, default=None)
        right[kind].append(best == answer)
    return Blind({kind: 100 * mean(map(float, found)) for kind, found in sorted(right.items())})


def _questions(rows: Sequence[Row]) -> Iterator[tuple[str, str, str]]:
    """Kind, text and answer of every question."""
    for row in rows:
        turns = [turn["value"].removeprefix("<image>\n") for turn in row["conversations"]]
        yield from zip(row["kinds"], turns[::2], turns[1::2], strict=True)


def check_disjoint(directory: str | Path) -> dict[Split, int]:
    """Different photographs in the pictures of every split that is written.

    Raises:
        DataError: one is in two splits.
    """
    shown = {split: _shown(Path(directory) / f"{split}.json") for split in SPLITS}
    for number, split in enumerate(SPLITS):
        for other in SPLITS[:number]:
            if both := shown[split] & shown[other]:
                raise DataError(
                    f"{directory}: {len(both)} photographs are in {other} and in {split}, such as {min(both)}: "
                    "the photographs have changed since a part of the data was written; remove the folder and write it anew"
                )
    return {split: len(digests) for split, digests in shown.items() if digests}


def hold_splits(directory: str | Path, photographs: Photographs) -> None:
    """Note in `directory/splits.json` which photographs are in each split; where it is noted already, they must be the same.

    A world of earlier code has no note. It gets one where all that its pictures show is in the same split now.

    Raises:
        DataError: the photographs have changed, so that one may be tested on that was trained on.
    """
    file = Path(directory) / "splits.json"
    members = {split: sorted(digest for digest, _ in photographs.of(split)) for split in SPLITS}
    now: dict[str, dict[str, Any]] = {
        split: {"photographs": len(digests), "sha256": hashlib.sha256("".join(digests).encode()).hexdigest()}
        for split, digests in members.items()
    }
    if file.exists():
        noted = json.loads(file.read_text(encoding="utf-8"))
        if noted != now:
            before, after = (sum(one["photographs"] for one in splits.values()) for splits in (noted, now))
            raise DataError(
                f"{photographs.source}: {before} photographs were there when {directory} was begun, {after} are there now, and they are in "
                f"other splits: one that is tested on could have been trained on. Put back the photographs as they were, or remove "
                f"{directory} or name another, and make all of it anew"
            )
    elif all(
        _shown(folder / f"{split}.json") <= set(members[split])
        for split in SPLITS
        for folder in (Path(directory, "data"), Path(directory, "making", "pictures"))
    ):
        write_together({file: json.dumps(now, indent=2) + "\n"})


def _shown(file: Path) -> set[str]:
    return {digest for row in read_rows(file) for digest in row["photographs"]} if file.exists() else set()


def read_rows(file: str | Path) -> list[Row]:
    """The rows of a split."""
    rows: list[Row] = json.loads(Path(file).read_text(encoding="utf-8"))
    return rows
