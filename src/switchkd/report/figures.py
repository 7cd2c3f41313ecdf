"""Charts as plotly figures, which the page's own script draws; their texts, axes and grids take the colours of the page's style sheet.

plotly reads names, ticks and hover texts as a small HTML with links; whatever comes from a run goes through `plain` first.
"""

import html
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from switchkd.report.curves import EXACT_MATCH, HELD_OUT
from switchkd.report.evidence import PATHWAYS, Curve, Evidence, Model
from switchkd.results.intervals import Interval
from switchkd.results.study_results import StudyResults

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: After Okabe and Ito: colour-blind readers can tell the first ones apart, and each stands out (3 : 1) from white and from the dark page.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#B3509F", "#B8860B", "#4A96CC", "#C2456B")
#: What was not trained here.
GREY = "#7A8188"
_DASHES = ("solid", "dot", "dash")
#: The pathways' colours: grey for the teacher.
PATHWAY_COLOURS = {"teacher": GREY, "student": "#009E73", "switch": "#B3509F"}
_INK, _GRID, _LINE = "#1f2933", "#e4e7eb", "#9aa5b1"
#: What a logged term is measured in, where that is known: the names are those of `methods/`.
_NATS, _SQUARED = "nats per answer token", "squared distance"
UNITS = {
    **dict.fromkeys(("ce", "kd", "bild", "align", "switch", "answers", "mimic", "visual_advantage"), _NATS),
    **dict.fromkeys(("features", "attention", "projected", "focus"), _SQUARED),
    "soft": "nats per text token",
    **dict.fromkeys(("visual", "matched", "instructed"), "nats per visual token"),
    "looks": "1 − cosine, a sum over layers",
    "affinity": "smooth L1 of cosines, from 0 to 1½",
    "relation": "1 − cosine, from 0 to 2",
    EXACT_MATCH: "% of held-out questions",
}
#: The axis of a term that is not among them, and of a total whose terms are not all nats per answer token.
UNKNOWN_UNIT, MIXED_UNITS = "as its method defines it", "sum of terms with unlike units"
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
        return {"color": GREY, "dash": _DASHES[(-index - 1) % len(_DASHES)]}
    return {"color": COLOURS[index % len(COLOURS)], "dash": _DASHES[index // len(COLOURS) % len(_DASHES)]}


def _axis(title: str = "", **more: Any) -> dict[str, Any]:
    return {
        "title": {"text": title, "font": {"size": 12}, "standoff": 6},
        "gridcolor": _GRID,
        "zerolinecolor": _LINE,
        "linecolor": _LINE,
        "automargin": True,
        "exponentformat": "power",
        **more,
    }


def _figure(traces: Sequence[Any], x: dict[str, Any], y: dict[str, Any], height: int = 260, **more: Any) -> "go.Figure":
    import plotly.graph_objects as go

    layout = {
        "template": "none",
        "height": height,
        "margin": {"l": 44, "r": 14, "t": 10, "b": 40},
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 12, "color": _INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": False,
        "hoverlabel": {"align": "left"},
        "xaxis": x,
        "yaxis": y,
    }
    return go.Figure(list(traces), layout | more)


def _scatter(x: Sequence[float], y: Sequence[float], name: str, hover: str, **more: Any) -> "go.Scatter":
    """Points, or a curve with `mode="lines"`. `meta` is what the legend's button of this trace switches."""
    import plotly.graph_objects as go

    template = f"{hover}<extra>%{{fullData.name}}</extra>"
    return go.Scatter(
        x=list(x),
        y=list(map(_short, y)),
        name=plain(name),
        hovertemplate=template,
        **{"mode": "markers"} | more,
    )


def _curve(points: Curve, name: str, hover: str, line: Mapping[str, Any], meta: str) -> "go.Scatter":
    x, y = zip(*thinned(points), strict=True)
    return _scatter(x, y, name, f"{hover} at step %{{x:.0f}}", mode="lines", line={"width": 2, **line}, meta=meta)


def _held_out(points: Curve, name: str, key: int) -> "go.Scatter":
    """Points on held-out rows: there may be but one, at the end of a stage."""
    x, y = zip(*thinned(points), strict=True)
    named, colour = f"{name}, held-out rows", style(key)["color"]
    return _scatter(
        x,
        y,
        named,
        "%{y:.3f} at step %{x:.0f}",
        mode="lines+markers",
        line={"width": 1, "color": colour, "dash": "dot"},
        marker={"size": 7, "color": colour},
        meta=str(key),
    )


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def thinned(points: Curve) -> Curve:
    """At most about `POINTS` points, each the mean of as many neighbours."""
    size = -(-len(points) // POINTS)
    pieces = [points[begin : begin + size] for begin in range(0, len(points), size)]
    return [(sum(x for x, _ in piece) / len(piece), sum(y for _, y in piece) / len(piece)) for piece in pieces]


def radar(scores: Mapping[str, Mapping[str, float | None]], keys: Mapping[str, int], unit: str) -> "go.Figure | None":
    """One polygon per model over what all of them were scored on; None where that is fewer than three."""
    corners = [
        name for name in next(iter(scores.values())) if all(row.get(name) is not None for row in scores.values())
    ]
    if len(corners) < 3:
        return None
    import plotly.graph_objects as go

    closed = [*corners, corners[0]]
    angles = [360 * place / len(corners) for place in range(len(corners))]
    traces = [
        go.Scatterpolar(
            mode="lines+markers",
            r=[row[name] for name in closed],
            theta=[*angles, 0],
            text=[plain(name) for name in closed],
            name=plain(model),
            line=style(keys[model]) | {"width": 2},
            marker={"size": 5},
            meta=str(keys[model]),
            hovertemplate=f"%{{text}}: %{{r:.1f}} {unit}<extra>%{{fullData.name}}</extra>",
        )
        for model, row in scores.items()
    ]
    polar = {
        "bgcolor": "rgba(0,0,0,0)",
        "radialaxis": {"range": [0, 100], "gridcolor": _GRID, "angle": 90, "tickangle": 90, "tickfont": {"size": 10}},
        "angularaxis": {
            "gridcolor": _GRID,
            "linecolor": _LINE,
            "tickfont": {"size": 11},
            "direction": "clockwise",
            "rotation": 90,
            "tickvals": angles,
            "ticktext": [plain(name, 18) for name in corners],
        },
    }
    return _figure(traces, {}, {}, height=400, margin={"l": 80, "r": 80, "t": 30, "b": 24}, polar=polar)


def differences(
    scores: Mapping[str, Mapping[str, float | None]],
    baseline: str | None,
    keys: Mapping[str, int],
    of_differences: Mapping[str, Mapping[str, Interval]] | None = None,
) -> "go.Figure | None":
    """Each model's differences to the baseline with their intervals, in points; None where there is nothing to compare."""
    base = scores.get(baseline, {}) if baseline is not None else {}
    others = [model for model in scores if model != baseline]
    apart = min(0.2, 0.6 / max(1, len(others)))  # so that the intervals of several models lie side by side
    kinds = [kind for kind, value in base.items() if value is not None][::-1]
    traces = []
    for model, row in scores.items():
        found = (of_differences or {}).get(model, {})
        aside = 0.0 if model == baseline else apart * ((len(others) - 1) / 2 - others.index(model))
        points = [
            (_short(value - other), place + aside, found.get(kind))
            for place, kind in enumerate(kinds)
            if (value := row.get(kind)) is not None and (other := base[kind]) is not None
        ]
        if model != baseline and points:
            x, y, known = zip(*points, strict=True)
            marker = {"size": 9, "color": style(keys[model])["color"], "symbol": _symbol(keys[model])}
            bar = {
                "type": "data",
                "symmetric": False,
                "color": style(keys[model])["color"],
                "thickness": 1.5,
                "width": 3,
            }
            if all(known):
                bar["array"] = [_short(bounds.high - value) for bounds, value in zip(known, x, strict=True)]
                bar["arrayminus"] = [_short(value - bounds.low) for bounds, value in zip(known, x, strict=True)]
            hover = "%{x:+.1f} points"
            traces.append(_scatter(x, y, model, hover, marker=marker, error_x=bar, meta=str(keys[model])))
    if not traces:
        return None
    return _differences(traces, [plain(kind, 22) for kind in kinds], 0.6, max(240, 80 + 31 * len(kinds)))


def _differences(traces: Sequence[Any], names: Sequence[str], margin: float, height: int) -> "go.Figure":
    """Differences in points, with a line for each of `names`."""
    ticks: dict[str, Any] = {"tickvals": list(range(len(names))), "ticktext": names, "zeroline": False}
    x = _axis("difference in points", zeroline=True, zerolinewidth=2)
    return _figure(traces, x, _axis(range=[-margin, len(names) - 1 + margin], **ticks), height)


def _symbol(index: int) -> str:
    """Goes with the dash, so that the legend can show both."""
    return ("circle", "square", "triangle-up")[_DASHES.index(style(index)["dash"])]


def _terms(models: Sequence[Model]) -> list[str]:
    return sorted(
        {term for model in models for term in model.curves if not term.startswith(("knee", HELD_OUT))},
        key=lambda term: (term != "loss", term != "ce", term),
    )


def unlike_terms(models: Sequence[Model]) -> list[tuple[str, str]]:
    """The logged terms, with their units, that are not measured in nats per answer token: the total adds them up all the same."""
    units = [(term, UNITS.get(term, UNKNOWN_UNIT)) for term in _terms(models) if term not in ("loss", EXACT_MATCH)]
    return [(term, unit) for term, unit in units if unit != _NATS]


def losses(models: Sequence[Model], keys: Mapping[str, int]) -> "dict[str, go.Figure]":
    """Term → its curve in every run that has it, and as points the same on held-out rows; the total first."""
    terms = _terms(models)
    units = {term: UNITS.get(term, UNKNOWN_UNIT) for term in terms}
    units["loss"] = MIXED_UNITS if unlike_terms(models) else _NATS
    return {
        term: _figure(
            [
                _curve(model.curves[term], model.name, "%{y:.3f}", style(keys[model.name]), str(keys[model.name]))
                for model in models
                if term in model.curves and term != EXACT_MATCH
            ]
            + [
                _held_out(model.curves[name], model.name, keys[model.name])
                for model in models
                for name in (f"{HELD_OUT}{term}", EXACT_MATCH if term == EXACT_MATCH else "")
                if name in model.curves
            ],
            _axis("optimizer step"),
            _axis(units[term], rangemode="tozero"),
            240,
        )
        for term in terms
    }


def knees_over_time(model: Model) -> "go.Figure | None":
    """The logged mean knee of each pathway against the step; None where none was logged."""
    traces = [
        _curve(points, who, "k = %{y:.1f}", {"color": PATHWAY_COLOURS[who]}, who)
        for who in PATHWAYS
        if (points := model.curves.get(f"knee_{who}"))
    ]
    return _figure(traces, _axis("optimizer step"), _axis("mean k"), 240) if traces else None


def knee_distribution(knees: Mapping[str, Sequence[int]]) -> "go.Figure":
    """How many percent of the answer tokens have which k, one stepped line per pathway."""
    longest = max(max(values) for values in knees.values())
    width = max(1, -(-longest // 40))  # bins of one k each where there are few
    first = min(min(values) for values in knees.values())
    begins = list(range(first - (first % width if width > 1 else 0), longest + 1, width))
    label = "k = %{x}" if width == 1 else f"k from %{{x}} to below %{{x}} + {width}"
    traces = []
    for who in PATHWAYS:
        if who not in knees:
            continue
        values = knees[who]
        shares = [100 * sum(begin <= k < begin + width for k in values) / len(values) for begin in begins]
        traces.append(
            _scatter(
                [*begins, begins[-1] + width],
                [*shares, 0],
                who,
                f"%{{y:.1f}} % of the tokens: {label}",
                mode="lines",
                line={"width": 2, "color": PATHWAY_COLOURS[who], "shape": "hv"},
                meta=who,
                fill="tozeroy",
                fillcolor=_faint(PATHWAY_COLOURS[who]),
            )
        )
    return _figure(traces, _axis("knee k"), _axis("% of answer tokens", rangemode="tozero"), 240)


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.08)"


def forest(study: StudyResults, rows: int | None, keys: Mapping[str, int]) -> "go.Figure | None":
    """Each arm's difference to its baseline: a dot per seed, and the mean with its interval. None where nothing is compared."""
    lines = [line for line in study.table if line.rows == rows and line.difference is not None]
    lines.sort(key=lambda line: line.difference or 0)
    scores = {(cell.arm, cell.seed): cell.score for cell in study.cells if cell.rows == rows}
    traces = []
    for place, line in enumerate(lines):
        base, marker = study.against(line.arm), {"color": style(keys[line.arm])["color"]}
        seeds = [seed for arm, seed in scores if arm == line.arm and (base, seed) in scores]
        of_seeds = [_short(scores[line.arm, seed] - scores[base, seed]) for seed in seeds]
        assert line.difference is not None
        bar = {"type": "data", "symmetric": False, "color": GREY, "thickness": 1.5, "width": 5}
        if line.low is not None and line.high is not None:
            bar |= {"array": [line.high - line.difference], "arrayminus": [line.difference - line.low]}
        traces.append(
            _scatter(
                of_seeds,
                [place] * len(seeds),
                line.arm,
                "%{x:+.1f} points, %{text}",
                text=[f"seed {seed}" for seed in seeds],
                marker=marker | {"size": 8, "opacity": 0.45},
            )
        )
        marker |= {"size": 11, "symbol": "diamond", "line": {"color": GREY, "width": 1}}
        mean = "mean %{x:+.1f} points"
        traces.append(_scatter([_short(line.difference)], [place], line.arm, mean, error_x=bar, marker=marker))
    if not traces:
        return None
    return _differences(traces, [wrapped(line.arm) for line in lines], 0.7, 90 + 34 * len(lines))


def scores_against_cost(study: StudyResults, rows: int | None, keys: Mapping[str, int]) -> "go.Figure":
    """Mean score against cost, one point per arm."""
    costs = _costs(study, rows)
    traces = [
        _scatter(
            [_short(costs[line.arm])],
            [line.mean],
            line.arm,
            "%{y:.1f} % at %{x:.2f} times the cost",
            error_y={"type": "data", "array": [line.sd or 0], "color": GREY, "thickness": 1.5},
            marker={"color": style(keys[line.arm])["color"], "size": 11, "symbol": _symbol(keys[line.arm])},
            meta=str(keys[line.arm]),
        )
        for line in study.table
        if line.rows == rows and line.arm in costs
    ]
    return _figure(traces, _axis("cost, times the baseline's", rangemode="tozero"), _axis("mean of kinds, %"), 360)


def _costs(study: StudyResults, rows: int | None) -> dict[str, float]:
    """Arm → its cost in times the study's baseline's, through the arms that it and its own baselines are compared with."""
    own = {line.arm: line.cost for line in study.table if line.rows == rows and line.cost is not None}
    costs = {}
    for arm in own:
        cost, other, passed = 1.0, arm, set()
        while other != study.baseline and other in own and other not in passed:
            passed.add(other)
            cost, other = cost * own[other], study.against(other)
        if other == study.baseline and other in own:
            costs[arm] = cost
    return costs


def figure_keys(evidence: Evidence) -> dict[str, int]:
    """Model or arm → its number, which decides its colour: the baseline is 0, what was only evaluated is below 0."""
    runs = [model.name for model in evidence.models if model.recipe is not None]
    names = sorted(
        dict.fromkeys([*(evidence.study.arms if evidence.study else ()), *runs]),
        key=lambda name: name != evidence.baseline,
    )
    others = [model.name for model in evidence.models if model.name not in names]
    return {name: index for index, name in enumerate(names)} | {name: -1 - index for index, name in enumerate(others)}
