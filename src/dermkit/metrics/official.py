"""The rules of the official ISIC challenge scorer, where they differ from ours, so that figures can be set beside.

What differs: a class counts as predicted where its own probability is above 0.5, so an image may be of no class or,
with unnormalised scores, of several; an image whose largest probabilities tie is wrong in the balanced accuracy; what
is undefined counts as 1.0; images may have weight 0. Its `auc_sens_80` is `partial.auc_above`.
"""

from dataclasses import dataclass

import numpy as np

from dermkit.metrics import counts, partial, ranking
from dermkit.metrics.counts import Bools, Counts, Floats, Ints

CUT = 0.5
WEIGHT_ZERO = ("ISIC_0035068",)
"""Test images of 2018 that the official scorer leaves out."""

FIGURES = ("accuracy", "sensitivity", "specificity", "dice", "ppv", "npv", "auc", "auc_sens_80", "ap")


@dataclass(frozen=True, eq=False)
class OfficialScore:
    """balanced_accuracy: the ranking figure, ties wrong. per_class: name -> (K,), NaN where a curve has one side."""

    balanced_accuracy: float
    per_class: dict[str, Floats]

    def macro(self) -> dict[str, float]:
        """Return the mean over the classes of each figure."""
        return {name: float(values.mean()) for name, values in self.per_class.items()}


def official_score(true: Ints, scores: Floats, weights: Floats | None = None) -> OfficialScore:
    """Score (N, K) class scores of (N,) true classes as the official scorer does.

    weights: (N,) 0 or 1 per image, by default 1. Raises `ValueError` where a class has no image: the official figure
    would be no number.
    """
    n, k = scores.shape
    weight = np.ones(n) if weights is None else weights
    truth = true[:, None] == np.arange(k)
    if not (truth * weight[:, None]).sum(axis=0).all():
        raise ValueError("a class has no image, so the official balanced accuracy is not defined")
    called = scores > CUT
    tally = Counts(
        tp=(truth & called).T @ weight, fp=(~truth & called).T @ weight,
        fn=(truth & ~called).T @ weight, tn=(~truth & ~called).T @ weight,
    )  # fmt: skip
    per_class = {
        "accuracy": (tally.tp + tally.tn) / weight.sum(),
        "sensitivity": _or_one(tally.tp, tally.tp + tally.fn),
        "specificity": _or_one(tally.tn, tally.tn + tally.fp),
        "dice": _or_one(2 * tally.tp, 2 * tally.tp + tally.fp + tally.fn),
        "ppv": _or_one(tally.tp, tally.tp + tally.fp),
        "npv": _or_one(tally.tn, tally.tn + tally.fn),
        **_ranked(truth, scores, weight),
    }
    return OfficialScore(_balanced(true, scores, weight), per_class)


def _or_one(part: Floats, whole: Floats) -> Floats:
    return np.where(whole > 0, counts.ratio(part, whole, whole > 0), 1.0)


def _ranked(truth: Bools, scores: Floats, weight: Floats) -> dict[str, Floats]:
    found: dict[str, list[float]] = {"auc": [], "auc_sens_80": [], "ap": []}
    for column in range(scores.shape[1]):
        order = ranking.rank(scores[:, column], truth[:, column])
        figures = ranking.ranking_figures(order, weight[None])
        found["auc"].append(float(figures.auroc[0]))
        found["ap"].append(float(figures.average_precision[0]))
        found["auc_sens_80"].append(
            float(partial.auc_above(partial.curves_of(ranking.cumulated(order, weight[None])))[0])
        )
    return {name: np.array(values) for name, values in found.items()}


def _balanced(true: Ints, scores: Floats, weight: Floats) -> float:
    """Return the mean recall; an image with more than one largest score is of no class, so it is wrong."""
    alone = (scores == scores.max(axis=1, keepdims=True)).sum(axis=1) == 1
    right = (scores.argmax(axis=1) == true) & alone
    k = scores.shape[1]
    hits = np.bincount(true, weights=right * weight, minlength=k)
    return float((hits / np.bincount(true, weights=weight, minlength=k)).mean())
