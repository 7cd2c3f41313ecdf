"""What the user is told, on stderr; long loops as a bar on a terminal, a few plain lines elsewhere. With --quiet nothing of it is shown."""

import logging
import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

#: Seconds between two plain lines, at least.
SECONDS_BETWEEN_LINES = 5.0
#: What the user was told; a run keeps it in a file (`train/run_log.py`).
TOLD = logging.getLogger("switchkd.told")
TOLD.propagate = False  # it is on stderr already
_T = TypeVar("_T")


_quiet = False


@contextmanager
def quiet(on: bool = True) -> Iterator[None]:
    """Until the block ends nothing is shown that only informs; logs keep it. Warnings, errors and results are no part of it."""
    global _quiet
    before, _quiet = _quiet, on
    try:
        yield
    finally:
        _quiet = before


def is_quiet() -> bool:
    """Whether only warnings, errors and results are shown."""
    return _quiet


def harmless(text: str) -> str:
    """`text` without control characters but newlines and tabs: what a model, data or a file says must not steer the terminal."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


class _Shown:
    """What is printed, its texts made harmless; rich's own colours stay."""

    def __init__(self, printed: ConsoleRenderable) -> None:
        self.printed = printed

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self.printed, options):
            yield segment if segment.control else Segment(harmless(segment.text), segment.style)


class _Harmless(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Shown(one) for one in renderables]


def terminal(*, stderr: bool = False, width: int | None = None) -> Console:
    """Where tables and coloured texts are printed. Texts are harmless there.

    Args:
        stderr: what informs; else results.
        width: in characters where it is no terminal, as of a file; one that is has its own. None: of 80.
    """
    is_terminal = (sys.stderr if stderr else sys.stdout).isatty()
    console = Console(stderr=stderr, width=None if is_terminal else width)
    console.push_render_hook(_Harmless())
    return console


def say(message: str) -> None:
    """One line that informs the user, on stderr."""
    message = harmless(message)
    if not _quiet:
        print(message, file=sys.stderr, flush=True)
    TOLD.info("%s", message)


def warn(message: str) -> None:
    """One line that the user must see, on stderr."""
    with quiet(False):
        say(message)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.0f}/s")


def progress(items: Iterable[_T], label: str, total: int | None) -> Iterator[_T]:
    """Yield `items`, and show how many are done, the rate, and the time left.

    On a terminal as a bar. Elsewhere as plain lines: at most one for each tenth of the way and one every `SECONDS_BETWEEN_LINES`, and one
    at the end.

    Args:
        items: what is gone through.
        label: what is being done.
        total: how many items there are; None where nobody knows, and then nothing is said at the end.
    """
    if _quiet:
        yield from items
        return
    label, console = harmless(label), terminal(stderr=True)
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            yield from bar.track(items, total=total, description=label)
        return
    start = last_line = time.monotonic()
    last_tenth = 0
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        tenth = 0 if total is None else done * 10 // total
        due = now - last_line >= SECONDS_BETWEEN_LINES and (total is None or tenth > last_tenth)
        if due or done == total:
            rate = done / max(now - start, 1e-6)
            left = "" if total in (None, done) else f", {(total - done) / rate:,.0f} s left"
            of_total = "" if total is None else f" of {total:,}"
            say(f"{label}: {done:,}{of_total} ({rate:,.1f}/s{left})")
            last_line, last_tenth = now, tenth
