"""One file → its rows as they were written, one after another: no file is ever whole in memory."""

import csv
import gzip
import zlib
from collections.abc import Iterator
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, IterableDataset

from switchkd.data.errors import DataError, SampleError
from switchkd.data.gzipped import open_data
from switchkd.data.json_list import LONGEST_ROW_BYTES, read_json, read_json_list
from switchkd.data.tar_rows import read_tar

#: What a folder of files may hold. Formats are told from the content, but for tables of text and archives.
TABLES, ARCHIVES = (".csv", ".tsv"), (".tar", ".tar.gz", ".tgz")
ENDINGS = (".parquet", ".json", ".jsonl", *TABLES, *(f"{e}.gz" for e in (".json", ".jsonl", *TABLES)), *ARCHIVES)
_ROWS_AT_A_TIME = 32
#: The same of a row group with so many bytes that pictures must be in it.
_PICTURES_AT_A_TIME, _LARGE_GROUP_BYTES = 8, 256 << 20
_BOM = b"\xef\xbb\xbf"


class RawRow(NamedTuple):
    """A row as it was written. `line` is where it begins, in a text file; `number` counts the rows of the file, from 0."""

    line: int | None
    number: int
    content: Any


def ending(path: Path) -> str | None:
    """Which of `ENDINGS` a name has; the longest."""
    name = path.name.lower()
    return max((one for one in ENDINGS if name.endswith(one)), key=len, default=None)


def raw_rows(path: Path) -> Iterator[RawRow]:
    """The rows of one file.

    Raises:
        DataError: of an unknown format, cut off, or not readable; with the line, where there are lines.
    """
    try:
        for number, (line, content) in enumerate(_places(path)):
            yield RawRow(line, number, content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: not a readable gzip file, perhaps cut off: {error}") from error


def _places(path: Path) -> Iterator[tuple[int | None, Any]]:
    """The line where each row begins, in a text file, and the row."""
    kind = ending(path)
    if kind in ARCHIVES:
        return ((None, row) for row in read_tar(path))
    head = _head(path)
    if not head:
        raise DataError(f"{path}: is empty")
    if head.startswith(b"PAR1"):
        return ((None, row) for row in _parquet_rows(path))
    if kind is not None and kind.removesuffix(".gz") in TABLES:
        return _table_rows(path)
    if head.startswith(b"["):
        return read_json_list(path)
    if head.startswith(b"{"):
        return read_json(path)
    raise DataError(
        f"{path}: unknown format; looked for a JSON list ('['), JSON lines or an object ('{{'), Parquet ('PAR1'), names that end in "
        f"{', '.join((*TABLES, *ARCHIVES))}, or a folder written by save_to_disk, but the file starts with {head[:16]!r}"
    )


def _head(path: Path) -> bytes:
    """The first bytes that are neither a byte order mark nor white space."""
    with open_data(path) as file:
        head = file.read(4096).removeprefix(_BOM).lstrip()
        while not head and (more := file.read(4096)):
            head = more.lstrip()
    return head


def _table_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a table of text with a head line; cells that are empty are left out."""
    csv.field_size_limit(LONGEST_ROW_BYTES)
    with open_data(path) as file, TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        first = text.readline()
        separator = max("\t,;|", key=first.count)
        try:
            names = next(csv.reader([first], delimiter=separator, strict=True))
            if len(set(names)) < len(names):
                raise DataError(f"{path}, line 1: two columns have one name: {', '.join(names)}")
            reader = csv.reader(text, delimiter=separator, strict=True)
            before = 1
            for cells in reader:
                line, before = before + 1, 1 + reader.line_num
                if cells:
                    yield line, _table_row(names, cells)
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 text: {error}") from error
        except csv.Error as error:
            raise DataError(f"{path}, line {before + 1}: not a readable table, perhaps cut off: {error}") from error


def _table_row(names: list[str], cells: list[str]) -> Any:
    if len(cells) != len(names):
        return SampleError(f"the row has {len(cells)} cells and the head line {len(names)} names; they must be equal")
    return {name: cell for name, cell in zip(names, cells, strict=True) if cell}


def _parquet_rows(path: Path) -> Iterator[Any]:
    done = 0
    try:
        # Not all of a row group's bytes at once: it may hold gigabytes of pictures.
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for group in range(file.num_row_groups):
                yield from _group_rows(file, group)
                done += file.metadata.row_group(group).num_rows
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path}, from row {done}: not a readable Parquet file: {error}") from error


def _group_rows(file: pq.ParquetFile, group: int) -> Iterator[Any]:
    """The rows of a row group, some at a time; one at a time where some are too large for Arrow.

    Arrow's arrays of bytes hold two gigabytes, and it does not read more of them than that inside a list (`images`).
    """
    done = 0
    for at_a_time in (_PICTURES_AT_A_TIME if _is_large(file, group) else _ROWS_AT_A_TIME, 1):
        try:
            batches = file.iter_batches(at_a_time, row_groups=[group])
            for batch in islice(batches, done // at_a_time, None):
                rows = batch.to_pylist()
                yield from rows
                done += len(rows)
        except pa.ArrowNotImplementedError:
            if at_a_time == 1:
                raise
        else:
            return


def _is_large(file: pq.ParquetFile, group: int) -> bool:
    return bool(file.metadata.row_group(group).total_byte_size > _LARGE_GROUP_BYTES)


def stored_rows(rows: Dataset | IterableDataset) -> Iterator[RawRow]:
    """The rows as Arrow stores them: images stay undecoded."""
    number = 0
    for batch in rows.with_format("arrow").iter(batch_size=_PICTURES_AT_A_TIME):
        for row in batch.to_pylist():
            yield RawRow(None, number, row)
            number += 1
