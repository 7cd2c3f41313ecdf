"""Losses on one chunk of tokens: from logits that exist for a moment to the sums and the gradients that stay."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from switchkd.losses.projection import Sparse
from switchkd.signals import AnswerLogits, TokenTerm


@dataclass
class ChunkGradients:
    """∂(sum of all terms)/∂z for the logits of a chunk; None where there is none or it was not asked for."""

    student: Float[Tensor, "n rows"] | None = None
    #: By the teacher's name.
    switch: dict[str, Float[Tensor, "compared vocab"] | Sparse] = field(default_factory=dict)


@dataclass
class ChunkSums:
    """The terms (each with its weight) and the statistics of a chunk, summed over its tokens."""

    terms: dict[str, Float[Tensor, ""]]
    statistics: dict[str, Float[Tensor, ""]] = field(default_factory=dict)

    def add(self, other: "ChunkSums") -> None:
        """Add the sums of further tokens."""
        for sums, further in ((self.terms, other.terms), (self.statistics, other.statistics)):
            for name, value in further.items():
                sums[name] = sums[name] + value if name in sums else value


class ChunkLoss(ABC):
    """What `fused_loss` asks of a loss."""

    @abstractmethod
    def __call__(
        self, logits: AnswerLogits, *, student: torch.dtype | None, switch: bool
    ) -> tuple[ChunkSums, ChunkGradients]:
        """The sums over these answers, and the gradients with respect to the logits asked for.

        The logits are the callee's to overwrite: they are not read again.

        Args:
            logits: of some answers, in float32 or wider.
            student: the precision in which the gradient of the student's logits will be multiplied, for those who can write it so; None
                where it is not wanted.
            switch: whether the gradients of the switch's are.
        """


@dataclass(frozen=True)
class AutogradTerms(ChunkLoss):
    """Any loss written as terms per token, as methods write them: autograd finds the gradients, chunk by chunk.

    Args:
        terms: from logits to named terms.
        statistics: from logits to more of them, for the log alone.
    """

    terms: Callable[[AnswerLogits], dict[str, TokenTerm]]
    statistics: Callable[[AnswerLogits], dict[str, TokenTerm]] | None = None

    def __call__(
        self, logits: AnswerLogits, *, student: torch.dtype | None, switch: bool
    ) -> tuple[ChunkSums, ChunkGradients]:
        """See `ChunkLoss`; both gradients are dense, and as wide as the logits."""
        leaves: dict[str, Tensor] = {}
        if switch:
            leaves = {
                name: one.switch.detach().requires_grad_()
                for name, one in logits.compared.items()
                if one.switch is not None
            }
            compared = {
                name: replace(one, switch=leaves.get(name, one.switch)) for name, one in logits.compared.items()
            }
            logits = replace(logits, compared=compared)
        inputs = list(leaves.values())
        if student is not None:
            leaf = logits.student.detach().requires_grad_()
            logits, inputs = logits.with_student(leaf), [leaf, *inputs]
        with torch.enable_grad():
            sums = {name: total(term) for name, term in checked_terms(self.terms(logits), logits).items()}
            whole = torch.stack(list(sums.values())).sum()
        gradients = ChunkGradients()
        if inputs:  # materialize_grads: the gradient of a pathway that no term reads is 0
            values = list(torch.autograd.grad(whole, inputs, materialize_grads=True))
            gradients.student = None if student is None else values.pop(0)
            gradients.switch = dict(zip(leaves, values, strict=True))
        statistics = checked_terms(self.statistics(logits), logits) if self.statistics else {}
        return ChunkSums(
            {name: value.detach() for name, value in sums.items()},
            {name: total(values) for name, values in statistics.items()},
        ), gradients


def checked_terms(terms: dict[str, TokenTerm], logits: AnswerLogits) -> dict[str, Float[Tensor, "_"]]:
    """The values of each term; those of `ce` are 0 for answers that are no labels.

    Raises:
        ValueError: for a term that says it is about all answers and has another number of values.
    """
    for name, term in terms.items():
        if term.answers is None and len(term.values) != len(logits.targets):
            raise ValueError(
                f"term {name!r} has {len(term.values)} values for {len(logits.targets)} answers: a term about some answers says which "
                "(`ComparedLogits.term`)"
            )
    return {name: _of_labels(term, logits.labelled) if name == "ce" else term.values for name, term in terms.items()}


def _of_labels(term: TokenTerm, labelled: Bool[Tensor, " answers"] | None) -> Float[Tensor, "_"]:
    if labelled is None:
        return term.values
    return torch.where(labelled if term.answers is None else labelled[term.answers], term.values, 0)


def total(values: Num[Tensor, "..."]) -> Float[Tensor, ""]:
    """In float64, so that neither the number of tokens nor the size of the chunks shows."""
    return values.sum(dtype=torch.float64)
