"""Endless pictures of photographs as tensors: pixels, what fills the cell of every patch, and questions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from switchkd.console import progress
from switchkd.world.grids import PHOTOGRAPHS, Grid, Shown, compose, square
from switchkd.world.photo_world import grid_samples, opened
from switchkd.world.photographs import Photographs
from switchkd.world.question_kinds import Question
from switchkd.world.scenes import COLUMNS, ROWS, Split

#: Largest move of a photograph in its cell while a vision encoder learns, as a part of the cell.
SHIFT = 1 / 8


@dataclass(frozen=True)
class Drawn:
    """A picture: its grid, questions about it, and its pixels."""

    grid: Grid
    questions: list[Question]
    pixels: UInt8[np.ndarray, "height width 3"]


class Squares:
    """The photographs of one split, decoded once for all."""

    def __init__(self, photographs: Photographs, split: Split, image_size: int) -> None:
        self.photographs, self.split, self.image_size = photographs, split, image_size
        members = photographs.of(split)
        self._places = {digest: place for place, (digest, _) in enumerate(members)}
        sides = sorted(PHOTOGRAPHS)
        self._pixels = {
            side: np.empty((len(members), image_size // side, image_size // side, 3), np.uint8) for side in sides
        }
        for place, (digest, _) in enumerate(progress(members, "photographs", len(members))):
            photograph = opened(photographs, digest)
            for side in sides:
                self._pixels[side][place] = square(photograph, image_size // side)

    def square(self, one: Shown, side: int) -> UInt8[np.ndarray, "cell cell 3"]:
        """A photograph as it is shown in a grid of `side` × `side` cells."""
        found: UInt8[np.ndarray, "cell cell 3"] = self._pixels[side][self._places[one.digest]]
        return found

    def asked(self, seed: int | str) -> Iterator[Drawn]:
        """Pictures as the world has them, with their questions."""
        for grid, questions, rng in grid_samples(seed, self.split, self.photographs):
            squares = [self.square(one, grid.side) for one in grid.shown]
            yield Drawn(grid, questions, compose(grid, squares, self.image_size, rng))

    def crowded(self, seed: int | str) -> Iterator[Drawn]:
        """Pictures with few empty cells and no questions; photographs are turned left to right and moved a little, as is usual."""
        rng = Random(f"{seed} crowded")
        names = self.photographs.by_split[self.split]
        while True:
            side = rng.choice((2, 3, 3, 3))  # more photographs for the same work
            shown = []
            for row in range(side):
                for column in range(side):
                    if rng.random() < 0.9:
                        name = rng.choice(self.photographs.classes)
                        shown.append(Shown(row, column, name, rng.choice(names[name])))
            grid = Grid(side, tuple(shown))
            squares = [_varied(self.square(one, side), rng) for one in shown]
            yield Drawn(grid, [], compose(grid, squares, self.image_size, rng))


def _varied(square: UInt8[np.ndarray, "cell cell 3"], rng: Random) -> UInt8[np.ndarray, "cell cell 3"]:
    most = int(len(square) * SHIFT)
    down, right = rng.randint(-most, most), rng.randint(-most, most)
    moved = np.pad(square, ((most, most), (most, most), (0, 0)), mode="edge")
    moved = moved[most + down : most + down + len(square), most + right : most + right + len(square)]
    return moved[:, ::-1] if rng.random() < 0.5 else moved


def as_pixels(drawn: Sequence[Drawn], image_size: int) -> Float[Tensor, "images channels height width"]:
    """Pictures at a vision encoder's size, scaled to −1..1, channels first."""
    stacked = torch.from_numpy(np.stack([one.pixels for one in drawn])).permute(0, 3, 1, 2).float() / 127.5 - 1
    if stacked.shape[-1] != image_size:
        stacked = torch.nn.functional.interpolate(stacked, image_size, mode="bilinear", antialias=True)
    return stacked


def patch_labels(grids: Sequence[Grid], classes: Sequence[str], side: int) -> Int[Tensor, "images patches 3"]:
    """Of each of `side` × `side` patches: the class in its cell, from 1 (0: it is empty), and its row and column among three, from 0.

    The rows of a grid of two are the first and the last of three, as their names are.
    """
    labels = np.zeros((len(grids), side, side, 3), np.int64)
    number = {name: place for place, name in enumerate(classes, start=1)}
    for index, grid in enumerate(grids):
        patches = side // grid.side
        for row in range(grid.side):
            for column in range(grid.side):
                cell = labels[index, row * patches : (row + 1) * patches, column * patches : (column + 1) * patches]
                cell[..., 1] = row * (len(ROWS) - 1) // (grid.side - 1)
                cell[..., 2] = column * (len(COLUMNS) - 1) // (grid.side - 1)
        for one in grid.shown:
            labels[
                index,
                one.row * patches : (one.row + 1) * patches,
                one.column * patches : (one.column + 1) * patches,
                0,
            ] = number[one.name]
    return torch.from_numpy(labels).flatten(1, 2)


def batches(stream: Iterator[Drawn], size: int, steps: int, label: str) -> Iterator[list[Drawn]]:
    """Yield `steps` lists of `size` fresh pictures, and show how many are done."""
    for _ in progress(range(steps), label, steps):
        yield [next(stream) for _ in range(size)]
