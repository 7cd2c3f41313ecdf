"""Which questions a page shows: won and lost ones, and those whose attention is drawn."""

import itertools
from collections.abc import Iterable, Mapping

from switchkd.report.evidence import Evidence, Model
from switchkd.results.question_results import Prediction

#: Questions of each sort that are shown per model.
SHOWN = 6


def changed(model: Model, baseline: Model) -> tuple[list[str], list[str]]:
    """Questions that `model` wins (right where the baseline is wrong) and loses, in the order of the data."""
    both = [name for name in model.answers if name in baseline.answers]
    won = [name for name in both if model.answers[name].right and not baseline.answers[name].right]
    lost = [name for name in both if baseline.answers[name].right and not model.answers[name].right]
    return won, lost


def varied(names: Iterable[str], answers: Mapping[str, Prediction], count: int = SHOWN) -> list[str]:
    """`count` of the questions: one of each kind before a second one of any, and each kind's from another place in the data."""
    kinds: dict[str | None, list[str]] = {}
    for name in names:
        kinds.setdefault(answers[name].kind, []).append(name)
    moved = []
    for index, of_kind in enumerate(kinds.values()):
        begin = index * len(of_kind) // len(kinds)
        moved.append(of_kind[begin:] + of_kind[:begin])
    turns = itertools.chain.from_iterable(itertools.zip_longest(*moved))
    return [name for name in turns if name is not None][:count]


def compared(evidence: Evidence) -> list[tuple[Model, Model]]:
    """(model, baseline), of the models whose answers can be held against the baseline's."""
    base = next((model for model in evidence.models if model.name == evidence.baseline and model.answers), None)
    if base is None:
        return []
    return [(model, base) for model in evidence.models if model is not base and model.answers]


def for_attention(evidence: Evidence, count: int) -> list[str]:
    """Questions whose answers tell the models apart: of the first run that is not the baseline, won ones and a few lost ones.

    Where there is nothing to compare, questions of every kind.
    """
    runs = [(model, base) for model, base in compared(evidence) if model.recipe is not None]
    if runs:
        model, base = max(runs, key=lambda pair: sum(answer.right for answer in pair[0].answers.values()))
        won, lost = changed(model, base)
        few = varied(lost, model.answers, count // 3)
        picked = varied(won, model.answers, count - len(few)) + few
        if len(picked) == count:
            return picked
    answered = next((model.answers for model in evidence.models if model.answers), {})
    return varied(answered, answered, count)


def to_picture(evidence: Evidence) -> list[str]:
    """All questions whose image the page shows."""
    names = list(evidence.chosen)
    for model, base in compared(evidence):
        for side in changed(model, base):
            names += varied(side, model.answers)
    return list(dict.fromkeys(names))
