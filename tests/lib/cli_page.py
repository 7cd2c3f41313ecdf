"""Writes docs/cli.md, the help of every command:

PYTHONPATH=tests/lib python -m cli_page > docs/cli.md
"""

import contextlib
import io
import os
from unittest.mock import patch

from switchkd.cli import main
from switchkd.commands import VERBS

#: What a page shows without scrolling.
WIDTH = "88"
#: Commands of commands, below their verb.
INNER = {"data": ("check", "convert")}


def as_markdown() -> str:
    """The page."""
    lines = [
        "# Commands",
        "",
        "What `switchkd COMMAND --help` says. The parsers write this page: `PYTHONPATH=tests/lib python -m cli_page > docs/cli.md`",
        "",
        "`train`, `doctor` and `study` also take any field of a recipe, `--section.field value` ([fields](fields.md)).",
        "",
        "Exit codes: 0 done, 1 failed, 2 the command or its recipe cannot be understood, 130, 143 or 129 ended by Ctrl-C, SIGTERM or",
        "SIGHUP. With `SWITCHKD_DEBUG=1` in the environment errors keep their traceback.",
    ]
    for name in (verb.__name__.lower() for verb in VERBS):
        for words in [[name], *([name, inner] for inner in INNER.get(name, ()))]:
            lines += ["", f"## {' '.join(words)}", "", "```text", shown_help(words), "```"]
    return "\n".join(lines) + "\n"


def shown_help(words: list[str]) -> str:
    """The help of one command, as a terminal of so many columns shows it."""
    with patch.dict(os.environ, COLUMNS=WIDTH), contextlib.redirect_stdout(io.StringIO()) as shown:
        assert main([*words, "--help"]) == 0, words
    return "\n".join(line.rstrip() for line in shown.getvalue().strip().splitlines())


if __name__ == "__main__":
    print(as_markdown(), end="")
