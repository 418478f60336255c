"""AUROC within cross-validation folds, with a score interval valid for few, clustered or perfectly ranked images.

Scores of different folds come from different models and are not compared: pooling them biases an AUROC without any
signal below one half, since a fold with more positives is scored by a model trained on fewer.

Shapes: N images.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm, rankdata

from dermkit.metrics.stats.arrays import Bools, Floats, Ints, sum_by_group

SEARCH_OFFSET = 1e-9
"""Distance from the value at which the search for a bound starts; at an AUROC of 1 the value itself is a root."""


@dataclass(frozen=True, eq=False)
class FoldAuroc:
    """An AUROC within folds.

    auroc: weighted by the pairs of each fold; NaN if no fold has both classes. placement_values: (N,) fraction of the
    opposite class in its fold against which an image is ranked correctly (ties half), NaN without any. variance:
    DeLong's, clustered by group. n_positive, n_negative: images in the folds that count. deviations: (N,) what each
    image adds to the AUROC, less its mean.
    """

    auroc: float
    placement_values: Floats
    variance: float
    n_positive: int
    n_negative: int
    deviations: Floats = field(default_factory=lambda: np.empty(0))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the two-sided interval; a `level` near 1 gives simultaneous bounds for many metrics."""
        z = float(norm.isf((1 - level) / 2))
        return self._bound(z, 0.0), self._bound(z, 1.0)

    def _bound(self, z: float, limit: float) -> float:
        """Return the bound towards `limit` of the score interval (Newcombe 2006, Statistics in Medicine 25:559).

        Hanley and McNeil's variance is evaluated at the bound, not at the estimate, so that a perfect AUROC of 20
        images keeps a width; it is multiplied by the design effect of the groups (DeLong's variance over Hanley and
        McNeil's).
        """
        design_effect = max(1.0, self.variance / max(self._variance_at(self.auroc), SEARCH_OFFSET))

        def gap(theta: float) -> float:
            return abs(self.auroc - theta) - z * math.sqrt(design_effect * max(self._variance_at(theta), 0.0))

        start = self.auroc - SEARCH_OFFSET if limit < self.auroc else self.auroc + SEARCH_OFFSET
        if not 0 <= start <= 1 or gap(start) >= 0:
            return self.auroc
        return float(brentq(gap, start, limit)) if gap(limit) > 0 else limit

    def _variance_at(self, theta: float) -> float:
        return hanley_mcneil_variance(theta, self.n_positive, self.n_negative)


def hanley_mcneil_variance(auroc: float, n_positive: int, n_negative: int) -> float:
    """Return Hanley and McNeil's variance of an AUROC of `auroc` (Radiology 1982, 143:29)."""
    q1, q2 = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    numerator = auroc * (1 - auroc) + (n_positive - 1) * (q1 - auroc**2) + (n_negative - 1) * (q2 - auroc**2)
    return numerator / (n_positive * n_negative)


def fold_auroc(scores: Floats, is_positive: Bools, *, groups: Ints, folds: Ints) -> FoldAuroc:
    """Return the AUROC of (N,) scores within folds. groups: (N,) lesion or patient, none of them in two folds."""
    placements = np.full(len(scores), np.nan)
    pair_weights = np.zeros(len(scores))
    n_positive = n_negative = 0
    for fold_id in np.unique(folds):
        rows = np.flatnonzero(folds == fold_id)
        positive_rows, negative_rows = rows[is_positive[rows]], rows[~is_positive[rows]]
        if not (len(positive_rows) and len(negative_rows)):
            continue
        placements[positive_rows], placements[negative_rows] = placement_values(
            scores[positive_rows], scores[negative_rows]
        )
        pair_weights[positive_rows], pair_weights[negative_rows] = len(negative_rows), len(positive_rows)
        n_positive, n_negative = n_positive + len(positive_rows), n_negative + len(negative_rows)
    n_pairs = pair_weights[is_positive].sum()
    if not n_pairs:
        return FoldAuroc(math.nan, placements, math.nan, n_positive, n_negative, np.zeros(len(scores)))
    auroc = float(np.nansum(placements[is_positive] * pair_weights[is_positive]) / n_pairs)
    weight = pair_weights / n_pairs
    deviations = np.where(np.isnan(placements), 0.0, placements - auroc) * weight
    variance = _clustered_variance(deviations, is_positive, groups)
    return FoldAuroc(auroc, placements, variance, n_positive, n_negative, deviations)


def auroc_difference(first: FoldAuroc, second: FoldAuroc, is_positive: Bools, groups: Ints) -> tuple[float, float]:
    """Return the difference (first - second) of two AUROCs of the same (N,) images, each within its own folds, and the
    standard error, clustered by group: DeLong's where there is one fold.
    """
    variance = _clustered_variance(first.deviations - second.deviations, is_positive, groups)
    return first.auroc - second.auroc, math.sqrt(variance)


def placement_values(positive_scores: Floats, negative_scores: Floats) -> tuple[Floats, Floats]:
    """Return the fraction of negatives below each positive, and of positives above each negative; ties half."""
    ranks = rankdata(np.concatenate([positive_scores, negative_scores]))
    negatives_below = (ranks[: len(positive_scores)] - rankdata(positive_scores)) / len(negative_scores)
    positives_above = 1 - (ranks[len(positive_scores) :] - rankdata(negative_scores)) / len(positive_scores)
    return negatives_below, positives_above


def _clustered_variance(deviations: Floats, is_positive: Bools, groups: Ints) -> float:
    """Return the clustered variance of a sum (Obuchowski 1997, Biometrics 53:567), times G / (G - 1)."""
    group_index = np.unique(groups, return_inverse=True)[1]
    group_sums = sum_by_group(deviations, group_index, int(group_index.max()) + 1)
    # The class with fewer groups contributes nearly all of the variance, so its count is G.
    n_groups = min(len(np.unique(group_index[is_positive])), len(np.unique(group_index[~is_positive])))
    return float((group_sums**2).sum() * n_groups / max(n_groups - 1, 1))
