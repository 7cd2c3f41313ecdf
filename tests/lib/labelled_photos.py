"""A folder of labelled pictures: each class has a colour of its own, each picture noise of its own. A solver reads the colours off."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red_fox": (200, 40, 30), "Pond": (40, 60, 200), "meadow": (60, 190, 60), "snow": (235, 235, 240)}
#: As questions say them.
NAMES = {"red fox": COLOURS["red_fox"], "pond": COLOURS["Pond"], "meadow": COLOURS["meadow"], "snow": COLOURS["snow"]}


def write_photos_folder(folder: Path, *, each: int = 20, classes=tuple(COLOURS), size=(40, 32), first: int = 0) -> Path:
    """`each` pictures of every class, numbered from `first`: another number is another picture."""
    for place, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(first, first + each):
            noise = np.random.default_rng([place, number]).normal(0, 6, (size[1], size[0], 3))
            pixels = np.clip(np.array(COLOURS.get(name, (90, 20 * place, 120))) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:03}.png")
    return folder


def cells_in(picture: np.ndarray, side: int) -> list[list[str | None]]:
    """The class that the mean colour of each cell is nearest to; None for the grey of an empty one."""
    cell = len(picture) // side
    found: list[list[str | None]] = []
    for row in range(side):
        found.append([])
        for column in range(side):
            mean = picture[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell].mean((0, 1))
            if mean.max() <= 62 and np.ptp(mean) < 1:
                found[-1].append(None)
            else:
                found[-1].append(min(NAMES, key=lambda name: np.abs(mean - NAMES[name]).sum()))
    return found


def solve_grid(cells: list[list[str | None]], question: str) -> str:
    """Answer a question about the classes in cells; knows nothing of how questions are made."""
    rows = ["top", "bottom"] if len(cells) == 2 else ["top", "middle", "bottom"]
    columns = ["left", "right"] if len(cells) == 2 else ["left", "centre", "right"]

    def at(place: str) -> str | None:
        row, column = place.split()
        return cells[rows.index(row)][columns.index(column)]

    def where(name: str) -> list[tuple[int, int]]:
        return [(r, c) for r, line in enumerate(cells) for c, found in enumerate(line) if found == name]

    def the(name: str) -> tuple[int, int]:
        (place,) = where(name)
        return place

    def row_or_none(name: str) -> str:
        found = where(name)
        assert len(found) < 2
        return rows[found[0][0]] if found else "none"

    def place_among(name: str, options: str) -> str:
        row, column = the(name)
        return rows[row] if "top" in options else columns[column]

    def letter(place: str, options: str) -> str:
        (right,) = [one for one, name in re.findall(r"\b([A-D]) ([a-z ]+?)(?= [A-D] |$)", options) if name == at(place)]
        return right

    def yes(truth: bool) -> str:
        return "yes" if truth else "no"

    patterns = {
        r"(?:What is at the|Name what is at the) (\w+ \w+)[?.]": at,
        r"(?:How many (.+) photographs are there\?|Count the (.+) photographs\.)": lambda a, b: str(len(where(a or b))),
        r"Where is the (.+?), ((?:\w+, )?\w+ or \w+)\?": place_among,
        r"(?:Compare the rows of|In what rows are) the (.+) and the (.+)[?.]": lambda a, b: (
            f"{rows[the(a)[0]]} and {rows[the(b)[0]]}"
        ),
        r"(?:Is there nothing at the (\w+ \w+)|Is the (\w+ \w+) empty)\?": lambda a, b: yes(at(a or b) is None),
        r"(?:Is there|Do you see) any (.+)\?": lambda name: yes(bool(where(name))),
        r"(?:Which row has|Name the row of) the (.+)[?.]": row_or_none,
        r"(?:Describe|Caption) the (\w+) row\.": lambda row: ", ".join(
            one or "empty" for one in cells[rows.index(row)]
        ),
        r"Is the (.+) at the (\w+ \w+)\?": lambda name, place: yes(at(place) == name),
        r"Does the (\w+ \w+) show the (.+)\?": lambda place, name: yes(at(place) == name),
        r"What is at the (\w+ \w+)\? (A .+)": letter,
    }
    fitting = [(pattern, match) for pattern in patterns if (match := re.fullmatch(pattern, question))]
    assert len(fitting) == 1, (question, fitting)
    pattern, match = fitting[0]
    answer = patterns[pattern](*match.groups())
    assert answer is not None
    return answer
