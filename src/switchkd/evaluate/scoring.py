"""Which metric scores which question, and the points of each answer."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from switchkd.evaluate.questions import Bad, Question
from switchkd.results.metrics import METRICS, Chosen, check_accepted
from switchkd.results.question_results import Prediction

#: Scored when all answers are there: how rare words are is counted over all of them.
_OF_ALL = ("cider",)


def choose_metrics(asked: Sequence[Question], chosen: Chosen) -> tuple[list[Question], list[Bad]]:
    """The questions with their metric (the row's own, that of its kind, that of all, else exact match), and those that cannot be scored.

    Raises:
        ValueError: a metric for a kind that no question has, or one whose package is missing.
    """
    kinds = sorted({question.kind for question in asked if question.kind is not None})
    for kind in chosen:
        if kind is not None and kind not in kinds:
            raise ValueError(
                f"a metric is given for the kind {kind}, and the questions have {', '.join(kinds) or 'no kinds'}"
            )
    able, bad = [], []
    for question in asked:
        metric = question.metric or chosen.get(question.kind) or chosen.get(None) or "exact"
        if problem := check_accepted(metric, question.accepted or (question.expected,)):
            bad.append(Bad(question.id, question.sample, f"question {question.id!a}: {problem}"))
        else:
            able.append(replace(question, metric=metric))
    for metric in {str(question.metric) for question in able}:
        METRICS[metric]([])  # what is not installed is not seen after hours of asking
    return able, bad


def scored(predictions: Sequence[Prediction], *, all_there: bool) -> list[Prediction]:
    """The same with their points. `all_there`: they are not a part of the answers, on which some metrics have nothing to say."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, prediction in enumerate(predictions):
        if all_there or prediction.metric not in _OF_ALL:
            places[prediction.metric].append(place)
    marked = list(predictions)
    for metric, of_metric in places.items():
        points = METRICS[metric]([(predictions[place].references, predictions[place].got) for place in of_metric])
        for place, value in zip(of_metric, points, strict=True):
            marked[place] = replace(predictions[place], score=value, right=value >= 1)
    return marked


def count_metrics(predictions: Sequence[Prediction]) -> dict[str, int]:
    """Metric → questions."""
    return dict(Counter(prediction.metric for prediction in predictions))
