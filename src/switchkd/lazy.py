"""Packages whose names are imported when they are first used, so that asking for one does not wait for the libraries of the others."""

from collections.abc import Callable, Mapping
from importlib import import_module


def on_use(package: str, modules: Mapping[str, tuple[str, ...]]) -> Callable[[str], object]:
    """The `__getattr__` of `package`: it finds a name in the module below it that `modules` lists the name under."""
    places = {name: module for module, names in modules.items() for name in names}

    def find(name: str) -> object:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value: object = getattr(import_module(f"{package}.{places[name]}"), name)
        return value

    return find
