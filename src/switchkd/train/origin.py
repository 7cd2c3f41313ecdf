"""What a checkpoint was trained from: a run that goes on with anything else would skip rows, repeat them or learn from another teacher."""

import json
import logging
from hashlib import blake2b
from pathlib import Path

from datasets import Dataset

from switchkd.models.model_digest import model_digest
from switchkd.processes import processes
from switchkd.recipe.schema import ResolvedStage
from switchkd.train.context import StageContext
from switchkd.train.open_teacher import located

ORIGIN = "origin.json"
#: What it matters for only while there are steps to take.
_OF_STEPS = ("processes", "rows of a step")
Origin = dict[str, str | int | None]
_log = logging.getLogger(__name__)


def origin_of(context: StageContext) -> Origin:
    """Of a stage as it would be trained now."""
    recipe, stage, count = context.run.recipe, context.stage, processes().num_processes
    before = context.run.continued
    learned = {} if before is None else {"bridge and maps at the start": before.fingerprint}
    held_out = (
        {} if context.held_out is None else {"held-out rows": _rows(context.held_out.rows, tagged=bool(stage.tagged))}
    )
    return {
        "rows": _rows_of(context),
        **held_out,
        **learned,
        **_teachers(stage),
        "start weights": model_digest(located(recipe.student)),
        "processes": count,
        "rows of a step": stage.per_device_train_batch_size * stage.gradient_accumulation_steps * count,
    }


def check_origin(checkpoint: Path, now: Origin, *, finished: bool, accept_changes: bool) -> None:
    """Compare a checkpoint's origin with what a stage would be trained from now.

    Args:
        checkpoint: a sound one.
        now: `origin_of` the stage.
        finished: nothing is left to train, so that the number of processes does not matter.
        accept_changes: log the differences, and go on.

    Raises:
        ValueError: naming every difference.
    """
    try:
        saved = json.loads((checkpoint / ORIGIN).read_text(encoding="utf-8"))
        saved = saved if isinstance(saved, dict) else {}
    except (OSError, ValueError):
        saved = {}
    compared = [name for name in now if not (finished and name in _OF_STEPS)]
    changed = [
        f"{name}: {saved.get(name, 'not known')} then, {now[name]} now"
        for name in compared
        if saved.get(name) != now[name]
    ]
    if not changed:
        return
    if accept_changes:
        _log.warning("%s was trained from something else, which is accepted: %s", checkpoint, "; ".join(changed))
        return
    raise ValueError(
        f"{checkpoint} was trained from something else than this start: {'; '.join(changed)}. Put back what was there, choose another "
        "--train.output, or go on with the change: --accept-changes"
    )


def _teachers(stage: ResolvedStage) -> Origin:
    """Their weights; of several, by the tags of rows."""
    if not stage.tagged:
        return {"teacher": None if stage.teacher is None else model_digest(located(stage.teacher))}
    return {f"teacher {tag}": model_digest(located(teacher)) for tag, teacher in stage.tagged.items()}


def _rows_of(context: StageContext) -> str:
    if context.stream is not None:
        return f"{context.stream}, {context.stream.stream.identity}"
    return _rows(context.rows, tagged=bool(context.stage.tagged)) + (
        "" if context.packs is None else f", {context.packs}"
    )


def _rows(rows: Dataset, *, tagged: bool) -> str:
    """Their number, and a digest of their keys: what they hold, how it is read, and their order; and of who teaches them."""
    named = [*rows["key"][:], *(filter(None, rows["teacher"][:]) if tagged else [])]
    digest = blake2b("\n".join(named).encode(errors="surrogatepass"), digest_size=8)
    return f"{len(rows)} rows ({digest.hexdigest()})"
