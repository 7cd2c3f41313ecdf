"""From finished cells to a table: mean, spread, paired difference to the baseline with its confidence interval, and cost."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.table import Table
from rich.text import Text

#: Samples of the bootstrap, and the share of them that an interval holds.
RESAMPLES, CONFIDENCE = 10_000, 0.95


@dataclass(frozen=True)
class Row:
    """One arm at one size of data, over all seeds that are finished. Accuracies are means over kinds, in percent."""

    arm: str
    rows: int | None
    seeds: int
    mean: float
    #: Standard deviation over the seeds, n − 1 in the denominator; None for a single seed.
    sd: float | None
    #: Mean over the seeds of the difference to the baseline, and its confidence interval; None for the baseline itself.
    difference: float | None
    low: float | None
    high: float | None
    #: The difference of every seed that both have.
    differences: tuple[float, ...]
    #: Wall-clock and CPU seconds of a cell, training and evaluation, mean over the cells that were not interrupted.
    seconds: float | None
    cpu_seconds: float | None
    #: The same seconds by the baseline's: CPU seconds where the cells ran on a CPU, wall-clock on a GPU.
    cost: float | None


#: One seed's outcome of one arm: picture (row of the data) → kind → (right answers, questions).
Outcome = dict[str, dict[str, tuple[int, int]]]


def bootstrap(arm: Sequence[Outcome], baseline: Sequence[Outcome]) -> tuple[float, float]:
    """The confidence interval of the difference in the mean over kinds, in points, by a paired two-stage bootstrap.

    Drawn with replacement: seeds, and of every seed drawn its pictures, the same ones for both arms. So the interval holds what another
    training and other pictures would change. Percentiles of `RESAMPLES` samples, from a fixed seed.

    Raises:
        ValueError: if the two were not asked the same questions.
    """
    right, asked = _grid(arm, baseline)
    rng = np.random.default_rng(0)
    seeds, pictures = right.shape[:2]
    samples = np.empty(RESAMPLES)
    for number in range(RESAMPLES):
        chosen = rng.integers(seeds, size=seeds)
        times = np.stack([np.bincount(rng.integers(pictures, size=pictures), minlength=pictures) for _ in range(seeds)])
        gained = np.einsum("sp,spk->sk", times, right[chosen])
        total = np.einsum("sp,spk->sk", times, asked[chosen])
        shares = np.divide(gained, total, out=np.full_like(gained, np.nan), where=total > 0)
        samples[number] = 100 * np.nanmean(np.nanmean(shares, axis=1))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(samples, [tail, 100 - tail])
    return float(low), float(high)


def _grid(
    arm: Sequence[Outcome], baseline: Sequence[Outcome]
) -> tuple[Float[np.ndarray, "seeds pictures kinds"], Float[np.ndarray, "seeds pictures kinds"]]:
    """Right answers more than the baseline's, and questions."""
    kinds = sorted({kind for outcome in arm for picture in outcome.values() for kind in picture})
    most = max(map(len, arm))
    right, asked = np.zeros((len(arm), most, len(kinds))), np.zeros((len(arm), most, len(kinds)))
    for seed, (one, other) in enumerate(zip(arm, baseline, strict=True)):
        if one.keys() != other.keys():
            raise ValueError(
                f"two arms of one seed were asked about {len(one)} and {len(other)} pictures that are not the same"
            )
        for place, picture in enumerate(sorted(one)):
            for kind, (good, questions) in one[picture].items():
                against, theirs = other[picture][kind]
                if questions != theirs:
                    raise ValueError(
                        f"picture {picture}: {questions} and {theirs} questions of kind {kind} in two arms"
                    )
                right[seed, place, kinds.index(kind)] = good - against
                asked[seed, place, kinds.index(kind)] = questions
    return right, asked


def tabulate(cells: Sequence[dict[str, Any]], outcomes: Sequence[Outcome], baselines: Mapping[str, str]) -> list[Row]:
    """One row for each arm and size that has a finished cell. `cells`: as in `study.json`; `outcomes` belong to them, in order.
    `baselines`: arm → the arm it is compared with, in the order of the table.
    """
    groups: dict[tuple[str, int | None], dict[int, int]] = defaultdict(dict)
    for index, cell in enumerate(cells):
        groups[cell["arm"], cell["rows"]][cell["seed"]] = index
    rows = []
    for size in sorted({cell["rows"] for cell in cells}, key=lambda size: (size is None, size)):
        for arm, baseline in baselines.items():
            base = groups.get((baseline, size), {})
            base_cost = _cost([cells[index] for index in base.values()])
            found = groups.get((arm, size), {})
            if not found:
                continue
            scores = [cells[index]["score"] for index in found.values()]
            both = [] if arm == baseline else [seed for seed in found if seed in base]
            differences = tuple(cells[found[seed]]["score"] - cells[base[seed]]["score"] for seed in both)
            low, high = None, None
            if both:
                low, high = bootstrap([outcomes[found[seed]] for seed in both], [outcomes[base[seed]] for seed in both])
            mine = [cells[index] for index in found.values()]
            cost = _cost(mine)
            rows.append(
                Row(
                    arm=arm,
                    rows=size,
                    seeds=len(found),
                    mean=mean(scores),
                    sd=stdev(scores) if len(scores) > 1 else None,
                    difference=mean(differences) if differences else None,
                    low=low,
                    high=high,
                    differences=differences,
                    seconds=_mean(mine, "seconds"),
                    cpu_seconds=_mean(mine, "cpu_seconds"),
                    cost=cost / base_cost if cost and base_cost else None,
                )
            )
    return rows


def _mean(cells: Sequence[dict[str, Any]], what: str) -> float | None:
    values = [cell[what] for cell in cells if not cell["resumed"]]
    return mean(values) if values else None


def _cost(cells: Sequence[dict[str, Any]]) -> float | None:
    return _mean(cells, "cpu_seconds" if all(cell["device"] == "cpu" for cell in cells) else "seconds")


_COLUMNS = ("arm", "rows", "seeds", "mean", "sd", "difference", "95 % interval", "wall-clock s", "CPU s", "cost")


def _cells_of(row: Row) -> tuple[str, ...]:
    def shown(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    interval = "–" if row.low is None or row.high is None else f"{row.low:+.1f} … {row.high:+.1f}"
    return (
        row.arm,
        "all" if row.rows is None else str(row.rows),
        str(row.seeds),
        f"{row.mean:.1f}",
        shown(row.sd, ".1f"),
        shown(row.difference, "+.1f"),
        interval,
        shown(row.seconds, ".0f"),
        shown(row.cpu_seconds, ".0f"),
        shown(row.cost, ".2f"),
    )


def _shown_columns(rows: Sequence[Row]) -> list[int]:
    """All of them, without `rows` where all data was used and nothing else."""
    return [place for place, name in enumerate(_COLUMNS) if name != "rows" or any(row.rows is not None for row in rows)]


def rich_table(rows: Sequence[Row], *, title: str) -> Table:
    """The table for a terminal."""
    table = Table(title=Text(title), title_justify="left")
    places = _shown_columns(rows)
    for place in places:
        table.add_column(_COLUMNS[place], justify="left" if place == 0 else "right")
    for row in rows:
        cells = _cells_of(row)
        table.add_row(*(Text(cells[place]) for place in places))
    return table


def markdown_table(rows: Sequence[Row]) -> str:
    """The table for a document."""
    places = _shown_columns(rows)
    return _markdown(
        [_COLUMNS[place] for place in places], [[_cells_of(row)[place] for place in places] for row in rows]
    )


def markdown_kinds(rows: Sequence[Row], cells: Sequence[dict[str, Any]], teachers: Sequence[dict[str, Any]]) -> str:
    """Accuracy of each kind in percent, mean over the seeds: a column for every arm. Empty where no question names its kind.

    `cells` and `teachers` as in `study.json`.
    """
    columns: dict[str, list[dict[str, float]]] = {}
    several = len({teacher["teacher"] for teacher in teachers}) > 1
    for teacher in teachers:
        columns.setdefault(f"teacher {teacher['teacher']}" if several else "teacher", []).append(teacher["kinds"])
    for row in rows:
        name = row.arm if row.rows is None else f"{row.arm}, {row.rows} rows"
        columns[name] = [cell["kinds"] for cell in cells if (cell["arm"], cell["rows"]) == (row.arm, row.rows)]
    kinds = sorted({kind for found in columns.values() for one in found for kind in one})
    if not kinds:
        return ""
    lines = [[kind, *(f"{mean(one[kind] for one in found):.1f}" for found in columns.values())] for kind in kinds]
    return _markdown(["kind", *columns], lines)


def _markdown(head: list[str], body: list[list[str]]) -> str:
    lines = [head, ["---", *("---:" for _ in head[1:])], *body]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
