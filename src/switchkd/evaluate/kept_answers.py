"""Answers are written down as they are made: whatever ends an evaluation early, none of them is lost."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from switchkd.results.stored import to_lines

logger = logging.getLogger(__name__)


@contextmanager
def kept_answers(results: Path | None, answers: Path | None) -> Iterator[Callable[[list[Any]], None]]:
    """A function that appends answers (dataclasses) to a file of this process beside `answers`, from which they can be read at once.

    The file is opened first, so that a place where nothing can be written is seen before the first question. When the block ends, with all
    written, the file is removed; if it raises, the file stays and the log names it.

    Args:
        results: where the results are written in the end; None: nowhere, and nothing is kept.
        answers: where all answers are written in the end.

    Raises:
        OSError: there is no writing there.
    """
    if results is None or answers is None:
        yield lambda given: None
        return
    partial = answers.with_name(f"{answers.stem}.partial-{os.getpid()}{answers.suffix}")
    count = 0
    try:
        for target in (results, answers):
            if target.is_dir():
                raise IsADirectoryError(0, f"{target} is a folder")
        partial.parent.mkdir(parents=True, exist_ok=True)
        file = partial.open("w", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise OSError(f"{results}: results cannot be written there: {error.strerror}; choose another output") from error

    def keep(given: list[Any]) -> None:
        nonlocal count
        file.write(to_lines(given))
        file.flush()
        count += len(given)

    try:
        with file:
            yield keep
    except BaseException:
        if count:
            logger.warning("the evaluation has not ended: the %d answers made so far are in %s", count, partial)
        else:
            partial.unlink(missing_ok=True)
        raise
    partial.unlink(missing_ok=True)
