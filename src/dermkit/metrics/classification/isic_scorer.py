"""The rules of the official ISIC challenge scorer, where they differ from ours, so that figures can be set beside.

What differs: a class counts as predicted where its own probability is above 0.5, so an image may be of no class or,
with unnormalised scores, of several; an image whose largest probabilities tie is wrong in the balanced accuracy; what
is undefined counts as 1.0; images may have weight 0. Its `auc_sens_80` is `partial.auc_above`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dermkit.metrics.classification import roc
from dermkit.metrics.classification.confusion import Counts
from dermkit.metrics.stats import arrays
from dermkit.metrics.stats.arrays import Bools, Floats, Ints

CUT = 0.5
WEIGHT_ZERO = ("ISIC_0035068",)
"""Test images of 2018 that the official scorer leaves out."""

RULES = (
    "here a class is called where its own probability is above a half, so an image may be of no class; "
    "largest probabilities that tie are wrong in the balanced accuracy; undefined counts as 1; images of "
    "weight 0 are left out"
)
"""What differs from our figures of the same names."""

_ARCHIVE_ID = re.compile(r"ISIC_[0-9]{7}(?![0-9])")

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
    return np.where(whole > 0, arrays.ratio(part, whole, whole > 0), 1.0)


def _ranked(truth: Bools, scores: Floats, weight: Floats) -> dict[str, Floats]:
    found: dict[str, list[float]] = {"auc": [], "auc_sens_80": [], "ap": []}
    for column in range(scores.shape[1]):
        order = roc.rank(scores[:, column], truth[:, column])
        figures = roc.ranking_figures(order, weight[None])
        found["auc"].append(float(figures.auroc[0]))
        found["ap"].append(float(figures.average_precision[0]))
        found["auc_sens_80"].append(float(roc.auc_above(roc.curves_of(roc.cumulated(order, weight[None])))[0]))
    return {name: np.array(values) for name, values in found.items()}


def _balanced(true: Ints, scores: Floats, weight: Floats) -> float:
    """Return the mean recall; an image with more than one largest score is of no class, so it is wrong."""
    alone = (scores == scores.max(axis=1, keepdims=True)).sum(axis=1) == 1
    right = (scores.argmax(axis=1) == true) & alone
    k = scores.shape[1]
    hits = np.bincount(true, weights=right * weight, minlength=k)
    return float((hits / np.bincount(true, weights=weight, minlength=k)).mean())


# As metrics.json holds it -----------------------------------------------------------------------------------------


def weights_of(names: Iterable[str]) -> tuple[Floats, list[str]]:
    """Return each image's weight, (N,), and the ISIC ids that have none; names: whatever may hold an ISIC id."""
    ids = [found[0] if (found := _ARCHIVE_ID.search(name)) else "" for name in names]
    return (
        np.array([0.0 if own in WEIGHT_ZERO else 1.0 for own in ids]),
        sorted({own for own in ids if own in WEIGHT_ZERO}),
    )


def official_dict(classes: Sequence[str], true: Ints, scores: Floats, names: Iterable[str]) -> dict[str, Any]:
    """Return the official figures under the official scorer's names; `reason` stands for them where they do not exist.

    names: (N,) texts in which an image's ISIC id stands, if it has one.
    """
    weight, left_out = weights_of(names)
    counted = np.bincount(true, weights=weight, minlength=len(classes)).astype(np.int64)
    body: dict[str, Any] = {"rules": RULES, "n": int(counted.sum()), "left_out": left_out}
    absent = [name for name, n in zip(classes, counted, strict=True) if not n]
    if absent:
        return {**body, "reason": f"no image of {', '.join(absent)}: the official figure would be no number"}
    score = official_score(true, scores, weight)
    per_category = {
        name: {"n": int(counted[k]), **{figure: float(score.per_class[figure][k]) for figure in FIGURES}}
        for k, name in enumerate(classes)
    }
    return {
        **body,
        "balanced_accuracy": score.balanced_accuracy,
        "macro_average": score.macro(),
        "per_category": per_category,
    }


HEADER = ("category", "n", *FIGURES, "balanced_accuracy")


def official_rows(body: Mapping[str, Any]) -> list[list[object]]:
    """Return `official_dict` as rows of `HEADER`: classes, macro average, aggregate; none without figures."""
    if "reason" in body:
        return []
    macro = [body["macro_average"][figure] for figure in FIGURES]
    return [
        *(
            [name, row["n"], *(row[figure] for figure in FIGURES), ""]
            for name, row in body["per_category"].items()
        ),
        ["macro_average", body["n"], *macro, ""],
        ["aggregate", body["n"], *[""] * len(FIGURES), body["balanced_accuracy"]],
    ]
