"""Sentences about figures: text in pieces, of which a page marks the numbers with their place in metrics.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dermkit.metrics.stats.estimate import caveats, humanise, reliability
from dermkit.metrics.stats.intervals import NEAR_BOUNDARY

NEAR_BOUNDARY_STRETCH = 3.0
"""An interval that is unreliable only because hardly an image is wrong must clear a rule at three times its width."""


@dataclass(frozen=True)
class Figure:
    """A number inside a sentence. key: its place in metrics.json; "" = counted from the confusion matrix as `metric`.

    form: a percentage, a stated percentage with all its digits, a plain number, or a count.
    """

    value: float
    key: str
    form: Literal["percent", "stated", "number", "count"] = "percent"
    metric: str = ""

    def __str__(self) -> str:
        if self.form == "percent":
            return f"{self.value:.1%}".replace("%", " %")
        if self.form == "stated":
            return f"{100 * self.value:.6g} %"
        return f"{self.value:.3f}" if self.form == "number" else f"{self.value:.0f}"


@dataclass(frozen=True)
class Reason:
    """A recorded reason inside a sentence. key: its place in metrics.json."""

    text: str
    key: str

    def __str__(self) -> str:
        return humanise(self.text).removeprefix("unreliable: ")  # the sentence has said so


Fragments = tuple["str | Figure | Reason", ...]
"""A sentence in pieces: text, and what a page marks with its place in metrics.json."""


def plain_text(fragments: Fragments) -> str:
    """Return a sentence as text, for a terminal or a model card."""
    return "".join(map(str, fragments))


Position = Literal["above", "below", "unclear", "unknown"]
"""Where the whole interval of an estimate lies relative to a value; unknown without a reliable interval."""


def position_of(estimate: Mapping[str, Any], value: float | None) -> Position:
    """Return where the interval of an estimate of metrics.json lies relative to a value; None: unknown."""
    bounds, grade = estimate.get("ci95"), reliability(estimate)
    if value is None or not bounds or grade == "none":
        return "unknown"
    low, high = bounds
    if grade == "doubtful":
        clauses = caveats(str(estimate.get("reason")))
        is_far_above = estimate["value"] - NEAR_BOUNDARY_STRETCH * (estimate["value"] - low) > value
        return "above" if is_far_above and all(NEAR_BOUNDARY in clause for clause in clauses) else "unknown"
    return "above" if low > value else "below" if high < value else "unclear"
