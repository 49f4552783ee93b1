"""SVG line plots with a logarithmic x axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 60, 150, 40, 50
#: Distinguishable with colour blindness.
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
)
LABEL_HEIGHT = 16

Points = Sequence[tuple[float, float]]


def draw(title: str, x_name: str, y_name: str, lines: Mapping[str, Points]) -> str:
    """The plot as SVG text, with the name of each line at its right end.

    The x axis is logarithmic, with a mark at each point; y starts at 0.
    """
    marks = sorted({x for points in lines.values() for x, _ in points})
    top = _ceiling(max(y for points in lines.values() for _, y in points))
    scale = _Scale(marks[0], marks[-1], top)
    middle, bottom = (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12
    parts = [
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="22" font-size="15">{escape(title)}</text>',
        f'<text x="{middle:.0f}" y="{bottom}" text-anchor="middle">{escape(x_name)}</text>',
        f'<text x="{LEFT - 8}" y="{TOP - 12}" text-anchor="end">{escape(y_name)}</text>',
        *_grid(scale, marks, top),
        *_lines(scale, lines),
    ]
    frame = f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12"'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {frame}>', *parts, "</svg>", ""])


class _Scale:
    """Maps values to coordinates."""

    def __init__(self, least: float, greatest: float, top: float) -> None:
        self._least, self._top = least, top
        self._decades = math.log(greatest / least) or 1.0

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(value / self._least) / self._decades

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / self._top


def _ceiling(value: float) -> float:
    """The smallest of 1, 2, 2.5, 5 and 10 times a power of ten that is not below ``value``."""
    power: float = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= value)


def _grid(scale: _Scale, marks: Sequence[float], top: float) -> list[str]:
    parts = []
    for fifth in range(6):
        y = scale.y(top * fifth / 5)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{top * fifth / 5:g}</text>')
    for mark in marks:
        name = f"{mark:,.0f}".replace(",", "\N{NO-BREAK SPACE}")
        parts.append(
            f'<text x="{scale.x(mark):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{name}</text>'
        )
    return parts


def _lines(scale: _Scale, lines: Mapping[str, Points]) -> list[str]:
    parts, labels = [], []
    for colour, (name, points) in zip(COLOURS, lines.items(), strict=False):
        places = [f"{scale.x(x):.1f} {scale.y(y):.1f}" for x, y in points]
        parts.append(f'<path d="M{" L".join(places)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{scale.x(x):.1f}" cy="{scale.y(y):.1f}" r="3" fill="{colour}"/>' for x, y in points
        ]
        labels.append((scale.y(points[-1][1]), name, colour))
    last = -math.inf
    for y, name, colour in sorted(labels):
        last = max(y, last + LABEL_HEIGHT)  # overlapping names move down
        parts.append(
            f'<text x="{WIDTH - RIGHT + 10}" y="{last + 4:.1f}" fill="{colour}">{escape(name)}</text>'
        )
    return parts
