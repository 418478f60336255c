"""Post-hoc calibration of probabilities, fitted on validation images: temperature, or temperature and class biases.

Temperature scaling divides all log probabilities by one number, which changes neither their order nor the predicted
class. The second kind also adds one bias per class (vector scaling without its K slopes, which fit only noise on a
hundred images).

Shapes: N images, K classes.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import log_softmax
from threadpoolctl import ThreadpoolController

from dermkit.metrics.stats.arrays import EPSILON, Floats, Ints

_Loss = Callable[[Floats], tuple[float, Floats]]
"""Returns a value and its gradient."""

TEMPERATURE_RANGE = (0.05, 20.0)
_MAX_BIAS = 10.0
_RIDGE = 1e-3
"""L2 penalty on the biases: without it, the bias of a class without validation images would go to minus infinity."""


@dataclass(frozen=True)
class ProbabilityCalibration:
    """Calibrated p = softmax(log p / temperature + bias). kind: "none", "temperature" or "bias"; bias: K numbers."""

    kind: str
    temperature: float
    bias: tuple[float, ...]

    def apply(self, probabilities: Floats) -> Floats:
        """Return calibrated probabilities (N, K), rows summing to 1; a probability of 0 stays 0.

        Rows of the same probabilities get the same ones in whatever order: their sum is taken from the smallest up.
        """
        p = np.ascontiguousarray(probabilities, dtype=np.float64)
        if (
            self.kind == "none" and p.shape[1] > 2
        ):  # of two classes none can lose a tie: old policies stay to the bit
            return p
        logits = np.log(p, out=np.full(p.shape, -np.inf), where=p > 0) / self.temperature + np.array(self.bias)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(weights / np.sort(weights, axis=1).sum(axis=1, keepdims=True), dtype=np.float64)

    def without_bias(self) -> "ProbabilityCalibration":
        """Return its temperature alone: as sure as it is right, for the class frequencies that the net was trained for.

        A net that was trained as if all classes were equally frequent (adjusted logits, class weights, sampling) has
        biases that undo just that. In a mean of nets they would change which class is the most probable.
        """
        if self.kind != "bias":
            return self
        return ProbabilityCalibration("temperature", self.temperature, (0.0,) * len(self.bias))


def identity(n_classes: int) -> ProbabilityCalibration:
    """Return the identity calibration of K classes."""
    return ProbabilityCalibration("none", 1.0, (0.0,) * n_classes)


def fit_temperature(y_true: Ints, probabilities: Floats) -> ProbabilityCalibration:
    """Return the temperature that minimises the log loss; y_true: (N,), probabilities: (N, K)."""
    logits, k = _logits(probabilities), probabilities.shape[1]
    low, high = np.log(TEMPERATURE_RANGE)

    def loss(x: Floats) -> tuple[float, Floats]:
        value, gradient = log_loss_and_gradient(logits, y_true, float(x[0]), np.zeros(k))
        return value, gradient[:1]

    starts = np.linspace(low, high, 25)
    best_start = min(starts, key=lambda start: loss(np.array([start]))[0])
    optimum = _minimise(loss, np.array([best_start]), [(float(low), float(high))])
    return ProbabilityCalibration("temperature", float(np.exp(optimum[0])), (0.0,) * k)


def fit_temperature_and_bias(y_true: Ints, probabilities: Floats) -> ProbabilityCalibration:
    """Return the temperature and class biases that minimise the penalised log loss; the biases sum to 0."""
    logits, k = _logits(probabilities), probabilities.shape[1]
    start_temperature = fit_temperature(y_true, probabilities).temperature

    def loss(x: Floats) -> tuple[float, Floats]:
        value, gradient = log_loss_and_gradient(logits, y_true, float(x[0]), x[1:] - x[1:].mean())
        gradient[1:] += 2 * _RIDGE * x[1:] / k
        return value + _RIDGE * float((x[1:] ** 2).mean()), gradient

    bounds = [tuple(np.log(TEMPERATURE_RANGE)), *[(-_MAX_BIAS, _MAX_BIAS)] * k]
    start_vector = np.append(np.log(start_temperature), np.zeros(k))
    optimum = _minimise(loss, start_vector, bounds)
    centred_bias = optimum[1:] - optimum[1:].mean()
    return ProbabilityCalibration("bias", float(np.exp(optimum[0])), tuple(float(value) for value in centred_bias))


_MAX_SEARCHES = 10
_LEAST_GAIN = 1e-9
"""A search that gains less, in nats, has gone no further."""
_OPTIMISER_OPTIONS: Any = {"ftol": 1e-14, "gtol": 1e-9, "maxiter": 1000}


def _minimise(loss: _Loss, start: Floats, bounds: Sequence[tuple[float, float]]) -> Floats:
    """Return where a loss is least.

    A search that ends before the least loss goes on from there. With 11 images the last bit of one number decided
    whether a search ended at a loss of .643, where .563 can be reached.

    L-BFGS calls BLAS on a few numbers. On two threads, which wait for each other, a fit took 47 to 87 ms on a busy
    machine of two cores, and 4 ms on one, with the same bits.
    """
    with _blas_libraries().limit(limits=1):
        optimum = _search(loss, start, bounds)
        for _ in range(_MAX_SEARCHES - 1):
            further = _search(loss, optimum.x, bounds)
            if further.fun >= optimum.fun - _LEAST_GAIN:
                break
            optimum = further
    return np.asarray(optimum.x, dtype=np.float64)


def _search(loss: _Loss, start: Floats, bounds: Sequence[tuple[float, float]]) -> Any:
    from scipy.optimize import minimize  # here: a prediction applies a calibration and fits none

    return minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=_OPTIMISER_OPTIONS)


@functools.cache
def _blas_libraries() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


def _logits(probabilities: Floats) -> Floats:
    return np.asarray(np.log(np.clip(probabilities, EPSILON, 1.0)), dtype=np.float64)


def log_loss_and_gradient(
    logits: Floats, y_true: Ints, log_temperature: float, bias: Floats
) -> tuple[float, Floats]:
    """Return the mean log loss of softmax(logits / exp(log_temperature) + bias) and its gradient, (1 + K,).

    logits: (N, K). bias: (K,). The gradient in the biases sums to 0, so it is also that of centred biases.
    """
    n, scaled_logits = len(y_true), logits / np.exp(log_temperature)
    p = log_softmax(scaled_logits + bias, axis=1)
    rows = np.arange(n)
    value = -float(p[rows, y_true].mean())
    residuals = np.exp(p, out=p)
    residuals[rows, y_true] -= 1.0
    return value, np.append(-float((residuals * scaled_logits).sum()) / n, residuals.mean(axis=0))
