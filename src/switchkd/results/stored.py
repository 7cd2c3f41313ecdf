"""Typed values ↔ JSON files: one reader for all results, which says what file and field is wrong."""

import dataclasses
import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

_T = TypeVar("_T")


def read_json(path: Path, what: str) -> Any:
    """The content of a JSON file; `what` it should hold is for the message.

    Raises:
        ValueError: naming the file, if it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as {what}: {error}") from None


class UnfinishedLineError(ValueError):
    """The last line cannot be read, and has no line feed: whoever wrote it was ended."""


def read_lines(path: Path, what: str) -> Iterator[tuple[str, Any]]:
    """Each line of a JSONL file, with what a message calls it (`FILE, line 3`).

    Lines end at a line feed alone: an answer may hold any of the other characters that Unicode ends a line at.

    Raises:
        ValueError: naming the file, and the line where it is one; an `UnfinishedLineError` where that is the last one, cut off.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as {what}: {error}") from None
    lines = text.removesuffix("\n").split("\n")
    for number, line in enumerate(lines if lines != [""] else [], start=1):
        place = f"{path}, line {number}"
        try:
            yield place, json.loads(line)
        except ValueError as error:
            cut = number == len(lines) and not text.endswith("\n")
            raise (UnfinishedLineError if cut else ValueError)(f"{place}: cannot be read as {what}: {error}") from None


def to_json(value: Any) -> str:
    """A tree of plain values as the text of a file."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def to_lines(values: Any) -> str:
    """Dataclasses, one line of JSON each."""
    return "".join(json.dumps(dataclasses.asdict(value), ensure_ascii=False) + "\n" for value in values)


def build(kind: type[_T], tree: Any, where: str, what: str) -> _T:
    """A dataclass from a tree of plain values. Fields that it does not know are left out, and those with a default may be missing.

    A field whose metadata has a name `stored` is called that in the file.

    Args:
        kind: the dataclass.
        tree: what a file holds.
        where: the file, or the file and its line, for the message.
        what: what it should hold, for the message.

    Raises:
        ValueError: naming the place and every field that is missing, or the one that has another type.
    """
    fields = {field.metadata.get("stored", field.name): field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    given = tree if isinstance(tree, dict) else {}
    absent = (dataclasses.MISSING, dataclasses.MISSING)
    required = [name for name, field in fields.items() if (field.default, field.default_factory) == absent]
    if missing := sorted(set(required) - given.keys()):
        raise ValueError(f"{where}: holds no {what}: {', '.join(missing)} is missing")
    hints = get_type_hints(kind)
    values = {
        field.name: _value(hints[field.name], given[name], f"{where}: holds no {what}: {name}", what)
        for name, field in fields.items()
        if name in given
    }
    return kind(**values)


def _value(hint: Any, value: Any, where: str, what: str) -> Any:
    """`value` as its type hint says."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return None if value is None else _value(arguments[0], value, where, what)
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where, what)  # type: ignore[arg-type]
    if origin is dict and isinstance(value, dict):
        return {key: _value(arguments[1], entry, f"{where}.{key}", what) for key, entry in value.items()}
    if origin is tuple and isinstance(value, list):
        return tuple(_value(arguments[0], entry, f"{where}[{index}]", what) for index, entry in enumerate(value))
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise ValueError(f"{where} must be {getattr(hint, '__name__', hint)}, not {value!r}")
