"""The recipes and studies that come with the package."""

from pathlib import Path

_FOLDER = Path(__file__).parents[1] / "recipes"


def shipped() -> dict[str, Path]:
    """Return the shipped recipes and studies: the name of each file without its ending, and where it is.

    Raises:
        FileNotFoundError: if the installation has none.
    """
    files = sorted(_FOLDER.glob("*.yaml"))
    if not files:
        raise FileNotFoundError(f"{_FOLDER} has no recipes: reinstall switchkd")
    return {file.stem: file for file in files}
