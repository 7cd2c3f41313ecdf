"""From finished cells to a table: mean, spread, paired difference to the baseline with its confidence interval, and cost."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Literal

import numpy as np
from jaxtyping import Float
from rich.table import Table
from rich.text import Text

from switchkd.results.intervals import mean_over_kinds
from switchkd.results.study_results import ArmSummary, CellResult, Outcome, StudyResults


def bootstrap(arm: Sequence[Outcome], baseline: Sequence[Outcome], *, shared: bool = False) -> tuple[float, float]:
    """The interval of the difference in the mean over kinds, in points: seeds and pictures are drawn, the same ones for both arms.

    `shared`: all seeds were asked about the same pictures, which are then drawn once for all of them.

    Raises:
        ValueError: if the two were not asked the same questions.
    """
    points, asked = _grid(arm, baseline)
    found = mean_over_kinds(points, asked, shared=shared)
    return found.low, found.high


def _grid(
    arm: Sequence[Outcome], baseline: Sequence[Outcome]
) -> tuple[Float[np.ndarray, "seeds pictures kinds"], Float[np.ndarray, "seeds pictures kinds"]]:
    """Points more than the baseline's, and questions."""
    kinds = sorted({kind for outcome in arm for picture in outcome.values() for kind in picture})
    most = max(map(len, arm))
    points, asked = np.zeros((len(arm), most, len(kinds))), np.zeros((len(arm), most, len(kinds)))
    for seed, (one, other) in enumerate(zip(arm, baseline, strict=True)):
        if one.keys() != other.keys():
            raise ValueError(
                f"two arms of one seed were asked about {len(one)} and {len(other)} pictures that are not the same"
            )
        for place, picture in enumerate(sorted(one)):
            for kind, (good, questions) in one[picture].items():
                base_good, base_questions = other[picture][kind]
                if questions != base_questions:
                    raise ValueError(
                        f"picture {picture}: {questions} and {base_questions} questions of kind {kind} in two arms"
                    )
                points[seed, place, kinds.index(kind)] = good - base_good
                asked[seed, place, kinds.index(kind)] = questions
    return points, asked


def tabulate(
    cells: Sequence[CellResult], outcomes: Sequence[Outcome], baselines: Mapping[str, str]
) -> list[ArmSummary]:
    """One line for each arm and size of data that has a finished cell.

    Args:
        cells: the finished cells.
        outcomes: of each of them, in the same order.
        baselines: arm → the arm it is compared with, in the order of the table.
    """
    groups: dict[tuple[str, int | None], dict[int, int]] = defaultdict(dict)
    for index, cell in enumerate(cells):
        groups[cell.arm, cell.rows][cell.seed] = index
    table = []
    for size in sorted({cell.rows for cell in cells}, key=lambda size: (size is None, size)):
        for arm, baseline in baselines.items():
            arm_cells, base = groups.get((arm, size), {}), groups.get((baseline, size), {})
            if not arm_cells:
                continue
            scores = [cells[index].score for index in arm_cells.values()]
            both = [] if arm == baseline else [seed for seed in arm_cells if seed in base]
            differences = tuple(cells[arm_cells[seed]].score - cells[base[seed]].score for seed in both)
            low, high = None, None
            if both:
                asked = {cells[arm_cells[seed]].data_fingerprint for seed in both}
                low, high = bootstrap(
                    [outcomes[arm_cells[seed]] for seed in both],
                    [outcomes[base[seed]] for seed in both],
                    shared=len(asked) == 1 and asked != {""},
                )
            measured = [cells[index] for index in arm_cells.values()]
            cost, base_cost = _cost(measured), _cost([cells[index] for index in base.values()])
            table.append(
                ArmSummary(
                    arm=arm,
                    rows=size,
                    seeds=len(arm_cells),
                    mean=mean(scores),
                    sd=stdev(scores) if len(scores) > 1 else None,
                    difference=mean(differences) if differences else None,
                    low=low,
                    high=high,
                    differences=differences,
                    seconds=_mean(measured, "seconds"),
                    cpu_seconds=_mean(measured, "cpu_seconds"),
                    cost=cost / base_cost if cost and base_cost else None,
                )
            )
    return table


def _mean(cells: Sequence[CellResult], what: Literal["seconds", "cpu_seconds"]) -> float | None:
    values: list[float] = [getattr(cell, what) for cell in cells if not cell.resumed]
    return mean(values) if values else None


def _cost(cells: Sequence[CellResult]) -> float | None:
    return _mean(cells, "cpu_seconds" if all(cell.device == "cpu" for cell in cells) else "seconds")


_COLUMNS = ("arm", "rows", "seeds", "mean", "sd", "difference", "95 % interval", "wall-clock s", "CPU s", "cost")


def _texts(line: ArmSummary) -> tuple[str, ...]:
    def shown(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    interval = "–" if line.low is None or line.high is None else f"{line.low:+.1f} … {line.high:+.1f}"
    return (
        line.arm,
        "all" if line.rows is None else str(line.rows),
        str(line.seeds),
        f"{line.mean:.1f}",
        shown(line.sd, ".1f"),
        shown(line.difference, "+.1f"),
        interval,
        shown(line.seconds, ".0f"),
        shown(line.cpu_seconds, ".0f"),
        shown(line.cost, ".2f"),
    )


def _shown_columns(table: Sequence[ArmSummary]) -> list[int]:
    """All of them, without `rows` where all data was used and nothing else."""
    sized = any(line.rows is not None for line in table)
    return [place for place, name in enumerate(_COLUMNS) if name != "rows" or sized]


def rich_table(table: Sequence[ArmSummary], *, title: str) -> Table:
    """The table for a terminal."""
    shown = Table(title=Text(title), title_justify="left")
    places = _shown_columns(table)
    for place in places:
        shown.add_column(_COLUMNS[place], justify="left" if place == 0 else "right")
    for line in table:
        texts = _texts(line)
        shown.add_row(*(Text(texts[place]) for place in places))
    return shown


def markdown_table(table: Sequence[ArmSummary]) -> str:
    """The table for a document."""
    places = _shown_columns(table)
    return _markdown(
        [_COLUMNS[place] for place in places], [[_texts(line)[place] for place in places] for line in table]
    )


def markdown_kinds(study: StudyResults) -> str:
    """Accuracy of each kind in percent, mean over the seeds: a column for every arm. Empty where no question names its kind."""
    columns: dict[str, list[dict[str, float]]] = {}
    several = len(study.teacher_scores) > 1
    for teacher in study.teachers:
        columns.setdefault(f"teacher {teacher.teacher}" if several else "teacher", []).append(teacher.kinds)
    for line in study.table:
        name = line.arm if line.rows is None else f"{line.arm}, {line.rows} rows"
        columns[name] = [cell.kinds for cell in study.cells if (cell.arm, cell.rows) == (line.arm, line.rows)]
    kinds = sorted({kind for column in columns.values() for one in column for kind in one})
    if not kinds:
        return ""
    lines = [[kind, *(f"{mean(one[kind] for one in column):.1f}" for column in columns.values())] for kind in kinds]
    return _markdown(["kind", *columns], lines)


def _markdown(head: list[str], body: list[list[str]]) -> str:
    lines = [head, ["---", *("---:" for _ in head[1:])], *body]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
