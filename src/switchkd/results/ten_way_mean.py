"""The average that is published for models of this line: the plain mean of ten benchmarks, with MME as perception / 20."""

from collections.abc import Mapping

#: The ten, by their names on the command line, in the order of the published tables.
TEN = ("mme", "mmbench_en", "mmbench_cn", "vqav2", "gqa", "scienceqa", "mmmu", "textvqa", "vizwiz", "pope")


def percent(score: float, max_score: float) -> float:
    """A score as a part of what it can reach: MME's perception, of 2000 points, divided by 20."""
    return 100 * score / max_score


def ten_way_mean(percents: Mapping[str, float]) -> float | None:
    """The plain mean of the ten, whatever else was asked; None where one of the ten was not."""
    return sum(percents[name] for name in TEN) / len(TEN) if percents.keys() >= set(TEN) else None
