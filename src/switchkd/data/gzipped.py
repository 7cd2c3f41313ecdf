"""Files that gzip may have packed."""

import gzip
from io import BufferedReader
from pathlib import Path

_GZIP = b"\x1f\x8b"


def open_data(path: Path) -> BufferedReader:
    """A file's content, unpacked where gzip has packed it."""
    with path.open("rb") as file:
        packed = file.read(2) == _GZIP
    # buffered, because lines and single bytes are read
    return BufferedReader(gzip.open(path, "rb")) if packed else path.open("rb")
