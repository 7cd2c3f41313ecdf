"""Counts what is alive and what is computed while a step runs on tensors without memory."""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from switchkd.train.operations import operations_of


class Live(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, and the most there have been.

    What is made of the batch alone, and whole numbers, are real; whatever weights had a part in is fake.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = self.flops = 0
        self._known: dict[int, tuple[int, weakref.ref[torch.UntypedStorage]]] = {}
        self._here = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE and isinstance(args[0], FakeTensor):  # more than every second call
            return args[0].fake_device
        kwargs = kwargs or {}
        given = list(_tensors((*args, *kwargs.values())))
        if given and not any(isinstance(x, FakeTensor) for x in given):
            with unset_fake_temporarily():
                return self._counted(func(*args, **kwargs))
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0.5  # of a loss that nobody knows; it is only asked whether it is 1
        if func is _SUM_OF_OTHER_TYPE:  # bf16 factors, a float32 sum: torch has no shapes for it
            return kwargs["out"]
        if func is torch.ops.aten.index.Tensor:  # how many places a mask has is known where the mask is
            args = (args[0], [_places(index) for index in args[1]])
            args = (args[0], [index for group in args[1] for index in group])
        result = func(*args, **kwargs)
        self.flops += operations_of(func, args, kwargs, result)
        if not given and isinstance(result, Tensor) and not result.dtype.is_floating_point:
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        return self._counted(result)

    def _counted(self, result: Any) -> Any:
        for tensor in _tensors((result,)):
            if tensor.is_floating_point():
                self.add(tensor.untyped_storage())
        return result

    def add(self, storage: torch.UntypedStorage) -> None:
        """Count a storage for as long as it lives."""
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes() if self._here else 0
        self._known[key] = size, weakref.ref(storage, lambda gone: self._drop(key))
        self.bytes += size
        self.peak = max(self.peak, self.bytes)

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """What is made meanwhile lies on another device, and takes nothing of this one."""
        self._here = False
        try:
            yield
        finally:
            self._here = True

    def of_another_device(self, function: Callable[..., Any], *, back: bool) -> Callable[..., Any]:
        """A function that computes there; gradients on their way back through it count as if they were here, one layer's at a time.

        Args:
            function: what computes.
            back: whether what it gives comes here.
        """

        def call(*arguments: Any) -> Any:
            with self.elsewhere():
                result = function(*arguments)
            for tensor in _tensors((result,)) if back else ():
                self._known.pop(tensor.untyped_storage()._cdata, None)
                self.add(tensor.untyped_storage())
            return result

        return call

    def _drop(self, key: int) -> None:
        self.bytes -= self._known.pop(key)[0]


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Those that an operation is given or gives, in lists too. It runs for each of thousands."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


#: Where a tensor is.
_DEVICE = torch.ops.prim.device.default
#: A product of bf16 factors with a float32 sum; there is none before torch 2.8.
_SUM_OF_OTHER_TYPE = getattr(torch.ops.aten.addmm, "dtype_out", None)


def _places(index: Tensor | None) -> list[Tensor | None]:
    if index is None or index.dtype != torch.bool or isinstance(index, FakeTensor):
        return [index]
    with unset_fake_temporarily():
        return list(index.nonzero().unbind(dim=1))
