"""Ten kinds of question about a scene, each with one short answer that the scene decides.

Each function draws the *answer* first, evenly among those the scene allows, and then a question that has it:
blind guessing gains little.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from .scenes import COLOURS, GRID, ROWS, SHAPES, Scene, Thing

Option = TypeVar("Option")


@dataclass(frozen=True)
class Question:
    """One question with its kind and its only right answer."""

    kind: str
    text: str
    answer: str


class UnaskableError(Exception):
    """The scene holds nothing that this kind of question could be about."""


def perception(scene: Scene, rng: Random) -> tuple[str, str]:
    """Colour of the only thing of its shape, or shape of the only thing of its colour."""
    if rng.random() < 0.5:
        thing = _choose(rng, _only(scene, "form"))
        return _word(rng, f"What colour is the {thing.form}?", f"Which colour has the {thing.form}?"), thing.colour
    thing = _choose(rng, _only(scene, "colour"))
    return _word(rng, f"What shape is {thing.colour}?", f"Which shape is the {thing.colour} thing?"), thing.form


def count(scene: Scene, rng: Random) -> tuple[str, str]:
    """How many things have one shape or one colour."""
    by_shape = Counter(dict.fromkeys(SHAPES, 0))
    by_shape.update(thing.form for thing in _shapes(scene))
    by_colour = Counter(dict.fromkeys(COLOURS, 0))
    by_colour.update(thing.colour for thing in scene.things)
    numbers = by_shape if rng.random() < 0.5 else by_colour
    number = _choose(rng, set(numbers.values()))
    name = _choose(rng, [name for name, found in numbers.items() if found == number])
    what = f"{_plural(name)}" if numbers is by_shape else f"{name} things"
    return _word(rng, f"How many {what} are there?", f"Count the {what}."), str(number)


def relation(scene: Scene, rng: Random) -> tuple[str, str]:
    """On which side of one thing another thing of the same row or column lies."""
    first, second, side = _neighbours(scene, rng)
    a, b = _name(scene, first), _name(scene, second)
    return _word(rng, f"Where is the {a} from the {b}?", f"Which side of the {b} is the {a}?"), side


def comparison(scene: Scene, rng: Random) -> tuple[str, str]:
    """Whether one thing is smaller than, larger than or as large as another."""
    answers: dict[str, list[tuple[Thing, Thing]]] = {"smaller": [], "larger": [], "equal": []}
    for first, second in _pairs(scene):
        answers["equal" if first.size == second.size else "smaller" if first.size == "small" else "larger"].append(
            (first, second)
        )
    answer = _choose(rng, [answer for answer, pairs in answers.items() if pairs])
    first, second = _choose(rng, answers[answer])
    a, b = _name(scene, first), _name(scene, second)
    return _word(rng, f"Is the {a} smaller or larger than the {b}?", f"Compare the {a} with the {b}."), answer


def digit(scene: Scene, rng: Random) -> tuple[str, str]:
    """Which digit is shown, named by its colour where two are shown."""
    digits = [thing for thing in scene.things if thing.is_digit]
    if len(digits) == 1:
        return _word(rng, "Which digit is shown?", "Read the digit."), digits[0].form
    colours = Counter(thing.colour for thing in digits)
    thing = _choose(rng, [thing for thing in digits if colours[thing.colour] == 1])
    return _word(rng, f"Which digit is {thing.colour}?", f"Read the {thing.colour} digit."), thing.form


def existence(scene: Scene, rng: Random) -> tuple[str, str]:
    """Whether a shape of a given colour is present; absent ones are any colour and shape."""
    present = {(thing.colour, thing.form) for thing in _shapes(scene)}
    absent = {(colour, shape) for colour in COLOURS for shape in SHAPES} - present
    answer = _choose(rng, ["yes", "no"])
    colour, shape = _choose(rng, present if answer == "yes" else absent)
    return _word(rng, f"Is there a {colour} {shape}?", f"Do you see a {colour} {shape}?"), answer


def hallucination(scene: Scene, rng: Random) -> tuple[str, str]:
    """Size of a thing; half the time it is absent though its colour and its shape are there, and the answer is none."""
    present = Counter((thing.colour, thing.form) for thing in _shapes(scene))
    shapes = {thing.form for thing in _shapes(scene)}
    absent = {(thing.colour, shape) for thing in scene.things for shape in shapes} - set(present)
    sizes = {thing.size for thing in _shapes(scene) if present[thing.colour, thing.form] == 1}
    answer = _choose(rng, ["none", _choose(rng, sizes)])
    real = [(t.colour, t.form) for t in _shapes(scene) if present[t.colour, t.form] == 1 and t.size == answer]
    colour, shape = _choose(rng, absent if answer == "none" else real)
    return _word(rng, f"What size is the {colour} {shape}?", f"How large is the {colour} {shape}?"), answer


def caption(scene: Scene, rng: Random) -> tuple[str, str]:
    """Colour and form of everything in one row, from the left; seldom a row that is empty."""
    rows = [[thing for thing in scene.things if thing.row == row] for row in range(GRID)]
    filled = [row for row in range(GRID) if rows[row]]
    empty = [row for row in range(GRID) if not rows[row]]
    row = _choose(rng, empty if empty and rng.random() < 0.2 else filled)
    answer = ", ".join(f"{thing.colour} {thing.form}" for thing in rows[row]) or "nothing"
    return _word(rng, f"Describe the {ROWS[row]} row.", f"Caption the {ROWS[row]} row."), answer


def yes_no(scene: Scene, rng: Random) -> tuple[str, str]:
    """Whether a statement about colour or place holds."""
    answer = _choose(rng, ["yes", "no"])
    if rng.random() < 0.5:
        thing = _choose(rng, _only(scene, "form"))
        others = {other.colour for other in scene.things} - {thing.colour}
        colour = thing.colour if answer == "yes" else _choose(rng, others)
        return _word(rng, f"Is the {thing.form} {colour}?", f"Does the {thing.form} look {colour}?"), answer
    first, second, side = _neighbours(scene, rng)
    a, b = _name(scene, first), _name(scene, second)
    said = side if answer == "yes" else _OPPOSITE[side]
    place = f"{said} of" if said in ("left", "right") else said
    return _word(rng, f"Is the {a} {place} the {b}?", f"Does the {a} lie {place} the {b}?"), answer


def choice(scene: Scene, rng: Random) -> tuple[str, str]:
    """Letter of the right colour or shape among four."""
    if rng.random() < 0.5:
        thing = _choose(rng, _only(scene, "form"))
        question, right, values = f"What colour is the {thing.form}?", thing.colour, COLOURS
    else:
        thing = _choose(rng, _only(scene, "colour"))
        question, right, values = f"What shape is {thing.colour}?", thing.form, SHAPES
    options = rng.sample([value for value in values if value != right], 3)
    place = rng.randrange(4)
    options.insert(place, right)
    listed = " ".join(f"{letter} {option}" for letter, option in zip("ABCD", options, strict=True))
    return f"{question} {listed}", "ABCD"[place]


KINDS: dict[str, Callable[[Scene, Random], tuple[str, str]]] = {
    "perception": perception,
    "count": count,
    "relation": relation,
    "comparison": comparison,
    "digit": digit,
    "existence": existence,
    "hallucination": hallucination,
    "caption": caption,
    "yes_no": yes_no,
    "choice": choice,
}


def ask(scene: Scene, rng: Random) -> list[Question] | None:
    """One question of every kind in random order, or None where the scene cannot be asked one of them."""
    kinds = rng.sample(list(KINDS), len(KINDS))
    try:
        return [Question(kind, *KINDS[kind](scene, rng)) for kind in kinds]
    except UnaskableError:
        return None


_OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


def _choose(rng: Random, options: Iterable[Option]) -> Option:
    """Choose evenly; sets are sorted first, because their order is not the same in every process."""
    options = sorted(options) if isinstance(options, set) else list(options)
    if not options:
        raise UnaskableError
    return rng.choice(options)


def _word(rng: Random, *wordings: str) -> str:
    return rng.choice(wordings)


def _plural(shape: str) -> str:
    return f"{shape}es" if shape == "cross" else f"{shape}s"


def _shapes(scene: Scene) -> list[Thing]:
    return [thing for thing in scene.things if not thing.is_digit]


def _only(scene: Scene, attribute: str) -> list[Thing]:
    """Shapes that no other thing equals in `form` or `colour`."""
    found = Counter(getattr(thing, attribute) for thing in scene.things)
    return [thing for thing in _shapes(scene) if found[getattr(thing, attribute)] == 1]


def _name(scene: Scene, thing: Thing) -> str:
    """The shape alone where it is the only one, else colour and shape."""
    alone = sum(other.form == thing.form for other in scene.things) == 1
    return thing.form if alone else f"{thing.colour} {thing.form}"


def _pairs(scene: Scene) -> list[tuple[Thing, Thing]]:
    """Ordered pairs of different shapes that colour and shape identify."""
    found = Counter((thing.colour, thing.form) for thing in scene.things)
    clear = [thing for thing in _shapes(scene) if found[thing.colour, thing.form] == 1]
    return [(first, second) for first in clear for second in clear if first is not second]


def _neighbours(scene: Scene, rng: Random) -> tuple[Thing, Thing, str]:
    """Two things of one row or column, and the side of the second on which the first lies."""
    sides: dict[str, list[tuple[Thing, Thing]]] = {side: [] for side in _OPPOSITE}
    for first, second in _pairs(scene):
        if first.row == second.row:
            sides["left" if first.column < second.column else "right"].append((first, second))
        elif first.column == second.column:
            sides["above" if first.row < second.row else "below"].append((first, second))
    side = _choose(rng, [side for side, pairs in sides.items() if pairs])
    first, second = _choose(rng, sides[side])
    return first, second, side
