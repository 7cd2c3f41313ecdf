"""Inputs of the fused loss, and the same loss the plain way: full logits, the method's terms, autograd."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from switchkd.batch import TEACHER
from switchkd.losses import AutogradTerms, Head, fused_loss
from switchkd.signals import AnswerLogits, Compared, ComparedLogits, FromHidden, Signals

TOKENS, ROWS, TEACHER_ROWS, VOCABULARY = 11, 53, 50, 47


@dataclass
class States:
    """Hidden states and heads of unequal widths and rows; logits of a few nats."""

    targets: torch.Tensor
    student: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    teacher: torch.Tensor
    switch: torch.Tensor
    teacher_weight: torch.Tensor
    teacher_bias: torch.Tensor | None
    softcap: float | None = None

    @property
    def learned(self):
        return [x for x in (self.student, self.weight, self.bias, self.switch) if x is not None]

    def to(self, dtype):
        def convert(x):
            return (
                x
                if not isinstance(x, torch.Tensor) or not x.is_floating_point()
                else x.detach().to(dtype).requires_grad_(x.requires_grad)
            )

        return replace(self, **{name: convert(x) for name, x in vars(self).items()})


def inputs(tokens=TOKENS, bias=True, dtype=torch.float64, seed=0, rows=ROWS, teacher_rows=TEACHER_ROWS):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    student, weight, switch = draw(tokens, 5), draw(rows, 5), draw(tokens, 7)
    student_bias = draw(rows) if bias else None
    for x in (student, weight, student_bias, switch):
        if x is not None:
            x.requires_grad_()
    return States(
        targets=torch.randint(rows, (tokens,), generator=generator),
        student=student,
        weight=weight,
        bias=student_bias,
        teacher=draw(tokens, 7),
        switch=switch,
        teacher_weight=draw(teacher_rows, 7),
        teacher_bias=draw(teacher_rows) if bias else None,
    )


def signals(method, x, vocabulary=VOCABULARY, answers=None, ids=None):
    """What the method gets of `x`: everything that it needs, at `answers`, over `ids` or the first ids of both heads."""
    at = slice(None) if answers is None else answers
    vocabulary = vocabulary if ids is None else len(ids)
    head = Head(x.teacher_weight, x.teacher_bias, x.softcap)
    compared = {}
    if "teacher" in method.needs:
        compared[TEACHER] = Compared(
            FromHidden(x.teacher[at], head, vocabulary),
            vocabulary,
            x.targets[at].clamp(0, vocabulary - 1),
            FromHidden(x.switch[at], head, vocabulary) if "switch" in method.needs else None,
            answers,
            ids,
        )
    student = FromHidden(x.student, Head(x.weight, x.bias, x.softcap))
    return Signals(student, x.targets, torch.zeros_like(x.targets), ("sample@0",), compared, {})


def plain(method, x, vocabulary=VOCABULARY):
    """The terms and statistics without the fused loss, and without what makes its logits: full logits, the method's terms, their sums."""

    def logits(hidden, weight, bias):
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        z = F.linear(hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
        return z if x.softcap is None else x.softcap * torch.tanh(z / x.softcap)

    student, compared = logits(x.student, x.weight, x.bias), {}
    if "teacher" in method.needs:
        teacher, switch = (
            logits(hidden, x.teacher_weight, x.teacher_bias)[:, :vocabulary] for hidden in (x.teacher, x.switch)
        )
        compared[TEACHER] = ComparedLogits(student, teacher, switch if "switch" in method.needs else None, x.targets)
    whole = AnswerLogits(student, x.targets, compared)
    terms, statistics = (
        {name: term.values.sum() for name, term in named.items()}
        for named in (method.token_terms(whole), method.statistics(whole))
    )
    return terms, statistics


def fused(method, x, loss=None, vocabulary=VOCABULARY, chunk=None):
    return fused_loss(loss or by_autograd(method), signals(method, x, vocabulary), chunk=chunk)


def by_autograd(method):
    return AutogradTerms(method.token_terms, method.statistics)


def analytic(method):
    return method.chunk_loss()


def gradients(loss, x):
    values = torch.autograd.grad(loss, x.learned, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(y) if g is None else g for g, y in zip(values, x.learned, strict=True)]
