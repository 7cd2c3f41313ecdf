"""A method whose comparisons at answers weigh more where the teacher looks: `method: {name: kd, weights: visual}`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from switchkd.methods.method import Method, Need
from switchkd.names import TEACHER, VisualWeights
from switchkd.typed_fields import check_fields

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor, nn

    from switchkd.losses import ChunkLoss
    from switchkd.names import Direction
    from switchkd.signals import AnswerLogits, SampleTerms, Signals, Sizes, TokenTerm, TokenTerms


#: The key under `method` in a recipe that weighs its answer tokens.
WEIGHTS = "weights"


@dataclass(frozen=True)
class Weighted(Method):
    """L = L_method, in which every term on answers but the cross-entropy is w·term, w as `pairing.visual_weights` has it.

    The teacher reads every batch once more, its pictures without detail. Terms about rows stay as they are: they are about no one token.

    Args:
        method: whose terms are weighed.
        weights: how.

    Raises:
        ValueError: for a method that compares no answers, or that is weighed already.
    """

    name: ClassVar[str] = "weighted"
    method: Method
    weights: VisualWeights

    def __post_init__(self) -> None:
        check_fields(self, {Method: {}})
        if isinstance(self.method, Weighted):
            raise ValueError(f"{self.method.label}: its answers are weighed already")
        if not self.method.compares_answers:
            raise ValueError(
                f"{self.method.label}: weights are for terms that compare answers with the teacher's, and it has none with a weight: leave "
                "`weights` out, or choose another method, such as kd or switch_kd"
            )

    @property
    def label(self) -> str:
        """`kd, visual weights`."""
        return f"{self.method.label}, visual weights"

    @property
    def core(self) -> Method:
        """Without the weights."""
        return self.method.core

    @property
    def compares_answers(self) -> bool:
        """That is what is weighed."""
        return True

    def plus(self, **weights: float) -> Method:
        """The same weights around the method with these terms."""
        return replace(self, method=self.method.plus(**weights))

    @property
    def needs(self) -> frozenset[Need]:
        """What the method needs, and the weights."""
        return self.method.needs | {self.weights}

    @property
    def directions(self) -> dict[str, Direction]:
        """Those of the method."""
        return self.method.directions

    def at(self, progress: float, step: int | None = None) -> Method:
        """With the method as it is at this step; the method alone where it compares no answers at this step."""
        method = self.method.at(progress, step)
        return replace(self, method=method) if method.compares_answers else method

    def learned(self, student: Sizes, teacher: Sizes) -> nn.Module | None:
        """What the method learns."""
        return self.method.learned(student, teacher)

    def token_terms(self, logits: AnswerLogits) -> TokenTerms:
        """Those of the method, weighed."""
        terms = self.method.token_terms(logits)
        of_answers = self._of_answers(logits)
        return {name: term if name == "ce" else _weighed(term, of_answers) for name, term in terms.items()}

    def _of_answers(self, logits: AnswerLogits) -> Float[Tensor, " answers"]:
        """The weight of each answer; 1 of one that is not compared."""
        compared = logits.compared[TEACHER]
        if compared.weights is None:
            raise LookupError("answers were not weighed: `weights` of this method is not in the pair's `needs`")
        if compared.answers is None:
            return compared.weights
        ones = compared.weights.new_ones(len(logits.targets))
        return ones.index_put((compared.answers,), compared.weights)

    def sample_terms(self, signals: Signals, learned: nn.Module | None) -> SampleTerms:
        """Those of the method, as they are."""
        return self.method.sample_terms(signals, learned)

    def statistics(self, logits: AnswerLogits) -> TokenTerms:
        """Those of the method, and the visual advantage: how many nats an answer token loses when pictures lose their detail."""
        compared = logits.compared[TEACHER]
        told = self.method.statistics(logits)
        return told if compared.advantage is None else told | {"visual_advantage": compared.term(compared.advantage)}

    def chunk_loss(self) -> ChunkLoss:
        """That of Switch-KD weighs answers itself; for every other one autograd finds the gradients."""
        from switchkd.losses import CrossEntropyDBiLD

        loss = self.method.chunk_loss()
        return loss if isinstance(loss, CrossEntropyDBiLD) else super().chunk_loss()


def _weighed(term: TokenTerm, weights: Float[Tensor, " answers"]) -> TokenTerm:
    return replace(term, values=term.values * (weights if term.answers is None else weights[term.answers]))
