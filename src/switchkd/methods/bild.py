"""BiLD: bi-directional logits difference with a fixed k (COLING 2025), the parent of Switch-KD's loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from switchkd.methods.method import Method, check_temperature
from switchkd.names import TEACHER, Direction
from switchkd.typed_fields import check_fields

if TYPE_CHECKING:
    from switchkd.signals import AnswerLogits, TokenTerms


@dataclass(frozen=True)
class BiLD(Method):
    """L = CE(z_S, y) + BiLD(z_T, z_S) with *forward* KL(p_T ‖ p_S) led from both sides, on the answer tokens.

    The paper's own recipe has no cross-entropy and adds a KL on the prompt; here BiLD replaces the divergence of `kd` and nothing else,
    so that methods differ in one place.
    """

    name: ClassVar[str] = "bild"
    #: So many largest logits are compared.
    top_k: int = 8
    #: Logits are divided by it before the comparison.
    temperature: float = 3.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.top_k < 3:
            raise ValueError(
                f"bild: top_k must be at least 3, got {self.top_k}: the probability of a single pair is always 1, so 2 logits teach nothing"
            )
        check_temperature(self.name, self.temperature)

    @property
    def directions(self) -> dict[str, Direction]:
        """Forward, from both leaders."""
        return {"bild": "forward"}

    def token_terms(self, logits: AnswerLogits) -> TokenTerms:
        """Cross-entropy and the logits-difference loss."""
        from switchkd.losses import bild, cross_entropy

        compared = logits.compared[TEACHER]
        differences = bild(compared.student, compared.teacher, top_k=self.top_k, temperature=self.temperature)
        return {"ce": logits.term(cross_entropy(logits.student, logits.targets)), "bild": compared.term(differences)}
