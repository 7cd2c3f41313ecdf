"""Train the cells of a study, several at a time, and write down what came out. What is finished is never run again."""

import fcntl
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from switchkd.study.jobs import Job, run_jobs
from switchkd.study.plan import Cell, Study, cells, slug, write_world
from switchkd.study.table import Outcome, Row, markdown_table, tabulate
from switchkd.train.recipe import build_recipe, recipe_to_dict, save_recipe

_log = logging.getLogger(__name__)


def run_study(study: Study, overrides: Sequence[str] = ()) -> list[Row]:
    """Run what is not finished yet, and return the table. It is left in `<output>/table.md`, everything else in `<output>/study.json`.

    A cell is a `switchkd train` of its own, in its own process; where it was killed it goes on from its last checkpoint. A cell that fails
    does not stop the others.

    Raises:
        RecipeError: a cell that cannot be run, before any is.
        ValueError: if `output` is in use, or holds cells of another recipe.
        RuntimeError: at the end, if cells failed; with their logs.
    """
    output = Path(study.output)
    planned = cells(study, overrides)
    for folder in (output, study.store):
        folder.mkdir(parents=True, exist_ok=True)
    with _alone(study.store) as lock:
        for cell in planned:
            _check(cell)
        if study.world:
            write_world(study)
        open_cells = [cell for cell in planned if not _record(cell).exists()]
        teachers = _teachers(study, planned)
        _log.info("%d cells, %d of them to run", len(planned), len(open_cells))
        jobs = [_teacher_job(cell, file) for file, cell in teachers.items() if not file.exists()]
        jobs += [_job(cell) for cell in open_cells]
        failed = []
        for job, end in run_jobs(jobs, at_a_time=study.jobs, threads=study.threads, keep_open=(lock,)):
            if end.code != 0:
                failed.append(f"{job.name}: exit code {end.code}, {job.log}")
            elif job.cell is not None:
                _write_record(job.cell, asdict(end), keep=study.keep_students)
        rows = _summarise(study, planned, teachers)
    if failed:
        raise RuntimeError(
            f"{len(failed)} of {len(jobs)} jobs failed; the same command runs them again. " + "; ".join(failed)
        )
    return rows


@contextmanager
def _alone(output: Path) -> Iterator[int]:
    """Hold the study's folder. The cells inherit the lock, so that an orphaned one keeps it until it has ended."""
    with open(output / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{output} is in use: a study runs there, or a cell of one that was killed has not ended yet"
            ) from None
        yield lock.fileno()


def _beside(cell: Cell, ending: str) -> Path:
    return cell.folder.with_name(f"{cell.folder.name}.{ending}")


def _record(cell: Cell) -> Path:
    """What marks a cell as finished."""
    return _beside(cell, "json")


def _check(cell: Cell) -> None:
    file = _record(cell)
    if file.exists() and build_recipe(json.loads(file.read_text(encoding="utf-8"))["recipe"], str(file)) != cell.recipe:
        raise ValueError(
            f"{file}: the cell {cell} was finished with another recipe: choose another output, or remove it"
        )


def _job(cell: Cell) -> Job:
    recipe = _beside(cell, "yaml")
    recipe.parent.mkdir(parents=True, exist_ok=True)
    save_recipe(cell.recipe, recipe)
    return Job(str(cell), ("train", str(recipe)), _beside(cell, "log"), resumed=cell.folder.exists(), cell=cell)


def _teachers(study: Study, planned: Sequence[Cell]) -> dict[Path, Cell]:
    """The results of every teacher on every test set, and a cell that has both."""
    found: dict[tuple[str, str], Cell] = {}
    for cell in planned:
        assert cell.recipe.evaluate is not None
        if cell.recipe.teacher is not None:
            found.setdefault((cell.recipe.teacher.path, cell.recipe.evaluate.data), cell)
    return {
        study.store / "teachers" / slug(f"{model} {data}") / "results.json": cell
        for (model, data), cell in found.items()
    }


def _teacher_job(cell: Cell, file: Path) -> Job:
    settings, teacher = cell.recipe.evaluate, cell.recipe.teacher
    assert settings is not None
    assert teacher is not None
    file.parent.mkdir(parents=True, exist_ok=True)
    command = ["evaluate", teacher.path, settings.data, "--output", str(file)]
    command += ["--batch-size", str(settings.batch_size), "--max-new-tokens", str(settings.max_new_tokens)]
    command += ["--image-root", settings.image_root] if settings.image_root else []
    return Job(f"teacher {teacher.path} on {settings.data}", tuple(command), file.with_name("log"), resumed=False)


def _write_record(cell: Cell, end: dict[str, Any], *, keep: bool) -> None:
    results = json.loads((cell.folder / "results.json").read_text(encoding="utf-8"))
    record = {"arm": cell.arm, "seed": cell.seed, "rows": cell.rows} | end
    record |= {"device": results["device"], "versions": results["versions"], "recipe": recipe_to_dict(cell.recipe)}
    staging = _beside(cell, "json.new")
    staging.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(staging, _record(cell))
    if not keep:  # the last checkpoint is the student once more
        for folder in [cell.folder / "student", *cell.folder.glob("*-*/checkpoint-*")]:
            shutil.rmtree(folder)


def _summarise(study: Study, planned: Sequence[Cell], teachers: dict[Path, Cell]) -> list[Row]:
    output, done = Path(study.output), [cell for cell in planned if _record(cell).exists()]
    records = []
    for cell in done:
        record = json.loads(_record(cell).read_text(encoding="utf-8"))
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
        "arms": list(study.arms),
        "seeds": list(study.seeds),
        "rows": list(study.rows),
        "planned": len(planned),
        "cells": records,
        "teachers": found,
        "table": [asdict(row) for row in rows],
    }
    for name, text in (
        ("study.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n"),
        ("table.md", markdown_table(rows)),
    ):
        (output / f".{name}").write_text(text, encoding="utf-8")
        os.replace(output / f".{name}", output / name)
    return rows


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
