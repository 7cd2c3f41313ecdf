"""Memory that the losses take by themselves is ordinary memory to everybody else."""

import pytest
import torch

from switchkd.losses import memory

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_memory_is_written_and_read_as_any_other(dtype, monkeypatch):
    taken = []
    pages = memory._private_pages
    monkeypatch.setattr(memory, "_private_pages", lambda count: taken.append(count) or pages(count))
    x = memory.empty(3, 4 * 2**20, dtype=dtype, device=CPU)
    assert taken == [x.numel() * x.itemsize]
    assert (x.shape, x.dtype, x.is_contiguous()) == ((3, 4 * 2**20), dtype, True)
    x.copy_(torch.arange(x.numel(), dtype=dtype).view_as(x))
    del taken[:], pages
    assert torch.equal(x[2, -2:], torch.tensor([x.numel() - 2, x.numel() - 1], dtype=dtype))


def test_small_memory_is_torchs_own(monkeypatch):
    monkeypatch.setattr(memory, "_private_pages", None)  # calling it would raise
    assert memory.empty(2, 3, dtype=torch.float32, device=CPU).shape == (2, 3)


def test_a_kernel_without_huge_pages_gives_ordinary_ones(monkeypatch):
    class Pages(memory.mmap.mmap):
        def madvise(self, *_):
            raise OSError(22, "Invalid argument")

    flags = memory.mmap.MAP_PRIVATE | memory.mmap.MAP_ANONYMOUS
    monkeypatch.setattr(memory, "_private_pages", lambda count: Pages(-1, count, flags=flags))
    x = memory.empty(1, 2**24, dtype=torch.float32, device=CPU)
    assert x.fill_(2).sum() == 2**25


def test_sparse_zeros_are_zeros_and_take_gradients_as_any_other():
    zeros = memory.sparse_zeros(5, 7, like=torch.ones((), dtype=torch.float64))
    assert torch.equal(zeros, torch.zeros(5, 7, dtype=torch.float64))
    zeros[2, 3] = 1
    assert zeros.sum() == 1
    assert memory.sparse_zeros(0, 7, like=zeros).shape == (0, 7)
