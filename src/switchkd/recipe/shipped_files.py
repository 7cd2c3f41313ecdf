"""The recipes and studies that come with the package."""

import re
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


def described() -> dict[str, str]:
    """Name → what it is, in a line: the first sentence of the comment that the file begins with."""
    lines = {name: file.read_text(encoding="utf-8").split("\n\n")[0].splitlines() for name, file in shipped().items()}
    texts = {name: " ".join(line.lstrip("# ") for line in comment) for name, comment in lines.items()}
    return {name: re.split(r"(?<=[a-z)])[.:;?] ", text)[0].rstrip(".") for name, text in texts.items()}
