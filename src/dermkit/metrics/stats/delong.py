"""AUROCs of several scores on the same images with their covariance (DeLong 1988), by group (Obuchowski 1997).

Images of one lesion or patient are a group: their terms are summed before they are squared.

Shapes: M scores, N images, G groups.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import expit
from scipy.stats import norm, t

from dermkit.metrics.stats.arrays import Bools, Floats, Ints, sum_by_group
from dermkit.metrics.stats.fold_auroc import hanley_mcneil_variance, placement_values
from dermkit.metrics.stats.intervals import CONFIDENCE_LEVEL

MIN_VARIANCE_RATIO = 0.4
"""Floor of DeLong's variance as a fraction of Hanley and McNeil's (measured: benchmarks/coverage.md)."""


@dataclass(frozen=True, eq=False)
class AurocCovariance:
    """values: (M,) AUROCs. covariance: (M, M). n_groups: the smaller of the numbers of positive and negative groups."""

    values: Floats
    covariance: Floats
    n_groups: int


def auroc_covariance(scores: Floats, is_positive: Bools, groups: Ints) -> AurocCovariance:
    """Return the AUROCs of (M, N) scores of the same N images; ties count half.

    groups: (N,) lesion or patient of each image. Raises `ValueError` without positives or without negatives.
    """
    if is_positive.all() or not is_positive.any():
        raise ValueError("an AUROC needs positives and negatives")
    n_positive, n_negative = int(is_positive.sum()), int((~is_positive).sum())
    group_index = np.unique(groups, return_inverse=True)[1]
    n_groups = int(group_index.max()) + 1
    values, positive_sums, negative_sums = np.empty(len(scores)), [], []
    for row, score in enumerate(scores):
        positive_placements, negative_placements = placement_values(score[is_positive], score[~is_positive])
        values[row] = positive_placements.mean()
        positive_sums.append(
            sum_by_group((positive_placements - values[row]) / n_positive, group_index[is_positive], n_groups)
        )
        negative_sums.append(
            sum_by_group((negative_placements - values[row]) / n_negative, group_index[~is_positive], n_groups)
        )
    a, b = np.array(positive_sums), np.array(negative_sums)
    group_counts = len(np.unique(group_index[is_positive])), len(np.unique(group_index[~is_positive]))
    # A group may have both positives and negatives, which then covary.
    cross_covariance = (a @ b.T + b @ a.T) * _small_sample_factor(n_groups)
    return AurocCovariance(
        values,
        a @ a.T * _small_sample_factor(group_counts[0])
        + b @ b.T * _small_sample_factor(group_counts[1])
        + cross_covariance,
        min(group_counts),
    )


@dataclass(frozen=True)
class DelongVariance:
    """DeLong's variance of one AUROC: the parts of positives and negatives, and the number of groups of each."""

    positive_variance: float
    negative_variance: float
    group_counts: tuple[int, int]

    @property
    def variance(self) -> float:
        """The total variance."""
        return self.positive_variance + self.negative_variance

    @property
    def df(self) -> float:
        """Degrees of freedom of the variance (Welch and Satterthwaite)."""
        components = zip((self.positive_variance, self.negative_variance), self.group_counts, strict=True)
        return self.variance**2 / sum(component**2 / max(n_groups - 1, 1) for component, n_groups in components)


def auroc_interval(score: Floats, is_positive: Bools, groups: Ints) -> tuple[float, float] | None:
    """Return the 95 % interval of the AUROC of (N,) scores; None if the AUROC is 0 or 1.

    DeLong's variance on the logit scale with Student's t. A variance below MIN_VARIANCE_RATIO of Hanley and McNeil's
    (few images, AUROC near 1) is raised to that floor, times the design effect of the groups.
    """
    value, delong_variance = _delong_variance(score, is_positive, groups)
    if value in (0.0, 1.0) or delong_variance.variance <= 0:
        return None
    ungrouped_variance = _delong_variance(score, is_positive, np.arange(len(score)))[1].variance
    min_variance = MIN_VARIANCE_RATIO * hanley_mcneil_variance(
        value, int(is_positive.sum()), int((~is_positive).sum())
    )
    variance = max(
        delong_variance.variance,
        min_variance * max(1.0, delong_variance.variance / ungrouped_variance if ungrouped_variance > 0 else 1.0),
    )
    half_width = (
        float(t.isf((1 - CONFIDENCE_LEVEL) / 2, delong_variance.df)) * math.sqrt(variance) / (value * (1 - value))
    )
    logit = math.log(value / (1 - value))
    return float(expit(logit - half_width)), float(expit(logit + half_width))


def _delong_variance(score: Floats, is_positive: Bools, groups: Ints) -> tuple[float, DelongVariance]:
    positive_placements, negative_placements = placement_values(score[is_positive], score[~is_positive])
    group_index = np.unique(groups, return_inverse=True)[1]
    n_groups = int(group_index.max()) + 1
    value, positive_groups, negative_groups = (
        float(positive_placements.mean()),
        group_index[is_positive],
        group_index[~is_positive],
    )
    group_sums = (
        sum_by_group((positive_placements - value) / len(positive_placements), positive_groups, n_groups),
        sum_by_group((negative_placements - value) / len(negative_placements), negative_groups, n_groups),
    )
    group_counts = len(np.unique(positive_groups)), len(np.unique(negative_groups))
    components = [
        float(component @ component) * _small_sample_factor(n_side_groups)
        for component, n_side_groups in zip(group_sums, group_counts, strict=True)
    ]
    cross_term = (
        2 * float(group_sums[0] @ group_sums[1]) * _small_sample_factor(n_groups)
    )  # groups with both positives and negatives
    positive_fraction = components[0] / max(sum(components), 1e-300)
    return value, DelongVariance(
        max(0.0, components[0] + cross_term * positive_fraction),
        max(0.0, components[1] + cross_term * (1 - positive_fraction)),
        group_counts,
    )


def _small_sample_factor(n_groups: int) -> float:
    return n_groups / max(n_groups - 1, 1)


def delong_test(aurocs: AurocCovariance, first: int, second: int) -> tuple[float, float, float]:
    """Return the difference of two AUROCs (first - second), its standard error, and the two-sided p of DeLong's test.

    Without variance, equal AUROCs have p = 1 and different ones p = 0.
    """
    difference = float(aurocs.values[first] - aurocs.values[second])
    covariance = aurocs.covariance
    variance = float(covariance[first, first] + covariance[second, second] - 2 * covariance[first, second])
    return normal_test(difference, math.sqrt(max(variance, 0.0)))


def normal_test(difference: float, standard_error: float) -> tuple[float, float, float]:
    """Return a difference, its standard error (0 where it is rounding), and the two-sided p as `delong_test` does."""
    if standard_error <= 1e-12:
        return difference, 0.0, 1.0 if abs(difference) <= 1e-12 else 0.0
    return difference, standard_error, float(2 * norm.sf(abs(difference) / standard_error))
