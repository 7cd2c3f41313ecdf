"""EM-KD (arXiv 2511.21106): match the visual tokens of both models first, so that one may have fewer of them than the other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from switchkd.methods.method import Method, Need, check_temperature, check_unread, cross_entropy_and_answers
from switchkd.models.capture import Hidden, HiddenSet
from switchkd.names import TEACHER, Direction
from switchkd.typed_fields import check_fields

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor, nn

    from switchkd.signals import AnswerLogits, SampleTerms, Signals, TokenTerms

_VISUAL, _TEXT = HiddenSet(at="visual"), Hidden(at="text")


@dataclass(frozen=True)
class EMKD(Method):
    """L = CE(z_S, y) + α·KL(p_S ‖ p_T) at answers + β·KL(p_S ‖ p_T) at matched visual tokens + γ·smoothL1(cos(v, t)_S − cos(v, t)_T).

    `answers` is α, `matched` β, `affinity` γ. Visual tokens are matched one to one by the Manhattan distance of their logits; of the model
    that has more of them, the others are left out. v are the matched visual tokens and t the text of a row, both behind the last layer
    and its norm. Reverse KL both times, no T² factor; the last two terms are means over a row. The default weights are the paper's, 0.5,
    0.25 and 25, divided by that of its cross-entropy, 0.5.
    """

    name: ClassVar[str] = "em_kd"
    answer_weights: ClassVar[tuple[str, ...]] = ("answers",)
    sample_weights: ClassVar[tuple[str, ...]] = ("matched", "affinity")
    #: α, the weight of the KL at answers.
    answers: float = 1.0
    #: β, the weight of the KL at matched visual tokens.
    matched: float = 0.5
    #: γ, the weight of how visual tokens and text relate. Both models must read the same text.
    affinity: float = 50.0
    #: Logits are divided by it in both KL.
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_temperature(self.name, self.temperature)
        weights = {"answers": self.answers, "matched": self.matched, "affinity": self.affinity}
        if not all(0 <= weight < math.inf for weight in weights.values()) or not any(weights.values()):
            raise ValueError(f"em_kd: weights must be finite, not negative and not all 0, got {weights}")
        if not self.answers and not self.matched:
            check_unread(self, "answers and matched are 0", "temperature")

    @property
    def needs(self) -> frozenset[Need]:
        """Student and teacher, both at visual tokens where these have a weight, and at text for the affinity."""
        weights: dict[Need, float] = {
            "student": 1,
            "teacher": 1,
            _VISUAL: self.matched + self.affinity,
            _TEXT: self.affinity,
        }
        return frozenset(need for need, weight in weights.items() if weight)

    @property
    def directions(self) -> dict[str, Direction]:
        """Reverse, at answers and visual tokens."""
        return {name: "reverse" for name, weight in (("answers", self.answers), ("matched", self.matched)) if weight}

    def token_terms(self, logits: AnswerLogits) -> TokenTerms:
        """Cross-entropy and `answers`."""
        from switchkd.losses import reverse_kl

        return cross_entropy_and_answers(logits, reverse_kl, weight=self.answers, temperature=self.temperature)

    def sample_terms(self, signals: Signals, learned: nn.Module | None) -> SampleTerms:
        """`matched` and `affinity`; the logits of one sample at a time, once to match its tokens and once to compare them."""
        import torch

        from switchkd.losses import affinity, match_tokens, of_logits

        both = signals.activations[TEACHER]
        heads = both.student_head, both.teacher_head
        texts = both.pairs(_TEXT, width=False) if self.affinity else [None] * len(both.keys)
        terms: dict[str, list[Tensor]] = {name: [] for name in self.sample_weights if getattr(self, name)}
        for student, teacher, text in zip(both.student[_VISUAL], both.teacher[_VISUAL], texts, strict=True):
            if not len(student) or not len(teacher):
                for values in terms.values():
                    values.append(student.new_zeros((), dtype=torch.promote_types(student.dtype, torch.float32)))
                continue
            with torch.no_grad():
                student_places, teacher_places = match_tokens(heads[0].logits(student), heads[1].logits(teacher))
            student_v, teacher_v = student[student_places], teacher[teacher_places]
            if self.matched:
                terms["matched"].append(of_logits(self._divergence, student_v, heads[0], teacher_v, heads[1]))
            if text is not None:
                terms["affinity"].append(affinity(student_v, text[0], teacher_v, text[1]))
        return {name: getattr(self, name) * torch.stack(values) for name, values in terms.items()}

    def _divergence(self, student: Float[Tensor, "n vocab"], teacher: Float[Tensor, "n vocab"]) -> Float[Tensor, ""]:
        from switchkd.losses import reverse_kl

        return reverse_kl(student, teacher, temperature=self.temperature).mean()
