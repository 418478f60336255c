"""A sweep of learning rates (Smith 2017, arXiv:1506.01186): which are tried, when it ends, and what it suggests.

Shapes: n steps.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STEPS_PER_DECADE = 20
"""As many as in fastai's sweep of 100 steps over five decades and more; chosen, not measured."""

_BANDWIDTH = 0.25
"""Standard deviation of the smoothing kernel, in decades: about a dozen steps bear on a point."""

_DIVERGED = 4.0
"""The sweep ends where the running loss is this many times its lowest, as fastai's does."""

_RUNNING_DECAY = 0.9
"""Decay of the running loss that ends the sweep; the curve itself is smoothed from both sides, which has no lag."""


@dataclass(frozen=True)
class RateSweep:
    """What a sweep saw. rates: (n,) of the head; losses: (n,) of the batch that a step at that rate began with.

    smoothed: (n,) losses; slopes: (n,) their change per decade of the rate. suggestion: nan where the loss did not
    fall. lowest: the rate of the lowest smoothed loss; diverged: the rate that ended the sweep, nan where none did.
    """

    rates: NDArray[np.float64]
    losses: NDArray[np.float64]
    smoothed: NDArray[np.float64]
    slopes: NDArray[np.float64]
    suggestion: float
    lowest: float
    diverged: float


def sweep_rates(low: float, high: float, n_steps: int) -> NDArray[np.float64]:
    """Return (n,) rates from low to high, each the same multiple of the one before."""
    return np.geomspace(low, high, n_steps)


def sweep(take_step: Callable[[int, float], float], rates: NDArray[np.float64]) -> RateSweep:
    """Take a step at each rate until the loss diverges.

    take_step: gets the step's number, from 0, and its rate; returns the loss before the step, not finite where it gave
    out.
    """
    losses: list[float] = []
    running, lowest, diverged = 0.0, math.inf, math.nan
    for number, rate in enumerate(rates):
        loss = take_step(number, float(rate))
        if math.isfinite(loss):
            losses.append(loss)
            running = _RUNNING_DECAY * running + (1 - _RUNNING_DECAY) * loss
            # Divided by the sum of its weights, else the first losses would count for less.
            debiased = running / (1 - _RUNNING_DECAY ** (number + 1))
            lowest = min(lowest, debiased)
        if not math.isfinite(loss) or debiased > _DIVERGED * lowest:
            diverged = float(rate)
            break
    return describe_sweep(rates[: len(losses)], np.array(losses), diverged)


def describe_sweep(rates: NDArray[np.float64], losses: NDArray[np.float64], diverged: float) -> RateSweep:
    """Return the smoothed curve and the suggestion.

    That is the rate below the lowest smoothed loss at which the smoothed loss falls fastest per decade, as fastai's
    "steep" suggestion; none where the loss falls by less than the spread of single batches about the curve.
    """
    smoothed, slopes = _local_lines(np.log10(rates), losses)
    if len(losses) < STEPS_PER_DECADE:
        return RateSweep(rates, losses, smoothed, slopes, math.nan, math.nan, diverged)
    lowest = int(smoothed.argmin())
    # The slope at an end rests on one side alone: half a bandwidth there suggests nothing.
    margin = round(_BANDWIDTH * STEPS_PER_DECADE)
    candidates = slopes[margin : lowest + 1]
    spread = float(np.std(losses[: lowest + 1] - smoothed[: lowest + 1]))
    fall = float(smoothed[: lowest + 1].max() - smoothed[lowest])
    has_fallen = len(candidates) > 0 and fall > spread and candidates.min() < 0
    suggestion = float(rates[margin + int(candidates.argmin())]) if has_fallen else math.nan
    return RateSweep(rates, losses, smoothed, slopes, suggestion, float(rates[lowest]), diverged)


def _local_lines(
    x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return value and slope at each x of a line fitted with Gaussian weights about it (local linear regression)."""
    if len(x) < 2:
        return y.copy(), np.zeros_like(y)
    weights = np.exp(-0.5 * ((x[:, None] - x[None, :]) / _BANDWIDTH) ** 2)
    weights /= weights.sum(axis=1, keepdims=True)
    mean_x, mean_y = weights @ x, weights @ y
    variance = weights @ x**2 - mean_x**2
    slopes = (weights @ (x * y) - mean_x * mean_y) / variance
    return mean_y + slopes * (x - mean_x), slopes
