"""What a user wrote, in YAML and on the command line, as plain values that `typed_fields` makes a recipe of.

Flags are laid over the YAML before the types are checked, so that a flag may name what the file leaves out, and both get the same messages.
"""

import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from switchkd.typed_fields import RecipeError as RecipeError
from switchkd.typed_fields import suggestion as suggestion


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
