"""The loss of Switch-KD on one chunk of tokens, with every gradient written out."""

import functools
import logging
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from switchkd.losses import kernels as gpu
from switchkd.losses.checks import check_at_least_two
from switchkd.losses.chunks import ChunkGradients, ChunkLoss, ChunkSums, total
from switchkd.losses.dbild import DBiLDSettings
from switchkd.losses.projection import Sparse
from switchkd.signals import AnswerLogits, ComparedLogits

logger = logging.getLogger(__name__)

#: What `DBiLDSettings.choose` gives for one leader: its ids, and how many of them take part (each leader has its own longest k).
Choice = tuple[Int[Tensor, "n _"], Int[Tensor, " n"]]


@dataclass(frozen=True)
class CrossEntropyDBiLD(ChunkLoss):
    """CE(z_S, y) + λ1·DBiLD(z_T, z_S) + λ2·DBiLD(z_T, z_SW), with every gradient written out (Switch-KD, arXiv 2604.14629).

    Logits are [tokens, vocabulary] of one chunk; sums over its tokens, in nats. Direction: that of `settings`, as in `dbild`.

    Term for term the sums of `cross_entropy` and `dbild`, but the softmax overwrites the student's logits and becomes their gradient, the
    sparse gradient of the align term is added in place, that of the switch term stays sparse, and the teacher's order serves both. Where
    the plain losses refuse a non-finite logit, a term here becomes non-finite itself. Where answers have weights, both divergences of
    each are multiplied by its own.

    Args:
        align: λ1, 0 without this term.
        switch: λ2, 0 without this term. With both 0 this is plain cross-entropy.
        settings: the knobs of `dbild`.
        kernels: `auto` computes by `losses.kernels` wherever these can (on a GPU, with these settings), else by torch, and the log says
            once which and why; `triton` raises ValueError where they cannot; `torch` never asks. The values are the same.
    """

    align: float
    switch: float
    settings: DBiLDSettings = field(default_factory=DBiLDSettings)
    kernels: Literal["auto", "torch", "triton"] = "auto"

    def __call__(
        self, logits: AnswerLogits, *, student: torch.dtype | None, switch: bool
    ) -> tuple[ChunkSums, ChunkGradients]:
        """See `ChunkLoss`; the student's gradient takes the place of its logits unless it is narrower, the switch's is sparse."""
        if (self.align or self.switch) and not logits.compared:
            raise LookupError("there is no teacher to compare with: nothing stands in `compared`")
        for one in logits.compared.values():
            check_at_least_two("the vocabulary", one.teacher.shape[1])
        compute = self._by_kernels if self._uses_kernels(logits) else self._by_torch
        return compute(logits, student, switch)

    def _uses_kernels(self, logits: AnswerLogits) -> bool:
        if self.kernels == "torch":
            return False
        reason = self._why_torch(logits)
        if reason is not None and self.kernels == "triton":
            raise ValueError(f'kernels="triton" cannot compute this loss: {reason}. Use kernels="auto" or "torch"')
        if logits.student.is_cuda:
            _say("Triton kernels" if reason is None else f"torch and not by Triton kernels: {reason}")
        return reason is None

    def _why_torch(self, logits: AnswerLogits) -> str | None:
        """Why not by kernels; None where by them."""
        device = logits.student.device
        if device.type != "cuda" and not gpu.interpreted():  # the usual case on a CPU asks no further
            return gpu.why_not(device)
        settings, window = self.settings, self.settings.window if self.settings.top_k is None else self.settings.top_k
        if logits.labelled is not None:
            return "some answers are the student's own, which have no cross-entropy"
        if any(one.weights is not None for one in logits.compared.values()):
            return "answers weigh more or less than others"
        every = [logits.student]
        for one in logits.compared.values():
            every += [one.teacher] if one.switch is None else [one.teacher, one.switch]
        if any(z.dtype != torch.float32 for z in every):
            return f"they read float32, and these logits are {', '.join(sorted({str(z.dtype) for z in every}))}"
        if self.align or self.switch:
            if settings.direction != "reverse" or settings.softmax != "all":
                return f"they know direction reverse and softmax all, not {settings.direction} and {settings.softmax}"
            least = min(one.teacher.shape[1] for one in logits.compared.values())
            if window is None or window > min(gpu.MOST_WINDOW, least):
                return f"they compare up to {gpu.MOST_WINDOW} ids of a row, and this is a window of {window} over {least} ids"
        return gpu.why_not(device)

    # ---- by torch

    def _by_torch(
        self, logits: AnswerLogits, student: torch.dtype | None, switch: bool
    ) -> tuple[ChunkSums, ChunkGradients]:
        sums, gradients = ChunkSums({}), ChunkGradients()
        align: list[tuple[ComparedLogits, Sparse]] = []
        for name, compared in logits.compared.items() if self.align or self.switch else ():
            by_teacher = self.settings.choose(compared.teacher)
            sums.add(ChunkSums({}, {"knee_teacher": total(by_teacher[1])}))
            if compared.advantage is not None:
                sums.add(ChunkSums({}, {"visual_advantage": total(compared.advantage)}))
            if self.align:
                align.append((compared, self._term("align", "student", self.align, compared, by_teacher, sums)))
            if self.switch:
                sparse = self._term("switch", "switch", self.switch, compared, by_teacher, sums)
                if switch:
                    gradients.switch[name] = sparse
        # Last of the terms, because it overwrites the student's logits
        ce = _cross_entropy_(logits, gradient=student is not None)
        if student is not None:
            for compared, sparse in align:
                _add_(logits.student, compared, sparse)
            gradients.student = logits.student
        return self._named(ce, sums), gradients

    def _term(
        self,
        term: str,
        learner: Literal["student", "switch"],
        weight: float,
        compared: ComparedLogits,
        by_teacher: Choice,
        sums: ChunkSums,
    ) -> Sparse:
        """Add `dbild` of a learner to `sums`; its gradient, at the ids that the two leaders chose."""
        logits = compared.of(learner)
        leaders = (by_teacher, self.settings.choose(logits))
        led = [self.settings.divergence(*chosen, logits, compared.teacher) for chosen in leaders]
        if compared.weights is not None:
            led = [(compared.weights * loss, compared.weights[:, None] * gradient) for loss, gradient in led]
        loss = torch.stack([total(divergence) for divergence, _ in led]).sum()
        sums.add(ChunkSums({term: weight * loss}, {f"knee_{learner}": total(leaders[1][1])}))
        gradient = torch.cat([values for _, values in led], dim=1).to(logits.dtype)
        return Sparse(torch.cat([ids for ids, _ in leaders], dim=1), weight * gradient)

    # ---- by kernels

    def _by_kernels(
        self, logits: AnswerLogits, student: torch.dtype | None, switch: bool
    ) -> tuple[ChunkSums, ChunkGradients]:
        sums, gradients = ChunkSums({}), ChunkGradients()
        align: list[tuple[ComparedLogits, gpu.Comparison]] = []
        # the pass over the student's logits serves the first comparison that is over its own rows and first ids
        whole = next((one for one in logits.compared.values() if self.align and _in_order(one)), None)
        scanned = gpu.scan(logits.student, None if whole is None else whole.teacher.shape[1])
        for name, one in logits.compared.items() if self.align or self.switch else ():
            teacher_ids = self._select(one.teacher, gpu.scan(one.teacher))
            of_teacher: list[Tensor] = []
            for term, weight, learner in (("align", self.align, "student"), ("switch", self.switch, "switch")):
                if not weight:
                    continue
                z = one.of("student" if learner == "student" else "switch")
                scan = scanned if one is whole and learner == "student" else gpu.scan(z)
                found = self._compare(z, one.teacher, self._select(z, scan), teacher_ids, weight)
                loss, k, of_teacher_k = found.sums.sum(dim=1).unbind()
                of_teacher = of_teacher or [of_teacher_k]
                sums.add(ChunkSums({term: loss}, {f"knee_{learner}": k}))
                if learner == "student":
                    align.append((one, found))
                elif switch:
                    gradients.switch[name] = Sparse(found.ids, found.gradient)
            sums.add(ChunkSums({}, {"knee_teacher": of_teacher[0]}))
        ce, log_sum_exp = gpu.cross_entropy(logits.student, scanned, logits.targets)
        if student is not None:
            # what is added afterwards, over other ids, is added to what is not rounded yet
            rounded = len(align) <= 1 and all(_in_order(one) for one, _ in align)
            dtype = student if rounded else logits.student.dtype
            gradients.student = gpu.softmax_gradient(logits.student, log_sum_exp, logits.targets, dtype)
            for one, found in align:
                if _in_order(one):
                    gpu.add_sparse_(gradients.student, logits.student, log_sum_exp, logits.targets, found)
                else:
                    _add_(gradients.student, one, Sparse(found.ids, found.gradient))
        return self._named(total(ce), sums), gradients

    def _select(self, z: Float[Tensor, "n vocab"], scanned: gpu.Scan) -> Int[Tensor, "n window"]:
        window = self.settings.window if self.settings.top_k is None else self.settings.top_k
        assert window is not None
        return gpu.select(z, scanned, window)

    def _compare(
        self, learner: Tensor, teacher: Tensor, learner_ids: Tensor, teacher_ids: Tensor, weight: float
    ) -> gpu.Comparison:
        return gpu.compare(
            learner,
            teacher,
            learner_ids,
            teacher_ids,
            weight=weight,
            temperature=self.settings.temperature,
            min_k=self.settings.min_k if self.settings.top_k is None else None,
            t_squared=self.settings.t_squared,
        )

    def _named(self, ce: Float[Tensor, ""], sums: ChunkSums) -> ChunkSums:
        fixed = self.settings.top_k is not None
        told = {name: value for name, value in sums.statistics.items() if not (fixed and name.startswith("knee_"))}
        return ChunkSums({"ce": ce, **sums.terms}, told)


@functools.cache
def _say(how: str) -> None:
    """Once a process."""
    logger.info("The loss is computed by %s", how)


def _in_order(compared: ComparedLogits) -> bool:
    """Whether what is compared are all answers, over the first ids of the student's head."""
    return compared.answers is None and compared.ids is None


def _cross_entropy_(of: AnswerLogits, *, gradient: bool) -> Float[Tensor, ""]:
    """`cross_entropy` summed over the answers that are labels; overwrites the student's logits, with its gradient (softmax − one-hot) if
    asked for.
    """
    logits, targets = of.student, of.targets
    largest = logits.amax(dim=-1, keepdim=True)
    answer = logits.gather(1, targets[:, None])
    partition = logits.sub_(largest).exp_().sum(dim=-1, keepdim=True)
    if gradient:
        logits.div_(partition).scatter_add_(1, targets[:, None], logits.new_full((len(targets), 1), -1))
    values = partition.log() + largest - answer
    if of.labelled is not None:
        values = values.masked_fill(~of.labelled[:, None], 0)
        if gradient:
            logits.masked_fill_(~of.labelled[:, None], 0)
    return total(values)


def _add_(logits: Float[Tensor, "answers rows"], compared: ComparedLogits, gradient: Sparse) -> None:
    """Add the gradient with respect to `compared.student` to that with respect to all of the student's logits, in place."""
    ids, values = gradient
    if compared.ids is not None:
        ids = compared.ids[ids]
    if compared.answers is None:
        logits.scatter_add_(1, ids, values)
    else:
        logits.index_put_((compared.answers[:, None], ids), values, accumulate=True)
