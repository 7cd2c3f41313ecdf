"""A method with terms of others on what is inside both models: `method: {name: switch_kd, features: 1.0}`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from switchkd.methods.align_kd import AlignKD
from switchkd.methods.align_ti import AlignTI
from switchkd.methods.compodistill import CompoDistill
from switchkd.methods.em_kd import EMKD
from switchkd.methods.feature_kd import FeatureKD
from switchkd.methods.llava_kd import LLaVAKD
from switchkd.methods.method import Method, Need
from switchkd.typed_fields import check_fields

if TYPE_CHECKING:
    from torch import nn

    from switchkd.losses import ChunkLoss
    from switchkd.names import Direction
    from switchkd.signals import AnswerLogits, SampleTerms, Signals, Sizes, TokenTerms

#: Term → the method it comes from.
SAMPLE_TERMS: dict[str, type[Method]] = {
    term: method
    for method in (FeatureKD, LLaVAKD, AlignKD, EMKD, CompoDistill, AlignTI)
    for term in method.sample_weights
}


@dataclass(frozen=True)
class Plus(Method):
    """L = L_method + Σ weight·term, the terms as their own method computes them at its default knobs.

    Args:
        method: whose terms stay as they are.
        weights: term of `SAMPLE_TERMS` → its weight.

    Raises:
        ValueError: a term that is unknown or that the method has itself, or a weight that is not positive and finite.
    """

    name: ClassVar[str] = "plus"
    method: Method
    weights: dict[str, float] = field(hash=False)

    def __post_init__(self) -> None:
        check_fields(self, {Method: {}})
        for term, weight in self.weights.items():
            if term not in SAMPLE_TERMS:
                raise ValueError(
                    f"{self.method.name}: there is no term {term!r} to add: there are {', '.join(SAMPLE_TERMS)}"
                )
            if term in self.method.core.sample_weights:
                raise ValueError(f"{self.method.name}: {term} is a weight of its own, so it cannot be added once more")
            if weight <= 0:
                raise ValueError(f"{self.method.name}: {term} must be positive, got {weight}; leave it out for none")

    def plus(self, **weights: float) -> Plus:
        """With these terms too."""
        if twice := self.weights.keys() & weights.keys():
            raise ValueError(
                f"{self.label}: {', '.join(sorted(twice))} is there already, so it cannot be added once more"
            )
        return replace(self, weights=self.weights | weights)

    @property
    def label(self) -> str:
        """All that is summed: `switch_kd + features`."""
        return " + ".join((self.method.label, *self.weights))

    @property
    def core(self) -> Method:
        """Without what is added."""
        return self.method.core

    @property
    def compares_answers(self) -> bool:
        """What is added does not."""
        return self.method.compares_answers

    @cached_property
    def _added(self) -> dict[str, Method]:
        """The methods that the terms come from, with every other weight 0."""
        chosen: dict[type[Method], dict[str, float]] = {}
        for term, weight in self.weights.items():
            chosen.setdefault(SAMPLE_TERMS[term], {})[term] = weight
        return {kind.name: kind.of_samples_alone(**weights) for kind, weights in chosen.items()}

    @property
    def needs(self) -> frozenset[Need]:
        """What the method needs, and what its additions look at."""
        return self.method.needs.union(*(added.needs for added in self._added.values()))

    @property
    def directions(self) -> dict[str, Direction]:
        """Of all terms."""
        return self.method.directions | {
            term: way for added in self._added.values() for term, way in added.directions.items()
        }

    def at(self, progress: float, step: int | None = None) -> Plus:
        """With the method as it is at this step."""
        return replace(self, method=self.method.at(progress, step))

    def learned(self, student: Sizes, teacher: Sizes) -> nn.Module | None:
        """What each of them learns, by the name of its method."""
        from torch import nn

        made = {name: one.learned(student, teacher) for name, one in self._parts.items()}
        modules = {name: module for name, module in made.items() if module is not None}
        return nn.ModuleDict(modules) if modules else None

    @property
    def _parts(self) -> dict[str, Method]:
        return {"method": self.method} | self._added

    def token_terms(self, logits: AnswerLogits) -> TokenTerms:
        """Those of the method."""
        return self.method.token_terms(logits)

    def sample_terms(self, signals: Signals, learned: nn.Module | None) -> SampleTerms:
        """Those of the method, and what is added."""
        modules = {} if learned is None else dict(learned.named_children())
        terms: SampleTerms = {}
        for name, one in self._parts.items():
            more = one.sample_terms(signals, modules.get(name)) if one.sites else {}
            if twice := terms.keys() & more.keys():
                raise ValueError(
                    f"{self.method.name}: {', '.join(sorted(twice))} is a term of its own, so it cannot be added once more"
                )
            terms |= more
        return terms

    def statistics(self, logits: AnswerLogits) -> TokenTerms:
        """Those of the method."""
        return self.method.statistics(logits)

    def chunk_loss(self) -> ChunkLoss:
        """That of the method."""
        return self.method.chunk_loss()
