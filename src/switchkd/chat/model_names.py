"""The models of a page, as they are written."""

from collections.abc import Sequence
from pathlib import Path


def by_name(models: Sequence[str]) -> dict[str, str]:
    """Name → path of models that are written as PATH or NAME=PATH.

    Raises:
        ValueError: a name that is there twice.
    """
    paths: dict[str, str] = {}
    for text in models:
        name, equals, path = text.partition("=")
        if not equals or Path(text).is_dir():
            name, path = text, text
        if name in paths:
            raise ValueError(f"two models are called {name!r}: give each its own name, NAME=PATH")
        paths[name] = path
    return paths
