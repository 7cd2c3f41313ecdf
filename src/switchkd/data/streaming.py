"""Rows that are read as they come, by `datasets`: there is no index, and each row is encoded when it is drawn.

Every file is a shard. Shards are shuffled, and rows with those that come near them; ranks and worker processes read different shards where
there are enough, and different rows of all of them otherwise. The order depends on seed, epoch, ranks and workers alone.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path

import datasets
from datasets import Dataset
from datasets.distributed import split_dataset_by_node
from torch.utils.data import IterableDataset, get_worker_info

from switchkd.batch import AnyBatch
from switchkd.data.collate import EncodedSample
from switchkd.data.errors import DataError, SampleError
from switchkd.data.formats import FEATURES, SourceRows, image_folder, tagged_sources
from switchkd.data.forms import Row, check_columns
from switchkd.data.hub_sets import HubSet
from switchkd.data.row_form import row_id
from switchkd.data.sources import Source
from switchkd.data.tagged import AnyCollator
from switchkd.data.verdicts import NO_MEMORY

#: A worker tells of so many rows that cannot be used without waiting for a whole batch.
_TELL = 32


class RowStream:
    """What is read, in shards.

    Args:
        data: names, as `formats.load_rows` takes them.
        image_root: the folder that image paths begin in.
        columns: our names of columns → the data's.
        teachers: for each of the names, by whom its rows are taught where they do not say it.

    Raises:
        DataError: nothing is there, or there is no folder of images.
    """

    def __init__(
        self,
        data: Iterable[str],
        image_root: str | Path | None,
        columns: Mapping[str, str],
        teachers: Sequence[str | None] | None = None,
    ) -> None:
        check_columns(columns)
        self.columns = dict(columns)
        tagged = tagged_sources(list(data), teachers)
        sources = [(shard, teacher) for source, teacher in tagged for shard in _shards(source)]
        self.shards = [
            SourceRows(source, image_folder(source, image_root), columns, teacher) for source, teacher in sources
        ]

    def __str__(self) -> str:
        return f"a stream of {len(self.shards)} {'shard' if len(self.shards) == 1 else 'shards'}"

    @property
    def identity(self) -> str:
        """Changes with what the shards are, and in which order."""
        files = [
            (shard.source.name, shard.source.identity(), *([] if shard.teacher is None else [shard.teacher]))
            for shard in self.shards
        ]
        return f"{self} ({blake2b(json.dumps([files, self.columns]).encode(), digest_size=8).hexdigest()})"

    def head(self, count: int) -> Dataset:
        """The first rows, in the order of the shards.

        Raises:
            DataError: there is none, or no row has a column that `columns` names.
        """
        rows = list(islice(_rows_of(self.shards), count))
        if not rows:
            raise DataError(f"{self.shards[0].source.name}: has no rows")
        for shard in self.shards:
            if shard.noted.forms:
                shard.noted.check(shard.source.name, self.columns)
        return Dataset.from_list(rows, features=FEATURES)

    def shuffled(self, *, seed: int, buffer: int, rank: int, ranks: int) -> datasets.IterableDataset:
        """The rows that one rank reads; `buffer` of them are held, and drawn from at random."""
        stream = datasets.IterableDataset.from_generator(_rows_of, gen_kwargs={"shards": self.shards})
        return split_dataset_by_node(stream.shuffle(seed=seed, buffer_size=buffer), rank, ranks)


def _shards(source: Source) -> list[Source]:
    """A file is one; of a data set of the hub, each of its files is."""
    return list(source.shards()) if isinstance(source, HubSet) else [source]


def _rows_of(shards: list[SourceRows]) -> Iterator[Row]:
    for shard in shards:
        name = shard.source.name.rpartition("/")[2]
        for content, raw in shard.contents():
            named = isinstance(content, dict) and content.get("id") is not None
            yield shard.row(content, raw, row_id(content, raw.number) if named else f"{name}#{raw.number}")


@dataclass(frozen=True)
class Position:
    """How far one worker process has come with the batches that it has made."""

    epoch: int = 0
    #: Rows of the epoch that were drawn for them.
    drawn: int = 0
    #: Rows behind these that cannot be used and that it has told of already.
    told: int = 0


@dataclass(frozen=True)
class Drawn:
    """A batch of a worker, what it found on the way, and where it is now."""

    #: None: the worker has only something to tell.
    batch: AnyBatch | None
    worker: int
    position: Position
    #: Rows encoded since the last progress message.
    rows: int = 0
    #: Why some of them cannot be used.
    bad: tuple[str, ...] = ()
    #: Why the stream cannot be read any further.
    fault: str | None = None

    def pin_memory(self) -> "Drawn":
        """With the batch in memory that a GPU copies from without waiting."""
        return self if self.batch is None else replace(self, batch=self.batch.pin_memory())


class StreamedBatches(IterableDataset[Drawn | None]):
    """Batches without end of a stream's usable rows: behind its last row it begins again, in another order.

    Args:
        rows: of one rank.
        collator: makes the batches, and finds out which rows cannot be used.
        batch_size: usable rows of a batch.
        positions: where each worker goes on.
        turns: how often workers have said something so far: one after the other, so that it says whose turn is next.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        collator: AnyCollator,
        batch_size: int,
        positions: Mapping[int, Position],
        turns: int,
    ) -> None:
        self.rows, self.collator, self.batch_size = rows, collator, batch_size
        self.positions, self.turns = dict(positions), turns

    def __iter__(self) -> Iterator[Drawn | None]:
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        if number < self.turns % workers:
            yield None  # a loader begins with the first worker, whose turn is over
        position = self.positions.get(number, Position())
        try:
            yield from self._draw(number, position)
        except DataError as error:
            yield Drawn(None, number, position, fault=str(error))

    def _draw(self, worker: int, position: Position) -> Iterator[Drawn]:
        samples: list[EncodedSample] = []
        bad: list[str] = []
        looked, epoch, drawn, known = 0, position.epoch, position.drawn, position.told
        rows = deepcopy(self.rows)  # a data set keeps its epoch in memory that all workers share; each is in its own
        while True:
            rows.set_epoch(epoch)
            usable = drawn > 0
            for row in islice(rows, drawn, None):
                drawn, looked = drawn + 1, looked + 1
                try:
                    samples.append(self.collator.encode(row))
                    usable = True
                except (SampleError, MemoryError) as error:
                    told = known > 0
                    known -= told
                    looked = 0 if told and not known else looked
                    bad += [] if told else [_reason(row, error)]
                if len(samples) == self.batch_size:
                    position = Position(epoch, drawn)
                    yield Drawn(self.collator.join(samples), worker, position, looked, tuple(bad))
                    samples, bad, looked = [], [], 0
                elif len(bad) == _TELL:
                    position = replace(position, told=position.told + _TELL)
                    yield Drawn(None, worker, position, looked, tuple(bad))
                    bad, looked = [], 0
            if not usable:
                raise DataError(f"none of its {drawn} rows can be used" if drawn else "there are no rows")
            epoch, drawn = epoch + 1, 0


def _reason(row: Row, error: SampleError | MemoryError) -> str:
    return str(error) if isinstance(error, SampleError) else f"sample {row['id']!a}: {NO_MEMORY}"
