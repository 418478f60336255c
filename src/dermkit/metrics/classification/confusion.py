"""Metrics of a confusion matrix: accuracy, recall, precision, F1, Matthews' correlation, kappa and their macro means.

Arrays may have leading dimensions, such as one entry per resample. Undefined entries are NaN; `summary` writes them as
null with a reason.

A class without images has no precision, recall or F1, even if something was predicted as it; its specificity is
defined. A class with images that is never predicted has no precision, and an F1 of 0.

Shapes: K classes, B resamples, T distinct scores; `...` is any leading dimensions.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dermkit.metrics.stats.arrays import Bools, Floats, Ints, ratio


@dataclass(frozen=True, eq=False)
class BinaryCounts:
    """True and false positives and negatives of classes against the rest, all of one shape."""

    tp: Floats
    fp: Floats
    fn: Floats
    tn: Floats


@dataclass(frozen=True, eq=False)
class CumulativeCounts:
    """True and false positives at each distinct score taken as threshold, in descending order, each (B, T)."""

    tp: Floats
    fp: Floats


def confusion_matrix(y_true: Ints, y_pred: Ints, n_classes: int) -> Ints:
    """Return (classes, classes) counts; rows are the true class, columns the predicted one."""
    counts = np.bincount(y_true * n_classes + y_pred, minlength=n_classes * n_classes)
    return counts.reshape(n_classes, n_classes).astype(np.int64)


def one_vs_rest_counts(confusion: NDArray[np.float64] | Ints) -> BinaryCounts:
    """Return the counts of every class against the rest, shape (..., K), of confusion matrices (..., K, K)."""
    matrix = np.asarray(confusion, dtype=np.float64)
    tp = np.diagonal(matrix, axis1=-2, axis2=-1)
    fp = matrix.sum(axis=-2) - tp
    fn = matrix.sum(axis=-1) - tp
    return BinaryCounts(tp, fp, fn, matrix.sum(axis=(-2, -1))[..., None] - tp - fp - fn)


def malignant_vs_rest_counts(confusion: NDArray[np.float64] | Ints, malignant_classes: Bools) -> BinaryCounts:
    """Return the counts of the binary view, shape (...): positive = any class of `malignant_classes` (K,)."""
    matrix = np.asarray(confusion, dtype=np.float64)
    malignant_indicator, other_indicator = (
        malignant_classes.astype(np.float64),
        (~malignant_classes).astype(np.float64),
    )

    def count_block(rows: Floats, columns: Floats) -> Floats:
        return np.asarray(rows @ (matrix @ columns)[..., None], dtype=np.float64)[..., 0]

    return BinaryCounts(
        tp=count_block(malignant_indicator, malignant_indicator),
        fp=count_block(other_indicator, malignant_indicator),
        fn=count_block(malignant_indicator, other_indicator),
        tn=count_block(other_indicator, other_indicator),
    )


def accuracy(confusion: NDArray[np.float64] | Ints) -> Floats:
    """Return the fraction of images whose predicted class is the true one, (...)."""
    matrix = np.asarray(confusion, dtype=np.float64)
    total = matrix.sum(axis=(-2, -1))
    return ratio(np.trace(matrix, axis1=-2, axis2=-1), total, total > 0)


def recall(counts: BinaryCounts) -> Floats:
    """Return tp / (tp + fn), the sensitivity: the fraction of the class's images that are predicted as it."""
    positives = counts.tp + counts.fn
    return ratio(counts.tp, positives, positives > 0)


def specificity(counts: BinaryCounts) -> Floats:
    """Return tn / (tn + fp): the fraction of the other images that are not predicted as the class."""
    negatives = counts.tn + counts.fp
    return ratio(counts.tn, negatives, negatives > 0)


def precision(counts: BinaryCounts) -> Floats:
    """Return tp / (tp + fp), positive predictive value; undefined without images or without predictions."""
    predicted_positives = counts.tp + counts.fp
    return ratio(counts.tp, predicted_positives, (predicted_positives > 0) & (counts.tp + counts.fn > 0))


def npv(counts: BinaryCounts) -> Floats:
    """Return tn / (tn + fn), negative predictive value; undefined without negatives or without negative predictions."""
    predicted_negatives = counts.tn + counts.fn
    return ratio(counts.tn, predicted_negatives, (predicted_negatives > 0) & (counts.tn + counts.fp > 0))


def f1(counts: BinaryCounts) -> Floats:
    """Return 2 tp / (2 tp + fp + fn); 0 for a class whose images are all missed, undefined without images."""
    denominator = 2 * counts.tp + counts.fp + counts.fn
    return ratio(2 * counts.tp, denominator, counts.tp + counts.fn > 0)


def macro_mean(per_class: Floats, *, present_only: bool = False) -> Floats:
    """Return the unweighted mean over the classes, (..., K) -> (...): NaN as soon as one class is undefined.

    present_only: the mean over the classes whose value is defined, NaN where none is. Raises `ValueError` if it is set
    and `per_class` is not (K,).
    """
    if not present_only:
        return np.asarray(per_class.mean(axis=-1), dtype=np.float64)
    if per_class.ndim != 1:
        raise ValueError(f"the mean over present classes needs one value per class, not shape {per_class.shape}")
    defined_values = per_class[~np.isnan(per_class)]
    return np.asarray(defined_values.mean() if len(defined_values) else np.nan, dtype=np.float64)


def balanced_accuracy(confusion: NDArray[np.float64] | Ints) -> Floats:
    """Return the mean recall over all K classes, shape (...); NaN if a class has no images."""
    return macro_mean(recall(one_vs_rest_counts(confusion)))


def balanced_accuracy_present(confusion: NDArray[np.float64] | Ints) -> float:
    """Return the mean recall over the classes that have images, of one confusion matrix (K, K); NaN without images.

    metrics.json calls it `recall_macro_present`: of image sets that lack different classes it is not the same figure.
    """
    return float(macro_mean(recall(one_vs_rest_counts(confusion)), present_only=True))


def mcc(confusion: NDArray[np.float64] | Ints) -> Floats:
    """Return Matthews' correlation of K classes (Gorodkin 2004), (...), -1 to 1.

    Undefined if all images are of one class or all are predicted as one.
    """
    matrix = np.asarray(confusion, dtype=np.float64)
    total, n_correct = matrix.sum(axis=(-2, -1)), np.trace(matrix, axis1=-2, axis2=-1)
    true_counts, predicted_counts = matrix.sum(axis=-1), matrix.sum(axis=-2)
    variance_product = (total**2 - (true_counts**2).sum(axis=-1)) * (total**2 - (predicted_counts**2).sum(axis=-1))
    # Rounding can leave the range by a last digit.
    return np.clip(
        ratio(
            n_correct * total - (true_counts * predicted_counts).sum(axis=-1),
            np.sqrt(variance_product),
            variance_product > 0,
        ),
        -1.0,
        1.0,
    )


def binary_mcc(counts: BinaryCounts) -> Floats:
    """Return Matthews' correlation of each class against the rest, in the shape of the counts."""
    matrices = np.stack(
        [np.stack([counts.tp, counts.fn], axis=-1), np.stack([counts.fp, counts.tn], axis=-1)], axis=-2
    )
    return mcc(matrices)


def kappa(confusion: NDArray[np.float64] | Ints) -> Floats:
    """Return Cohen's kappa, (...): agreement beyond what the marginal frequencies give by chance.

    Undefined if chance agreement is complete: all images of one class, and all predicted as it.
    """
    matrix = np.asarray(confusion, dtype=np.float64)
    total = matrix.sum(axis=(-2, -1))
    chance_agreement = (matrix.sum(axis=-1) * matrix.sum(axis=-2)).sum(axis=-1)
    observed_agreement = np.trace(matrix, axis1=-2, axis2=-1) * total
    return ratio(observed_agreement - chance_agreement, total**2 - chance_agreement, total**2 > chance_agreement)
