"""Inputs of the fused loss, and the same loss the plain way: full logits, the method's terms, autograd."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from switchkd.types import Head, Routes

from switchkd.losses.chunks import AutogradTerms
from switchkd.losses.fused import fused_loss

TOKENS, ROWS, TEACHER_ROWS, VOCABULARY = 11, 53, 50, 47


@dataclass
class Inputs:
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
    return Inputs(
        targets=torch.randint(rows, (tokens,), generator=generator),
        student=student,
        weight=weight,
        bias=student_bias,
        teacher=draw(tokens, 7),
        switch=switch,
        teacher_weight=draw(teacher_rows, 7),
        teacher_bias=draw(teacher_rows) if bias else None,
    )


def plain(method, x, vocabulary=VOCABULARY):
    """What the trainer does without the fused loss: full logits, the method's terms, their sums."""

    def logits(hidden, weight, bias):
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        z = F.linear(hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
        return z if x.softcap is None else x.softcap * torch.tanh(z / x.softcap)

    routes = Routes(
        logits(x.student, x.weight, x.bias),
        logits(x.teacher, x.teacher_weight, x.teacher_bias)[:, :vocabulary] if "teacher" in method.needs else None,
        logits(x.switch, x.teacher_weight, x.teacher_bias)[:, :vocabulary] if "switch" in method.needs else None,
    )
    terms = {name: values.sum() for name, values in method.terms(routes, x.targets).items()}
    return terms, {name: values.sum() for name, values in method.statistics(routes).items()}


def fused(method, x, loss=None, vocabulary=VOCABULARY, chunk=None):
    has_teacher = "teacher" in method.needs
    return fused_loss(
        loss or by_autograd(method),
        x.targets,
        x.student,
        Head(x.weight, x.bias, x.softcap),
        x.teacher if has_teacher else None,
        x.switch if "switch" in method.needs else None,
        Head(x.teacher_weight, x.teacher_bias, x.softcap) if has_teacher else None,
        vocabulary=vocabulary if has_teacher else None,
        chunk=chunk,
    )


def by_autograd(method):
    return AutogradTerms(method.terms, method.statistics)


def analytic(method):
    return method.chunk_loss()


def gradients(loss, x):
    found = torch.autograd.grad(loss, x.learned, allow_unused=True)
    return [torch.zeros_like(y) if g is None else g for g, y in zip(found, x.learned, strict=True)]
