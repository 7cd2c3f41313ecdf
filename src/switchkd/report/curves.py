"""Training logs → curves."""

from collections.abc import Mapping, Sequence
from typing import Any

from switchkd.report.evidence import Curve

#: What else stands in a log line; every other number in a line with a loss is a term in nats, or a knee.
_BOOKKEEPING = {"step", "epoch", "grad_norm", "answer_tokens", "aligned", "dropped_mass"}


#: Beginnings of others: the rates of the parts, and how the student's own answers went.
_NO_TERMS = ("learning_rate", "on_policy")
#: What is measured on held-out rows: the beginning of a term's name there, and the share of their questions that is answered exactly.
HELD_OUT, EXACT_MATCH = "held-out ", "exact match"
_OF_HELD_OUT = "eval_"
#: Ends of names that say how fast it was measured.
_SPEED = ("_runtime", "_per_second")


def curves_of(lines: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    """Term → its (step, value) points, of the lines of a training log."""
    curves: dict[str, Curve] = {}
    for line in lines:
        if "loss" not in line and f"{_OF_HELD_OUT}loss" not in line:  # the summary at the end of training
            continue
        for logged, value in line.items():
            term = logged.removeprefix(_OF_HELD_OUT)
            if term in _BOOKKEEPING or term.startswith(_NO_TERMS):  # and those of the parts
                continue
            if term != logged:
                if term.startswith("knee") or term.endswith(_SPEED):
                    continue
                term = EXACT_MATCH if term == "exact_match" else f"{HELD_OUT}{term}"
            if isinstance(value, int | float):
                curves.setdefault(term, []).append((line["step"], float(value)))
    return curves
