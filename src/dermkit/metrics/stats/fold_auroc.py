"""AUROC of scores that come from several folds, with an interval that holds for few, clustered or perfect scores.

Scores of two folds come from two models and are never compared with each other: pooling them would push an AUROC
without any signal below one half, since a fold with more positives is scored by a model that saw fewer.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm, rankdata

from dermkit.metrics.stats.arrays import Bools, Floats, Ints

NEAR = 1e-9
"""How close to the value a bound is looked for; at an AUROC of 1 the value itself solves the equation too."""


@dataclass(frozen=True, eq=False)
class Placed:
    """An AUROC within folds.

    auroc: weighted by the pairs of each fold; NaN where no fold holds both sides. outranks: (N,) share of the other
    side of its fold that an image stands on the right side of (ties count half), NaN where there is none.
    variance: DeLong's, of sums over units. positives, negatives: images in the folds that count.
    """

    auroc: float
    outranks: Floats
    variance: float
    positives: int
    negatives: int

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the two-sided interval; `level` close to 1 for a bound that holds for many figures at once."""
        z = float(norm.isf((1 - level) / 2))
        return self._bound(z, 0.0), self._bound(z, 1.0)

    def _bound(self, z: float, end: float) -> float:
        """Return the farthest AUROC towards `end` that the data do not contradict.

        A score interval (Newcombe 2006, Statistics in Medicine 25:559): Hanley and McNeil's variance at the bound,
        not at the estimate, so that a perfect AUROC of 20 images keeps a width. Times what DeLong's variance is
        larger, which is what lesions with several photographs add.
        """
        design = max(1.0, self.variance / max(self._variance_at(self.auroc), NEAR))

        def gap(theta: float) -> float:
            return abs(self.auroc - theta) - z * math.sqrt(design * max(self._variance_at(theta), 0.0))

        near = self.auroc - NEAR if end < self.auroc else self.auroc + NEAR
        if not 0 <= near <= 1 or gap(near) >= 0:
            return self.auroc
        return float(brentq(gap, near, end)) if gap(end) > 0 else end

    def _variance_at(self, theta: float) -> float:
        return hanley(theta, self.positives, self.negatives)


def hanley(value: float, positives: int, negatives: int) -> float:
    """Return Hanley and McNeil's variance of an AUROC of `value` (Radiology 1982, 143:29)."""
    first, second = value / (2 - value), 2 * value**2 / (1 + value)
    spread = value * (1 - value) + (positives - 1) * (first - value**2) + (negatives - 1) * (second - value**2)
    return spread / (positives * negatives)


def placed(scores: Floats, positive: Bools, *, units: Ints, fold: Ints) -> Placed:
    """Return the AUROC of (N,) scores within folds. units: what is one observation; none stands in two folds."""
    outranks = np.full(len(scores), np.nan)
    share = np.zeros(len(scores))
    n = m = 0
    for number in np.unique(fold):
        rows = np.flatnonzero(fold == number)
        yes, no = rows[positive[rows]], rows[~positive[rows]]
        if not (len(yes) and len(no)):
            continue
        outranks[yes], outranks[no] = outranked(scores[yes], scores[no])
        share[yes], share[no] = len(no), len(yes)
        n, m = n + len(yes), m + len(no)
    pairs = share[positive].sum()
    if not pairs:
        return Placed(math.nan, outranks, math.nan, n, m)
    value = float(np.nansum(outranks[positive] * share[positive]) / pairs)
    weight = share / pairs
    away = np.where(np.isnan(outranks), 0.0, outranks - value) * weight
    return Placed(value, outranks, _clustered(away, positive, units), n, m)


def outranked(yes: Floats, no: Floats) -> tuple[Floats, Floats]:
    """Return the share of negatives below each positive, and of positives above each negative; a tie is a half."""
    ranks = rankdata(np.concatenate([yes, no]))
    below = (ranks[: len(yes)] - rankdata(yes)) / len(no)
    above = 1 - (ranks[len(yes) :] - rankdata(no)) / len(yes)
    return below, above


def _clustered(away: Floats, positive: Bools, units: Ints) -> float:
    """Return the variance of a sum over units (Obuchowski 1997, Biometrics 53:567), G / (G - 1) for few units."""
    number = np.unique(units, return_inverse=True)[1]
    sums = np.bincount(number, weights=away)
    # The side with fewer units carries nearly all of the variance: its count makes the correction.
    least = min(len(np.unique(number[positive])), len(np.unique(number[~positive])))
    return float((sums**2).sum() * least / max(least - 1, 1))
