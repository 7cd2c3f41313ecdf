"""Losses between what is inside two models, for one sample at a time: one value, a mean over what the sample has."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from switchkd.losses.checks import at_least_float32
from switchkd.signals import Head

#: From the logits of student and teacher at the positions of one sample to one value, or several.
LogitLoss = Callable[[Float[Tensor, "n vocab"], Float[Tensor, "n vocab"]], Float[Tensor, "..."]]


def squared_error(
    student: Float[Tensor, "*places channels"], teacher: Float[Tensor, "*places channels"]
) -> Float[Tensor, ""]:
    """MSE = mean over all places and channels of (s − t)².

    In squared units of what is compared; at least float32. Nothing to compare gives 0.
    """
    if student.numel() == 0:
        return student.sum()
    difference = at_least_float32(student.flatten(0, -2)) - at_least_float32(teacher.flatten(0, -2))
    return difference.square().mean()


def relation(student: Float[Tensor, "n _"], teacher: Float[Tensor, "n _"]) -> Float[Tensor, ""]:
    """1 − cos(R_S, R_T), R = y yᵀ, the n × n products between the outputs y of n tokens (LLaVA-KD, arXiv 2410.16236).

    The cosine is of the two matrices as vectors: 0 where the tokens relate alike up to a factor. The outputs may differ in width; at least
    float32.

    Raises:
        ValueError: another number of tokens, or a teacher that requires grad.
    """
    if len(student) != len(teacher) or teacher.requires_grad:
        raise ValueError(
            f"the relation is between as many tokens of both and a teacher that is fixed, got {len(student)} and {len(teacher)} tokens, "
            f"and a teacher that requires grad: {teacher.requires_grad}"
        )
    student_r, teacher_r = (at_least_float32(y) @ at_least_float32(y).T for y in (student, teacher))
    cosine: Tensor = (student_r * teacher_r).sum() / (student_r.norm() * teacher_r.norm())
    return 1 - cosine


def of_logits(
    loss: LogitLoss,
    student: Float[Tensor, "n hidden"],
    student_head: Head,
    teacher: Float[Tensor, "n teacher_hidden"],
    teacher_head: Head,
) -> Float[Tensor, "..."]:
    """`loss` of the logits of one sample, from hidden states after the final norm.

    The logits are there while it is computed and, once more, while its gradient is: never those of all samples, nor between the passes.
    """

    def recomputed(hidden: Float[Tensor, "n hidden"]) -> Float[Tensor, "..."]:
        return loss(student_head.logits(hidden), teacher_head.logits(teacher))

    value: Tensor = checkpoint(recomputed, student, use_reentrant=False, preserve_rng_state=False)
    return value
