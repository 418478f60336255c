"""AUROCs of several scores on the same images, with their variances and covariances (DeLong 1988), over units.

Images of one lesion or patient are one unit: their terms are summed before they are squared (Obuchowski 1997).
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from dermkit.metrics.counts import Bools, Floats, Ints
from dermkit.metrics.placement import outranked


@dataclass(frozen=True, eq=False)
class Areas:
    """values: (M,) AUROCs. covariance: (M, M). units: how many carry it, the fewer of both sides."""

    values: Floats
    covariance: Floats
    units: int


def areas(scores: Floats, positive: Bools, units: Ints) -> Areas:
    """Return the AUROCs of (M, N) scores of the same N images; ties count half.

    units: (N,) what is one observation. Raises `ValueError` without positives or without negatives.
    """
    if positive.all() or not positive.any():
        raise ValueError("an AUROC needs positives and negatives")
    n, m = int(positive.sum()), int((~positive).sum())
    number = np.unique(units, return_inverse=True)[1]
    values, yes_sums, no_sums = np.empty(len(scores)), [], []
    for row, score in enumerate(scores):
        above, below = outranked(score[positive], score[~positive])
        values[row] = above.mean()
        yes_sums.append(_by_unit((above - values[row]) / n, number[positive], number))
        no_sums.append(_by_unit((below - values[row]) / m, number[~positive], number))
    a, b = np.array(yes_sums), np.array(no_sums)
    sides = len(np.unique(number[positive])), len(np.unique(number[~positive]))
    # A unit may have images of both sides; then they vary together.
    cross = (a @ b.T + b @ a.T) * _few(int(number.max()) + 1)
    return Areas(values, a @ a.T * _few(sides[0]) + b @ b.T * _few(sides[1]) + cross, min(sides))


def _by_unit(terms: Floats, number: Ints, all_numbers: Ints) -> Floats:
    return np.asarray(np.bincount(number, weights=terms, minlength=int(all_numbers.max()) + 1), dtype=np.float64)


def _few(count: int) -> float:
    return count / max(count - 1, 1)


def difference(found: Areas, first: int, second: int) -> tuple[float, float, float]:
    """Return the difference of two AUROCs (first - second), its standard error, and the two-sided p of DeLong's test.

    Without variance, equal areas have p = 1 and others 0: the images leave no doubt in the order of either.
    """
    gap = float(found.values[first] - found.values[second])
    of = found.covariance
    variance = float(of[first, first] + of[second, second] - 2 * of[first, second])
    error = math.sqrt(max(variance, 0.0))
    if error <= 1e-12:
        return gap, 0.0, 1.0 if abs(gap) <= 1e-12 else 0.0
    return gap, error, float(2 * norm.sf(abs(gap) / error))
