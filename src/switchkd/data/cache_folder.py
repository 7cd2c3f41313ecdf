"""Where everything lies that can be made again from the user's files."""

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """The part called `name` of the cache: below the environment variable `SWITCHKD_CACHE`, or `~/.cache/switchkd`. It is made."""
    folder = Path(os.environ.get("SWITCHKD_CACHE") or Path.home() / ".cache" / "switchkd").resolve() / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
