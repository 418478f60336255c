"""A figure that never travels alone: value, interval, the number of images it rests on, and the method."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

NO_METHOD = "none"
"""The method of a figure that is undefined, or that has no interval."""

_PRESENT = re.compile(r"\b(recall|auroc|average_precision|precision|f1|specificity|npv|mcc)_macro_present\b")


@dataclass(frozen=True)
class Estimate:
    """One figure.

    value: None where it is undefined; then `reason` says why. ci95: lower and upper bound, None where there is no
    interval. n: images that the figure rests on (for sensitivity the positive ones). reason: beside a value, what
    makes the value or its interval less than it seems. Raises `ValueError` for NaN, infinity or a silent None.
    """

    value: float | None
    ci95: tuple[float, float] | None
    n: int
    method: str
    reason: str = ""

    def __post_init__(self) -> None:
        numbers = (() if self.value is None else (self.value,)) + (self.ci95 or ())
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError(f"an estimate holds finite numbers or None, not {self.value} {self.ci95}")
        if self.value is None and (self.ci95 is not None or not self.reason):
            raise ValueError("an undefined estimate has a reason and no interval")

    def as_dict(self) -> dict[str, Any]:
        """Return the estimate as metrics.json holds it; `reason` only where there is one."""
        body = {
            "value": self.value,
            "ci95": None if self.ci95 is None else list(self.ci95),
            "n": self.n,
            "method": self.method,
        }
        return {**body, "reason": self.reason} if self.reason else body

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> "Estimate":
        """Return the estimate that `as_dict` wrote; raises `KeyError`, `TypeError` or `ValueError` for another one."""
        value, ci95 = body["value"], body["ci95"]
        bounds = None if ci95 is None else (float(ci95[0]), float(ci95[1]))
        number = None if value is None else float(value)
        return cls(number, bounds, int(body["n"]), str(body["method"]), str(body.get("reason", "")))


UNRELIABLE = "interval unreliable"
MISLEADING = ("every resample gave the same value", "the bootstrap is biased")
"""Doubts after which an interval is not shown: it has no width, or lies beside its value."""


def doubts(reason: str) -> list[str]:
    """Return the parts of a reason that say why its interval is unreliable."""
    return [part for part in reason.split("; ") if part.startswith(UNRELIABLE)]


def doubted(estimate: Estimate, reasons: Sequence[str]) -> Estimate:
    """Return the estimate with what makes its interval unreliable added to its reason; without interval as it is."""
    if estimate.ci95 is None or not reasons:
        return estimate
    told = [part for part in estimate.reason.split("; ") if part]
    return replace(estimate, reason="; ".join(dict.fromkeys([*told, *reasons])))


def undefined(n: int, reason: str) -> Estimate:
    """Return the estimate of a figure that does not exist, and why."""
    return Estimate(None, None, n, NO_METHOD, reason)


def trust(estimate: Mapping[str, Any]) -> Literal["", "doubtful", "none"]:
    """Return the worth of an estimate's interval: "" full, "doubtful" to be marked, "none" not to be shown or judged.

    An interval of few units, or that lost resamples, still says something; one without width, or beside its value,
    misleads.
    """
    bounds, found = estimate.get("ci95"), doubts(str(estimate.get("reason") or ""))
    misleading = any(why in part for part in found for why in MISLEADING)
    if not bounds or bounds[0] == bounds[1] or misleading:
        return "none"
    return "doubtful" if found else ""


def in_words(reason: str) -> str:
    """Return a reason without the names that metrics.json gives to figures."""

    def row(found: re.Match[str]) -> str:
        # A class that is present has no precision where nothing was called it.
        present = found[1] in ("recall", "auroc", "average_precision")
        return f"the row over the classes {'present' if present else 'where it is defined'}"

    told = _PRESENT.sub(row, reason).replace("average_precision is", "average precision is")
    return told.replace(f"; {UNRELIABLE}: ", "; ").replace(f"{UNRELIABLE}: ", "unreliable: ")
