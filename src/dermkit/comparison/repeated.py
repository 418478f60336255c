"""Comparison of two recipes that were trained repeatedly: differences, variance components, tests.

On the same test images: a t test with variance from seeds and from images (bootstrap). Over cross-validation folds:
the corrected resampled t test (Nadeau and Bengio), since training sets overlap.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import t

from dermkit.comparison import variance
from dermkit.comparison.variance import RecipeDifference, VarianceComponents
from dermkit.comparison.verdict import RepeatedDifference
from dermkit.metrics.classification.difference import COMPARED_METRICS
from dermkit.metrics.classification.resampled_metrics import (
    ResampledMetrics,
    compared_metrics,
    n_groups_for,
    n_images_for,
)
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.stats import intervals, paired_tests
from dermkit.metrics.stats.arrays import Floats
from dermkit.metrics.stats.estimate import Estimate, undefined_estimate, with_caveats

TRAINING_T_METHOD = "t over trainings and images"
FOLD_T_METHOD = "corrected resampled t"
NO_SPREAD_REASON = "no interval: no spread to judge by"
UNBOUNDED_METRICS = ("loss",)
WIDE_METRICS = ("mcc_multiclass", "brier")
"""Metrics whose difference lies between -2 and 2, not between -1 and 1."""


@dataclass(frozen=True, eq=False)
class ResampledRun:
    """The metrics of one training run: point, name -> value; samples, name -> (B,) on bootstrap resamples."""

    scored_set: ScoredSet
    point: dict[str, float]
    samples: dict[str, Floats]


def resample_run(scored_set: ScoredSet, *, seed: int, resamples: int = intervals.N_RESAMPLES) -> ResampledRun:
    """Return the metrics of a run on resamples that are the same for all runs on the same images and groups."""
    resampled_metrics = ResampledMetrics(scored_set)
    weights = intervals.resample_weights(
        np.arange(scored_set.n_groups), seed=seed, resamples=resamples if scored_set.n_groups > 1 else 1
    )
    batches = [compared_metrics(resampled_metrics.bootstrap(rows)) for rows in weights]
    samples = {name: np.concatenate([batch[name] for batch in batches]) for name in COMPARED_METRICS}
    point = compared_metrics(resampled_metrics.point_estimates)
    return ResampledRun(scored_set, {name: float(point[name][0]) for name in COMPARED_METRICS}, samples)


def metric_values(scored_set: ScoredSet) -> dict[str, float]:
    """Return the compared metrics of one run, NaN = undefined."""
    point = compared_metrics(ResampledMetrics(scored_set).point_estimates)
    return {name: float(point[name][0]) for name in COMPARED_METRICS}


def variance_components(runs: Sequence[ResampledRun]) -> dict[str, VarianceComponents]:
    """Return metric -> variance components, for every metric that is defined in all these runs on the same images."""
    values_by_metric = {name: _metric_samples([runs], name) for name in COMPARED_METRICS}
    return {
        name: replace(variance.decompose_variance(*values[0]), n_groups=_n_metric_groups(runs[0].scored_set, name))
        for name, values in values_by_metric.items()
        if values is not None
    }


def training_differences(
    first: Sequence[ResampledRun], second: Sequence[ResampledRun]
) -> list[RepeatedDifference]:
    """Compare two recipes by all their runs, which share the images and the resamples."""
    return [_training_difference(name, first, second) for name in COMPARED_METRICS]


def _training_difference(
    name: str, first: Sequence[ResampledRun], second: Sequence[ResampledRun]
) -> RepeatedDifference:
    scored_set, counts = first[0].scored_set, (len(first), len(second))
    n, n_groups = n_images_for(scored_set, name), _n_metric_groups(scored_set, name)
    values = _metric_samples([first, second], name)
    if values is None:
        no_estimate = undefined_estimate(n, "the figure is undefined for these images or one of the trainings")
        return RepeatedDifference(name, no_estimate, "none", None, n_trainings=counts)
    first_components, second_components = (variance.decompose_variance(*recipe_values) for recipe_values in values)
    recipe_gap = variance.recipe_difference(
        (first_components, values[0][1]), (second_components, values[1][1]), n_groups=n_groups
    )
    if recipe_gap is None:
        single_group_estimate = Estimate(
            first_components.mean - second_components.mean, None, n, "none", "no interval: the images are one unit"
        )
        return RepeatedDifference(
            name,
            single_group_estimate,
            "none",
            None,
            first=first_components,
            second=second_components,
            n_trainings=counts,
        )
    undefined_rate = 1 - values[0][1].shape[1] / len(first[0].samples[name])
    estimate = with_caveats(
        _to_estimate(name, recipe_gap, n, undefined_rate), intervals.too_few(n_groups_for(scored_set, name))
    )
    return RepeatedDifference(
        name,
        estimate,
        TRAINING_T_METHOD,
        recipe_gap.p,
        images_needed=variance.images_to_detect(recipe_gap, n),
        first=first_components,
        second=second_components,
        n_trainings=counts,
        error_seeds=recipe_gap.error_seeds,
        error_images=recipe_gap.error_images,
        is_spread_borrowed=recipe_gap.is_spread_borrowed,
        needs_trainings=variance.needs_trainings(recipe_gap),
    )


def _metric_samples(recipes: Sequence[Sequence[ResampledRun]], name: str) -> list[tuple[Floats, Floats]] | None:
    """Return each recipe's (S,) values and (S, B) resampled ones, without resamples in which a run is undefined."""
    values = [np.array([run.point[name] for run in recipe_runs]) for recipe_runs in recipes]
    if not all(np.isfinite(values_of_recipe).all() for values_of_recipe in values):
        return None
    resampled_values = [np.stack([run.samples[name] for run in recipe_runs]) for recipe_runs in recipes]
    is_defined = np.logical_and.reduce(
        [np.isfinite(values_of_recipe).all(axis=0) for values_of_recipe in resampled_values]
    )
    return [
        (value, values_of_recipe[:, is_defined])
        for value, values_of_recipe in zip(values, resampled_values, strict=True)
    ]


def _to_estimate(name: str, recipe_gap: RecipeDifference, n: int, undefined_rate: float) -> Estimate:
    """Return the difference as an estimate. undefined_rate: fraction of resamples in which a run lacks the metric."""
    bounds = None if recipe_gap.interval is None else _clip_to_range(name, *recipe_gap.interval)
    caveat = "" if recipe_gap.standard_error else NO_SPREAD_REASON
    if recipe_gap.standard_error and undefined_rate > intervals.MAX_UNDEFINED_FRACTION:
        caveat = f"interval unreliable: undefined in {undefined_rate:.0%} of the resamples, which were dropped"
    df_subject = ", of the trainings" if recipe_gap.variance_terms else ""
    return Estimate(
        recipe_gap.value,
        bounds,
        n,
        f"{TRAINING_T_METHOD}, {recipe_gap.df:.3g} degrees of freedom{df_subject}",
        caveat,
    )


def _clip_to_range(name: str, low: float, high: float) -> tuple[float, float]:
    """Return the bounds clipped to the range of possible differences."""
    limit = float("inf") if name in UNBOUNDED_METRICS else 2.0 if name in WIDE_METRICS else 1.0
    return max(-limit, low), min(limit, high)


def fold_differences(
    first: Sequence[Sequence[Mapping[str, float]]],
    second: Sequence[Sequence[Mapping[str, float]]],
    *,
    pooled_set: ScoredSet,
    n_train: int,
    n_test: int,
) -> list[RepeatedDifference]:
    """Compare two recipes fold by fold.

    first, second: for each fold, the metrics of its runs; the same folds in the same order. pooled_set: the images of
    all folds. n_train, n_test: mean images per fold. Raises `ValueError` for fewer than two folds.
    """
    return [
        _fold_difference(name, first, second, n_images_for(pooled_set, name), n_train, n_test)
        for name in COMPARED_METRICS
    ]


def _fold_difference(
    name: str,
    first: Sequence[Sequence[Mapping[str, float]]],
    second: Sequence[Sequence[Mapping[str, float]]],
    n: int,
    n_train: int,
    n_test: int,
) -> RepeatedDifference:
    counts = sum(map(len, first)), sum(map(len, second))
    first_components, second_components = _fold_components(first, name), _fold_components(second, name)
    if first_components is None or second_components is None:
        no_estimate = undefined_estimate(n, "the figure is undefined in a fold of one of the two")
        return RepeatedDifference(name, no_estimate, "none", None, n_trainings=counts)
    gaps = [a - b for a, b in zip(first_components.values, second_components.values, strict=True)]
    corrected_t = paired_tests.corrected_resampled_t(gaps, n_train=n_train, n_test=n_test)
    method = (
        f"{FOLD_T_METHOD}, {len(gaps) - 1} degrees of freedom, {n_train} training and {n_test} "
        f"test images in a fold"
    )
    half_width = float(t.isf((1 - intervals.CONFIDENCE_LEVEL) / 2, corrected_t.df)) * corrected_t.standard_error
    bounds = (
        _clip_to_range(name, corrected_t.mean - half_width, corrected_t.mean + half_width)
        if corrected_t.standard_error
        else None
    )
    estimate = Estimate(
        corrected_t.mean, bounds, n, method, "" if corrected_t.standard_error else NO_SPREAD_REASON
    )
    p = (
        corrected_t.p
        if corrected_t.standard_error
        else 1.0
        if abs(corrected_t.mean) <= variance.VARIANCE_ROUNDING
        else None
    )
    return RepeatedDifference(
        name,
        estimate,
        FOLD_T_METHOD,
        p,
        first=first_components,
        second=second_components,
        n_folds=len(gaps),
        n_trainings=counts,
    )


def fold_variance_components(folds: Sequence[Sequence[Mapping[str, float]]]) -> dict[str, VarianceComponents]:
    """Return metric -> variance components, for every metric that is defined in all runs of all folds."""
    components_by_metric = {name: _fold_components(folds, name) for name in COMPARED_METRICS}
    return {name: components for name, components in components_by_metric.items() if components is not None}


def _fold_components(folds: Sequence[Sequence[Mapping[str, float]]], name: str) -> VarianceComponents | None:
    """Return the fold means, their standard deviation, and the standard deviation of runs within a fold."""
    values_by_fold = [np.array([run[name] for run in fold_values]) for fold_values in folds]
    if not all(np.isfinite(fold_values).all() for fold_values in values_by_fold):
        return None
    means = np.array([fold_values.mean() for fold_values in values_by_fold])
    degrees_of_freedom = sum(len(fold_values) - 1 for fold_values in values_by_fold)
    within_fold_sum = sum(float(((fold_values - fold_values.mean()) ** 2).sum()) for fold_values in values_by_fold)
    return VarianceComponents(
        tuple(means.tolist()),
        float(means.std(ddof=1)),
        (within_fold_sum / degrees_of_freedom) ** 0.5 if degrees_of_freedom else None,
        None,
    )


def _n_metric_groups(scored_set: ScoredSet, name: str) -> int:
    """Return how many groups determine a metric's variance; of a mean over classes, all of them."""
    return scored_set.n_groups if name in ("balanced_accuracy", "f1_macro") else n_groups_for(scored_set, name)
