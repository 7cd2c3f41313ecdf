"""DBiLD given logits, forward and backward: what the O(k) form and the two-stage selection save.

python benchmarks/loss_from_logits.py --check
"""

import argparse
from collections.abc import Callable

import peers
import torch
from common import Case, Demand, parser, ratio, report, run
from torch import Tensor

from switchkd.losses import dbild, reverse_kl


def logits(options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """A student that has learned most of its teacher, a few nats of spread, at the device asked for."""
    teacher = 2 * torch.randn(options.tokens, options.vocabulary, device=options.device)
    student = 0.8 * teacher + 0.8 * torch.randn_like(teacher)
    return student.requires_grad_(), teacher


def case(make: Callable[[], Callable[[Tensor, Tensor], Tensor]]) -> Case:
    def prepare(options: argparse.Namespace) -> Callable[[], object]:
        loss = make()
        student, teacher = logits(options)
        return lambda: torch.autograd.grad(loss(student, teacher).sum(), student)

    return prepare


CASES = {
    "dbild": case(lambda: dbild),
    "naive dbild": case(lambda: peers.naive_dbild),
    "reverse kl": case(lambda: reverse_kl),
    "TRL reverse kl": case(peers.trl_reverse_kl),
    "ms-swift reverse kl": case(peers.ms_swift),
}


def exactness() -> float:
    """The largest difference, of losses and gradients, between `dbild` and its definition in float64."""
    torch.manual_seed(0)
    student, teacher = 3 * torch.randn(2, 64, 3000, dtype=torch.float64)
    student.requires_grad_()
    found = []
    for loss in (dbild, peers.naive_dbild):
        value = loss(student, teacher)
        found.append((value.detach(), *torch.autograd.grad(value.sum(), student)))
    return max((ours - theirs).abs().max().item() for ours, theirs in zip(*found, strict=True))


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--tokens", type=int, default=256)
    options.add_argument("--vocabulary", type=int, default=151_936)
    given = options.parse_args()
    rows = run(__file__, CASES, [(name, {}) for name in CASES], given)

    def against(peer: str, what: str) -> float | None:
        return ratio(rows, peer, "dbild", what, given.tokens)

    report(
        [
            Demand("naive DBiLD / ours: time", against("naive dbild", "median_seconds"), 20),
            Demand("naive DBiLD / ours: memory", against("naive dbild", "peak_mib"), 6),
            Demand("TRL reverse KL / ours: time", against("TRL reverse kl", "median_seconds"), 4),
            Demand("TRL reverse KL / ours: memory", against("TRL reverse kl", "peak_mib"), 6),
            Demand("float64: loss and gradient against the k×k definition", exactness(), 1e-10, at_least=False),
        ],
        given.check,
    )


if __name__ == "__main__":
    main()
