"""Batches of rows of about one length, so that little of them is padding."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Sampler

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
