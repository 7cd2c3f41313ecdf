"""Which rows make a batch: rows of about one length, so that little is padding; on several ranks as many batches for each."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import Dataset, Sampler

from switchkd.batch import AnyBatch

#: Batches that are drawn together and sorted by length: enough to choose from, few enough to stay random.
POOL = 50


class LengthGroupedSampler(Sampler[int]):
    """Every row once, in random batches of about equal lengths.

    Pools of rows are drawn at random, sorted by length and cut into batches; then the batches are shuffled. One of the longest rows comes
    first, so that too little memory shows at once. The order depends on seed and epoch alone: it is the same on every rank and after
    resuming, which that of `transformers`' own sampler (drawn from torch's global generator) is not.

    Args:
        lengths: tokens of each row.
        batch_size: rows of all ranks together, so that no rank waits for another's longer rows.
        seed: of the order.
        epoch: asked whenever the rows are gone through.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, *, seed: int, epoch: Callable[[], int]) -> None:
        self.lengths = torch.tensor(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch())
        pool = self.batch_size * max(1, min(POOL, len(self) // (4 * self.batch_size)))
        batches: list[torch.Tensor] = []
        for drawn in torch.randperm(len(self), generator=generator).split(pool):
            batches += drawn[self.lengths[drawn].argsort(descending=True)].split(self.batch_size)
        last = [batches.pop()] if len(batches[-1]) < self.batch_size else []  # or it would shift those after it
        longest = max(range(len(batches)), key=lambda i: int(self.lengths[batches[i][0]]), default=0)
        order = [i for i in torch.randperm(len(batches), generator=generator).tolist() if i != longest]
        in_order = [batches[i] for i in [longest, *order]] if batches else []
        yield from torch.cat([*in_order, *last]).tolist()


class Filler(NamedTuple):
    """A place in a batch that no row is left for, and the row that is read there if the whole batch is such places."""

    row: Any


class FilledUp(Dataset[Any]):
    """Rows, and as many fillers behind them as make them a multiple of the rows that all ranks take together.

    Every rank has equally many batches then, and no row is learned twice where the last ones do not fill them all.
    """

    def __init__(self, rows: Any, multiple: int) -> None:
        self.rows = rows
        self.fillers = -len(rows) % multiple

    def __len__(self) -> int:
        return len(self.rows) + self.fillers

    def __getitem__(self, index: int) -> Any:
        """The row, or a filler."""
        return self.rows[index] if index < len(self.rows) else Filler(self.rows[0])


class FillersLast(Sampler[int]):
    """The order of another sampler, and the fillers of its rows behind it.

    `epoch` is asked whenever the rows are gone through: told to a loader, it does not reach a sampler of several ranks after batches
    were skipped (accelerate 1.15), so that a resumed run would go through the rows of the first epoch again.
    """

    def __init__(self, sampler: Sampler[int], filled: FilledUp, *, epoch: Callable[[], int]) -> None:
        self.sampler = sampler
        self.filled = filled
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.filled)

    def __iter__(self) -> Iterator[int]:
        if isinstance(self.sampler, SeedableRandomSampler):
            self.sampler.set_epoch(self.epoch())
        yield from self.sampler
        yield from range(len(self.filled.rows), len(self.filled))


class WithoutFillers:
    """Collates the rows of a batch; one of fillers alone becomes a batch to read and not to learn from, for all ranks must run."""

    def __init__(self, collate: Callable[[list[Any]], AnyBatch]) -> None:
        self.collate = collate

    def __call__(self, places: list[Any]) -> AnyBatch:
        """The batch of these places."""
        rows = [place for place in places if not isinstance(place, Filler)]
        return self.collate(rows) if rows else self.collate([places[0].row]).without_answers()
