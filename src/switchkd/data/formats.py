"""Reading what people have: every supported file becomes the same rows (see `FEATURES`).

`sources` says what is read, `forms` which forms of rows are known; `row_form` makes one row of one row.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import ArrowBasedBuilder, Dataset, DatasetInfo, Features, Image, List, Split, SplitGenerator, Value
from datasets.exceptions import DatasetGenerationError
from datasets.table import InMemoryTable, concat_tables

from switchkd.console import progress
from switchkd.data.cache_folder import cache_folder
from switchkd.data.containers import RawRow
from switchkd.data.errors import DataError, SampleError
from switchkd.data.forms import Row, check_columns, renamed
from switchkd.data.row_form import Noted, canonical_row, row_id, writable
from switchkd.data.row_videos import embedded_bytes
from switchkd.data.sources import Data, Rows, Source, find_sources

#: The canonical row. `source` says in which file it stands, and where; a video is a file, a folder of frames or its `frames`; `kinds` has
#: one entry per assistant turn; `accepted` has all answers that are right, where there are more than that of the turn, and `metric` how it
#: is scored; `teacher` names the one of several that teaches the row (null: it does not say); `problem` says why a row cannot be used
#: (None: nothing found while reading) and is reported by `index.build_index`. Of a
#: message, `reasoning` is what an answer was thought of before it (null: nothing), and `learned` whether it carries the loss.
FEATURES = Features(
    {
        "id": Value("string"),
        "source": Value("string"),
        "images": List(Image(decode=False)),
        "videos": List({"bytes": Value("binary"), "path": Value("string"), "frames": List(Image(decode=False))}),
        "messages": List(
            {
                "role": Value("string"),
                "content": List({"type": Value("string"), "text": Value("string")}),
                "reasoning": Value("string"),
                "learned": Value("bool"),
            }
        ),
        "kinds": List(Value("string")),
        "accepted": List(Value("string")),
        "metric": Value("string"),
        "teacher": Value("string"),
        "problem": Value("string"),
    }
)
#: To be raised when this module makes other rows of the same file: what is in the cache counts no longer.
_VERSION = 8
#: Rows that are written at a time, fewer where they carry their images.
_CHUNK_ROWS, _CHUNK_BYTES = 1_000, 64 << 20


def load_rows(
    data: Data,
    image_root: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    teachers: Sequence[str | None] | None = None,
) -> Dataset:
    """Read data, whatever their format, into canonical rows (`FEATURES`).

    The first start writes the rows into the cache (`cache_folder`); later ones map them into memory from there, as long as every file has
    the path, size and time of change that it had. Rows that come from memory stay there.

    Image paths are relative to `image_root` (default: each file's folder), or lie in it; they become absolute here but are not opened.
    Rows that are handed over in Python may name files anywhere by absolute paths, unless `image_root` says where.
    A row that cannot be used keeps its place, with `problem` set. Keys that nobody reads are named in the log, once for each file. Missing
    ids become the row's number, from 0, over all files; a repeated id gets `#` and that number.

    Args:
        data: a file, a data set saved by `datasets`, a folder, a glob, a name on the hub (NAME:CONFIG:SPLIT), or several of these; a
            `Dataset`, or a list or other iterable of rows, whose images may be Pillow's.
        image_root: the folder that image paths begin in.
        columns: our names of columns (`forms.COLUMNS`) → the data's.
        teachers: for each of several `data`, the name that rows have as `teacher` if they do not say it themselves.

    Raises:
        DataError: naming file and line or row, for files that are missing, truncated or of unknown format, and for those of which no row
            has a form that can be used.
    """
    if isinstance(data, Dataset) and data.features == FEATURES:
        return data
    reading = Reading(data, image_root, columns or {}, teachers)
    if reading.identity is None:
        return Dataset(
            concat_tables([InMemoryTable(table) for table in _tables(reading)]), DatasetInfo(features=FEATURES)
        )
    builder = _CanonicalRows(reading, cache_dir=str(cache_folder("rows")))
    shown = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()  # ours is shown
    try:
        builder.download_and_prepare()
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, DataError | OSError):  # a fault of the file, or a full disk
            raise error.__cause__ from error.__cause__.__cause__
        raise
    finally:
        if not shown:
            datasets.enable_progress_bars()
    rows: Dataset = builder.as_dataset(split=Split.TRAIN)
    return rows


class Reading:
    """What is read, and how: sources, where their images are, and what their columns are called."""

    def __init__(
        self,
        data: Data,
        image_root: str | Path | None,
        columns: Mapping[str, str],
        teachers: Sequence[str | None] | None = None,
    ) -> None:
        check_columns(columns)
        self.columns = dict(columns)
        self.sources = [
            (source, image_folder(source, image_root), teacher) for source, teacher in tagged_sources(data, teachers)
        ]
        self._within = image_root is not None
        self.identity = self._identity()
        #: What was found in each source, when all has been read.
        self.noted: list[Noted] = []

    def _identity(self) -> str | None:
        """The same as long as nothing has changed that rows are made of."""
        files = [
            (source.name, source.identity(), str(root.resolve()), *([] if teacher is None else [teacher]))
            for source, root, teacher in self.sources
        ]
        if any(identity is None for _, identity, *_ in files):
            return None
        return hashlib.blake2b(
            json.dumps([_VERSION, files, self.columns, self._within]).encode(), digest_size=16
        ).hexdigest()

    def check_unchanged(self) -> None:
        """Raise DataError where a source is another than it was when reading began."""
        if self._identity() != self.identity:
            raise DataError(f"{self.sources[0][0].name}: the data changed while it was read; start again")

    def rows(self) -> Iterator[Row]:
        """The canonical rows of all sources, each with an id of its own.

        Raises:
            DataError: as `load_rows`.
        """
        ids: set[str] = set()
        count = 0
        for source, root, teacher in self.sources:
            anywhere = isinstance(source, Rows) and not self._within
            one = SourceRows(source, root, self.columns, teacher, anywhere=anywhere)
            self.noted.append(one.noted)
            before, refused, first_problem = count, 0, ""
            for content, raw in one.contents():
                name = row_id(content, count)
                row = one.row(content, raw, name)
                if row["problem"] and not row["messages"]:
                    refused, first_problem = refused + 1, first_problem or row["problem"]
                while name in ids:  # as in mix-665k, where tasks that share an image share its id
                    name = f"{name}#{count}"
                ids.add(name)
                count += 1
                yield {**row, "id": name}
            if count == before:
                raise DataError(f"{source.name}: has no rows")
            if refused == count - before:
                raise DataError(
                    first_problem + (f". None of the {refused} rows of the file can be used" if refused > 1 else "")
                )
            one.noted.check(source.name, self.columns)


class SourceRows:
    """The rows of one source, and what was found in them. Picklable where the source is.

    Args:
        source: what holds them.
        root: the folder that image paths begin in.
        columns: `data.columns`.
        teacher: by whom its rows are taught, as far as they do not say it.
        anywhere: absolute paths may lead anywhere.
    """

    def __init__(
        self,
        source: Source,
        root: Path,
        columns: Mapping[str, str],
        teacher: str | None = None,
        *,
        anywhere: bool = False,
    ) -> None:
        self.source, self.root, self.columns, self._anywhere = source, root, dict(columns), anywhere
        self.teacher = teacher
        self.noted = Noted()

    def contents(self) -> Iterator[tuple[Any, RawRow]]:
        """What was written, by the names that this project has for its columns, and where."""
        columns = dict(self.source.columns) | self.columns
        for raw in self.source.rows():
            yield renamed(raw.content, columns), raw

    def row(self, content: Any, raw: RawRow, name: str) -> Row:
        """The canonical row of what was written, or why there is none, as its `problem`; `name` is its id."""
        where = f"{self.source.name}, " + ("" if raw.line is None else f"line {raw.line}, ") + f"row {raw.number}"
        row: Row = {"id": name, "source": writable(where)}
        try:
            row |= canonical_row(content, self.root, self.noted, self.columns, anywhere=self._anywhere)
            if row["problem"]:
                row["problem"] = writable(f"{where} (id {name!a}): {row['problem']}")
        except SampleError as error:
            problem = writable(f"{where} (id {name!a}): {error}")
            row |= {
                "images": [],
                "videos": [],
                "messages": [],
                "kinds": [],
                "accepted": [],
                "metric": None,
                "teacher": None,
                "problem": problem,
            }
        return row if row["teacher"] is not None else {**row, "teacher": self.teacher}


def tagged_sources(data: Data, teachers: Sequence[str | None] | None) -> list[tuple[Source, str | None]]:
    """Everything that `data` names, and by whom its rows are taught where they do not say it."""
    if teachers is None or all(teacher is None for teacher in teachers):
        return [(source, None) for source in find_sources(data)]
    assert isinstance(data, Sequence), "one for each of several data"
    return [(source, teacher) for one, teacher in zip(data, teachers, strict=True) for source in find_sources(one)]


def image_folder(source: Source, image_root: str | Path | None) -> Path:
    """Where image paths of a source begin. Raises DataError where that is no folder."""
    root = source.root if image_root is None else Path(image_root)
    if not root.is_dir():
        raise DataError(f"image folder {root} (for {source.name}) does not exist")
    return root


def _tables(reading: Reading) -> Iterator[pa.Table]:
    """All rows, some at a time, fewer where they carry their images."""
    pending: list[Row] = []
    pending_bytes = 0
    for row in progress(reading.rows(), "reading rows", None):
        pending.append(row)
        pending_bytes += embedded_bytes(row)
        if len(pending) == _CHUNK_ROWS or pending_bytes >= _CHUNK_BYTES:
            yield pa.Table.from_pylist(pending, FEATURES.arrow_schema)
            pending_bytes, pending = 0, []
    if pending:
        yield pa.Table.from_pylist(pending, FEATURES.arrow_schema)


class _CanonicalRows(ArrowBasedBuilder):  # type: ignore[misc]  # datasets ships no types
    """Writes the rows of all sources into the cache: wholly, or not at all."""

    def __init__(self, reading: Reading, *, cache_dir: str) -> None:
        self.reading = reading
        super().__init__(cache_dir=cache_dir, config_name=reading.identity)

    def _info(self) -> DatasetInfo:
        return DatasetInfo(features=FEATURES)

    def _split_generators(self, dl_manager: Any) -> list[SplitGenerator]:
        return [SplitGenerator(name=Split.TRAIN)]

    def _generate_tables(self) -> Iterator[tuple[int, pa.Table]]:
        yield from enumerate(_tables(self.reading))
        self.reading.check_unchanged()
