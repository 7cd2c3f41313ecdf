"""What Align-KD learns beside the student, and the visual tokens that it chooses."""

import math

from jaxtyping import Float, Int
from torch import Tensor, nn

from switchkd.signals import Sizes


class Maps(nn.Module):
    """M_A from the student's heads to the teacher's, linear (a 1 × 1 convolution), and M_P from its width to the teacher's.

    M_A begins as the mean of the heads, M_P as the identity where the widths are equal, else with orthonormal rows or columns that keep
    the mean square of a channel.
    """

    def __init__(self, student: Sizes, teacher: Sizes) -> None:
        super().__init__()
        self.heads = nn.Linear(student.heads, teacher.heads)
        self.width = nn.Linear(student.width, teacher.width)
        nn.init.constant_(self.heads.weight, 1 / student.heads)
        if student.width == teacher.width:
            nn.init.eye_(self.width.weight)
        else:
            nn.init.orthogonal_(self.width.weight, gain=math.sqrt(max(teacher.width / student.width, 1)))
        for layer in (self.heads, self.width):
            nn.init.zeros_(layer.bias)

    def attention(self, student: Float[Tensor, "heads texts tokens"]) -> Float[Tensor, "teacher_heads texts tokens"]:
        """M_A A_S."""
        mapped: Tensor = self.heads(student.movedim(0, -1).to(self.heads.weight.dtype))
        return mapped.movedim(-1, 0)

    def projected(self, student: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens teacher_width"]:
        """M_P P_S."""
        mapped: Tensor = self.width(student.to(self.width.weight.dtype))
        return mapped


def in_focus(attention: Float[Tensor, "heads texts tokens"], top: int) -> Int[Tensor, " chosen"]:
    """The visual tokens that get most attention of all text and heads."""
    received = attention.sum(dim=(0, 1))
    return received.topk(min(top, len(received))).indices
