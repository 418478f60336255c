"""Thresholds with a guarantee: with the stated confidence, the target rate (say sensitivity 95 %) holds on new images.

The plain 5 % quantile of the scores of validation positives misses a sensitivity of 95 % on new images about half the
time. The threshold here is a one-sided tolerance limit from order statistics (Wilks 1941): it assumes no
distribution, and equals learn-then-test with an exact binomial test. The confidence is over the draw of validation
images, which must be exchangeable with the new ones.

Shapes: N images.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dermkit.metrics.stats.arrays import Bools, Floats, Ints, count, number_between, one_of


@dataclass(frozen=True)
class OperatingPoint:
    """The rule "score >= threshold is positive", fitted so that a rate reaches its target on new images.

    rate: "sensitivity" or "specificity"; target: the value to guarantee, 0 to 1; confidence: of the guarantee.
    guaranteed: False if there are too few images; the threshold is then the lowest score (for a specificity: just above
    the highest). n: independent positives (for a specificity: negatives) that it is fitted on. requested: asked for by
    one evaluation, and no part of the policy that a model holds.
    """

    rate: str
    target: float
    threshold: float
    confidence: float
    guaranteed: bool
    n: int
    requested: bool = False

    @property
    def name(self) -> str:
        """The rate and its target, such as "sensitivity 0.95"."""
        return f"{self.rate} {self.target:g}"

    def as_dict(self) -> dict[str, Any]:
        """Return plain numbers, as model.json holds them; `requested` is told by the list that it stands in."""
        return {
            "name": self.name, "rate": self.rate, "target": self.target, "confidence": self.confidence,
            "guaranteed": self.guaranteed, "n": self.n, "threshold": self.threshold,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, point_json: Mapping[str, Any], *, requested: bool = False) -> "OperatingPoint":
        """Return the point that `as_dict` wrote; raises `KeyError`, `TypeError` or `ValueError` for another object."""
        return cls(
            rate=one_of(point_json["rate"], ("sensitivity", "specificity")),
            target=number_between(point_json["target"], 0, 1),
            threshold=number_between(point_json["threshold"], 0, 1),
            confidence=number_between(point_json["confidence"], 0, 1),
            guaranteed=one_of(point_json["guaranteed"], (True, False)),
            n=count(point_json["n"]),
            requested=requested,
        )


def fit_sensitivity_point(
    score: Floats, is_positive: Bools, groups: Ints, *, target: float, confidence: float = 0.95
) -> OperatingPoint:
    """Return the highest threshold whose sensitivity on new images is at least `target`, with that confidence.

    score, is_positive, groups: (N,). A group (lesion or patient) counts with its lowest-scoring positive image, so the
    guarantee holds for every image of it. Raises `ValueError` without positives, or for a target or confidence not
    between 0 and 1.
    """
    minima = _group_minima(score[is_positive], groups[is_positive])
    limit, is_guaranteed = _tolerance_limit(minima, target, confidence)
    return OperatingPoint("sensitivity", target, limit, confidence, is_guaranteed, len(minima))


def fit_specificity_point(
    score: Floats, is_positive: Bools, groups: Ints, *, target: float, confidence: float = 0.95
) -> OperatingPoint:
    """Return the lowest threshold whose specificity on new images is at least `target`, with that confidence."""
    minima = _group_minima(-score[~is_positive], groups[~is_positive])
    limit, is_guaranteed = _tolerance_limit(minima, target, confidence)
    threshold = float(np.nextafter(-limit, math.inf))
    return OperatingPoint("specificity", target, threshold, confidence, is_guaranteed, len(minima))


def _group_minima(values: Floats, groups: Ints) -> Floats:
    group_index = np.unique(groups, return_inverse=True)[1]
    minima = np.full(int(group_index.max()) + 1 if len(group_index) else 0, np.inf)
    np.minimum.at(minima, group_index, values)
    return minima


def _tolerance_limit(values: Floats, target: float, confidence: float) -> tuple[float, bool]:
    """Return the largest order statistic that is a lower tolerance limit and True, or else the minimum and False."""
    n = len(values)
    if not n or not 0 < target < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"needs images of the label and 0 < target, confidence < 1, not {n}, {target}, {confidence}"
        )
    from scipy.stats import binom  # here: scipy.stats takes a second to import, and a prediction needs none of it

    sorted_values = np.sort(values)
    # At least `target` of new values lie at or above the j-th smallest with confidence P(Bin(n, 1 - target) >= j).
    j = int(binom.ppf(1 - confidence, n, 1 - target))
    while j > 0 and binom.sf(j - 1, n, 1 - target) < confidence:
        j -= 1
    return float(sorted_values[max(j - 1, 0)]), j >= 1


def predictive_values(
    sensitivity: float, specificity: float, prevalence: float
) -> tuple[float | None, float | None]:
    """Return PPV and NPV at a prevalence, all 0 to 1; None where nobody is called positive (negative)."""
    positive_fraction = sensitivity * prevalence + (1 - specificity) * (1 - prevalence)
    negative_fraction = (1 - sensitivity) * prevalence + specificity * (1 - prevalence)
    ppv = sensitivity * prevalence / positive_fraction if positive_fraction > 0 else None
    npv = specificity * (1 - prevalence) / negative_fraction if negative_fraction > 0 else None
    return ppv, npv


@dataclass(frozen=True)
class CountsPerThousand:
    """Expected outcomes per 1,000 people. number_needed_to_biopsy: people called per true positive, None without."""

    true_positives: float
    false_negatives: float
    false_positives: float
    true_negatives: float
    number_needed_to_biopsy: float | None


def counts_per_thousand(sensitivity: float, specificity: float, prevalence: float) -> CountsPerThousand:
    """Return expected counts per 1,000 people of whom `prevalence` have the disease."""
    n_diseased, n_healthy = 1000 * prevalence, 1000 * (1 - prevalence)
    true_positives, false_positives = n_diseased * sensitivity, n_healthy * (1 - specificity)
    number_needed = (true_positives + false_positives) / true_positives if true_positives > 0 else None
    return CountsPerThousand(
        true_positives, n_diseased - true_positives, false_positives, n_healthy - false_positives, number_needed
    )
