"""Every field of a recipe with its type, default and meaning, read off the dataclasses and the comments above their fields."""

import inspect
import re
import types
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from textwrap import fill
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from switchkd.methods import METHODS, Method
from switchkd.names import VisualWeights
from switchkd.recipe.schema import Recipe, Stage

#: A field, below its comments.
_FIELD = re.compile(r"((?:^    #: .*\n)*)^    (\w+): ", re.MULTILINE)


@dataclass(frozen=True)
class RecipeField:
    """One field. `default` is as YAML writes it; empty where the field must be given."""

    name: str
    type: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Section:
    """A section of a recipe: its dotted name, what it is, and its fields."""

    name: str
    meaning: str
    fields: tuple[RecipeField, ...]


def sections() -> list[Section]:
    """All sections, those of methods last."""
    found = list(_sections(Recipe, ""))
    found += _sections(VisualWeights, "method.weights")
    for name, method in METHODS.items():
        found.append(Section(f"method: {name}", _summary(method), _fields(method)))
    return found


def as_text(width: int) -> str:
    """All of it for a terminal of so many columns."""
    lines = []
    for section in sections():
        lines.append(fill(f"{section.name or 'a recipe'}: {section.meaning}", width, subsequent_indent="  "))
        for one in section.fields:
            default = f" = {one.default}" if one.default else " (required)"
            lines.append(f"  {one.name}: {one.type}{default}")
            lines.append(fill(one.meaning, width, initial_indent="      ", subsequent_indent="      "))
        lines.append("")
    return "\n".join(lines)


def as_markdown() -> str:
    """The page docs/fields.md."""
    lines = [
        "# Fields of a recipe",
        "",
        "`switchkd train --fields` shows the same. The code writes this page: `python -m switchkd.recipe.field_list > docs/fields.md`",
        "",
        "On a command line a field is `--section.field value`: `--train.learning-rate 1e-5`, `--stages.0.max-steps 100`.",
    ]
    for section in sections():
        lines += ["", f"## {section.name or 'Sections'}", "", _cell(section.meaning), ""]
        if section.fields:
            lines += ["| field | type | default | meaning |", "|---|---|---|---|"]
            for one in section.fields:
                default = f"`{_cell(one.default)}`" if one.default else "**required**"
                lines.append(f"| `{one.name}` | {_cell(one.type)} | {default} | {_cell(one.meaning)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _sections(kind: type, name: str) -> Iterator[Section]:
    """A dataclass, and those that its fields hold."""
    yield Section(name, _summary(kind), _fields(kind))
    for one in fields(kind):
        hint = get_type_hints(kind)[one.name]
        for inner in _inner(hint):
            # a stage's fields name what is another section's
            if kind is not Stage and inner is not kind:
                each = {tuple: "[n]", dict: ".NAME"}.get(get_origin(hint), "")
                yield from _sections(inner, f"{name}.{one.name}".lstrip(".") + each)


def _inner(hint: Any) -> list[type]:
    """The dataclasses in a type, without methods."""
    if isinstance(hint, type) and is_dataclass(hint):
        return [] if issubclass(hint, Method) else [hint]
    return list(dict.fromkeys(inner for option in get_args(hint) for inner in _inner(option)))


def _summary(kind: type) -> str:
    return " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())


def _fields(kind: type) -> tuple[RecipeField, ...]:
    meanings = {
        name: " ".join(comment.replace("    #: ", "").split())
        for comment, name in _FIELD.findall(inspect.getsource(kind))
    }
    hints = get_type_hints(kind)
    return tuple(
        RecipeField(one.name, _type(hints[one.name]), _default(one), meanings.get(one.name, "")) for one in fields(kind)
    )


def _type(hint: Any) -> str:
    """A type in the words of a recipe."""
    origin, options = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(map(str, options))
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(option) for option in options))
    if origin is tuple:
        return f"list of {_type(options[0]).replace(' or ', ' and ')}"
    if origin is dict:
        return "mapping"
    if hint is type(None):
        return "none"
    if isinstance(hint, type) and (is_dataclass(hint) or issubclass(hint, Method)):
        return "section"
    return {str: "text", int: "whole number", float: "number", bool: "true or false"}[hint]


def _default(one: Field[Any]) -> str:
    if one.default is MISSING and one.default_factory is MISSING:
        return ""
    value = one.default if one.default_factory is MISSING else one.default_factory()
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple) and not any(map(is_dataclass, value)):
        return f"[{', '.join(map(str, value))}]"
    if isinstance(value, tuple):
        return "[{name: train}]"
    if is_dataclass(value) or value == {}:
        return "{}"
    return str(value)


if __name__ == "__main__":
    print(as_markdown(), end="")
