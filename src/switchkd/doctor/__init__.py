"""The checks that catch silent failure before hours are spent. docs/doctor.md has what each one catches and what to do then."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from switchkd.doctor import check_answers as data
from switchkd.doctor import check_directions as method
from switchkd.doctor import check_images as images
from switchkd.doctor import check_loader as loader
from switchkd.doctor import check_memory as memory
from switchkd.doctor import check_shift as shift
from switchkd.doctor import check_stage as stage
from switchkd.doctor import check_switch as switch
from switchkd.doctor.examine_pair import examine_pair
from switchkd.doctor.findings import Finding, Findings, Level, Sample
from switchkd.recipe.schema import Recipe
from switchkd.train.stage import OpenStage, open_session, open_stage

_log = logging.getLogger(__name__)
T = TypeVar("T")
Check = Callable[[OpenStage], Iterable[Finding]]

#: Name → check. These read the recipe, the method and the data.
LOOKING: dict[str, Check] = {
    "steps": stage.steps,
    "trainable parameters": stage.trainable,
    "KL directions": method.directions,
    "answers": data.answers,
    "vocabulary": data.vocabulary,
    "answer tokens": data.answer_tokens,
}
#: These run the models, and only where nothing before them failed.
RUNNING: dict[str, Check] = {
    "image tokens": images.tokens_and_features,
    "images": images.effects,
    "shift": shift.scored_tokens,
    "switch": switch.alive,
    "memory": memory.memory,
    "data loader": loader.throughput,
}


def examine(recipe: Recipe) -> Findings:
    """Examine every stage of a recipe without training. What cannot be opened at all is a finding too, and ends the examination."""
    findings = Findings()
    try:
        session = open_session(recipe)
        with TemporaryDirectory() as scratch:
            for stage in recipe.resolved_stages():
                opened = open_stage(session, stage, Path(scratch) / stage.name)
                found = examine_stage(opened)
                found.samples = _tried(found, "samples", data.samples, opened)
                findings.add(found, stage=stage.name)
    except (ValueError, OSError) as error:
        findings.lines.append(Finding("failed", "can be opened", str(error)))
    return findings


def examine_stage(opened: OpenStage) -> Findings:
    """Examine a stage that is about to be trained. Where something fails, the checks that run the models are left out."""
    findings = Findings()
    for name, check in (LOOKING | RUNNING).items():
        if name not in RUNNING or findings.ok:
            findings.lines += _tried(findings, name, check, opened)
    return findings


def _tried(findings: Findings, name: str, look: Callable[[OpenStage], Iterable[T]], opened: OpenStage) -> list[T]:
    """What was looked for; whatever goes wrong here goes wrong in training, hours later perhaps, and is a finding."""
    found: list[T] = []
    try:
        for item in look(opened):
            found.append(item)
    except Exception as error:
        _log.debug("the check of %s", name, exc_info=True)
        findings.lines.append(Finding("failed", name, f"{type(error).__name__}: {error}"))
    return found


__all__ = ["LOOKING", "RUNNING", "Finding", "Findings", "Level", "Sample", "examine", "examine_pair", "examine_stage"]
