"""Supervised fine-tuning: the baseline every distillation is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from switchkd.methods.method import Method, Need

if TYPE_CHECKING:
    from switchkd.signals import AnswerLogits, TokenTerms


@dataclass(frozen=True)
class SFT(Method):
    """L = CE(z_S, y). No teacher."""

    name: ClassVar[str] = "sft"

    @property
    def needs(self) -> frozenset[Need]:
        """The student alone."""
        return frozenset({"student"})

    def token_terms(self, logits: AnswerLogits) -> TokenTerms:
        """Cross-entropy with the answers of the data."""
        from switchkd.losses import cross_entropy

        return {"ce": logits.term(cross_entropy(logits.student, logits.targets))}
