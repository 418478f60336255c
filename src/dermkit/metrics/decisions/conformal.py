"""Class-conditional (Mondrian) split conformal prediction sets, and risk-coverage curves for selective prediction.

One quantile per true class (Vovk 2012): however good or bad the net is, the set of a new image of class c lacks c with
a probability of at most alpha, if the image is exchangeable with the calibration images of class c. A single quantile
for all classes guarantees coverage only on average, and rare classes are then covered too seldom.

Shapes: N images, K classes, T distinct confidences.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dermkit.metrics.classification.roc import sort_scores
from dermkit.metrics.stats.arrays import Bools, Floats, Ints, count, number_between


@dataclass(frozen=True, eq=False)
class ConformalRule:
    """The thresholds of prediction sets: class k is in the set of an image if its probability is >= min_probability[k].

    alpha: guaranteed miss rate. min_probability: (K,); 0 for a class with too few groups, which is then in every set.
    n_images: (K,) calibration images per class. n_groups: (K,) independent groups among them, None in older files.
    """

    alpha: float
    min_probability: Floats
    n_images: Ints
    n_groups: Ints | None = None

    @property
    def n_independent(self) -> Ints:
        """The (K,) groups of each class; its images where groups were not recorded."""
        return self.n_images if self.n_groups is None else self.n_groups

    def prediction_sets(self, probabilities: Floats) -> Bools:
        """Return which classes are in the set of each image, (N, K); a set may be empty."""
        return np.asarray(probabilities >= self.min_probability, dtype=bool)

    def as_dict(self) -> dict[str, Any]:
        """Return plain numbers, as model.json holds them."""
        rule_json = {
            "alpha": self.alpha,
            "min_probability": self.min_probability.tolist(),
            "n_images": self.n_images.tolist(),
        }
        return rule_json if self.n_groups is None else {**rule_json, "n_groups": self.n_groups.tolist()}

    @classmethod
    def from_dict(cls, rule_json: Mapping[str, Any]) -> "ConformalRule":
        """Return the rule that `as_dict` wrote; older files hold no groups, and their images count as independent."""
        group_counts = rule_json.get("n_groups")
        n_images = np.array([count(n) for n in rule_json["n_images"]], dtype=np.int64)
        n_groups = None if group_counts is None else np.array([count(n) for n in group_counts], dtype=np.int64)
        if n_groups is not None and n_groups.shape != n_images.shape:
            raise ValueError(f"{len(n_groups)} classes have groups, {len(n_images)} have images")
        min_probability = np.array(
            [number_between(p, 0, 1) for p in rule_json["min_probability"]], dtype=np.float64
        )
        return cls(number_between(rule_json["alpha"], 0, 1), min_probability, n_images, n_groups)


def fit_conformal(
    y_true: Ints, probabilities: Floats, *, alpha: float = 0.1, groups: Ints | None = None
) -> ConformalRule:
    """Fit the thresholds on images that the net was not trained on.

    y_true: (N,). probabilities: (N, K). groups: (N,) lesion or patient of each image, by default each image its own.
    The score is 1 - probability of the true class; its quantile is the ceil((g + 1)(1 - alpha))-th of g groups, mapped
    to the same fraction of images: many images of few lesions say no more about new lesions. Raises `ValueError` for
    an alpha not between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, not {alpha}")
    k = probabilities.shape[1]
    group_labels = np.arange(len(y_true)) if groups is None else groups
    min_probability, n_images, n_groups = np.zeros(k), np.zeros(k, dtype=np.int64), np.zeros(k, dtype=np.int64)
    for class_index in range(k):
        class_probabilities = np.sort(probabilities[y_true == class_index, class_index])[::-1]  # descending
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
    """Return the rank of the conformal quantile, 1 = highest probability; above `n_groups` there are too few groups."""
    return math.ceil((n_groups + 1) * (1 - alpha) - 1e-12)


def expected_coverage_range(
    n_calibration: int, n_new: int, *, alpha: float, level: float = 0.95
) -> tuple[int, int]:
    """Return how many of `n_new` independent images a valid rule covers with probability `level`, both ends included.

    n_calibration: independent calibration images, whose draw counts too: the distribution is Beta-binomial
    (Angelopoulos and Bates 2021).
    """
    quantile_rank = _quantile_rank(n_calibration, alpha)
    if quantile_rank > n_calibration:
        return n_new, n_new
    distribution = _coverage_distribution(n_calibration, n_new, quantile_rank)
    return int(distribution.ppf((1 - level) / 2)), int(distribution.isf((1 - level) / 2))


def _coverage_distribution(n_calibration: int, n_new: int, quantile_rank: int) -> Any:
    """Return how many of `n_new` images a valid rule covers, as a distribution of scipy."""
    from scipy.stats import (
        betabinom,
    )  # here: scipy.stats takes a second to import, and a prediction needs none of it

    return betabinom(n_new, quantile_rank, n_calibration + 1 - quantile_rank)


def expected_coverage_range_of_rules(
    counts: Sequence[tuple[int, int]], *, alpha: float, level: float = 0.95
) -> tuple[int, int]:
    """Return the same of several rules, each on images of its own. counts: (n_calibration, n_new) of each rule."""
    if len(counts) == 1:
        return expected_coverage_range(*counts[0], alpha=alpha, level=level)
    probabilities, n_always = np.ones(1), 0
    for n_calibration, n_new in counts:
        quantile_rank = _quantile_rank(n_calibration, alpha)
        if quantile_rank > n_calibration:
            n_always += n_new
            continue
        distribution = _coverage_distribution(n_calibration, n_new, quantile_rank)
        probabilities = np.convolve(probabilities, distribution.pmf(np.arange(n_new + 1)))
    cumulative = np.cumsum(probabilities)
    low = int(np.searchsorted(cumulative, (1 - level) / 2))
    high = int(np.searchsorted(cumulative, 1 - (1 - level) / 2))
    return n_always + low, n_always + min(high, len(cumulative) - 1)


# Selective prediction ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """Error rate when only the most confident images are answered.

    coverage: (T,) fraction of images answered. risk: (T,) error rate among them. confidence: (T,) threshold.
    """

    coverage: Floats
    risk: Floats
    confidence: Floats

    def aurc(self) -> float:
        """Return the area under the risk-coverage curve; 0 is best, a value near the error rate means no gain."""
        edges = np.append(0.0, self.coverage)
        return float((np.diff(edges) * self.risk).sum())


def risk_coverage(confidence: Floats, is_correct: Bools) -> RiskCoverage:
    """Return the curve of (N,) confidences and correctness; images of equal confidence are answered together."""
    sorted_scores = sort_scores(confidence, is_correct)
    n_answered = sorted_scores.run_ends + 1
    n_errors = np.cumsum(~sorted_scores.is_positive)[sorted_scores.run_ends]
    return RiskCoverage(n_answered / len(is_correct), n_errors / n_answered, sorted_scores.thresholds)
