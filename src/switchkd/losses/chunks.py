"""Losses on one chunk of tokens: from logits that exist for a moment to the sums and the gradients that stay."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from switchkd.losses.checks import check_at_least_two
from switchkd.losses.dbild import Comparison
from switchkd.losses.kernels import Scan, scan, softmax_gradient_
from switchkd.losses.projection import Sparse
from switchkd.types import Route, Routes

#: What `Comparison.choose` gives for one leader: its ids, and how many of them take part (each leader has its own longest k).
Choice = tuple[Int[Tensor, "n _"], Int[Tensor, " n"]]


@dataclass
class ChunkGradients:
    """∂(sum of all terms)/∂z for the logits of a chunk; None where there is none or it was not asked for."""

    student: Float[Tensor, "n rows"] | None = None
    switch: Float[Tensor, "compared vocab"] | Sparse | None = None


@dataclass
class ChunkSums:
    """The terms (each with its weight) and the statistics of a chunk, summed over its tokens."""

    terms: dict[str, Float[Tensor, ""]]
    statistics: dict[str, Float[Tensor, ""]] = field(default_factory=dict)

    def add(self, other: "ChunkSums") -> None:
        """Add the sums of further tokens."""
        for mine, more in ((self.terms, other.terms), (self.statistics, other.statistics)):
            for name, value in more.items():
                mine[name] = mine[name] + value if name in mine else value


class ChunkLoss(ABC):
    """What `fused_loss` asks of a loss."""

    @abstractmethod
    def __call__(
        self, logits: Routes, targets: Int[Tensor, " n"], *, student: bool, switch: bool
    ) -> tuple[ChunkSums, ChunkGradients]:
        """The sums over these tokens, and the gradients with respect to the logits asked for.

        The logits are the callee's to overwrite: they are not read again.
        """


@dataclass(frozen=True)
class PlainTerms(ChunkLoss):
    """Any loss written as terms per token, as methods write them: autograd finds the gradients, chunk by chunk.

    Args:
        terms: from logits and targets to named values per token.
        statistics: from logits to more named values per token, for the log alone.
    """

    terms: Callable[[Routes, Tensor], dict[str, Tensor]]
    statistics: Callable[[Routes], dict[str, Tensor]] | None = None

    def __call__(
        self, logits: Routes, targets: Int[Tensor, " n"], *, student: bool, switch: bool
    ) -> tuple[ChunkSums, ChunkGradients]:
        """See `ChunkLoss`; both gradients are dense."""
        asked: dict[Route, bool] = {"student": student, "switch": switch}
        leaves = {name: getattr(logits, name).detach().requires_grad_() for name in asked if asked[name]}
        logits = replace(logits, **leaves)
        with torch.enable_grad():
            sums = {name: _sum(values) for name, values in self.terms(logits, targets).items()}
            total = torch.stack(list(sums.values())).sum()
        gradients = ChunkGradients()
        if leaves:  # materialize_grads: the gradient of a pathway that no term reads is 0
            found = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
            gradients = ChunkGradients(**dict(zip(leaves, found, strict=True)))
        statistics = self.statistics(logits) if self.statistics else {}
        return ChunkSums(
            {name: value.detach() for name, value in sums.items()},
            {name: _sum(values) for name, values in statistics.items()},
        ), gradients


@dataclass(frozen=True)
class CrossEntropyDBiLD(ChunkLoss):
    """CE(z_S, y) + λ1·DBiLD(z_T, z_S) + λ2·DBiLD(z_T, z_SW), with every gradient written out (Switch-KD, arXiv 2604.14629).

    Logits are [tokens, vocabulary] of one chunk; sums over its tokens, in nats. Direction: that of `comparison`, as in `dbild`.

    Term for term the sums of `cross_entropy` and `dbild`, but the softmax overwrites the student's logits and becomes their gradient, the
    sparse gradient of the align term is added in place, that of the switch term stays sparse, and the teacher's order serves both. Where
    the plain losses refuse a non-finite logit, a term here becomes non-finite itself.

    Args:
        align: λ1, 0 without this term.
        switch: λ2, 0 without this term. With both 0 this is plain cross-entropy.
        comparison: the knobs of `dbild`.
        kernels: "triton" passes over the logits with the kernels of `losses.kernels`, on CUDA; same values, see there.
    """

    align: float
    switch: float
    comparison: Comparison = field(default_factory=Comparison)
    kernels: Literal["torch", "triton"] = "torch"

    @classmethod
    def cross_entropy_alone(cls) -> "CrossEntropyDBiLD":
        """Without its two other terms, and what they need."""
        return cls(align=0, switch=0)

    def __call__(
        self, logits: Routes, targets: Int[Tensor, " n"], *, student: bool, switch: bool
    ) -> tuple[ChunkSums, ChunkGradients]:
        """See `ChunkLoss`; the student's gradient takes the place of its logits, the switch's is sparse."""
        terms, statistics, sparse = {}, {}, {}
        scans = self._scans(logits)
        if self.align or self.switch:
            check_at_least_two("the vocabulary", logits["teacher"].shape[1])
            by_teacher = self._choose(logits, "teacher", logits["teacher"], scans)
            statistics["knee_teacher"] = _sum(by_teacher[1])
        learners: list[tuple[str, Route, float]] = [("align", "student", self.align), ("switch", "switch", self.switch)]
        for name, learner, weight in learners:
            if weight:
                spoken = logits[learner]
                by_learner = self._choose(logits, learner, spoken, scans)
                statistics[f"knee_{learner}"] = _sum(by_learner[1])
                loss, gradient = self._dbild((by_teacher, by_learner), spoken, logits["teacher"])
                terms[name] = weight * loss
                sparse[learner] = Sparse(gradient.ids, weight * gradient.values)
        # Last of the terms, because it overwrites the student's logits
        ce = _cross_entropy_(logits.student, targets, scans.get("student"), gradient=student)
        terms = {"ce": ce, **terms}
        if student and "student" in sparse:
            _add_(logits, sparse["student"])
        gradients = ChunkGradients(logits.student if student else None, sparse.get("switch") if switch else None)
        return ChunkSums(terms, statistics if self.comparison.top_k is None else {}), gradients

    def _scans(self, logits: Routes) -> dict[Route, Scan]:
        """What one pass of a kernel finds in the logits of each pathway that is read; nothing with plain torch."""
        if self.kernels == "torch":
            return {}
        read = {"student": True, "teacher": self.align or self.switch, "switch": self.switch}
        return {need: scan(getattr(logits, need)) for need in get_args(Route) if read[need]}

    def _choose(
        self, logits: Routes, leader: Route, spoken: Float[Tensor, "compared vocab"], scans: dict[Route, Scan]
    ) -> Choice:
        # a scan is over all of the student's rows, in their own order
        other_rows = leader == "student" and not (logits.ids is None and logits.compared is None)
        maxima = scans[leader].maxima if leader in scans and not other_rows else None
        return self.comparison.choose(spoken, maxima)

    def _dbild(
        self, leaders: tuple[Choice, Choice], learner: Float[Tensor, "n vocab"], teacher: Float[Tensor, "n vocab"]
    ) -> tuple[Float[Tensor, ""], Sparse]:
        """`dbild` summed over the tokens, and its gradient at the ids that the leaders chose."""
        found = [self.comparison.divergence(*chosen, learner, teacher) for chosen in leaders]
        loss = torch.stack([_sum(divergence) for divergence, _ in found]).sum()
        gradient = torch.cat([values for _, values in found], dim=1).to(learner.dtype)
        return loss, Sparse(torch.cat([ids for ids, _ in leaders], dim=1), gradient)


def _cross_entropy_(
    logits: Float[Tensor, "n rows"], targets: Int[Tensor, " n"], found: Scan | None, *, gradient: bool
) -> Float[Tensor, ""]:
    """`cross_entropy` summed over the tokens; overwrites the logits, with its gradient (softmax − one-hot) if asked for."""
    if found is not None:
        values = found.log_sum_exp - logits.gather(1, targets[:, None]).squeeze(1)
        if gradient:
            softmax_gradient_(logits, found.log_sum_exp, targets)
        return _sum(values)
    largest = logits.amax(dim=-1, keepdim=True)
    answer = logits.gather(1, targets[:, None])
    total = logits.sub_(largest).exp_().sum(dim=-1, keepdim=True)
    if gradient:
        logits.div_(total).scatter_add_(1, targets[:, None], logits.new_full((len(targets), 1), -1))
    return _sum(total.log() + largest - answer)


def _add_(logits: Routes, gradient: Sparse) -> None:
    """Add the gradient of `logits["student"]` to what stands in `logits.student`, in place."""
    ids, values = gradient
    if logits.ids is not None:
        ids = logits.ids[ids]
    if logits.compared is None:
        logits.student.scatter_add_(1, ids, values)
    else:
        logits.student.index_put_((logits.compared[:, None], ids), values, accumulate=True)


def _sum(values: Num[Tensor, "..."]) -> Float[Tensor, ""]:
    """In float64, so that neither the number of tokens nor the size of the chunks shows."""
    return values.sum(dtype=torch.float64)
