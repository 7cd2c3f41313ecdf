"""Supervised fine-tuning: the baseline every distillation is compared with."""

from dataclasses import dataclass
from typing import ClassVar

from switchkd.losses import cross_entropy
from switchkd.methods.method import Method, Need, TokenTerms
from switchkd.signals import AnswerLogits, TokenTerm


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
        return {"ce": TokenTerm(cross_entropy(logits.student, logits.targets))}
