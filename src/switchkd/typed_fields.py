"""Dataclasses whose fields hold what they say, wherever the values come from: a file, the command line, or Python.

Knows nothing about recipes: `recipe/schema.py` and `methods/` name the fields, this file fills and checks them. An unknown key is an error.
"""

import difflib
import math
import numbers
import os
import reprlib
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from functools import lru_cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

#: For a base class, the table of classes that a mapping's `name` chooses from.
ByName = Mapping[type, Mapping[str, type]]
#: What looks for a name that such a table does not have.
FindOther = Callable[[type, str], type | None]
#: For a base class, what every section of its kind may hold besides its fields, by its type, and what makes of both what is meant.
Additions = Mapping[type, tuple[Mapping[str, Any], Callable[[Any, dict[str, Any]], Any]]]
_NO_NAMES: ByName = {}


def _find_none(kind: type, name: str) -> None:
    return None


@lru_cache
def _types(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


class RecipeError(ValueError):
    """What a user wrote cannot be run. The message names the file or the flag, the field, and what to do."""


#: Numbers of other libraries that become Python's.
_OTHER_NUMBERS: Mapping[type, type] = {int: numbers.Integral, float: numbers.Real}
#: Of the letters of two words, the share that must be the same for one to be a guess at the other.
_NEAR = 0.66


def suggestion(word: str, candidates: Sequence[str]) -> str:
    """`; did you mean …?` with the nearest of `candidates`, or nothing."""
    near = difflib.get_close_matches(word, candidates, n=1, cutoff=_NEAR)
    return f"; did you mean `{near[0]}`?" if near else ""


def _option_for(value: Any, kinds: Sequence[Any]) -> Any:
    """Of one kind, or a plain value, a section or mapping with fields and a list of both: the one that `value` is written as."""
    fitting: list[Any] = []
    if isinstance(value, list | tuple):
        fitting = [kind for kind in kinds if get_origin(kind) is tuple]
    elif isinstance(value, Mapping) or is_dataclass(value):
        fitting = [kind for kind in kinds if is_dataclass(kind) or get_origin(kind) is dict]
    return (fitting or kinds)[0]


@dataclass(frozen=True)
class Builder:
    """Fills dataclasses from plain values.

    `by_name` holds, for a base class, the table of classes that a mapping's `name` chooses from. `source` is the file and `flags` are the
    dotted names that came from the command line: a message says where the user wrote it. `foreign` holds names that other tools have, and
    what they are here.
    """

    root: type
    by_name: ByName
    source: str
    flags: Collection[str]
    foreign: Mapping[str, str] = field(default_factory=dict)
    find_other: FindOther = _find_none
    additions: Additions = field(default_factory=dict)

    def build(self, kind: Any, value: Any, at: str = "") -> Any:
        """`value` as a `kind`; `at` is its dotted name.

        Raises:
            RecipeError: an unknown or missing key, a value of the wrong type, or what the dataclass itself refuses.
        """
        origin, options = get_origin(kind), get_args(kind)
        if origin in (Union, UnionType):
            if NoneType in options and (value is None or str(value).lower() in ("none", "null")):
                return None
            kind = _option_for(value, [option for option in options if option is not NoneType])
            if is_dataclass(kind) and str(value).lower() in ("true", "false"):  # a section with its defaults, or none
                return self.build(kind, {}, at) if str(value).lower() == "true" else None
            return self.build(kind, value, at)
        if value is True and at in self.flags and kind not in (bool, Any):
            raise RecipeError(f"--{at} needs a value, as in --{at} VALUE")
        if origin is dict:
            given = self._mapping(value, at, "a mapping")
            return {str(key): self.build(options[1], item, f"{at}.{key}") for key, item in given.items()}
        if origin is tuple:
            items = value if isinstance(value, list | tuple) else [value]
            return tuple(self.build(options[0], item, f"{at}.{index}") for index, item in enumerate(items))
        if origin is Literal:
            if value not in options:
                hint = suggestion(str(value), options)
                raise self._error(at, f"must be one of {', '.join(options)}, got {reprlib.repr(value)}{hint}")
            return value
        if kind in self.by_name or is_dataclass(kind):
            return self._build_section(kind, value, at)
        return value if kind is Any else self._build_plain(kind, value, at)

    def _error(self, at: str, message: str) -> RecipeError:
        """An error about the field `at`, or about the field of the section `at` that the message names."""
        for flag in self.flags:
            section, _, name = flag.rpartition(".")
            if f"{at}.".startswith(f"{flag}.") or (section == at and name in message):
                return RecipeError(f"--{flag}: {message}")
        return RecipeError(f"{self.source}: {at}: {message}" if at else f"{self.source}: {message}")

    def check_fields(self, section: Any, at: str = "") -> dict[str, Any]:
        """The fields of a dataclass that hold something else than they should when they are filled: what that is."""
        kind: Any = type(section)
        hints = _types(kind)
        prefix = f"{at}." if at else ""
        values = {one.name: getattr(section, one.name) for one in fields(section) if one.init}
        built = {name: self.build(hints[name], value, f"{prefix}{name}") for name, value in values.items()}
        return {name: value for name, value in built.items() if value is not values[name]}

    def _build_section(self, kind: Any, value: Any, at: str) -> Any:
        if isinstance(value, kind):
            if isinstance(value, type) or not is_dataclass(value):
                raise self._error(
                    at, f"must be a dataclass, whose fields are saved with a run, got {reprlib.repr(value)}"
                )
            changed = self.check_fields(value, at)
            filled: Any = value
            return replace(filled, **changed) if changed else value
        if kind in self.by_name and isinstance(value, str):
            value = {"name": value}
        value = dict(self._mapping(value, at))
        addable, add = self.additions.get(kind, ({}, None))
        if kind in self.by_name:
            table, name = self.by_name[kind], value.pop("name", None)
            if isinstance(name, str) and name not in table and (other := self._other_choice(kind, name, at)):
                table = {name: other}
            if name not in table:
                problem = "is missing" if name is None else f"{reprlib.repr(name)} is unknown"
                hint = suggestion(str(name), list(table))
                raise self._error(f"{at}.name", f"{problem}{hint} (there are: {', '.join(table)})")
            kind = table[name]
        hints = _types(kind)
        known = {one.name: one for one in fields(kind)}
        chosen = [name for name in addable if name in value and name not in known]
        added = {name: self.build(addable[name], value.pop(name), f"{at}.{name}") for name in chosen}
        for key in value:
            if key not in known:
                raise self._unknown_key(str(key), at, [*known, *addable])
        for one in known.values():
            if one.name not in value and one.default is MISSING and one.default_factory is MISSING:
                raise self._error(at, f"needs `{one.name}`" if at else f"the section `{one.name}` is missing")
        values = {key: self.build(hints[key], item, f"{at}.{key}" if at else key) for key, item in value.items()}
        try:
            built = kind(**values)
            return add(built, added) if add is not None and added else built
        except ValueError as error:
            raise self._error(at, str(error)) from None

    def _other_choice(self, kind: type, name: str, at: str) -> type | None:
        try:
            return self.find_other(kind, name)
        except ValueError as error:
            raise self._error(f"{at}.name", str(error)) from error

    def _build_plain(self, kind: Any, value: Any, at: str) -> Any:
        wanted = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}[kind]
        built = value
        with suppress(ValueError, KeyError):
            if kind is str and isinstance(value, os.PathLike):
                built = str(os.fspath(value))
            elif type(value) not in (int, bool) and isinstance(value, _OTHER_NUMBERS.get(kind, ())):
                built = kind(value)  # of numpy, say
            elif isinstance(value, str) and kind is bool:
                built = {"true": True, "false": False}[value.lower()]
            elif (isinstance(value, str) and kind is not str) or (type(value) is int and kind is float):
                built = kind(value)  # every flag is text, and YAML 1.1 reads 2e-5 as text
        if type(built) is not kind:
            quote = ": put it in quotes" if kind is str and isinstance(value, int | float) else ""
            raise self._error(at, f"must be {wanted}, got {reprlib.repr(value)}{quote}")
        if kind is float and not math.isfinite(built):
            raise self._error(at, f"must be finite, got {built}")
        return built

    def _mapping(self, value: Any, at: str, wanted: str = "a section with fields of its own") -> Mapping[str, Any]:
        if isinstance(value, type):
            raise self._error(
                at, f"must be {wanted}, got the class {value.__name__}: make one of it, {value.__name__}(…)"
            )
        if not isinstance(value, Mapping):
            raise self._error(at, f"must be {wanted}, got {reprlib.repr(value)}")
        return value

    def _unknown_key(self, key: str, at: str, known: list[str]) -> RecipeError:
        path = f"{at}.{key}" if at else key
        flag = next((flag for flag in self.flags if flag.startswith(f"{path}.")), path)
        section = f"`{at}`" if at else "a recipe"
        if key in self.foreign:
            return self._error(flag, f"{section} has no `{key}`: here that is {self.foreign[key]}")
        others = [
            f"{section_name}.{one.name}"
            for section_name, kind in _types(self.root).items()
            for option in get_args(kind) or (kind,)
            for choice in self.by_name.get(option, {"": option}).values()
            if is_dataclass(choice) and not at.endswith(section_name)
            for one in fields(choice)
        ]
        # the name of a field of another section; then one of this section that is spelled nearly so, then one of another
        elsewhere = [other for other in others if other.rpartition(".")[2] == key]
        hint = f"; did you mean `{elsewhere[0]}`?" if elsewhere else suggestion(key, known)
        if not hint and (near := suggestion(key, [other.rpartition(".")[2] for other in others])):
            name = near.split("`")[1]
            hint = near.replace(name, next(other for other in others if other.endswith(f".{name}")))
        return self._error(flag, f"{section} has no `{key}`{hint or ' (it has: ' + ', '.join(known) + ')'}")


def check_fields(section: Any, by_name: ByName = _NO_NAMES, find_other: FindOther = _find_none) -> None:
    """Hold a dataclass that is being made in Python to what its fields say: the first line of its `__post_init__`.

    What a file may say is understood here too: a list for a tuple, a path for its text, a mapping for a section.

    Raises:
        RecipeError: as for a file; the message begins with the name of the class.
    """
    kind = type(section)
    for name, value in Builder(kind, by_name, kind.__name__, (), find_other=find_other).check_fields(section).items():
        object.__setattr__(section, name, value)  # frozen, and not handed out yet
