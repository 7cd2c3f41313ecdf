"""Folders → `Evidence`: runs, folders of runs, results files and studies."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from switchkd.models.run_folder import RECIPE, STUDENT
from switchkd.report.curves import curves_of
from switchkd.report.evidence import TEN, Curve, Evidence, Model
from switchkd.results.benchmark_results import BenchmarkResults
from switchkd.results.question_results import Prediction, Results
from switchkd.results.study_results import CellResult, StudyResults
from switchkd.results.training_log import read_training_log


def gather(paths: Sequence[Path], baseline: str | None = None) -> Evidence:
    """Read what is in `paths`.

    Each is the folder of a run (it holds `recipe.yaml`), a folder of such folders and of `*.results.json` files, like the demo's, a results
    file, or the folder of a study, which then stands alone.

    Args:
        paths: at least one.
        baseline: name of the model that differences are taken to. By default the first run whose last stage is plain SFT, else the first.

    Raises:
        ValueError: a path that is none of these, a file that cannot be read, models that answer different questions or are scored
            by different metrics, no such baseline.
    """
    studies = [path for path in paths if (path / "study.json").exists()]
    if studies:
        if len(paths) > 1:
            raise ValueError(f"{studies[0]} is a study, and a study has a report of its own: give it alone")
        study, shown, models = read_study(studies[0])
        if baseline not in (None, study.baseline):
            raise ValueError(f"{studies[0]} was compared with its own baseline, {study.baseline}: leave --baseline out")
        baseline = study.baseline
    else:
        study, shown, models = None, None, _named([model for path in paths for model in _models(path)])
    asked = {model.name: model.results for model in models if model.results}
    for name, results in asked.items():
        first, other = next(iter(asked.items()))
        if results.data_fingerprint != other.data_fingerprint:
            raise ValueError(
                f"{name} answers other questions than {first}: evaluate both on the same data, or make two reports"
            )
        if not results.scored_like(other):
            raise ValueError(
                f"{name} is scored by other metrics than {first}: {results.scored_by} and {other.scored_by}; evaluate both with the same "
                "--metric, or make two reports"
            )
    return Evidence(tuple(models), _baseline(models, baseline, study), study, shown)


def _baseline(models: Sequence[Model], wanted: str | None, study: StudyResults | None) -> str | None:
    names = [model.name for model in models]
    if wanted is not None:
        if wanted not in names and wanted != (study.baseline if study else None):
            raise ValueError(f"there is no {wanted} to be the baseline; there are {', '.join(names)}")
        return wanted
    runs = [model for model in models if model.recipe is not None] or list(models)
    sft = [model for model in runs if model.method == "sft"]
    return (sft or runs)[0].name if len(models) > 1 else None


def _models(path: Path) -> Iterator[Model]:
    """The models of one argument."""
    if path.name == STUDENT and (path.parent / RECIPE).exists():
        path = path.parent
    if path.is_file():
        yield _of_results(path)
    elif (path / RECIPE).exists():
        yield read_run(path, path.name)
    elif path.is_dir():
        evaluated = sorted(path.glob("*.results.json"))
        runs = sorted(file.parent for file in path.glob("*/recipe.yaml"))
        if not runs:
            raise ValueError(
                f"{path} holds no run: expected recipe.yaml in it or in its folders, study.json, or a results file of switchkd evaluate"
            )
        yield from (_of_results(file) for file in evaluated)
        yield from (read_run(run, run.name) for run in runs)
    else:
        raise ValueError(f"{path}: no such file or folder")


def _named(models: Sequence[Model]) -> list[Model]:
    """The same, names that appear twice made longer by the folders above until they differ."""
    depth = 1
    while True:
        names = [_name(model, depth) for model in models]
        repeated = [name for name, count in Counter(names).items() if count > 1]
        if not repeated:
            return [replace(model, name=name) for model, name in zip(models, names, strict=True)]
        if depth > max(len(Path(model.where).parts) for model in models):
            raise ValueError(f"{repeated[0]} is given twice")
        depth += 1


def _name(model: Model, depth: int) -> str:
    return model.name if depth == 1 else "/".join([*Path(model.where).parts[-depth:-1], model.name])


def _of_results(file: Path) -> Model:
    name = file.name.removesuffix(".json").removesuffix(".results")
    results = Results.load(file)
    return Model(name, str(file), results=results, answers=_answers(results), cost=_cost(results, {}))


def _answers(results: Results | None) -> dict[str, Prediction]:
    return {answer.id: answer for answer in results.predictions} if results else {}


def read_run(folder: Path, name: str) -> Model:
    """One run; what is missing in it is noted, with what to do."""
    missing = {}
    recipe = _yaml(folder / "recipe.yaml")
    results, file = None, folder / "results.json"
    if file.exists():
        results = Results.load(file)
    else:
        missing["results"] = (
            "no results.json: give its recipe an `evaluate` section, or run `switchkd evaluate` and add that file"
        )
    curves, stages, cost, unread = _curves(folder)
    if unread:
        missing["curves"] = unread
    return Model(
        name=name,
        where=str(folder),
        recipe=recipe,
        results=results,
        answers=_answers(results),
        benchmarks=_benchmarks(folder / "benchmarks.json"),
        curves=curves,
        stages=stages,
        cost=_cost(results, cost),
        missing=missing,
    )


def _yaml(file: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{file}: cannot be read as a recipe: {error}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{file}: cannot be read as a recipe: it holds no fields")
    return tree


def _curves(folder: Path) -> tuple[dict[str, Curve], tuple[tuple[str, float], ...], dict[str, float], str | None]:
    """The logged terms of all stages one after another, where each stage ends, what training took, and what is missing."""
    logs = [
        file for file in folder.glob("*-*/metrics.jsonl") if re.match("[0-9]+-", file.parent.name)
    ]  # others are the user's
    files = sorted(logs, key=lambda file: int(file.parent.name.partition("-")[0]))
    if not files:
        return {}, (), {}, "no metrics.jsonl: nothing was trained, or its stages were removed"
    curves: dict[str, Curve] = {}
    stages: list[tuple[str, float]] = []
    cost: dict[str, float] = {}
    notes: list[str] = []
    begin = 0.0
    for file in files:
        lines, unfinished = read_training_log(file)
        notes += [unfinished] if unfinished else []
        of_stage = curves_of(lines)
        if not of_stage:
            notes.append("no loss was logged; lower the recipe's train.logging_steps to have lines")
        for term, points in of_stage.items():
            finite = [(begin + step, value) for step, value in points if math.isfinite(value)]
            if finite:
                curves.setdefault(term, []).extend(finite)
            if left_out := [step for step, value in points if not math.isfinite(value)]:
                notes.append(
                    f"{file}: {term} is no finite number in {len(left_out)} of {len(points)} lines, first at step {left_out[0]:.0f}: "
                    "they are left out of its curve"
                )
        begin += max((line["step"] for line in lines), default=0)
        stages.append((file.parent.name, begin))
        cost["steps"] = begin
        for line in lines:  # one at the end of a stage; of a resumed stage it counts the part after the interruption
            cost["train seconds"] = cost.get("train seconds", 0) + line.get("train_runtime", 0)
    return curves, tuple(stages), cost, "; ".join(dict.fromkeys(notes)) or None


def _cost(results: Results | None, train: Mapping[str, float]) -> dict[str, float]:
    cost = dict(train)
    return cost if results is None else cost | {"evaluation seconds": results.seconds, "questions": results.questions}


def _benchmarks(file: Path) -> dict[str, float] | None:
    """Benchmark → percent, and the average where there is one; None where there is no such file."""
    if not file.exists():
        return None
    results = BenchmarkResults.load(file)
    average = {} if results.average is None else {TEN: results.average}
    return average | {result.title: result.percent for result in results.benchmarks.values()}


def read_study(folder: Path) -> tuple[StudyResults, tuple[int | None, int], list[Model]]:
    """A study; the size of data and the seed whose runs are shown one by one; and those, with their teacher."""
    study = StudyResults.load(folder / "study.json")
    if not study.cells:
        raise ValueError(f"{folder / 'study.json'}: no run of this study is finished yet")
    shown = study.largest()
    cells = {cell.arm: cell for cell in study.cells if (cell.rows, cell.seed) == shown}
    models = [
        _with_cost(read_run(folder / cells[arm].folder, arm), cells[arm])
        for arm in study.arms
        if arm in cells and (folder / cells[arm].folder / "recipe.yaml").exists()
    ]
    for teacher in study.teachers:
        file = folder / teacher.folder / "results.json"
        if teacher.seed == shown[1] and file.exists():
            models.insert(0, replace(_of_results(file), name="teacher"))
            break
    return study, shown, models


def _with_cost(run: Model, cell: CellResult) -> Model:
    """The run with what the study measured of it; no time where it was interrupted, as what was logged is that of a part."""
    logged, measured = dict(run.cost), {"peak memory MiB": cell.peak_rss_bytes / 2**20}
    if cell.resumed:
        logged.pop("train seconds", None)
    else:
        measured = {"run seconds": cell.seconds, "cpu seconds": cell.cpu_seconds} | measured
    return replace(run, cost=logged | measured)
