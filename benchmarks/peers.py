"""What a user would run instead: the plain reading of DBiLD, and the losses of other libraries as they ship them."""

from collections.abc import Callable

import torch
from common import NotRunError
from torch import Tensor


def naive_dbild(
    student: Tensor, teacher: Tensor, temperature: float = 3.0, window: int = 128, min_k: int = 3
) -> Tensor:
    """DBiLD as its definition reads: full sorts, all differences of the window as a k×k matrix, softmax, autograd."""

    def led_by(leader: Tensor) -> Tensor:
        values, ids = leader.detach().sort(dim=-1, descending=True, stable=True)
        values, ids = values[:, :window], ids[:, :window]
        y = (values - values[:, -1:]) / (values[:, :1] - values[:, -1:])
        x = torch.linspace(0, 1, values.shape[1], dtype=values.dtype, device=values.device)
        k = (((1 - x) - y).argmax(dim=-1) + 1).clamp(min=min_k)
        ids = ids[:, : int(k.max())]
        rank = torch.arange(ids.shape[1], device=ids.device)
        pairs = (rank[:, None] < rank) & (rank < k[:, None, None])
        log_p, log_q = (
            ((z[:, :, None] - z[:, None, :]) / temperature)
            .masked_fill(~pairs, -torch.inf)
            .flatten(1)
            .log_softmax(dim=-1)
            for z in (student.gather(1, ids), teacher.gather(1, ids))
        )
        pairs = pairs.flatten(1)
        difference = torch.where(pairs, log_p, 0) - torch.where(pairs, log_q, 0)
        return (log_p.exp() * difference).sum(dim=-1)

    return led_by(teacher) + led_by(student)


def trl_reverse_kl() -> Callable[[Tensor, Tensor], Tensor]:
    """TRL's full-vocabulary loss, β = 1, summed over tokens."""
    try:
        from trl.experimental.gkd import GKDTrainer
    except ImportError as error:
        raise NotRunError(f"trl: {error}") from None

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        return GKDTrainer.generalized_jsd_loss(student[None], teacher[None], beta=1.0, reduction="sum")

    return loss


def trl_chunked() -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """TRL's loss from hidden states and heads, β = 1, summed over tokens; it has no cross-entropy."""
    try:
        from trl.trainer.distillation_trainer import _chunked_divergence_loss
    except ImportError as error:
        raise NotRunError(f"trl: {error}") from None

    def loss(student: Tensor, teacher: Tensor, student_head: Tensor, teacher_head: Tensor) -> Tensor:
        mask = torch.ones(1, len(student), device=student.device)
        hidden = (student[None], teacher[None], student_head, teacher_head)
        return _chunked_divergence_loss(*hidden, mask, beta=1.0, num_items_in_batch=1)[0]

    return loss


def liger_chunked(chunk: int) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Liger's cross-entropy + reverse KL from hidden states and heads; its mean times the tokens."""
    try:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
    except ImportError as error:
        raise NotRunError(f"liger-kernel: {error}") from None
    fused = LigerFusedLinearJSDLoss(
        weight_hard_loss=1.0, weight_soft_loss=1.0, beta=1.0, compiled=False, chunk_size=chunk
    )

    def loss(student: Tensor, teacher: Tensor, student_head: Tensor, teacher_head: Tensor, targets: Tensor) -> Tensor:
        return len(student) * fused(student, student_head, teacher, teacher_head, targets)

    return loss


def ms_swift() -> Callable[[Tensor, Tensor], Tensor]:
    """ms-swift's full-vocabulary loss, β = 1, summed over tokens."""
    try:
        from swift.rlhf_trainers.gkd_loss import TeacherOutput, gkd_loss
    except ImportError as error:
        raise NotRunError(f"ms-swift: {error}") from None

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        labels = torch.zeros(1, len(student), dtype=torch.long, device=student.device)
        return gkd_loss(student[None], TeacherOutput(full_logits=teacher[None]), labels, beta=1.0, temperature=1.0)[0]

    return loss
