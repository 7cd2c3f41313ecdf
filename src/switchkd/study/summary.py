"""What a study measured, written down: every number as JSON, the table as Markdown, the picture."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from switchkd.files import write_together
from switchkd.results.question_results import Results
from switchkd.results.study_results import ArmSummary, CellRecord, CellResult, Outcome, StudyResults, TeacherResult
from switchkd.study.figure import figure
from switchkd.study.plan import Cell, Study
from switchkd.study.study_table import markdown_kinds, markdown_table, tabulate


def summarise(
    study: Study, done: Sequence[Cell], planned: int, teachers: Mapping[Path, Cell]
) -> tuple[ArmSummary, ...]:
    """Write `study.json`, `table.md` and `figure.svg` into the study's output, of the cells that are finished.

    Args:
        study: the study.
        done: its finished cells.
        planned: how many cells it has.
        teachers: files with a teacher's results → a cell that has the teacher.

    Returns:
        The table.

    Raises:
        ValueError: if two cells of one seed, or a cell and a teacher, were asked different questions, or two cells were scored by different
            metrics.
    """
    output = Path(study.output)
    cells, outcomes = [], []
    asked: dict[int, tuple[Cell, str]] = {}
    first: Results | None = None
    for cell in done:
        results = Results.load(cell.folder / "results.json")
        other, fingerprint = asked.setdefault(cell.seed, (cell, results.data_fingerprint))
        if fingerprint != results.data_fingerprint:
            raise ValueError(
                f"{cell} and {other} were asked different questions: data fingerprints {results.data_fingerprint[:12]} and "
                f"{fingerprint[:12]}. Remove the one that was asked the wrong ones, {cell.folder} with {cell.file('json')} or "
                f"{other.folder} with {other.file('json')}, and the same command trains it again"
            )
        first = first or results
        if not results.scored_like(first):
            raise ValueError(
                f"{cell} is scored by other metrics than {done[0]}: {results.scored_by} and {first.scored_by}; give all arms the same "
                "evaluate.metric"
            )
        record = asdict(CellRecord.load(cell.file("json")))
        del record["recipe"]
        # it may have been finished under another name of the same folder
        record |= {"arm": cell.arm, "seed": cell.seed, "rows": cell.rows}
        cells.append(CellResult(**record, **_scores(results, cell.folder, output)))
        outcomes.append(_outcome(results))
    answered = {file: (cell, Results.load(file)) for file, cell in teachers.items() if file.exists()}
    for file, (cell, results) in answered.items():
        if cell.seed in asked and results.data_fingerprint != asked[cell.seed][1]:
            raise ValueError(
                f"{file}: the teacher was asked other questions than {asked[cell.seed][0]}: data fingerprints "
                f"{results.data_fingerprint[:12]} and {asked[cell.seed][1][:12]}. Remove it, and the same command asks the teacher again"
            )
    summary = StudyResults(
        name=study.name,
        baseline=study.baseline,
        baselines=study.baselines,
        arms=tuple(study.arms),
        seeds=study.seeds,
        rows=study.rows,
        planned=planned,
        cells=tuple(cells),
        teachers=tuple(
            TeacherResult(
                teacher=cell.recipe.last_teacher.path,
                seed=cell.seed,
                **_scores(results, file.parent, output),
            )
            for file, (cell, results) in answered.items()
            if cell.recipe.last_teacher is not None
        ),
        table=tuple(tabulate(cells, outcomes, study.baselines)),
    )
    kinds = markdown_kinds(summary)
    texts = {
        output / "study.json": summary.to_json(),
        output / "table.md": markdown_table(summary.table) + (f"\n{kinds}" if kinds else ""),
    }
    if any(line.difference is not None for line in summary.table):
        texts[output / "figure.svg"] = figure(
            summary.table, title=title(study.name, study.baselines), metric=first.scored_by if first else "exact"
        )
    write_together(texts)
    return summary.table


def title(name: str, baselines: Mapping[str, str]) -> str:
    """What stands above a study's picture. `baselines`: arm → the arm it is compared with."""
    names = set(baselines.values())
    return f"{name}: difference to {names.pop() if len(names) == 1 else 'the baseline of each arm'}, each seed, mean and 95 % interval"


def _scores(results: Results, folder: Path, output: Path) -> dict[str, Any]:
    """The fields that a cell's result and a teacher's share."""
    return {
        "folder": Path(os.path.relpath(folder, output)).as_posix(),
        "score": results.score,
        "kinds": {kind: score.accuracy_percent for kind, score in results.kinds.items()},
        "data_fingerprint": results.data_fingerprint,
    }


def _outcome(results: Results) -> Outcome:
    """Points and questions of every picture, by kind: of what the score counts, so without questions of no kind where any has one."""
    kinded = any(answer.kind is not None for answer in results.predictions)
    outcome: Outcome = {}
    for answer in results.predictions:
        of_picture = outcome.setdefault(answer.picture_key, {})
        if answer.kind is not None or not kinded:
            points, asked = of_picture.get(answer.kind or "", (0, 0))
            of_picture[answer.kind or ""] = (points + answer.points, asked + 1)
    return outcome
