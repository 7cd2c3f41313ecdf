"""Files that are complete or not there at all."""

import os
from collections.abc import Mapping
from pathlib import Path


def write_together(texts: Mapping[Path, str]) -> None:
    """Write all of these files, in this order, or none: a reader never finds half a file, and a full disk leaves what was there."""
    staged = {target: target.with_name(f".{target.name}.{os.getpid()}") for target in texts}
    try:
        for target, staging in staged.items():
            with staging.open("w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(texts[target])
                file.flush()
                os.fsync(file.fileno())
        for target, staging in staged.items():
            os.replace(staging, target)
    finally:
        for staging in staged.values():
            staging.unlink(missing_ok=True)
