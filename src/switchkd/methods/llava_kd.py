"""LLaVA-KD (arXiv 2410.16236): distil answers, what the language model says at visual tokens, and how these relate."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar

from switchkd.methods.method import Method, Need, check_temperature, check_unread, cross_entropy_and_answers
from switchkd.models.capture import Hidden
from switchkd.names import TEACHER, Direction
from switchkd.typed_fields import check_fields

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor, nn

    from switchkd.signals import AnswerLogits, SampleTerms, Signals, TokenTerms


@dataclass(frozen=True)
class LLaVAKD(Method):
    """L = CE(z_S, y) + α·KL(p_T ‖ p_S) at answers + β·KL(p_T ‖ p_S) at visual tokens + γ·(1 − cos(R_S, R_T)), R = z zᵀ at visual tokens.

    `answers` is α, `visual` β, `relation` γ; the two about visual tokens are a mean and a cosine over those of a row. Forward KL both
    times, over the shared vocabulary, without a T² factor. The paper distils in the first and the last of three stages
    (recipes/llava-kd-0.5b-from-3b.yaml).
    """

    name: ClassVar[str] = "llava_kd"
    answer_weights: ClassVar[tuple[str, ...]] = ("answers",)
    sample_weights: ClassVar[tuple[str, ...]] = ("visual", "relation")
    #: α, the weight of the KL at answers.
    answers: float = 1.0
    #: β, the weight of the KL at visual tokens.
    visual: float = 1.0
    #: γ, the weight of how visual tokens relate to each other.
    relation: float = 0.5
    #: Logits are divided by it before the comparison.
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_temperature(self.name, self.temperature)
        weights = {name: value for name, value in asdict(self).items() if name != "temperature"}
        if not all(0 <= weight < math.inf for weight in weights.values()) or not any(weights.values()):
            raise ValueError(f"llava_kd: weights must be finite, not negative and not all 0, got {weights}")
        if not self.answers and not self.visual:
            check_unread(self, "answers and visual are 0", "temperature")

    @property
    def needs(self) -> frozenset[Need]:
        """Student and teacher, and both at visual tokens where these have a weight."""
        return frozenset(
            {"student", "teacher", Hidden(at="visual")} if self.visual or self.relation else {"student", "teacher"}
        )

    @property
    def directions(self) -> dict[str, Direction]:
        """Forward, at answers and visual tokens."""
        return {name: "forward" for name, weight in (("answers", self.answers), ("visual", self.visual)) if weight}

    def token_terms(self, logits: AnswerLogits) -> TokenTerms:
        """Cross-entropy and `answers`."""
        from switchkd.losses import forward_kl

        return cross_entropy_and_answers(logits, forward_kl, weight=self.answers, temperature=self.temperature)

    def sample_terms(self, signals: Signals, learned: nn.Module | None) -> SampleTerms:
        """`visual` and `relation`, the logits of one sample at a time."""
        import torch

        from switchkd.losses import of_logits

        both = signals.activations[TEACHER]
        terms = [
            of_logits(self._at_visual_tokens, student_hidden, both.student_head, teacher_hidden, both.teacher_head)
            if len(student_hidden)
            else student_hidden.new_zeros(2)
            for student_hidden, teacher_hidden in both.pairs(Hidden(at="visual"), width=False)
        ]
        weights = {"visual": self.visual, "relation": self.relation}
        values = torch.stack(terms).unbind(dim=1)
        return {name: weights[name] * value for name, value in zip(weights, values, strict=True) if weights[name]}

    def _at_visual_tokens(
        self, student: Float[Tensor, "n vocab"], teacher: Float[Tensor, "n vocab"]
    ) -> Float[Tensor, " 2"]:
        import torch

        from switchkd.losses import forward_kl, relation

        divergence = forward_kl(student, teacher, temperature=self.temperature).mean()
        return torch.stack([divergence, relation(student, teacher)])
