"""Figures of reliability: every test hands in what it counted, and the table is printed at the end.

Most tests come in two sizes: the short one belongs to `make test`, the whole one, which takes minutes, to `make reliability`.
"""

import os
import re
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
    #: Which test handed it in: a new line of that test takes the old one's place, also where the test has failed.
    test: str


@pytest.fixture(params=["short", pytest.param("whole", marks=pytest.mark.slow)])
def whole(request: pytest.FixtureRequest) -> bool:
    """Whether all cases are to be run, or a few of each kind."""
    return bool(request.param == "whole")


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str, str, str], None]:
    """Hand in a line of the table: figure, what was tried and really hit, what came of it."""
    size = "a short form: " if re.search(r"\bshort\b", request.node.name) else ""
    return lambda name, tried, result: _FIGURES.append(Figure(name, size + tried, result, name_of(request.node)))


def name_of(test: pytest.Item) -> str:
    """File and name of a test, without its size."""
    return re.sub(r"\[(short|whole)\]$", "", re.sub(r"\b(short|whole)-", "", test.nodeid.rpartition("/")[2]))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """A test that fails has a line too, and the others go on."""
    report = (yield).get_result()
    if report.failed and item.path.parent == Path(__file__).parent and "figure" in getattr(item, "fixturenames", ()):
        reason = str(call.excinfo.value if call.excinfo else "").strip().splitlines()[:1]
        said = re.sub(r"[|\s]+", " ", "".join(reason))[:200]
        _FIGURES.append(Figure("", "", f"**FAILED**: {said}", name_of(item)))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table; where $SWITCHKD_FIGURES names a page, put it in there."""
    if not _FIGURES:
        return
    terminalreporter.write_line("")
    terminalreporter.write_line(_table(_FIGURES))
    if page := os.environ.get("SWITCHKD_FIGURES"):
        write_figures(Path(page), _FIGURES)


def write_figures(page: Path, figures: list[Figure]) -> None:
    """Put lines into the table of a page: those of the same tests are replaced, the others stay."""
    before, _, rest = page.read_text(encoding="utf-8").partition(_BEGIN)
    table, _, after = rest.partition(_END)
    assert after, f"{page} has no line {_END}"
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")
    ]
    old = [Figure(*line) for line in cells[2:] if len(line) == len(Figure._fields)]
    names = {line.test: line.name for line in old}
    new = [line._replace(name=line.name or names.get(line.test, "")) for line in figures]
    tests = {line.test for line in new}
    kept = [line for line in old if line.test not in tests]
    page.write_text(f"{before}{_BEGIN}\n{_table([*kept, *new])}\n{_END}{after}", encoding="utf-8")


def _table(figures: list[Figure]) -> str:
    """As Markdown, however long its lines."""
    table = Table("figure", "tried, and really hit", "result", "test", box=MARKDOWN)

    def place(line: Figure) -> tuple[int, str, str]:
        number = line.name.partition(".")[0]
        return (int(number) if number.isdigit() else 99, line.name, line.test)

    for line in sorted(figures, key=place):
        table.add_row(*line)
    console = Console(width=10_000, markup=False, highlight=False)
    with console.capture() as written:
        console.print(table)
    return "\n".join(line.strip() for line in written.get().splitlines() if line.strip())
