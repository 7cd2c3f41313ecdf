"""Two devices on a machine that has one: every tensor is on one of them, and an operation on both is an error, as it is for real."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from switchkd.pairing import Pair
from switchkd.pairing.crossing import Crossing

HERE, THERE = "here", "there"


class TwoDevices(TorchDispatchMode):
    """While it is active, results are where what they are made of is. Numbers without axes may be anywhere, as in torch."""

    def __init__(self) -> None:
        super().__init__()
        self._places: dict[int, tuple[Any, str]] = {}  # with the storage itself, or its number would be given again
        self.crossed: Counter[tuple[str, bool]] = Counter()

    def put(self, tensor: Tensor, place: str) -> Tensor:
        storage = tensor.untyped_storage()
        self._places[storage._cdata] = storage, place
        return tensor

    def place(self, tensor: Tensor) -> str | None:
        return self._places.get(tensor.untyped_storage()._cdata, (None, None))[1]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        places = {self.place(x) for x in given if x.ndim} - {None}
        assert len(places) < 2, f"{func} is given tensors of two devices"
        places = places or {self.place(x) for x in given[:1]} - {None}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result) if places else ():
            if isinstance(tensor, Tensor) and self.place(tensor) is None:
                self.put(tensor, *places)
        return result

    def divide(self, pair: Pair) -> None:
        """Put a pair's teacher there and all else here."""
        assert pair.teacher is not None
        assert pair.teacher_head is not None
        for name, parameter in pair.teacher_head.named_parameters():  # on one device a copy shares its memory
            setattr(pair.teacher_head, name, torch.nn.Parameter(parameter.detach().clone(), requires_grad=False))
        for tensor in (*pair.teacher.parameters(), *pair.teacher.buffers()):
            self.put(tensor, THERE)
        for tensor in (*pair.parameters(), *pair.buffers()):
            assert self.place(tensor) is None, (
                "it is part of what is prepared, moved and sharded, and lies with the teacher"
            )
            self.put(tensor, HERE)
        pair.crossing = Moves(self)


class Moves(Crossing):
    """Moves between the two, and counts what is moved: where to, and whether a gradient will come back."""

    def __init__(self, devices: TwoDevices) -> None:
        super().__init__(torch.device("cpu"), torch.device("cpu"))
        self.devices = devices

    def over(self, tree):
        return self._moved(tree, THERE)

    def back(self, tree):
        return self._moved(tree, HERE)

    def _moved(self, tree, place):
        return tree_map_only(Tensor, lambda tensor: self._move(tensor, place), tree)

    def _move(self, tensor, place):
        if self.devices.place(tensor) == place:
            return tensor
        if tensor.is_floating_point():
            self.devices.crossed[place, tensor.requires_grad] += 1
        return Move.apply(tensor, self.devices, place)


class Move(torch.autograd.Function):
    """A copy on the other device, whose gradient is copied the way back."""

    @staticmethod
    def forward(ctx, tensor, devices, place):
        ctx.devices, ctx.source = devices, devices.place(tensor) or HERE
        return devices.put(tensor.detach().clone(), place)

    @staticmethod
    def backward(ctx, gradient):
        return ctx.devices.put(gradient.clone(), ctx.source), None, None
