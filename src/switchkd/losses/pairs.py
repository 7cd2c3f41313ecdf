"""The KL between two models' pairwise logit differences, both ways, in O(k) instead of O(k²)."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def pair_reverse_kl(
    student: Float[Tensor, "n k"], teacher: Float[Tensor, "n k"], lengths: Int[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n k"]]:
    """KL(P ‖ Q) over the pairs i < j, P_ij ∝ exp(a_i − a_j), Q_ij ∝ exp(b_i − b_j), and its gradient in a.

    With d = a − b, the marginals R_i = Σ_{j>i} P_ij and C_j = Σ_{i<j} P_ij, and E = Σ_i d_i (R_i − C_i):

        KL      = E − log Z_a + log Z_b
        ∂KL/∂a_i = R_i (d_i − E) + C_i (d_i + E) − Σ_{j>i} P_ij d_j − Σ_{j<i} P_ji d_j

    P_ij is a product of a factor of i and a factor of j, so every sum is a prefix or suffix sum: O(k) time and memory.

    The sums stay in the log domain, in float64. A linear domain would need one offset per row, and none is safe: where
    `a` rises with the rank (it is in the *leader's* order, not its own) all pairs can lie hundreds of nats below
    max a − min a and underflow together. A running log-sum-exp has no such limit, and float64 keeps the cancellation
    in E − log Z_a exact to about 1e-12 for logits in the thousands. Next to a pass over the vocabulary both are cheap.

    Args:
        student: a, the logits over the temperature, in the leader's order; they need not descend.
        teacher: b, likewise.
        lengths: the first `lengths[n]` entries of row n take part, at least 2; what follows is ignored.

    Returns:
        The divergence in nats per row and its gradient with respect to `student` (0 beyond the length), both float64.
    """
    a, b = student.double(), teacher.double()
    outside = torch.arange(a.shape[1], device=a.device) >= lengths[:, None]
    first, second = a.masked_fill(outside, -math.inf), (-a).masked_fill(outside, -math.inf)
    log_z_b = _log_z(b.masked_fill(outside, -math.inf), (-b).masked_fill(outside, -math.inf))
    log_z_a = _log_z(first, second)[:, None]

    # KL and gradient do not change when d is shifted, and d ≥ 0 has a logarithm.
    d = a - b
    d = (d - d.masked_fill(outside, math.inf).amin(dim=-1, keepdim=True)).masked_fill(outside, 0)
    log_d = d.log()

    R = (first + _after(second) - log_z_a).exp()
    C = (second + _before(first) - log_z_a).exp()
    E = (d * (R - C)).sum(dim=-1, keepdim=True)
    seconds_d = (first + _after(second + log_d) - log_z_a).exp()  # Σ_{j>i} P_ij d_j
    firsts_d = (second + _before(first + log_d) - log_z_a).exp()  # Σ_{j<i} P_ji d_j

    # A divergence is never negative, its rounding error can be.
    divergence = ((E - log_z_a).squeeze(-1) + log_z_b).clamp(min=0)
    gradient = R * (d - E) + C * (d + E) - seconds_d - firsts_d
    return divergence, gradient


def pair_forward_kl(
    student: Float[Tensor, "n k"], teacher: Float[Tensor, "n k"], lengths: Int[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n k"]]:
    """KL(Q ‖ P) over the pairs i < j and its gradient in a; P, Q, arguments, return value and precision as in `pair_reverse_kl`.

    With e = b − a, and R and C the marginals of P and of Q,

        KL      = Σ_i e_i (R^Q_i − C^Q_i) − log Z_b + log Z_a
        ∂KL/∂a_i = (R^P_i − C^P_i) − (R^Q_i − C^Q_i)
    """
    a, b = student.double(), teacher.double()
    outside = torch.arange(a.shape[1], device=a.device) >= lengths[:, None]
    log_z_a, slope_a = _log_z_and_gradient(a, outside)
    log_z_b, slope_b = _log_z_and_gradient(b, outside)
    e = (b - a - (b - a)[:, :1]).masked_fill(outside, 0)  # a shift changes nothing, and small numbers keep their digits
    divergence = ((e * slope_b).sum(dim=-1) - log_z_b + log_z_a).clamp(min=0)
    return divergence, slope_a - slope_b


def row_kl(
    student: Float[Tensor, "n k"], teacher: Float[Tensor, "n k"], lengths: Int[Tensor, " n"], *, reverse: bool
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n k"]]:
    """The mean over i < k of KL(P_i ‖ Q_i), or of KL(Q_i ‖ P_i), and its gradient in a: one softmax for every row i of the pairs.

    P_ij = exp(−a_j) / Σ_{j'>i} exp(−a_j') over j > i, because a_i cancels; Q_ij likewise. With g_j = b_j − a_j, S_i = log Σ_{j>i} exp(−a_j)
    of P and T_i of Q, E_i = Σ_{j>i} P_ij g_j and C_m = Σ_{i<m} P_im:

        KL(P_i ‖ Q_i) = E_i − S_i + T_i       ∂Σ_i/∂a_m = Σ_{i<m} P_im E_i − g_m C_m
        KL(Q_i ‖ P_i) = −Σ_{j>i} Q_ij g_j − T_i + S_i       ∂Σ_i/∂a_m = C^Q_m − C^P_m

    divided by k − 1; the last row has one pair and is 0. Arguments, return value, precision and the log domain are those of
    `pair_reverse_kl`, and so is the cost: O(k).
    """
    a, b = student.double(), teacher.double()
    places = torch.arange(a.shape[1], device=a.device)
    outside, no_row = places >= lengths[:, None], places >= lengths[:, None] - 1
    minus_a, minus_b = (-a).masked_fill(outside, -math.inf), (-b).masked_fill(outside, -math.inf)
    log_s, log_t = (_after(x).masked_fill(no_row, 0) for x in (minus_a, minus_b))
    student_by_row, teacher_by_row = ((-x).masked_fill(no_row, -math.inf) for x in (log_s, log_t))
    g = b - a if reverse else a - b
    least = g.masked_fill(outside, math.inf).amin(dim=-1, keepdim=True)
    g = (g - least).masked_fill(outside, 0)  # a shift changes nothing but E_i, and g ≥ 0 has a logarithm
    expected, normal = (minus_a, log_s) if reverse else (minus_b, log_t)
    E = (_after(expected + g.log()) - normal).exp().masked_fill(no_row, 0)
    gap = log_t - log_s if reverse else log_s - log_t
    divergence = (E + least + gap).clamp(min=0).masked_fill(no_row, 0).sum(dim=-1)
    C = (minus_a + _before(student_by_row)).exp()
    moved = minus_a + _before(student_by_row + E.log()) if reverse else minus_b + _before(teacher_by_row)
    gradient = moved.exp() - (g * C if reverse else C)
    rows = lengths - 1
    return divergence / rows, gradient / rows[:, None]


def _log_z_and_gradient(
    z: Float[Tensor, "n k"], outside: Bool[Tensor, "n k"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n k"]]:
    """log Σ_{i<j} exp(z_i − z_j), and R − C, its gradient."""
    first, second = z.masked_fill(outside, -math.inf), (-z).masked_fill(outside, -math.inf)
    log_z = _log_z(first, second)
    R = (first + _after(second) - log_z[:, None]).exp()
    C = (second + _before(first) - log_z[:, None]).exp()
    return log_z, R - C


def _log_z(first: Float[Tensor, "n k"], second: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """log Σ_{i<j} exp(first_i + second_j)."""
    return (first + _after(second)).logsumexp(dim=-1)


def _after(x: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """log Σ_{j>i} exp(x_j); −inf at the end."""
    return torch.nn.functional.pad(x[:, 1:].flip(-1).logcumsumexp(dim=-1).flip(-1), (0, 1), value=-math.inf)


def _before(x: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """log Σ_{j<i} exp(x_j); −inf at the start."""
    return torch.nn.functional.pad(x[:, :-1].logcumsumexp(dim=-1), (1, 0), value=-math.inf)
