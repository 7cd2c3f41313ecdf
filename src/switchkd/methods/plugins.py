"""Methods of other packages, by an entry point of the group `switchkd.methods` or as `package.module:Class`."""

from dataclasses import is_dataclass
from importlib import import_module
from importlib.metadata import entry_points

from switchkd.methods.method import Method

GROUP = "switchkd.methods"


def find_plugin(name: str) -> type[Method] | None:
    """The class of this name; None where it is no entry point and no `package.module:Class`.

    Raises:
        ValueError: it cannot be imported, or is no method.
    """
    points = list(entry_points(group=GROUP, name=name))
    if not points and ":" not in name:
        return None
    try:
        if points:
            found = points[0].load()
        else:
            module, _, attribute = name.partition(":")
            found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{name!r} cannot be imported ({error}); the package must be installed, or its folder be on PYTHONPATH"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Method) and is_dataclass(found) and hasattr(found, "name")):
        raise ValueError(
            f"{name!r} is no method: it must be a dataclass with a `name` that derives from switchkd.Method"
        )
    return found
