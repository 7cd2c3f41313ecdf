"""The output folder of a run: whose it is, and that nobody else trains in it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import Timeout

from switchkd.agree import on_main
from switchkd.lock import Lock
from switchkd.models.run_folder import RECIPE, STUDENT
from switchkd.recipe.schema import Recipe, load_recipe, save_recipe

_LOCK = ".lock"
_log = logging.getLogger(__name__)


@contextmanager
def open_output(recipe: Recipe, *, resume: bool) -> Iterator[Path]:
    """The output folder with the resolved recipe in it, held until the block ends: no other run can train in it.

    A folder is a recipe's own from its first checkpoint or line of metrics on. What failed before that leaves it to the next recipe.

    Raises:
        ValueError: if it holds another run, a run of this recipe that must not be resumed, or a run that is still going on.
    """
    output = Path(recipe.train.output)
    lock = Lock(output / _LOCK)
    try:
        on_main(lambda: _hold(output, lock))
        on_main(lambda: _claim(recipe, output, resume=resume))
        yield output
    finally:
        if lock.is_locked:
            (output / _LOCK).unlink()  # while it is held: one that waits at the old file looks again
            lock.release()


def started(output: Path) -> bool:
    """Whether a run has left a checkpoint or a line of metrics in its folder, or more."""
    logs = [file for file in output.glob("*/metrics.jsonl") if file.stat().st_size > 0]
    return bool(logs) or any(output.glob("*/*checkpoint-*")) or (output / STUDENT).exists()


def _hold(output: Path, lock: Lock) -> None:
    foreign = output.exists() and not (output.is_dir() and (_empty(output) or (output / RECIPE).exists()))
    if foreign:
        raise ValueError(f"{output} is not empty and not a run of switchkd: choose another --train.output")
    output.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ValueError(
            f"{output} is in use: another process trains there. Wait for it, stop it, or choose another --train.output"
        ) from None


def _empty(folder: Path) -> bool:
    return all(path.name == _LOCK for path in folder.iterdir())


def _claim(recipe: Recipe, output: Path, *, resume: bool) -> None:
    written = output / RECIPE
    if started(output):
        if not resume:
            raise ValueError(
                f"{output} already holds a run: choose another --train.output, remove it, or resume it with --resume"
            )
        if not written.exists():
            raise ValueError(
                f"{written} is missing, so whose checkpoints these are is not known: put it back, or choose another --train.output"
            )
        if load_recipe(written) != recipe:
            raise ValueError(
                f"{written} is another recipe than this one: choose another --train.output or remove {output}"
            )
    elif written.exists():
        _log.info("%s: an earlier start took no step there; its recipe is replaced by this one", output)
    save_recipe(recipe, written)
