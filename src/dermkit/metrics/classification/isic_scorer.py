"""Metrics by the rules of the official ISIC challenge scorer (isic-challenge-scoring), for comparison with its results.

Its rules differ from ours: a class is predicted if its own probability is above 0.5, so an image may be of no class or,
with unnormalised scores, of several; an image whose largest probabilities tie is wrong in the balanced accuracy;
undefined values count as 1.0; images may have weight 0. Its `auc_sens_80` is `roc.partial_auroc_isic`.

Shapes: N images, K classes.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dermkit.metrics.classification import roc
from dermkit.metrics.classification.confusion import BinaryCounts
from dermkit.metrics.stats import arrays
from dermkit.metrics.stats.arrays import Bools, Floats, Ints

CALL_THRESHOLD = 0.5
ZERO_WEIGHT_IDS = ("ISIC_0035068",)
"""Test images of 2018 to which the official scorer gives weight 0."""

SCORER_RULES = (
    "here a class is called where its own probability is above a half, so an image may be of no class; "
    "largest probabilities that tie are wrong in the balanced accuracy; undefined counts as 1; images of "
    "weight 0 are left out"
)
"""How these metrics differ from ours of the same names."""

_ARCHIVE_ID = re.compile(r"ISIC_[0-9]{7}(?![0-9])")

SCORER_METRICS = ("accuracy", "sensitivity", "specificity", "dice", "ppv", "npv", "auc", "auc_sens_80", "ap")


@dataclass(frozen=True, eq=False)
class OfficialScore:
    """balanced_accuracy: the challenge's primary metric, ties wrong. per_class: metric -> (K,), NaN if one-sided."""

    balanced_accuracy: float
    per_class: dict[str, Floats]

    def macro_average(self) -> dict[str, float]:
        """Return the mean over the classes of each metric."""
        return {name: float(values.mean()) for name, values in self.per_class.items()}


def official_score(y_true: Ints, scores: Floats, weights: Floats | None = None) -> OfficialScore:
    """Score (N, K) class scores of (N,) true classes as the official scorer does.

    weights: (N,) 0 or 1 per image, by default 1. Raises `ValueError` if a class has no image: the official balanced
    accuracy is then NaN.
    """
    n, k = scores.shape
    weight = np.ones(n) if weights is None else weights
    one_hot = y_true[:, None] == np.arange(k)
    if not (one_hot * weight[:, None]).sum(axis=0).all():
        raise ValueError("a class has no image, so the official balanced accuracy is not defined")
    is_called = scores > CALL_THRESHOLD
    class_counts = BinaryCounts(
        tp=(one_hot & is_called).T @ weight, fp=(~one_hot & is_called).T @ weight,
        fn=(one_hot & ~is_called).T @ weight, tn=(~one_hot & ~is_called).T @ weight,
    )  # fmt: skip
    per_class = {
        "accuracy": (class_counts.tp + class_counts.tn) / weight.sum(),
        "sensitivity": _ratio_or_one(class_counts.tp, class_counts.tp + class_counts.fn),
        "specificity": _ratio_or_one(class_counts.tn, class_counts.tn + class_counts.fp),
        "dice": _ratio_or_one(2 * class_counts.tp, 2 * class_counts.tp + class_counts.fp + class_counts.fn),
        "ppv": _ratio_or_one(class_counts.tp, class_counts.tp + class_counts.fp),
        "npv": _ratio_or_one(class_counts.tn, class_counts.tn + class_counts.fn),
        **_ranking_metrics(one_hot, scores, weight),
    }
    return OfficialScore(_balanced_accuracy(y_true, scores, weight), per_class)


def _ratio_or_one(numerator: Floats, denominator: Floats) -> Floats:
    return np.where(denominator > 0, arrays.ratio(numerator, denominator, denominator > 0), 1.0)


def _ranking_metrics(one_hot: Bools, scores: Floats, weight: Floats) -> dict[str, Floats]:
    values_of_metric: dict[str, list[float]] = {"auc": [], "auc_sens_80": [], "ap": []}
    for column in range(scores.shape[1]):
        sorted_scores = roc.sort_scores(scores[:, column], one_hot[:, column])
        metrics = roc.ranking_metrics(sorted_scores, weight[None])
        values_of_metric["auc"].append(float(metrics.auroc[0]))
        values_of_metric["ap"].append(float(metrics.average_precision[0]))
        values_of_metric["auc_sens_80"].append(
            float(
                roc.partial_auroc_isic(roc.roc_curve_batch(roc.cumulative_counts(sorted_scores, weight[None])))[0]
            )
        )
    return {metric: np.array(values) for metric, values in values_of_metric.items()}


def _balanced_accuracy(y_true: Ints, scores: Floats, weight: Floats) -> float:
    """Return the mean recall; an image whose largest score is tied counts as wrong."""
    is_unique_maximum = (scores == scores.max(axis=1, keepdims=True)).sum(axis=1) == 1
    is_correct = (scores.argmax(axis=1) == y_true) & is_unique_maximum
    k = scores.shape[1]
    n_correct = np.bincount(y_true, weights=is_correct * weight, minlength=k)
    return float((n_correct / np.bincount(y_true, weights=weight, minlength=k)).mean())


# As metrics.json holds it -----------------------------------------------------------------------------------------


def image_weights(texts: Iterable[str]) -> tuple[Floats, list[str]]:
    """Return the weight of each image, (N,), and the ISIC ids of weight 0; texts: (N,), may contain an ISIC id."""
    isic_ids = [match[0] if (match := _ARCHIVE_ID.search(text)) else "" for text in texts]
    return (
        np.array([0.0 if isic_id in ZERO_WEIGHT_IDS else 1.0 for isic_id in isic_ids]),
        sorted({isic_id for isic_id in isic_ids if isic_id in ZERO_WEIGHT_IDS}),
    )


def official_dict(classes: Sequence[str], y_true: Ints, scores: Floats, texts: Iterable[str]) -> dict[str, Any]:
    """Return the official metrics under the scorer's names, or a `reason` why they do not exist.

    texts: (N,), each contains the image's ISIC id if it has one.
    """
    weight, zero_weight_ids = image_weights(texts)
    class_counts = np.bincount(y_true, weights=weight, minlength=len(classes)).astype(np.int64)
    result: dict[str, Any] = {"rules": SCORER_RULES, "n": int(class_counts.sum()), "left_out": zero_weight_ids}
    absent_classes = [class_name for class_name, n in zip(classes, class_counts, strict=True) if not n]
    if absent_classes:
        return {
            **result,
            "reason": f"no image of {', '.join(absent_classes)}: the official figure would be no number",
        }
    score = official_score(y_true, scores, weight)
    per_category = {
        class_name: {
            "n": int(class_counts[k]),
            **{metric: float(score.per_class[metric][k]) for metric in SCORER_METRICS},
        }
        for k, class_name in enumerate(classes)
    }
    return {
        **result,
        "balanced_accuracy": score.balanced_accuracy,
        "macro_average": score.macro_average(),
        "per_category": per_category,
    }


OFFICIAL_HEADER = ("category", "n", *SCORER_METRICS, "balanced_accuracy")


def official_rows(scores: Mapping[str, Any]) -> list[list[object]]:
    """Return `official_dict` as rows of `OFFICIAL_HEADER`: classes, macro average, aggregate; none without figures."""
    if "reason" in scores:
        return []
    macro_average = [scores["macro_average"][metric] for metric in SCORER_METRICS]
    return [
        *(
            [category, row["n"], *(row[metric] for metric in SCORER_METRICS), ""]
            for category, row in scores["per_category"].items()
        ),
        ["macro_average", scores["n"], *macro_average, ""],
        ["aggregate", scores["n"], *[""] * len(SCORER_METRICS), scores["balanced_accuracy"]],
    ]
