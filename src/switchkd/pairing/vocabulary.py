"""The token ids that are compared, and the teacher's probability on those that are not."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from switchkd.signals import Head

#: Token ids that mean the same in both tokenizers: the student's, and the teacher's in the same order.
Ids = tuple[list[int], list[int]]
#: Rows of a head whose logits exist at a time, so that a half-precision head is never widened whole.
_ROWS = 2048


class Vocabulary(nn.Module):
    """What of two heads is compared: the first `size` rows of both, or the rows of ids that two tokenizers share.

    Args:
        compared: the number of real token ids, `len(tokenizer)`: head rows beyond it are padding. Or pairs of ids. None only where
            nothing is compared: the heads cannot tell their padding, also where they have as many rows.
        student: its head.
        teacher: its head, None where nothing is compared. The rows of shared ids are copied once, in the student's order.

    Raises:
        ValueError: heads to compare without a word about which rows are real, or an id without a row.
    """

    #: The student's ids, and the teacher's; None where they are the first ones of both.
    ids: Int[Tensor, " vocab"] | None
    teacher_ids: Int[Tensor, " vocab"] | None
    weight: Float[Tensor, "vocab hidden"] | None
    bias: Float[Tensor, " vocab"] | None

    def __init__(self, compared: int | Ids | None, student: Head, teacher: Head | None) -> None:
        super().__init__()
        if compared is None and teacher is not None:
            raise ValueError(
                f"which of the heads' {student.rows} (student) and {teacher.rows} (teacher) vocabulary rows are real token ids? Padding "
                "must not be compared: pass vocabulary=len(processor.tokenizer)"
            )
        student_ids, teacher_ids = compared if isinstance(compared, tuple) else ([], [])
        self.size = len(student_ids) or (compared if isinstance(compared, int) else student.rows)
        for who, head, ids in (("student", student, student_ids), ("teacher", teacher, teacher_ids)):
            real = max(ids, default=self.size - 1) + 1
            if head is not None and real > head.rows:
                raise ValueError(
                    f"the tokenizer has {real} ids but the {who}'s head only {head.rows} rows: the processor belongs to another model"
                )
        rows: dict[str, Tensor | None] = dict.fromkeys(("ids", "teacher_ids", "weight", "bias"))
        if student_ids and teacher is not None:
            chosen = torch.tensor(teacher_ids, device=teacher.weight.device)
            bias = None if teacher.bias is None else teacher.bias.detach()[chosen]
            rows |= {"ids": chosen.new_tensor(student_ids), "teacher_ids": chosen, "bias": bias}
            rows["weight"] = teacher.weight.detach()[chosen]
        for name, tensor in rows.items():  # not saved: the teacher is in no file of the student
            self.register_buffer(name, tensor, persistent=False)

    def head(self, teacher: Head) -> Head:
        """The teacher's head, with the rows that are compared as its first ones."""
        return teacher if self.weight is None else Head(self.weight, self.bias, teacher.softcap)

    def cut_student(self, student: Head) -> Head:
        """The student's head with the rows that are compared and no others."""
        return _rows(student, slice(self.size) if self.ids is None else self.ids)

    def cut_teacher(self, teacher: Head) -> Head:
        """The teacher's head with the same rows in the same order."""
        return _rows(self.head(teacher), slice(self.size))

    @torch.no_grad()
    def dropped_mass(self, hidden: Float[Tensor, "n hidden"], teacher: Head) -> Float[Tensor, " n"] | None:
        """1 − Σ p_T over the ids that are compared, where two tokenizers share some only: what lies on the others, and on padding rows.

        None where all real ids are compared: nothing but padding is left out.
        """
        if self.teacher_ids is None:
            return None
        kept = _log_sum_exp(hidden, self.head(teacher))
        return -torch.expm1(kept - _log_sum_exp(hidden, teacher)).clamp(max=0)


def _log_sum_exp(hidden: Float[Tensor, "n hidden"], head: Head) -> Float[Tensor, " n"]:
    """log Σ exp z over the rows of a head, some rows at a time."""
    sums = []
    for start in range(0, head.rows, _ROWS):
        rows = slice(start, start + _ROWS)
        sums.append(_rows(head, rows).logits(hidden).logsumexp(dim=-1))
    return torch.stack(sums).logsumexp(dim=0)


def _rows(head: Head, rows: slice | Tensor) -> Head:
    return Head(head.weight[rows], None if head.bias is None else head.bias[rows], head.softcap)
