"""95 % intervals: Wilson or Clopper-Pearson for proportions, bootstrap (percentile or BCa) for all else.

A group is the resampling unit: a lesion or patient. Resamples are weights per group, never copied rows.

Shapes: N images, G groups, B resamples.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv, ndtr, ndtri, stdtrit

from dermkit.metrics.stats.arrays import Bools, Floats, Ints, sum_by_group
from dermkit.metrics.stats.estimate import NO_METHOD, UNRELIABLE_PREFIX, Estimate, with_caveats

CONFIDENCE_LEVEL = 0.95
Z = float(ndtri(0.5 + CONFIDENCE_LEVEL / 2))
"""Standard normal quantile of a two-sided interval."""

N_RESAMPLES = 2000
MAX_UNDEFINED_FRACTION = 0.05
"""Above this fraction of resamples in which a metric is undefined, its interval is marked unreliable."""

CHUNK_ELEMENTS = 1 << 20
"""Weights in memory at once (8 MB as float64): about the size of a CPU cache, and constant for a million images."""

ONE_GROUP_REASON = "no interval: one group only"
MIN_GROUPS = 30
"""With fewer groups, proportions get the exact (conservative) interval, and every interval is marked unreliable:
coverage was verified from 30 on (benchmarks/coverage.md)."""

MIN_EFFECTIVE_GROUPS = 24
"""Kish's effective number of 30 groups of one to five images, from which coverage was verified: with fewer, as where a
few patients have most of the images, 92 % was measured (benchmarks/coverage.md)."""

NEAR_BOUNDARY = "so near to 0 or 1"
MIN_RARER = 2
"""Fewest groups with the rarer outcome: below it, coverage near 0 and 1 falls short (benchmarks/coverage.md)."""

WILSON = "wilson"
CLOPPER_PEARSON = "clopper-pearson"
GROUPED_WILSON = "wilson by group"
GROUPED_CLOPPER_PEARSON = "clopper-pearson by group"


@dataclass(frozen=True)
class Interval:
    """Lower and upper bound, None without an interval, and its caveats ("" = none)."""

    ci95: tuple[float, float] | None
    reason: str = ""


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion; raises `ValueError` unless 0 <= successes <= n and n > 0."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"a proportion needs 0 <= successes <= n and n > 0, not {successes} of {n}")
    return _score_interval(successes / n, n)


def _score_interval(fraction: float, n: float) -> tuple[float, float]:
    z = Z
    center = (fraction + z * z / (2 * n)) / (1 + z * z / n)
    half_width = z * math.sqrt(fraction * (1 - fraction) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At 0 and 1 the bound is exact; rounding would miss it.
    return (0.0 if fraction == 0 else center - half_width, 1.0 if fraction == 1 else center + half_width)


def clopper_pearson_interval(
    successes: float, n: float, *, level: float = CONFIDENCE_LEVEL
) -> tuple[float, float]:
    """Return the exact interval of a proportion, whose coverage is at least `level`; counts need not be integers.

    Raises `ValueError` unless 0 <= successes <= n and n > 0.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"a proportion needs 0 <= successes <= n and n > 0, not {successes} of {n}")
    tail = (1 - level) / 2
    low = 0.0 if successes == 0 else float(betaincinv(successes, n - successes + 1, tail))
    high = 1.0 if successes == n else float(betaincinv(successes + 1, n - successes, 1 - tail))
    return low, high


def proportion_interval(successes: int, n: int) -> tuple[tuple[float, float], str]:
    """Return the interval of a proportion of independent images, and its method."""
    if n < MIN_GROUPS:
        return clopper_pearson_interval(successes, n), CLOPPER_PEARSON
    return wilson_interval(successes, n), WILSON


def design_effect(is_success: Bools, groups: Ints) -> float:
    """Return the design effect of a proportion (Kish): its clustered variance over that of independent images, >= 1.

    is_success, groups: (n,). If all outcomes are equal, the clustered variance is unknown and the mean number of images
    per group is returned.
    """
    n, fraction = len(is_success), float(is_success.mean())
    group_index = np.unique(groups, return_inverse=True)[1]
    n_groups = int(group_index.max()) + 1
    if fraction in (0.0, 1.0) or n_groups < 2:
        return max(1.0, n / max(n_groups, 1)) if fraction in (0.0, 1.0) else 1.0
    group_sums = sum_by_group(is_success.astype(np.float64) - fraction, group_index, n_groups)
    variance = float((group_sums**2).sum()) / n**2 * n_groups / (n_groups - 1)
    return max(1.0, variance / (fraction * (1 - fraction) / n))


def clustered_proportion_interval(is_success: Bools, groups: Ints) -> tuple[tuple[float, float], str]:
    """Return the interval of a proportion of grouped images at the effective sample size (Korn and Graubard)."""
    n = len(is_success)
    effective_n = n / design_effect(is_success, groups)
    successes = float(is_success.mean()) * effective_n
    if effective_n < MIN_GROUPS:
        return clopper_pearson_interval(min(successes, effective_n), effective_n), GROUPED_CLOPPER_PEARSON
    return _score_interval(float(is_success.mean()), effective_n), GROUPED_WILSON


def too_few(n_groups: int, kind: str = "", *, min_groups: int = MIN_GROUPS) -> list[str]:
    """Return the caveat of an interval from fewer than `min_groups` groups; empty if there are enough."""
    return [] if n_groups >= min_groups else [f"{UNRELIABLE_PREFIX}: {n_groups} {kind}units, {min_groups} needed"]


def effective_group_count(groups: Ints) -> float:
    """Return Kish's effective number of groups: how many of equal size have as even a share of the (n,) images."""
    sizes = np.unique(groups, return_counts=True)[1].astype(np.float64)
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def _too_uneven(n_groups: int, groups: Ints) -> list[str]:
    """Return the caveat of an interval from enough groups of which a few have most of the images."""
    effective_count = effective_group_count(groups)
    if effective_count >= MIN_EFFECTIVE_GROUPS:
        return []
    return [
        f"{UNRELIABLE_PREFIX}: {n_groups} units of uneven size are worth {effective_count:.0f}, "
        f"{MIN_EFFECTIVE_GROUPS} needed"
    ]


def proportion_estimate(is_success: Bools, groups: Ints) -> Estimate:
    """Return a proportion of (n,) images with its interval and caveats; no interval for a single group."""
    n, successes, n_groups = len(is_success), int(is_success.sum()), len(np.unique(groups))
    if n_groups == n:
        (bounds, method), n_rarer = proportion_interval(successes, n), min(successes, n - successes)
    elif n_groups == 1:
        return Estimate(successes / n, None, n, NO_METHOD, ONE_GROUP_REASON)
    else:
        bounds, method = clustered_proportion_interval(is_success, groups)
        n_rarer = min(len(np.unique(groups[mask])) for mask in (is_success, ~is_success))
    boundary_caveats = (
        [f"{UNRELIABLE_PREFIX}: {n_rarer} of {n_groups} units on one side, {NEAR_BOUNDARY}"]
        if n_rarer < MIN_RARER
        else []
    )
    size_caveats = too_few(n_groups) or ([] if n_groups == n else _too_uneven(n_groups, groups))
    return with_caveats(Estimate(successes / n, bounds, n, method), size_caveats or boundary_caveats)


def mean_estimate(values: Floats) -> Estimate:
    """Return the mean of (n,) independent values with Student's t interval; no interval for a single value.

    Raises `ValueError` for no values.
    """
    n = len(values)
    if not n:
        raise ValueError("a mean needs a value")
    mean = float(values.mean())
    if n == 1:
        return Estimate(mean, None, 1, NO_METHOD, "one value has no spread")
    reach = float(stdtrit(n - 1, 0.975) * values.std(ddof=1) / np.sqrt(n))
    return with_caveats(Estimate(mean, (mean - reach, mean + reach), n, "Student's t"), too_few(n))


@dataclass(frozen=True, eq=False)
class SharedGroups:
    """What proportions of disjoint images share through groups that hold images of several of them.

    correlations: (P, P). widening: Student's quantile over the normal one, 1 where nothing is shared.
    """

    correlations: Floats
    widening: float = 1.0

    @property
    def any(self) -> bool:
        """Whether some group holds images of two of the proportions."""
        return self.widening > 1


def shared_groups(masks: Sequence[Bools], is_success: Sequence[Bools], groups: Ints) -> SharedGroups:
    """Return the correlations of P proportions of disjoint images that may share groups: cluster sandwich.

    masks: the images of each proportion, P times (N,); is_success, groups: (N,). The deviations of a proportion are
    summed per group, and sums of the same group are multiplied. Its variance is the one of its interval, at least that
    of independent images. Student's degrees of freedom are Kish's effective number of groups, less one.
    """
    group_index = np.unique(groups, return_inverse=True)[1]
    n_groups = int(group_index.max()) + 1
    has_images = np.array([np.bincount(group_index[mask], minlength=n_groups) > 0 for mask in masks])
    shared = np.flatnonzero(has_images.sum(axis=0) > 1)
    if not len(shared):
        return SharedGroups(np.eye(len(masks)))
    deviations = [
        _standardised_group_sums(success[mask], group_index[mask], n_groups)[shared]
        for mask, success in zip(masks, is_success, strict=True)
    ]
    correlations = np.array(deviations) @ np.array(deviations).T
    np.fill_diagonal(correlations, 1.0)
    from scipy.stats import t  # here: scipy.stats takes a second to import, and a prediction needs none of it

    t_quantile = float(t.isf((1 - CONFIDENCE_LEVEL) / 2, max(effective_group_count(groups) - 1, 1.0)))
    return SharedGroups(correlations, t_quantile / Z)


def _standardised_group_sums(is_success: Bools, group_index: Ints, n_groups: int) -> Floats:
    """Return what each group adds to the deviation of a proportion, in its standard errors, (G,); 0 without spread."""
    n, fraction = len(is_success), float(is_success.mean()) if len(is_success) else 0.0
    if fraction in (0.0, 1.0):
        return np.zeros(n_groups)
    own_groups = len(np.unique(group_index))
    sums = sum_by_group(is_success.astype(np.float64) - fraction, group_index, n_groups) / n
    sums *= math.sqrt(own_groups / max(own_groups - 1, 1))
    return sums / math.sqrt(max(float((sums**2).sum()), fraction * (1 - fraction) / n))


def mean_of_proportions_interval(
    proportions: Floats, bounds: Sequence[tuple[float, float]], shared: SharedGroups | None = None
) -> tuple[float, float]:
    """Return the interval of a mean of proportions from the interval of each (Newcombe 2001, MOVER).

    shared: by default nothing; Zou and Donner 2008 (Statistics in Medicine 27:1693) add what the proportions covary.
    """
    low, high = np.array(bounds, dtype=np.float64).T
    mean, k = float(proportions.mean()), len(proportions)
    off_diagonal = np.zeros((k, k)) if shared is None else shared.correlations - np.eye(k)
    widening = 1.0 if shared is None else shared.widening

    def distance(distances: Floats) -> float:
        return widening * float(np.sqrt(max(0.0, (distances**2).sum() + distances @ off_diagonal @ distances)) / k)

    return max(0.0, mean - distance(proportions - low)), min(1.0, mean + distance(high - proportions))


def difference_interval(
    first: tuple[float, tuple[float, float]], second: tuple[float, tuple[float, float]], correlation: float = 0.0
) -> tuple[float, float]:
    """Return the interval of first - second, two estimates, each as (value, (low, high)).

    Newcombe's square-and-add (MOVER): the distances from each value to its bounds are added as squares; correlation: of
    the two, 0 if they are independent.
    """
    (first_value, (first_low, first_high)), (second_value, (second_low, second_high)) = first, second
    difference = first_value - second_value
    lower_distance = _difference_distance(first_value - first_low, second_high - second_value, correlation)
    upper_distance = _difference_distance(first_high - first_value, second_value - second_low, correlation)
    return difference - lower_distance, difference + upper_distance


def _difference_distance(first: float, second: float, correlation: float) -> float:
    if not correlation:
        return math.hypot(first, second)
    return math.sqrt(max(0.0, first**2 + second**2 - 2 * correlation * first * second))


def resample_weights(groups: Ints, *, seed: int, resamples: int = N_RESAMPLES) -> Iterator[Floats]:
    """Yield multiplicities of the images, (b, N), until `resamples` rows came; each row draws G groups of G.

    groups: (N,) labels 0 to G - 1, each used.
    """
    n_groups = int(groups.max()) + 1
    rows = max(1, CHUNK_ELEMENTS // max(len(groups), 1))
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        group_draws = generator.integers(0, n_groups, size=(size, n_groups))
        group_draws += np.arange(size)[:, None] * n_groups
        multiplicities = np.bincount(group_draws.ravel(), minlength=size * n_groups).reshape(size, n_groups)
        yield multiplicities.astype(np.float64)[:, groups]


def percentile_interval(value: float, samples: Floats) -> Interval:
    """Return the percentile interval of a figure from its resampled values (B,), NaN = undefined in that resample.

    Undefined resamples are dropped; over `MAX_UNDEFINED_FRACTION` of them, or an interval without width, or one that
    does not hold the value (a biased figure), is said in `reason`.
    """
    finite_samples = samples[np.isfinite(samples)]
    if not len(finite_samples):
        return Interval(None, "no interval: undefined in every resample")
    tail = (1 - CONFIDENCE_LEVEL) / 2
    low, high = (float(bound) for bound in np.quantile(finite_samples, [tail, 1 - tail]))
    return Interval(
        (low, high),
        "; ".join(_bootstrap_caveats(value, low, high, (len(samples) - len(finite_samples)) / len(samples))),
    )


def bca_interval(value: float, samples: Floats, jackknife: Floats) -> Interval:
    """Return the bias-corrected and accelerated interval (Efron 1987): percentiles moved by bias and skewness.

    jackknife: (G,) the metric without each group in turn, NaN = undefined. If the metric is undefined without some
    group, or all jackknife values are equal, the percentile interval is returned.
    """
    percentile = percentile_interval(value, samples)
    finite_samples = samples[np.isfinite(samples)]
    deviations = jackknife.mean() - jackknife
    sum_of_squares = float((deviations**2).sum())
    if percentile.ci95 is None or not np.isfinite(sum_of_squares) or sum_of_squares <= 0:
        return percentile
    fraction_below = ((finite_samples < value).sum() + 0.5 * (finite_samples == value).sum()) / len(finite_samples)
    if not 0 < fraction_below < 1:
        return percentile
    bias = float(ndtri(fraction_below))
    skewness = float((deviations**3).sum()) / (6 * sum_of_squares**1.5)
    adjusted_z = [bias + (bias + z) / (1 - skewness * (bias + z)) for z in (-Z, Z)]
    low, high = (
        float(bound) for bound in np.quantile(finite_samples, np.asarray(ndtr(adjusted_z), dtype=np.float64))
    )
    return Interval(
        (low, high),
        "; ".join(_bootstrap_caveats(value, low, high, (len(samples) - len(finite_samples)) / len(samples))),
    )


def _bootstrap_caveats(value: float, low: float, high: float, undefined_fraction: float) -> list[str]:
    caveats = []
    if undefined_fraction > MAX_UNDEFINED_FRACTION:
        caveats.append(
            f"{UNRELIABLE_PREFIX}: undefined in {undefined_fraction:.0%} of the resamples, which were dropped"
        )
    # Without a tolerance, rounding of a constant metric would count as width.
    tolerance = 1e-12 * max(1.0, abs(value))
    if high - low <= tolerance:
        caveats.append(f"{UNRELIABLE_PREFIX}: every resample gave the same value")
    elif not low - tolerance <= value <= high + tolerance:
        caveats.append(f"{UNRELIABLE_PREFIX}: the bootstrap is biased and does not hold the value")
    return caveats
