"""What every method is: the pathways it needs, and the terms whose sum is the loss."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from switchkd.models.capture import Site
from switchkd.names import TEACHER, Direction, Route, VisualWeights

if TYPE_CHECKING:
    from torch import Tensor, nn

    from switchkd.losses import ChunkLoss
    from switchkd.signals import AnswerLogits, SampleTerms, Signals, Sizes, TokenTerms

#: All that a method can ask for: pathways, places inside both models, and how answer tokens are weighed.
Need = Route | Site | VisualWeights


def check_temperature(name: str, temperature: float) -> None:
    """Raise ValueError unless the temperature of method `name` is a positive, finite number."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"{name}: temperature must be positive and finite, got {temperature}")


def cross_entropy_and_answers(
    logits: AnswerLogits, divergence: Callable[..., Tensor], *, weight: float, temperature: float
) -> TokenTerms:
    """CE(z_S, y), and where it has a weight a divergence of the student's answers from the teacher's, as the term `answers`."""
    from switchkd.losses import cross_entropy

    terms = {"ce": logits.term(cross_entropy(logits.student, logits.targets))}
    if weight:
        compared = logits.compared[TEACHER]
        terms["answers"] = compared.term(
            weight * divergence(compared.student, compared.teacher, temperature=temperature)
        )
    return terms


def check_unread(method: Method, reason: str, *knobs: str) -> None:
    """Raise ValueError where one of these knobs is not at its default, because nothing reads it for this reason."""
    changed = [f"{name}={value}" for name in knobs if (value := getattr(method, name)) != getattr(type(method), name)]
    if changed:
        raise ValueError(
            f"{method.name}: {reason}, so there is nothing that {', '.join(changed)} could change: leave it out"
        )


class Method(ABC):
    """A distillation method: a frozen dataclass whose fields are its knobs.

    A method knows signals, never models. The trainer sums what `token_terms` returns and divides once, by the number of answer tokens of
    the global batch (all ranks, all accumulation steps), so a term carries its weight and no reduction.
    """

    name: ClassVar[str]
    #: Fields that weigh a term on answer tokens besides the cross-entropy, and fields that weigh one of `sample_terms`.
    answer_weights: ClassVar[tuple[str, ...]] = ()
    sample_weights: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def of_samples_alone(cls, **weights: float) -> Method:
        """With these of `sample_weights`, and every other weight 0."""
        others = dict.fromkeys((*cls.answer_weights, *cls.sample_weights), 0.0)
        return cls(**others | weights)

    def plus(self, **weights: float) -> Method:
        """With terms of other methods on what is inside both models, as in `SwitchKD().plus(features=1.0)`.

        Raises:
            ValueError: a term that is unknown or that this method has itself, or a weight that is not positive and finite.
        """
        from switchkd.methods.plus import Plus

        return Plus(self, weights)

    def weighted(self, weights: VisualWeights | None = None) -> Method:
        """With answer tokens weighed by how much the teacher's opinion of them depends on what is seen, as in `KD().weighted()`.

        Raises:
            ValueError: where no term compares answers with the teacher's.
        """
        from switchkd.methods.weighted import Weighted

        return Weighted(self, weights or VisualWeights())

    @property
    def core(self) -> Method:
        """The method itself, without what a recipe adds to it."""
        return self

    @property
    def compares_answers(self) -> bool:
        """Whether a term of `token_terms` compares answers with the teacher's."""
        weights = [getattr(self, name) for name in self.answer_weights]
        return "teacher" in self.needs and (not weights or any(weights))

    @property
    def label(self) -> str:
        """What logs and tables call it."""
        return self.name

    @property
    def needs(self) -> frozenset[Need]:
        """The pathways whose logits `token_terms` reads, and the places inside both models that `sample_terms` looks at."""
        return frozenset({"student", "teacher"})

    @property
    def sites(self) -> frozenset[Site]:
        """Of these, the places inside both models."""
        return frozenset(need for need in self.needs if isinstance(need, Site))

    @abstractmethod
    def token_terms(self, logits: AnswerLogits) -> TokenTerms:
        """The weighted terms of the loss: a value for each answer token, and which answers these are."""

    def sample_terms(self, signals: Signals, learned: nn.Module | None) -> SampleTerms:
        """The weighted terms about what is inside both models, one value for each sample; 0 for one that has nothing to compare.

        Every answer token carries the value of its sample: the trainer adds Σ over samples of value × answer tokens of the sample before
        it divides. So these terms too are the same however the global batch is spread over ranks and steps. Only called where `needs`
        names a site.
        """
        return {}

    def learned(self, student: Sizes, teacher: Sizes) -> nn.Module | None:
        """What `sample_terms` needs of weights of its own, such as a map from the student's width to the teacher's.

        They learn with the student, are kept in checkpoints for resuming, and are in no finished student.
        """
        return None

    @property
    def directions(self) -> dict[str, Direction]:
        """Which way the divergences among the terms point. The doctor holds it against a pair of known distributions."""
        return {}

    def at(self, progress: float, step: int | None = None) -> Method:
        """The method as it is at a step of a stage: itself, unless a weight changes. What it does not need then is not computed.

        Args:
            progress: from above 0 (first step) to 1 (last).
            step: the number of the step, from 0. None: no step in particular, as on held-out rows; a term that only every n-th step has
                is then there, at its mean weight.
        """
        return self

    def statistics(self, logits: AnswerLogits) -> TokenTerms:
        """What else is worth a line in the log, per answer token; not part of the loss."""
        return {}

    def chunk_loss(self) -> ChunkLoss:
        """The same for the fused loss. A method whose gradients are written out returns them here; for the others autograd finds them."""
        from switchkd.losses import AutogradTerms

        return AutogradTerms(self.token_terms, self.statistics)
