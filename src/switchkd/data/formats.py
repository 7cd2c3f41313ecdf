"""Reading what people have: every supported file becomes the same rows (see `FEATURES`).

Formats, detected from the content: LLaVA JSON (`conversations` of human and gpt turns, `image`), and `messages` +
`images`; each in any container that `sources` reads. `row_form` makes one row of one row.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import ArrowBasedBuilder, Dataset, DatasetInfo, Features, Image, List, Split, SplitGenerator, Value
from datasets.exceptions import DatasetGenerationError

from switchkd.console import progress
from switchkd.data.cache_folder import cache_folder
from switchkd.data.errors import DataError, SampleError
from switchkd.data.row_form import Row, canonical_row, row_id, writable
from switchkd.data.sources import raw_rows, source_identity, source_paths

#: The canonical row. `source` says in which file it stands, and where; `kinds` has one entry per assistant turn; `problem` says why a row
#: cannot be used (None: nothing found while reading) and is reported by `index.build_index`. Of a message, `reasoning` is what an answer
#: was thought of before it (null: nothing), and `learned` whether it carries the loss.
FEATURES = Features(
    {
        "id": Value("string"),
        "source": Value("string"),
        "images": List(Image(decode=False)),
        "messages": List(
            {
                "role": Value("string"),
                "content": List({"type": Value("string"), "text": Value("string")}),
                "reasoning": Value("string"),
                "learned": Value("bool"),
            }
        ),
        "kinds": List(Value("string")),
        "problem": Value("string"),
    }
)
#: To be raised when this module makes other rows of the same file: what is in the cache counts no longer.
_VERSION = 2
#: Rows that are written at a time, fewer where they carry their images.
_CHUNK_ROWS, _CHUNK_BYTES = 1_000, 64 << 20

_log = logging.getLogger(__name__)


def load_rows(data: str | Path | Sequence[str | Path], image_root: str | Path | None = None) -> Dataset:
    """Read data files, whatever their format, into canonical rows (`FEATURES`).

    The first start writes the rows into the cache (`cache_folder`); later ones map them into memory from there, as long as every file has
    the path, size and time of change that it had.

    Image paths are relative to `image_root` (default: each file's folder); they become absolute here but are not opened.
    A row that cannot be used keeps its place, with `problem` set. Keys that nobody reads are named in the log, once for each file. Missing
    ids become the row's number, from 0, over all files; a repeated id gets `#` and that number.

    Args:
        data: a file, a data set saved by `datasets`, a folder of Parquet or JSON files, a glob, or several of these.
        image_root: the folder that image paths begin in.

    Raises:
        DataError: naming file and line or row, for files that are missing, truncated or of unknown format, and for those of which no row
            has a form that can be used.
    """
    sources = [(path, _root(path, image_root)) for path in source_paths(data)]
    identity = _identity(sources)
    builder = _CanonicalRows(sources, identity, cache_dir=str(cache_folder("rows")))
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


def _root(path: Path, image_root: str | Path | None) -> Path:
    root = Path(image_root) if image_root is not None else (path if path.is_dir() else path.parent)
    if not root.is_dir():
        raise DataError(f"image folder {root} (for {path}) does not exist")
    return root


def _identity(sources: list[tuple[Path, Path]]) -> str:
    """The same as long as nothing has changed that rows are made of."""
    files = [(str(path), source_identity(path), str(root.resolve())) for path, root in sources]
    return hashlib.blake2b(json.dumps([_VERSION, files]).encode(), digest_size=16).hexdigest()


class _CanonicalRows(ArrowBasedBuilder):  # type: ignore[misc]  # datasets ships no types
    """Writes the rows of all sources into the cache: wholly, or not at all."""

    def __init__(self, sources: list[tuple[Path, Path]], identity: str, *, cache_dir: str) -> None:
        self.sources = sources
        self.identity = identity
        super().__init__(cache_dir=cache_dir, config_name=identity)

    def _info(self) -> DatasetInfo:
        return DatasetInfo(features=FEATURES)

    def _split_generators(self, dl_manager: Any) -> list[SplitGenerator]:
        return [SplitGenerator(name=Split.TRAIN)]

    def _generate_tables(self) -> Iterator[tuple[int, pa.Table]]:
        pending: list[Row] = []
        pending_bytes = written = 0
        for row in progress(_canonical_rows(self.sources), "reading rows", None):
            pending.append(row)
            pending_bytes += sum(len(image["bytes"] or b"") for image in row["images"])
            if len(pending) == _CHUNK_ROWS or pending_bytes >= _CHUNK_BYTES:
                yield written, pa.Table.from_pylist(pending, FEATURES.arrow_schema)
                written, pending_bytes, pending = written + len(pending), 0, []
        if pending:
            yield written, pa.Table.from_pylist(pending, FEATURES.arrow_schema)
        if _identity(self.sources) != self.identity:
            raise DataError(f"{self.sources[0][0]}: the data changed while it was read; start again")


def _canonical_rows(sources: list[tuple[Path, Path]]) -> Iterator[Row]:
    """The rows of all sources, each with an id of its own."""
    ids: set[str] = set()
    count = 0
    for path, root in sources:
        before, refused, first_problem, unread = count, 0, "", Counter[str]()
        for raw in raw_rows(path):
            name = row_id(raw.content, count)
            source = f"{path}, " + ("" if raw.line is None else f"line {raw.line}, ") + f"row {raw.number}"
            row: Row = {"source": writable(source)}
            try:
                row |= canonical_row(raw.content, root, unread)
            except SampleError as error:
                problem = writable(f"{source} (id {name!a}): {error}")
                refused, first_problem = refused + 1, first_problem or problem
                row |= {"images": [], "messages": [], "kinds": [], "problem": problem}
            while name in ids:  # as in mix-665k, where tasks that share an image share its id
                name = f"{name}#{count}"
            ids.add(name)
            count += 1
            yield {"id": name, **row}
        if count == before:
            raise DataError(f"{path}: has no rows")
        if refused == count - before:
            raise DataError(
                first_problem + (f". None of the {refused} rows of the file can be used" if refused > 1 else "")
            )
        if unread:
            listed = ", ".join(f"`{key}` ({rows:,})" for key, rows in unread.most_common())
            _log.warning("%s: these keys are not read (in so many rows or turns): %s", path, listed)
