"""Guarantees that other images broke: fitted on validation images, and excluded by the interval on a later split.

A guarantee is of a rate of an operating point, or of the coverage of prediction sets, class by class.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from dermkit.metrics.decisions.conformal import expected_coverage_range
from dermkit.metrics.stats.arrays import count, number_between, one_of
from dermkit.metrics.stats.estimate import reliability

GuaranteedRate = Literal["sensitivity", "specificity", "coverage"]
_RATES: tuple[GuaranteedRate, ...] = ("sensitivity", "specificity", "coverage")

FALSE_ALARM_RATE = 0.01
"""How often sound prediction sets of all classes together may be called broken. Of an operating point it is far less:
its guarantee itself is wrong in at most 5 %, and the interval must then miss the target as well."""


@dataclass(frozen=True)
class BrokenGuarantee:
    """A guaranteed rate whose 95 % interval on a later split lies wholly below its target.

    rate: of an operating point, or the coverage of the prediction sets of `class_name` ("" for an operating point).
    target, value, ci95: 0 to 1. n: images on that split. key: where metrics.json holds the estimate, below the split;
    "" where it was read from a model.
    """

    rate: GuaranteedRate
    class_name: str
    target: float
    value: float
    ci95: tuple[float, float]
    n: int
    key: str = ""

    @property
    def name(self) -> str:
        """The operating point's name, such as "sensitivity 0.95", or "coverage 0.9 of melanoma"."""
        of_class = f" of {self.class_name}" if self.class_name else ""
        return f"{self.rate} {self.target:g}{of_class}"

    def as_dict(self) -> dict[str, Any]:
        """Return what model.json holds."""
        fields = asdict(self)
        del fields["key"]
        return {"name": self.name, **fields, "ci95": list(self.ci95)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "BrokenGuarantee":
        """Return what `as_dict` wrote; raises `KeyError`, `TypeError` or `ValueError` for another object."""
        low, high = (number_between(bound, 0, 1) for bound in fields["ci95"])
        if not isinstance(fields["class_name"], str):
            raise TypeError("a class name is no text")
        return cls(
            one_of(fields["rate"], _RATES), fields["class_name"], number_between(fields["target"], 0, 1),
            number_between(fields["value"], 0, 1), (low, high), count(fields["n"]),
        )  # fmt: skip


def find_broken_guarantees(split_metrics: Mapping[str, Any]) -> tuple[BrokenGuarantee, ...]:
    """Return the guarantees that a split of metrics.json breaks; none where it was not evaluated with a policy.

    Operating points that were never guaranteed, for too few validation images, have nothing to break.
    """
    policy = split_metrics.get("policy") or {}
    return (*_broken_points(policy), *_broken_coverages(policy.get("conformal") or {}))


def _broken_points(policy: Mapping[str, Any]) -> Iterator[BrokenGuarantee]:
    for index, point in enumerate(policy.get("operating_points", ())):
        estimate = point[point["rate"]]
        if point["guaranteed"] and _excludes(estimate, point["target"]):
            key = f"policy.operating_points.{index}"
            yield _broken(point["rate"], "", point["target"], estimate, key)


def _broken_coverages(conformal: Mapping[str, Any]) -> Iterator[BrokenGuarantee]:
    """Yield classes whose coverage is excluded, and less than a valid rule's calibration images may give by chance."""
    per_class = conformal.get("per_class", {})
    for class_name, estimate in per_class.items():
        target = conformal["coverage_target"]
        if _excludes(estimate, target) and estimate["value"] < _least_coverage(estimate, target, len(per_class)):
            yield _broken("coverage", class_name, target, estimate, f"policy.conformal.per_class.{class_name}")


def _least_coverage(estimate: Mapping[str, Any], target: float, n_classes: int) -> float:
    """Return the coverage of a class below which a valid rule falls in `FALSE_ALARM_RATE`, all classes together."""
    if "n_groups" not in estimate:  # of an older version
        return float(estimate["expected"][0])
    n_groups = estimate["n_groups"]
    low, _ = expected_coverage_range(
        estimate["n_calibration_groups"], n_groups, alpha=1 - target, level=1 - 2 * FALSE_ALARM_RATE / n_classes
    )
    return float(low / n_groups)


def _excludes(estimate: Mapping[str, Any], target: float) -> bool:
    return reliability(estimate) != "none" and estimate["ci95"][1] < target


def _broken(
    rate: GuaranteedRate, class_name: str, target: float, estimate: Mapping[str, Any], key: str
) -> BrokenGuarantee:
    low, high = estimate["ci95"]
    return BrokenGuarantee(rate, class_name, target, estimate["value"], (low, high), estimate["n"], key)
