"""Figures of reliability: every test hands in what it counted, and the table is printed at the end.

Each test comes in two sizes, a short and a whole one. They take minutes, so all are `slow`: `make reliability` runs them.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

#: Lines of docs/reliability.md between which the table stands.
_BEGIN, _END = "<!-- figures: written by `make reliability` -->", "<!-- end of figures -->"
_FIGURES: "list[Figure]" = []


class Figure(NamedTuple):
    """A line of the table."""

    name: str
    #: How many cases there were, and of which kinds.
    tried: str
    result: str


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests of this folder."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(params=["short", "whole"])
def whole(request: pytest.FixtureRequest) -> bool:
    """Whether all cases are to be run, or a few of each kind."""
    return bool(request.param == "whole")


@pytest.fixture
def figure() -> Callable[[str, str, str], None]:
    """Hand in a line of the table: figure, what was tried and really hit, what came of it."""
    return lambda *line: _FIGURES.append(Figure(*line))


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int) -> None:
    """Print the table; write it where $SWITCHKD_FIGURES names a page, unless something failed."""
    if not _FIGURES:
        return
    terminalreporter.write_line("")
    terminalreporter.write_line(_table(_FIGURES))
    page = os.environ.get("SWITCHKD_FIGURES")
    if page and exitstatus == 0:
        write_figures(Path(page), _FIGURES)


def write_figures(page: Path, figures: list[Figure]) -> None:
    """Put lines into the table of a page: those of the same figures are replaced, the others stay."""
    before, _, rest = page.read_text(encoding="utf-8").partition(_BEGIN)
    table, _, after = rest.partition(_END)
    assert after, f"{page} has no line {_END}"
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")
    ]
    kept = {name: Figure(name, tried, result) for name, tried, result in cells[2:]} | {
        line.name: line for line in figures
    }
    page.write_text(f"{before}{_BEGIN}\n{_table(list(kept.values()))}\n{_END}{after}", encoding="utf-8")


def _table(figures: list[Figure]) -> str:
    """As Markdown, however long its lines."""
    table = Table("figure", "tried, and really hit", "result", box=MARKDOWN)
    for line in sorted(figures, key=lambda line: (int(line.name.partition(".")[0]), line.name)):
        table.add_row(*line)
    console = Console(width=10_000)
    with console.capture() as written:
        console.print(table)
    return "\n".join(line.strip() for line in written.get().splitlines() if line.strip())
