"""The part of a page that shows a study: its table, each seed's difference, kinds, and what the arms cost."""

import statistics
from collections.abc import Mapping
from typing import Any

from switchkd.report import figures
from switchkd.report.sections import bounds, direction, few, grid, signed
from switchkd.results.intervals import Interval
from switchkd.results.question_results import MEAN
from switchkd.results.study_results import ArmSummary, CellResult, StudyResults


def section(study: StudyResults, shown: tuple[int | None, int] | None, keys: Mapping[str, int]) -> dict[str, Any]:
    """The study size by size, the largest first."""
    return {
        "name": study.name,
        "baseline": study.baseline,
        "one_baseline": all(study.against(arm) == study.baseline for arm in study.arms),
        "arms": len(study.arms),
        "seeds": len(study.seeds),
        "shown": shown,
        "cells": len(study.cells),
        "planned": study.planned,
        "teachers": {name: [f"{score:.1f}" for score in scores] for name, scores in study.teacher_scores.items()},
        "sizes": [_size(study, rows, keys) for rows in study.sizes],
    }


def _size(study: StudyResults, rows: int | None, keys: Mapping[str, int]) -> dict[str, Any]:
    cells = {arm: [cell for cell in study.cells if (cell.rows, cell.arm) == (rows, arm)] for arm in study.arms}
    ranked = sorted((line for line in study.table if line.rows == rows), key=lambda line: -line.mean)
    means = {line.arm: _means(cells[line.arm]) for line in ranked}
    kinds = {arm: {kind: value for kind, value in row.items() if kind != MEAN} for arm, row in means.items()}
    return {
        "rows": rows,
        "lines": [_shown(line, cells[line.arm], study) for line in ranked],
        "kinds": grid(means, study.baseline, {}, study.baselines),
        "forest": figures.forest(study, rows, keys),
        "cost": figures.scores_against_cost(study, rows, keys),
        "radar": figures.radar(few(kinds, study.baseline), keys, "%"),
    }


def _means(cells: list[CellResult]) -> dict[str, float | None]:
    """Kind → mean over the seeds; the mean over kinds first."""
    kinds = list(dict.fromkeys(kind for cell in cells for kind in cell.kinds))
    of_kinds = {kind: statistics.fmean(cell.kinds[kind] for cell in cells if kind in cell.kinds) for kind in kinds}
    return {MEAN: statistics.fmean(cell.score for cell in cells), **of_kinds}


def _shown(line: ArmSummary, cells: list[CellResult], study: StudyResults) -> dict[str, Any]:
    interval = None if line.low is None or line.high is None else Interval(line.low, line.high)
    return {
        "arm": line.arm,
        "against": study.against(line.arm) if study.against(line.arm) != study.baseline else None,
        "seeds": len(cells),
        "mean": f"{line.mean:.1f}",
        "sd": _number(line.sd, ".1f"),
        "difference": None if line.difference is None else signed(line.difference),
        "direction": None if line.difference is None else direction(interval),
        "interval": bounds(interval),
        "sure": interval is not None and interval.leaves_out_zero,
        "seconds": _number(line.seconds, ".0f"),
        "cpu": _number(line.cpu_seconds, ".0f"),
        "cost": _number(line.cost, ".2f"),
        "peak": f"{max(cell.peak_rss_bytes for cell in cells) / 2**20:.0f}",
    }


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
