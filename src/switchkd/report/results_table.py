"""One model's results for a terminal: each kind with its questions, score and interval, and some answers that were wrong."""

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from switchkd.results.question_results import MEAN, OVERALL, Results

#: Of a text that is shown.
_CHARACTERS = 160


def results_table(results: Results) -> Table:
    """The table. Names are shown as they are, never read as markup."""
    table = Table(title=Text(results.heading), title_justify="left")
    for heading in ("kind", "questions", "percent", "95 % interval"):
        table.add_column(heading, justify="left" if heading == "kind" else "right")
    counts = {kind: one.questions for kind, one in results.kinds.items()} | {OVERALL: results.questions}
    for name, percent in results.percentages().items():
        found = results.intervals_percent.get(name)
        interval = "–" if found is None else f"{found.low:.1f} … {found.high:.1f}"
        count = "" if name == MEAN else str(counts[name])
        table.add_row(Text(name), count, f"{percent:.1f}", interval)
    return table


def wrong_answers(results: Results, count: int = 3) -> Iterator[str]:
    """A line about each of some answers that were wrong, of different kinds first."""
    for one in results.wrong(count):
        accepted = " | ".join(dict.fromkeys(one.references))
        points = f" ({one.points:.2f} by {one.metric})" if one.points else ""
        yield f"wrong: {_short(one.question)} – expected {_short(accepted)} – answered {_short(one.got) or '(nothing)'}{points}"
        yield f"       {', '.join(one.pictures) or 'no picture in a file'}, id {one.id}"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]}…"
