"""Losses on one chunk of tokens: from logits that exist for a moment to the sums and the gradients that stay."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from switchkd.losses.checks import check_at_least_two
from switchkd.losses.dbild import DBiLDSettings
from switchkd.losses.kernels import Scan, scan, softmax_gradient_
from switchkd.losses.projection import Sparse
from switchkd.signals import AnswerLogits, ComparedLogits, TokenTerm

#: What `DBiLDSettings.choose` gives for one leader: its ids, and how many of them take part (each leader has its own longest k).
Choice = tuple[Int[Tensor, "n _"], Int[Tensor, " n"]]


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
    def __call__(self, logits: AnswerLogits, *, student: bool, switch: bool) -> tuple[ChunkSums, ChunkGradients]:
        """The sums over these answers, and the gradients with respect to the logits asked for.

        The logits are the callee's to overwrite: they are not read again.
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

    def __call__(self, logits: AnswerLogits, *, student: bool, switch: bool) -> tuple[ChunkSums, ChunkGradients]:
        """See `ChunkLoss`; both gradients are dense."""
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
        if student:
            leaf = logits.student.detach().requires_grad_()
            logits, inputs = logits.with_student(leaf), [leaf, *inputs]
        with torch.enable_grad():
            sums = {name: _sum(term) for name, term in checked_terms(self.terms(logits), logits).items()}
            total = torch.stack(list(sums.values())).sum()
        gradients = ChunkGradients()
        if inputs:  # materialize_grads: the gradient of a pathway that no term reads is 0
            values = list(torch.autograd.grad(total, inputs, materialize_grads=True))
            gradients.student = values.pop(0) if student else None
            gradients.switch = dict(zip(leaves, values, strict=True))
        statistics = checked_terms(self.statistics(logits), logits) if self.statistics else {}
        return ChunkSums(
            {name: value.detach() for name, value in sums.items()},
            {name: _sum(values) for name, values in statistics.items()},
        ), gradients


def checked_terms(terms: dict[str, TokenTerm], logits: AnswerLogits) -> dict[str, Float[Tensor, "_"]]:
    """The values of each term.

    Raises:
        ValueError: for a term that says it is about all answers and has another number of values.
    """
    for name, term in terms.items():
        if term.answers is None and len(term.values) != len(logits.targets):
            raise ValueError(
                f"term {name!r} has {len(term.values)} values for {len(logits.targets)} answers: a term about some answers says which "
                "(`ComparedLogits.term`)"
            )
    return {name: term.values for name, term in terms.items()}


@dataclass(frozen=True)
class CrossEntropyDBiLD(ChunkLoss):
    """CE(z_S, y) + λ1·DBiLD(z_T, z_S) + λ2·DBiLD(z_T, z_SW), with every gradient written out (Switch-KD, arXiv 2604.14629).

    Logits are [tokens, vocabulary] of one chunk; sums over its tokens, in nats. Direction: that of `settings`, as in `dbild`.

    Term for term the sums of `cross_entropy` and `dbild`, but the softmax overwrites the student's logits and becomes their gradient, the
    sparse gradient of the align term is added in place, that of the switch term stays sparse, and the teacher's order serves both. Where
    the plain losses refuse a non-finite logit, a term here becomes non-finite itself.

    Args:
        align: λ1, 0 without this term.
        switch: λ2, 0 without this term. With both 0 this is plain cross-entropy.
        settings: the knobs of `dbild`.
        kernels: "triton" passes over the logits with the kernels of `losses.kernels`, on CUDA; same values, see there.
    """

    align: float
    switch: float
    settings: DBiLDSettings = field(default_factory=DBiLDSettings)
    kernels: Literal["torch", "triton"] = "torch"

    def __call__(self, logits: AnswerLogits, *, student: bool, switch: bool) -> tuple[ChunkSums, ChunkGradients]:
        """See `ChunkLoss`; the student's gradient takes the place of its logits, the switch's is sparse."""
        sums, gradients = ChunkSums({}), ChunkGradients()
        own_scan = self._scan(logits.student)
        align: list[tuple[ComparedLogits, Sparse]] = []
        if self.align or self.switch:
            if not logits.compared:
                raise LookupError("there is no teacher to compare with: nothing stands in `compared`")
            for name, compared in logits.compared.items():
                in_order = (
                    compared.answers is None and compared.ids is None
                )  # a scan is over all rows, in their own order
                by_teacher = self._choose(compared.teacher)
                sums.add(ChunkSums({}, {"knee_teacher": _sum(by_teacher[1])}))
                if self.align:
                    scanned = own_scan if in_order else None
                    align.append(
                        (compared, self._term("align", "student", self.align, compared, by_teacher, scanned, sums))
                    )
                if self.switch:
                    sparse = self._term("switch", "switch", self.switch, compared, by_teacher, None, sums)
                    if switch:
                        gradients.switch[name] = sparse
        # Last of the terms, because it overwrites the student's logits
        ce = _cross_entropy_(logits.student, logits.targets, own_scan, gradient=student)
        if student:
            for compared, sparse in align:
                _add_(logits.student, compared, sparse)
            gradients.student = logits.student
        statistics = sums.statistics if self.settings.top_k is None else {}
        return ChunkSums({"ce": ce, **sums.terms}, statistics), gradients

    def _scan(self, logits: Float[Tensor, "n rows"]) -> Scan | None:
        """What one pass of a kernel finds; nothing with plain torch."""
        return None if self.kernels == "torch" else scan(logits)

    def _choose(self, leader: Float[Tensor, "compared vocab"], scanned: Scan | None = None) -> Choice:
        check_at_least_two("the vocabulary", leader.shape[1])
        scanned = scanned or self._scan(leader)
        return self.settings.choose(leader, None if scanned is None else scanned.maxima)

    def _term(
        self,
        term: str,
        learner: Literal["student", "switch"],
        weight: float,
        compared: ComparedLogits,
        by_teacher: Choice,
        scanned: Scan | None,
        sums: ChunkSums,
    ) -> Sparse:
        """Add `dbild` of a learner to `sums`; its gradient, at the ids that the two leaders chose."""
        logits = compared.of(learner)
        leaders = (by_teacher, self._choose(logits, scanned))
        led = [self.settings.divergence(*chosen, logits, compared.teacher) for chosen in leaders]
        loss = torch.stack([_sum(divergence) for divergence, _ in led]).sum()
        sums.add(ChunkSums({term: weight * loss}, {f"knee_{learner}": _sum(leaders[1][1])}))
        gradient = torch.cat([values for _, values in led], dim=1).to(logits.dtype)
        return Sparse(torch.cat([ids for ids, _ in leaders], dim=1), weight * gradient)


def _cross_entropy_(
    logits: Float[Tensor, "n rows"], targets: Int[Tensor, " n"], scanned: Scan | None, *, gradient: bool
) -> Float[Tensor, ""]:
    """`cross_entropy` summed over the tokens; overwrites the logits, with its gradient (softmax − one-hot) if asked for."""
    if scanned is not None:
        values = scanned.log_sum_exp - logits.gather(1, targets[:, None]).squeeze(1)
        if gradient:
            softmax_gradient_(logits, scanned.log_sum_exp, targets)
        return _sum(values)
    largest = logits.amax(dim=-1, keepdim=True)
    answer = logits.gather(1, targets[:, None])
    total = logits.sub_(largest).exp_().sum(dim=-1, keepdim=True)
    if gradient:
        logits.div_(total).scatter_add_(1, targets[:, None], logits.new_full((len(targets), 1), -1))
    return _sum(total.log() + largest - answer)


def _add_(logits: Float[Tensor, "answers rows"], compared: ComparedLogits, gradient: Sparse) -> None:
    """Add the gradient with respect to `compared.student` to that with respect to all of the student's logits, in place."""
    ids, values = gradient
    if compared.ids is not None:
        ids = compared.ids[ids]
    if compared.answers is None:
        logits.scatter_add_(1, ids, values)
    else:
        logits.index_put_((compared.answers[:, None], ids), values, accumulate=True)


def _sum(values: Num[Tensor, "..."]) -> Float[Tensor, ""]:
    """In float64, so that neither the number of tokens nor the size of the chunks shows."""
    return values.sum(dtype=torch.float64)
