"""An independent solver: reads a scene's one-line description and a question's text, knows nothing of how questions are made."""

import re


def solve(description: str, question: str) -> str:
    """Answer a question about a scene, or fail if its names do not fit the scene."""
    things = [
        dict(
            zip(
                ("size", "colour", "form", "row", "column"),
                re.fullmatch(r"(\w+) (\w+) (\w+) at (\d),(\d)", part).groups(),
                strict=True,
            )
        )
        for part in description.split("; ")
    ]
    for pattern, answer in _SOLVERS:
        if match := re.fullmatch(pattern, question):
            return answer(things, *match.groups())
    raise AssertionError(f"no solver reads {question!r}")


def _find(things, name):
    """Things that a name such as "star" or "red star" fits."""
    words = name.split()
    return [t for t in things if t["form"] == words[-1] and (len(words) == 1 or t["colour"] == words[0])]


def _the(things, name):
    (thing,) = _find(things, name)
    return thing


def _the_shape(things, colour):
    (thing,) = [t for t in things if t["colour"] == colour]
    return thing["form"]


def _count(things, colour):
    return str(sum(t["colour"] == colour for t in things))


def _where(things, name):
    return ["top", "middle", "bottom"][int(_the(things, name)["row"])]


def _sizes(things, first, second):
    return f"{_the(things, first)['size']} and {_the(things, second)['size']}"


def _digit(things, colour=None):
    (digit,) = [t["form"] for t in things if t["form"].isdigit() and colour in (None, t["colour"])]
    return digit


def _describe(things, name):
    thing = _the(things, name)
    return " ".join([thing["size"], thing["colour"], thing["form"], ["top", "middle", "bottom"][int(thing["row"])]])


def _holds(things, name, said):
    thing = _the(things, name)
    return "yes" if said in (thing["colour"], thing["size"]) else "no"


def _size(things, name):
    found = _find(things, name)
    assert len(found) < 2
    return found[0]["size"] if found else "none"


def _yes(truth):
    return "yes" if truth else "no"


def _letter(options, right):
    (letter,) = [letter for letter, value in re.findall(r"([A-D]) (\w+)", options) if value == right]
    return letter


_SOLVERS = [
    (r"What colour is the (\w+)\?", lambda s, a: _the(s, a)["colour"]),
    (r"Which colour has the (\w+)\?", lambda s, a: _the(s, a)["colour"]),
    (r"What shape is (\w+)\?", _the_shape),
    (r"Which shape is the (\w+) thing\?", _the_shape),
    (r"How many (\w+) things are there\?", _count),
    (r"Count the (\w+) things\.", _count),
    (r"Where is the ([\w ]+), top, middle or bottom\?", _where),
    (r"Compare the sizes of the ([\w ]+) and the ([\w ]+)\.", _sizes),
    (r"What sizes are the ([\w ]+) and the ([\w ]+)\?", _sizes),
    (r"(?:Describe|Caption) the ([\w ]+)\.", _describe),
    (r"Is the ([\w ]+) (\w+)\?", _holds),
    (r"Which digit is shown\?|Read the digit\.", _digit),
    (r"Which digit is (\w+)\?", _digit),
    (r"Read the (\w+) digit\.", _digit),
    (r"Is there a (\w+ \w+)\?", lambda s, a: _yes(_find(s, a))),
    (r"Do you see a (\w+ \w+)\?", lambda s, a: _yes(_find(s, a))),
    (r"What size is the (\w+ \w+)\?", _size),
    (r"How large is the (\w+ \w+)\?", _size),
    (r"What colour is the (\w+)\? (A .*)", lambda s, a, options: _letter(options, _the(s, a)["colour"])),
    (r"What shape is (\w+)\? (A .*)", lambda s, a, options: _letter(options, _the_shape(s, a))),
]
