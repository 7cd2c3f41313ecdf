"""The average that is published for models of this line: the plain mean of ten benchmarks, with MME as perception / 20."""

from collections.abc import Mapping

TEN = ("mme", "mmbench_en", "mmbench_cn", "vqav2", "gqa", "scienceqa", "mmmu", "textvqa", "vizwiz", "pope")


def percent(score: float, out_of: float) -> float:
    """A score as a part of what it can reach: MME's perception, of 2000 points, divided by 20."""
    return 100 * score / out_of


def ten_way_mean(percents: Mapping[str, float]) -> float:
    """The plain mean of all ten.

    Raises:
        ValueError: one of the ten is missing, or there is another.
    """
    if set(percents) != set(TEN):
        raise ValueError(f"the average is over {', '.join(TEN)}; there are {', '.join(percents)}")
    return sum(percents.values()) / len(TEN)
