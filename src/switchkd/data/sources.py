"""What people name as data → sources, in order: files, data sets saved by `datasets`, of the hub, or in memory."""

import glob
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

from datasets import Dataset, DatasetDict, IterableDataset, load_from_disk

from switchkd.data.containers import ENDINGS, RawRow, ending, raw_rows, stored_rows
from switchkd.data.errors import DataError
from switchkd.data.hub_sets import named_set

#: The list of pictures in a folder of them, as `datasets` reads it (imagefolder), and what its rows call them.
_METADATA = "metadata"
PICTURE_FOLDER_COLUMNS = {"image": "file_name", "images": "file_names"}

#: How files are called that look like rows, in whatever they are packed.
_DATA_NAME = re.compile(r"\.(json|jsonl|ndjson|csv|tsv|parquet|arrow|tar|tgz)(\.(gz|bz2|xz|zst|lz4|zip))?$")

#: A name of data, several of them, or rows in memory.
Data: TypeAlias = str | Path | Dataset | Iterable[Any]


@runtime_checkable
class Source(Protocol):
    """One thing that holds rows."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def root(self) -> Path:
        """Where image paths begin if nobody says where."""

    @property
    def columns(self) -> dict[str, str]:
        """Columns with names that this kind of source has (ours → its)."""

    def identity(self) -> str | None:
        """The same as long as the rows are the same; None where that cannot be told without reading them."""

    def rows(self) -> Iterator[RawRow]:
        """The rows as they were written. Raises DataError where it cannot be read."""


def find_sources(data: Data) -> list[Source]:
    """Everything that `data` names, in order; files of a folder or a glob by their names.

    Raises:
        DataError: nothing is there, or a folder holds files of several formats.
    """
    if isinstance(data, Dataset | IterableDataset):
        return [Rows(data)]
    if isinstance(data, str | Path):
        return _named(data)
    if isinstance(data, dict):
        splits = f"the splits {', '.join(map(str, data))}" if isinstance(data, DatasetDict) else "named things"
        raise DataError(f"the data are {splits}: give one of them, or a list of rows")
    if isinstance(data, Sequence):
        if not data:
            raise DataError("the list of data files is empty")
        if all(isinstance(one, str | Path | Dataset) for one in data):
            return [source for one in data for source in find_sources(one)]
    return [Rows(data)]


def described(data: Data) -> str:
    """What data are called in results: as they were named, or as rows in memory are."""
    if isinstance(data, str | Path):
        return str(data)
    return ", ".join(dict.fromkeys(source.name for source in find_sources(data)))


def _named(data: str | Path) -> list[Source]:
    path = Path(data)
    if path.is_dir():
        return [SavedSet(path)] if _saved_by_datasets(path) else _shards(path)
    if path.exists():
        return [File(path)]
    if glob.has_magic(str(data)):
        matches = [Path(name) for name in sorted(glob.glob(str(data), recursive=True))]
        if matches:
            return [source for match in matches for source in _named(match)]
    if (of_hub := named_set(str(data))) is not None and ending(path) is None:
        return [of_hub]
    raise DataError(f"{data}: no " + ("file has such a name" if glob.has_magic(str(data)) else "such file or folder"))


def _saved_by_datasets(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("state.json", "dataset_dict.json"))


def _shards(folder: Path) -> list[Source]:
    files = sorted(file for file in folder.iterdir() if ending(file) and not file.name.startswith("."))
    files = [file for file in files if file.name.split(".")[0] == _METADATA] or files
    endings = sorted({str(ending(file)) for file in files})
    if not files:
        raise DataError(
            f"{folder}: is a folder with neither a data set written by datasets.save_to_disk (it has no state.json) nor files that end in "
            f"{', '.join(ENDINGS)}. Files in its folders: {folder}/**/*.parquet; a copy of a data set of the hub: {folder}:CONFIG:SPLIT"
        )
    if len(endings) > 1:
        raise DataError(f"{folder}: holds {' and '.join(endings)} files; name those you mean: {folder}/*{endings[0]}")
    _refuse_unread(folder, files, endings[0])
    return [File(file) for file in files]


def _refuse_unread(folder: Path, files: list[Path], kind: str) -> None:
    """Raise DataError where more files look like rows than those that are read, here or in folders below."""
    read = {file.name for file in files}
    # metadata of an image folder may have any JSON in its folder, such as a licence, and picture folders have annotations of their own
    siblings = [file for file in folder.iterdir() if file.name not in read and _DATA_NAME.search(file.name.lower())]
    if files[0].name.split(".")[0] == _METADATA:
        siblings = [file for file in siblings if not file.name.endswith(".json")]
    nested = [file for file in folder.glob("*/**/*") if _DATA_NAME.search(file.name.lower()) and file.suffix != ".json"]
    names = [str(file.relative_to(folder)) for file in (*siblings, *nested)]
    if others := sorted(name for name in names if not any(part.startswith(".") for part in Path(name).parts)):
        raise DataError(
            f"{folder}: {others[0]} is not read ({len(others)} such files), and {len(files)} others are: name those you mean, as "
            f"{folder}/*{kind}, or {folder}/**/*{kind} with those in folders below; other kinds must be unpacked or renamed first"
        )


def _stamp(path: Path) -> str:
    """Of every file of a source: where it is, its size, and when it was written."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return json.dumps([(str(file.resolve()), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files])


class File:
    """One file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)
        self.root = path.parent
        self.columns = PICTURE_FOLDER_COLUMNS if path.name.split(".")[0] == _METADATA else {}

    def identity(self) -> str:
        """Path, size and time of change."""
        return _stamp(self.path)

    def rows(self) -> Iterator[RawRow]:
        """See `containers.raw_rows`."""
        return raw_rows(self.path)


class SavedSet:
    """A folder that `datasets.save_to_disk` wrote."""

    columns: dict[str, str] = {}  # noqa: RUF012  # never changed

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)
        self.root = path

    def identity(self) -> str:
        """Paths, sizes and times of change of its files."""
        return _stamp(self.path)

    def rows(self) -> Iterator[RawRow]:
        """Its rows, with images undecoded."""
        try:
            self._refuse_files_outside()
            saved = load_from_disk(str(self.path))
        except DataError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self.path}: not a readable saved data set: {error}") from error
        if isinstance(saved, DatasetDict):
            raise DataError(
                f"{self.path}: holds the splits {', '.join(saved)}; name one of them, such as {self.path / str(min(saved))}"
            )
        return stored_rows(saved)

    def _refuse_files_outside(self) -> None:
        """Raise DataError where the list of files leads out of the folder: datasets would open them."""
        state = self.path / "state.json"
        if not state.is_file():
            return
        names = [entry["filename"] for entry in json.loads(state.read_text(encoding="utf-8"))["_data_files"]]
        for name in names:
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise DataError(
                    f"{state} names {name!a}, a file outside of its folder: save the data set anew, or remove that entry"
                )


class Rows:
    """Rows in memory: a `Dataset`, or anything that gives one row after another."""

    name = "the rows given"
    columns: dict[str, str] = {}  # noqa: RUF012  # never changed

    def __init__(self, rows: Iterable[Any]) -> None:
        if not isinstance(rows, Iterable):
            raise DataError(f"data must be a file, a folder, a name, a Dataset or rows, not {type(rows).__name__}")
        self.given = rows
        self.root = Path()

    def identity(self) -> str | None:
        """Of a `Dataset` in files, what `datasets` keeps of it."""
        in_files = isinstance(self.given, Dataset) and self.given.cache_files and not self._transformed()
        return f"dataset {self.given._fingerprint}" if in_files else None  # type: ignore[attr-defined]

    def _transformed(self) -> bool:
        return isinstance(self.given, Dataset) and self.given.format["type"] == "custom"

    def rows(self) -> Iterator[RawRow]:
        """The rows, with the images of a `Dataset` undecoded."""
        if isinstance(self.given, Dataset) and not self._transformed():
            return stored_rows(self.given)
        return (RawRow(None, number, row) for number, row in enumerate(self.given))
