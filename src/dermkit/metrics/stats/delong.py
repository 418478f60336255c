"""AUROCs of several scores on the same images, with their variances and covariances (DeLong 1988), over units.

Images of one lesion or patient are one unit: their terms are summed before they are squared (Obuchowski 1997).
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import expit
from scipy.stats import norm, t

from dermkit.metrics.stats.arrays import Bools, Floats, Ints
from dermkit.metrics.stats.fold_auroc import hanley, outranked

LEVEL = 0.95
LEAST_VARIANCE = 0.4
"""Share of Hanley and McNeil's variance below which DeLong's is not believed (benchmarks/coverage.md)."""


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


@dataclass(frozen=True)
class Spread:
    """DeLong's variance of one AUROC in its two parts, of so many units each."""

    positive: float
    negative: float
    sides: tuple[int, int]

    @property
    def variance(self) -> float:
        """The whole variance; units with images of both sides count on both."""
        return self.positive + self.negative

    @property
    def df(self) -> float:
        """Degrees of freedom of the variance (Welch and Satterthwaite)."""
        parts = zip((self.positive, self.negative), self.sides, strict=True)
        return self.variance**2 / sum(part**2 / max(count - 1, 1) for part, count in parts)


def auroc_interval(score: Floats, positive: Bools, units: Ints) -> tuple[float, float] | None:
    """Return the 95 % interval of the AUROC of (N,) scores; None where all positives or no positive outrank the rest.

    DeLong's variance on the logit, with Student's t for few units. A variance that came out by chance far too small,
    as it does for few images near 1, is not believed below a part of Hanley and McNeil's, times what groups add.
    """
    value, spread = _spread(score, positive, units)
    if value in (0.0, 1.0) or spread.variance <= 0:
        return None
    alone = _spread(score, positive, np.arange(len(score)))[1].variance
    least = LEAST_VARIANCE * hanley(value, int(positive.sum()), int((~positive).sum()))
    variance = max(spread.variance, least * max(1.0, spread.variance / alone if alone > 0 else 1.0))
    half = float(t.isf((1 - LEVEL) / 2, spread.df)) * math.sqrt(variance) / (value * (1 - value))
    middle = math.log(value / (1 - value))
    return float(expit(middle - half)), float(expit(middle + half))


def _spread(score: Floats, positive: Bools, units: Ints) -> tuple[float, Spread]:
    above, below = outranked(score[positive], score[~positive])
    number = np.unique(units, return_inverse=True)[1]
    value, yes, no = float(above.mean()), number[positive], number[~positive]
    sums = _by_unit((above - value) / len(above), yes, number), _by_unit((below - value) / len(below), no, number)
    sides = len(np.unique(yes)), len(np.unique(no))
    parts = [float(part @ part) * _few(count) for part, count in zip(sums, sides, strict=True)]
    both = 2 * float(sums[0] @ sums[1]) * _few(int(number.max()) + 1)  # a unit with images of both sides
    share = parts[0] / max(sum(parts), 1e-300)
    return value, Spread(max(0.0, parts[0] + both * share), max(0.0, parts[1] + both * (1 - share)), sides)


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
