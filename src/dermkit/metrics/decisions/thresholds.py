"""Thresholds with a guarantee: with the stated confidence, the target rate (say sensitivity 95 %) holds on new images.

The plain 5 % quantile of the scores of validation positives misses a sensitivity of 95 % on new images about half the
time. The threshold here is a one-sided tolerance limit from order statistics (Wilks 1941): it assumes no
distribution, and equals learn-then-test with an exact binomial test. The confidence is over the draw of validation
images, which must be exchangeable with the new ones.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import binom

from dermkit.metrics.stats.arrays import Bools, Floats, Ints


@dataclass(frozen=True)
class Threshold:
    """An operating point: score >= value is positive.

    target: the rate to guarantee, 0 to 1. confidence: of the guarantee. guaranteed: False if there are too few images;
    `value` is then the lowest score (for a specificity: just above the highest). n: independent positives (for a
    specificity: negatives) that it is fitted on.
    """

    value: float
    target: float
    confidence: float
    guaranteed: bool
    n: int


def for_sensitivity(
    score: Floats, is_positive: Bools, groups: Ints, *, target: float, confidence: float = 0.95
) -> Threshold:
    """Return the highest threshold whose sensitivity on new images is at least `target`, with that confidence.

    score, is_positive, groups: (N,). A group (lesion or patient) counts with its lowest-scoring positive image, so the
    guarantee holds for every image of it. Raises `ValueError` without positives, or for a target or confidence not
    between 0 and 1.
    """
    return _tolerance_limit(_group_minima(score[is_positive], groups[is_positive]), target, confidence)


def for_specificity(
    score: Floats, is_positive: Bools, groups: Ints, *, target: float, confidence: float = 0.95
) -> Threshold:
    """Return the lowest threshold whose specificity on new images is at least `target`, with that confidence."""
    threshold = _tolerance_limit(_group_minima(-score[~is_positive], groups[~is_positive]), target, confidence)
    return replace(threshold, value=float(np.nextafter(-threshold.value, math.inf)))


def _group_minima(values: Floats, groups: Ints) -> Floats:
    group_index = np.unique(groups, return_inverse=True)[1]
    minima = np.full(int(group_index.max()) + 1 if len(group_index) else 0, np.inf)
    np.minimum.at(minima, group_index, values)
    return minima


def _tolerance_limit(values: Floats, target: float, confidence: float) -> Threshold:
    """Return the largest order statistic that is a lower tolerance limit; the minimum if none is."""
    n = len(values)
    if not n or not 0 < target < 1 or not 0 < confidence < 1:
        raise ValueError(f"needs images of the side and 0 < wish, confidence < 1, not {n}, {target}, {confidence}")
    sorted_values = np.sort(values)
    # At least `target` of new values lie at or above the j-th smallest with confidence P(Bin(n, 1 - target) >= j).
    j = int(binom.ppf(1 - confidence, n, 1 - target))
    while j > 0 and binom.sf(j - 1, n, 1 - target) < confidence:
        j -= 1
    if j >= 1:
        return Threshold(float(sorted_values[j - 1]), target, confidence, True, n)
    return Threshold(float(sorted_values[0]), target, confidence, False, n)


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
