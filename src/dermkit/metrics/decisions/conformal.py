"""Sets of classes that hold the truth as often as promised, class by class, and predictions that may be withheld.

Split conformal prediction with one quantile per true class (Vovk 2012, "Mondrian"): whatever the net is worth, a new
image of class c is left out of its set with a chance of at most alpha, if it is exchangeable with the calibration
images of class c. One quantile for all classes keeps the promise on average only: a rare class pays for a common one.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import betabinom

from dermkit.metrics.classification.roc import sort_scores
from dermkit.metrics.stats.arrays import Bools, Floats, Ints


@dataclass(frozen=True, eq=False)
class ConformalRule:
    """alpha: promised miss rate. least: (K,) a class is in the set where its probability is at least this.

    n: (K,) calibration images of each class. units: (K,) how many independent ones they are worth at least, lesions or
    patients; None where that was not kept. A class with too few of these for its quantile has 0: it is in every set.
    """

    alpha: float
    min_probability: Floats
    n_images: Ints
    n_groups: Ints | None = None

    @property
    def n_independent(self) -> Ints:
        """The (K,) units of each class, images where they were not kept."""
        return self.n_images if self.n_groups is None else self.n_groups

    def prediction_sets(self, probabilities: Floats) -> Bools:
        """Return (N, K): which classes are in the set of each image; it may be empty."""
        return np.asarray(probabilities >= self.min_probability, dtype=bool)


def fit_conformal(
    y_true: Ints, probabilities: Floats, *, alpha: float = 0.1, groups: Ints | None = None
) -> ConformalRule:
    """Make the rule from images that the net was not fitted to, (N,) and (N, K); raises `ValueError` outside 0..1.

    The score is 1 - probability of the true class; its quantile is the ceil((u + 1)(1 - alpha))-th of u units. groups:
    (N,) which images are one unit; by default each is alone. Many images of few lesions are taken at the same share
    as one of each would be: they know no more of new lesions.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, not {alpha}")
    k = probabilities.shape[1]
    group_labels = np.arange(len(y_true)) if groups is None else groups
    min_probability, n_images, n_groups = np.zeros(k), np.zeros(k, dtype=np.int64), np.zeros(k, dtype=np.int64)
    for class_index in range(k):
        class_probabilities = np.sort(probabilities[y_true == class_index, class_index])[
            ::-1
        ]  # from the surest to the least sure
        n_images[class_index], n_groups[class_index] = (
            len(class_probabilities),
            len(np.unique(group_labels[y_true == class_index])),
        )
        quantile_rank = _quantile_rank(int(n_groups[class_index]), alpha)
        if quantile_rank <= n_groups[class_index]:
            min_probability[class_index] = class_probabilities[
                -(-quantile_rank * len(class_probabilities) // int(n_groups[class_index])) - 1
            ]
    return ConformalRule(alpha, min_probability, n_images, n_groups)


def _quantile_rank(n_groups: int, alpha: float) -> int:
    """Return which of so many, from the surest on, is the quantile; above `n_groups` there are too few."""
    return math.ceil((n_groups + 1) * (1 - alpha) - 1e-12)


def expected_coverage_range(
    n_calibration: int, n_new: int, *, alpha: float, level: float = 0.95
) -> tuple[int, int]:
    """Return how many of `n_new` images a sound rule covers, with that chance; both ends included. Both are
    independent.

    Coverage varies with the calibration images too: Beta-binomial (Angelopoulos and Bates 2021).
    """
    quantile_rank = _quantile_rank(n_calibration, alpha)
    if quantile_rank > n_calibration:
        return n_new, n_new
    distribution = betabinom(n_new, quantile_rank, n_calibration + 1 - quantile_rank)
    return int(distribution.ppf((1 - level) / 2)), int(distribution.isf((1 - level) / 2))


# Withholding ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """Answering only the surest images. Each (T,): share answered, error rate among these, confidence of the last."""

    coverage: Floats
    risk: Floats
    confidence: Floats

    def aurc(self) -> float:
        """Return the mean risk over all coverages, AURC: 0 is best, the error rate itself says nothing is gained."""
        edges = np.append(0.0, self.coverage)
        return float((np.diff(edges) * self.risk).sum())


def risk_coverage(confidence: Floats, is_correct: Bools) -> RiskCoverage:
    """Return the curve of (N,) confidences; images of equal confidence are answered together."""
    sorted_scores = sort_scores(confidence, is_correct)
    n_answered = sorted_scores.run_ends + 1
    n_errors = np.cumsum(~sorted_scores.is_positive)[sorted_scores.run_ends]
    return RiskCoverage(n_answered / len(is_correct), n_errors / n_answered, sorted_scores.thresholds)
