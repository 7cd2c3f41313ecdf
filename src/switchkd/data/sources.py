"""The files that people name, and the rows in them as they were written, one after another: no file is ever whole in memory."""

import glob
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import DatasetDict, load_from_disk

from switchkd.data.errors import DataError
from switchkd.data.json_list import read_json_list

#: What a folder of files may hold, and a file's name need not show: formats are told from the content.
_ENDINGS = (".parquet", ".json", ".jsonl")
_ROWS_AT_A_TIME = 32
#: The same of a row group with so many bytes that pictures must be in it.
_PICTURES_AT_A_TIME, _LARGE_GROUP_BYTES = 8, 256 << 20
_BOM = b"\xef\xbb\xbf"


class RawRow(NamedTuple):
    """A row as it was written. `line` is where it begins, in a text file; `number` counts the rows of the file, from 0."""

    line: int | None
    number: int
    content: Any


def source_paths(data: str | Path | Sequence[str | Path]) -> list[Path]:
    """Every file and saved data set that `data` names, in order; those of a folder or a glob by their names.

    Raises:
        DataError: nothing is there, or a folder holds files of several formats.
    """
    if not isinstance(data, str | Path):
        if not data:
            raise DataError("the list of data files is empty")
        return [path for one in data for path in source_paths(one)]
    path = Path(data)
    if path.is_dir():
        return [path] if _saved_by_datasets(path) else _shards(path)
    if path.exists():
        return [path]
    if glob.has_magic(str(data)):
        matches = [Path(name) for name in sorted(glob.glob(str(data), recursive=True))]
        if not matches:
            raise DataError(f"{data}: no file has such a name")
        return [path for match in matches for path in source_paths(match)]
    raise DataError(f"{path}: no such file or folder")


def _saved_by_datasets(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("state.json", "dataset_dict.json"))


def _shards(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.iterdir() if file.suffix in _ENDINGS and not file.name.startswith("."))
    endings = sorted({file.suffix for file in files})
    if not files:
        raise DataError(
            f"{folder}: is a folder with neither a data set written by datasets.save_to_disk (it has no state.json) nor files that end in "
            f"{', '.join(_ENDINGS)}"
        )
    if len(endings) > 1:
        raise DataError(f"{folder}: holds {' and '.join(endings)} files; name those you mean: {folder}/*{endings[0]}")
    return files


def source_identity(path: Path) -> list[tuple[str, int, int]]:
    """Of every file of a source: where it is, its size, and when it was written."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return [(str(file.resolve()), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]


def raw_rows(path: Path) -> Iterator[RawRow]:
    """The rows of one file or saved data set.

    Raises:
        DataError: of an unknown format, cut off, or not readable; with the line, where there are lines.
    """
    places: Iterator[tuple[int | None, Any]]
    if path.is_dir():
        places = ((None, row) for row in _saved_rows(path))
    else:
        head = _head(path)
        if head.startswith(b"PAR1"):
            places = ((None, row) for row in _parquet_rows(path))
        elif head.startswith(b"["):
            places = read_json_list(path)
        elif head.startswith(b"{"):
            places = _json_lines(path)
        elif not head:
            raise DataError(f"{path}: is empty")
        else:
            raise DataError(
                f"{path}: unknown format; looked for a JSON list ('['), JSON lines ('{{'), Parquet ('PAR1') "
                f"or a folder written by save_to_disk, but the file starts with {head[:16]!r}"
            )
    for number, (line, content) in enumerate(places):
        yield RawRow(line, number, content)


def _head(path: Path) -> bytes:
    """The first bytes that are neither a byte order mark nor white space."""
    with path.open("rb") as file:
        head = file.read(4096).removeprefix(_BOM).lstrip()
        while not head and (more := file.read(4096)):
            head = more.lstrip()
    return head


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


def _refuse_files_outside(path: Path) -> None:
    """Raise DataError where a saved data set's list of files leads out of its folder: datasets would open them."""
    state = path / "state.json"
    if not state.is_file():
        return
    names = [entry["filename"] for entry in json.loads(state.read_text(encoding="utf-8"))["_data_files"]]
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DataError(
                f"{state} names {name!a}, a file outside of its folder: save the data set anew, or remove that entry"
            )


def _saved_rows(path: Path) -> Iterator[Any]:
    try:
        _refuse_files_outside(path)
        saved = load_from_disk(str(path))
    except DataError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a readable saved data set: {error}") from error
    if isinstance(saved, DatasetDict):
        raise DataError(
            f"{path}: holds the splits {', '.join(saved)}; name one of them, such as {path / str(min(saved))}"
        )
    for batch in saved.with_format("arrow").iter(
        batch_size=_PICTURES_AT_A_TIME
    ):  # Arrow storage: images stay undecoded
        yield from batch.to_pylist()


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        for number, content in enumerate(file, start=1):
            try:
                line = content.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\n")
            except UnicodeDecodeError as error:
                raise DataError(f"{path}, line {number}: not UTF-8 text") from error
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{path}, line {number}, column {error.colno}: not valid JSON, perhaps cut off: {error.msg}"
                ) from error
            except (RecursionError, ValueError) as error:
                raise DataError(f"{path}, from line {number}: JSON cannot be read: {error}") from error
            yield number, row
