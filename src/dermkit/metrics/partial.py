"""What a ROC curve says of one end of it: area above a sensitivity, in both official definitions, and fixed points.

The two areas are easily taken for each other. Of a net that guesses, and of one without fault:

- `pauc_above`: between the curve and a sensitivity of 0.8, beyond its right side: 0.02 and 0.2 (ISIC challenge 2024);
- `auc_above`: under the curve, right of where it reaches 0.8: 0.18 and 1.0 (`auc_sens_80` of isic-challenge-scoring).

`auc_above = pauc_above + 0.8 (1 - false positive rate at a sensitivity of 0.8)`.

Arrays may hold many resamples: a curve is (B, T) false and true positive rates along falling thresholds.
"""

from dataclasses import dataclass

import numpy as np

from dermkit.metrics.counts import Cumulated
from dermkit.metrics.stats.arrays import Bools, Floats, ratio

SENSITIVITY = 0.8
"""Where both official definitions cut."""

_HAIR = 1e-12
"""A rate of 57/60 must pass for 0.95: what rounding leaves is no difference."""


@dataclass(frozen=True, eq=False)
class Curves:
    """ROC curves from (0, 0) to (1, 1), each (B, T + 1); rows without positives or negatives are NaN."""

    fpr: Floats
    tpr: Floats


def curves_of(steps: Cumulated) -> Curves:
    """Return the ROC curve of each row of sums at falling scores."""
    start = np.zeros((len(steps.hits), 1))
    both = (steps.hits[:, -1:] > 0) & (steps.alarms[:, -1:] > 0)

    def rate(counted: Floats) -> Floats:
        wide = np.broadcast_to(both, counted.shape)
        part = ratio(counted, np.broadcast_to(counted[:, -1:], counted.shape), wide)
        return np.concatenate([np.where(both, start, np.nan), part], axis=1)

    return Curves(rate(steps.alarms), rate(steps.hits))


def pauc_above(roc: Curves, sensitivity: float = SENSITIVITY) -> Floats:
    """Return the area right of the curve and above a sensitivity, (B,), 0 to 1 - sensitivity; 2024's definition."""
    low_t, high_t = roc.tpr[:, :-1], roc.tpr[:, 1:]
    low_f, high_f = roc.fpr[:, :-1], roc.fpr[:, 1:]
    cut = np.clip(sensitivity, low_t, high_t)  # below it a step counts nothing
    rise = high_t - low_t
    share = np.divide(cut - low_t, rise, out=np.zeros_like(rise), where=rise > 0)
    at_cut = low_f + (high_f - low_f) * share
    return np.asarray(((high_t - cut) * (1 - (at_cut + high_f) / 2)).sum(axis=1), dtype=np.float64)


def false_alarms_at(roc: Curves, sensitivity: float = SENSITIVITY) -> Floats:
    """Return the false positive rate where the curve first reaches a sensitivity, (B,), straight between points."""
    rows = np.arange(len(roc.tpr))
    defined = ~np.isnan(roc.tpr[:, 0])
    step = np.maximum((np.nan_to_num(roc.tpr, nan=1.0) < sensitivity).sum(axis=1), 1)
    low_t, high_t = roc.tpr[rows, step - 1], roc.tpr[rows, step]
    share = ratio(sensitivity - low_t, high_t - low_t, defined)
    return np.asarray(roc.fpr[rows, step - 1] + (roc.fpr[rows, step] - roc.fpr[rows, step - 1]) * share)


def auc_above(roc: Curves, sensitivity: float = SENSITIVITY) -> Floats:
    """Return the area under the curve right of where it reaches a sensitivity, (B,): the official scorer's."""
    return pauc_above(roc, sensitivity) + sensitivity * (1 - false_alarms_at(roc, sensitivity))


def sensitivity_at(roc: Curves, specificity: float) -> Floats:
    """Return the highest sensitivity of a threshold that keeps at least this specificity, (B,); nothing in between."""
    allowed = roc.fpr <= 1 - specificity + _HAIR
    return _best(roc.tpr, allowed)


def specificity_at(roc: Curves, sensitivity: float) -> Floats:
    """Return the highest specificity of a threshold that keeps at least this sensitivity, (B,); nothing in between."""
    return _best(1 - roc.fpr, roc.tpr >= sensitivity - _HAIR)


def _best(values: Floats, allowed: Bools) -> Floats:
    best: Floats = np.where(allowed, values, -np.inf).max(axis=1)
    return np.where(np.isfinite(best), best, np.nan)
