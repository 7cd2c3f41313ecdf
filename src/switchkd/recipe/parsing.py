"""From what a user wrote (YAML, command line) to typed dataclasses, strictly: an unknown key is an error.

Knows nothing about recipes: `recipe.py` names the fields, this file fills them. The command line is laid over the YAML
before the types are checked, so that a flag may name what the file leaves out, and both get the same messages.
"""

import difflib
import math
import reprlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml


class RecipeError(ValueError):
    """What a user wrote cannot be run. The message names the file or the flag, the field, and what to do."""


class _StrictLoader(yaml.SafeLoader):
    """`yaml.safe_load`, and a key that appears twice is an error: YAML would keep the last one silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key `{key.value}` appears twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file of plain values.

    Raises:
        RecipeError: no such file, not text, not YAML, a tag that would build Python objects, a key twice, or no
            mapping; with the line where there is one.
    """
    try:
        # _StrictLoader derives from SafeLoader: no tag can build an object or call a function.
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except FileNotFoundError:
        names = [file.name for file in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
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
        raise RecipeError(f"{path}: must hold sections such as `student:` and `data:`, found {reprlib.repr(tree)}")
    return tree


def parse_flags(arguments: Sequence[str]) -> dict[str, str | list[str]]:
    """`--section.field value …` → dotted name → value, or a list where several follow.

    `--section.field=value` and `-` for `_` are understood.

    Raises:
        RecipeError: a flag without a value or without a section, a value without a flag, a flag twice.
    """
    flags: dict[str, list[str]] = {}
    name = ""
    for argument in arguments:
        if argument.startswith("--"):
            spelled, equals, value = argument.partition("=")
            name = spelled.removeprefix("--").replace("-", "_")
            if "." not in name:
                raise RecipeError(
                    f"{spelled}: unknown flag; a field of the recipe is written --section.field, as in --train.seed 7"
                )
            if name in flags:
                raise RecipeError(f"{spelled} is given twice")
            flags[name] = [value] if equals else []
        elif name:
            flags[name].append(argument)
        else:
            raise RecipeError(f"unexpected {argument!r}; fields of the recipe are changed with --section.field value")
    for name, values in flags.items():
        if not values:
            raise RecipeError(f"--{name} needs a value, as in --{name} VALUE (true or false for a switch)")
    return {name: values[0] if len(values) == 1 else values for name, values in flags.items()}


def lay_over(tree: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    """A copy of `tree` in which the field with the dotted `name` has `value`; sections that are missing are made."""
    return _lay_over(tree, name.split("."), value, flag=f"--{name}")


def _lay_over(node: Any, path: list[str], value: Any, flag: str) -> Any:
    if not path:
        return value
    head, rest = path[0], path[1:]
    if isinstance(node, list):
        if not head.isdecimal() or int(head) >= len(node):
            raise RecipeError(
                f"{flag}: the recipe has {len(node)} of these, numbered from 0, so {head!r} names none of them"
            )
        index = int(head)
        return [*node[:index], _lay_over(node[index], rest, value, flag), *node[index + 1 :]]
    if node is not None and not isinstance(node, Mapping):
        raise RecipeError(f"{flag}: the recipe holds {reprlib.repr(node)} there, which has no field {head!r}")
    node = dict(node or {})
    node[head] = _lay_over(node.get(head), rest, value, flag)
    return node


def suggestion(word: str, candidates: Sequence[str]) -> str:
    """`; did you mean …?` with the nearest of `candidates`, or nothing."""
    near = difflib.get_close_matches(word, candidates, n=1, cutoff=0.5)
    return f"; did you mean `{near[0]}`?" if near else ""


@dataclass(frozen=True)
class Builder:
    """Fills dataclasses from plain values.

    `named` holds, for a base class, the table of classes that a mapping's `name` chooses from. `source` is the file and
    `flags` the dotted names that came from the command line: a message says where the user wrote it.
    """

    root: type
    named: Mapping[type, Mapping[str, type]]
    source: str
    flags: Collection[str]

    def build(self, kind: Any, value: Any, at: str = "") -> Any:
        """`value` as a `kind`; `at` is its dotted name.

        Raises:
            RecipeError: an unknown or missing key, a value of the wrong type, or what the dataclass itself refuses.
        """
        origin = get_origin(kind)
        if origin in (Union, UnionType):
            if value is None or (isinstance(value, str) and value.lower() in ("none", "null")):
                return None
            (kind,) = (option for option in get_args(kind) if option is not NoneType)
            return self.build(kind, value, at)
        if origin is dict:
            given = self._mapping(value, at, "must be a mapping")
            return {str(key): self.build(get_args(kind)[1], item, f"{at}.{key}") for key, item in given.items()}
        if kind is Any:
            return value
        if origin is tuple:
            items = value if isinstance(value, list) else [value]
            return tuple(self.build(get_args(kind)[0], item, f"{at}.{index}") for index, item in enumerate(items))
        if origin is Literal:
            choices = get_args(kind)
            if value not in choices:
                hint = suggestion(str(value), choices)
                raise self.error(at, f"must be one of {', '.join(choices)}, got {reprlib.repr(value)}{hint}")
            return value
        if kind in self.named:
            return self._build_named(self.named[kind], value, at)
        if is_dataclass(kind):
            return self._build_dataclass(kind, value, at)
        return self._build_plain(kind, value, at)

    def error(self, at: str, message: str) -> RecipeError:
        """An error about the field `at`."""
        for flag in self.flags:
            if at == flag or at.startswith(f"{flag}."):
                return RecipeError(f"--{flag}: {message}")
        return RecipeError(f"{self.source}: {at}: {message}" if at else f"{self.source}: {message}")

    def _build_named(self, table: Mapping[str, type], value: Any, at: str) -> Any:
        value = self._mapping(value, at, f"must be a mapping with a `name` (one of {', '.join(table)}) and its knobs")
        name = value.get("name")
        if name not in table:
            hint = suggestion(str(name), list(table))
            found = "is missing" if name is None else f"{reprlib.repr(name)} is unknown"
            raise self.error(f"{at}.name", f"{found}{hint} (there are: {', '.join(table)})")
        return self._build_dataclass(table[name], {key: knob for key, knob in value.items() if key != "name"}, at)

    def _build_dataclass(self, kind: Any, value: Any, at: str) -> Any:
        value = self._mapping(value, at, "must be a section with fields of its own")
        hints = get_type_hints(kind)
        known = {field.name: field for field in fields(kind)}
        for key in value:
            if key not in known:
                raise self._unknown_key(str(key), at, list(known))
        for field in known.values():
            if field.name not in value and field.default is MISSING and field.default_factory is MISSING:
                raise self.error(at, f"needs `{field.name}`" if at else f"the section `{field.name}` is missing")
        values = {key: self.build(hints[key], item, f"{at}.{key}" if at else key) for key, item in value.items()}
        try:
            return kind(**values)
        except ValueError as error:
            # The dataclass names its field; if that came from a flag, say so.
            wrong = [
                flag for flag in self.flags if flag.rpartition(".")[0] == at and flag.rpartition(".")[2] in str(error)
            ]
            raise self.error(wrong[0] if wrong else at, str(error)) from None

    def _build_plain(self, kind: Any, value: Any, at: str) -> Any:
        wanted = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}[kind]
        try:
            if kind is bool and isinstance(value, str):
                return {"true": True, "false": False}[value.lower()]
            # YAML 1.1 reads 2e-5 as text, and every flag is text.
            if kind in (int, float) and isinstance(value, str):
                value = kind(value)
            if kind is float and isinstance(value, int) and not isinstance(value, bool):
                value = float(value)
        except (ValueError, KeyError):
            raise self.error(at, f"must be {wanted}, got {reprlib.repr(value)}") from None
        if type(value) is not kind:
            quote = ": put it in quotes" if kind is str and isinstance(value, int | float) else ""
            raise self.error(at, f"must be {wanted}, got {reprlib.repr(value)}{quote}")
        if kind is float and not math.isfinite(value):
            raise self.error(at, f"must be finite, got {value}")
        return value

    def _mapping(self, value: Any, at: str, message: str) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise self.error(at, f"{message}, got {reprlib.repr(value)}")
        return value

    def _unknown_key(self, key: str, at: str, known: list[str]) -> RecipeError:
        path = f"{at}.{key}" if at else key
        flag = next((flag for flag in self.flags if flag.startswith(f"{path}.")), path)
        hint = self._where_else(key) or suggestion(key, known) or f" (it has: {', '.join(known)})"
        return self.error(flag, f"{f'`{at}`' if at else 'a recipe'} has no `{key}`{hint}")

    def _where_else(self, key: str) -> str:
        """`; did you mean …?` where another section has a field of exactly this name."""
        for section, kind in get_type_hints(self.root).items():
            for option in get_args(kind) or (kind,):
                if is_dataclass(option) and key in {field.name for field in fields(option)}:
                    return f"; did you mean `{section}.{key}`?"
        return ""
