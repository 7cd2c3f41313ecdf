"""Supervised fine-tuning: the baseline every distillation is compared with."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Int
from torch import Tensor

from switchkd.losses import cross_entropy
from switchkd.methods.method import Method, Terms
from switchkd.types import Need, Routes


@dataclass(frozen=True)
class SFT(Method):
    """L = CE(z_S, y). No teacher."""

    name: ClassVar[str] = "sft"

    @property
    def needs(self) -> frozenset[Need]:
        """The student alone."""
        return frozenset({"student"})

    def terms(self, routes: Routes, targets: Int[Tensor, " answers"]) -> Terms:
        """Cross-entropy with the answers of the data."""
        return {"ce": cross_entropy(routes.student, targets)}
