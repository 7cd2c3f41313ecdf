"""Sampling in which each sample has random numbers of its own: what it is answered does not depend on what it is batched with."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor


class SeededChoice(LogitsProcessor):
    """Scores whose largest is a draw from softmax(z / T): z / T + Gumbel noise, so that greedy decoding samples.

    Args:
        seeds: one for each sample of the batch.
        temperature: T; 0 adds no noise, so that the likeliest token is chosen.
        ids: so many first ids are real; the others are never chosen.
    """

    def __init__(self, seeds: Sequence[int], *, temperature: float, ids: int) -> None:
        self.seeds = list(seeds)
        self.temperature = temperature
        self.ids = ids
        self._generators: list[torch.Generator] = []

    def __call__(
        self, input_ids: Int[Tensor, "samples _"], scores: Float[Tensor, "samples vocab"]
    ) -> Float[Tensor, "samples vocab"]:
        """See `LogitsProcessor`."""
        scores = scores.clone()
        scores[:, self.ids :] = -torch.inf
        if self.temperature == 0:
            return scores
        if not self._generators:
            self._generators = [torch.Generator(scores.device).manual_seed(seed) for seed in self.seeds]
        waits = torch.stack(
            [scores.new_empty(scores.shape[1]).exponential_(generator=generator) for generator in self._generators]
        )
        return scores / self.temperature - waits.log()
