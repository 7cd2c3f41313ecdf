"""Training curves: one HTML file that opens anywhere, without a network."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from switchkd.files import write_together
from switchkd.report.evidence import Curve
from switchkd.results.training_log import read_training_log

#: What else stands in a log line; every other number in a line with a loss is a term in nats, or a knee.
_BOOKKEEPING = {"step", "epoch", "grad_norm", "answer_tokens", "aligned", "dropped_mass"}
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
#: Scripts and styles of this file only, and nothing from anywhere.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def loss_plot(metrics_jsonl_by_name: dict[str, Path], output_html: Path) -> Path:
    """Plot the loss and its terms, and below them the knee k of each leader, against the step.

    Each run has one colour, each term one dash; a click on the legend hides a curve.

    Args:
        metrics_jsonl_by_name: the runs, name → the `metrics.jsonl` that training wrote.
        output_html: one self-contained file, plotly included.

    Raises:
        ValueError: a file that cannot be read, or without a single logged loss.
    """
    import plotly.graph_objects as go
    from plotly.colors import qualitative
    from plotly.subplots import make_subplots

    if not metrics_jsonl_by_name:
        raise ValueError("there are no metrics to plot")
    curves = {name: read_curves(path) for name, path in metrics_jsonl_by_name.items()}
    terms = sorted({term for run in curves.values() for term in run}, key=lambda term: (term != "loss", term))
    dashes: Mapping[bool, list[str]] = {
        knee: [term for term in terms if _is_knee(term) == knee] for knee in (False, True)
    }
    panels = ["loss and its terms, nats per answer token"] + ["knee k"] * bool(dashes[True])
    figure = make_subplots(rows=len(panels), cols=1, shared_xaxes=True, subplot_titles=panels, vertical_spacing=0.08)
    for index, (name, run) in enumerate(curves.items()):
        for term, points in run.items():
            figure.add_trace(
                go.Scatter(
                    x=[step for step, _ in points],
                    y=[value for _, value in points],
                    mode="lines",
                    # plotly reads names as a small HTML
                    name=html.escape(f"{name}: {term}"),
                    line={
                        "color": qualitative.D3[index % len(qualitative.D3)],
                        "dash": _DASHES[dashes[_is_knee(term)].index(term) % len(_DASHES)],
                    },
                ),
                row=2 if _is_knee(term) else 1,
                col=1,
            )
    figure.update_xaxes(title_text="optimizer step", row=len(panels), col=1)
    figure.update_layout(template="plotly_white", height=420 * len(panels))
    body = figure.to_html(full_html=False, include_plotlyjs=True, config={"displaylogo": False})
    title = html.escape(", ".join(curves))
    page = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>Training curves: {title}</title>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )
    write_together({Path(output_html): page}, errors="xmlcharrefreplace")
    return Path(output_html)


def _is_knee(term: str) -> bool:
    return term.startswith("knee")


def read_curves(path: Path) -> dict[str, Curve]:
    """Term → its (step, value) points, from a `metrics.jsonl`.

    Raises:
        ValueError: naming file and line.
    """
    if curves := curves_of(read_training_log(Path(path))):
        return curves
    raise ValueError(f"{path}: no loss was logged")


def curves_of(lines: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    """Term → its (step, value) points, of the lines of a training log."""
    curves: dict[str, Curve] = {}
    for line in lines:
        if "loss" not in line:  # the summary at the end of training
            continue
        for term, value in line.items():
            if term in _BOOKKEEPING or term.startswith("learning_rate"):  # and those of the parts
                continue
            if isinstance(value, int | float):
                curves.setdefault(term, []).append((line["step"], float(value)))
    return curves
