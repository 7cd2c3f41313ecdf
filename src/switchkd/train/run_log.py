"""`train.log`: what a run told its user, and what libraries warned of, with dates."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from switchkd.console import TOLD, warn

#: In a run's folder.
RUN_LOG = "train.log"


class _Lines(logging.FileHandler):
    """Says once that the file can no longer be written; the run does not end for it."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        logging.getLogger().removeHandler(self)
        TOLD.removeHandler(self)
        warn(f"{self.baseFilename}: nothing more is written there: {sys.exc_info()[1]}")


@contextmanager
def kept_log(file: Path | None) -> Iterator[None]:
    """Append all that is told and logged to `file` until the block ends, and what ended it where that is an error.

    Libraries that keep their messages to themselves, as transformers does, are listened to from warnings on.

    Args:
        file: None: there is none, as in all processes but the main one.
    """
    if file is None:
        yield
        return
    handler = _Lines(file, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s: %(message)s"))
    closed = [one for one in _loggers() if not one.propagate]
    levels = [(one, one.level) for one in (TOLD, *closed)]
    # what these say elsewhere does not become more; a handler that others share stays as it is
    listened = [
        (listening, listening.level, one.getEffectiveLevel())
        for one in closed
        for listening in one.handlers
        if listening not in logging.getLogger().handlers
    ]
    shown = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        shown(message, category, filename, lineno, file, line)
        logging.getLogger("warnings").log(
            logging.WARNING, "%s:%d: %s: %s", filename, lineno, category.__name__, message
        )

    for listening, level, of_logger in listened:
        listening.setLevel(max(level, of_logger))
    for one in closed:
        one.setLevel(min(one.getEffectiveLevel(), logging.WARNING))
    warnings.showwarning = show
    TOLD.setLevel(logging.INFO)
    for one in (logging.getLogger(), TOLD, *closed):
        one.addHandler(handler)
    try:
        yield
    except BaseException as error:
        TOLD.error("ended by %s: %s", type(error).__name__, error)
        raise
    finally:
        warnings.showwarning = shown
        for one in (logging.getLogger(), TOLD, *closed):
            one.removeHandler(handler)
        for logger, level in levels:
            logger.setLevel(level)
        for listening, level, _ in listened:
            listening.setLevel(level)
        with suppress(OSError):  # a full disk has been told by then
            handler.close()


def _loggers() -> list[logging.Logger]:
    known = logging.root.manager.loggerDict.values()
    return [one for one in known if isinstance(one, logging.Logger) and one is not TOLD]
