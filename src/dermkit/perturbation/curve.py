"""A small curve of the mean change over strength with its band, as SVG: sharp at any width, and no picture to load."""

from collections.abc import Sequence
from html import escape

from dermkit.metrics.stats.estimate import Estimate

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 300, 150, 44, 30, 10


def curve_svg(strengths: Sequence[float], changes: Sequence[Estimate], largest: float, *, label: str) -> str:
    """Return an SVG element: the changes from 0 at strength 0, with a band of their intervals.

    largest: end of the axis to either side of 0, the same for all curves of a page. label: what it shows, for readers
    who cannot see it.
    """
    points = [(0.0, 0.0, 0.0, 0.0)]
    for strength, estimate in zip(strengths, changes, strict=True):
        value = estimate.value or 0.0
        low, high = estimate.ci95 or (value, value)
        points.append((strength, value, low, high))
    line = " ".join(f"{_x(strength):.1f},{_y(value, largest):.1f}" for strength, value, _, _ in points)
    band = [(_x(strength), _y(high, largest)) for strength, _, _, high in points]
    band += [(_x(strength), _y(low, largest)) for strength, _, low, _ in reversed(points)]
    polygon = " ".join(f"{x:.1f},{y:.1f}" for x, y in band)
    dots = "".join(
        f'<circle cx="{_x(strength):.1f}" cy="{_y(value, largest):.1f}" r="3" fill="#0b5a94"/>'
        for strength, value, _, _ in points
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(label)}" font-family="sans-serif" font-size="11" fill="#59636e">'
        f"{_axes(largest)}"
        f'<polygon points="{polygon}" fill="#0b5a94" fill-opacity="0.18"/>'
        f'<polyline points="{line}" fill="none" stroke="#0b5a94" stroke-width="2"/>{dots}</svg>'
    )


def _x(strength: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - 10) * strength


def _y(value: float, largest: float) -> float:
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    return middle - (_HEIGHT - _BOTTOM - _TOP) / 2 * value / largest


def _axes(largest: float) -> str:
    lines = []
    for value in (largest, 0.0, -largest):
        y = _y(value, largest)
        text = "0" if value == 0 else f"{value:+.2f}".replace("0.", ".")
        colour = "#59636e" if value == 0 else "#dde2e7"
        lines.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - 10}" y1="{y:.1f}" y2="{y:.1f}" stroke="{colour}"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
        )
    ticks = [(0.0, "0"), (0.5, "strength"), (1.0, "1")]
    lines += [
        f'<text x="{_x(strength):.1f}" y="{_HEIGHT - 10}" text-anchor="middle">{text}</text>'
        for strength, text in ticks
    ]
    return "".join(lines)
