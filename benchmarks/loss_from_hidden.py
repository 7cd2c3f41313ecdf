"""The loss from hidden states, forward and backward: three ways (CE + align + switch) and two ways (CE + one divergence).

python benchmarks/loss_from_hidden.py --check
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, NamedTuple

import peers
import torch
import torch.nn.functional as F
from common import Case, Demand, parser, ratio, report, run, value
from torch import Tensor

from switchkd.batch import TEACHER
from switchkd.losses import Head, fused_loss
from switchkd.methods import SwitchKD
from switchkd.signals import Compared, FromHidden, Signals

#: The same for ours, for Liger, and for the bare matrix products.
CHUNK = 128


class States(NamedTuple):
    """Hidden states of norm √width and heads that give logits a spread of about 2, in the widths of Qwen2.5-0.5B and -3B."""

    targets: Tensor
    student: Tensor
    student_head: Tensor
    teacher: Tensor
    switch: Tensor
    teacher_head: Tensor

    @property
    def learned(self) -> list[Tensor]:
        return [x for x in self if x.requires_grad]


def states(options: argparse.Namespace) -> States:
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, device=options.device)).to(dtype)

    n, v, width, teacher_width = options.tokens, options.vocabulary, options.hidden, options.teacher_hidden
    return States(
        targets=torch.randint(v, (n,), device=options.device),
        student=draw(n, width).requires_grad_(),
        student_head=draw(v, width, scale=2 * width**-0.5).requires_grad_(),
        teacher=draw(n, teacher_width),
        switch=draw(n, teacher_width),
        teacher_head=draw(v, teacher_width, scale=2 * teacher_width**-0.5),
    )


def three_way(loss: Callable[[States], Tensor]) -> Case:
    def prepare(options: argparse.Namespace) -> Callable[[], object]:
        x = states(options)
        x.switch.requires_grad_()
        return lambda: torch.autograd.grad(loss(x), x.learned)

    return prepare


def two_way(make: Callable[[], Callable[[States], Tensor]]) -> Case:
    def prepare(options: argparse.Namespace) -> Callable[[], object]:
        loss, x = make(), states(options)
        return lambda: torch.autograd.grad(loss(x), x.learned)

    return prepare


def ours(x: States, chunk: int | None = CHUNK, kernels: Literal["auto", "torch", "triton"] = "auto") -> Tensor:
    switch = x.switch if x.switch.requires_grad else None
    loss = replace(SwitchKD(switch=0.0 if switch is None else 1.0).chunk_loss(), kernels=kernels)
    head, rows = Head(x.teacher_head), len(x.teacher_head)
    said = None if switch is None else FromHidden(switch, head, rows)
    compared = {TEACHER: Compared(FromHidden(x.teacher, head, rows), rows, x.targets, said)}
    sample = torch.zeros_like(x.targets)
    signals = Signals(FromHidden(x.student, Head(x.student_head)), x.targets, sample, ("sample@0",), compared, {})
    return fused_loss(loss, signals, chunk=chunk).loss


def full_logits(x: States, divergence: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Logits of all tokens, as plain training code has them, in float32."""
    z_student, z_teacher = (x.student @ x.student_head.T).float(), (x.teacher @ x.teacher_head.T).float()
    loss = F.cross_entropy(z_student, x.targets, reduction="sum") + divergence(z_student, z_teacher).sum()
    if x.switch.requires_grad:
        loss = loss + divergence((x.switch @ x.teacher_head.T).float(), z_teacher).sum()
    return loss


def trl_full_logits() -> Callable[[States], Tensor]:
    reverse_kl = peers.trl_reverse_kl()
    return lambda x: full_logits(x, reverse_kl)


def ms_swift() -> Callable[[States], Tensor]:
    reverse_kl = peers.ms_swift()
    return lambda x: full_logits(x, reverse_kl)


def trl_chunked() -> Callable[[States], Tensor]:
    loss = peers.trl_chunked()
    return lambda x: loss(x.student, x.teacher, x.student_head, x.teacher_head)


def liger_chunked() -> Callable[[States], Tensor]:
    loss = peers.liger_chunked(CHUNK)
    return lambda x: loss(x.student, x.teacher, x.student_head, x.teacher_head, x.targets)


def products(*, switch: bool) -> Case:
    """The matrix products that no implementation can leave out, in the same chunks and nothing else."""

    def prepare(options: argparse.Namespace) -> Callable[[], object]:
        x = States(*(tensor.detach() for tensor in states(options)))
        chunk = min(CHUNK, options.tokens)
        z = torch.randn(chunk, options.vocabulary, device=options.device, dtype=x.student.dtype)
        z_teacher = z.new_empty((1 + switch) * chunk, options.vocabulary)
        weight_gradient = torch.zeros_like(x.student_head)

        def step() -> None:
            for start in range(0, options.tokens, chunk):
                tokens = slice(start, start + chunk)
                n = len(x.student[tokens])
                said = torch.cat([x.teacher[tokens], x.switch[tokens]]) if switch else x.teacher[tokens]
                torch.mm(said, x.teacher_head.T, out=z_teacher[: len(said)])
                torch.mm(x.student[tokens], x.student_head.T, out=z[:n])
                torch.mm(z[:n], x.student_head)
                weight_gradient.addmm_(z[:n].T, x.student[tokens])

        return step

    return prepare


CASES: dict[str, Case] = {
    "three-way: ours": lambda options: three_way(lambda x: ours(x, kernels=options.kernels))(options),
    "three-way: naive dbild": three_way(lambda x: full_logits(x, peers.naive_dbild)),
    "three-way: TRL reverse kl twice": lambda options: three_way(trl_full_logits())(options),
    "three-way: bare products": products(switch=True),
    "two-way: ours": lambda options: two_way(lambda: lambda x: ours(x, kernels=options.kernels))(options),
    "two-way: TRL": two_way(trl_full_logits),
    "two-way: ms-swift": two_way(ms_swift),
    "two-way: TRL chunked, no CE": two_way(trl_chunked),
    "two-way: Liger chunked": two_way(liger_chunked),
    "two-way: bare products": products(switch=False),
}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--tokens", type=int, default=256)
    options.add_argument("--many-tokens", type=int, default=1024, help="for memory alone: one run of each case")
    options.add_argument("--vocabulary", type=int, default=151_936)
    options.add_argument("--hidden", type=int, default=896)
    options.add_argument("--teacher-hidden", type=int, default=2048)
    options.add_argument(
        "--kernels", choices=["auto", "torch", "triton"], default="auto", help="ours; triton needs a GPU"
    )
    given = options.parse_args()
    few, many = given.tokens, given.many_tokens
    only_memory = {"tokens": many, "repetitions": 0}
    large = [name for name in CASES if not name.endswith(("bare products", "no CE"))]
    rows = run(__file__, CASES, [(name, {}) for name in CASES] + [(name, only_memory) for name in large], given)

    def against(peer: str, what: str, tokens: int = few) -> float | None:
        return ratio(rows, peer, f"{peer.split(':')[0]}: ours", what, tokens)

    naive, twice, trl, liger = (
        "three-way: naive dbild",
        "three-way: TRL reverse kl twice",
        "two-way: TRL",
        "two-way: Liger chunked",
    )
    growth = value(rows, "three-way: ours", "peak_mib", many) / value(rows, "three-way: ours", "peak_mib", few) - 1
    shares = [
        ratio(rows, f"{ways}: bare products", f"{ways}: ours", "median_seconds", few)
        for ways in ("three-way", "two-way")
    ]
    # Where the products leave nothing else to save, as on processors without wide units, no loss can be much faster than another
    least = 1.05 if shares[1] is not None and shares[1] >= 0.95 else 1.2
    report(
        [
            Demand("three-way, naive DBiLD / ours: time", against(naive, "median_seconds"), 2.8),
            Demand("three-way, naive DBiLD / ours: memory", against(naive, "peak_mib"), 2.5),
            Demand(f"three-way, naive DBiLD / ours: memory at {many} tokens", against(naive, "peak_mib", many), 9),
            Demand("three-way, TRL reverse KL twice / ours: time", against(twice, "median_seconds"), 1.5),
            Demand("three-way, TRL reverse KL twice / ours: memory", against(twice, "peak_mib"), 2),
            Demand(
                f"three-way, TRL reverse KL twice / ours: memory at {many} tokens", against(twice, "peak_mib", many), 8
            ),
            Demand("two-way, TRL / ours: time", against(trl, "median_seconds"), least),
            Demand("two-way, TRL / ours: memory", against(trl, "peak_mib"), 1.7),
            Demand(f"two-way, TRL / ours: memory at {many} tokens", against(trl, "peak_mib", many), 6),
            Demand("two-way, Liger chunked / ours: time", against(liger, "median_seconds"), 1.15),
            Demand("two-way, Liger chunked / ours: memory", against(liger, "peak_mib"), 2.5),
            Demand("three-way: time of the bare matrix products / ours", shares[0], 0.85),
            Demand(f"three-way: growth of our memory from {few} to {many} tokens", growth, 0.05, at_least=False),
        ],
        given.check,
    )


if __name__ == "__main__":
    main()
