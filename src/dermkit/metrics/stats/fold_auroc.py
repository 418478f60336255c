"""AUROC of scores that come from several folds, with an interval that holds for few, clustered or perfect scores.

Scores of two folds come from two models and are never compared with each other: pooling them would push an AUROC
without any signal below one half, since a fold with more positives is scored by a model that saw fewer.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm, rankdata

from dermkit.metrics.stats.arrays import Bools, Floats, Ints, sum_by_group

SEARCH_OFFSET = 1e-9
"""How close to the value a bound is looked for; at an AUROC of 1 the value itself solves the equation too."""


@dataclass(frozen=True, eq=False)
class FoldAuroc:
    """An AUROC within folds.

    auroc: weighted by the pairs of each fold; NaN where no fold holds both sides. outranks: (N,) share of the other
    side of its fold that an image stands on the right side of (ties count half), NaN where there is none.
    variance: DeLong's, of sums over units. positives, negatives: images in the folds that count.
    """

    auroc: float
    placement_values: Floats
    variance: float
    n_positive: int
    n_negative: int

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the two-sided interval; `level` close to 1 for a bound that holds for many figures at once."""
        z = float(norm.isf((1 - level) / 2))
        return self._bound(z, 0.0), self._bound(z, 1.0)

    def _bound(self, z: float, limit: float) -> float:
        """Return the farthest AUROC towards `limit` that the data do not contradict.

        A score interval (Newcombe 2006, Statistics in Medicine 25:559): Hanley and McNeil's variance at the bound,
        not at the estimate, so that a perfect AUROC of 20 images keeps a width. Times what DeLong's variance is
        larger, which is what lesions with several photographs add.
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
    """Return the AUROC of (N,) scores within folds. units: what is one observation; none stands in two folds."""
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
        return FoldAuroc(math.nan, placements, math.nan, n_positive, n_negative)
    auroc = float(np.nansum(placements[is_positive] * pair_weights[is_positive]) / n_pairs)
    weight = pair_weights / n_pairs
    deviations = np.where(np.isnan(placements), 0.0, placements - auroc) * weight
    return FoldAuroc(
        auroc, placements, _clustered_variance(deviations, is_positive, groups), n_positive, n_negative
    )


def placement_values(positive_scores: Floats, negative_scores: Floats) -> tuple[Floats, Floats]:
    """Return the share of negatives below each positive, and of positives above each negative; a tie is a half."""
    ranks = rankdata(np.concatenate([positive_scores, negative_scores]))
    negatives_below = (ranks[: len(positive_scores)] - rankdata(positive_scores)) / len(negative_scores)
    positives_above = 1 - (ranks[len(positive_scores) :] - rankdata(negative_scores)) / len(positive_scores)
    return negatives_below, positives_above


def _clustered_variance(deviations: Floats, is_positive: Bools, groups: Ints) -> float:
    """Return the variance of a sum over units (Obuchowski 1997, Biometrics 53:567), G / (G - 1) for few units."""
    group_index = np.unique(groups, return_inverse=True)[1]
    group_sums = sum_by_group(deviations, group_index, int(group_index.max()) + 1)
    # The side with fewer units carries nearly all of the variance: its count makes the correction.
    n_groups = min(len(np.unique(group_index[is_positive])), len(np.unique(group_index[~is_positive])))
    return float((group_sums**2).sum() * n_groups / max(n_groups - 1, 1))
