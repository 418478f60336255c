"""Paired comparison of two models on the same images: difference, interval, test, and the images needed to detect it.

Accuracy, sensitivity and specificity of independent images: McNemar's mid-p. AUROC: DeLong's test, clustered by group.
Other metrics, and proportions of grouped images: a sign-flip permutation test over groups. A group contributes the sum
of its images' terms; for metrics that are no means, its jackknife pseudo-value. Intervals, and the test above 10,000
groups, are a bootstrap over groups with both models on the same resamples; with few groups its p rejects too often
(benchmarks/paired.md), so it is not used there.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from dermkit.metrics.classification import probabilistic
from dermkit.metrics.classification.difference import COMPARED_METRICS, Difference
from dermkit.metrics.classification.resampled_metrics import (
    MetricValues,
    ResampledMetrics,
    compared_metrics,
    n_groups_for,
    n_images_for,
)
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.stats import delong, intervals, paired_tests, power
from dermkit.metrics.stats.arrays import Bools, Floats, sum_by_group
from dermkit.metrics.stats.bootstrap import MAX_BCA_GROUPS, BootstrapSamples, NamedArrays
from dermkit.metrics.stats.estimate import Estimate, undefined_estimate, with_caveats
from dermkit.metrics.stats.fold_auroc import auroc_difference, fold_auroc

MCNEMAR = "McNemar, mid-p"
DELONG = "DeLong"
BOOTSTRAP = "paired bootstrap"
SIGN_FLIPS = "sign flips"
RULE_METRICS = ("balanced_accuracy", "auroc")
"""What a model and a rule that sees no lesion are compared by: its labels, and its ranking of malignant images."""

TERM_ROUNDING = 1e-9
"""Below this, a group's contribution to a difference is rounding."""


def paired_differences(
    first: ScoredSet, second: ScoredSet, *, seed: int, resamples: int = intervals.N_RESAMPLES
) -> list[Difference]:
    """Return the difference of two models in each compared metric, of the same images, labels, classes and groups.

    Raises `ValueError` if these are not the same, in the same order.
    """
    _check_paired(first, second)
    bootstrap_pair = _PairedBootstrap(first, second, seed=seed, resamples=resamples)
    difference_of = {difference.metric: difference for difference in bootstrap_pair.differences()}
    for difference in _exact_differences(first, second, difference_of):
        difference_of[difference.metric] = difference
    return [difference_of[name] for name in COMPARED_METRICS if name in difference_of]


def _check_paired(first: ScoredSet, second: ScoredSet) -> None:
    is_paired = (
        list(first.classes) == list(second.classes)
        and np.array_equal(first.y_true, second.y_true)
        and np.array_equal(first.groups, second.groups)
        and np.array_equal(first.malignant_classes, second.malignant_classes)
    )
    if not is_paired:
        raise ValueError("a paired comparison needs the same images, labels, classes and groups")


def _method_name(scored_set: ScoredSet) -> str:
    return f"{BOOTSTRAP} by {'image' if scored_set.is_ungrouped else 'group'}"


def differences_from_others(
    model: ScoredSet, others: Mapping[str, ScoredSet], *, seed: int, resamples: int = intervals.N_RESAMPLES
) -> dict[str, dict[str, Estimate]]:
    """Return name -> metric -> the model less each other one, of `RULE_METRICS` alone, without tests.

    The estimates are those of `paired_differences`, at a small part of its cost: all others share the resamples, and
    nothing else is resampled. Raises `ValueError` for sets that are not of the same images, labels and groups.
    """
    for other in others.values():
        _check_paired(model, other)
    recall_sums = {name: _recall_sums(model, other) for name, other in others.items()}
    point = {name: float(_balanced_gap(sums.sum(axis=0)[None])[0]) for name, sums in recall_sums.items()}
    bootstrap = BootstrapSamples(
        model.n_groups,
        compute_metrics=lambda weights: {
            name: _balanced_gap(weights @ sums) for name, sums in recall_sums.items()
        },
        leave_one_group_out=lambda rows: {
            name: _balanced_gap(sums.sum(axis=0) - sums[rows]) for name, sums in recall_sums.items()
        },
        method_name=_method_name(model),
        seed=seed,
        resamples=resamples,
    )
    return {
        name: {
            "balanced_accuracy": _balanced_estimate(model, bootstrap, name, point[name]),
            "auroc": _auroc_estimate(model, other),
        }
        for name, other in others.items()
    }


def metric_difference(
    first: ScoredSet, second: ScoredSet, metric: str, *, seed: int, resamples: int = intervals.N_RESAMPLES
) -> Estimate:
    """Return first less second in one of `RULE_METRICS`, as `paired_differences` estimates it, without a test.

    Raises `ValueError` for sets that are not of the same images, labels and groups.
    """
    if metric == "auroc":
        _check_paired(first, second)
        return _auroc_estimate(first, second)
    return differences_from_others(first, {"": second}, seed=seed, resamples=resamples)[""][metric]


def _recall_sums(first: ScoredSet, second: ScoredSet) -> Floats:
    """Return per group and class: images, images that the first has right, and the second: (G, 3 K)."""
    n_columns = len(first.classes) * first.n_groups
    cells = first.groups * len(first.classes) + first.y_true
    terms = (np.ones(len(cells)), first.y_pred == first.y_true, second.y_pred == second.y_true)
    sums = [np.bincount(cells, weights=term, minlength=n_columns) for term in terms]
    return np.concatenate([values.reshape(first.n_groups, -1) for values in sums], axis=1)


def _balanced_gap(sums: Floats) -> Floats:
    """Return the difference of the balanced accuracies, (B,), NaN where a class is absent; sums: (B, 3 K)."""
    counts, first, second = np.split(sums, 3, axis=1)
    gaps = np.divide(first - second, counts, out=np.full(counts.shape, np.nan), where=counts > 0)
    means: Floats = gaps.mean(axis=1)
    return means


def _balanced_estimate(model: ScoredSet, bootstrap: BootstrapSamples, name: str, value: float) -> Estimate:
    n = n_images_for(model, "balanced_accuracy")
    if np.isnan(value):
        return undefined_estimate(n, "a class has no image here")
    estimate = bootstrap.estimate(value, n, bootstrap.samples.get(name), bootstrap.jackknife.get(name))
    return with_caveats(estimate, intervals.too_few(n_groups_for(model, "balanced_accuracy")))


def _auroc_estimate(first: ScoredSet, second: ScoredSet) -> Estimate:
    if not first.has_both_sides or first.is_malignant.all() or not first.is_malignant.any():
        return undefined_estimate(
            n_images_for(first, "auroc"), "the images are not of malignant and other classes"
        )
    if np.isnan(_delong_test(first, second)[0]):
        return undefined_estimate(n_images_for(first, "auroc"), "no net scored malignant and other images")
    return _delong_difference(first, second).estimate


def correct_with_holm(families: Sequence[Sequence[Difference]]) -> list[list[Difference]]:
    """Return the differences with `p_holm`; every metric of every pair belongs to one family of tests."""
    p = [difference.p for family in families for difference in family if difference.p is not None]
    adjusted_p = iter(paired_tests.holm_adjust(p))
    return [
        [
            difference if difference.p is None else replace(difference, p_holm=next(adjusted_p))
            for difference in family
        ]
        for family in families
    ]


# Exact tests ------------------------------------------------------------------------------------------------------


def _exact_differences(
    first: ScoredSet, second: ScoredSet, difference_of: dict[str, Difference]
) -> Iterator[Difference]:
    """Yield the differences that have an exact or DeLong's test; proportions keep their bootstrap intervals."""
    if first.is_ungrouped:
        first_called, second_called = (
            first.malignant_classes[first.y_pred],
            second.malignant_classes[second.y_pred],
        )
        all_rows = np.ones(len(first.y_true), dtype=bool)
        yield _mcnemar_difference(
            difference_of["accuracy"], first.y_pred == first.y_true, second.y_pred == first.y_true, all_rows
        )
        if first.has_both_sides:
            if difference_of["sensitivity"].estimate.value is not None:
                yield _mcnemar_difference(
                    difference_of["sensitivity"], first_called, second_called, first.is_malignant
                )
            if difference_of["specificity"].estimate.value is not None:
                yield _mcnemar_difference(
                    difference_of["specificity"], ~first_called, ~second_called, ~first.is_malignant
                )
    if "auroc" in difference_of and difference_of["auroc"].estimate.value is not None:
        yield _delong_difference(first, second)


def _mcnemar_difference(
    difference: Difference, first_correct: Bools, second_correct: Bools, rows: Bools
) -> Difference:
    pairs = paired_tests.mcnemar(first_correct[rows], second_correct[rows])
    discordant_rate, gap = (
        (pairs.first_only + pairs.second_only) / pairs.n_images,
        abs(pairs.first_only - pairs.second_only) / pairs.n_images,
    )
    images_needed = power.mcnemar_images_needed(gap, discordant_rate) if gap else None
    return replace(
        difference,
        test=MCNEMAR,
        p=pairs.p,
        discordant_counts=(pairs.first_only, pairs.second_only),
        images_needed=images_needed,
    )


def _delong_difference(first: ScoredSet, second: ScoredSet) -> Difference:
    gap, error, p = _delong_test(first, second)
    half_width, n = intervals.Z * error, len(first.y_true)
    if not error:  # perfect or constant scores
        exact_estimate = Estimate(gap, None, n, "none", "no interval: no variance")
        return (
            Difference("auroc", exact_estimate, DELONG, 1.0)
            if gap == 0
            else Difference("auroc", exact_estimate, "none", None)
        )
    estimate = Estimate(gap, (max(-1.0, gap - half_width), min(1.0, gap + half_width)), n, f"{DELONG}, normal")
    estimate_with_caveats = with_caveats(estimate, intervals.too_few(n_groups_for(first, "auroc")))
    return Difference(
        "auroc", estimate_with_caveats, DELONG, p, images_needed=power.scaled_images_needed(n, gap, error)
    )


def _delong_test(first: ScoredSet, second: ScoredSet) -> tuple[float, float, float]:
    """Return the difference of the AUROCs, its standard error and p; of several nets, the AUROCs within each."""
    if first.nets is None and second.nets is None:
        areas = delong.auroc_covariance(
            np.stack([first.p_malignant, second.p_malignant]), first.is_malignant, first.groups
        )
        return delong.delong_test(areas, 0, 1)
    within_nets = [
        fold_auroc(scored.p_malignant, scored.is_malignant, groups=scored.groups, folds=scored.net_numbers)
        for scored in (first, second)
    ]
    gap, error = auroc_difference(within_nets[0], within_nets[1], first.is_malignant, first.groups)
    return delong.normal_test(gap, error)


# Bootstrap --------------------------------------------------------------------------------------------------------


class _PairedBootstrap:
    """The differences of two models on the same bootstrap resamples, and the p values of sign flips."""

    def __init__(self, first: ScoredSet, second: ScoredSet, *, seed: int, resamples: int) -> None:
        self.first_set = first
        plans = ResampledMetrics(first), ResampledMetrics(second)
        self.point = _metric_differences(*(plan.point_estimates for plan in plans))
        self.samples = BootstrapSamples(
            first.n_groups,
            compute_metrics=lambda weights: _metric_differences(*(plan.bootstrap(weights) for plan in plans)),
            leave_one_group_out=lambda rows: _metric_differences(
                *(plan.leave_one_group_out(rows) for plan in plans)
            ),
            method_name=_method_name(first),
            seed=seed,
            resamples=resamples,
        )
        # With more groups the bootstrap test is as good, and sign flips take minutes.
        is_small = 1 < first.n_groups <= MAX_BCA_GROUPS
        self.p = sign_flip_p(self.point, self.samples.jackknife, seed=seed) if is_small else {}
        self.p |= linear_p(first, second, seed=seed) if is_small else {}

    def differences(self) -> Iterator[Difference]:
        for name in COMPARED_METRICS:
            yield self._difference(name, float(self.point[name][0]))

    def _difference(self, name: str, value: float) -> Difference:
        n = n_images_for(self.first_set, name)
        if np.isnan(value):
            undefined_estimate = Estimate(
                None, None, n, "none", "the figure is undefined for these images or one of the models"
            )
            return Difference(name, undefined_estimate, "none", None)
        samples = self.samples.samples.get(name)
        estimate = with_caveats(
            self.samples.estimate(value, n, samples, self.samples.jackknife.get(name)),
            intervals.too_few(n_groups_for(self.first_set, name)),
        )
        if samples is None:
            return Difference(name, estimate, "none", None)
        finite_samples = samples[np.isfinite(samples)]
        images_needed = (
            power.scaled_images_needed(n, value, float(finite_samples.std())) if len(finite_samples) else None
        )
        if name in self.p:
            return Difference(name, estimate, SIGN_FLIPS, self.p[name], images_needed=images_needed)
        if self.first_set.n_groups <= MAX_BCA_GROUPS:  # undefined without some group: no sign-flip test
            return Difference(name, estimate, "none", None)
        return Difference(name, estimate, BOOTSTRAP, bootstrap_p(finite_samples), images_needed=images_needed)


def linear_p(first: ScoredSet, second: ScoredSet, *, seed: int) -> dict[str, float]:
    """Return the two-sided p of no difference of each metric that is a mean of per-image terms, by sign flips."""
    terms_by_metric = difference_terms(first, second)
    sums = [sum_by_group(column, first.groups, first.n_groups) for column in terms_by_metric.values()]
    values = np.column_stack(sums)
    values[np.abs(values) < TERM_ROUNDING / first.n_groups] = 0.0
    return dict(zip(terms_by_metric, paired_tests.sign_flip_test(values, seed=seed).tolist(), strict=True))


def difference_terms(first: ScoredSet, second: ScoredSet) -> dict[str, Floats]:
    """Return metric -> what each image adds to the difference, (N,); metrics without images are left out."""
    true, n, k = first.y_true, len(first.y_true), len(first.classes)
    correct_difference = (first.y_pred == true).astype(np.float64) - (second.y_pred == true)
    call_difference = (
        first.malignant_classes[first.y_pred].astype(np.float64) - second.malignant_classes[second.y_pred]
    )
    counts = np.bincount(true, minlength=k)
    loss = [probabilistic.log_loss_terms(true, model.probabilities) for model in (first, second)]
    brier = [probabilistic.brier_terms(true, model.probabilities) for model in (first, second)]
    terms_by_metric = {"accuracy": correct_difference / n, "brier": (brier[0] - brier[1]) / n}
    if np.isfinite(loss).all():  # else one of the two is infinite
        terms_by_metric["loss"] = (loss[0] - loss[1]) / n
    if counts.all():
        terms_by_metric["balanced_accuracy"] = correct_difference / (k * counts[true])
    positive = first.is_malignant
    for name, rows, sign in (("sensitivity", positive, 1.0), ("specificity", ~positive, -1.0)):
        if first.has_both_sides and rows.any():
            terms_by_metric[name] = np.where(rows, sign * call_difference / rows.sum(), 0.0)
    return terms_by_metric


def sign_flip_p(point: NamedArrays, leave_one_out: NamedArrays, *, seed: int) -> dict[str, float]:
    """Return the two-sided p of no difference for metrics that are no means, if defined without any one group.

    point: name -> (1,) the difference; leave_one_out: name -> (G,) the same without each group. A group's contribution
    is its centred jackknife pseudo-value (Tukey): the difference plus (G - 1) times what the group adds to it.
    """
    names = [
        name
        for name, left_out_values in leave_one_out.items()
        if np.isfinite(left_out_values).all() and np.isfinite(point[name][0])
    ]
    if not names:
        return {}
    left_out_values = np.column_stack([leave_one_out[name] for name in names])
    values = (len(left_out_values) - 1) * (left_out_values.mean(axis=0) - left_out_values)
    values += np.array([point[name][0] for name in names])
    values[:, np.abs(values).max(axis=0) < TERM_ROUNDING] = 0.0
    return dict(zip(names, paired_tests.sign_flip_test(values, seed=seed).tolist(), strict=True))


def bootstrap_p(samples: Floats) -> float:
    """Return the two-sided bootstrap p: twice the fraction of resamples on the smaller side of 0, ties half."""
    if not len(samples):
        return 1.0
    n_below = float((samples < 0).sum() + 0.5 * (samples == 0).sum())
    return min(1.0, 2 * (min(n_below, len(samples) - n_below) + 1) / (len(samples) + 1))


def _metric_differences(first: MetricValues, second: MetricValues) -> dict[str, Floats]:
    first_metrics, second_metrics = compared_metrics(first), compared_metrics(second)
    return {name: first_metrics[name] - second_metrics[name] for name in COMPARED_METRICS}
