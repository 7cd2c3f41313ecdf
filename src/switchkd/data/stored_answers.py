"""What a cache has of a teacher at some answers, as named tensors: hidden states, or largest logits."""

import math
from collections.abc import Mapping, Sequence
from zlib import crc32

import torch
from torch import Tensor

from switchkd.batch import Stored, TopLogits


def part_of(stored: Stored, part: slice) -> Stored:
    """Some of these answers."""
    return stored[part] if isinstance(stored, Tensor) else TopLogits(*(tensor[part] for tensor in stored))


def joined(stored: Sequence[Stored]) -> Stored | None:
    """The answers of several samples, one after the other; None for no samples."""
    if not stored:
        return None
    tensors = [tensors_of(one) for one in stored]
    return from_tensors({name: torch.cat([one[name] for one in tensors]) for name in tensors[0]})


def bytes_per_answer(stored: Stored) -> int:
    """Of what is stored, for one answer token."""
    return sum(tensor.element_size() * math.prod(tensor.shape[1:]) for tensor in tensors_of(stored).values())


def tensors_of(stored: Stored) -> dict[str, Tensor]:
    """By their names in a shard."""
    return {"hidden": stored} if isinstance(stored, Tensor) else stored._asdict()


def from_tensors(tensors: Mapping[str, Tensor]) -> Stored:
    """What these tensors are, by their names."""
    return tensors["hidden"] if "hidden" in tensors else TopLogits(**tensors)


def checksum_of(stored: Stored) -> int:
    """CRC-32 of all of it."""
    value = 0
    for tensor in tensors_of(stored).values():
        value = crc32(tensor.contiguous().view(torch.uint8).numpy().tobytes(), value)
    return value
