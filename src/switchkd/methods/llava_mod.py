"""LLaVA-MoD's mimic distillation (arXiv 2408.15881): cross-entropy with the teacher's soft answers."""

import math
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Int
from torch import Tensor

from switchkd.losses import cross_entropy, soft_cross_entropy
from switchkd.methods.method import Method, Terms, check_temperature
from switchkd.types import Need, Routes


@dataclass(frozen=True)
class LLaVAMoD(Method):
    """L = CE(z_S, y) + α·(−Σ_v p_T(v) log p_S(v)) on the answer tokens.

    `mimic` is α. The expectation is the teacher's: the term is the forward KL(p_T ‖ p_S) plus the teacher's entropy, which no student
    changes, so its gradient is that of `kd` with β = 0, and training with either is the same. It is not 0 where the two are equal, so it is
    no divergence, and `directions`, which the doctor measures, does not name it.
    """

    name: ClassVar[str] = "llava_mod"
    mimic: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.mimic < math.inf:
            raise ValueError(
                f"llava_mod: mimic must be positive and finite, got {self.mimic}; without it, use method sft"
            )
        check_temperature(self.name, self.temperature)

    @property
    def needs(self) -> frozenset[Need]:
        """Student and teacher."""
        return frozenset({"student", "teacher"})

    def terms(self, routes: Routes, targets: Int[Tensor, " answers"]) -> Terms:
        """Cross-entropy with the answers of the data, and with the teacher's, at its weight."""
        mimic = soft_cross_entropy(routes["student"], routes["teacher"], temperature=self.temperature)
        return {"ce": cross_entropy(routes.student, targets), "mimic": self.mimic * mimic}
