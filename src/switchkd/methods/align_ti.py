"""Align-TI (arXiv 2602.09483), its first part: learn what the teacher says at the visual tokens that its instruction looks at."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from switchkd.methods.method import Method, Need, check_temperature, check_unread, cross_entropy_and_answers
from switchkd.models.capture import Hidden, TeacherAttention
from switchkd.names import TEACHER, Direction
from switchkd.typed_fields import check_fields

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor, nn

    from switchkd.signals import AnswerLogits, SampleTerms, Signals, TokenTerms

_VISUAL = Hidden(at="visual")


@dataclass(frozen=True)
class AlignTI(Method):
    """L = CE(z_S, y) + α·KL(p_T ‖ p_S) at answers + β·Σ_i w_i·KL(p_T ‖ p_S) at visual tokens i, w the teacher's attention to them.

    `answers` is α, `instructed` β. w_i is the share of token i in the attention of the instruction (all text that is no answer to learn) on
    visual tokens of its row, over all heads of one layer of the teacher; its sum is 1. Forward KL both times, over the shared vocabulary,
    without a T² factor. It is the paper's Instruction-aware Vision Alignment; its second part, on what follows tokens that the student
    draws, is not here.
    """

    name: ClassVar[str] = "align_ti"
    answer_weights: ClassVar[tuple[str, ...]] = ("answers",)
    sample_weights: ClassVar[tuple[str, ...]] = ("instructed",)
    #: α, the weight of the KL at answers.
    answers: float = 1.0
    #: β, the weight of the KL at visual tokens.
    instructed: float = 1.0
    #: Of the teacher's layers, from 0 for the first to 1 for the last, the one whose attention counts.
    layer: float = 0.5
    #: Logits are divided by it in both KL.
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_temperature(self.name, self.temperature)
        weights = {"answers": self.answers, "instructed": self.instructed}
        if not all(0 <= weight < math.inf for weight in weights.values()) or not any(weights.values()):
            raise ValueError(f"align_ti: weights must be finite, not negative and not all 0, got {weights}")
        if not 0 <= self.layer <= 1:
            raise ValueError(f"align_ti: layer is a depth, from 0 for the first to 1 for the last, got {self.layer}")
        if not self.instructed:
            check_unread(self, "instructed is 0", "layer")

    @property
    def _looks(self) -> TeacherAttention:
        return TeacherAttention(layer=self.layer, of="prompt", to="visual")

    @property
    def needs(self) -> frozenset[Need]:
        """Student and teacher; both at visual tokens, and where the teacher looks, where these have a weight."""
        inside: set[Need] = {_VISUAL, self._looks} if self.instructed else set()
        return frozenset({"student", "teacher", *inside})

    @property
    def directions(self) -> dict[str, Direction]:
        """Forward, at answers and visual tokens."""
        return {name: "forward" for name in ("answers", "instructed") if getattr(self, name)}

    def token_terms(self, logits: AnswerLogits) -> TokenTerms:
        """Cross-entropy and `answers`."""
        from switchkd.losses import forward_kl

        return cross_entropy_and_answers(logits, forward_kl, weight=self.answers, temperature=self.temperature)

    def sample_terms(self, signals: Signals, learned: nn.Module | None) -> SampleTerms:
        """`instructed`, the logits of one sample at a time."""
        import torch

        from switchkd.losses import attention_received, of_logits

        both = signals.activations[TEACHER]
        values = []
        for (student, teacher), looks in zip(both.pairs(_VISUAL, width=False), both.teacher[self._looks], strict=True):
            if len(student):
                divergence = partial(self._divergence, attention_received(looks))
                values.append(of_logits(divergence, student, both.student_head, teacher, both.teacher_head))
            else:
                values.append(student.new_zeros((), dtype=torch.promote_types(student.dtype, torch.float32)))
        return {"instructed": self.instructed * torch.stack(values)}

    def _divergence(
        self, weights: Float[Tensor, " n"], student: Float[Tensor, "n vocab"], teacher: Float[Tensor, "n vocab"]
    ) -> Float[Tensor, ""]:
        from switchkd.losses import forward_kl

        return (weights * forward_kl(student, teacher, temperature=self.temperature)).sum()
