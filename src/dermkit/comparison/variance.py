"""Several trainings of two recipes: what trainings move, what test images move, and a difference that minds both.

A figure of one training strays for two reasons: another training of the recipe on the same images gives another one,
and so do other images. A test that minds one of the two finds differences that are not there (`benchmarks/repeats.py`).
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
    """One figure of several trainings of a recipe on the same images, and what moves it, as standard deviations.

    between: plain deviation of the trainings' values, which another training on these images adds. seed: the same
    without what the images' chance puts into it, so that on endless images it would be this. data: of one training's
    value over other images. between and seed are None for a single training, data for a single unit. units:
    independent observations that carry the figure, 0 where it is not known.
    """

    values: tuple[float, ...]
    sd: float | None
    sd_seed: float | None
    sd_images: float | None
    n_groups: int = 0

    @property
    def mean(self) -> float:
        """Return the mean over the trainings."""
        return math.fsum(self.values) / len(self.values)

    @property
    def n_runs(self) -> int:
        """Return how many trainings there are."""
        return len(self.values)


@dataclass(frozen=True)
class RecipeDifference:
    """Mean of the first recipe's trainings less that of the second's.

    error: its standard error over new trainings and new images; images, seeds: the two parts of it, as errors too;
    df, p: of the t test; p is None where nothing varies and yet they differ. borrowed: a recipe was trained once and
    its spread over seeds was taken from the other. parts: the variances with their own degrees of freedom, where one
    number of them for their sum would promise too much; empty where df holds.
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
        """Return the 95 % interval, None where nothing varies."""
        if self.standard_error <= 0:
            return None
        half_width = interval_half_width(
            self.variance_terms or ((self.standard_error**2, self.df),), 1 - CONFIDENCE_LEVEL
        )
        return self.value - half_width, self.value + half_width


def decompose_variance(values: Floats, resampled_values: Floats) -> VarianceComponents:
    """Part the spread of any figure: (S,) values of S trainings, (S, B) the same on B resamples of the images.

    Every resample has the same images for all trainings. What trainings do to single images, and the images then
    average, shows as spread of the values beside their mean over resamples; a two-way table without repetition gives
    the same for a mean figure (`paired.spread_of`).
    """
    n_runs = len(values)
    sd_images = math.sqrt(float(resampled_values.var(axis=1).mean())) if resampled_values.shape[1] > 1 else None
    if n_runs < 2:
        return VarianceComponents(tuple(values.tolist()), None, None, sd_images)
    variance = float(values.var(ddof=1))
    sd_seed = math.sqrt(max(0.0, variance - _image_variance(resampled_values)))
    return VarianceComponents(tuple(values.tolist()), math.sqrt(variance), sd_seed, sd_images)


def interval_half_width(variance_terms: Sequence[tuple[float, float]], alpha: float) -> float:
    """Return how far chance takes a sum of independent parts at most, but for a share `alpha`; two-sided.

    parts: the variance of each and its degrees of freedom. Each counts with its own quantile of t (Banerjee 1960,
    Sankhya 22:357): a part known from two trainings may be small by chance, and then says nothing of that.
    """
    return math.sqrt(math.fsum(variance * float(stdtrit(df, alpha / 2)) ** 2 for variance, df in variance_terms))


def _p_value(value: float, variance_terms: Sequence[tuple[float, float]]) -> float:
    """Return the share `alpha` at which the reach is just the value."""
    low, high = -230.0, 0.0  # of log(alpha), over which the reach falls
    for _ in range(60):
        midpoint = (low + high) / 2
        low, high = (
            (midpoint, high)
            if interval_half_width(variance_terms, math.exp(midpoint)) > abs(value)
            else (low, midpoint)
        )
    return math.exp(high)


def _image_variance(resampled_values: Floats) -> float:
    """Return the variance that images add to the differences between trainings of one recipe."""
    n_runs, n_resamples = resampled_values.shape
    return (
        0.0
        if n_resamples < 2
        else float((resampled_values - resampled_values.mean(axis=0)).var(axis=1).mean()) * n_runs / (n_runs - 1)
    )


def recipe_difference(
    first: tuple[VarianceComponents, Floats], second: tuple[VarianceComponents, Floats], *, n_groups: int
) -> RecipeDifference | None:
    """Set two recipes' trainings against each other; each with its (S, B) values on the same resamples of images.

    The variance is that of the difference of means over images, and of each recipe's trainings divided by their
    number; degrees of freedom by Satterthwaite. units: independent observations that carry the figure. A recipe that
    was trained once is one draw of a spread that is taken to be the other's (Crawford and Howell 1998, The Clinical
    Neuropsychologist 12:482): of the plain spread on these images, and images and trainings each with their own
    degrees of freedom. None where neither was trained twice or there is one unit: then nothing says how far the
    difference strays.
    """
    (first_components, first_samples), (second_components, second_samples) = first, second
    if (
        (first_components.n_runs < 2 and second_components.n_runs < 2)
        or n_groups < 2
        or first_samples.shape[1] < 2
    ):
        return None
    value = first_components.mean - second_components.mean
    # A bootstrap of G units is too narrow by one of them.
    image_variance = (
        float((first_samples.mean(axis=0) - second_samples.mean(axis=0)).var()) * n_groups / (n_groups - 1)
    )
    satterthwaite_terms = [image_variance**2 / (n_groups - 1)]
    seed_variance, is_spread_borrowed = 0.0, min(first_components.n_runs, second_components.n_runs) < 2
    for components, weight in _seed_weights(first_components, second_components):
        # Estimated by subtraction it is often 0; the one draw of a borrowed spread then strays further than is said.
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
    """Return each recipe whose spread over seeds is known, and how often its variance counts."""
    if first_components.n_runs < 2:
        return [(second_components, 1 + 1 / second_components.n_runs)]
    if second_components.n_runs < 2:
        return [(first_components, 1 + 1 / first_components.n_runs)]
    return [(first_components, 1 / first_components.n_runs), (second_components, 1 / second_components.n_runs)]


def images_to_detect(
    recipe_gap: RecipeDifference, n: int, *, alpha: float = 0.05, power: float = 0.8
) -> int | None:
    """Return how many images would show this difference with these trainings; None where no number of images would.

    Only the images' part of the variance falls with their number.
    """
    image_budget = _image_variance_budget(recipe_gap, alpha, power)
    if image_budget <= 0 or recipe_gap.error_images**2 * n > image_budget * MAX_IMAGES:
        return None
    return max(1, math.ceil(n * recipe_gap.error_images**2 / image_budget))


def needs_trainings(recipe_gap: RecipeDifference, *, alpha: float = 0.05, power: float = 0.8) -> bool:
    """Tell whether no number of images would show this difference, since so few trainings stray too far."""
    return (
        recipe_gap.value != 0
        and recipe_gap.error_seeds > 0
        and _image_variance_budget(recipe_gap, alpha, power) <= 0
    )


def _image_variance_budget(recipe_gap: RecipeDifference, alpha: float, power: float) -> float:
    """Return the variance that images may add, the trainings' part taken off."""
    return (recipe_gap.value / z_sum(alpha, power)) ** 2 - recipe_gap.error_seeds**2
