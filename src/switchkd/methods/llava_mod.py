"""LLaVA-MoD's mimic distillation (arXiv 2408.15881): cross-entropy with the teacher's soft answers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from switchkd.methods.method import Method, check_temperature
from switchkd.names import TEACHER
from switchkd.typed_fields import check_fields

if TYPE_CHECKING:
    from switchkd.signals import AnswerLogits, TokenTerms


@dataclass(frozen=True)
class LLaVAMoD(Method):
    """L = CE(z_S, y) + α·(−Σ_v p_T(v) log p_S(v)) on the answer tokens.

    `mimic` is α. The expectation is the teacher's: the term is the forward KL(p_T ‖ p_S) plus the teacher's entropy, which no student
    changes, so its gradient is that of `kd` with β = 0, and training with either is the same. It is not 0 where the two are equal, so it is
    no divergence, and `directions`, which the doctor measures, does not name it.
    """

    name: ClassVar[str] = "llava_mod"
    #: α, the weight of the teacher's soft targets.
    mimic: float = 1.0
    #: Logits are divided by it before the comparison.
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.mimic < math.inf:
            raise ValueError(
                f"llava_mod: mimic must be positive and finite, got {self.mimic}; without it, use method sft"
            )
        check_temperature(self.name, self.temperature)

    def token_terms(self, logits: AnswerLogits) -> TokenTerms:
        """Cross-entropy with the answers of the data, and with the teacher's, at its weight."""
        from switchkd.losses import cross_entropy, soft_cross_entropy

        compared = logits.compared[TEACHER]
        mimic = soft_cross_entropy(compared.student, compared.teacher, temperature=self.temperature)
        return {
            "ce": logits.term(cross_entropy(logits.student, logits.targets)),
            "mimic": compared.term(self.mimic * mimic),
        }
