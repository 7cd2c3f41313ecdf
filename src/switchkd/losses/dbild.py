"""Bi-directional logits differences: BiLD, and its dynamic successor DBiLD, the loss of Switch-KD."""

import mmap
from dataclasses import dataclass
from typing import Any, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from switchkd.losses.checks import at_least_float32, check_at_least_two, check_pair, check_temperature
from switchkd.losses.knee import choose, leader_order
from switchkd.losses.pairs import pair_forward_kl, pair_reverse_kl, row_kl
from switchkd.names import Direction, Softmax


def bild(
    student: Float[Tensor, "*n vocab"], teacher: Float[Tensor, "*n vocab"], *, top_k: int = 8, temperature: float = 3.0
) -> Float[Tensor, "*n"]:
    """KL(p_T ‖ p_S) on the teacher's top k + KL(p_T ‖ p_S) on the student's top k (BiLD, COLING 2025).

    p = softmax(d/τ) over all differences d_ij = z_i − z_j with i < j in the leader's order: k(k−1)/2 values per model.
    Direction: forward KL, both times. T² policy: no τ² factor.

    Args:
        student: z_S; gradients flow here.
        teacher: z_T, a constant.
        top_k: k; more than there are tokens means the whole vocabulary. Memory grows with k².
        temperature: τ > 0, for both.

    Returns:
        Nats per position, float32 (float64 for float64 logits).

    Raises:
        ValueError: wrong shapes, non-finite logits, a temperature that is not positive, top_k or vocabulary below 2,
            a teacher that requires grad.
        TypeError: logits that are not floating point.
    """
    check_pair(student, teacher)
    check_temperature(temperature)
    check_at_least_two("the vocabulary", student.shape[-1])
    check_at_least_two("top_k", top_k)
    z_s, z_t = (at_least_float32(z).reshape(-1, z.shape[-1]) for z in (student, teacher))
    teacher_led = _forward_kl_on(leader_order(z_t, top_k), z_s, z_t, temperature)
    student_led = _forward_kl_on(leader_order(z_s.detach(), top_k), z_s, z_t, temperature)
    return (teacher_led + student_led).view(student.shape[:-1])


def _forward_kl_on(
    ids: Int[Tensor, "n k"], student: Float[Tensor, "n vocab"], teacher: Float[Tensor, "n vocab"], temperature: float
) -> Float[Tensor, " n"]:
    """KL(p_T ‖ p_S) over the differences of the logits at `ids`, every pair written out."""
    i, j = torch.triu_indices(ids.shape[1], ids.shape[1], offset=1, device=ids.device)
    log_s, log_t = (
        ((z[:, i] - z[:, j]) / temperature).log_softmax(dim=-1)
        for z in (student.gather(1, ids), teacher.gather(1, ids))
    )
    return (log_t.exp() * (log_t - log_s)).sum(dim=-1)


@dataclass(frozen=True)
class DBiLDSettings:
    """Which logits `dbild` compares, and how: its knobs, see there."""

    temperature: float = 3.0
    window: int | None = 128
    min_k: int = 3
    top_k: int | None = None
    direction: Direction = "reverse"
    softmax: Softmax = "all"
    t_squared: bool = False

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        check_at_least_two("min_k", self.min_k)
        for name, size in (("window", self.window), ("top_k", self.top_k)):
            if size is not None:
                check_at_least_two(name, size)
        if self.direction not in get_args(Direction):
            raise ValueError(f"direction must be {' or '.join(get_args(Direction))}, got {self.direction!r}")
        if self.softmax not in get_args(Softmax):
            raise ValueError(f"softmax must be {' or '.join(get_args(Softmax))}, got {self.softmax!r}")

    def choose(self, leader: Float[Tensor, "n vocab"]) -> tuple[Int[Tensor, "n k"], Int[Tensor, " n"]]:
        """The ids that a leader compares, in its order, and how many of them: as `losses.knee.choose`, or its `top_k` largest."""
        if self.top_k is None:
            return choose(leader, self.window, self.min_k)
        ids = leader_order(leader, self.top_k)[:, : self.top_k]
        return ids, ids.new_full((len(ids),), ids.shape[1])

    def divergence(
        self,
        ids: Int[Tensor, "n k"],
        k: Int[Tensor, " n"],
        student: Float[Tensor, "n vocab"],
        teacher: Float[Tensor, "n vocab"],
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n k"]]:
        """The KL on the first k of `ids`, and its gradient with respect to the student's logits there, 0 beyond k; float64."""
        a, b = (z.gather(1, ids).double() / self.temperature for z in (student, teacher))
        reverse = self.direction == "reverse"
        if self.softmax == "row":
            divergence, gradient = row_kl(a, b, k, reverse=reverse)
        else:
            divergence, gradient = (pair_reverse_kl if reverse else pair_forward_kl)(a, b, k)
        if self.t_squared:
            return self.temperature**2 * divergence, self.temperature * gradient
        return divergence, gradient / self.temperature


def dbild(
    student: Float[Tensor, "*n vocab"],
    teacher: Float[Tensor, "*n vocab"],
    *,
    temperature: float = 3.0,
    window: int | None = 128,
    min_k: int = 3,
    top_k: int | None = None,
    direction: Direction = "reverse",
    softmax: Softmax = "all",
    t_squared: bool = False,
) -> Float[Tensor, "*n"]:
    """KL(p_X ‖ p_T) on the teacher's top k_T + KL(p_X ‖ p_T) on X's own top k_X (Switch-KD, arXiv 2604.14629).

    X is the student, or the switch pathway. p = softmax(d/τ) over all differences d_ij = z_i − z_j with i < j in the
    leader's order, and k is the `knee` of the leader's logits at that position. Order and knee are not differentiated.
    Direction: reverse KL, both times, unless `direction` is forward: KL(p_T ‖ p_X). T² policy: no τ² factor, unless `t_squared`.
    Time and memory are linear in k (see `pair_reverse_kl`), so that even the whole vocabulary is affordable.

    Args:
        student: z_X; gradients flow here, but have no gradient of their own.
        teacher: z_T, a constant.
        temperature: τ > 0, for both.
        window: where the knee is sought; None, or more than there are tokens, means the whole vocabulary.
        min_k: the least k, or the window where that is smaller.
            With k = 2 there is one pair, whose probability is always 1: nothing is learned.
        top_k: a fixed k in place of the knee, as in `bild`; `window` and `min_k` are then not read. None: the knee.
        direction: of the KL, both times. With top_k and forward this is `bild`.
        softmax: `all` makes one distribution of all pairs i < j, `row` one of the pairs of every i, and takes their mean over i (see
            `row_kl`); both are readings of the paper.
        t_squared: multiply by τ², which keeps the size of gradients when the temperature changes.

    Returns:
        Nats per position, float32 (float64 for float64 logits).

    Raises:
        ValueError: wrong shapes, non-finite logits, a temperature that is not positive, window, min_k, top_k or vocabulary
            below 2, another direction or softmax, a teacher that requires grad.
        TypeError: logits that are not floating point.
    """
    check_pair(student, teacher)
    check_at_least_two("the vocabulary", student.shape[-1])
    settings = DBiLDSettings(temperature, window, min_k, top_k, direction, softmax, t_squared)
    vocab = student.shape[-1]
    loss: Tensor = _DBiLD.apply(student.reshape(-1, vocab), teacher.reshape(-1, vocab), settings)
    return loss.view(student.shape[:-1])


class _DBiLD(torch.autograd.Function):
    """Value and gradient come out of the same sums, so the forward pass keeps the gradient instead of the logits."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Float[Tensor, "n vocab"],
        teacher: Float[Tensor, "n vocab"],
        comparison: DBiLDSettings,
    ) -> Float[Tensor, " n"]:
        precision = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
        (ids_t, k_t), (ids_s, k_s) = comparison.choose(teacher), comparison.choose(student)
        loss_t, gradient_t = comparison.divergence(ids_t, k_t, student, teacher)
        loss_s, gradient_s = comparison.divergence(ids_s, k_s, student, teacher)
        ctx.save_for_backward(ids_t, gradient_t.to(precision), ids_s, gradient_s.to(precision))
        ctx.vocab, ctx.dtype = student.shape[1], student.dtype
        return (loss_t + loss_s).to(precision)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Float[Tensor, " n"]) -> tuple[Float[Tensor, "n vocab"], None, None]:
        ids_t, gradient_t, ids_s, gradient_s = ctx.saved_tensors
        gradient = _zeros(len(upstream), ctx.vocab, gradient_t)
        for ids, led in ((ids_t, gradient_t), (ids_s, gradient_s)):
            gradient.scatter_add_(1, ids, led * upstream[:, None])
        return gradient.to(ctx.dtype), None, None


def _zeros(rows: int, columns: int, like: Tensor) -> Float[Tensor, "rows columns"]:
    """Zeros that, on a CPU, take memory only where they are written: for a gradient that is 0 nearly everywhere."""
    if like.device.type != "cpu" or rows * columns == 0:
        return like.new_zeros(rows, columns)
    pages = mmap.mmap(
        -1, rows * columns * like.itemsize, access=mmap.ACCESS_COPY
    )  # the system's own zeros, until they are written
    return torch.frombuffer(pages, dtype=like.dtype).view(rows, columns)
