"""Figures that judge the probabilities themselves: log loss, Brier score, expected calibration error."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dermkit.metrics.stats.arrays import EPSILON, Bools, Floats, Ints, ratio

BINS = 15
"""Equal-width bins of confidence: the number of Guo et al. 2017."""


@dataclass(frozen=True, eq=False)
class CalibrationBins:
    """Sums over the images of each bin, each (..., BINS): how many, their confidence, how many were right."""

    n: Floats
    confidence: Floats
    correct: Floats


def log_loss_terms(true: Ints, probabilities: Floats) -> Floats:
    """Return -log of the true class's probability for each image, (N,); probabilities (N, K)."""
    of_true = probabilities[np.arange(len(true)), true]
    return np.asarray(-np.log(np.clip(of_true, EPSILON, 1.0)), dtype=np.float64)


def brier_terms(true: Ints, probabilities: Floats) -> Floats:
    """Return the squared distance from the one-hot truth for each image, (N,), 0 to 2."""
    of_true = probabilities[np.arange(len(true)), true]
    return np.asarray((probabilities**2).sum(axis=1) - of_true**2 + (1.0 - of_true) ** 2, dtype=np.float64)


def log_loss(true: Ints, probabilities: Floats) -> float:
    """Return the mean cross-entropy in nats; raises `ValueError` without images."""
    return _mean(log_loss_terms(true, probabilities))


def brier(true: Ints, probabilities: Floats) -> float:
    """Return the Brier score, summed over classes, 0 to 2 (with two classes: twice the binary form)."""
    return _mean(brier_terms(true, probabilities))


def _mean(terms: Floats) -> float:
    if not len(terms):
        raise ValueError("a mean needs at least one image")
    return float(terms.mean())


def bin_of(confidence: Floats) -> NDArray[np.intp]:
    """Return each image's bin, 0 to BINS - 1; bin i holds i / BINS < confidence <= (i + 1) / BINS (bin 0 also 0)."""
    edges = np.linspace(0.0, 1.0, BINS + 1)
    return np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, BINS - 1)


def calibration_bins(confidence: Floats, correct: Bools) -> CalibrationBins:
    """Return the sums per bin of (N,) top-1 confidences, 0 to 1, and whether the prediction was right."""
    index = bin_of(confidence)
    return CalibrationBins(*(_sums(index, part) for part in (np.ones(len(index)), confidence, correct)))


def _sums(index: NDArray[np.intp], terms: NDArray[np.float64] | Bools) -> Floats:
    return np.asarray(np.bincount(index, weights=terms.astype(np.float64), minlength=BINS), dtype=np.float64)


def ece_of_bins(bins: CalibrationBins) -> Floats:
    """Return the expected calibration error, shape (...): mean gap of confidence and accuracy, weighted by n."""
    total = bins.n.sum(axis=-1)
    return ratio(np.abs(bins.confidence - bins.correct).sum(axis=-1), total, total > 0)


def ece(confidence: Floats, correct: Bools) -> float:
    """Return the expected calibration error of top-1 confidences in BINS equal-width bins; NaN without images."""
    return float(ece_of_bins(calibration_bins(confidence, correct)))
