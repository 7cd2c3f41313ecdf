"""Several samples in one row: which ones, and how they become a batch."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Dataset as TorchDataset

from switchkd.batch import AnyBatch, sample_id
from switchkd.data.errors import DataError
from switchkd.data.tagged import AnyCollator

#: Samples that are drawn together, and share rows: enough to fill gaps with, few enough for rows to stay random.
WINDOW = 4096

Row = dict[str, Any]


def pack(lengths: Sequence[int], limit: int, *, seed: int) -> list[list[int]]:
    """Which samples share a row of at most `limit` tokens: every sample in exactly one.

    Samples are drawn at random, and those of a window are laid into rows, the longest first, each where it leaves the least room. The same
    lengths, limit and seed give the same rows: on every rank, in every epoch, and after resuming.

    Raises:
        ValueError: for a sample that is longer than a row.
    """
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed)).tolist()
    packs: list[list[int]] = []
    for start in range(0, len(order), WINDOW):
        window = sorted(order[start : start + WINDOW], key=lambda number: -lengths[number])
        packs += _best_fit([(number, lengths[number]) for number in window], limit)
    return packs


def _best_fit(samples: list[tuple[int, int]], limit: int) -> list[list[int]]:
    """Samples as (number, length), each in the fullest row that has room for it."""
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []  # what is left of a row, and which it is; in order
    for number, length in samples:
        if length > limit:
            raise ValueError(f"sample {number} has {length} tokens and a packed row at most {limit}")
        place = bisect_left(room, (length, 0))
        if place == len(room):
            packs.append([number])
            left, row = limit - length, len(packs) - 1
        else:
            left, row = room.pop(place)
            packs[row].append(number)
            left -= length
        insort(room, (left, row))
    return packs


class Packs(TorchDataset[list[Row]]):
    """The rows of an index, several at a time: what a batch has in the place of single rows.

    Args:
        rows: of an index.
        limit: tokens of a packed row; None: as many as the longest sample has.
        seed: of what is packed with what.

    Raises:
        DataError: for a sample that is longer than a packed row, naming it.
    """

    def __init__(self, rows: Dataset, limit: int | None, *, seed: int) -> None:
        lengths: list[int] = rows["length"][:]
        longest = max(range(len(lengths)), key=lengths.__getitem__)
        self.rows = rows
        self.limit = limit or lengths[longest]
        if lengths[longest] > self.limit:
            raise DataError(
                f"sample {sample_id(rows[longest]['key'])!a} has {lengths[longest]} tokens and a packed row at most {self.limit}: raise "
                "data.max_length"
            )
        self.packs = pack(lengths, self.limit, seed=seed)
        #: Tokens of each packed row.
        self.lengths = [sum(lengths[number] for number in numbers) for numbers in self.packs]

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, index: int) -> list[Row]:
        """The rows of one packed row."""
        rows: list[Row] = self.rows.__getitems__(self.packs[index])
        return rows

    def most_images(self) -> list[Row]:
        """The rows of the packed row with most images, the longest of these."""
        images: list[int] = self.rows["image_count"][:]
        sizes = [
            (sum(images[n] for n in numbers), length) for numbers, length in zip(self.packs, self.lengths, strict=True)
        ]
        return self[max(range(len(sizes)), key=sizes.__getitem__)]

    def __str__(self) -> str:
        """How many there are, and how full."""
        padding = 1 - sum(self.lengths) / (len(self) * self.limit)
        return (
            f"{len(self.rows):,} samples in {len(self):,} packed rows of at most {self.limit:,} tokens: {len(self.rows) / len(self):.2f} "
            f"samples in a row, {padding:.1%} of it padding"
        )


class PackCollator:
    """Collates packed rows. Picklable, so that `DataLoader` workers can run it."""

    def __init__(self, collator: AnyCollator) -> None:
        self.collator = collator

    def __call__(self, packs: list[list[Row]]) -> AnyBatch:
        """The batch of these. Raises as `Collator` does."""
        samples = [self.collator.encode(row) for rows in packs for row in rows]
        return self.collator.join(samples, [len(rows) for rows in packs])
