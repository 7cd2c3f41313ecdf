"""The fused loss: from hidden states to summed terms and gradients, while logits exist for one chunk of tokens only."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from switchkd.losses.checks import without_waiting
from switchkd.losses.chunks import AutogradTerms, ChunkLoss, ChunkSums, checked_terms
from switchkd.losses.projection import Projection, Sparse, autocast_to_bf16
from switchkd.losses.signal_checks import check_signals
from switchkd.signals import AnswerLogits, Compared, ComparedLogits, FromHidden, Head, Signals

#: Memory for the logits of one chunk where no chunk size is given: enough for efficient matrix products.
CHUNK_MIB = {"cuda": 768, "cpu": 256}
#: What else a token of a chunk needs (windows, pairs, candidates); it matters for small vocabularies only.
_WORK_BYTES = 64 * 1024


class SummedLoss(NamedTuple):
    """A loss summed over the tokens, in nats. A tuple, because DDP and FSDP look for tensors in tuples.

    `loss` is the sum of all terms and the one value to call `backward` on; `terms` and `statistics` are for the log.
    """

    loss: Float[Tensor, ""]
    terms: dict[str, Float[Tensor, ""]]
    statistics: dict[str, Float[Tensor, ""]]
    #: Answer tokens, and those that are compared with a teacher's: what terms and statistics are sums over.
    answers: int
    compared: int
    #: Answer tokens whose logits existed at a time.
    chunk: int


def fused_loss(loss: ChunkLoss, signals: Signals, *, chunk: int | None = None) -> SummedLoss:
    """Σ over tokens of the loss's terms on z_S = h_S W_Sᵀ, z_T = h_T W_Tᵀ and z_SW = h_SW W_Tᵀ, chunk by chunk.

    Equal to `signals.logits()`, the plain terms, and autograd; but no tensor [n, vocab] exists. The forward pass computes the gradients
    too and keeps those of the hidden states and of the student's head. Logits are float32, or float64 for float64 inputs; autocast does
    not round them. Source: gradients in the forward pass, chunk by chunk, as in Liger Kernel (arXiv 2410.10989).
    Direction: that of `loss`. Values are sums in nats, not means.

    Args:
        loss: `CrossEntropyDBiLD`, or `AutogradTerms` around the terms of any method; weights are part of it.
        signals: hidden states at the answers, heads, targets, and what is compared. Gradients reach the student's hidden states and head,
            and what produced the switch's hidden states.
        chunk: answers at a time; None takes as many as `CHUNK_MIB` holds. The result does not depend on it.

    Returns:
        The sum of the terms, to be divided by the number of tokens of the global batch, and each term for the log.

    Raises:
        ValueError: shapes that do not fit, a vocabulary beyond a head, a chunk below 1, a target without a row, a teacher or teacher's
            head that requires grad.
        TypeError: a sharded head (DTensor).
    """
    parts = signals.parts()
    with without_waiting():
        for part in parts:
            check_signals(part, chunk)
    student, tokens = signals.student, max(len(signals.targets), 1)
    dtype = torch.promote_types(student.hidden.dtype, torch.float32)
    if chunk is None:
        chunk = chunk_that_fits(tokens, max(map(bytes_per_token, parts)), student.hidden.device)
    learned = (student.head.weight, student.head.bias, *(hidden for part in parts for hidden in _hidden(part)))
    loop = _ChunkLoop(
        loss=loss,
        parts=parts,
        chunk=min(chunk, tokens),
        wanted=tuple(torch.is_grad_enabled() and x is not None and x.requires_grad for x in learned),
        autocast=autocast_to_bf16(student.hidden.device),
    )
    sums, gradients = loop(learned)
    total = torch.stack(list(sums.terms.values())).sum().to(dtype)
    if any(loop.wanted):
        total = _WithGradients.apply(total, gradients, loop, *learned)
    terms = {name: value.to(dtype) for name, value in sums.terms.items()}
    return SummedLoss(total, terms, sums.statistics, len(signals.targets), _compared_tokens(signals), loop.chunk)


def plain_loss(loss: AutogradTerms, signals: Signals) -> SummedLoss:
    """The same sums from the logits of all tokens at once, and autograd: what the fused loss is held against, for debugging."""
    sums = ChunkSums({}, {})
    for part in signals.parts():
        logits = part.logits()
        terms = {name: values.sum() for name, values in checked_terms(loss.terms(logits), logits).items()}
        with torch.no_grad():
            statistics = checked_terms(loss.statistics(logits), logits) if loss.statistics else {}
        sums.add(ChunkSums(terms, {name: values.sum() for name, values in statistics.items()}))
    return SummedLoss(
        torch.stack(list(sums.terms.values())).sum(),
        {name: value.detach() for name, value in sums.terms.items()},
        sums.statistics,
        len(signals.targets),
        _compared_tokens(signals),
        len(signals.targets),
    )


def with_samples(sums: SummedLoss, terms: Mapping[str, Float[Tensor, " samples"]], signals: Signals) -> SummedLoss:
    """Add terms that have a value for each sample: each of its answers carries it, so they are sums over tokens too."""
    answers = torch.zeros(len(signals.keys), dtype=torch.float64, device=signals.sample.device)
    answers.index_add_(0, signals.sample, torch.ones_like(signals.sample, dtype=torch.float64))
    totals = {name: (values.double() * answers).sum().to(sums.loss.dtype) for name, values in terms.items()}
    if both := totals.keys() & sums.terms.keys():
        names = ", ".join(sorted(both))
        raise ValueError(f"{names} is a term of the answers and of the samples: give each a name of its own")
    return sums._replace(
        loss=torch.stack([sums.loss, *totals.values()]).sum(),
        terms=sums.terms | {name: total.detach() for name, total in totals.items()},
    )


def added(parts: Sequence[SummedLoss]) -> SummedLoss:
    """The sum over all answer tokens of several batches, of which each may have terms that others have not."""

    def totals(sums: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        names = {name for one in sums for name in one}
        return {name: torch.stack([one[name] for one in sums if name in one]).sum() for name in sorted(names)}

    return SummedLoss(
        loss=torch.stack([part.loss for part in parts]).sum(),
        terms=totals([part.terms for part in parts]),
        statistics=totals([part.statistics for part in parts]),
        answers=sum(part.answers for part in parts),
        compared=sum(part.compared for part in parts),
        chunk=max(part.chunk for part in parts),
    )


def _compared_tokens(signals: Signals) -> int:
    return sum(len(one.targets) for part in signals.parts() for one in part.compared.values())


def _hidden(part: Signals) -> list[Tensor]:
    """The hidden states whose logits can learn: the student's, and the switch's of each teacher that has them."""
    switches = [one.switch.hidden for one in part.compared.values() if one.switch is not None]
    return [part.student.hidden, *switches]


class _WithGradients(torch.autograd.Function):
    """A sum whose gradients are known already: backward scales them, in place because the head's is as large as the head."""

    @staticmethod
    def forward(
        ctx: Any, total: Float[Tensor, ""], gradients: list[Tensor | None], loop: "_ChunkLoop", *learned: Tensor | None
    ) -> Float[Tensor, ""]:
        ctx.gradients, ctx.loop = gradients, loop
        ctx.save_for_backward(*learned)
        return total.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Float[Tensor, ""]) -> tuple[Tensor | None, ...]:
        learned = ctx.saved_tensors
        # The first backward scales the gradients and gives them away, so a second, through a retained graph, computes them again.
        gradients = ctx.loop(learned)[1] if ctx.gradients is None else ctx.gradients
        ctx.gradients = None
        # A sum that is the loss itself needs no pass over the head's gradient; on a GPU looking would cost more than the pass.
        unscaled = not upstream.is_cuda and upstream.item() == 1
        scaled = (
            None if gradient is None or x is None else (gradient if unscaled else gradient.mul_(upstream)).to(x.dtype)
            for gradient, x in zip(gradients, learned, strict=True)
        )
        return None, None, None, *scaled


@dataclass(frozen=True)
class _ChunkLoop:
    """One pass over all answers, chunk by chunk, for the tensors that learn: they are given when it is called.

    These are the weight and the bias of the student's head and, for each part of the answers, what `_hidden` names.
    """

    loss: ChunkLoss
    #: In each of which the same ids are compared.
    parts: tuple[Signals, ...]
    chunk: int
    #: Which of the tensors that learn want a gradient.
    wanted: tuple[bool, ...]
    autocast: bool

    def __call__(self, learned: tuple[Tensor | None, ...]) -> tuple[ChunkSums, list[Tensor | None]]:
        """The sums over all tokens, and the gradients wanted, in float32 or wider."""
        device = self.parts[0].targets.device
        with torch.no_grad(), torch.autocast(device.type, enabled=False), without_waiting():
            return self._run(learned)

    def _run(self, learned: tuple[Tensor | None, ...]) -> tuple[ChunkSums, list[Tensor | None]]:
        weight, bias, *hidden = learned
        assert weight is not None
        assert hidden[0] is not None
        head = Head(weight, bias, self.parts[0].student.head.softcap)
        dtype = torch.promote_types(torch.promote_types(hidden[0].dtype, weight.dtype), torch.float32)
        gradients = [
            torch.empty(x.shape, dtype=torch.promote_types(x.dtype, dtype), device=x.device)
            if x is not None and wanted
            else None
            for x, wanted in zip(learned, self.wanted, strict=True)
        ]
        total, begin = ChunkSums({}, {}), 2
        for number, part in enumerate(self.parts):
            own = slice(begin, begin + len(_hidden(part)))
            wanted = [any((*self.wanted[:2], self.wanted[begin])), *self.wanted[begin + 1 : own.stop]]
            loop = _Part(self, part, head, learned[own], wanted, first=number == 0)
            loop.run(total, gradients[:2], gradients[own])
            begin = own.stop
        return total, gradients


class _Part:
    """The loop over the chunks of one part of the answers.

    Args:
        loop: whose part it is.
        part: these answers.
        head: the student's.
        hidden: what `_hidden` names, the student's first.
        wanted: of which of these, or of the student's head, a gradient is wanted.
        first: whether no other part has added to the gradient of the head.
    """

    def __init__(
        self,
        loop: _ChunkLoop,
        part: Signals,
        head: Head,
        hidden: Sequence[Tensor | None],
        wanted: list[bool],
        *,
        first: bool,
    ) -> None:
        self.loop, self.wanted, self.first = loop, wanted, first
        self.targets, self.compared, self.labelled = part.targets.long(), part.compared, part.labelled
        self.chunk = min(loop.chunk, max(len(self.targets), 1))
        states, *switches = hidden
        assert states is not None
        self.student = self._logits([states], head, len(head.weight), learns=wanted[0])
        with_switch = [name for name, one in self.compared.items() if one.switch is not None]
        #: Teacher → the place of its switch among the hidden states.
        self.places = {name: place for place, name in enumerate(with_switch, start=1)}
        of_switch = dict(zip(with_switch, switches, strict=True))
        self.frozen = {name: self._frozen(name, one, of_switch.get(name)) for name, one in self.compared.items()}

    def run(self, total: ChunkSums, of_head: list[Tensor | None], of_hidden: list[Tensor | None]) -> None:
        """Add the sums of these answers to `total`, and write their gradients."""
        slices = {name: self._slices(one) for name, one in self.compared.items()}
        for number, start in enumerate(range(0, max(len(self.targets), 1), self.chunk)):
            tokens = slice(start, start + self.chunk)
            labelled = None if self.labelled is None else self.labelled[tokens]
            (whole,) = self.student.logits(tokens)
            compared = {name: self._compared(name, whole, slices[name][number], start) for name in self.compared}
            sums, gradients = self.loop.loss(
                AnswerLogits(whole, self.targets[tokens], compared, labelled),
                student=self.student.gradient_dtype if self.wanted[0] else None,
                switch=any(self.wanted[1:]),
            )
            total.add(sums)
            if gradients.student is not None:
                into = [of_hidden[0], *of_head]
                _collect(self.student, gradients.student, tokens, into, first=self.first and start == 0)
            for name, place in self.places.items():
                of_switch, source, gradient = of_hidden[place], self.frozen[name], gradients.switch.get(name)
                if of_switch is not None and source is not None:
                    of_switch[slices[name][number]] = 0 if gradient is None else source.hidden_gradient(gradient)

    def _logits(self, hidden: list[Tensor], head: Head, rows: int, *, learns: bool) -> "_ChunkLogits":
        return _ChunkLogits(hidden, head, rows, self.chunk, autocast=self.loop.autocast, learns=learns)

    def _frozen(self, name: str, compared: Compared, switch: Tensor | None) -> "_ChunkLogits | None":
        """A live teacher's logits and those of the switch, by one product; None for a teacher that is read from elsewhere."""
        teacher = compared.teacher
        learns = name in self.places and self.wanted[self.places[name]]
        if not isinstance(teacher, FromHidden):
            if switch is None or compared.switch is None:
                return None
            return self._logits([switch], compared.switch.head, compared.vocabulary, learns=learns)
        hidden = [teacher.hidden] if switch is None else [teacher.hidden, switch]
        return self._logits(hidden, teacher.head, compared.vocabulary, learns=learns)

    def _compared(self, name: str, whole: Tensor, part: slice, start: int) -> ComparedLogits:
        one, frozen = self.compared[name], self.frozen[name]
        logits = frozen.logits(part) if frozen else []
        if not isinstance(one.teacher, FromHidden):
            stored = one.teacher.rows(part)
            if stored.shape[1] != one.vocabulary:
                raise ValueError(
                    f"{name} gives {stored.shape[1]} logits for the {one.vocabulary} ids that are compared"
                )
            logits = [stored, *logits]
        teacher, switch = logits[0], logits[1] if len(logits) > 1 else None
        answers = None if one.answers is None else one.answers[part] - start
        weights, advantage = (x if x is None else x[part] for x in (one.weights, one.advantage))
        return ComparedLogits(whole, teacher, switch, one.targets[part], answers, one.ids, weights, advantage)

    def _slices(self, compared: Compared) -> list[slice]:
        """Which of the compared answers are in each chunk."""
        starts = list(range(0, max(len(self.targets), 1), self.chunk))
        if compared.answers is None:
            return [slice(start, start + self.chunk) for start in starts]
        places = compared.answers.cpu().numpy() if compared.places is None else compared.places
        bounds = np.searchsorted(places, [*starts, starts[-1] + self.chunk]).tolist()
        return list(map(slice, bounds, bounds[1:]))


class _ChunkLogits:
    """Hidden states that share one head, and the memory in which their logits stand, a chunk at a time."""

    def __init__(
        self,
        hidden: list[Float[Tensor, "n hidden"]],
        head: Head,
        rows: int,
        chunk: int,
        *,
        autocast: bool,
        learns: bool,
    ) -> None:
        dtype = functools.reduce(torch.promote_types, (h.dtype for h in hidden))
        self.head = Projection(head, rows, dtype, autocast=autocast)
        self.hidden = [self.head.operand(h) for h in hidden]
        self.learns = learns
        self.softcap_derivative: Float[Tensor, "chunk rows"] | None = None
        self.memory = torch.empty(len(hidden) * chunk, rows, dtype=self.head.dtype, device=head.weight.device)

    def logits(self, tokens: slice) -> list[Float[Tensor, "chunk rows"]]:
        """Of these tokens, one tensor for each of the hidden states, by one matrix product; the next call overwrites them."""
        own = [h[tokens] for h in self.hidden]
        stacked = torch.cat(own) if len(own) > 1 else own[0]
        logits = self.head.logits(stacked, out=self.memory[: len(stacked)])
        each = logits.unflatten(0, (len(self.hidden), len(stacked) // len(self.hidden))).unbind()
        if self.learns:  # the last one does; now, because the loss overwrites the logits
            self.softcap_derivative = self.head.softcap_derivative(each[-1])
        return list(each)

    @property
    def gradient_dtype(self) -> torch.dtype:
        """In which the gradient of these logits is multiplied, if it is not changed before."""
        return self.head.gradient_dtype if self.head.softcap is None else self.head.dtype

    def before_cap(self, gradient: Float[Tensor, "chunk rows"]) -> Float[Tensor, "chunk rows"]:
        """The gradient with respect to h Wᵀ + b of the last hidden states, from that of their logits; once a chunk."""
        return gradient if self.softcap_derivative is None else self.softcap_derivative.mul_(gradient)

    def hidden_gradient(self, gradient: Float[Tensor, "chunk rows"] | Sparse) -> Float[Tensor, "chunk hidden"]:
        """The gradient with respect to the last hidden states, from that of their logits."""
        if not isinstance(gradient, Sparse):
            return self.head.hidden_gradient(self.before_cap(gradient))
        if self.softcap_derivative is not None:
            gradient = Sparse(gradient.ids, gradient.values * self.softcap_derivative.gather(1, gradient.ids))
        return self.head.hidden_gradient(gradient)


def _collect(
    student: _ChunkLogits,
    gradient: Float[Tensor, "chunk rows"],
    tokens: slice,
    into: list[Tensor | None],
    *,
    first: bool,
) -> None:
    """From the gradient of a chunk's logits to those of hidden states, head and bias; `first`: nothing was added to the head's yet."""
    gradient = student.before_cap(gradient)
    hidden, weight, bias = into
    if hidden is not None:
        hidden[tokens] = student.head.hidden_gradient(gradient)
    if weight is not None:
        student.head.add_weight_gradient(gradient, student.hidden[0][tokens], weight, first=first)
    if bias is not None:
        of_chunk = gradient.sum(dim=0, dtype=bias.dtype)
        bias.copy_(of_chunk if first else bias + of_chunk)


def bytes_per_token(signals: Signals) -> int:
    """Of what the loop holds for each answer of a chunk: all logits, derivatives of soft caps, and copies of the student's logits."""
    head, wide = signals.student.head, torch.promote_types(signals.student.hidden.dtype, torch.float32).itemsize
    columns = head.rows * (1 if head.softcap is None else 2)
    for one in signals.compared.values():
        columns += one.vocabulary * (1 + (one.ids is not None or one.answers is not None))
        if one.switch is not None:
            columns += one.vocabulary * (1 if one.switch.head.softcap is None else 2)
    rounded = (
        head.rows * torch.bfloat16.itemsize if signals.student.hidden.is_cuda else 0
    )  # the gradient, as it is multiplied
    return columns * wide + rounded


def chunk_that_fits(tokens: int, logit_bytes: int, device: torch.device) -> int:
    """The tokens of a chunk: as many as `CHUNK_MIB` holds or fewer, so that the chunks are about equal."""
    budget = CHUNK_MIB["cuda" if device.type == "cuda" else "cpu"] * 2**20
    most = max(budget // (logit_bytes + _WORK_BYTES), 1)
    return math.ceil(tokens / math.ceil(tokens / most))
