"""Folders → `Evidence`: runs, folders of runs, results files and studies, read as they lie there."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from switchkd.report.evidence import TEN, Answer, Cell, Curve, Evidence, Line, Model, Study
from switchkd.report.plot import read_curves
from switchkd.report.table import load_results


def gather(paths: Sequence[Path], baseline: str | None = None) -> Evidence:
    """Read what is in `paths`.

    Each is the folder of a run (it holds `recipe.yaml`), a folder of such folders and of `*.results.json` files, like the demo's, a results
    file, or the folder of a study, which then stands alone.

    Args:
        paths: at least one.
        baseline: name of the model that differences are taken to. By default the first run whose last stage is plain SFT, else the first.

    Raises:
        ValueError: a path that is none of these, a file that cannot be read, models that answer different questions, no such baseline.
    """
    studies = [path for path in paths if (path / "study.json").exists()]
    if studies:
        if len(paths) > 1:
            raise ValueError(f"{studies[0]} is a study, and a study has a report of its own: give it alone")
        study, models = read_study(studies[0])
        if baseline not in (None, study.baseline):
            raise ValueError(f"{studies[0]} was compared with its own baseline, {study.baseline}: leave --baseline out")
        baseline = study.baseline
    else:
        study, models = None, _named([model for path in paths for model in _models(path)])
    asked = {model.name: model.results["data_fingerprint"] for model in models if model.results}
    for name, fingerprint in asked.items():
        if fingerprint != next(iter(asked.values())):
            raise ValueError(
                f"{name} answers other questions than {next(iter(asked))}: evaluate both on the same data, or make two reports"
            )
    return Evidence(tuple(models), _baseline(models, baseline, study), study)


def _baseline(models: Sequence[Model], wanted: str | None, study: Study | None) -> str | None:
    names = [model.name for model in models]
    if wanted is not None:
        if wanted not in names and wanted != (study.baseline if study else None):
            raise ValueError(f"there is no {wanted} to be the baseline; there are {', '.join(names)}")
        return wanted
    runs = [model for model in models if model.recipe is not None] or list(models)
    plain = [model for model in runs if model.method == "sft"]
    return (plain or runs)[0].name if len(models) > 1 else None


def _models(path: Path) -> Iterator[Model]:
    """The models of one argument."""
    if path.is_file():
        yield _of_results(path)
    elif (path / "recipe.yaml").exists():
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
    return Model(
        name, str(file), results=load_results(file), answers=_answers(file), cost=_cost(load_results(file), {})
    )


def read_run(folder: Path, name: str) -> Model:
    """One run; what is missing in it is noted, with what to do."""
    missing = {}
    recipe = _yaml(folder / "recipe.yaml")
    results, answers = None, {}
    if (folder / "results.json").exists():
        results, answers = load_results(folder / "results.json"), _answers(folder / "results.json")
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
        answers=answers,
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


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read: {error}") from None


def _answers(results: Path) -> dict[str, Answer]:
    """The predictions beside a results file; none where they were not kept."""
    file = results.with_suffix(".predictions.jsonl")
    found: dict[str, Answer] = {}
    if not file.exists():
        return found
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entry = json.loads(line)
            kind = None if entry["kind"] is None else str(entry["kind"])
            question, expected, got = (str(entry[name]) for name in ("question", "expected", "got"))
            found[str(entry["id"])] = Answer(kind, question, expected, got, bool(entry["right"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file}, line {number}: no prediction: {error!r}") from None
    return found


def _curves(folder: Path) -> tuple[dict[str, Curve], tuple[tuple[str, float], ...], dict[str, float], str | None]:
    """The logged terms of all stages one after another, where each stage ends, what training took, and what cannot be read."""
    files = sorted(folder.glob("*-*/metrics.jsonl"), key=lambda file: int(file.parent.name.partition("-")[0]))
    if not files:
        return {}, (), {}, "no metrics.jsonl: nothing was trained, or its stages were removed"
    curves: dict[str, Curve] = {}
    stages: list[tuple[str, float]] = []
    cost: dict[str, float] = {}
    unread = None
    begin = 0.0
    for file in files:
        try:
            found = read_curves(file)
        except ValueError as error:
            found, unread = (
                {},
                f"{str(error).removeprefix(f'{file}: ')}; lower the recipe's train.logging_steps to have lines",
            )
        for term, points in found.items():
            curves.setdefault(term, []).extend((begin + step, value) for step, value in points)
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        begin += max((line["step"] for line in lines), default=0)
        stages.append((file.parent.name, begin))
        cost["steps"] = begin
        for line in lines:  # one at the end of a stage; of a resumed stage it counts the part after the interruption
            cost["train seconds"] = cost.get("train seconds", 0) + line.get("train_runtime", 0)
    return curves, tuple(stages), cost, unread


def _cost(results: Mapping[str, Any] | None, train: Mapping[str, float]) -> dict[str, float]:
    cost = dict(train)
    if results and isinstance(results.get("seconds"), int | float):
        cost["evaluation seconds"] = float(results["seconds"])
        cost["questions"] = float(results.get("questions", 0))
    return cost


def _benchmarks(file: Path) -> dict[str, float] | None:
    """Benchmark → percent, and the average where it is over all ten; None where there is no such file."""
    if not file.exists():
        return None
    tree = _json(file)
    try:
        found = {str(entry["title"]): float(entry["percent"]) for entry in tree["benchmarks"].values()}
        return found if tree["average"] is None else {TEN: float(tree["average"]), **found}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{file}: holds no results of the benchmarks: {error!r}") from None


def read_study(folder: Path) -> tuple[Study, list[Model]]:
    """A study, and one by one the runs of one seed at the largest size of data, with their teacher."""
    file = folder / "study.json"
    tree = _json(file)
    try:
        cells = [(_cell(entry), folder / str(entry["folder"])) for entry in tree["cells"]]
        teachers = [(entry, folder / str(entry["folder"])) for entry in tree.get("teachers", [])]
        study = Study(
            name=str(tree["name"]),
            baseline=str(tree["baseline"]),
            baselines={str(arm): str(base) for arm, base in tree.get("baselines", {}).items()},
            arms=tuple(map(str, tree["arms"])),
            seeds=tuple(map(int, tree["seeds"])),
            planned=int(tree.get("planned", len(cells))),
            cells=tuple(cell for cell, _ in cells),
            table=tuple(_line(entry) for entry in tree["table"]),
            teachers={
                str(of["teacher"]): tuple(
                    float(entry["score"]) for entry, _ in teachers if entry["teacher"] == of["teacher"]
                )
                for of, _ in teachers
            },
        )
        strangers = {cell.arm for cell, _ in cells} | {line.arm for line in study.table} | {study.baseline}
        if unknown := sorted(strangers - set(study.arms)):
            raise ValueError(f"{unknown[0]} is not among its arms")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{file}: is not a study that this version can read: {error!r}") from None
    if not cells:
        raise ValueError(f"{file}: no run of this study is finished yet")
    rows = study.sizes[0]
    arms_of = Counter(cell.seed for cell, _ in cells if cell.rows == rows)
    seed = min(seed for seed in arms_of if arms_of[seed] == max(arms_of.values()))
    shown = {cell.arm: (cell, where) for cell, where in cells if (cell.rows, cell.seed) == (rows, seed)}
    models = [
        _with_cost(read_run(where, arm), cell)
        for arm, (cell, where) in sorted(shown.items(), key=lambda item: study.arms.index(item[0]))
        if (where / "recipe.yaml").exists()
    ]
    for entry, where in teachers:
        if entry.get("seed") == seed and (where / "results.json").exists():
            models.insert(0, replace(_of_results(where / "results.json"), name="teacher"))
            break
    return replace(study, shown=(rows, seed)), models


def _cell(entry: Mapping[str, Any]) -> Cell:
    whole = not entry.get("resumed", False)  # the time of an interrupted run is that of its last part
    peak = _number(entry, "peak_rss_bytes")
    return Cell(
        arm=str(entry["arm"]),
        seed=int(entry["seed"]),
        rows=None if entry["rows"] is None else int(entry["rows"]),
        score=float(entry["score"]),
        kinds={str(kind): float(value) for kind, value in entry["kinds"].items()},
        seconds=_number(entry, "seconds") if whole else None,
        cpu_seconds=_number(entry, "cpu_seconds") if whole else None,
        peak_mib=None if peak is None else peak / 2**20,
    )


def _number(entry: Mapping[str, Any], name: str) -> float | None:
    return None if entry.get(name) is None else float(entry[name])


def _line(entry: Mapping[str, Any]) -> Line:
    optional = ("sd", "difference", "low", "high", "seconds", "cpu_seconds", "cost")
    return Line(
        arm=str(entry["arm"]),
        rows=None if entry["rows"] is None else int(entry["rows"]),
        mean=float(entry["mean"]),
        **{name: _number(entry, name) for name in optional},
    )


def _with_cost(run: Model, cell: Cell) -> Model:
    """The run with what the study measured of it; no time where it was interrupted, as what was logged is that of a part."""
    cost = {"run seconds": cell.seconds, "cpu seconds": cell.cpu_seconds, "peak memory MiB": cell.peak_mib}
    known = {name: value for name, value in cost.items() if value is not None}
    own = {name: value for name, value in run.cost.items() if name != "train seconds" or cell.seconds is not None}
    return replace(run, cost=own | known)
