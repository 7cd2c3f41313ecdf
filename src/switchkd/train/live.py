"""Counts what is alive and what is computed while a step runs on tensors without memory."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop


class Live(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, and the most there have been.

    What is made of the batch alone, and whole numbers, are real; whatever weights had a part in is fake.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = self.flops = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if given and not any(isinstance(x, FakeTensor) for x in given):
            with unset_fake_temporarily():
                return self._counted(func(*args, **kwargs))
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0.5  # of a loss that nobody knows; it is only asked whether it is 1
        if func.name() == "aten::addmm.dtype_out":  # bf16 factors, a float32 sum: torch has no shapes for it
            return kwargs["out"]
        if func is torch.ops.aten.index.Tensor:  # how many places a mask has is known where the mask is
            args = (args[0], [_places(index) for index in args[1]])
            args = (args[0], [index for group in args[1] for index in group])
        result = func(*args, **kwargs)
        if func._overloadpacket in _OPERATIONS:
            self.flops += int(_OPERATIONS[func._overloadpacket](*args, **kwargs, out_val=result))
        if not given and isinstance(result, Tensor) and not result.dtype.is_floating_point:
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        return self._counted(result)

    def _counted(self, result: Any) -> Any:
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                self.add(tensor.untyped_storage())
        return result

    def add(self, storage: torch.UntypedStorage) -> None:
        """Count a storage for as long as it lives."""
        if storage._cdata in self._known:
            return
        self._known[storage._cdata] = storage.nbytes()
        self.bytes += storage.nbytes()
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._drop, storage._cdata)

    def _drop(self, key: int) -> None:
        self.bytes -= self._known.pop(key)


def _attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return int(sdpa_flop(query, key, value))


def _attention_backward(out: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return int(sdpa_backward_flop(out, query, key, value))


#: What counts the operations of a function; torch has nothing for attention on a CPU.
_OPERATIONS: dict[Any, Callable[..., Any]] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def _places(index: Tensor | None) -> list[Tensor | None]:
    if index is None or index.dtype != torch.bool or isinstance(index, FakeTensor):
        return [index]
    with unset_fake_temporarily():
        return list(index.nonzero().unbind(dim=1))
