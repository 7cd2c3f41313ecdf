"""The study's picture: every arm's difference to its baseline, seed by seed, with its mean and confidence interval, as SVG."""

import math
from collections.abc import Sequence
from html import escape

from switchkd.results.study_results import ArmSummary

LEFT, AXIS, RIGHT, TOP, LINE = 250, 420, 190, 64, 30
#: Of a character of an arm's name and of the title, at most as a mean; names longer than LEFT and long titles get more room.
LETTER, TITLE_LETTER = 8, 9
_INK, _MUTED, _GRID, _DOT, _MEAN = "#1b1f24", "#57606a", "#d8dee4", "#7aa6d8", "#0b4f9c"


def figure(table: Sequence[ArmSummary], *, title: str, metric: str = "exact") -> str:
    """An SVG with a line for every arm that has a difference, in points of what the answers were scored by.

    Raises:
        ValueError: if no arm has a difference.
    """
    shown = [line for line in table if None not in (line.difference, line.low, line.high)]
    if not shown:
        raise ValueError("no arm has a difference to its baseline: there is nothing to draw")
    values = [0.0]
    for line in shown:
        values += [line.low or 0, line.high or 0, *line.differences]
    step = _step(max(values) - min(values))
    first, last = math.floor(min(values) / step), math.ceil(max(values) / step)
    if first == last:
        last += 1
    names = [line.arm if line.rows is None else f"{line.arm}, {line.rows} rows" for line in shown]
    left = max(LEFT, 20 + LETTER * max(map(len, names)))
    width = max(left + AXIS + RIGHT, 32 + TITLE_LETTER * len(title))
    height = TOP + LINE * len(shown) + 52
    bottom = TOP + LINE * len(shown)

    def x(value: float) -> float:
        return left + (value - first * step) / ((last - first) * step) * AXIS

    parts = [
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        _text(16, 28, title, size=15, weight=600),
    ]
    for tick in range(first, last + 1):
        at = x(tick * step)
        ink = _MUTED if tick == 0 else _GRID
        parts.append(f'<line x1="{at:.1f}" y1="{TOP - 8}" x2="{at:.1f}" y2="{bottom}" stroke="{ink}"/>')
        parts.append(_text(at, bottom + 18, f"{tick * step:+g}" if tick else "0", anchor="middle", ink=_MUTED, size=12))
    parts.append(
        _text(
            left + AXIS / 2,
            bottom + 40,
            f"points of {'exact match' if metric == 'exact' else metric}, difference to the baseline",
            anchor="middle",
            ink=_MUTED,
            size=12,
        )
    )
    for place, (line, name) in enumerate(zip(shown, names, strict=True)):
        y = TOP + LINE * place + LINE / 2 - 4
        parts.append(_text(left - 14, y + 4, name, anchor="end"))
        parts.append(
            f'<line x1="{x(line.low or 0):.1f}" y1="{y:.1f}" x2="{x(line.high or 0):.1f}" y2="{y:.1f}" stroke="{_MEAN}" stroke-width="2"/>'
        )
        for value in line.differences:
            parts.append(f'<circle cx="{x(value):.1f}" cy="{y:.1f}" r="4" fill="{_DOT}" fill-opacity="0.75"/>')
        parts.append(f'<circle cx="{x(line.difference or 0):.1f}" cy="{y:.1f}" r="6" fill="{_MEAN}"/>')
        parts.append(
            _text(left + AXIS + 16, y + 4, f"{line.difference:+.1f}  [{line.low:+.1f}, {line.high:+.1f}]", size=13)
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}" '
        f'font-family="system-ui, sans-serif">\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _step(span: float) -> float:
    """A round distance between ticks that gives four to ten of them."""
    rough = max(span, 1e-9) / 8
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)


def _text(
    x: float, y: float, text: str, *, size: int = 14, weight: int = 400, anchor: str = "start", ink: str = _INK
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" fill="{ink}">'
        f"{escape(text)}</text>"
    )
