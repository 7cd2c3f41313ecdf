"""What a study found, written down: every number as JSON, the table as Markdown, the picture."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from switchkd.study.figure import figure
from switchkd.study.plan import Cell, Study
from switchkd.study.study_table import Outcome, Row, markdown_kinds, markdown_table, tabulate


def record_file(cell: Cell) -> Path:
    """What marks a cell as finished, and says what it took."""
    return cell.beside("json")


def summarise(study: Study, done: Sequence[Cell], planned: int, teachers: dict[Path, Cell]) -> list[Row]:
    """Write `study.json`, `table.md` and `figure.svg` into the study's output, of the cells that are finished; returns the table.

    `planned`: how many cells the study has. `teachers`: files with a teacher's results, and a cell that has the teacher.

    Raises:
        ValueError: if two cells of one seed were asked different questions.
    """
    output = Path(study.output)
    records = []
    for cell in done:
        record = json.loads(record_file(cell).read_text(encoding="utf-8"))
        del record["recipe"]
        folder = _relative(cell.folder, output)
        records.append(record | {"folder": folder} | _score(cell.folder / "results.json"))
    _check_same_questions(done, records)
    outcomes = [_outcome(cell.folder / "results.predictions.jsonl") for cell in done]
    rows = tabulate(records, outcomes, study.baselines)
    found = [
        {
            "teacher": cell.recipe.teacher.path if cell.recipe.teacher else None,
            "seed": cell.seed,
            "folder": _relative(file.parent, output),
        }
        | _score(file)
        for file, cell in teachers.items()
        if file.exists()
    ]
    summary = {
        "name": study.name,
        "baseline": study.baseline,
        "baselines": study.baselines,
        "arms": list(study.arms),
        "seeds": list(study.seeds),
        "rows": list(study.rows),
        "planned": planned,
        "cells": records,
        "teachers": found,
        "table": [asdict(row) for row in rows],
    }
    kinds = markdown_kinds(rows, records, found)
    texts = {
        "study.json": json.dumps(summary, indent=1, ensure_ascii=False) + "\n",
        "table.md": markdown_table(rows) + (f"\n{kinds}" if kinds else ""),
    }
    if any(row.difference is not None for row in rows):
        texts["figure.svg"] = figure(rows, title=title(study.name, study.baselines))
    for name, text in texts.items():
        (output / f".{name}").write_text(text, encoding="utf-8")
        os.replace(output / f".{name}", output / name)
    return rows


def title(name: str, baselines: Mapping[str, str]) -> str:
    """What stands above a study's picture. `baselines`: arm → the arm it is compared with."""
    names = set(baselines.values())
    return f"{name}: difference to {names.pop() if len(names) == 1 else 'the baseline of each arm'}, each seed, mean and 95 % interval"


def _relative(folder: Path, output: Path) -> str:
    return Path(os.path.relpath(folder, output)).as_posix()


def _score(file: Path) -> dict[str, Any]:
    results = json.loads(file.read_text(encoding="utf-8"))
    mean = results["mean_over_kinds_percent"]
    return {
        "score": results["accuracy_percent"] if mean is None else mean,
        "kinds": {kind: score["accuracy_percent"] for kind, score in results["kinds"].items()},
        "data_fingerprint": results["data_fingerprint"],
    }


def _check_same_questions(done: Sequence[Cell], records: Sequence[dict[str, Any]]) -> None:
    first: dict[int, tuple[Cell, str]] = {}
    for cell, record in zip(done, records, strict=True):
        other, fingerprint = first.setdefault(cell.seed, (cell, record["data_fingerprint"]))
        if fingerprint != record["data_fingerprint"]:
            raise ValueError(
                f"{cell} and {other} were asked different questions: data fingerprints {record['data_fingerprint'][:12]} and "
                f"{fingerprint[:12]}; the test data has changed, so remove the study's folder and begin anew"
            )


def _outcome(file: Path) -> Outcome:
    """Right answers and questions of every picture, by kind."""
    right: Counter[tuple[str, str]] = Counter()
    asked: Counter[tuple[str, str]] = Counter()
    for line in file.read_text(encoding="utf-8").splitlines():
        answer = json.loads(line)
        key = (answer["id"].rpartition("/")[0] or answer["id"], answer["kind"] or "")
        right[key] += answer["right"]
        asked[key] += 1
    outcome: Outcome = {}
    for (picture, kind), questions in asked.items():
        outcome.setdefault(picture, {})[kind] = (right[picture, kind], questions)
    return outcome
