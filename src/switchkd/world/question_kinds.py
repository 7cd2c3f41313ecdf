"""Ten kinds of question about a scene, each with one short answer that the scene decides.

Each function draws the *answer* first, evenly among those the scene allows, and then a question that has it:
blind guessing gains little.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from switchkd.world.scenes import COLOURS, ROWS, SHAPES, SIZES, Scene, Thing

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
        thing = choose(rng, _only(scene, "form"))
        return word(rng, f"What colour is the {thing.form}?", f"Which colour has the {thing.form}?"), thing.colour
    thing = choose(rng, _only(scene, "colour"))
    return word(rng, f"What shape is {thing.colour}?", f"Which shape is the {thing.colour} thing?"), thing.form


def count(scene: Scene, rng: Random) -> tuple[str, str]:
    """How many things have one colour."""
    numbers = Counter(dict.fromkeys(COLOURS, 0))
    numbers.update(thing.colour for thing in scene.things)
    number = choose(rng, set(numbers.values()))
    colour = choose(rng, [colour for colour, count in numbers.items() if count == number])
    return word(rng, f"How many {colour} things are there?", f"Count the {colour} things."), str(number)


def relation(scene: Scene, rng: Random) -> tuple[str, str]:
    """Whether a thing lies at the top, in the middle or at the bottom of the picture."""
    thing = choose(rng, _clear(scene))
    name, rows = _name(scene, thing), f"{ROWS[0]}, {ROWS[1]} or {ROWS[2]}"
    return f"Where is the {name}, {rows}?", ROWS[thing.row]


def comparison(scene: Scene, rng: Random) -> tuple[str, str]:
    """Whether two things are both small, both large, or which is which."""
    sizes: dict[str, list[tuple[Thing, Thing]]] = {}
    for first, second in _pairs(scene):
        sizes.setdefault(f"{first.size} and {second.size}", []).append((first, second))
    answer = choose(rng, set(sizes))
    first, second = choose(rng, sizes[answer])
    a, b = _name(scene, first), _name(scene, second)
    return word(rng, f"Compare the sizes of the {a} and the {b}.", f"What sizes are the {a} and the {b}?"), answer


def digit(scene: Scene, rng: Random) -> tuple[str, str]:
    """Which digit is shown, named by its colour where two are shown."""
    digits = [thing for thing in scene.things if thing.is_digit]
    if len(digits) == 1:
        return word(rng, "Which digit is shown?", "Read the digit."), digits[0].form
    colours = Counter(thing.colour for thing in digits)
    thing = choose(rng, [thing for thing in digits if colours[thing.colour] == 1])
    return word(rng, f"Which digit is {thing.colour}?", f"Read the {thing.colour} digit."), thing.form


def existence(scene: Scene, rng: Random) -> tuple[str, str]:
    """Whether a shape of a given colour is present; absent ones are any colour and shape."""
    present = {(thing.colour, thing.form) for thing in _shapes(scene)}
    absent = {(colour, shape) for colour in COLOURS for shape in SHAPES} - present
    answer = choose(rng, ["yes", "no"])
    colour, shape = choose(rng, present if answer == "yes" else absent)
    return word(rng, f"Is there a {colour} {shape}?", f"Do you see a {colour} {shape}?"), answer


def hallucination(scene: Scene, rng: Random) -> tuple[str, str]:
    """Size of a thing; half the time it is absent though its colour and its shape are there, and the answer is none."""
    present = Counter((thing.colour, thing.form) for thing in _shapes(scene))
    shapes = {thing.form for thing in _shapes(scene)}
    absent = {(thing.colour, shape) for thing in scene.things for shape in shapes} - set(present)
    sizes = {thing.size for thing in _shapes(scene) if present[thing.colour, thing.form] == 1}
    answer = choose(rng, ["none", choose(rng, sizes)])
    real = [(t.colour, t.form) for t in _shapes(scene) if present[t.colour, t.form] == 1 and t.size == answer]
    colour, shape = choose(rng, absent if answer == "none" else real)
    return word(rng, f"What size is the {colour} {shape}?", f"How large is the {colour} {shape}?"), answer


def caption(scene: Scene, rng: Random) -> tuple[str, str]:
    """Size, colour, form and row of one thing."""
    thing = choose(rng, _clear(scene))
    name = _name(scene, thing)
    return word(
        rng, f"Describe the {name}.", f"Caption the {name}."
    ), f"{thing.size} {thing.colour} {thing.form} {ROWS[thing.row]}"


def yes_no(scene: Scene, rng: Random) -> tuple[str, str]:
    """Whether a statement about the colour or the size of a thing holds."""
    answer = choose(rng, ["yes", "no"])
    thing = choose(rng, _clear(scene))
    said, others = choose(rng, [(thing.colour, {other.colour for other in scene.things}), (thing.size, set(SIZES))])
    if answer == "no":
        said = choose(rng, others - {said})
    return f"Is the {_name(scene, thing)} {said}?", answer


def choice(scene: Scene, rng: Random) -> tuple[str, str]:
    """Letter of the right colour or shape among four."""
    if rng.random() < 0.5:
        thing = choose(rng, _only(scene, "form"))
        question, right, values = f"What colour is the {thing.form}?", thing.colour, COLOURS
    else:
        thing = choose(rng, _only(scene, "colour"))
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


def choose(rng: Random, options: Iterable[Option]) -> Option:
    """Choose evenly; sets are sorted first, because their order is not the same in every process."""
    choices: list[Option] = sorted(options) if isinstance(options, set) else list(options)
    if not choices:
        raise UnaskableError
    return rng.choice(choices)


def word(rng: Random, *wordings: str) -> str:
    """One of several ways to say the same."""
    return rng.choice(wordings)


def _shapes(scene: Scene) -> list[Thing]:
    return [thing for thing in scene.things if not thing.is_digit]


def _only(scene: Scene, attribute: str) -> list[Thing]:
    """Shapes that no other thing equals in `form` or `colour`."""
    counts = Counter(getattr(thing, attribute) for thing in scene.things)
    return [thing for thing in _shapes(scene) if counts[getattr(thing, attribute)] == 1]


def _name(scene: Scene, thing: Thing) -> str:
    """The shape alone where it is the only one, else colour and shape."""
    alone = sum(other.form == thing.form for other in scene.things) == 1
    return thing.form if alone else f"{thing.colour} {thing.form}"


def _clear(scene: Scene) -> list[Thing]:
    """The shapes that colour and shape together identify."""
    counts = Counter((thing.colour, thing.form) for thing in scene.things)
    return [thing for thing in _shapes(scene) if counts[thing.colour, thing.form] == 1]


def _pairs(scene: Scene) -> list[tuple[Thing, Thing]]:
    """Ordered pairs of different shapes that can be named."""
    return [(first, second) for first in _clear(scene) for second in _clear(scene) if first is not second]
