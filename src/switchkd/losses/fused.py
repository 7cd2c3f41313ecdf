"""The fused loss: from hidden states to summed terms and gradients, while logits exist for one chunk of tokens only."""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from switchkd.losses.checks import check_answers, check_at_least_two
from switchkd.losses.chunks import ChunkLoss, ChunkSums, PlainTerms
from switchkd.losses.projection import Projection, Sparse, autocast_to_bf16, check_head
from switchkd.types import Head, Hidden, Routes

#: Memory for the logits of one chunk where no chunk size is given: enough for efficient matrix products.
CHUNK_MIB = {"cuda": 768, "cpu": 256}
#: What else a token of a chunk needs (windows, pairs, candidates); it matters for small vocabularies only.
_WORK_BYTES = 64 * 1024


class SummedLoss(NamedTuple):
    """A loss summed over the tokens, in nats. A tuple, because DDP and FSDP look for tensors in tuples.

    `loss` is the sum of all terms and the one value to call `backward` on; `terms` and `statistics` are for the log. `chunk` is the
    number of tokens whose logits existed at a time.
    """

    loss: Float[Tensor, ""]
    terms: dict[str, Float[Tensor, ""]]
    statistics: dict[str, Float[Tensor, ""]]
    chunk: int


class Learned(NamedTuple):
    """All that a gradient can reach; among gradients, None is one that nobody wants."""

    student: Float[Tensor, "n hidden"] | None
    weight: Float[Tensor, "rows hidden"] | None
    bias: Float[Tensor, " rows"] | None
    switch: Float[Tensor, "n teacher_hidden"] | None


def fused_loss(
    loss: ChunkLoss,
    targets: Int[Tensor, " n"],
    student: Float[Tensor, "n hidden"],
    student_head: Head,
    teacher: Float[Tensor, "compared teacher_hidden"] | None = None,
    switch: Float[Tensor, "compared teacher_hidden"] | None = None,
    teacher_head: Head | None = None,
    *,
    vocabulary: int | None = None,
    compared: Int[Tensor, " compared"] | None = None,
    ids: Int[Tensor, " vocab"] | None = None,
    chunk: int | None = None,
) -> SummedLoss:
    """Σ over tokens of the loss's terms on z_S = h_S W_Sᵀ, z_T = h_T W_Tᵀ and z_SW = h_SW W_Tᵀ, chunk by chunk.

    Equal to `student @ head.T` and so on, the plain terms, and autograd; but no tensor [n, vocab] exists. The forward pass computes the
    gradients too and keeps those of the hidden states and of the student's head. Logits are float32, or float64 for float64 inputs;
    autocast does not round them. Source: gradients in the forward pass, chunk by chunk, as in Liger Kernel (arXiv 2410.10989).
    Direction: that of `loss`. Values are sums in nats, not means.

    Args:
        loss: `CrossEntropyDBiLD`, or `PlainTerms` around the terms of any method; weights are part of it.
        targets: y, the id that follows each position.
        student: h_S, hidden states after the final norm, at answer positions only.
        student_head: W_S and its bias, all rows: the cross-entropy is over all of them.
        teacher: h_T, a constant; None where the loss reads the student alone.
        switch: h_SW, through the teacher's language model; the gradient goes on to what produced it.
        teacher_head: W_T, a constant, for `teacher` and `switch`.
        vocabulary: how many ids are compared, from 0; None means the smaller number of rows. What follows is padding.
        compared: the tokens that `teacher` and `switch` have, by their places in `student`, ascending; None where they have all.
        ids: the student's ids for the first rows of the teacher's head; None where they are the same.
        chunk: tokens at a time; None takes as many as `CHUNK_MIB` holds. The result does not depend on it.

    Returns:
        The sum of the terms, to be divided by the number of tokens of the global batch, and each term for the log.

    Raises:
        ValueError: shapes that do not fit, a vocabulary beyond a head, a chunk below 1, a target without a row, a teacher or teacher's
            head that requires grad.
        TypeError: a sharded head (DTensor).
    """
    vocabulary = _check(targets, student, student_head, teacher, switch, teacher_head, vocabulary, compared, ids, chunk)
    learned = Learned(student, student_head.weight, student_head.bias, switch)
    dtype = torch.promote_types(student.dtype, torch.float32)
    if chunk is None:
        hidden = Hidden(student, student_head, vocabulary, teacher, switch, teacher_head, compared, ids)
        chunk = chunk_that_fits(max(len(targets), 1), bytes_per_token(hidden), student.device)
    walk = _Walk(
        loss=loss,
        targets=targets.long(),
        teacher=teacher,
        student_softcap=student_head.softcap,
        teacher_head=teacher_head,
        vocabulary=vocabulary,
        compared=compared,
        ids=ids,
        chunk=min(chunk, max(len(targets), 1)),
        wanted=tuple(torch.is_grad_enabled() and x is not None and x.requires_grad for x in learned),
        autocast=autocast_to_bf16(student.device),
    )
    sums, gradients = walk(learned)
    total = torch.stack(list(sums.terms.values())).sum().to(dtype)
    if any(walk.wanted):
        total = _WithGradients.apply(total, gradients, walk, *learned)
    return SummedLoss(total, {name: value.to(dtype) for name, value in sums.terms.items()}, sums.statistics, walk.chunk)


def plain_loss(loss: PlainTerms, targets: Int[Tensor, " n"], hidden: Hidden) -> SummedLoss:
    """The same sums from the logits of all tokens at once, and autograd: what the fused loss is held against, for debugging."""
    routes = hidden.routes()
    terms = {name: values.sum() for name, values in loss.terms(routes, targets).items()}
    with torch.no_grad():
        statistics = loss.statistics(routes) if loss.statistics else {}
    return SummedLoss(
        torch.stack(list(terms.values())).sum(),
        {name: value.detach() for name, value in terms.items()},
        {name: values.sum() for name, values in statistics.items()},
        len(targets),
    )


def with_rows(sums: SummedLoss, terms: dict[str, Float[Tensor, " rows"]], answers: Int[Tensor, " rows"]) -> SummedLoss:
    """Add terms that have a value for each row of the batch: each of a row's `answers` carries it, so they are sums over tokens too."""
    totals = {name: (values.double() * answers).sum().to(sums.loss.dtype) for name, values in terms.items()}
    if both := totals.keys() & sums.terms.keys():
        raise ValueError(
            f"{', '.join(sorted(both))} is a term of the answers and of the rows: give each a name of its own"
        )
    return sums._replace(
        loss=torch.stack([sums.loss, *totals.values()]).sum(),
        terms=sums.terms | {name: total.detach() for name, total in totals.items()},
    )


class _WithGradients(torch.autograd.Function):
    """A sum whose gradients are known already: backward scales them, in place because the head's is as large as the head."""

    @staticmethod
    def forward(
        ctx: Any, total: Float[Tensor, ""], gradients: Learned, walk: "_Walk", *learned: Tensor | None
    ) -> Float[Tensor, ""]:
        ctx.gradients, ctx.walk = gradients, walk
        ctx.save_for_backward(*learned)
        return total.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Float[Tensor, ""]) -> tuple[Tensor | None, ...]:
        learned = Learned(*ctx.saved_tensors)
        # The first backward scales the gradients and gives them away, so a second, through a retained graph, walks again.
        gradients = ctx.walk(learned)[1] if ctx.gradients is None else ctx.gradients
        ctx.gradients = None
        # A sum that is the loss itself needs no pass over the head's gradient; on a GPU looking would cost more than the pass.
        unscaled = not upstream.is_cuda and upstream.item() == 1
        scaled = (
            None if gradient is None or x is None else (gradient if unscaled else gradient.mul_(upstream)).to(x.dtype)
            for gradient, x in zip(gradients, learned, strict=True)
        )
        return None, None, None, *scaled


@dataclass(frozen=True)
class _Walk:
    """One walk over all tokens, for hidden states and a head of the student that are given when it is called."""

    loss: ChunkLoss
    targets: Int[Tensor, " n"]
    teacher: Float[Tensor, "compared teacher_hidden"] | None
    student_softcap: float | None
    teacher_head: Head | None
    vocabulary: int
    compared: Int[Tensor, " compared"] | None
    ids: Int[Tensor, " vocab"] | None
    chunk: int
    wanted: tuple[bool, ...]
    autocast: bool

    def __call__(self, learned: Learned) -> tuple[ChunkSums, Learned]:
        """The sums over all tokens, and the gradients wanted, in float32 or wider."""
        with torch.no_grad(), torch.autocast(self.targets.device.type, enabled=False):
            return self._walk(learned)

    def _walk(self, learned: Learned) -> tuple[ChunkSums, Learned]:
        student, weight, bias, switch = learned
        assert student is not None
        assert weight is not None
        speaker = _Speaker(
            [student], Head(weight, bias, self.student_softcap), len(weight), self, learns=any(self.wanted[:3])
        )
        frozen = None
        if self.teacher is not None and self.teacher_head is not None:
            hidden = [self.teacher] if switch is None else [self.teacher, switch]
            frozen = _Speaker(hidden, self.teacher_head, self.vocabulary, self, learns=self.wanted[3])
        gradients = Learned(
            *(
                torch.empty(x.shape, dtype=torch.promote_types(x.dtype, speaker.head.dtype), device=x.device)
                if x is not None and wanted
                else None
                for x, wanted in zip(learned, self.wanted, strict=True)
            )
        )
        total = ChunkSums({}, {})
        for tokens, theirs in self._slices():
            (spoken,) = speaker.logits(tokens)
            heard = frozen.logits(theirs) if frozen else []
            compared = None if self.compared is None else self.compared[theirs] - tokens.start
            logits = replace(Routes(spoken, *heard), compared=compared, ids=self.ids)
            sums, found = self.loss(logits, self.targets[tokens], student=any(self.wanted[:3]), switch=self.wanted[3])
            total.add(sums)
            if found.student is not None:
                _collect(speaker, found.student, tokens, gradients)
            if frozen and found.switch is not None and gradients.switch is not None:
                gradients.switch[theirs] = frozen.hidden_gradient(found.switch)
        return total, gradients

    def _slices(self) -> Iterator[tuple[slice, slice]]:
        """The tokens of each chunk, and which of the compared ones are among them."""
        starts = list(range(0, max(len(self.targets), 1), self.chunk))
        chunks = [slice(start, start + self.chunk) for start in starts]
        if self.compared is None:
            return zip(chunks, chunks, strict=True)
        bounds = torch.searchsorted(
            self.compared, self.compared.new_tensor([*starts, starts[-1] + self.chunk])
        ).tolist()
        return zip(chunks, map(slice, bounds, bounds[1:]), strict=False)


class _Speaker:
    """Hidden states that share one head, and the memory in which their logits stand, a chunk at a time."""

    def __init__(
        self, hidden: list[Float[Tensor, "n hidden"]], head: Head, rows: int, walk: _Walk, *, learns: bool
    ) -> None:
        dtype = functools.reduce(torch.promote_types, (h.dtype for h in hidden))
        self.head = Projection(head, rows, dtype, autocast=walk.autocast)
        self.hidden = [self.head.operand(h) for h in hidden]
        self.learns = learns
        self.slope: Float[Tensor, "chunk rows"] | None = None
        self.memory = torch.empty(len(hidden) * walk.chunk, rows, dtype=self.head.dtype, device=head.weight.device)

    def logits(self, tokens: slice) -> list[Float[Tensor, "chunk rows"]]:
        """Of these tokens, one tensor for each of the hidden states, by one matrix product; the next call overwrites them."""
        stacked = torch.cat([h[tokens] for h in self.hidden])
        logits = self.head.logits(stacked, out=self.memory[: len(stacked)])
        each = logits.unflatten(0, (len(self.hidden), len(stacked) // len(self.hidden))).unbind()
        if self.learns:  # the last one does; now, because the loss overwrites the logits
            self.slope = self.head.slope(each[-1])
        return list(each)

    def before_cap(self, gradient: Float[Tensor, "chunk rows"]) -> Float[Tensor, "chunk rows"]:
        """The gradient with respect to h Wᵀ + b of the last hidden states, from that of their logits; once a chunk."""
        return gradient if self.slope is None else self.slope.mul_(gradient)

    def hidden_gradient(self, gradient: Float[Tensor, "chunk rows"] | Sparse) -> Float[Tensor, "chunk hidden"]:
        """The gradient with respect to the last hidden states, from that of their logits."""
        if not isinstance(gradient, Sparse):
            return self.head.hidden_gradient(self.before_cap(gradient))
        if self.slope is not None:
            gradient = Sparse(gradient.ids, gradient.values * self.slope.gather(1, gradient.ids))
        return self.head.hidden_gradient(gradient)


def _collect(speaker: _Speaker, gradient: Float[Tensor, "chunk rows"], tokens: slice, into: Learned) -> None:
    """From the gradient of a chunk's logits to those of hidden states, head and bias."""
    gradient = speaker.before_cap(gradient)
    first = tokens.start == 0
    if into.student is not None:
        into.student[tokens] = speaker.head.hidden_gradient(gradient)
    if into.weight is not None:
        speaker.head.add_weight_gradient(gradient, speaker.hidden[0][tokens], into.weight, first=first)
    if into.bias is not None:
        into.bias.copy_(gradient.sum(dim=0) if first else into.bias + gradient.sum(dim=0))


def bytes_per_token(hidden: Hidden) -> int:
    """Of what the walk holds for each token of a chunk: all logits, slopes of soft caps, and the student's cut to what is compared."""
    columns = hidden.student_head.rows * (1 if hidden.student_head.softcap is None else 2)
    if hidden.teacher is not None:
        columns += hidden.vocabulary * (1 + (hidden.ids is not None or hidden.compared is not None))
    if hidden.switch is not None and hidden.teacher_head is not None:
        columns += hidden.vocabulary * (1 if hidden.teacher_head.softcap is None else 2)
    return columns * torch.promote_types(hidden.student.dtype, torch.float32).itemsize


def chunk_that_fits(tokens: int, logit_bytes: int, device: torch.device) -> int:
    """The tokens of a chunk: as many as `CHUNK_MIB` holds or fewer, so that the chunks are about equal."""
    budget = CHUNK_MIB["cuda" if device.type == "cuda" else "cpu"] * 2**20
    most = max(budget // (logit_bytes + _WORK_BYTES), 1)
    return math.ceil(tokens / math.ceil(tokens / most))


def _check(
    targets: Tensor,
    student: Tensor,
    student_head: Head,
    teacher: Tensor | None,
    switch: Tensor | None,
    teacher_head: Head | None,
    vocabulary: int | None,
    compared: Tensor | None,
    ids: Tensor | None,
    chunk: int | None,
) -> int:
    """How many ids are compared, after refusing what does not fit; see `fused_loss`."""
    check_head("the student's head", student_head, student)
    check_answers(targets, len(student), student_head.rows)
    if (teacher is None) != (teacher_head is None) or (switch is not None and teacher is None):
        raise ValueError(
            "the teacher's hidden states and its head go together, and the switch needs both: got "
            f"teacher {_is(teacher)}, teacher_head {_is(teacher_head)}, switch {_is(switch)}"
        )
    shared = student_head.rows
    if teacher is not None and teacher_head is not None:
        shared = min(shared, teacher_head.rows) if ids is None else teacher_head.rows
        tokens = len(student) if compared is None else len(compared)
        for name, hidden in (("teacher", teacher), ("switch", switch)):
            if hidden is not None:
                check_head(f"the teacher's head, for the {name},", teacher_head, hidden)
                if len(hidden) != tokens:
                    raise ValueError(
                        f"every pathway must have the tokens that are compared: {tokens} of the student's {len(student)}, "
                        f"but {name} has {len(hidden)}"
                    )
        if any(x is not None and x.requires_grad for x in (teacher, teacher_head.weight, teacher_head.bias)):
            raise ValueError(
                "the teacher's hidden states or its head require grad, but the teacher is a constant: freeze it with "
                "requires_grad_(False) and run it under torch.no_grad()"
            )
    if vocabulary is not None:
        check_at_least_two("vocabulary", vocabulary)
    if vocabulary is not None and vocabulary > shared:
        raise ValueError(f"vocabulary is {vocabulary}, but the heads share {shared} rows only")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1 token, got {chunk}")
    vocabulary = shared if vocabulary is None else vocabulary
    if ids is not None and len(ids) != vocabulary:
        raise ValueError(f"{len(ids)} of the student's ids are given for {vocabulary} of the teacher's")
    return vocabulary


def _is(given: object) -> str:
    return "missing" if given is None else "given"
