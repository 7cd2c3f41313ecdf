"""Losses between what is inside two models, for one sample at a time: one value, a mean over what the sample has."""

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from switchkd.losses.checks import at_least_float32
from switchkd.signals import Head

#: From the logits of student and teacher at the positions of one sample to one value, or several.
LogitLoss = Callable[[Float[Tensor, "n vocab"], Float[Tensor, "n vocab"]], Float[Tensor, "..."]]


def squared_error(
    student: Float[Tensor, "*places channels"],
    teacher: Float[Tensor, "*places channels"],
    weights: Float[Tensor, " channels"] | None = None,
) -> Float[Tensor, ""]:
    """MSE = mean over all places and channels c of w_c·(s − t)², w = 1 unless given.

    In squared units of what is compared; at least float32. Nothing to compare gives 0.
    """
    if student.numel() == 0:
        return student.sum()
    difference = at_least_float32(student.flatten(0, -2)) - at_least_float32(teacher.flatten(0, -2))
    squares = difference.square()
    return (squares if weights is None else squares * weights).mean()


def relative_error(
    student: Float[Tensor, "places channels"], teacher: Float[Tensor, "places channels"]
) -> Float[Tensor, ""]:
    """Σ(s − t)² / Σt², both sums over all places and channels.

    Without a unit: 0 where both are equal, 1 for a student of zeros; at least float32. Nothing to compare gives 0.
    """
    if student.numel() == 0:
        return student.sum()
    student, teacher = at_least_float32(student), at_least_float32(teacher)
    return (student - teacher).square().sum() / teacher.square().sum()


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


def affinity(
    student: Float[Tensor, "n width"],
    student_text: Float[Tensor, "t width"],
    teacher: Float[Tensor, "n teacher_width"],
    teacher_text: Float[Tensor, "t teacher_width"],
) -> Float[Tensor, ""]:
    """Mean over visual tokens i and text tokens j of smoothL1(cos(v_i, t_j)_S − cos(v_i, t_j)_T) (EM-KD, arXiv 2511.21106).

    smoothL1(x) = x²/2 where |x| < 1, else |x| − ½. The cosines are between hidden states of one model, so the two may differ in width;
    visual token i of the student is compared with i of the teacher, and so is text. Without a unit, from 0 to 1½; at least float32.
    Nothing to compare gives 0.

    Raises:
        ValueError: another number of visual or text tokens, or a teacher that requires grad.
    """
    sizes = [(len(visual), len(text)) for visual, text in ((student, student_text), (teacher, teacher_text))]
    fixed = not (teacher.requires_grad or teacher_text.requires_grad)
    if sizes[0] != sizes[1] or not fixed:
        raise ValueError(
            "affinities are compared token by token and with a teacher that is fixed, got "
            f"{sizes[0]} visual and text tokens of the student and {sizes[1]} of the teacher, and a teacher that requires grad: {not fixed}"
        )
    student_a, teacher_a = (
        F.normalize(at_least_float32(visual), dim=-1) @ F.normalize(at_least_float32(text), dim=-1).T
        for visual, text in ((student, student_text), (teacher, teacher_text))
    )
    if student_a.numel() == 0:
        return student_a.sum()
    return F.smooth_l1_loss(student_a, teacher_a)


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
