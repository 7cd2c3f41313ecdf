"""A recipe as plain values, and as the file that stays with a run."""

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from switchkd.files import write_together
from switchkd.methods import METHODS, Method
from switchkd.methods.plus import Plus
from switchkd.methods.weighted import WEIGHTS, Weighted

if TYPE_CHECKING:
    from switchkd.recipe.schema import Recipe


def recipe_to_dict(recipe: "Recipe") -> dict[str, Any]:
    """The recipe as plain values, every default included: what `save_recipe` writes."""
    sections = ("teacher", "teachers", "student", "pair", "method", "data", "train", "stages", "on_policy", "evaluate")
    return {section: _plain_values(getattr(recipe, section)) for section in sections}


def _plain_values(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain_values(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain_values(item) for key, item in value.items()}
    if isinstance(value, Plus):
        return _plain_values(value.method) | value.weights
    if isinstance(value, Weighted):
        return _plain_values(value.method) | {WEIGHTS: _plain_values(value.weights)}
    if is_dataclass(value):
        plain = {field.name: _plain_values(getattr(value, field.name)) for field in fields(value)}
        return {"name": method_name(value)} | plain if isinstance(value, Method) else plain
    return value


def method_name(method: Method) -> str:
    """What a recipe calls a method: its name, or where the class of another package is imported from."""
    kind = type(method)
    return method.name if METHODS.get(method.name) is kind else f"{kind.__module__}:{kind.__qualname__}"


def save_recipe(recipe: "Recipe", path: str | Path) -> None:
    """Write the resolved recipe, whole or not at all; `load_recipe` reads the equal recipe back."""
    write_together({Path(path): yaml.safe_dump(recipe_to_dict(recipe), sort_keys=False, allow_unicode=True)})
