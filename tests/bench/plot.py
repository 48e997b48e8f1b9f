"""Line charts as SVG, without a library: a logarithmic axis of x, one line a series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil, floor, log10

Series = Mapping[str, Sequence[tuple[float, float]]]
_WIDTH, _HEIGHT = 640, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 40, 50
_COLOURS = ("#1b6ca8", "#c8553d", "#588157", "#6d597a")


def _step(top: float) -> float:
    """A round distance of marks for an axis that ends at ``top``."""
    raw = top / 5 or 1.0
    power = 10.0 ** floor(log10(raw))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= raw)


def chart(title: str, x_title: str, y_title: str, series: Series) -> str:
    """The SVG; every series is pairs of x (above 0) and y (from 0)."""
    xs = [x for points in series.values() for x, _ in points]
    low, high = floor(log10(min(xs))), ceil(log10(max(xs)))
    step = _step(max(y for points in series.values() for _, y in points))
    top = step * ceil(max(y for points in series.values() for _, y in points) / step)
    wide, tall = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        across = (log10(x) - low) / max(high - low, 1)
        return _LEFT + wide * across, _TOP + tall * (1 - y / (top or 1.0))

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="20" font-size="14">{escape(title)}</text>',
        f'<text x="{_LEFT + wide / 2}" y="{_HEIGHT - 12}" text-anchor="middle">'
        f"{escape(x_title)}</text>",
        f'<text transform="translate(16 {_TOP + tall / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_title)}</text>",
    ]
    for mark in range(round(top / step) + 1):
        _, y = place(10**low, mark * step)
        parts.append(f'<path d="M{_LEFT} {y:.1f}h{wide}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{mark * step:g}</text>'
        )
    for power in range(low, high + 1):
        x, _ = place(10.0**power, 0)
        parts.append(f'<path d="M{x:.1f} {_TOP}v{tall}" stroke="#eee"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{_TOP + tall + 16}" text-anchor="middle">{10**power:,}</text>'
        )
    for index, (name, points) in enumerate(series.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        places = [place(x, y) for x, y in points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        parts.append(
            f'<text x="{_WIDTH - _RIGHT}" y="{20 + 14 * index}" text-anchor="end" '
            f'fill="{colour}">{escape(name)}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"
