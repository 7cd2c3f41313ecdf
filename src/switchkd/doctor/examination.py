"""Every check in turn, of a recipe or of a stage that is about to be trained."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from switchkd.doctor import (
    check_answers,
    check_directions,
    check_held_out,
    check_images,
    check_lengths,
    check_loader,
    check_memory,
    check_shift,
    check_stage,
    check_switch,
    check_teachers,
    check_templates,
    check_weights,
)
from switchkd.doctor.findings import Finding, Findings, unopened
from switchkd.doctor.samples import Examined
from switchkd.recipe.packages import check_packages
from switchkd.recipe.schema import Recipe
from switchkd.train.context import StageContext
from switchkd.train.stage import open_run, open_stage

_log = logging.getLogger(__name__)
T = TypeVar("T")
Check = Callable[[Examined], Iterable[Finding]]

#: Name → check. These read the recipe, the method and the data.
LOOKING: dict[str, Check] = {
    "steps": check_stage.steps,
    "trainable parameters": check_stage.trainable,
    "weights": check_weights.weights,
    "KL directions": check_directions.directions,
    "row lengths": check_lengths.lengths,
    "held-out rows": check_held_out.held_out,
    "chat templates": check_templates.templates,
    "answers": check_answers.answers,
    "vocabulary": check_answers.vocabulary,
    "answer tokens": check_answers.answer_tokens,
}
#: These run the models, and only where nothing before them failed.
RUNNING: dict[str, Check] = {
    "image tokens": check_images.tokens_and_features,
    "images": check_images.effects,
    "shift": check_shift.scored_tokens,
    "switch": check_switch.alive,
    "memory": check_memory.memory,
    "data loader": check_loader.throughput,
}

#: Of these, the checks that run once for a stage; the others run for each teacher of it.
OF_STAGES = ("steps", "trainable parameters", "KL directions", "row lengths", "held-out rows", "memory")


def examine(recipe: Recipe) -> Findings:
    """Examine every stage of a recipe without training. What cannot be opened at all is a finding too, and ends the examination."""
    findings = Findings()
    try:
        check_packages(recipe)
        run = open_run(recipe)
        with TemporaryDirectory() as scratch:
            for stage in recipe.resolved_stages():
                context = open_stage(run, stage, Path(scratch) / stage.name)
                of_stage = examine_stage(context, samples=True)
                findings.add(of_stage, stage=stage.name)
                del context  # it holds the teacher, which makes room for the next one
    except (ValueError, OSError) as error:
        findings.lines += unopened(error).lines
    return findings


def examine_stage(context: StageContext, *, samples: bool = False) -> Findings:
    """Examine a stage that is about to be trained. Where something fails, the checks that run the models are left out.

    Args:
        context: the stage.
        samples: show some rows as the student reads them, too.
    """
    findings, whole = Findings(), Examined(context)
    if context.step.is_tagged:
        findings.lines += _tried(findings, "teachers", check_teachers.teachers, whole)
    # each of several teachers is examined with the rows that it teaches
    taught = {tag: one for tag, one in context.by_teacher.items() if len(one.rows)} if context.step.is_tagged else {}
    parts = {f"teacher {tag}: ": Examined(one) for tag, one in taught.items()} or {"": whole}
    for name, check in (LOOKING | RUNNING).items():
        for label, examined in {"": whole}.items() if name in OF_STAGES else parts.items():
            if name not in RUNNING or findings.ok:
                lines = _tried(findings, f"{label}{name}", check, examined)
                findings.lines += [replace(line, check=f"{label}{line.check}") for line in lines]
    if samples:
        for label, examined in parts.items():
            shown = _tried(findings, f"{label}samples", check_answers.samples, examined)
            findings.samples += [replace(sample, name=f"{label}{sample.name}") for sample in shown]
    return findings


def _tried(findings: Findings, name: str, look: Callable[[Examined], Iterable[T]], examined: Examined) -> list[T]:
    """What a check yields; whatever goes wrong here goes wrong in training, hours later perhaps, and is a finding."""
    results: list[T] = []
    try:
        for item in look(examined):
            results.append(item)
    except Exception as error:
        _log.debug("the check of %s", name, exc_info=True)
        findings.lines.append(Finding("failed", name, f"{type(error).__name__}: {error}"))
    return results
