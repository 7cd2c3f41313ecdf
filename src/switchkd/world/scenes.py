"""What is in a picture: things on a 3×3 grid, drawn at random, and the split each scene belongs to."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Literal, get_args

Split = Literal["train", "validation", "test"]
Difficulty = Literal["easy", "medium", "hard"]
SPLITS: tuple[Split, ...] = get_args(Split)
DIFFICULTIES: tuple[Difficulty, ...] = get_args(Difficulty)

GRID = 3
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "centre", "right")
SHAPES = ("circle", "square", "triangle", "cross", "star", "ring")
DIGITS = tuple("0123456789")
COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
SIZES = ("small", "large")

#: Fewest and most things in a scene.
THINGS: dict[Difficulty, tuple[int, int]] = {"easy": (3, 4), "medium": (4, 5), "hard": (6, 8)}


@dataclass(frozen=True, order=True)
class Thing:
    """One coloured shape or digit in one cell of the grid; `form` is a shape's name or the digit."""

    row: int
    column: int
    form: str
    colour: str
    size: str

    @property
    def is_digit(self) -> bool:
        """Whether this is a digit rather than a shape."""
        return self.form in DIGITS


@dataclass(frozen=True)
class Scene:
    """Things in reading order: top row first, each row from the left. One scene may be drawn as many pictures."""

    things: tuple[Thing, ...]

    def describe(self) -> str:
        """Give the scene as one line of text; equal lines mean equal scenes."""
        return "; ".join(f"{t.size} {t.colour} {t.form} at {t.row},{t.column}" for t in self.things)

    def fingerprint(self) -> str:
        """Hash the description."""
        return hashlib.sha256(self.describe().encode()).hexdigest()

    @property
    def split(self) -> Split:
        """The one split this scene may be in, decided by its fingerprint: 80 % train, 10 % validation, 10 % test."""
        bucket = int(self.fingerprint()[:8], 16) % 10
        return "train" if bucket < 8 else "validation" if bucket == 8 else "test"


def random_scene(rng: Random, difficulty: Difficulty) -> Scene:
    """Draw one scene of any split: digits and shapes, with one colour for several things more often than not.

    All shapes differ and there is one large digit, so that a shape's name is enough to say which thing is meant; in hard
    scenes shapes repeat, and there may be two digits of any size.
    """
    total = rng.randint(*THINGS[difficulty])
    if difficulty == "hard":
        digits = rng.sample(DIGITS, rng.randint(1, 2))
        shapes = rng.choices(SHAPES, k=total - len(digits))
    else:
        digits = rng.sample(DIGITS, 1)
        shapes = rng.sample(SHAPES, total - 1)
    colours = rng.choices(COLOURS, k=total)
    theme = rng.choice(COLOURS)
    for index in rng.sample(range(total), rng.randint(0, 3)):
        colours[index] = theme
    cells = rng.sample([(row, column) for row in range(GRID) for column in range(GRID)], total)
    things = [
        Thing(row, column, form, colour, "large" if form in DIGITS and difficulty != "hard" else rng.choice(SIZES))
        for (row, column), form, colour in zip(cells, [*digits, *shapes], colours, strict=True)
    ]
    return Scene(tuple(sorted(things)))


def scenes(rng: Random, split: Split, difficulty: Difficulty) -> Iterator[Scene]:
    """Yield scenes of one split without end."""
    while True:
        scene = random_scene(rng, difficulty)
        if scene.split == split:
            yield scene
