"""Variance components of repeated trainings (seed and test images), and a test of two recipes that accounts for both.

A metric of one training run varies with the seed and with the test images. A test that accounts for only one of the two
rejects too often (`benchmarks/repeats.py`).

Shapes: S training runs, B bootstrap resamples of the images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit
from scipy.stats import t

from dermkit.metrics.stats.arrays import Floats
from dermkit.metrics.stats.intervals import CONFIDENCE_LEVEL
from dermkit.metrics.stats.power import MAX_IMAGES, z_sum

VARIANCE_ROUNDING = 1e-15
"""Below this, a variance or a difference of metrics is rounding."""


@dataclass(frozen=True)
class VarianceComponents:
    """One metric of several training runs of a recipe, with the standard deviations of its sources of variance.

    values: one per run. sd: between runs on these images. sd_seed: the same without the sampling error of the images,
    as on infinitely many images. sd_images: of one run over other test images. n_groups: independent groups behind the
    metric, 0 if unknown. sd and sd_seed are None for a single run, sd_images for a single group.
    """

    values: tuple[float, ...]
    sd: float | None
    sd_seed: float | None
    sd_images: float | None
    n_groups: int = 0

    @property
    def mean(self) -> float:
        """Return the mean over the runs."""
        return math.fsum(self.values) / len(self.values)

    @property
    def n_runs(self) -> int:
        """Return the number of runs."""
        return len(self.values)


@dataclass(frozen=True)
class RecipeDifference:
    """Mean of the first recipe's runs minus that of the second's.

    standard_error: over new runs and new images; error_images, error_seeds: its two components. df, p: of the t test;
    p is None if nothing varies and yet they differ. is_spread_borrowed: one recipe was trained once, and the other's
    between-seed spread is used for it. variance_terms: (variance, degrees of freedom) pairs if pooled degrees of
    freedom would be optimistic, else empty.
    """

    value: float
    standard_error: float
    error_images: float
    error_seeds: float
    df: float
    p: float | None
    is_spread_borrowed: bool = False
    variance_terms: tuple[tuple[float, float], ...] = ()

    @property
    def interval(self) -> tuple[float, float] | None:
        """Return the 95 % interval, None if nothing varies."""
        if self.standard_error <= 0:
            return None
        half_width = interval_half_width(
            self.variance_terms or ((self.standard_error**2, self.df),), 1 - CONFIDENCE_LEVEL
        )
        return self.value - half_width, self.value + half_width


def decompose_variance(values: Floats, resampled_values: Floats) -> VarianceComponents:
    """Decompose the variance of any metric; values: (S,), resampled_values: (S, B).

    All runs share the same resamples. The spread of the runs' resampled values around their mean over runs estimates
    the part of the between-run variance that the images cause; for a mean metric it equals two-way analysis of variance
    without replication (`paired_tests.two_way_spread`).
    """
    n_runs = len(values)
    sd_images = math.sqrt(float(resampled_values.var(axis=1).mean())) if resampled_values.shape[1] > 1 else None
    if n_runs < 2:
        return VarianceComponents(tuple(values.tolist()), None, None, sd_images)
    variance = float(values.var(ddof=1))
    sd_seed = math.sqrt(max(0.0, variance - _image_variance(resampled_values)))
    return VarianceComponents(tuple(values.tolist()), math.sqrt(variance), sd_seed, sd_images)


def interval_half_width(variance_terms: Sequence[tuple[float, float]], alpha: float) -> float:
    """Return the half-width of the two-sided (1 - alpha) interval of a sum of independent estimates.

    variance_terms: the variance and the degrees of freedom of each. Each counts with its own t quantile (Banerjee 1960,
    Sankhya 22:357), since a variance known from two runs may be small by chance.
    """
    return math.sqrt(math.fsum(variance * float(stdtrit(df, alpha / 2)) ** 2 for variance, df in variance_terms))


def _p_value(value: float, variance_terms: Sequence[tuple[float, float]]) -> float:
    """Return the alpha at which the half-width equals |value|: the two-sided p of no difference."""
    low, high = -230.0, 0.0  # of log(alpha), in which the half-width decreases
    for _ in range(60):
        midpoint = (low + high) / 2
        low, high = (
            (midpoint, high)
            if interval_half_width(variance_terms, math.exp(midpoint)) > abs(value)
            else (low, midpoint)
        )
    return math.exp(high)


def _image_variance(resampled_values: Floats) -> float:
    """Return the part of the between-run variance of one recipe that the images cause."""
    n_runs, n_resamples = resampled_values.shape
    return (
        0.0
        if n_resamples < 2
        else float((resampled_values - resampled_values.mean(axis=0)).var(axis=1).mean()) * n_runs / (n_runs - 1)
    )


def recipe_difference(
    first: tuple[VarianceComponents, Floats], second: tuple[VarianceComponents, Floats], *, n_groups: int
) -> RecipeDifference | None:
    """Test the difference of two recipes' means; each has its (S, B) values on the same resamples of the images.

    The variance is that of the difference of means over images plus each recipe's seed variance divided by its number
    of runs; degrees of freedom by Satterthwaite. n_groups: independent groups behind the metric. A recipe trained once
    borrows the other's between-run spread (Crawford and Howell 1998, The Clinical Neuropsychologist 12:482); images and
    seeds then keep separate degrees of freedom. None if neither recipe was trained twice or there is one group: the
    variance is then unknown.
    """
    (first_components, first_samples), (second_components, second_samples) = first, second
    if (
        (first_components.n_runs < 2 and second_components.n_runs < 2)
        or n_groups < 2
        or first_samples.shape[1] < 2
    ):
        return None
    value = first_components.mean - second_components.mean
    # The bootstrap variance of G groups is too small by the factor (G - 1) / G.
    image_variance = (
        float((first_samples.mean(axis=0) - second_samples.mean(axis=0)).var()) * n_groups / (n_groups - 1)
    )
    satterthwaite_terms = [image_variance**2 / (n_groups - 1)]
    seed_variance, is_spread_borrowed = 0.0, min(first_components.n_runs, second_components.n_runs) < 2
    for components, weight in _seed_weights(first_components, second_components):
        # sd_seed is found by subtraction and often 0; for the single run of a borrowed spread that is optimistic.
        seed_variance += ((components.sd if is_spread_borrowed else components.sd_seed) or 0.0) ** 2 * weight
        satterthwaite_terms.append(((components.sd or 0.0) ** 2 * weight) ** 2 / (components.n_runs - 1))
    variance = image_variance + seed_variance
    if variance <= VARIANCE_ROUNDING**2:
        return RecipeDifference(
            value, 0.0, 0.0, 0.0, math.inf, 1.0 if abs(value) <= VARIANCE_ROUNDING else None, is_spread_borrowed
        )
    if is_spread_borrowed:
        n_runs = max(first_components.n_runs, second_components.n_runs)
        variance_terms = ((image_variance, n_groups - 1.0), (seed_variance, n_runs - 1.0))
        errors = math.sqrt(variance), math.sqrt(image_variance), math.sqrt(seed_variance)
        return RecipeDifference(
            value, *errors, n_runs - 1.0, _p_value(value, variance_terms), is_spread_borrowed, variance_terms
        )
    df = max(1.0, variance**2 / math.fsum(satterthwaite_terms))
    standard_error = math.sqrt(variance)
    p = float(2 * t.sf(abs(value) / standard_error, df))
    return RecipeDifference(
        value, standard_error, math.sqrt(image_variance), math.sqrt(seed_variance), df, p, is_spread_borrowed
    )


def _seed_weights(
    first_components: VarianceComponents, second_components: VarianceComponents
) -> list[tuple[VarianceComponents, float]]:
    """Return each recipe whose between-run spread is known, with the weight of its variance."""
    if first_components.n_runs < 2:
        return [(second_components, 1 + 1 / second_components.n_runs)]
    if second_components.n_runs < 2:
        return [(first_components, 1 + 1 / first_components.n_runs)]
    return [(first_components, 1 / first_components.n_runs), (second_components, 1 / second_components.n_runs)]


def images_to_detect(
    recipe_gap: RecipeDifference, n: int, *, alpha: float = 0.05, power: float = 0.8
) -> int | None:
    """Return how many images are needed to detect this difference with these runs; None if no number is enough.

    Only the images' part of the variance decreases with their number.
    """
    image_budget = _image_variance_budget(recipe_gap, alpha, power)
    if image_budget <= 0 or recipe_gap.error_images**2 * n > image_budget * MAX_IMAGES:
        return None
    return max(1, math.ceil(n * recipe_gap.error_images**2 / image_budget))


def needs_trainings(recipe_gap: RecipeDifference, *, alpha: float = 0.05, power: float = 0.8) -> bool:
    """Tell whether no number of images is enough to detect this difference, because the seed variance is too large."""
    return (
        recipe_gap.value != 0
        and recipe_gap.error_seeds > 0
        and _image_variance_budget(recipe_gap, alpha, power) <= 0
    )


def _image_variance_budget(recipe_gap: RecipeDifference, alpha: float, power: float) -> float:
    """Tell whether no number of images is enough to detect this difference, since the seed variance is too large."""
    return (recipe_gap.value / z_sum(alpha, power)) ** 2 - recipe_gap.error_seeds**2
