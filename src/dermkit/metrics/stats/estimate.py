"""An estimate: a value with its interval, number of images, method, and caveats."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

NO_METHOD = "none"
"""The method of an estimate that is undefined or has no interval."""

_MACRO_PRESENT = re.compile(r"\b(recall|auroc|average_precision|precision|f1|specificity|npv|mcc)_macro_present\b")


@dataclass(frozen=True)
class Estimate:
    """The estimate of one metric.

    value: None if undefined. ci95: lower and upper bound, None without an interval. n: images that it is computed from
    (for sensitivity the positives). reason: why the value is undefined, or caveats about the value or its interval,
    joined by "; ". Raises `ValueError` for NaN, infinity, or None without a reason.
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
        estimate_json = {
            "value": self.value,
            "ci95": None if self.ci95 is None else list(self.ci95),
            "n": self.n,
            "method": self.method,
        }
        return {**estimate_json, "reason": self.reason} if self.reason else estimate_json

    @classmethod
    def from_dict(cls, estimate_json: Mapping[str, Any]) -> "Estimate":
        """Return the estimate that `as_dict` wrote; raises `KeyError`, `TypeError` or `ValueError` for another one."""
        value, ci95 = estimate_json["value"], estimate_json["ci95"]
        if ci95 is not None and len(ci95) != 2:
            raise ValueError(f"an interval has two bounds, not {len(ci95)}")
        bounds = None if ci95 is None else (float(ci95[0]), float(ci95[1]))
        number = None if value is None else float(value)
        return cls(
            number,
            bounds,
            int(estimate_json["n"]),
            str(estimate_json["method"]),
            str(estimate_json.get("reason", "")),
        )


UNRELIABLE_PREFIX = "interval unreliable"
_N_UNITS = re.compile(r"(\d+(?: \w+){0,2}) units\b")
MISLEADING_CAVEATS = ("every resample gave the same value", "the bootstrap is biased")
"""Caveats with which an interval is not shown: it has no width, or does not contain its value."""


def caveats(reason: str) -> list[str]:
    """Return the clauses of a reason that say why the interval is unreliable."""
    return [clause for clause in reason.split("; ") if clause.startswith(UNRELIABLE_PREFIX)]


def with_caveats(estimate: Estimate, new_caveats: Sequence[str]) -> Estimate:
    """Return the estimate with caveats added to its reason; unchanged if it has no interval."""
    if estimate.ci95 is None or not new_caveats:
        return estimate
    clauses = [clause for clause in estimate.reason.split("; ") if clause]
    return replace(estimate, reason="; ".join(dict.fromkeys([*clauses, *new_caveats])))


def undefined_estimate(n: int, reason: str) -> Estimate:
    """Return the estimate of an undefined metric, with the reason."""
    return Estimate(None, None, n, NO_METHOD, reason)


def reliability(estimate: Mapping[str, Any]) -> Literal["", "doubtful", "none"]:
    """Return how far to rely on an interval: "" fully, "doubtful" show with a mark, "none" neither show nor test.

    An interval from few groups, or of which resamples were dropped, is still informative; one without width, or that
    does not contain its value, misleads.
    """
    bounds, caveat_list = estimate.get("ci95"), caveats(str(estimate.get("reason") or ""))
    is_misleading = any(marker in caveat for caveat in caveat_list for marker in MISLEADING_CAVEATS)
    if not bounds or bounds[0] == bounds[1] or is_misleading:
        return "none"
    return "doubtful" if caveat_list else ""


def humanise(reason: str) -> str:
    """Return a reason for readers: without metric names of metrics.json; resampling units are independent images."""

    def describe_row(match: re.Match[str]) -> str:
        # A present class has a recall, but no precision if nothing was predicted as it.
        is_over_present = match[1] in ("recall", "auroc", "average_precision")
        return f"the mean over the classes {'present' if is_over_present else 'where it is defined'}"

    text = _MACRO_PRESENT.sub(describe_row, reason).replace("average_precision is", "average precision is")
    text = text.replace(" units on one side, so near to 0 or 1", " units have the rarer outcome")
    text = text.replace("so near to 0 or 1", "so close to 0 or 1")
    text = _N_UNITS.sub(r"\1 independent images", text)
    return text.replace(f"; {UNRELIABLE_PREFIX}: ", "; ").replace(f"{UNRELIABLE_PREFIX}: ", "unreliable: ")
