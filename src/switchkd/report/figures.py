"""Charts as plain plotly figures: {data, layout}, drawn by the page's own script.

plotly reads names, ticks and hover texts as a small HTML with links; whatever comes from a run goes through `plain` first.
"""

import html
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from switchkd.report.evidence import PATHWAYS, Curve, Evidence, Model, Study

Figure = dict[str, Any]

#: Okabe and Ito's colours, which colour-blind readers can tell apart, the darker ones first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#B8860B", "#56B4E9", "#882255")
_DASHES = ("solid", "dot", "dash")
#: The pathways' colours: grey for the teacher.
PATHWAY_COLOURS = {"teacher": "#555555", "student": "#009E73", "switch": "#AA4499"}
_INK, _GRID = "#1f2933", "#e4e7eb"
#: Points of a drawn curve; longer ones are averaged in equal pieces.
POINTS = 250


def plain(text: str, longest: int = 60) -> str:
    """`text` as plotly shows it as it is: no markup, one line, not longer than `longest`."""
    text = " ".join(text.split())
    return html.escape(text if len(text) <= longest else text[: longest - 1] + "…")


def wrapped(text: str) -> str:
    """The same on at most two lines, for names at an axis, which differ at their ends as often as at their beginnings."""
    return "<br>".join(map(html.escape, textwrap.wrap(text, 24, max_lines=2, placeholder=" …", break_on_hyphens=False)))


def style(index: int) -> dict[str, Any]:
    """Colour and dash of model number `index`, the same in every chart; below 0, grey, for what was not trained here."""
    if index < 0:
        return {"color": "#555555", "dash": _DASHES[(-index - 1) % len(_DASHES)]}
    return {"color": COLOURS[index % len(COLOURS)], "dash": _DASHES[index // len(COLOURS) % len(_DASHES)]}


def _axis(title: str = "", **more: Any) -> dict[str, Any]:
    return {
        "title": {"text": title, "font": {"size": 12}, "standoff": 6},
        "gridcolor": _GRID,
        "zerolinecolor": "#9aa5b1",
        "linecolor": "#9aa5b1",
        "automargin": True,
        "exponentformat": "power",
        **more,
    }


def _layout(x: dict[str, Any], y: dict[str, Any], height: int = 260, **more: Any) -> dict[str, Any]:
    return {
        "height": height,
        "margin": {"l": 44, "r": 14, "t": 10, "b": 40},
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 12, "color": _INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": False,
        "hoverlabel": {"align": "left"},
        "xaxis": x,
        "yaxis": y,
        **more,
    }


def _line(x: Sequence[Any], y: Sequence[Any], name: str, line: dict[str, Any], key: str, hover: str) -> dict[str, Any]:
    """One curve. `key` is what the legend's button of this curve switches."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": list(x),
        "y": list(y),
        "name": plain(name),
        "line": {"width": 2, **line},
        "meta": key,
        "hovertemplate": f"{hover}<extra>%{{fullData.name}}</extra>",
    }


def thinned(points: Curve) -> Curve:
    """At most about `POINTS` points, each the mean of as many neighbours."""
    size = -(-len(points) // POINTS)
    pieces = [points[begin : begin + size] for begin in range(0, len(points), size)]
    return [(sum(x for x, _ in piece) / len(piece), sum(y for _, y in piece) / len(piece)) for piece in pieces]


def radar(scores: Mapping[str, Mapping[str, float | None]], keys: Mapping[str, int], unit: str) -> Figure | None:
    """One polygon per model over what all of them were scored on; None where that is fewer than three."""
    corners = [
        name for name in next(iter(scores.values())) if all(row.get(name) is not None for row in scores.values())
    ]
    if len(corners) < 3:
        return None
    closed = [*corners, corners[0]]
    angles = [360 * place / len(corners) for place in range(len(corners))]
    data = [
        {
            "type": "scatterpolar",
            "mode": "lines+markers",
            "r": [row[name] for name in closed],
            "theta": [*angles, 0],
            "text": [plain(name) for name in closed],
            "name": plain(model),
            "line": style(keys[model]) | {"width": 2},
            "marker": {"size": 5},
            "meta": str(keys[model]),
            "hovertemplate": f"%{{text}}: %{{r:.1f}} {unit}<extra>%{{fullData.name}}</extra>",
        }
        for model, row in scores.items()
    ]
    layout = _layout({}, {}, height=400)
    layout["margin"] = {"l": 80, "r": 80, "t": 30, "b": 24}
    layout["polar"] = {
        "bgcolor": "rgba(0,0,0,0)",
        "radialaxis": {"range": [0, 100], "gridcolor": _GRID, "angle": 90, "tickangle": 90, "tickfont": {"size": 10}},
        "angularaxis": {
            "gridcolor": _GRID,
            "linecolor": "#9aa5b1",
            "tickfont": {"size": 11},
            "direction": "clockwise",
            "rotation": 90,
            "tickvals": angles,
            "ticktext": [plain(name, 18) for name in corners],
        },
    }
    return {"data": data, "layout": layout}


def differences(
    scores: Mapping[str, Mapping[str, float | None]], baseline: str | None, keys: Mapping[str, int]
) -> Figure | None:
    """Each model's differences to the baseline, in points; None where there is nothing to compare."""
    base = scores.get(baseline, {}) if baseline is not None else {}
    kinds = [kind for kind, value in base.items() if value is not None][::-1]
    data = []
    for model, row in scores.items():
        points = [(row[kind] - base[kind], kind) for kind in kinds if row.get(kind) is not None]  # type: ignore[operator]
        if model != baseline and points:
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": [_short(x) for x, _ in points],
                    "y": [kinds.index(kind) for _, kind in points],
                    "name": plain(model),
                    "marker": {"size": 10, "color": style(keys[model])["color"], "symbol": _symbol(keys[model])},
                    "meta": str(keys[model]),
                    "hovertemplate": "%{x:+.1f} points<extra>%{fullData.name}</extra>",
                }
            )
    ticks: dict[str, Any] = {
        "tickvals": list(range(len(kinds))),
        "ticktext": [plain(kind, 22) for kind in kinds],
        "zeroline": False,
    }
    x = _axis("difference in points", zeroline=True, zerolinewidth=2)
    layout = _layout(x, _axis(range=[-0.6, len(kinds) - 0.4], **ticks), max(240, 80 + 31 * len(kinds)))
    return {"data": data, "layout": layout} if data else None


def _symbol(index: int) -> str:
    """Goes with the dash, so that the legend can show both."""
    return ("circle", "square", "triangle-up")[_DASHES.index(style(index)["dash"])]


def losses(models: Sequence[Model], keys: Mapping[str, int]) -> dict[str, Figure]:
    """Term → its curve in every run that has it, the total first."""
    terms = sorted(
        {term for model in models for term in model.curves if not term.startswith("knee")},
        key=lambda term: (term != "loss", term != "ce", term),
    )
    figures = {}
    for term in terms:
        data = []
        for model in models:
            if term in model.curves:
                x, y = zip(*thinned(model.curves[term]), strict=True)
                values = [_short(value) for value in y]
                data.append(
                    _line(
                        x,
                        values,
                        model.name,
                        style(keys[model.name]),
                        str(keys[model.name]),
                        "%{y:.3f} at step %{x:.0f}",
                    )
                )
        figures[term] = {"data": data, "layout": _layout(_axis("optimizer step"), _axis(rangemode="tozero"), 240)}
    return figures


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def knees_over_time(model: Model) -> Figure | None:
    """The logged mean knee of each pathway against the step; None where none was logged."""
    data = []
    for who in PATHWAYS:
        if points := model.curves.get(f"knee_{who}"):
            x, y = zip(*thinned(points), strict=True)
            data.append(
                _line(
                    x,
                    [_short(value) for value in y],
                    who,
                    {"color": PATHWAY_COLOURS[who]},
                    who,
                    "k = %{y:.1f} at step %{x:.0f}",
                )
            )
    return {"data": data, "layout": _layout(_axis("optimizer step"), _axis("mean k"), 240)} if data else None


def knee_distribution(knees: Mapping[str, Sequence[int]]) -> Figure:
    """How many percent of the answer tokens have which k, one stepped line per pathway."""
    longest = max(max(values) for values in knees.values())
    width = max(1, -(-longest // 40))  # bins of one k each where there are few
    first = min(min(values) for values in knees.values())
    begins = list(range(first - (first % width if width > 1 else 0), longest + 1, width))
    data = []
    for who in PATHWAYS:
        if who not in knees:
            continue
        values = knees[who]
        shares = [100 * sum(begin <= k < begin + width for k in values) / len(values) for begin in begins]
        label = "k = %{x}" if width == 1 else f"k from %{{x}} to below %{{x}} + {width}"
        line = _line(
            [*begins, begins[-1] + width],
            [_short(share) for share in [*shares, 0]],
            who,
            {"color": PATHWAY_COLOURS[who], "shape": "hv"},
            who,
            f"%{{y:.1f}} % of the tokens: {label}",
        )
        line |= {"fill": "tozeroy", "fillcolor": _faint(PATHWAY_COLOURS[who])}
        data.append(line)
    return {"data": data, "layout": _layout(_axis("knee k"), _axis("% of answer tokens", rangemode="tozero"), 240)}


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.08)"


def forest(study: Study, rows: int | None, keys: Mapping[str, int]) -> Figure | None:
    """Each arm's difference to its baseline: a dot per seed, and the mean with its interval. None where nothing is compared."""
    lines = [line for line in study.table if line.rows == rows and line.difference is not None]
    lines.sort(key=lambda line: line.difference or 0)
    scores = {(cell.arm, cell.seed): cell.score for cell in study.cells if cell.rows == rows}
    data: list[Figure] = []
    for place, line in enumerate(lines):
        base, colour = study.against(line.arm), style(keys[line.arm])["color"]
        seeds = [seed for arm, seed in scores if arm == line.arm and (base, seed) in scores]
        assert line.difference is not None
        bar = {"type": "data", "symmetric": False, "color": _INK, "thickness": 1.5, "width": 5}
        if line.low is not None and line.high is not None:
            bar |= {"array": [line.high - line.difference], "arrayminus": [line.difference - line.low]}
        name, marker = plain(line.arm), {"color": colour}
        data += [
            {
                "type": "scatter",
                "mode": "markers",
                "x": [_short(scores[line.arm, seed] - scores[base, seed]) for seed in seeds],
                "y": [place] * len(seeds),
                "text": [f"seed {seed}" for seed in seeds],
                "name": name,
                "marker": marker | {"size": 8, "opacity": 0.45},
                "hovertemplate": "%{x:+.1f} points, %{text}<extra>%{fullData.name}</extra>",
            },
            {
                "type": "scatter",
                "mode": "markers",
                "x": [_short(line.difference)],
                "y": [place],
                "name": name,
                "error_x": bar,
                "marker": marker | {"size": 11, "symbol": "diamond", "line": {"color": _INK, "width": 1}},
                "hovertemplate": "mean %{x:+.1f} points<extra>%{fullData.name}</extra>",
            },
        ]
    ticks: dict[str, Any] = {
        "tickvals": list(range(len(lines))),
        "ticktext": [wrapped(line.arm) for line in lines],
        "zeroline": False,
    }
    x = _axis("difference in points", zeroline=True, zerolinewidth=2)
    layout = _layout(x, _axis(range=[-0.7, len(lines) - 0.3], **ticks), 90 + 34 * len(lines))
    return {"data": data, "layout": layout} if data else None


def scores_against_cost(study: Study, rows: int | None, keys: Mapping[str, int]) -> Figure:
    """Mean score against cost, one point per arm."""
    costs = _costs(study, rows)
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "x": [_short(costs[line.arm])],
            "y": [_short(line.mean)],
            "name": plain(line.arm),
            "error_y": {"type": "data", "array": [line.sd or 0], "color": "rgba(31,41,51,0.4)", "thickness": 1.5},
            "marker": {"color": style(keys[line.arm])["color"], "size": 11, "symbol": _symbol(keys[line.arm])},
            "meta": str(keys[line.arm]),
            "hovertemplate": "%{y:.1f} % at %{x:.2f} times the cost<extra>%{fullData.name}</extra>",
        }
        for line in study.table
        if line.rows == rows and line.arm in costs
    ]
    layout = _layout(_axis("cost, times the baseline's", rangemode="tozero"), _axis("mean of kinds, %"), 360)
    return {"data": data, "layout": layout}


def _costs(study: Study, rows: int | None) -> dict[str, float]:
    """Arm → its cost in times the study's baseline's, through the arms that it and its own baselines are compared with."""
    own = {line.arm: line.cost for line in study.table if line.rows == rows and line.cost is not None}
    found = {}
    for arm in own:
        cost, other, passed = 1.0, arm, set()
        while other != study.baseline and other in own and other not in passed:
            passed.add(other)
            cost, other = cost * own[other], study.against(other)
        if other == study.baseline and other in own:
            found[arm] = cost
    return found


def figure_keys(evidence: Evidence) -> dict[str, int]:
    """Model or arm → its number, which decides its colour: the baseline is 0, what was only evaluated is below 0."""
    runs = [model.name for model in evidence.models if model.recipe is not None]
    names = sorted(
        dict.fromkeys([*(evidence.study.arms if evidence.study else ()), *runs]),
        key=lambda name: name != evidence.baseline,
    )
    others = [model.name for model in evidence.models if model.name not in names]
    return {name: index for index, name in enumerate(names)} | {name: -1 - index for index, name in enumerate(others)}
