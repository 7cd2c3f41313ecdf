"""Losses between the attention of two language models, and what one of them looks at, for one sample at a time."""

import torch
from jaxtyping import Float
from torch import Tensor

from switchkd.losses.checks import at_least_float32


def attention_distance(
    student: Float[Tensor, "layers queries keys"],
    teacher: Float[Tensor, "teacher_layers queries keys"],
    *,
    without_peaks: bool = False,
) -> Float[Tensor, ""]:
    """Σ_l 1 − cos(a_S,l, ā_T,l), ā_T,l = mean of a_T,l … a_T,l+n−1, n = m − k + 1 (CompoDistill, arXiv 2510.12184).

    k are the student's layers and m the teacher's: each of the student's is compared with a window of n of the teacher's, the first with
    the first and the last with the last. The cosine is of the two matrices [queries, keys] as vectors: 0 where the student looks at
    things in the proportions in which the teacher does. Without a unit, from 0 to k, as no weight is negative; at least float32. A layer
    in which one of the two looks at nothing counts as 1; nothing to compare gives 0.

    Args:
        student: a_S, attention weights after the softmax, a mean over heads; gradients flow here.
        teacher: a_T, likewise, a constant.
        without_peaks: leave out the entries in which ā_T,l is above its mean plus its standard deviation over all entries.

    Raises:
        ValueError: fewer layers in the teacher than in the student, other queries or keys, or a teacher that requires grad.
    """
    layers, teacher_layers = len(student), len(teacher)
    if teacher_layers < layers:
        raise ValueError(
            f"each of the student's layers is compared with a window of the teacher's, and the student has {layers} of them and the "
            f"teacher {teacher_layers}: choose a teacher that is at least as deep"
        )
    if student.shape[1:] != teacher.shape[1:] or teacher.requires_grad:
        raise ValueError(
            "attention is compared entry by entry and with a teacher that is fixed, got [queries, keys] of "
            f"{list(student.shape[1:])} and {list(teacher.shape[1:])}, and a teacher that requires grad: {teacher.requires_grad}"
        )
    if student.numel() == 0:
        return student.sum()
    student_a = at_least_float32(student).flatten(1)
    windows = at_least_float32(teacher).flatten(1).unfold(0, teacher_layers - layers + 1, 1)
    teacher_a = windows.mean(dim=-1)
    if without_peaks:
        peak = teacher_a.mean(dim=1, keepdim=True) + teacher_a.std(dim=1, keepdim=True, correction=0)
        kept = teacher_a <= peak
        student_a, teacher_a = student_a * kept, teacher_a * kept
    return (1 - torch.cosine_similarity(student_a, teacher_a, dim=1)).sum()


@torch.no_grad()
def attention_received(attention: Float[Tensor, "heads queries keys"]) -> Float[Tensor, " keys"]:
    """w_i = Σ_hq A_hqi / Σ_hqj A_hqj: the share of the attention of some tokens, over all heads, that falls on token i.

    Args:
        attention: A, weights after the softmax, not negative.

    Returns:
        Shares whose sum is 1, without a gradient, at least float32; 0 everywhere where no attention falls on these tokens.
    """
    received = at_least_float32(attention).sum(dim=(0, 1))
    total = received.sum()
    return torch.where(total > 0, received / total, 0)
