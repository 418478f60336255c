"""Metrics of the predicted probabilities: log loss, Brier score, expected calibration error.

Shapes: N images, K classes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dermkit.metrics.stats.arrays import EPSILON, Bools, Floats, Ints, ratio

N_BINS = 15
"""Equal-width bins of confidence: the number of Guo et al. 2017."""


@dataclass(frozen=True, eq=False)
class CalibrationBins:
    """Sums over the images of each bin, each (..., N_BINS): images, confidences, correct predictions."""

    n: Floats
    confidence_sum: Floats
    n_correct: Floats


def log_loss_terms(y_true: Ints, probabilities: Floats) -> Floats:
    """Return -log of the true class's probability for each image, (N,); probabilities (N, K).

    NaN where that probability is 0: the loss is infinite, and no mean over such an image exists.
    """
    p_true = probabilities[np.arange(len(y_true)), y_true]
    is_possible = p_true > 0
    return np.where(is_possible, -np.log(np.where(is_possible, p_true, 1.0)), np.nan)


def brier_terms(y_true: Ints, probabilities: Floats) -> Floats:
    """Return the squared distance from the one-hot truth for each image, (N,), 0 to 2."""
    p_true = probabilities[np.arange(len(y_true)), y_true]
    return np.asarray((probabilities**2).sum(axis=1) - p_true**2 + (1.0 - p_true) ** 2, dtype=np.float64)


def log_loss(y_true: Ints, probabilities: Floats) -> float:
    """Return the mean cross-entropy in nats with probabilities clipped to EPSILON; raises `ValueError` without images.

    For fits, which need a finite number; the loss that is reported is the mean of `log_loss_terms`.
    """
    if not len(y_true):
        raise ValueError("a mean needs at least one image")
    return float(log_loss_terms(y_true, np.clip(probabilities, EPSILON, 1.0)).mean())


def bin_index(confidence: Floats) -> NDArray[np.intp]:
    """Return the bin of each confidence, 0 to N_BINS - 1: bin i holds (i / N_BINS, (i + 1) / N_BINS], bin 0 also 0."""
    edges = np.linspace(0.0, 1.0, N_BINS + 1)
    return np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, N_BINS - 1)


def calibration_bins(confidence: Floats, is_correct: Bools) -> CalibrationBins:
    """Return the sums per bin of (N,) top-1 confidences, 0 to 1, and of whether each prediction is correct."""
    index = bin_index(confidence)
    return CalibrationBins(*(_bin_sums(index, values) for values in (np.ones(len(index)), confidence, is_correct)))


def _bin_sums(index: NDArray[np.intp], terms: NDArray[np.float64] | Bools) -> Floats:
    return np.asarray(np.bincount(index, weights=terms.astype(np.float64), minlength=N_BINS), dtype=np.float64)


def ece_from_bins(bins: CalibrationBins) -> Floats:
    """Return the expected calibration error, (...): mean gap of confidence and accuracy, bins weighted by n."""
    total = bins.n.sum(axis=-1)
    return ratio(np.abs(bins.confidence_sum - bins.n_correct).sum(axis=-1), total, total > 0)
