"""Counts floating-point operations: those of matrix products, attention and convolutions; a product and a sum are two."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop


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


def operations_of(function: Any, arguments: tuple[Any, ...], named: dict[str, Any], result: Any) -> int:
    """The operations of one call of an operator; 0 for one that multiplies no matrices."""
    count = _OPERATIONS.get(getattr(function, "_overloadpacket", None))
    return 0 if count is None else int(count(*arguments, **named, out_val=result))


class CountOperations(TorchDispatchMode):
    """Counts what is computed inside a `with` block, forward and backward, and changes nothing.

    What gradient checkpointing computes a second time is not counted: it is how a step was made, and not part of its work.
    """

    #: How torch is told that functions which take functions may run here too.
    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        # a backward pass has gradients switched off, but where it runs a piece of the forward pass again
        again = torch._C._current_graph_task_id() != -1 and torch.is_grad_enabled()
        if not again:
            self.total += operations_of(func, args, kwargs, result)
        return result
