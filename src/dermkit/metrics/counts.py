"""Figures that are made of counts: the confusion matrix and its ratios.

Arrays may have leading dimensions (one entry per resample). NaN marks an undefined entry inside these arrays;
`summary` turns it into null with a reason before anything is written.

A class without images has no precision, recall or F1, even if something was predicted as it; its specificity is
defined. A class with images that is never predicted has no precision, and an F1 of 0.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Counts:
    """True and false positives and negatives of one or many views of class against rest, all of one shape."""

    tp: Floats
    fp: Floats
    fn: Floats
    tn: Floats


def confusion_matrix(true: Ints, predicted: Ints, classes: int) -> Ints:
    """Return (classes, classes) counts; rows are the true class, columns the predicted one."""
    counts = np.bincount(true * classes + predicted, minlength=classes * classes)
    return counts.reshape(classes, classes).astype(np.int64)


def one_vs_rest(confusion: NDArray[np.float64] | Ints) -> Counts:
    """Return the counts of every class against the rest, shape (..., K), of confusion matrices (..., K, K)."""
    matrix = np.asarray(confusion, dtype=np.float64)
    tp = np.diagonal(matrix, axis1=-2, axis2=-1)
    fp = matrix.sum(axis=-2) - tp
    fn = matrix.sum(axis=-1) - tp
    return Counts(tp, fp, fn, matrix.sum(axis=(-2, -1))[..., None] - tp - fp - fn)


def malignant_vs_rest(confusion: NDArray[np.float64] | Ints, malignant: Bools) -> Counts:
    """Return the counts of the binary view, shape (...): positive = any class of `malignant` (K,)."""
    matrix = np.asarray(confusion, dtype=np.float64)
    yes, no = malignant.astype(np.float64), (~malignant).astype(np.float64)

    def block(rows: Floats, columns: Floats) -> Floats:
        return np.asarray(rows @ (matrix @ columns)[..., None], dtype=np.float64)[..., 0]

    return Counts(tp=block(yes, yes), fp=block(no, yes), fn=block(yes, no), tn=block(no, no))


def ratio(part: Floats, whole: Floats, defined: Bools) -> Floats:
    """Return part / whole, NaN where `defined` is False."""
    quotient: Floats = np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=defined)
    return quotient


def accuracy(confusion: NDArray[np.float64] | Ints) -> Floats:
    """Return the share of images whose predicted class is the true one, shape (...)."""
    matrix = np.asarray(confusion, dtype=np.float64)
    total = matrix.sum(axis=(-2, -1))
    return ratio(np.trace(matrix, axis1=-2, axis2=-1), total, total > 0)


def recall(counts: Counts) -> Floats:
    """Return tp / (tp + fn), sensitivity: the share of the class's images that are found."""
    positives = counts.tp + counts.fn
    return ratio(counts.tp, positives, positives > 0)


def specificity(counts: Counts) -> Floats:
    """Return tn / (tn + fp): the share of the other classes' images that are not called this class."""
    negatives = counts.tn + counts.fp
    return ratio(counts.tn, negatives, negatives > 0)


def precision(counts: Counts) -> Floats:
    """Return tp / (tp + fp), positive predictive value; undefined without images or without predictions."""
    called = counts.tp + counts.fp
    return ratio(counts.tp, called, (called > 0) & (counts.tp + counts.fn > 0))


def f1(counts: Counts) -> Floats:
    """Return 2 tp / (2 tp + fp + fn); 0 for a class with images that is never hit, undefined without images."""
    whole = 2 * counts.tp + counts.fp + counts.fn
    return ratio(2 * counts.tp, whole, counts.tp + counts.fn > 0)


def balanced_accuracy(confusion: NDArray[np.float64] | Ints) -> Floats:
    """Return the mean recall over all classes, shape (...); undefined if a class has no images."""
    return np.asarray(recall(one_vs_rest(confusion)).mean(axis=-1), dtype=np.float64)
