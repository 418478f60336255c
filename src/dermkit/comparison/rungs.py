"""Figures of the rungs of a leak ladder, and their differences, with intervals.

The rungs have other test images, and each repeat of a rung has other ones again: nothing is paired by image. All are
drawn from one pool, so one bootstrap of the pool's groups (lesions, patients) weighs the test images of every run: an
image or a lesion that several of them share is drawn in all of them or in none. The spread of the repeats beyond that,
of split and training, adds to the variance (`variance.recipe_difference`).

Shapes: S repeats, B resamples, G groups of the pool, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dermkit.comparison.variance import VarianceComponents, decompose_variance, recipe_difference
from dermkit.metrics.classification.confusion import macro_mean
from dermkit.metrics.classification.resampled_metrics import MetricValues, ResampledMetrics
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.stats import intervals
from dermkit.metrics.stats.arrays import Bools, Floats, Ints
from dermkit.metrics.stats.estimate import UNRELIABLE_PREFIX, Estimate, undefined_estimate, with_caveats

RUNG_METRICS = ("accuracy", "balanced_accuracy", "auroc_macro", "sensitivity", "specificity", "auroc")
"""Of all classes; the last three are of the malignant classes against the rest."""
RUNG_CLASS_METRICS = ("recall", "auroc")
RUNG_METHOD = "t over repeats of split and training, and images by group"
_RESAMPLES = 1000
"""Only the variance is taken of them, which they give to within 5 %."""

FigureKey = tuple[str, str]
"""A metric, and the class that it is of; "" = of all classes."""


@dataclass(frozen=True, eq=False)
class RungRun:
    """One run of a rung. scored_set: its test images; pool_groups: (N,) the group of each among those of the pool."""

    scored_set: ScoredSet
    pool_groups: Ints


@dataclass(frozen=True, eq=False)
class RungSamples:
    """The figures of one rung. values: (S,) and samples: (S, B) by figure; n: test images and n_groups: groups of them,
    the smallest of the repeats."""

    values: dict[FigureKey, Floats]
    samples: dict[FigureKey, Floats]
    n: dict[FigureKey, int]
    n_groups: dict[FigureKey, int]


def resample_rungs(
    rungs: Mapping[str, Sequence[RungRun]], *, n_pool_groups: int, seed: int, resamples: int = _RESAMPLES
) -> dict[str, RungSamples]:
    """Return the figures of every rung on the same resamples of the pool's groups, numbered 0 to n_pool_groups - 1."""
    runs = [(name, run) for name, repeats in rungs.items() for run in repeats]
    metrics = [ResampledMetrics(run.scored_set) for _, run in runs]
    columns = [_pool_columns(run) for _, run in runs]
    batches: list[list[dict[FigureKey, Floats]]] = [[] for _ in runs]
    for weights in intervals.resample_weights(np.arange(n_pool_groups), seed=seed, resamples=resamples):
        for number, (_, run) in enumerate(runs):
            drawn = metrics[number].bootstrap(weights[:, columns[number]])
            batches[number].append(_figures(drawn, run.scored_set.classes))
    points = [
        _figures(one.point_estimates, run.scored_set.classes) for one, (_, run) in zip(metrics, runs, strict=True)
    ]
    return {
        name: _rung_samples(
            [run for rung, run in runs if rung == name],
            [point for point, (rung, _) in zip(points, runs, strict=True) if rung == name],
            [batch for batch, (rung, _) in zip(batches, runs, strict=True) if rung == name],
        )
        for name in rungs
    }


def _pool_columns(run: RungRun) -> Ints:
    """Return (G of the test images,) the pool's number of each group of the scored set."""
    columns = np.empty(run.scored_set.n_groups, np.int64)
    columns[run.scored_set.groups] = run.pool_groups
    return columns


def _figures(metrics: MetricValues, classes: Sequence[str]) -> dict[FigureKey, Floats]:
    """Return figure -> (B,), NaN where undefined."""
    one_vs_rest = metrics.one_vs_rest
    recall, auroc = one_vs_rest["recall"], one_vs_rest["auroc"]
    overall = (
        metrics.multiclass["accuracy"], macro_mean(recall[:, :-1]), macro_mean(auroc[:, :-1]),
        recall[:, -1], one_vs_rest["specificity"][:, -1], auroc[:, -1],
    )  # fmt: skip
    figures: dict[FigureKey, Floats] = {
        (name, ""): values for name, values in zip(RUNG_METRICS, overall, strict=True)
    }
    for number, class_name in enumerate(classes):
        figures["recall", class_name], figures["auroc", class_name] = recall[:, number], auroc[:, number]
    return figures


def _rung_samples(
    runs: Sequence[RungRun],
    points: Sequence[Mapping[FigureKey, Floats]],
    batches: Sequence[Sequence[Mapping[FigureKey, Floats]]],
) -> RungSamples:
    keys = list(points[0])
    masks = [{key: _mask(run.scored_set, key) for key in keys} for run in runs]
    sets = [run.scored_set for run in runs]
    return RungSamples(
        {key: np.array([float(point[key][0]) for point in points]) for key in keys},
        {key: np.stack([np.concatenate([batch[key] for batch in chunks]) for chunks in batches]) for key in keys},
        {key: min(int(by_key[key].sum()) for by_key in masks) for key in keys},
        {
            key: min(one.n_groups_in(by_key[key]) for one, by_key in zip(sets, masks, strict=True))
            for key in keys
        },
    )  # fmt: skip


def _mask(scored_set: ScoredSet, key: FigureKey) -> Bools:
    """Return the test images that a figure is computed from; of an AUROC those that are rarer."""
    metric, class_name = key
    positive = scored_set.is_malignant
    if class_name:
        positive = scored_set.y_true == list(scored_set.classes).index(class_name)
    if metric in ("recall", "sensitivity") or (metric == "auroc" and positive.sum() <= (~positive).sum()):
        return positive
    if metric in ("specificity", "auroc"):
        return ~positive
    return np.ones(len(scored_set.y_true), dtype=bool)


def rung_estimate(rung: RungSamples, key: FigureKey) -> Estimate:
    """Return the mean of a figure over the repeats, with the interval for other images, splits and trainings."""
    nothing = np.zeros_like(rung.values[key])
    zero = RungSamples({key: nothing}, {key: np.zeros_like(rung.samples[key])}, rung.n, rung.n_groups)
    estimate = rung_difference(rung, zero, key)
    if estimate.ci95 is None:
        return estimate
    return replace(estimate, ci95=(max(0.0, estimate.ci95[0]), min(1.0, estimate.ci95[1])))


def rung_difference(first: RungSamples, second: RungSamples, key: FigureKey) -> Estimate:
    """Return the figure of the first rung less that of the second, with its interval.

    It holds the draw of the test images, of the split and of the training; `n` is the smaller number of test images.
    """
    n = min(first.n[key], second.n[key])
    values = [first.values[key], second.values[key]]
    if not all(np.isfinite(one).all() for one in values):
        return undefined_estimate(n, "undefined in a repeat of a rung: a class has no test image there")
    samples = [first.samples[key], second.samples[key]]
    is_defined: Bools = np.asarray(np.isfinite(np.concatenate(samples)).all(axis=0), dtype=np.bool_)
    samples = [one[:, is_defined] for one in samples]
    n_groups = min(first.n_groups[key], second.n_groups[key])
    components = [decompose_variance(*pair) for pair in zip(values, samples, strict=True)]
    gap = recipe_difference((components[0], samples[0]), (components[1], samples[1]), n_groups=n_groups)
    value = components[0].mean - components[1].mean
    if gap is None or gap.interval is None:
        return Estimate(value, None, n, RUNG_METHOD, "no interval: no spread to judge by")
    low, high = max(-1.0, gap.interval[0]), min(1.0, gap.interval[1])
    method = f"{RUNG_METHOD}, {gap.df:.3g} degrees of freedom"
    n_fewest = min(_fewest_groups(first, key), _fewest_groups(second, key))
    return with_caveats(Estimate(gap.value, (low, high), n, method), _rung_caveats(is_defined, n_fewest))


def _fewest_groups(rung: RungSamples, key: FigureKey) -> int:
    """Return the groups behind a figure; of a mean over classes those of the rarest."""
    if key[0] not in ("balanced_accuracy", "auroc_macro"):
        return rung.n_groups[key]
    return min(n for (metric, class_name), n in rung.n_groups.items() if metric == "recall" and class_name)


def _rung_caveats(is_defined: Bools, n_groups: int) -> list[str]:
    caveats = intervals.too_few(n_groups)
    if (dropped := 1 - float(is_defined.mean())) > intervals.MAX_UNDEFINED_FRACTION:
        caveats.append(f"{UNRELIABLE_PREFIX}: undefined in {dropped:.0%} of the resamples, which were dropped")
    return caveats


def repeat_spread(rung: RungSamples, key: FigureKey) -> VarianceComponents:
    """Return a figure of each repeat, and the standard deviations over repeats and over images."""
    samples = rung.samples[key]
    return decompose_variance(rung.values[key], samples[:, np.isfinite(samples).all(axis=0)])
