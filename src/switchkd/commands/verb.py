"""What every command is, and what several of them use. Imports nothing slow, so that `--help` is quick."""

import atexit
import gc
import logging
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TextIO

if TYPE_CHECKING:
    from switchkd.recipe.schema import Recipe


@dataclass(frozen=True)
class Verb(ABC):
    """One command."""

    #: Whether `--section.field value` may follow.
    takes_fields: ClassVar[bool] = False
    #: Whether the same command goes on where it was interrupted.
    goes_on: ClassVar[bool] = False

    #: Show only results, warnings and errors: no progress, and nothing that merely informs.
    quiet: bool = field(default=False, kw_only=True)

    @abstractmethod
    def run(self, fields: Sequence[str]) -> int:
        """Do it and return the exit code. `fields`: the `--section.field value` flags, as they were typed."""


def load_recipe(path: Path, fields: Sequence[str]) -> "Recipe":
    """The recipe in a file, with flags laid over it."""
    from switchkd.recipe import schema as recipe

    return recipe.load_recipe(path, fields)


def parse_columns(columns: Sequence[str]) -> dict[str, str]:
    """`question=q` … → our names and those of the data.

    Raises:
        ValueError: one without `=`.
    """
    for column in columns:
        if "=" not in column:
            raise ValueError(f"--columns {column}: write our name, =, and the data's, as in question=q")
    return dict(column.split("=", 1) for column in columns)


@contextmanager
def model_libraries() -> Iterator[None]:
    """Around what a verb imports: no search for garbage among millions of new objects, which takes a fifth of the time; and quiet."""
    gc.disable()
    try:
        _quiet()
        yield
    finally:
        gc.enable()
        gc.freeze()  # they stay, and the Trainer would search them at every start
        atexit.register(gc.unfreeze)  # or libraries call what is left at the end a leak


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what is stderr now: above a bar, where one is shown. Only warnings and errors with --quiet."""

    def emit(self, record: logging.LogRecord) -> None:
        from switchkd.console import is_quiet

        if record.levelno >= logging.WARNING or not is_quiet():
            self.stream = sys.stderr
            super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        from switchkd.console import harmless

        return harmless(super().format(record))


def _quiet() -> None:
    """Our own messages on stderr, and no progress bars of others but those of downloads."""
    import datasets
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    from switchkd.console import is_quiet

    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[_Stderr()])
    logging.getLogger("switchkd").setLevel(logging.INFO)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on a CPU it names a kernel that it can do without
    datasets.disable_progress_bars()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    (disable_progress_bars if is_quiet() else enable_progress_bars)()


def print_json(value: object) -> None:
    """What --json prints: the one thing on the output stream; messages are on stderr."""
    import json

    text = json.dumps(value, indent=2, ensure_ascii=False)
    text = text.encode(errors="backslashreplace").decode()  # half a pair of surrogates stays what it is, as an escape
    print(escaped(text))


def escaped(text: str) -> str:
    """JSON for a terminal: the control characters that it may hold as they are become escapes."""
    return re.sub("[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", text)


def slug(text: str) -> str:
    """`text` as a part of a file name."""
    return re.sub(r"[^\w.]+", "-", text).strip("-.")


def say(message: str) -> None:
    """One line that informs the user, on stderr."""
    from switchkd.console import say as inform  # imports rich

    inform(message)


def warn(message: str) -> None:
    """One line that the user must see, with --quiet too, on stderr."""
    from switchkd.console import warn as show

    show(message)


def fail(message: str, code: int) -> int:
    """Say what went wrong and return the exit code."""
    from switchkd.console import harmless

    print(f"switchkd: {harmless(' '.join(message.split()))}", file=sys.stderr, flush=True)
    return code
