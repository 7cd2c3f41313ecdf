"""Fresh memory on a CPU. What is as large as a head is not worth keeping between steps, but its first touch is worth a thought."""

import mmap
import sys
from contextlib import suppress

import torch
from jaxtyping import Float
from torch import Tensor

#: Below this there is nothing to gain.
_LARGE_BYTES = 32 * 2**20


def empty(*shape: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "..."]:
    """`torch.empty`, on Linux in huge pages where it is large and will be filled: page by page the kernel needs three times as long."""
    rows = torch.Size(shape)
    if sys.platform != "linux" or device.type != "cpu" or rows.numel() * dtype.itemsize < _LARGE_BYTES:
        return torch.empty(rows, dtype=dtype, device=device)
    memory = _private_pages(rows.numel() * dtype.itemsize)
    with suppress(OSError):  # a kernel that has none gives ordinary pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(rows)


def sparse_zeros(rows: int, columns: int, *, like: Tensor) -> Float[Tensor, "rows columns"]:
    """Zeros, on Linux without memory of their own until they are written: for what stays zero nearly everywhere.

    `torch.zeros` writes every page; fresh private pages of the system are zero already, also when they are read.
    """
    if sys.platform != "linux" or like.device.type != "cpu" or rows * columns == 0:
        return like.new_zeros(rows, columns)
    return torch.frombuffer(_private_pages(rows * columns * like.itemsize), dtype=like.dtype).view(rows, columns)


def _private_pages(count: int) -> mmap.mmap:
    return mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
