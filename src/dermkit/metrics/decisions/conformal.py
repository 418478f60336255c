"""Sets of classes that hold the truth as often as promised, class by class, and predictions that may be withheld.

Split conformal prediction with one quantile per true class (Vovk 2012, "Mondrian"): whatever the net is worth, a new
image of class c is left out of its set with a chance of at most alpha, if it is exchangeable with the calibration
images of class c. One quantile for all classes keeps the promise on average only: a rare class pays for a common one.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import betabinom

from dermkit.metrics.classification.roc import rank
from dermkit.metrics.stats.arrays import Bools, Floats, Ints


@dataclass(frozen=True, eq=False)
class ConformalRule:
    """alpha: promised miss rate. least: (K,) a class is in the set where its probability is at least this.

    n: (K,) calibration images of each class. units: (K,) how many independent ones they are worth at least, lesions or
    patients; None where that was not kept. A class with too few of these for its quantile has 0: it is in every set.
    """

    alpha: float
    least: Floats
    n: Ints
    units: Ints | None = None

    @property
    def independent(self) -> Ints:
        """The (K,) units of each class, images where they were not kept."""
        return self.n if self.units is None else self.units

    def sets(self, probabilities: Floats) -> Bools:
        """Return (N, K): which classes are in the set of each image; it may be empty."""
        return np.asarray(probabilities >= self.least, dtype=bool)


def calibrate(
    true: Ints, probabilities: Floats, *, alpha: float = 0.1, groups: Ints | None = None
) -> ConformalRule:
    """Make the rule from images that the net was not fitted to, (N,) and (N, K); raises `ValueError` outside 0..1.

    The score is 1 - probability of the true class; its quantile is the ceil((u + 1)(1 - alpha))-th of u units. groups:
    (N,) which images are one unit; by default each is alone. Many images of few lesions are taken at the same share
    as one of each would be: they know no more of new lesions.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, not {alpha}")
    k = probabilities.shape[1]
    of = np.arange(len(true)) if groups is None else groups
    least, n, units = np.zeros(k), np.zeros(k, dtype=np.int64), np.zeros(k, dtype=np.int64)
    for name in range(k):
        own = np.sort(probabilities[true == name, name])[::-1]  # from the surest to the least sure
        n[name], units[name] = len(own), len(np.unique(of[true == name]))
        place = _place(int(units[name]), alpha)
        if place <= units[name]:
            least[name] = own[-(-place * len(own) // int(units[name])) - 1]
    return ConformalRule(alpha, least, n, units)


def _place(units: int, alpha: float) -> int:
    """Return which of so many, from the surest on, is the quantile; above `units` there are too few."""
    return math.ceil((units + 1) * (1 - alpha) - 1e-12)


def fewest_for(alpha: float) -> int:
    """Return how many independent calibration images a class needs to be left out of any set at all."""
    return math.ceil(1 / alpha - 1 - 1e-9)


@dataclass(frozen=True, eq=False)
class Coverage:
    """How a rule does on new images. hits, n: (K,) per true class. sizes: (K + 1,) sets of 0, 1, ... K classes."""

    hits: Ints
    n: Ints
    sizes: Ints


def coverage(rule: ConformalRule, true: Ints, probabilities: Floats) -> Coverage:
    """Count how often the set holds the true class, class by class, and how large the sets are."""
    sets = rule.sets(probabilities)
    k = probabilities.shape[1]
    held = sets[np.arange(len(true)), true]
    return Coverage(
        hits=np.bincount(true[held], minlength=k).astype(np.int64),
        n=np.bincount(true, minlength=k).astype(np.int64),
        sizes=np.bincount(sets.sum(axis=1), minlength=k + 1).astype(np.int64),
    )


def expected_range(calibration: int, new: int, *, alpha: float, chance: float = 0.95) -> tuple[int, int]:
    """Return how many of `new` images a sound rule covers, with that chance; both ends included. Both are independent.

    Coverage varies with the calibration images too: Beta-binomial (Angelopoulos and Bates 2021).
    """
    place = _place(calibration, alpha)
    if place > calibration:
        return new, new
    law = betabinom(new, place, calibration + 1 - place)
    return int(law.ppf((1 - chance) / 2)), int(law.isf((1 - chance) / 2))


# Withholding ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """Answering only the surest images. Each (T,): share answered, error rate among these, confidence of the last."""

    coverage: Floats
    risk: Floats
    confidence: Floats

    def area(self) -> float:
        """Return the mean risk over all coverages, AURC: 0 is best, the error rate itself says nothing is gained."""
        edges = np.append(0.0, self.coverage)
        return float((np.diff(edges) * self.risk).sum())


def risk_coverage(confidence: Floats, right: Bools) -> RiskCoverage:
    """Return the curve of (N,) confidences; images of equal confidence are answered together."""
    order = rank(confidence, right)
    answered = order.ends + 1
    wrong = np.cumsum(~order.positive)[order.ends]
    return RiskCoverage(answered / len(right), wrong / answered, order.thresholds)
