"""Data that count more or less than others: how often a row is seen in an epoch."""

import logging
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from datasets import Dataset

from switchkd.data.errors import DataError
from switchkd.data.row_form import writable
from switchkd.data.sources import find_sources

#: What `formats` writes behind the name of a source, to say where in it a row is.
_PLACE = re.compile(r"(, line \d+)?, row \d+$")
_log = logging.getLogger(__name__)


def weigh(rows: Dataset, data: Sequence[tuple[str, float]], *, seed: int) -> Dataset:
    """The rows as often as their data weigh: with 2 twice, with 0.5 a random half of them, with 2.5 twice and a half of them once more.

    Which rows a fraction takes depends on the seed alone: they are the same in every epoch, on every rank and after resuming.

    Args:
        rows: those of an index of all data, of which some may be left out; in the order of the data.
        data: what was named, and its weight. What is named twice is there twice.
        seed: of what fractions take.

    Raises:
        DataError: a weight that leaves no row of its data.
    """
    if all(weight == 1 for _, weight in data):
        return rows
    members = _rows_of(rows, [name for name, _ in data])
    random = np.random.default_rng(seed)
    counts = np.zeros(len(rows), dtype=np.int64)
    for (name, weight), places in zip(data, members, strict=True):
        whole = math.floor(weight)
        more = round((weight - whole) * len(places))
        if len(places) and not whole and not more:
            raise DataError(f"data.train: weight {weight:g} of {name} leaves none of its {len(places)} rows: raise it")
        counts[places] = whole
        counts[random.choice(places, more, replace=False)] += 1
        _log.info("%s, weight %g: %d rows, seen %d times in an epoch", name, weight, len(places), counts[places].sum())
    return rows.select(np.repeat(np.arange(len(rows)), counts))


def _rows_of(rows: Dataset, names: Sequence[str]) -> list[np.ndarray]:
    """For each of the names, the numbers of its rows. Of a source that several name, each has the rows that its turn made."""
    owners: dict[str, list[int]] = defaultdict(list)
    for owner, name in enumerate(names):
        for source in find_sources(name):
            owners[writable(source.name)].append(owner)
    places: list[list[int]] = [[] for _ in names]
    seen: Counter[str] = Counter()
    for number, where in enumerate(rows["source"]):
        places[owners[_PLACE.sub("", where)][seen[where]]].append(number)
        seen[where] += 1
    return [np.array(each, dtype=np.int64) for each in places]
