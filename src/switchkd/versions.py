"""The version of this package, and of others: what results say they were made with."""

import platform
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def _own_version() -> str:
    """Of the installed package, or of the source tree that it runs from without having been installed."""
    try:
        return version("switchkd")
    except PackageNotFoundError:
        file = Path(__file__).parents[2] / "pyproject.toml"
        project = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {}) if file.is_file() else {}
        # a copied folder has neither: no reason to fail a run that is otherwise complete
        return str(project["version"]) if project.get("name") == "switchkd" else "0+unknown"


__version__ = _own_version()


def versions(*packages: str) -> dict[str, str]:
    """Python, switchkd and `packages` → version; a package that is not installed is left out."""
    known = {"python": platform.python_version(), "switchkd": __version__}
    for package in packages:
        try:
            known[package] = version(package)
        except PackageNotFoundError:
            continue
    return known
