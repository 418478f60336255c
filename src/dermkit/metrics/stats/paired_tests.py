"""Two models on the same images: tests that use the pairing, and what is left of them when many are made.

None of these says that two models are equal. A difference that is not found is one that so many images do not show.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom, t

from dermkit.metrics.stats.arrays import Bools, Floats, Ints

DRAWS = 9_999


@dataclass(frozen=True)
class Discordant:
    """On how many units just one of two models is right, and the two-sided mid-p of McNemar's test."""

    first: int
    second: int
    n: int
    p: float


def mcnemar(first_right: Bools, second_right: Bools) -> Discordant:
    """Compare which of (N,) independent images each model gets right.

    The mid-p of the exact test (Fagerland, Lydersen and Laake 2013, BMC Medical Research Methodology 13:91): the
    exact test is too careful, the one with a normal approximation too daring with few discordant images.
    """
    first = int((first_right & ~second_right).sum())
    second = int((~first_right & second_right).sum())
    return Discordant(first, second, len(first_right), mid_p(first, second))


def mid_p(first: int, second: int) -> float:
    """Return the two-sided mid-p of `first` against `second` discordant images: 1 where there is none."""
    total, least = first + second, min(first, second)
    if first == second:
        return 1.0
    exact = 2 * float(binom.cdf(least, total, 0.5))
    return min(1.0, exact - float(binom.pmf(least, total, 0.5)))


def holm(p: Sequence[float]) -> list[float]:
    """Return p values adjusted for being several (Holm 1979): each may be read as if it were the only one."""
    order = sorted(range(len(p)), key=lambda index: p[index])
    adjusted, highest = [0.0] * len(p), 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - place) * p[index]))
        adjusted[index] = highest
    return adjusted


def sign_flip(differences: Floats, units: Ints, *, seed: int, draws: int = DRAWS) -> float:
    """Return the two-sided p of a mean paired difference: in each unit the two models may as well be exchanged.

    differences: (N,) a per-image figure of the first model less that of the second; units: (N,) what is one
    observation. For any mean; the data itself is counted as one of the draws, and what is just as far apart half, as in
    the mid-p of McNemar's test: of few units, the exact p finds too little.
    """
    sums = _sums(differences, units)
    return float(sign_flips(sums[:, None], seed=seed, draws=draws)[0])


def _sums(terms: Floats, units: Ints) -> Floats:
    number = np.unique(units, return_inverse=True)[1]
    return np.asarray(np.bincount(number, weights=terms), dtype=np.float64)


def sign_flips(values: Floats, *, seed: int, draws: int = DRAWS) -> Floats:
    """Return the same p for F columns of differences by unit, (G, F): (F,), all from the same exchanges."""
    seen, beyond = np.abs(values.sum(axis=0)), np.full(values.shape[1], 0.5)
    moving = np.flatnonzero(np.abs(values).max(axis=1) > 0)
    generator, few = np.random.default_rng(seed), values[moving]
    width = -(-len(few) // 8)
    rows = max(1, 2**22 // max(8 * width, 1))
    for start in range(0, draws, rows):
        size = min(rows, draws - start)
        bits = np.frombuffer(generator.bytes(size * width), dtype=np.uint8).reshape(size, width)
        signs = 2.0 * np.unpackbits(bits, axis=1)[:, : len(few)] - 1.0
        drawn = np.abs(signs @ few)
        beyond += 0.5 * (drawn > seen * (1 + 1e-9)).sum(axis=0) + 0.5 * (drawn >= seen * (1 - 1e-9)).sum(axis=0)
    nothing = seen <= 1e-12 * np.abs(values).sum(axis=0)  # but for rounding
    return np.where(nothing, 1.0, beyond / (draws + 1))


@dataclass(frozen=True)
class Resampled:
    """A mean difference over repeated splits or folds. value: mean; error: corrected; df, p: of the t test."""

    value: float
    error: float
    df: int
    p: float


def corrected_resampled_t(differences: Sequence[float], *, n_train: int, n_test: int) -> Resampled:
    """Test differences over k trainings on overlapping data (Nadeau and Bengio 2003, Machine Learning 52:239).

    The trainings share images, so their plain variance is too small: 1 / k becomes 1 / k + n_test / n_train.
    Differences that are all the same have p 1: there is no spread to judge by. Raises `ValueError` for fewer than two.
    """
    k = len(differences)
    if k < 2 or n_train < 1 or n_test < 1:
        raise ValueError("two differences at least, and images on both sides, are needed")
    values = np.asarray(differences, dtype=np.float64)
    error = math.sqrt(float(values.var(ddof=1)) * (1 / k + n_test / n_train))
    mean = float(values.mean())
    if error <= 1e-15:
        return Resampled(mean, 0.0, k - 1, 1.0)
    return Resampled(mean, error, k - 1, float(2 * t.sf(abs(mean) / error, k - 1)))


@dataclass(frozen=True)
class Spread:
    """Where the spread of a figure over seeds comes from, as standard deviations.

    seed: of trainings alone. data: of the test images alone, for a model trained once more. between: plain deviation
    of the runs' values.
    """

    seed: float
    data: float
    between: float


def spread_of(values: Floats) -> Spread:
    """Part the spread of a mean per-image figure: values (S, N), one row per seed, one column per unit.

    A two-way table without repetition: how much seeds differ beyond what the units' residual noise gives by chance,
    and how much units differ. Raises `ValueError` for fewer than two seeds or units.
    """
    s, n = values.shape
    if s < 2 or n < 2:
        raise ValueError("two seeds and two units at least are needed")
    rows, columns = values.mean(axis=1), values.mean(axis=0)
    residual = values - rows[:, None] - columns + values.mean()
    noise = float((residual**2).sum()) / ((s - 1) * (n - 1))
    between = float(rows.var(ddof=1))
    seed = max(0.0, between - noise / n)
    unit = max(0.0, float(columns.var(ddof=1)) - noise / s)
    return Spread(math.sqrt(seed), math.sqrt((unit + noise) / n), math.sqrt(between))
