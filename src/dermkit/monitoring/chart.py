"""Small charts over time as SVG: sharp at any width, and no picture to load."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_Json = Mapping[str, Any]
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 300, 120, 46, 8, 8, 22
_BLUE, _GREY, _RED = "#0b5a94", "#59636e", "#a32111"


def series_svg(periods: Mapping[str, _Json], reference: _Json, *, label: str, is_event: bool) -> str:
    """Return an SVG element: the value of each period with its 95 % interval, over the reference with its own.

    periods: name -> estimate as JSON, in their order. label: what it shows, for readers who cannot see it.
    """
    names = [name for name, estimate in periods.items() if estimate["value"] is not None]
    estimates = [periods[name] for name in names]
    low, high = _span([*estimates, reference], is_event=is_event)
    shapes = [_ticks(low, high, is_event=is_event), _reference(reference, low, high)]
    points = [(_x(number, len(names)), one) for number, one in enumerate(estimates)]
    if len(points) > 1:
        line = " ".join(f"{x:.1f},{_y(one['value'], low, high):.1f}" for x, one in points)
        shapes.append(f'<polyline points="{line}" fill="none" stroke="{_BLUE}" stroke-width="1.2"/>')
    shapes += [_point(x, one, low, high) for x, one in points]
    return _element("".join([*shapes, _period_names(names)]), label)


def evidence_svg(periods: Mapping[str, float], limit: float, *, label: str) -> str:
    """Return an SVG element: the largest capital of each period on a logarithmic axis, and the limit of an alarm.

    periods: name -> capital, in their order.
    """
    logs = [math.log10(max(value, 1e-3)) for value in periods.values()]
    log_limit = math.log10(limit)
    low, high = min([-1.0, *logs]), max([log_limit + 0.5, *(min(one, 2 * log_limit) for one in logs)])
    shapes = [
        _line(_y(log_limit, low, high), _RED, dash="4 3"),
        _text(_LEFT - 5, _y(log_limit, low, high) + 4, "alarm", "end", _RED),
        _line(_y(0, low, high), "#dde2e7"), _text(_LEFT - 5, _y(0, low, high) + 4, "1", "end"),
    ]  # fmt: skip
    xs = [_x(number, len(logs)) for number in range(len(logs))]
    line = " ".join(f"{x:.1f},{_y(min(one, high), low, high):.1f}" for x, one in zip(xs, logs, strict=True))
    if len(logs) > 1:
        shapes.append(f'<polyline points="{line}" fill="none" stroke="{_BLUE}" stroke-width="1.6"/>')
    for x, one in zip(xs, logs, strict=True):
        colour = _RED if one >= log_limit else _BLUE
        shapes.append(f'<circle cx="{x:.1f}" cy="{_y(min(one, high), low, high):.1f}" r="2.2" fill="{colour}"/>')
    return _element("".join([*shapes, _period_names(list(periods))]), label)


def _element(shapes: str, label: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(label)}" font-family="sans-serif" font-size="10" fill="{_GREY}">{shapes}</svg>'
    )


def _span(estimates: Sequence[_Json], *, is_event: bool) -> tuple[float, float]:
    """Return the ends of the axis: what the values and their intervals reach, with a margin."""
    bounds = [bound for one in estimates if one["value"] is not None for bound in (one["ci95"] or [one["value"]])]
    bounds += [one["value"] for one in estimates if one["value"] is not None]
    low, high = min(bounds, default=0.0), max(bounds, default=1.0)
    margin = max(0.06 * (high - low), 1e-3 * max(abs(low), abs(high), 1e-3))
    return (max(0.0, low - margin), min(1.0, high + margin)) if is_event else (low - margin, high + margin)


def _reference(reference: _Json, low: float, high: float) -> str:
    if reference["value"] is None:
        return ""
    bottom, top = reference["ci95"] or (reference["value"], reference["value"])
    y = _y(top, low, high)
    return (
        f'<rect x="{_LEFT}" y="{y:.1f}" width="{_WIDTH - _LEFT - _RIGHT}" height="{_y(bottom, low, high) - y:.1f}" '
        f'fill="#0b6b45" fill-opacity="0.18"/>{_line(_y(reference["value"], low, high), "#0b6b45")}'
    )


def _point(x: float, estimate: _Json, low: float, high: float) -> str:
    y = _y(estimate["value"], low, high)
    bar = ""
    if estimate["ci95"]:
        bottom, top = (_y(bound, low, high) for bound in estimate["ci95"])
        ends = f'x1="{x:.1f}" x2="{x:.1f}" y1="{bottom:.1f}" y2="{top:.1f}"'
        bar = f'<line {ends} stroke="{_BLUE}" stroke-opacity="0.55"/>'
    return f'{bar}<circle cx="{x:.1f}" cy="{y:.1f}" r="2.2" fill="{_BLUE}"/>'


def _ticks(low: float, high: float, *, is_event: bool) -> str:
    shapes = []
    for value in (low, (low + high) / 2, high):
        text = f"{100 * value:.3g} %" if is_event else f"{value:.3g}"
        y = _y(value, low, high)
        shapes.append(_line(y, "#dde2e7") + _text(_LEFT - 5, y + 4, text, "end"))
    return "".join(shapes)


def _period_names(names: Sequence[str]) -> str:
    if not names:
        return ""
    first = _text(_LEFT, _HEIGHT - 6, names[0], "start")
    return first if len(names) == 1 else first + _text(_WIDTH - _RIGHT, _HEIGHT - 6, names[-1], "end")


def _line(y: float, colour: str, *, dash: str = "") -> str:
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{colour}"{dashes}/>'


def _text(x: float, y: float, text: str, anchor: str, colour: str = _GREY) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def _x(number: int, n: int) -> float:
    margin = 6
    width = _WIDTH - _LEFT - _RIGHT - 2 * margin
    return _LEFT + margin + (width / 2 if n == 1 else width * number / (n - 1))


def _y(value: float, low: float, high: float) -> float:
    return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - (value - low) / max(high - low, 1e-12))
