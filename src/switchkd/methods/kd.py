"""Classic logit distillation over the whole vocabulary (Hinton et al., arXiv 1503.02531; JSD: arXiv 2306.13649)."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Int
from torch import Tensor

from switchkd.losses import cross_entropy, jsd
from switchkd.methods.method import Direction, Method, Terms, check_temperature
from switchkd.types import Need, Routes


@dataclass(frozen=True)
class KD(Method):
    """L = CE(z_S, y) + JSD_β(z_T, z_S), softened by the temperature, without a T² factor.

    `beta` as in TRL: 0 is the forward KL(p_T ‖ p_S), 1 the reverse KL(p_S ‖ p_T), between them the generalised Jensen-Shannon divergence.
    """

    name: ClassVar[str] = "kd"
    beta: float = 0.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise ValueError(f"kd: beta must lie between 0 (forward KL) and 1 (reverse KL), got {self.beta}")
        check_temperature(self.name, self.temperature)

    @property
    def needs(self) -> frozenset[Need]:
        """Student and teacher."""
        return frozenset({"student", "teacher"})

    @property
    def directions(self) -> dict[str, Direction]:
        """Forward for β = 0, reverse for β = 1; between them neither."""
        return {"kd": "forward"} if self.beta == 0 else {"kd": "reverse"} if self.beta == 1 else {}

    def terms(self, routes: Routes, targets: Int[Tensor, " answers"]) -> Terms:
        """Cross-entropy and the divergence from the teacher."""
        return {
            "ce": cross_entropy(routes.student, targets),
            "kd": jsd(routes["student"], routes["teacher"], beta=self.beta, temperature=self.temperature),
        }
