"""Training logs → curves."""

from collections.abc import Mapping, Sequence
from typing import Any

from switchkd.report.evidence import Curve

#: What else stands in a log line; every other number in a line with a loss is a term in nats, or a knee.
_BOOKKEEPING = {"step", "epoch", "grad_norm", "answer_tokens", "aligned", "dropped_mass"}


def curves_of(lines: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    """Term → its (step, value) points, of the lines of a training log."""
    curves: dict[str, Curve] = {}
    for line in lines:
        if "loss" not in line:  # the summary at the end of training
            continue
        for term, value in line.items():
            if term in _BOOKKEEPING or term.startswith("learning_rate"):  # and those of the parts
                continue
            if isinstance(value, int | float):
                curves.setdefault(term, []).append((line["step"], float(value)))
    return curves
