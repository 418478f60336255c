"""A threshold for a wish ("find 95 %"), with a promise: on new images the wish is missed no more often than stated.

Taking the threshold at which 95 % of the validation positives are found misses 95 % on new images in about half of
all cases. Here the threshold is low enough that the wish is kept with a stated confidence, over what validation
images happened to be drawn: a tolerance limit of order statistics (Wilks 1941), which no distribution is assumed for;
the same as learn-then-test with an exact binomial test on a fixed sequence of thresholds.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import binom

from dermkit.metrics.stats.arrays import Bools, Floats, Ints


@dataclass(frozen=True)
class Threshold:
    """An operating point: score >= value is positive.

    wish: the rate to keep. confidence: that it is kept. kept: False where the images are too few for the promise; the
    value is then the plain one (or lowest), and promises nothing. n: independent positives (for a specificity:
    negatives) it rests on.
    """

    value: float
    target: float
    confidence: float
    guaranteed: bool
    n: int


def for_sensitivity(
    score: Floats, is_positive: Bools, groups: Ints, *, target: float, confidence: float = 0.95
) -> Threshold:
    """Return the highest threshold that finds `target` of new positives with that confidence.

    score, positive, units: (N,). Of a unit's positive images the least sure stands for it, so that the promise holds
    for every image of it. Raises `ValueError` without positives or for a wish or confidence outside 0..1.
    """
    return _tolerance_limit(_group_minima(score[is_positive], groups[is_positive]), target, confidence)


def for_specificity(
    score: Floats, is_positive: Bools, groups: Ints, *, target: float, confidence: float = 0.95
) -> Threshold:
    """Return the lowest threshold that clears `target` of new negatives with that confidence (score below it)."""
    threshold = _tolerance_limit(_group_minima(-score[~is_positive], groups[~is_positive]), target, confidence)
    return replace(threshold, value=float(np.nextafter(-threshold.value, math.inf)))


def _group_minima(values: Floats, groups: Ints) -> Floats:
    group_index = np.unique(groups, return_inverse=True)[1]
    minima = np.full(int(group_index.max()) + 1 if len(group_index) else 0, np.inf)
    np.minimum.at(minima, group_index, values)
    return minima


def _tolerance_limit(values: Floats, target: float, confidence: float) -> Threshold:
    """Take the order statistic that is a lower tolerance limit; the plain quantile where there is none."""
    n = len(values)
    if not n or not 0 < target < 1 or not 0 < confidence < 1:
        raise ValueError(f"needs images of the side and 0 < wish, confidence < 1, not {n}, {target}, {confidence}")
    sorted_values = np.sort(values)
    # The j-th smallest is passed by `target` of new values with confidence P(Bin(n, 1 - wish) >= j).
    j = int(binom.ppf(1 - confidence, n, 1 - target))
    while j > 0 and binom.sf(j - 1, n, 1 - target) < confidence:
        j -= 1
    if j >= 1:
        return Threshold(float(sorted_values[j - 1]), target, confidence, True, n)
    return Threshold(float(sorted_values[0]), target, confidence, False, n)


def predictive_values(
    sensitivity: float, specificity: float, prevalence: float
) -> tuple[float | None, float | None]:
    """Return PPV and NPV where so many of the people have the disease; None where nobody is called so."""
    positive_fraction = sensitivity * prevalence + (1 - specificity) * (1 - prevalence)
    negative_fraction = (1 - sensitivity) * prevalence + specificity * (1 - prevalence)
    ppv = sensitivity * prevalence / positive_fraction if positive_fraction > 0 else None
    npv = specificity * (1 - prevalence) / negative_fraction if negative_fraction > 0 else None
    return ppv, npv


@dataclass(frozen=True)
class CountsPerThousand:
    """What an operating point does to 1,000 people. biopsies_per_found: None where nothing is found."""

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
