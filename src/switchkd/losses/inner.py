"""Losses between what is inside two models, for one row of a batch at a time: one value, a mean over what the row has."""

from jaxtyping import Float
from torch import Tensor

from switchkd.losses.inputs import at_least_float32


def squared_error(
    student: Float[Tensor, "*places channels"], teacher: Float[Tensor, "*places channels"]
) -> Float[Tensor, ""]:
    """MSE = mean over all places and channels of (s − t)².

    In squared units of what is compared; at least float32. Nothing to compare gives 0.
    """
    if student.numel() == 0:
        return at_least_float32(student).sum()
    return (at_least_float32(student) - at_least_float32(teacher)).square().mean()
