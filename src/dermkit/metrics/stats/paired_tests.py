"""Paired tests of two models on the same images, Holm's correction, and tests over seeds and folds.

None of these shows that two models are equal: a difference that is not significant is one that so many images cannot
show.

Shapes: N images, G groups, S seeds, F metrics.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom, t

from dermkit.metrics.stats.arrays import Bools, Floats, Ints

N_SIGN_FLIPS = 9_999


@dataclass(frozen=True)
class McNemarResult:
    """The discordant counts (images that only one model has right), all images, and McNemar's two-sided mid-p."""

    first_only: int
    second_only: int
    n_images: int
    p: float


def mcnemar(first_correct: Bools, second_correct: Bools) -> McNemarResult:
    """Compare which of (N,) independent images each model gets right.

    The mid-p of the exact test (Fagerland, Lydersen and Laake 2013, BMC Medical Research Methodology 13:91): with few
    discordant images the exact test rejects too seldom, the normal approximation too often.
    """
    first_only = int((first_correct & ~second_correct).sum())
    second_only = int((~first_correct & second_correct).sum())
    return McNemarResult(first_only, second_only, len(first_correct), float(mid_p(first_only, second_only)))


def mid_p(first_only: Floats | Ints | int, second_only: Floats | Ints | int) -> Floats:
    """Return the two-sided mid-p of so many discordant images in favour of either model, (...): 1 for equal counts."""
    total, smaller_count = np.add(first_only, second_only), np.minimum(first_only, second_only)
    p = 2 * binom.cdf(smaller_count, total, 0.5) - binom.pmf(smaller_count, total, 0.5)
    return np.asarray(np.where(np.equal(first_only, second_only), 1.0, np.minimum(p, 1.0)), dtype=np.float64)


def holm_adjust(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p values (1979), in the given order: each may be read as if it were the only test."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted_p, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted_p[index] = highest
    return adjusted_p


def sign_flip_test(values: Floats, *, seed: int, n_flips: int = N_SIGN_FLIPS) -> Floats:
    """Return the two-sided p of no mean difference of F metrics, (F,): sign-flip (permutation) test over groups.

    values: (G, F), what each group adds to the difference of each metric; all columns see the same flips. Under the
    null hypothesis the two models may be exchanged within a group. The observed data counts as one of the flips, and
    flips exactly as extreme count half, as in the mid-p of McNemar's test: with few groups the plain p rejects too
    seldom.
    """
    observed_sums, n_beyond = np.abs(values.sum(axis=0)), np.full(values.shape[1], 0.5)
    nonzero_groups = np.flatnonzero(np.abs(values).max(axis=1) > 0)
    generator, nonzero_values = np.random.default_rng(seed), values[nonzero_groups]
    n_bytes = -(-len(nonzero_values) // 8)
    rows = max(1, 2**22 // max(8 * n_bytes, 1))
    for start in range(0, n_flips, rows):
        size = min(rows, n_flips - start)
        bits = np.frombuffer(generator.bytes(size * n_bytes), dtype=np.uint8).reshape(size, n_bytes)
        signs = 2.0 * np.unpackbits(bits, axis=1)[:, : len(nonzero_values)] - 1.0
        flipped_sums = np.abs(signs @ nonzero_values)
        n_beyond += 0.5 * (flipped_sums > observed_sums * (1 + 1e-9)).sum(axis=0) + 0.5 * (
            flipped_sums >= observed_sums * (1 - 1e-9)
        ).sum(axis=0)
    is_zero = observed_sums <= 1e-12 * np.abs(values).sum(axis=0)  # but for rounding
    return np.where(is_zero, 1.0, n_beyond / (n_flips + 1))


@dataclass(frozen=True)
class CorrectedTTest:
    """A mean difference over repeated splits or folds, its corrected standard error, and the t test."""

    mean: float
    standard_error: float
    df: int
    p: float


def corrected_resampled_t(differences: Sequence[float], *, n_train: int, n_test: int) -> CorrectedTTest:
    """Test the differences of k training runs on overlapping data (Nadeau and Bengio 2003, Machine Learning 52:239).

    Training sets share images, so the plain variance is too small: 1 / k becomes 1 / k + n_test / n_train. If all
    differences are equal, p is 1. Raises `ValueError` for fewer than two.
    """
    k = len(differences)
    if k < 2 or n_train < 1 or n_test < 1:
        raise ValueError("two differences at least, and images on both sides, are needed")
    values = np.asarray(differences, dtype=np.float64)
    standard_error = math.sqrt(float(values.var(ddof=1)) * (1 / k + n_test / n_train))
    mean = float(values.mean())
    if standard_error <= 1e-15:
        return CorrectedTTest(mean, 0.0, k - 1, 1.0)
    return CorrectedTTest(mean, standard_error, k - 1, float(2 * t.sf(abs(mean) / standard_error, k - 1)))


@dataclass(frozen=True)
class TwoWaySpread:
    """Standard deviations of a metric: between seeds, over test images for one run, and of the runs' values."""

    sd_seed: float
    sd_images: float
    sd: float


def two_way_spread(values: Floats) -> TwoWaySpread:
    """Decompose the variance of a mean per-image metric; values: (S, N), a row per seed, a column per image.

    Two-way analysis of variance without replication: the variance of the seeds beyond the residual, and that of the
    images. Raises `ValueError` for fewer than two seeds or images.
    """
    s, n = values.shape
    if s < 2 or n < 2:
        raise ValueError("two seeds and two units at least are needed")
    row_means, column_means = values.mean(axis=1), values.mean(axis=0)
    residual = values - row_means[:, None] - column_means + values.mean()
    residual_variance = float((residual**2).sum()) / ((s - 1) * (n - 1))
    variance = float(row_means.var(ddof=1))
    seed_variance = max(0.0, variance - residual_variance / n)
    unit_variance = max(0.0, float(column_means.var(ddof=1)) - residual_variance / s)
    return TwoWaySpread(
        math.sqrt(seed_variance), math.sqrt((unit_variance + residual_variance) / n), math.sqrt(variance)
    )
