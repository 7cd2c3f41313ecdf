"""How sure a figure is: percentile bootstraps of means over questions, and of differences between models that answered the same ones.

Drawn with replacement are pictures with all their questions, because answers about one picture go wrong together; of several trainings
the seeds are drawn first, and then of every seed its pictures; or, where all seeds were asked about the same ones, these once for all seeds
(the pigeonhole bootstrap, Owen 2007, doi:10.1214/07-AOAS122: its intervals are rather too wide than too narrow). `RESAMPLES` samples from
a fixed seed: the same answers always give the same interval.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from switchkd.results.question_results import MEAN, OVERALL, Prediction
from switchkd.results.score import CONFIDENCE, Interval

__all__ = ["RESAMPLES", "Interval", "interval", "intervals", "mean_over_kinds"]

#: Samples of a bootstrap.
RESAMPLES = 10_000
#: Pictures drawn at a time: what bounds the memory.
_DRAWN_AT_A_TIME = 4_000_000


def intervals(answers: Sequence[Prediction], baseline: Sequence[Prediction] | None = None) -> dict[str, Interval]:
    """The interval of each kind's mean, of the mean of kinds (where there are any), and of the mean over all questions, by name.

    Args:
        answers: of one model; empty where they were not kept, and then there are no intervals.
        baseline: answers to the same questions; the intervals are then those of the differences to it, question by question.

    Raises:
        ValueError: if the two were not asked the same questions.
    """
    if not answers:
        return {}
    gained = np.array([answer.points for answer in answers], dtype=float)
    if baseline is not None:
        other = {answer.id: answer.points for answer in baseline}
        if other.keys() != {answer.id for answer in answers}:
            raise ValueError(f"{len(answers)} and {len(other)} answers are not to the same questions")
        gained -= [other[answer.id] for answer in answers]
    kinds = sorted({answer.kind for answer in answers if answer.kind is not None})
    columns = {kind: place for place, kind in enumerate(kinds)}
    pictures = {key: place for place, key in enumerate(dict.fromkeys(answer.picture_key for answer in answers))}
    points, asked = np.zeros((2, 1, len(pictures), len(kinds) + 1))
    for answer, value in zip(answers, gained, strict=True):
        for column in (len(kinds), *([] if answer.kind is None else [columns[answer.kind]])):
            points[0, pictures[answer.picture_key], column] += value
            asked[0, pictures[answer.picture_key], column] += 1
    drawn = _means(points, asked)[:, 0]
    of_kinds = {kind: interval(drawn[:, columns[kind]]) for kind in kinds}
    if kinds:
        of_kinds[MEAN] = interval(np.nanmean(drawn[:, :-1], axis=1))
    return of_kinds | {OVERALL: interval(drawn[:, -1])}


def mean_over_kinds(
    points: Float[np.ndarray, "seeds pictures kinds"],
    asked: Float[np.ndarray, "seeds pictures kinds"],
    *,
    shared: bool = False,
) -> Interval:
    """The interval of the mean over kinds and seeds: seeds are drawn, and of every seed drawn its pictures.

    Args:
        points: sums over the questions of a picture and kind, of points or of differences in them.
        asked: how many questions these are.
        shared: whether the seeds were asked about the same pictures, in the same places: they are then drawn once, for all seeds drawn.
    """
    return interval(np.nanmean(np.nanmean(_means(points, asked, shared=shared), axis=2), axis=1))


def interval(drawn: Float[np.ndarray, " samples"]) -> Interval:
    """The middle `CONFIDENCE` of the samples, in percent; those that drew no question say nothing."""
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.nanpercentile(100 * drawn, [tail, 100 - tail])
    return Interval(float(low), float(high))


def _means(
    points: Float[np.ndarray, "seeds pictures kinds"],
    asked: Float[np.ndarray, "seeds pictures kinds"],
    *,
    shared: bool = False,
) -> Float[np.ndarray, "samples seeds kinds"]:
    """The mean of each kind in each sample and each seed drawn; NaN where no question was drawn."""
    seeds, pictures, kinds = points.shape
    rng = np.random.default_rng(0)
    chosen = rng.integers(seeds, size=(RESAMPLES, seeds))
    both = np.concatenate([points, asked], axis=2)
    sums = np.empty((RESAMPLES, seeds, 2 * kinds))
    step = max(1, _DRAWN_AT_A_TIME // pictures)
    for places in [range(seeds)] if shared else [[place] for place in range(seeds)]:
        for begin in range(0, RESAMPLES, step):
            of_samples = chosen[begin : begin + step]
            drawn = rng.integers(pictures, size=(len(of_samples), pictures))
            drawn += pictures * np.arange(len(of_samples))[:, None]
            times = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
            for place in places:
                for seed in np.unique(of_samples[:, place]):
                    rows = np.flatnonzero(of_samples[:, place] == seed)
                    sums[begin + rows, place] = times[rows] @ both[seed]
    total = sums[..., kinds:]
    return np.divide(sums[..., :kinds], total, out=np.full_like(total, np.nan), where=total > 0)
