"""Probabilities made honest after training: a few plain numbers, fitted on validation images alone.

Temperature divides all log probabilities by one number: order and predicted class stay. Bias and temperature adds one
shift per class (vector scaling without its K slopes: with a hundred images each slope is noise).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from dermkit.metrics.stats.arrays import EPSILON, Floats, Ints

TEMPERATURE_RANGE = (0.05, 20.0)
_BIAS = 10.0
_RIDGE = 1e-3
"""A class without validation images would be shifted to never: a little weight holds the shifts."""


@dataclass(frozen=True)
class Calibration:
    """What is done to log probabilities: divided by `temperature`, shifted by `bias` (one number per class)."""

    kind: str
    temperature: float
    bias: tuple[float, ...]

    def apply(self, probabilities: Floats) -> Floats:
        """Return calibrated probabilities (N, K), rows summing to 1."""
        # Sums over a row depend, in their last bit, on how it lies in memory; the same image gets the same numbers.
        logits = np.ascontiguousarray(_logits(probabilities))
        return np.asarray(softmax(logits / self.temperature + np.array(self.bias), axis=1))


def none_for(classes: int) -> Calibration:
    """Return the calibration that changes nothing."""
    return Calibration("none", 1.0, (0.0,) * classes)


def fit_temperature(true: Ints, probabilities: Floats) -> Calibration:
    """Return the temperature with the least log loss of (N,) true classes under (N, K) probabilities."""
    logits, k = _logits(probabilities), probabilities.shape[1]
    low, high = np.log(TEMPERATURE_RANGE)

    def loss(x: Floats) -> tuple[float, Floats]:
        value, slopes = loss_at(logits, true, float(x[0]), np.zeros(k))
        return value, slopes[:1]

    starts = np.linspace(low, high, 25)
    first = min(starts, key=lambda start: loss(np.array([start]))[0])
    found = minimize(
        loss, np.array([first]), jac=True, method="L-BFGS-B", bounds=[(float(low), float(high))], options=_EXACT
    )
    return Calibration("temperature", float(np.exp(found.x[0])), (0.0,) * k)


def fit_bias(true: Ints, probabilities: Floats) -> Calibration:
    """Return temperature and shifts per class with the least log loss; the shifts sum to 0."""
    logits, k = _logits(probabilities), probabilities.shape[1]
    start = fit_temperature(true, probabilities).temperature

    def loss(x: Floats) -> tuple[float, Floats]:
        value, slopes = loss_at(logits, true, float(x[0]), x[1:] - x[1:].mean())
        slopes[1:] += 2 * _RIDGE * x[1:] / k
        return value + _RIDGE * float((x[1:] ** 2).mean()), slopes

    bounds = [tuple(np.log(TEMPERATURE_RANGE)), *[(-_BIAS, _BIAS)] * k]
    start_at = np.append(np.log(start), np.zeros(k))
    found = minimize(loss, start_at, jac=True, method="L-BFGS-B", bounds=bounds, options=_EXACT)
    shift = found.x[1:] - found.x[1:].mean()
    return Calibration("bias", float(np.exp(found.x[0])), tuple(float(value) for value in shift))


_EXACT: Any = {"ftol": 1e-14, "gtol": 1e-9, "maxiter": 1000}


def _logits(probabilities: Floats) -> Floats:
    return np.asarray(np.log(np.clip(probabilities, EPSILON, 1.0)), dtype=np.float64)


def loss_at(logits: Floats, true: Ints, log_temperature: float, bias: Floats) -> tuple[float, Floats]:
    """Return the mean log loss of (N, K) log probabilities so changed, and its slopes in log temperature and bias.

    bias: (K,). The slopes, (1 + K,), are also those of shifts that are first centred: over the classes they sum to 0.
    """
    n, cooled = len(true), logits / np.exp(log_temperature)
    p = log_softmax(cooled + bias, axis=1)
    rows = np.arange(n)
    value = -float(p[rows, true].mean())
    off = np.exp(p, out=p)
    off[rows, true] -= 1.0
    return value, np.append(-float((off * cooled).sum()) / n, off.mean(axis=0))
