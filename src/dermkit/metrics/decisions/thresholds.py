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
    wish: float
    confidence: float
    kept: bool
    n: int


def for_sensitivity(
    score: Floats, positive: Bools, units: Ints, *, wish: float, confidence: float = 0.95
) -> Threshold:
    """Return the highest threshold that finds `wish` of new positives with that confidence.

    score, positive, units: (N,). Of a unit's positive images the least sure stands for it, so that the promise holds
    for every image of it. Raises `ValueError` without positives or for a wish or confidence outside 0..1.
    """
    return _controlled(_least_of(score[positive], units[positive]), wish, confidence)


def for_specificity(
    score: Floats, positive: Bools, units: Ints, *, wish: float, confidence: float = 0.95
) -> Threshold:
    """Return the lowest threshold that clears `wish` of new negatives with that confidence (score below it)."""
    found = _controlled(_least_of(-score[~positive], units[~positive]), wish, confidence)
    return replace(found, value=float(np.nextafter(-found.value, math.inf)))


def _least_of(values: Floats, units: Ints) -> Floats:
    number = np.unique(units, return_inverse=True)[1]
    least = np.full(int(number.max()) + 1 if len(number) else 0, np.inf)
    np.minimum.at(least, number, values)
    return least


def _controlled(values: Floats, wish: float, confidence: float) -> Threshold:
    """Take the order statistic that is a lower tolerance limit; the plain quantile where there is none."""
    n = len(values)
    if not n or not 0 < wish < 1 or not 0 < confidence < 1:
        raise ValueError(f"needs images of the side and 0 < wish, confidence < 1, not {n}, {wish}, {confidence}")
    ordered = np.sort(values)
    # The j-th smallest is passed by `wish` of new values with confidence P(Bin(n, 1 - wish) >= j).
    j = int(binom.ppf(1 - confidence, n, 1 - wish))
    while j > 0 and binom.sf(j - 1, n, 1 - wish) < confidence:
        j -= 1
    if j >= 1:
        return Threshold(float(ordered[j - 1]), wish, confidence, True, n)
    return Threshold(float(ordered[0]), wish, confidence, False, n)


def fewest_for(wish: float, confidence: float = 0.95) -> int:
    """Return how many images of the side a promise needs at the least: 59 for 95 % with 95 % confidence."""
    return math.ceil(math.log(1 - confidence) / math.log(wish) - 1e-9)


def predictive_values(
    sensitivity: float, specificity: float, prevalence: float
) -> tuple[float | None, float | None]:
    """Return PPV and NPV where so many of the people have the disease; None where nobody is called so."""
    called = sensitivity * prevalence + (1 - specificity) * (1 - prevalence)
    cleared = (1 - sensitivity) * prevalence + specificity * (1 - prevalence)
    ppv = sensitivity * prevalence / called if called > 0 else None
    npv = specificity * (1 - prevalence) / cleared if cleared > 0 else None
    return ppv, npv


@dataclass(frozen=True)
class PerThousand:
    """What an operating point does to 1,000 people. biopsies_per_found: None where nothing is found."""

    found: float
    missed: float
    false_alarms: float
    cleared: float
    biopsies_per_found: float | None


def per_thousand(sensitivity: float, specificity: float, prevalence: float) -> PerThousand:
    """Return expected counts per 1,000 people of whom `prevalence` have the disease."""
    ill, well = 1000 * prevalence, 1000 * (1 - prevalence)
    found, alarms = ill * sensitivity, well * (1 - specificity)
    needed = (found + alarms) / found if found > 0 else None
    return PerThousand(found, ill - found, alarms, well - alarms, needed)
