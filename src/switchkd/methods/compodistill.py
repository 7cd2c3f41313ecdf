"""CompoDistill (arXiv 2510.12184): look where the teacher looks, in the middle layers of the language model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from switchkd.methods.method import Method, Need, check_temperature, check_unread, cross_entropy_and_answers
from switchkd.models.capture import MiddleAttention, Where
from switchkd.names import TEACHER, Direction
from switchkd.typed_fields import check_fields

if TYPE_CHECKING:
    from torch import nn

    from switchkd.signals import AnswerLogits, SampleTerms, Signals, TokenTerms

#: Of the attention term: the paper's equation, or what its authors' code computes.
Reading = Literal["paper", "code"]


@dataclass(frozen=True)
class CompoDistill(Method):
    """L = CE(z_S, y) + α·KL(p_T ‖ p_S) at answers + β·Σ_l 1 − cos(a_S,l, ā_T,l), over the middle layers l of the language model.

    `answers` is α: the cross-entropy with the teacher's soft answers, less their entropy, which is constant. `looks` is β: a is the
    attention onto visual tokens, a mean over heads, in the middle third of the layers; ā is a mean over a window of the teacher's, which
    has as many of them or more. `reading` says of which queries: `paper` of all tokens; `code` of the visual tokens
    alone, and without the entries in which the teacher's is above its mean and a standard deviation. The paper's teacher adapter is not
    part of it.
    """

    name: ClassVar[str] = "compodistill"
    answer_weights: ClassVar[tuple[str, ...]] = ("answers",)
    sample_weights: ClassVar[tuple[str, ...]] = ("looks",)
    #: α, the weight of the KL at answers.
    answers: float = 1.0
    #: β, the weight of where both models look.
    looks: float = 1.0
    #: Of the term `looks`.
    reading: Reading = "paper"
    #: Logits are divided by it before the comparison.
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_temperature(self.name, self.temperature)
        weights = {"answers": self.answers, "looks": self.looks}
        if not all(0 <= weight < math.inf for weight in weights.values()) or not any(weights.values()):
            raise ValueError(f"compodistill: weights must be finite, not negative and not all 0, got {weights}")
        if not self.looks:
            check_unread(self, "looks is 0", "reading")
        if not self.answers:
            check_unread(self, "answers is 0", "temperature")

    @property
    def _site(self) -> MiddleAttention:
        queries: Where = "visual" if self.reading == "code" else "all"
        return MiddleAttention(of=queries, to="visual")

    @property
    def needs(self) -> frozenset[Need]:
        """Student and teacher, and the attention of both where it has a weight."""
        return frozenset({"student", "teacher", self._site} if self.looks else {"student", "teacher"})

    @property
    def directions(self) -> dict[str, Direction]:
        """Forward."""
        return {"answers": "forward"} if self.answers else {}

    def token_terms(self, logits: AnswerLogits) -> TokenTerms:
        """Cross-entropy and `answers`."""
        from switchkd.losses import forward_kl

        return cross_entropy_and_answers(logits, forward_kl, weight=self.answers, temperature=self.temperature)

    def sample_terms(self, signals: Signals, learned: nn.Module | None) -> SampleTerms:
        """`looks`."""
        import torch

        from switchkd.losses import attention_distance

        distances = [
            attention_distance(student, teacher, without_peaks=self.reading == "code")
            for student, teacher in signals.activations[TEACHER].pairs(self._site)
        ]
        return {"looks": self.looks * torch.stack(distances)}
