"""What crosses between a student and a teacher that lies on another device."""

from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

_Tree = TypeVar("_Tree")


class Crossing:
    """Moves tensors to the teacher and back; nothing where both lie on one device. Gradients go the way back by themselves.

    Args:
        student: the student's device, where all is compared.
        teacher: the teacher's; None: the student's.
    """

    def __init__(self, student: torch.device, teacher: torch.device | None = None) -> None:
        self.student = student
        self.teacher = teacher

    def over(self, tree: _Tree) -> _Tree:
        """The same, where the teacher is."""
        return tree if self.teacher is None else _moved(tree, self.teacher)

    def back(self, tree: _Tree) -> _Tree:
        """The same, where the student is."""
        return tree if self.teacher is None else _moved(tree, self.student)

    def precision(self) -> AbstractContextManager[object]:
        """Around what the teacher computes: the autocast of the student, which holds for one kind of device alone."""
        if self.teacher is None or self.teacher.type == self.student.type:
            return nullcontext()
        kind = self.student.type
        return torch.autocast(
            self.teacher.type, torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind)
        )


def _moved(tree: _Tree, device: torch.device) -> _Tree:
    moved: _Tree = tree_map_only(Tensor, lambda tensor: tensor.to(device), tree)
    return moved
