"""Results of several models side by side: accuracy per kind of question and mean, on a terminal and in Markdown."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table
from rich.text import Text

from switchkd.results.intervals import intervals
from switchkd.results.question_results import MEAN, OVERALL, Results
from switchkd.results.score import Interval


@dataclass(frozen=True)
class AccuracyTable:
    """Accuracies in percent: `rows` maps a kind (and `MEAN`, `OVERALL`) to one number per column; None: not asked.

    The last column is the difference in points where one was asked for.
    """

    columns: tuple[str, ...]
    rows: dict[str, tuple[float | None, ...]]
    has_difference: bool
    #: What the percentages are.
    heading: str = "Exact match in percent"
    #: Of the differences, by row; empty where none was asked for, or the answers of one of the two were not kept.
    intervals: dict[str, Interval] = field(default_factory=dict)


def compare(results: Mapping[str, Path], *, difference: tuple[str, str] | None = None) -> AccuracyTable:
    """Read the results JSON files of `results` (name → file) and put them side by side.

    Args:
        results: the columns, in order.
        difference: two of the names; a last column holds the first minus the second, and has intervals where the answers of both were kept.

    Raises:
        ValueError: files that are no results, or that cannot be compared: they answer different questions or are scored by different
            metrics.
    """
    if not results:
        raise ValueError("there are no results to compare")
    loaded = {name: Results.load(path) for name, path in results.items()}
    first = next(iter(results))
    for name, result in loaded.items():
        if result.data_fingerprint != loaded[first].data_fingerprint:
            raise ValueError(
                f"{results[name]} answers other questions than {results[first]}: data fingerprints "
                f"{result.data_fingerprint[:12]} and {loaded[first].data_fingerprint[:12]}; evaluate both on the same data"
            )
        if not result.scored_like(loaded[first]):
            raise ValueError(
                f"{results[name]} is scored by other metrics than {results[first]}: {result.scored_by} and "
                f"{loaded[first].scored_by}; evaluate both with the same --metric"
            )
    models = list(loaded.values())
    kinds = list(loaded[first].kinds)
    rows = {kind: [result.kinds[kind].accuracy_percent for result in models] for kind in kinds}
    if kinds:
        rows[MEAN] = [result.score for result in models]
    rows[OVERALL] = [result.accuracy_percent for result in models]
    columns, sure = list(loaded), dict[str, Interval]()
    if difference is not None:
        one, other = (columns.index(name) for name in difference)
        columns.append(f"{difference[0]} − {difference[1]}")
        rows = {kind: [*values, values[one] - values[other]] for kind, values in rows.items()}
        if models[other].predictions:
            sure = intervals(models[one].predictions, models[other].predictions)
    return AccuracyTable(
        columns=tuple(columns),
        rows={kind: tuple(row) for kind, row in rows.items()},
        has_difference=difference is not None,
        heading=models[0].heading,
        intervals=sure,
    )


def _cell(value: float | None, signed: bool) -> str:
    return "–" if value is None else f"{value:+.1f}" if signed else f"{value:.1f}"


def _cells(comparison: AccuracyTable) -> list[tuple[str, list[str]]]:
    last = len(comparison.columns) - 1
    cells = []
    for kind, values in comparison.rows.items():
        shown = [_cell(value, comparison.has_difference and column == last) for column, value in enumerate(values)]
        if comparison.intervals:
            found = comparison.intervals.get(kind)
            shown.append("–" if found is None else f"{found.low:+.1f} … {found.high:+.1f}")
        cells.append((kind, shown))
    return cells


def _headings(comparison: AccuracyTable) -> list[str]:
    return [*comparison.columns, *(["95 % interval"] if comparison.intervals else [])]


def rich_table(comparison: AccuracyTable) -> Table:
    """The comparison for a terminal. Names are shown as they are, never read as markup."""
    table = Table(title=Text(comparison.heading), title_justify="left")
    table.add_column("kind")
    for heading in _headings(comparison):
        table.add_column(Text(heading), justify="right")
    for kind, cells in _cells(comparison):
        if kind == (MEAN if MEAN in comparison.rows else OVERALL) and len(comparison.rows) > 1:
            table.add_section()
        style = "bold" if kind == MEAN else ""
        table.add_row(Text(kind, style), *(Text(cell, style) for cell in cells))
    return table


def markdown_table(comparison: AccuracyTable) -> str:
    """The comparison in Markdown, for READMEs and model cards."""
    headings = _headings(comparison)
    lines = [["kind", *headings], ["---", *("---:" for _ in headings)]]
    lines += [[kind, *cells] for kind, cells in _cells(comparison)]
    return "".join(f"| {' | '.join(_markdown_text(cell) for cell in line)} |\n" for line in lines)


def _markdown_text(text: str) -> str:
    for character in "\\|`*_[]<>":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())
