"""The list of all answers: every question with what each model said, as data for the page's script."""

from collections.abc import Sequence
from dataclasses import dataclass

from switchkd.report.evidence import Model
from switchkd.results.question_results import Prediction

#: What one model said: its answer, 1 if it is right, 1 if it was cut; None where it was not asked.
Said = tuple[str, int, int] | None


@dataclass(frozen=True)
class AnswersList:
    """Plain values, as the page's script reads them."""

    models: list[str]
    kinds: list[str]
    #: Id, place of the kind among `kinds` (−1: none), question, expected answer, what each model said.
    rows: list[tuple[str, int, str, str, list[Said]]]


def answers_list(models: Sequence[Model]) -> AnswersList | None:
    """Every question that one of the models answered, in the order of the data; None where no answers were kept."""
    answered = [model for model in models if model.answers]
    asked: dict[str, Prediction] = {}
    for model in answered:
        for name, answer in model.answers.items():
            asked.setdefault(name, answer)
    if not asked:
        return None
    kinds = sorted({answer.kind for answer in asked.values() if answer.kind is not None})
    places = {kind: place for place, kind in enumerate(kinds)}
    rows = []
    for name, answer in asked.items():
        place = -1 if answer.kind is None else places[answer.kind]
        rows.append(
            (name, place, answer.question, answer.expected, [_said(model.answers.get(name)) for model in answered])
        )
    return AnswersList([model.name for model in answered], kinds, rows)


def _said(answer: Prediction | None) -> Said:
    return None if answer is None else (answer.got, int(answer.right), int(answer.truncated))
