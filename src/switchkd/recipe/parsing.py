"""From what a user wrote (YAML, command line) to typed dataclasses, strictly: an unknown key is an error.

Knows nothing about recipes: `schema.py` names the fields, this file fills them. Flags are laid over the YAML before the types are checked,
so that a flag may name what the file leaves out, and both get the same messages.
"""

import difflib
import math
import reprlib
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml


class RecipeError(ValueError):
    """What a user wrote cannot be run. The message names the file or the flag, the field, and what to do."""


class _StrictLoader(yaml.SafeLoader):
    """`yaml.safe_load`, and a key that appears twice is an error: YAML would keep the last one silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        first = {key.value: key for key in reversed(keys)}
        for key in keys:
            if key is not first[key.value]:
                problem = f"the key `{key.value}` appears twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file of plain values.

    Raises:
        RecipeError: no such file, not text, not YAML, a tag that would build Python objects, a key twice, or no mapping; with the line
            where there is one.
    """
    try:
        # _StrictLoader derives from SafeLoader: no tag can build an object or call a function.
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except FileNotFoundError:
        names = [file.name for file in path.parent.glob("*.yaml")]
        raise RecipeError(f"{path}: no such file{suggestion(path.name, names)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as text: {error}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = error.problem or "not YAML"
        if "could not determine a constructor for the tag" in problem:
            tag = problem.split("'")[1]
            problem = f"the tag {tag} is refused: a recipe holds plain values, never Python objects"
        raise RecipeError(f"{path}: line {line}: {problem}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise RecipeError(f"{path}: not YAML: {error}") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: must hold sections such as `student:` and `data:`, got {reprlib.repr(tree)}")
    return tree


def parse_flags(arguments: Sequence[str]) -> dict[str, str | list[str] | bool]:
    """`--section.field value …` or `--section.field=value` → dotted name (`-` is `_`) → value, a list where several follow, True for none.

    Raises:
        RecipeError: a flag without a value or without a section, a value without a flag, a flag twice.
    """
    flags: dict[str, list[str]] = {}
    name = ""
    for argument in arguments:
        if argument.startswith("--"):
            flag, equals, value = argument.partition("=")
            name = flag.removeprefix("--").replace("-", "_")
            if "." not in name:
                raise RecipeError(f"{flag}: unknown flag; a recipe's field is --section.field, as in --train.seed 7")
            if name in flags:
                raise RecipeError(f"{flag} is given twice")
            flags[name] = [value] if equals else []
        elif name:
            flags[name].append(argument)
        else:
            raise RecipeError(f"unexpected {argument!r}; a recipe's field is changed with --section.field value")
    # a flag by itself is a switch; where it is none, the builder says so
    return {name: values[0] if len(values) == 1 else values or True for name, values in flags.items()}


def lay_over(tree: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    """A copy of `tree` in which the field with the dotted `name` has `value`; sections that are missing are made.

    Raises:
        RecipeError: `name` leads into a plain value, or to an element that a list does not have.
    """

    def changed(node: Any, path: list[str]) -> Any:
        if not path:
            return value
        head, *rest = path
        if isinstance(node, list):
            numbers = [str(number) for number in range(len(node))]
            if head not in numbers:
                raise RecipeError(
                    f"--{name}: the recipe has {len(node)} of these, numbered from 0, so {head!r} names none of them"
                )
            return [changed(old, rest) if number == head else old for number, old in zip(numbers, node, strict=True)]
        if node is not None and node is not True and not isinstance(node, Mapping):
            raise RecipeError(f"--{name}: the recipe holds {reprlib.repr(node)} there, which has no field {head!r}")
        section = {} if node is True else dict(node or {})
        return section | {head: changed(section.get(head), rest)}

    tree = changed(tree, name.split("."))
    return dict(tree)


#: Of the letters of two words, the share that must be the same for one to be a guess at the other.
_NEAR = 0.66


def suggestion(word: str, candidates: Sequence[str]) -> str:
    """`; did you mean …?` with the nearest of `candidates`, or nothing."""
    near = difflib.get_close_matches(word, candidates, n=1, cutoff=_NEAR)
    return f"; did you mean `{near[0]}`?" if near else ""


def _option_for(value: Any, kinds: Sequence[Any]) -> Any:
    """Of one kind, or a plain value, a section with fields and a list of both: the one that `value` is written as."""
    fitting: list[Any] = []
    if isinstance(value, list):
        fitting = [kind for kind in kinds if get_origin(kind) is tuple]
    elif isinstance(value, Mapping):
        fitting = [kind for kind in kinds if is_dataclass(kind)]
    return (fitting or kinds)[0]


@dataclass(frozen=True)
class Builder:
    """Fills dataclasses from plain values.

    `by_name` holds, for a base class, the table of classes that a mapping's `name` chooses from. `source` is the file and `flags` are the
    dotted names that came from the command line: a message says where the user wrote it. `foreign` holds names that other tools have, and
    what they are here.
    """

    root: type
    by_name: Mapping[type, Mapping[str, type]]
    source: str
    flags: Collection[str]
    foreign: Mapping[str, str] = field(default_factory=dict)
    #: What looks for a name that a table of `by_name` does not have.
    find_other: Callable[[type, str], type | None] = lambda kind, name: None

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
            items = value if isinstance(value, list) else [value]
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

    def _build_section(self, kind: Any, value: Any, at: str) -> Any:
        if kind in self.by_name and isinstance(value, str):
            value = {"name": value}
        value = dict(self._mapping(value, at))
        if kind in self.by_name:
            table, name = self.by_name[kind], value.pop("name", None)
            if isinstance(name, str) and name not in table and (other := self._other_choice(kind, name, at)):
                table = {name: other}
            if name not in table:
                problem = "is missing" if name is None else f"{reprlib.repr(name)} is unknown"
                hint = suggestion(str(name), list(table))
                raise self._error(f"{at}.name", f"{problem}{hint} (there are: {', '.join(table)})")
            kind = table[name]
        hints = get_type_hints(kind)
        known = {one.name: one for one in fields(kind)}
        for key in value:
            if key not in known:
                raise self._unknown_key(str(key), at, list(known))
        for one in known.values():
            if one.name not in value and one.default is MISSING and one.default_factory is MISSING:
                raise self._error(at, f"needs `{one.name}`" if at else f"the section `{one.name}` is missing")
        values = {key: self.build(hints[key], item, f"{at}.{key}" if at else key) for key, item in value.items()}
        try:
            return kind(**values)
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
            if isinstance(value, str) and kind is bool:
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
            for section_name, kind in get_type_hints(self.root).items()
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
