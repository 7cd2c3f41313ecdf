"""Losses over the whole vocabulary: cross-entropy with the answer, divergences from the teacher."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from switchkd.losses.checks import (
    at_least_float32,
    check_beta,
    check_logits,
    check_pair,
    check_targets,
    check_temperature,
)


def cross_entropy(logits: Float[Tensor, "*n vocab"], targets: Int[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """−log softmax(z)_y, the loss of supervised fine-tuning (as in LLaVA, arXiv 2304.08485).

    Direction: it is the forward KL(p_y ‖ p_S) of a p_y that is sure of the answer.

    Args:
        logits: z, over the vocabulary at each answer position.
        targets: y, the vocabulary id that follows each position: the shape of the logits without the vocabulary. There is no ignored label.

    Returns:
        Nats per position, float32 (float64 for float64 logits).

    Raises:
        ValueError: wrong shapes, non-finite logits, a target outside the vocabulary.
        TypeError: logits that are not floating point, targets that are not integers.
    """
    check_logits("logits", logits)
    check_targets(targets, logits)
    rows = at_least_float32(logits).reshape(-1, logits.shape[-1])
    return torch.nn.functional.cross_entropy(rows, targets.reshape(-1).long(), reduction="none").view(targets.shape)


def forward_kl(
    student: Float[Tensor, "*n vocab"], teacher: Float[Tensor, "*n vocab"], *, temperature: float = 1.0
) -> Float[Tensor, "*n"]:
    """KL(p_T ‖ p_S) = Σ_v p_T (log p_T − log p_S), p = softmax(z/τ) (Hinton et al., arXiv 1503.02531).

    Direction: the expectation is the teacher's (mass-covering). T² policy: no τ² factor; multiply by τ² yourself where
    a recipe asks for it.

    Args:
        student: z_S; gradients flow here.
        teacher: z_T, a constant.
        temperature: τ > 0, for both.

    Returns:
        Nats per position, float32 (float64 for float64 logits).

    Raises:
        ValueError: wrong shapes, non-finite logits, a temperature that is not positive, a teacher that requires grad.
        TypeError: logits that are not floating point.
    """
    log_s, log_t = _log_probabilities(student, teacher, temperature)
    return _kl(log_t, log_s)


def soft_cross_entropy(
    student: Float[Tensor, "*n vocab"], teacher: Float[Tensor, "*n vocab"], *, temperature: float = 1.0
) -> Float[Tensor, "*n"]:
    """−Σ_v p_T log p_S, p = softmax(z/τ): the mimic loss of LLaVA-MoD (arXiv 2408.15881).

    Direction: the expectation is the teacher's. It is `forward_kl` and the teacher's entropy, a constant: the gradient is the same, the
    value is not 0 where the two are equal. T² policy: no τ² factor. Arguments, return value and errors are those of `forward_kl`.
    """
    log_s, log_t = _log_probabilities(student, teacher, temperature)
    return -(log_t.exp() * log_s).sum(dim=-1)


def reverse_kl(
    student: Float[Tensor, "*n vocab"], teacher: Float[Tensor, "*n vocab"], *, temperature: float = 1.0
) -> Float[Tensor, "*n"]:
    """KL(p_S ‖ p_T) = Σ_v p_S (log p_S − log p_T), p = softmax(z/τ) (MiniLLM, arXiv 2306.08543).

    Direction: the expectation is the student's (mode-seeking). T² policy: no τ² factor.
    Arguments, return value and errors are those of `forward_kl`.
    """
    log_s, log_t = _log_probabilities(student, teacher, temperature)
    return _kl(log_s, log_t)


def jsd(
    student: Float[Tensor, "*n vocab"], teacher: Float[Tensor, "*n vocab"], *, beta: float, temperature: float = 1.0
) -> Float[Tensor, "*n"]:
    """β KL(p_T ‖ m) + (1−β) KL(p_S ‖ m), m = β p_T + (1−β) p_S (GKD, arXiv 2306.13649).

    The generalised Jensen-Shannon divergence; β = ½ is the symmetric one. At the two ends that formula is 0 whatever
    the models say, so β = 0 means `forward_kl` and β = 1 means `reverse_kl` here, as users of TRL expect. The step is
    real: just above 0 the value is about β·KL(p_T ‖ p_S), just below 1 about (1−β)·KL(p_S ‖ p_T).
    Direction: both expectations are against the mixture m; small β leans to forward KL, large β to reverse KL.
    T² policy: no τ² factor.

    Args:
        student: z_S; gradients flow here.
        teacher: z_T, a constant.
        beta: the teacher's weight in the mixture, from 0 to 1.
        temperature: τ > 0, for both.

    Returns:
        Nats per position, float32 (float64 for float64 logits).

    Raises:
        ValueError: as `forward_kl`, and a beta outside [0, 1].
        TypeError: logits that are not floating point.
    """
    check_beta(beta)
    if beta == 0:
        return forward_kl(student, teacher, temperature=temperature)
    if beta == 1:
        return reverse_kl(student, teacher, temperature=temperature)
    log_s, log_t = _log_probabilities(student, teacher, temperature)
    log_m = torch.logaddexp(log_t + math.log(beta), log_s + math.log1p(-beta))
    return beta * _kl(log_t, log_m) + (1 - beta) * _kl(log_s, log_m)


def _log_probabilities(
    student: Float[Tensor, "*n vocab"], teacher: Float[Tensor, "*n vocab"], temperature: float
) -> tuple[Float[Tensor, "*n vocab"], Float[Tensor, "*n vocab"]]:
    """Log softmax(z/τ) of the student and of the teacher, after the checks all divergences share."""
    check_pair(student, teacher)
    check_temperature(temperature)
    log_s, log_t = ((at_least_float32(z) / temperature).log_softmax(dim=-1) for z in (student, teacher))
    return log_s, log_t


def _kl(log_p: Float[Tensor, "*n vocab"], log_q: Float[Tensor, "*n vocab"]) -> Float[Tensor, "*n"]:
    """KL(p ‖ q)."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)
