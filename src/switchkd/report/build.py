"""A report from start to end: read the runs, compute what training did not write, lay out the page."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from switchkd.data.errors import DataError
from switchkd.models.run_folder import STUDENT
from switchkd.report import choose, probe
from switchkd.report.evidence import Evidence, Model
from switchkd.report.gather import gather
from switchkd.report.page import write_page
from switchkd.report.sections import scores_of
from switchkd.results.intervals import intervals
from switchkd.train.model_card import add_results

_log = logging.getLogger(__name__)


def report(
    runs: Sequence[Path],
    output: Path,
    *,
    baseline: str | None = None,
    questions: int = 64,
    attention: int = 6,
    show: Sequence[str] = (),
) -> tuple[Evidence, Path]:
    """Write a page about `runs`; the arguments are those of the command.

    Returns:
        What the page shows, and its file.

    Raises:
        ValueError: what cannot be read as runs, or a question to show that is none of the test questions. What a run lacks is said in the
            page.
    """
    if questions < 0 or attention < 0:
        raise ValueError(f"questions and attention must not be negative, got {questions} and {attention}")
    evidence = gather(runs, baseline)
    evidence = replace(_with_same_answers(evidence), probed=questions > 0)
    try:
        asked = _read_questions(evidence.models)
    except DataError as error:
        _log.warning("%s", error)
        evidence = replace(
            evidence, unread=f"{error}. Paths are relative to the folder that training ran in: run the report there"
        )
        return evidence, write_page(evidence, output)
    if asked is not None:
        evidence = _computed(evidence, asked, questions, attention, show)
    return evidence, write_page(evidence, output)


def _read_questions(models: Sequence[Model]) -> probe.Asked | None:
    """The test questions: what the models were evaluated on, else what a recipe evaluates on; None where there are none."""
    recipes = [model.recipe.get("evaluate") or {} for model in models if model.recipe]
    evaluated = [model.results.data for model in models if model.results]
    data = next((str(name) for name in (*evaluated, *(tree.get("data") for tree in recipes)) if name), None)
    if data is None:
        return None
    root = next((str(tree["image_root"]) for tree in recipes if tree.get("image_root")), None)
    columns = next((tree["columns"] for tree in recipes if tree.get("columns")), None)
    skipped = {one.id for model in models if model.results for one in model.results.skipped}
    return probe.read_questions(data, root, skipped, columns)


def _computed(evidence: Evidence, asked: probe.Asked, count: int, attention: int, show: Sequence[str]) -> Evidence:
    if unknown := [name for name in show if name not in asked.questions]:
        raise ValueError(f"there is no test question {unknown[0]}; the first is {next(iter(asked.questions))}")
    if not count:
        return replace(evidence, pictures=probe.pictures(asked, choose.to_picture(evidence)))
    chosen = list(show) or choose.for_attention(evidence, attention) or probe.spread(asked.questions, attention)
    counted = probe.spread(asked.questions, count)
    models = []
    for model in evidence.models:
        if model.recipe is not None:
            _log.info(
                "%s: %d test questions for knees and agreement, %d for attention", model.name, len(counted), len(chosen)
            )
            model = replace(model, probe=probe.probe(Path(model.where), asked, counted, chosen))
        models.append(model)
    evidence = replace(evidence, models=tuple(models), chosen=tuple(chosen))
    return replace(evidence, pictures=probe.pictures(asked, choose.to_picture(evidence)))


def _teacher_of(recipe: Mapping[str, Any]) -> str | None:
    """The path of the teacher that a run ended with, of its resolved recipe: the last stage's own, or the recipe's, or an earlier one's."""
    *earlier, last = [stage.get("teacher") for stage in recipe.get("stages") or [{}]]
    by_tags = next(iter((recipe.get("teachers") or {}).values()), None)
    given = [last, recipe.get("teacher"), by_tags, *reversed(earlier)]
    return next((teacher.get("path") for teacher in given if teacher), None)


def _with_same_answers(evidence: Evidence) -> Evidence:
    """How often each run answers as its teacher, where the teacher's answers are among the models, and how sure the differences are."""
    agreed = {}
    for model in evidence.models:
        path = _teacher_of(model.recipe or {})
        if path is None or not model.answers:
            continue
        teachers = (
            other for other in evidence.models if other.results and Path(other.results.model) == Path(str(path))
        )
        teacher = next(teachers, None)
        if teacher is not None and teacher.answers:
            agreed[model.name] = probe.agreeing(model.answers, teacher.answers)
    base = agreed.get(evidence.baseline or "", {})
    return replace(
        evidence,
        same_answers={name: probe.same_answers(answers) for name, answers in agreed.items()},
        same_intervals={
            name: intervals(list(answers.values()), list(base.values()))
            for name, answers in agreed.items()
            if name != evidence.baseline and answers.keys() == base.keys()
        },
    )


def write_cards(evidence: Evidence) -> Iterator[Path]:
    """Write results, and differences to the baseline, into the model card of every run's student that is there."""
    base = next((model for model in evidence.models if model.name == evidence.baseline), None)
    for model in evidence.models:
        student = Path(model.where) / STUDENT
        if model.recipe is None or model.results is None or not (student / "README.md").exists():
            continue
        other = None if base is None or base is model or base.results is None else (base.name, _numbers(base))
        asked = model.results
        add_results(student, _numbers(model), data=asked.data, baseline=other, metric=asked.scored_by)
        yield student / "README.md"


def _numbers(model: Model) -> dict[str, float]:
    return {name: value for name, value in scores_of(model).items() if value is not None}
