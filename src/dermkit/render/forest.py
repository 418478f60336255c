"""Forest plots in HTML: a figure as a dot, its interval as a bar, so that they bend to a phone."""

from collections.abc import Iterable, Mapping
from typing import Any

from dermkit.metrics.stats.estimate import reliability


def forest_rows(
    items: Iterable[tuple[str, Mapping[str, Any]]], *, low: float, high: float
) -> list[dict[str, Any]]:
    """Return rows of a forest plot: name, value, bounds (None without an interval), and their places in percent.

    items: (name, estimate: value, ci95, reason, n). low, high: the ends of the scale; what lies beyond is drawn at its
    end. An interval that misleads is left out, a doubtful one has the mark `*`.
    """

    def place(value: float) -> float:
        return round(100 * min(1.0, max(0.0, (value - low) / (high - low))), 2)

    trusted_items = [(name, without_misleading_interval(item)) for name, item in items]
    return [
        {
            "name": name, "value": item["value"], "ci95": item["ci95"],
            "mark": "*" if item["ci95"] and reliability(item) == "doubtful" else "",
            "n": item.get("n"), "dot": place(item["value"]),
            "left": place(item["ci95"][0]) if item["ci95"] else None,
            "width": round(place(item["ci95"][1]) - place(item["ci95"][0]), 2) if item["ci95"] else None,
        }
        for name, item in trusted_items
        if item["value"] is not None
    ]  # fmt: skip


def without_misleading_interval(item: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an estimate without its interval where that has no width or does not hold the value."""
    return {**item, "ci95": None} if reliability(item) == "none" else item
