"""How the cost grows: with the vocabulary and the window (DBiLD given logits), with the tokens (fused three-way loss).

python benchmarks/vocabulary.py
"""

import argparse
from collections.abc import Callable

import loss_from_hidden
import torch
from common import Case, Demand, parser, report, run, value
from loss_from_logits import logits

from switchkd.losses import dbild

VOCABULARIES = (8_192, 32_768, 65_536, 151_936, 262_144)
WINDOWS = (32, 128, 512, 2_048, None)
TOKENS = (64, 128, 256, 512, 1_024)


def dbild_with(window: int | None) -> Case:
    def prepare(options: argparse.Namespace) -> Callable[[], object]:
        student, teacher = logits(options)
        return lambda: torch.autograd.grad(dbild(student, teacher, window=window).sum(), student)

    return prepare


FUSED = "fused three-way"
CASES: dict[str, Case] = {
    **{f"dbild, window {window}": dbild_with(window) for window in WINDOWS},
    FUSED: loss_from_hidden.three_way(lambda x: loss_from_hidden.ours(x, chunk=None)),
}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--tokens", type=int, default=64, help="where the vocabulary or the window varies")
    options.add_argument("--vocabulary", type=int, default=151_936, help="where the tokens or the window vary")
    options.add_argument("--hidden", type=int, default=896)
    options.add_argument("--teacher-hidden", type=int, default=2048)
    given = options.parse_args()
    runs: list[tuple[str, dict[str, object]]] = [("dbild, window 128", {"vocabulary": size}) for size in VOCABULARIES]
    runs += [(f"dbild, window {window}", {}) for window in WINDOWS if window != 128]
    runs += [(FUSED, {"tokens": tokens}) for tokens in TOKENS]
    rows = run(__file__, CASES, runs, given)
    growth = value(rows, FUSED, "peak_mib", 1_024) / value(rows, FUSED, "peak_mib", 256) - 1
    report(
        [Demand("growth of the fused loss's memory from 256 to 1024 tokens", growth, 0.05, at_least=False)], given.check
    )


if __name__ == "__main__":
    main()
