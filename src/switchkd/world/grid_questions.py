"""Ten kinds of question about a picture composed of photographs, each with one short answer that the grid decides.

As in the procedural world (`question_kinds.py`) each function draws the *answer* first, evenly among those that the grid allows, and then a
question that has it: blind guessing gains little. Questions are made of the names of classes and of places.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random

from switchkd.world.grids import Grid, Shown, column_names, row_names
from switchkd.world.question_kinds import Question, UnaskableError, choose, word

#: What a caption calls a cell without a photograph, and the answer about a photograph that is not there.
EMPTY, ABSENT = "empty", "none"
#: Options of a choice, where there are so many classes.
OPTIONS = "ABCD"

Classes = Sequence[str]


def perception(grid: Grid, classes: Classes, rng: Random) -> tuple[str, str]:
    """The class at a place."""
    shown = _by_class(grid, rng)
    place = _place(grid, shown.row, shown.column)
    return word(rng, f"What is at the {place}?", f"Name what is at the {place}."), shown.name


def count(grid: Grid, classes: Classes, rng: Random) -> tuple[str, str]:
    """How many photographs of a class there are."""
    numbers = Counter(dict.fromkeys(classes, 0))
    numbers.update(one.name for one in grid.shown)
    number = choose(rng, set(numbers.values()))
    name = choose(rng, [name for name, found in numbers.items() if found == number])
    return word(rng, f"How many {name} photographs are there?", f"Count the {name} photographs."), str(number)


def relation(grid: Grid, classes: Classes, rng: Random) -> tuple[str, str]:
    """The row or the column of the only photograph of its class."""
    shown = choose(rng, _single(grid))
    names, at = choose(rng, [(row_names(grid.side), shown.row), (column_names(grid.side), shown.column)])
    return f"Where is the {shown.name}, {', '.join(names[:-1])} or {names[-1]}?", names[at]


def comparison(grid: Grid, classes: Classes, rng: Random) -> tuple[str, str]:
    """The rows of two photographs."""
    names = row_names(grid.side)
    pairs: dict[str, list[tuple[Shown, Shown]]] = {}
    for first in _single(grid):
        for second in _single(grid):
            if first is not second:
                pairs.setdefault(f"{names[first.row]} and {names[second.row]}", []).append((first, second))
    answer = choose(rng, set(pairs))
    first, second = choose(rng, pairs[answer])
    a, b = first.name, second.name
    return word(rng, f"Compare the rows of the {a} and the {b}.", f"In what rows are the {a} and the {b}?"), answer


def empty(grid: Grid, classes: Classes, rng: Random) -> tuple[str, str]:
    """Whether there is no photograph at a place."""
    answer = choose(rng, ["yes", "no"])
    cells = [(row, column) for row in range(grid.side) for column in range(grid.side)]
    filled = [(one.row, one.column) for one in grid.shown]
    place = _place(grid, *choose(rng, filled if answer == "no" else [cell for cell in cells if cell not in filled]))
    return word(rng, f"Is the {place} empty?", f"Is there nothing at the {place}?"), answer


def existence(grid: Grid, classes: Classes, rng: Random) -> tuple[str, str]:
    """Whether there is a photograph of a class."""
    present = {one.name for one in grid.shown}
    answer = choose(rng, ["yes", "no"])
    name = choose(rng, present if answer == "yes" else set(classes) - present)
    return word(rng, f"Is there any {name}?", f"Do you see any {name}?"), answer


def hallucination(grid: Grid, classes: Classes, rng: Random) -> tuple[str, str]:
    """The row of the only photograph of a class; half of the time there is none, and that is the answer."""
    names = row_names(grid.side)
    single = _single(grid)
    absent = set(classes) - {one.name for one in grid.shown}
    answer = choose(rng, [ABSENT, choose(rng, {names[one.row] for one in single})])
    name = choose(rng, absent if answer == ABSENT else {one.name for one in single if names[one.row] == answer})
    return word(rng, f"Which row has the {name}?", f"Name the row of the {name}."), answer


def caption(grid: Grid, classes: Classes, rng: Random) -> tuple[str, str]:
    """What is in a row, from the left."""
    row = choose(rng, {one.row for one in grid.shown})
    name = row_names(grid.side)[row]
    return word(rng, f"Describe the {name} row.", f"Caption the {name} row."), ", ".join(
        found or EMPTY for found in grid.rows()[row]
    )


def yes_no(grid: Grid, classes: Classes, rng: Random) -> tuple[str, str]:
    """Whether the photograph at a place is of a class; where it is not, another one is, if there is another class."""
    answer = choose(rng, ["yes", "no"])
    shown = _by_class(grid, rng)
    said = shown.name
    if answer == "no":
        others = {one.name for one in grid.shown} - {said}
        said = choose(rng, others or set(classes) - {said})
    place = _place(grid, shown.row, shown.column)
    return word(rng, f"Is the {said} at the {place}?", f"Does the {place} show the {said}?"), answer


def choice(grid: Grid, classes: Classes, rng: Random) -> tuple[str, str]:
    """Letter of the class at a place, among four or as many as there are."""
    shown = _by_class(grid, rng)
    letters = OPTIONS[: len(classes)]
    options = rng.sample([name for name in classes if name != shown.name], len(letters) - 1)
    at = rng.randrange(len(letters))
    options.insert(at, shown.name)
    listed = " ".join(f"{letter} {option}" for letter, option in zip(letters, options, strict=True))
    return f"What is at the {_place(grid, shown.row, shown.column)}? {listed}", letters[at]


GRID_KINDS: dict[str, Callable[[Grid, Classes, Random], tuple[str, str]]] = {
    "perception": perception,
    "count": count,
    "relation": relation,
    "comparison": comparison,
    "empty": empty,
    "existence": existence,
    "hallucination": hallucination,
    "caption": caption,
    "yes_no": yes_no,
    "choice": choice,
}


def ask_about(grid: Grid, classes: Classes, rng: Random) -> list[Question] | None:
    """One question of every kind in random order, or None where the grid cannot be asked one of them."""
    kinds = rng.sample(list(GRID_KINDS), len(GRID_KINDS))
    try:
        return [Question(kind, *GRID_KINDS[kind](grid, classes, rng)) for kind in kinds]
    except UnaskableError:
        return None


def _place(grid: Grid, row: int, column: int) -> str:
    return f"{row_names(grid.side)[row]} {column_names(grid.side)[column]}"


def _single(grid: Grid) -> list[Shown]:
    """The photographs that are the only ones of their class."""
    counts = Counter(one.name for one in grid.shown)
    return [one for one in grid.shown if counts[one.name] == 1]


def _by_class(grid: Grid, rng: Random) -> Shown:
    """A photograph, every class as likely as another."""
    name = choose(rng, {one.name for one in grid.shown})
    return choose(rng, [one for one in grid.shown if one.name == name])
