"""What an encoder says of each row, measured once and kept in the cache.

Verdicts are written in shards while they are made, each wholly or not at all: a build that was killed goes on behind its last shard.
"""

import json
import os
import pickle
import shutil
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from switchkd.console import progress
from switchkd.data.cache_folder import cache_folder
from switchkd.data.errors import DataError, SampleError
from switchkd.data.row_videos import shown_number, video_files, videos_of
from switchkd.files import whole_file
from switchkd.lock import Lock

#: To be raised when a verdict means something else: what is in the cache counts no longer.
_VERSION = 3
#: So many verdicts are written at a time, and so many rows are worth a process.
_SHARD_ROWS = 2_000
#: So many rows go to a process at a time.
_BATCH_ROWS = 32
#: A file that is mapped into memory counts as memory of the process as far as it has been read: it is mapped anew after so many rows.
_ROWS_PER_MAPPING = 20_000


class Measured(NamedTuple):
    """What an encoder says of one row."""

    #: Tokens as trained on, after truncation, of the longer reader.
    length: int
    #: Answer tokens of the student.
    answers: int
    #: How many of these are compared with the teacher's: all, where there is no teacher or both read alike.
    compared: int
    #: The length before truncation.
    tokens: int
    #: Answer tokens of answers of one word, of 2 to 4 and of 5 or more, and how many of these are compared.
    answers_by_words: Sequence[int] = (0, 0, 0)
    compared_by_words: Sequence[int] = (0, 0, 0)


@runtime_checkable
class Encoder(Protocol):
    """Makes what models read of a row. Picklable, so that worker processes can run it."""

    @property
    def fingerprint(self) -> str:
        """Changes with all that `measure` depends on: processor, chat template, limits; the teacher's too, where it reads otherwise."""

    def fingerprint_of(self, row: dict[str, Any]) -> str:
        """The same of what is asked of this row, whose key has it."""

    def measure(self, row: dict[str, Any]) -> Measured:
        """Encode one canonical row. Raises `SampleError`, naming the row, where it cannot be used."""


class Verdict(NamedTuple):
    """What the index keeps of a row. `reason` says why it cannot be used."""

    key: str
    length: int
    answers: int
    compared: int
    tokens: int
    answers_by_words: Sequence[int]
    compared_by_words: Sequence[int]
    #: Of images and videos.
    image_count: int
    reason: str | None


_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("length", pa.int32()),
        ("answers", pa.int32()),
        ("compared", pa.int32()),
        ("tokens", pa.int32()),
        ("answers_by_words", pa.list_(pa.int32())),
        ("compared_by_words", pa.list_(pa.int32())),
        ("image_count", pa.int32()),
        ("reason", pa.string()),
    ]
)
NO_MEMORY = "there was not enough memory to encode it"


def open_verdicts(rows: Dataset, encoder: Encoder, *, measure: bool, recheck_pictures: bool = False) -> Dataset:
    """One `Verdict` for each row, from the cache; measured first where they are missing or have become wrong, if `measure`.

    Args:
        rows: canonical rows.
        encoder: what they are measured with.
        measure: whether this process measures.
        recheck_pictures: whether the picture files of usable rows are looked at again too, not only those of bad ones.

    Raises:
        DataError: they are missing, and are not to be measured here.
    """
    name = _digest(str(_VERSION), _fingerprint(rows), encoder.fingerprint, size=16)
    folder = cache_folder("index") / name
    finished = folder / "verdicts.arrow"
    if measure:
        folder.mkdir(exist_ok=True)
        # of another run, or of a node that shares the cache; freed when its holder dies
        with Lock(folder / "lock"):
            if not finished.exists():
                _write_arrow(_from_shards(rows, encoder, folder / "shards"), finished)
                shutil.rmtree(folder / "shards")
            else:
                _measure_changed(rows, encoder, finished, recheck_pictures=recheck_pictures)
    elif not finished.exists():
        raise DataError(
            f"{finished} is missing: the process of this node that had to write it has failed; see its error"
        )
    return Dataset.from_file(str(finished))


def _from_shards(rows: Dataset, encoder: Encoder, shards: Path) -> pa.Table:
    """Write the shards that are missing, and read them all."""
    shards.mkdir(exist_ok=True)
    files = {start: shards / f"{start:09}.parquet" for start in range(0, len(rows), _SHARD_ROWS)}
    missing = [start for start, file in files.items() if not file.exists()]
    numbers = [number for start in missing for number in range(start, min(start + _SHARD_ROWS, len(rows)))]
    remaining = iter(missing)
    pending: list[Verdict] = []
    for verdict in progress(_measure(rows, encoder, numbers), "checking samples", len(numbers)):
        pending.append(verdict)
        if len(pending) == _SHARD_ROWS:
            _write_parquet(pending, files[next(remaining)])
            pending = []
    if pending:
        _write_parquet(pending, files[next(remaining)])
    return pa.concat_tables([pq.read_table(file) for file in files.values()]).combine_chunks()


def _measure_changed(rows: Dataset, encoder: Encoder, finished: Path, *, recheck_pictures: bool) -> None:
    """Measure bad rows again whose images have changed, or for which there was no memory; good ones too if `recheck_pictures`."""
    table: pa.Table = Dataset.from_file(str(finished)).data.table
    bad = pc.indices_nonzero(pc.is_valid(table["reason"])).to_pylist()

    def is_changed(number: int, row: dict[str, Any]) -> bool:
        return row_key(row, encoder.fingerprint_of(row)) != str(table["key"][number].as_py())

    changed = [
        number
        for number in bad
        if table["reason"][number].as_py().endswith(NO_MEMORY) or is_changed(number, rows[number])
    ]
    if recheck_pictures:
        known = set(bad)
        looked = progress(enumerate(rows), "looking for changed pictures", len(rows))
        good = [n for n, row in looked if n not in known and _has_files(row) and is_changed(n, row)]
        changed = sorted([*changed, *good])
    if not changed:
        return
    measured = _table(list(progress(_measure(rows, encoder, changed), "checking changed samples", len(changed))))
    places = list(range(len(table)))
    for place, number in enumerate(changed, start=len(table)):
        places[number] = place
    _write_arrow(pa.concat_tables([table.cast(_SCHEMA), measured]).take(pa.array(places)).combine_chunks(), finished)


def _measure(rows: Dataset, encoder: Encoder, numbers: list[int]) -> Iterator[Verdict]:
    """The verdicts of these rows, in this order; by several processes where there are enough rows."""
    batches: Iterable[list[Verdict]] = DataLoader(
        _Measurements(rows, encoder),
        batch_size=_BATCH_ROWS,
        sampler=numbers,
        num_workers=min(len(numbers) // _SHARD_ROWS, os.cpu_count() or 1),
        collate_fn=_unchanged,
        # Its own: the loader must not draw from the global one that training is seeded with.
        generator=torch.Generator().manual_seed(0),
    )
    return chain.from_iterable(batches)


def _unchanged(batch: list[Verdict]) -> list[Verdict]:
    return batch


class _Measurements(TorchDataset[Verdict]):
    """The verdicts of rows by their numbers; picklable for worker processes."""

    def __init__(self, rows: Dataset, encoder: Encoder) -> None:
        self.rows: Dataset = rows
        self.encoder = encoder
        self._read = _ROWS_PER_MAPPING  # each worker maps them for itself, at its first batch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, numbers: list[int]) -> list[Verdict]:
        self._read += len(numbers)
        if self._read > _ROWS_PER_MAPPING:
            self._map_anew()
        return [self._verdict(row) for row in self.rows.__getitems__(numbers)]

    def _map_anew(self) -> None:
        """Let go of the pages of the files that have been read, before the files are opened again: that touches many of them."""
        self._read = 0
        if self.rows.cache_files:
            paths = pickle.dumps(self.rows)  # files travel as their paths
            del self.rows
            self.rows = pickle.loads(paths)

    def _verdict(self, row: dict[str, Any]) -> Verdict:
        key, images = row_key(row, self.encoder.fingerprint_of(row)), shown_number(row)
        try:
            return Verdict(key, *self.encoder.measure(row), images, None)
        except SampleError as error:
            return Verdict(key, *Measured(0, 0, 0, 0), images, str(error))
        except MemoryError:
            return Verdict(key, *Measured(0, 0, 0, 0), images, f"sample {row['id']!a}: {NO_MEMORY}")


def row_key(row: dict[str, Any], fingerprint: str) -> str:
    """What tells a row from all others, and from itself with another content, read by another encoder: its id and a digest."""
    images = [_image_identity(image) for image in row["images"]]
    videos = [_video_identity(video) for video in videos_of(row)]
    content = json.dumps([row["messages"], row["kinds"], images, *([videos] if videos else [])])
    return f"{row['id']}@{_digest(content, fingerprint, size=8)}"


def _has_files(row: dict[str, Any]) -> bool:
    return bool(videos_of(row)) or any(image["bytes"] is None for image in row["images"])


def _image_identity(image: dict[str, Any]) -> list[Any]:
    """An image is its bytes, or a path with size and time of change."""
    if image["bytes"] is not None:
        return [blake2b(image["bytes"], digest_size=16).hexdigest()]
    try:
        status = os.stat(image["path"])
    except (OSError, TypeError):  # TypeError: a refused path is not kept
        return [image["path"]]
    return [image["path"], status.st_size, status.st_mtime_ns]


def _video_identity(video: dict[str, Any]) -> list[Any]:
    """A video is that of its file, or of all its frames."""
    frames = [{"bytes": None, "path": file} for file in video_files(video)] or [video]
    return [_image_identity(frame) for frame in video["frames"] or frames]


def _fingerprint(rows: Dataset) -> str:
    """What tells rows from others: in files, what `datasets` keeps (of `load_rows`: by the files' identity); in memory, their content."""
    if rows.cache_files:
        return str(rows._fingerprint)
    digest = blake2b(digest_size=16)
    for batch in rows.with_format("arrow").iter(batch_size=_BATCH_ROWS):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as stream:
            stream.write_table(batch.combine_chunks())
        digest.update(sink.getvalue())
    return digest.hexdigest()


def _digest(*parts: str, size: int) -> str:
    digest = blake2b(digest_size=size)
    for part in parts:
        content = part.encode()
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


def _table(verdicts: list[Verdict]) -> pa.Table:
    return pa.table(list(zip(*verdicts, strict=True)), schema=_SCHEMA)


def _write_parquet(verdicts: list[Verdict], target: Path) -> None:
    with whole_file(target) as staging:
        pq.write_table(_table(verdicts), staging)


def _write_arrow(table: pa.Table, target: Path) -> None:
    with (
        whole_file(target) as staging,
        pa.OSFile(str(staging), "wb") as file,
        pa.ipc.new_stream(file, _SCHEMA) as stream,
    ):
        stream.write_table(table, max_chunksize=_SHARD_ROWS)
