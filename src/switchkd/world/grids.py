"""Pictures composed of photographs: which class is in which cell of a grid of 2 × 2 or 3 × 3, and the picture of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from switchkd.world.scenes import COLUMNS, ROWS

#: Cells at a side → fewest and most photographs. One cell at least is empty.
PHOTOGRAPHS: Mapping[int, tuple[int, int]] = {2: (2, 3), 3: (4, 7)}


@dataclass(frozen=True, order=True)
class Shown:
    """A photograph in a cell: its class, and which photograph it is."""

    row: int
    column: int
    name: str
    digest: str


@dataclass(frozen=True)
class Grid:
    """Photographs in reading order, in a grid of `side` × `side` cells."""

    side: int
    shown: tuple[Shown, ...]

    def describe(self) -> str:
        """Give the grid as one line of text, without which photographs it shows."""
        return f"{self.side}: " + "; ".join(f"{one.name} at {one.row},{one.column}" for one in self.shown)

    def rows(self) -> list[list[str | None]]:
        """The class in each cell, None where it is empty."""
        names = {(one.row, one.column): one.name for one in self.shown}
        return [[names.get((row, column)) for column in range(self.side)] for row in range(self.side)]


def row_names(side: int) -> tuple[str, ...]:
    """What the rows of a grid are called: top, (middle,) bottom."""
    return ROWS if side == 3 else (ROWS[0], ROWS[-1])


def column_names(side: int) -> tuple[str, ...]:
    """What its columns are called: left, (centre,) right."""
    return COLUMNS if side == 3 else (COLUMNS[0], COLUMNS[-1])


def random_grid(rng: Random, photographs: Mapping[str, Sequence[str]]) -> Grid:
    """Draw a grid: one class for several photographs more often than not. `photographs`: class → digests of those that may be shown."""
    classes = list(photographs)
    side = rng.choice(list(PHOTOGRAPHS))
    total = rng.randint(*PHOTOGRAPHS[side])
    names = rng.choices(classes, k=total)
    theme = rng.choice(classes)
    for index in rng.sample(range(total), rng.randint(0, total - 2)):
        names[index] = theme
    cells = rng.sample([(row, column) for row in range(side) for column in range(side)], total)
    drawn = [
        Shown(row, column, name, rng.choice(photographs[name]))
        for (row, column), name in zip(cells, names, strict=True)
    ]
    return Grid(side, tuple(sorted(drawn)))


def grids(rng: Random, photographs: Mapping[str, Sequence[str]]) -> Iterator[Grid]:
    """Yield grids without end."""
    while True:
        yield random_grid(rng, photographs)


def square(photograph: Image.Image, side: int) -> UInt8[np.ndarray, "side side 3"]:
    """The middle square of a photograph, `side` pixels high and wide."""
    fitted = photograph if photograph.size == (side, side) else ImageOps.fit(photograph, (side, side))
    return np.asarray(fitted, dtype=np.uint8)


def compose(
    grid: Grid, squares: Sequence[UInt8[np.ndarray, "cell cell 3"]], image_size: int, rng: Random
) -> UInt8[np.ndarray, "height width 3"]:
    """The picture of a grid: the squares in their cells, and a plain grey of the picture's own where there is none."""
    cell = image_size // grid.side
    picture = np.full((image_size, image_size, 3), rng.randint(15, 60), dtype=np.uint8)
    for one, pixels in zip(grid.shown, squares, strict=True):
        picture[one.row * cell : (one.row + 1) * cell, one.column * cell : (one.column + 1) * cell] = pixels
    return picture
