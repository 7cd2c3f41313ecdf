"""Align-KD (arXiv 2412.01282): soft targets, where the first layer's text looks, and what it looks at."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from switchkd.methods.method import Method, Need, check_temperature, check_unread
from switchkd.models.capture import Attention, Hidden, Projected
from switchkd.names import TEACHER, Direction
from switchkd.typed_fields import check_fields

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor, nn

    from switchkd.methods.align_maps import Maps
    from switchkd.signals import Activations, AnswerLogits, SampleTerms, Signals, Sizes, TokenTerms

_TEXT, _PROJECTED, _ATTENTION = Hidden(at="text"), Projected(), Attention(layer=0, of="text", to="visual")


@dataclass(frozen=True)
class AlignKD(Method):
    """L = CE(z_S, y) + α·KL(p_T ‖ p_S) at all text + β·MSE(M_A A_S, A_T) + γ·MSE(M_P P_S, P_T) + δ·the same of the tokens in focus.

    `soft` is α: the cross-entropy with the teacher's soft targets, less their entropy, which is constant. `attention` is β: A is the first
    layer's attention from text to visual tokens. `projected` is γ: P are the visual tokens as they enter the language model. `focus` is δ:
    the `top` visual tokens that get most of the teacher's A. The maps M are learned; every term is a mean over a row.
    """

    name: ClassVar[str] = "align_kd"
    sample_weights: ClassVar[tuple[str, ...]] = ("soft", "attention", "projected", "focus")
    #: α, the weight of the teacher's soft targets.
    soft: float = 1.0
    #: β, the weight of the first layer's attention.
    attention: float = 1.0
    #: γ, the weight of the visual tokens.
    projected: float = 1.0
    #: δ, the weight of those in focus.
    focus: float = 1.0
    #: So many visual tokens are in focus.
    top: int = 16
    #: Logits are divided by it before the comparison.
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_temperature(self.name, self.temperature)
        if self.top < 1:
            raise ValueError(f"align_kd: top must be at least 1 visual token, got {self.top}")
        weights = self._weights()
        if not all(0 <= weight < math.inf for weight in weights.values()) or not any(weights.values()):
            raise ValueError(f"align_kd: weights must be finite, not negative and not all 0, got {weights}")
        if not self.focus:
            check_unread(self, "focus is 0", "top")
        if not self.soft:
            check_unread(self, "soft is 0", "temperature")

    def _weights(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in self.sample_weights}

    @property
    def needs(self) -> frozenset[Need]:
        """Student and teacher, and what has a weight inside both."""
        weights: dict[Need, float] = {
            "student": 1,
            "teacher": 1,
            _TEXT: self.soft,
            _ATTENTION: self.attention + self.focus,
            _PROJECTED: self.projected + self.focus,
        }
        return frozenset(need for need, weight in weights.items() if weight)

    @property
    def compares_answers(self) -> bool:
        """All comparisons are about rows; soft targets are those of all text."""
        return False

    @property
    def directions(self) -> dict[str, Direction]:
        """Forward."""
        return {"soft": "forward"} if self.soft else {}

    def learned(self, student: Sizes, teacher: Sizes) -> nn.Module | None:
        """M_A and M_P; None where only soft targets are learned from."""
        from switchkd.methods.align_maps import Maps

        return Maps(student, teacher) if self.needs & {_ATTENTION, _PROJECTED} else None

    def token_terms(self, logits: AnswerLogits) -> TokenTerms:
        """Cross-entropy."""
        from switchkd.losses import cross_entropy

        return {"ce": logits.term(cross_entropy(logits.student, logits.targets))}

    def sample_terms(self, signals: Signals, learned: nn.Module | None) -> SampleTerms:
        """All others, each at its weight."""
        import torch

        from switchkd.losses import of_logits
        from switchkd.methods.align_maps import Maps

        both = signals.activations[TEACHER]
        terms: dict[str, list[Tensor]] = {}
        if self.soft:
            terms["soft"] = [
                of_logits(self._soft, student_hidden, both.student_head, teacher_hidden, both.teacher_head)
                for student_hidden, teacher_hidden in both.pairs(_TEXT, width=False)
            ]
        if isinstance(learned, Maps):
            terms |= self._mapped(both, learned)
        weights = self._weights()
        return {name: weights[name] * torch.stack(values) for name, values in terms.items() if weights[name]}

    def _mapped(self, both: Activations, maps: Maps) -> dict[str, list[Tensor]]:
        """The terms whose students are mapped to the teacher's sizes."""
        from switchkd.losses import squared_error
        from switchkd.methods.align_maps import in_focus

        terms: dict[str, list[Tensor]] = {}
        if self.attention:
            pairs = both.pairs(_ATTENTION)
            terms["attention"] = [squared_error(maps.attention(student_a), teacher_a) for student_a, teacher_a in pairs]
        if self.projected or self.focus:
            pairs = [
                (maps.projected(student_tokens), teacher_tokens)
                for student_tokens, teacher_tokens in both.pairs(_PROJECTED, width=False)
            ]
            terms["projected"] = [squared_error(*pair) for pair in pairs]
        if self.focus:
            chosen = [in_focus(attention, self.top) for attention in both.teacher[_ATTENTION]]
            terms["focus"] = [
                squared_error(student_tokens[tokens], teacher_tokens[tokens])
                for (student_tokens, teacher_tokens), tokens in zip(pairs, chosen, strict=True)
            ]
        return terms

    def _soft(self, student: Float[Tensor, "n vocab"], teacher: Float[Tensor, "n vocab"]) -> Float[Tensor, ""]:
        from switchkd.losses import forward_kl

        values = forward_kl(student, teacher, temperature=self.temperature)
        return values.sum() / max(len(values), 1)
