"""What a command names must be there. Told before model libraries are imported, which takes many times as long."""

import glob
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from switchkd.recipe.schema import Recipe


def require_data(name: str | Path) -> None:
    """Raise DataError for what can only be a file or a folder, and is not there. Other names are left to what reads them."""
    from switchkd.data.errors import DataError

    text, path = str(name), Path(name)
    only_a_path = bool(path.suffix) or text.startswith((".", "/", "~")) or text.count("/") > 1
    if only_a_path and ":" not in text and not glob.has_magic(text) and not path.exists():
        raise DataError(f"{path}: no such file or folder")


def require_model(name: str | Path) -> None:
    """Raise ValueError for a model that is not there, or in a form that is not transformers'."""
    from switchkd.models.refusals import refuse_absent, refuse_other_forms

    refuse_absent(name)
    refuse_other_forms(name)


def require_parts(recipe: "Recipe") -> None:
    """Raise ValueError where a package, data or a model of a recipe is missing."""
    from switchkd.recipe.packages import check_packages
    from switchkd.recipe.schema import data_names

    check_packages(recipe)
    asked = [] if recipe.evaluate is None else [recipe.evaluate.data]
    if recipe.data.validation is not None:
        asked += data_names(recipe.data.validation)
    for data in (*asked, *(name for stage in recipe.resolved_stages() for name in data_names(stage.data))):
        require_data(data)
    for path in dict.fromkeys(model.path for model in recipe.models.values()):
        require_model(path)


def require_paths(paths: Iterable[Path]) -> None:
    """Raise ValueError for the first that is not there."""
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path}: no such file or folder")
