"""What charts and attention maps show, said in numbers: for readers who hear a page."""

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: Curves, polygons or groups of points that are told of one chart, and points of each.
TRACES, POINTS = 12, 24


def of_chart(figure: "go.Figure") -> str:
    """Each curve's begin, end and extremes; each point of the others."""
    traces = list(figure.data)
    told = [f"{_name(trace)}: {_told(trace, figure)}" for trace in traces[:TRACES]]
    if len(traces) > TRACES:
        told.append(f"and {len(traces) - TRACES} more")
    return "; ".join(told)


def of_attention(attention: Sequence[Sequence[float]]) -> str:
    """How much of its attention a model spends on the picture, and where most of it is."""
    most = max(value for row in attention for value in row)
    row, column = next((r, c) for r, values in enumerate(attention) for c, value in enumerate(values) if value == most)
    total = sum(map(sum, attention))
    return (
        f"{100 * total:.0f} % of its attention is on the picture, most of it, {100 * most:.1f} %, in row {row + 1} of {len(attention)} "
        f"and column {column + 1} of {len(attention[0])}"
    )


def _name(trace: Any) -> str:
    return html.unescape(trace.name)


def _told(trace: Any, figure: "go.Figure") -> str:
    if trace.type == "scatterpolar":
        corners = zip(trace.text[:-1], trace.r[:-1], strict=True)  # the last closes the polygon
        return _listed([f"{html.unescape(corner)} {value:.1f}" for corner, value in corners])
    x, y = list(trace.x), list(trace.y)
    if trace.mode == "lines":
        low, high = min(range(len(y)), key=y.__getitem__), max(range(len(y)), key=y.__getitem__)
        return f"{_at(x, y, 0)}, {_at(x, y, len(x) - 1)}, least {_at(x, y, low)}, most {_at(x, y, high)}"
    lines = figure.layout.yaxis.ticktext
    if lines is None:
        return _listed([_at(x, y, place) for place in range(len(x))])
    named = [html.unescape(lines[round(place)].replace("<br>", " ")) for place in y]
    alone = len(set(named)) == 1
    values = [f"{value:+.1f}{_interval(trace, place)}" for place, value in enumerate(x)]
    return _listed(values if alone else [f"{name} {value}" for name, value in zip(named, values, strict=True)])


def _interval(trace: Any, place: int) -> str:
    """The interval around a point, where it has one."""
    bar, value = trace.error_x, trace.x[place]
    if bar.array is None:
        return ""
    return f" (from {value - bar.arrayminus[place]:+.1f} to {value + bar.array[place]:+.1f})"


def _at(x: Sequence[float], y: Sequence[float], place: int) -> str:
    return f"{y[place]:.4g} at {x[place]:.4g}"


def _listed(told: Sequence[str]) -> str:
    more = [f"and {len(told) - POINTS} more"] if len(told) > POINTS else []
    return ", ".join([*told[:POINTS], *more])
