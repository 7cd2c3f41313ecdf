"""Classic logit distillation over the whole vocabulary (Hinton et al., arXiv 1503.02531; JSD: arXiv 2306.13649)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from switchkd.methods.method import Method, check_temperature
from switchkd.names import TEACHER, Direction
from switchkd.typed_fields import check_fields

if TYPE_CHECKING:
    from switchkd.signals import AnswerLogits, TokenTerms


@dataclass(frozen=True)
class KD(Method):
    """L = CE(z_S, y) + JSD_β(z_T, z_S), softened by the temperature, without a T² factor.

    `beta` as in TRL: 0 is the forward KL(p_T ‖ p_S), 1 the reverse KL(p_S ‖ p_T), between them the generalised Jensen-Shannon divergence.
    """

    name: ClassVar[str] = "kd"
    #: 0: forward KL, 1: reverse KL, between them the generalised Jensen-Shannon divergence.
    beta: float = 0.0
    #: Logits are divided by it before the comparison.
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.beta <= 1:
            raise ValueError(f"kd: beta must lie between 0 (forward KL) and 1 (reverse KL), got {self.beta}")
        check_temperature(self.name, self.temperature)

    @property
    def directions(self) -> dict[str, Direction]:
        """Forward for β = 0, reverse for β = 1; between them neither."""
        return {"kd": "forward"} if self.beta == 0 else {"kd": "reverse"} if self.beta == 1 else {}

    def token_terms(self, logits: AnswerLogits) -> TokenTerms:
        """Cross-entropy and the divergence from the teacher."""
        from switchkd.losses import cross_entropy, jsd

        compared = logits.compared[TEACHER]
        divergence = jsd(compared.student, compared.teacher, beta=self.beta, temperature=self.temperature)
        return {"ce": logits.term(cross_entropy(logits.student, logits.targets)), "kd": compared.term(divergence)}
