"""Files and folders that are complete or not there at all."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


def write_together(texts: Mapping[Path, str], errors: str = "backslashreplace") -> None:
    """Write all of these files, in this order, or none: a reader never finds half a file, and a full disk leaves what was there.

    Args:
        texts: file → its whole text. Folders are made where they are missing.
        errors: what becomes of half a character, as in `str.encode`.
    """
    staged = {target: target.with_name(f".{target.name}.{os.getpid()}") for target in texts}
    try:
        for target, staging in staged.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            with staging.open("w", encoding="utf-8", errors=errors) as file:
                file.write(texts[target])
                file.flush()
                os.fsync(file.fileno())
        for target, staging in staged.items():
            os.replace(staging, target)
    finally:
        for staging in staged.values():
            staging.unlink(missing_ok=True)


@contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """A hidden folder beside `target` to write into. It becomes `target` when the block ends, and is removed if the block raises.

    What was at `target` stays there until the new folder is complete and on disk. One process at a time may do this for a target.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    staging, previous = (target.with_name(f".{target.name}.{ending}") for ending in ("partial", "previous"))
    if previous.exists() and not target.exists():
        os.rename(previous, target)  # killed between the two renames below
    for leftover in (staging, previous):
        shutil.rmtree(leftover, ignore_errors=True)
    staging.mkdir()
    try:
        yield staging
        for path in (*staging.rglob("*"), staging):
            if not path.is_symlink():
                flush(path)
        if target.exists():
            os.rename(target, previous)
        os.rename(staging, target)
        flush(target.parent)
        shutil.rmtree(previous, ignore_errors=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def flush(path: Path) -> None:
    """Have a file, or what a folder lists, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
