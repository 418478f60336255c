"""All metrics of one split, each with its interval and method: what metrics.json holds per split.

One-vs-rest metrics are columns of one array: 0 to K - 1 the classes, K the malignant classes against the rest, so
that binary and per-class metrics share their code.

A name with `_macro` is the mean over all classes and undefined as soon as one class is; with `_macro_present` it is
the mean over the classes for which the figure is defined and names the others. `balanced_accuracy` is `recall_macro`.
Without a suffix, precision (ppv), recall (sensitivity), f1, specificity, npv, mcc, auroc and average_precision are
those of the malignant classes: their summed probability is the score, and an image is called positive if its
predicted class is malignant. `mcc_multiclass` and `kappa` are of all classes at once.

Intervals: proportions by Wilson or Clopper-Pearson, at the effective sample size if images are grouped; balanced
accuracy from the intervals of the recalls (Newcombe); AUROC by DeLong's variance on the logit scale; calibration slope
and intercept by Wald with a sandwich variance; all else by bootstrap over groups (BCa).
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dermkit.metrics.classification import confusion
from dermkit.metrics.classification.calibration import CalibrationLine, calibration_slope_intercept
from dermkit.metrics.classification.resampled_metrics import TOP_K, MetricValues, ResampledMetrics
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.stats import delong, intervals
from dermkit.metrics.stats.arrays import Bools, Floats
from dermkit.metrics.stats.bootstrap import BootstrapSamples
from dermkit.metrics.stats.estimate import UNRELIABLE_PREFIX, Estimate, undefined_estimate, with_caveats
from dermkit.metrics.stats.fold_auroc import fold_auroc

SYNONYMS = {"sensitivity": "recall", "ppv": "precision"}
OPTIMISTIC_PREFIXES = (
    ("ece", "bins make it too large by chance"),
    ("sensitivity_at_", "the threshold was chosen on these images"),
    ("specificity_at_", "the threshold was chosen on these images"),
)
"""Prefixes of metrics that are biased in a sample in a way the bootstrap does not correct, with the reason stated."""

MIN_BOOTSTRAP_GROUPS, MIN_OUTCOME_GROUPS, MIN_ROC_END_GROUPS = 50, 10, 200
"""Groups that a bootstrap interval needs: in all; among the wrong (or right) predictions; and, for the end of a ROC
curve, of the class. With fewer, some 95 % intervals covered the truth in 85 to 94 % of test sets
(benchmarks/coverage.md)."""

MAX_LOGIT_HALF_WIDTH = 10.0
"""Beyond it, in log odds, no calibration slope or intercept is stated: odds of 1 to 20,000 either way say nothing."""

PROPORTION_METRICS = ("precision", "recall", "specificity", "npv")
AUROC_METHOD = "DeLong on the logit, t"
NETS_AUROC_METHOD = "score interval, DeLong's variance within each net"
PERFECT_METHOD = "score interval, Hanley and McNeil's variance"
MEAN_METHOD = "mean of independent proportions"
CORRELATED_MEAN_METHOD = "mean of proportions that covary by group"
NO_NET_OF_BOTH = "no net scored both an image of {} and another"
WALD_METHOD = "maximum likelihood, Wald"


def evaluate_split(
    scored_set: ScoredSet, *, seed: int, with_ranking: bool = True, resamples: int = intervals.N_RESAMPLES
) -> dict[str, Any]:
    """Return one split's body of metrics.json: n, n_groups, metrics, per_class, confusion_matrix.

    with_ranking: False leaves out AUROC and the like. resamples: 0 leaves bootstrap intervals out. The same seed and
    images give the same intervals.
    """
    return _SplitMetrics(scored_set, seed=seed, with_ranking=with_ranking, resamples=resamples).as_dict()


def _named_arrays(metrics: MetricValues) -> dict[str, Floats]:
    return (
        metrics.multiclass
        | metrics.binary
        | {f"view {name}": values for name, values in metrics.one_vs_rest.items()}
    )


class _SplitMetrics:
    """Point values, bootstrap values, and the choice of an interval for each metric."""

    def __init__(self, scored_set: ScoredSet, *, seed: int, with_ranking: bool, resamples: int) -> None:
        self.scored_set = scored_set
        resampled_metrics = ResampledMetrics(scored_set, with_ranking=with_ranking)
        self.point_estimates = resampled_metrics.point_estimates
        self._view_cache: dict[tuple[str, int], Estimate] = {}
        self._caveats_of_view: dict[int | None, list[str]] = {}
        self.bootstrap = BootstrapSamples(
            scored_set.n_groups,
            compute_metrics=lambda weights: _named_arrays(resampled_metrics.bootstrap(weights)),
            leave_one_group_out=lambda group_indices: _named_arrays(
                resampled_metrics.leave_one_group_out(group_indices)
            ),
            method_name=f"bootstrap by {'image' if scored_set.is_ungrouped else 'group'}",
            seed=seed,
            resamples=resamples,
        )

    def as_dict(self) -> dict[str, Any]:
        k = len(self.scored_set.classes)
        metrics = (
            dict(self._multiclass_estimates()) | dict(self._macro_estimates()) | dict(self._binary_estimates())
        )
        per_class = {
            name: {"n": int((self.scored_set.y_true == i).sum())}
            | {view: self._view_estimate(view, i).as_dict() for view in self.point_estimates.one_vs_rest}
            for i, name in enumerate(self.scored_set.classes)
        }
        return {
            "n": len(self.scored_set.y_true),
            "n_groups": self.scored_set.n_groups,
            "metrics": {name: estimate.as_dict() for name, estimate in metrics.items()},
            "per_class": per_class,
            "confusion_matrix": confusion.confusion_matrix(
                self.scored_set.y_true, self.scored_set.y_pred, k
            ).tolist(),
        }

    # Of all classes

    def _multiclass_estimates(self) -> Iterator[tuple[str, Estimate]]:
        n = len(self.scored_set.y_true)
        is_success_of = {"accuracy": self.scored_set.y_pred == self.scored_set.y_true} | self._top_k_hits()
        for metric, values in self.point_estimates.multiclass.items():
            value = float(values[0])
            if metric in is_success_of:
                yield metric, self._proportion_estimate(is_success_of[metric], np.ones(n, dtype=bool))
            elif np.isnan(value):
                yield metric, undefined_estimate(n, self._missing_multiclass_reason(metric))
            else:
                yield metric, with_caveats(self._bootstrap_estimate(metric, value, n), self._too_few_groups())

    def _missing_multiclass_reason(self, metric: str) -> str:
        if metric != "loss":
            return "all images are of one class, or all were called one"
        n_impossible = int((self.scored_set.p_true == 0).sum())
        return (
            f"infinite: {n_impossible} of {len(self.scored_set.y_true)} images give their true class a probability of "
            "0; with more decimals it may be a number"
        )

    def _top_k_hits(self) -> dict[str, Bools]:
        return {f"top_{top_k}_accuracy": self.scored_set.rank_of_true < top_k for top_k in TOP_K}

    def _macro_estimates(self) -> Iterator[tuple[str, Estimate]]:
        for view, values in self.point_estimates.one_vs_rest.items():
            per_class = values[0, :-1]
            absent_classes = [self.scored_set.classes[int(k)] for k in np.flatnonzero(np.isnan(per_class))]
            mean_of_all = self._macro_mean(view, absent_classes, over_all=True)
            yield f"{view}_macro", mean_of_all
            yield f"{view}_macro_present", self._macro_mean(view, absent_classes, over_all=False)
            if view == "recall":
                yield "balanced_accuracy", mean_of_all

    def _macro_mean(self, view: str, absent_classes: list[str], *, over_all: bool) -> Estimate:
        n, k = len(self.scored_set.y_true), len(self.scored_set.classes)
        class_list = ", ".join(absent_classes)
        if over_all and absent_classes:
            return undefined_estimate(
                n, f"{view} is undefined for: {class_list}; {view}_macro_present leaves them out"
            )
        is_defined = ~np.isnan(self.point_estimates.one_vs_rest[view][0, :k])
        if not is_defined.any():
            return undefined_estimate(n, f"{view} is undefined for every class")
        estimate = self._mean_over_classes(view, np.flatnonzero(is_defined))
        note = f"mean over {int(is_defined.sum())} of {k} classes, without: {class_list}" if absent_classes else ""
        reason = "; ".join(clause for clause in (note, estimate.reason) if clause)
        macro_estimate = Estimate(estimate.value, estimate.ci95, n, estimate.method, reason)
        bootstrap_caveats = [] if view == "recall" else self._too_few_groups()
        return with_caveats(
            macro_estimate, [*self._rare_class_caveats(np.flatnonzero(is_defined)), *bootstrap_caveats]
        )

    def _rare_class_caveats(self, columns: NDArray[np.intp]) -> list[str]:
        """Return the caveat of a mean over classes of which some have too few groups; empty if none has."""
        n_rare = int(self._is_rare[columns].sum())
        caveat = (
            f"{UNRELIABLE_PREFIX}: {n_rare} of {len(columns)} classes have fewer than {intervals.MIN_GROUPS} units"
        )
        return [caveat] if n_rare else []

    @cached_property
    def _is_rare(self) -> Bools:
        """Which classes have fewer than MIN_GROUPS groups, (K,)."""
        class_masks = [self.scored_set.y_true == k for k in range(len(self.scored_set.classes))]
        return np.array(
            [self.scored_set.n_groups_in(mask) < intervals.MIN_GROUPS for mask in class_masks], dtype=bool
        )

    def _mean_over_classes(self, view: str, columns: NDArray[np.intp]) -> Estimate:
        n, values = len(self.scored_set.y_true), self.point_estimates.one_vs_rest[view][0, columns]
        mean = float(confusion.macro_mean(values))
        if view == "recall":  # recalls are of different images, so they covary through shared groups alone
            recalls = [self._view_estimate(view, int(column)) for column in columns]
            bounds = [recall.ci95 for recall in recalls if recall.ci95 is not None]
            if len(bounds) < len(recalls):
                return Estimate(mean, None, n, "none", "no interval: a class has one group only")
            shared = self._shared_groups(columns)
            ci95 = intervals.mean_of_proportions_interval(values, bounds, shared)
            method = CORRELATED_MEAN_METHOD if shared.any else MEAN_METHOD
            n_near_boundary = sum(intervals.NEAR_BOUNDARY in recall.reason for recall in recalls)
            caveat = (
                f"{UNRELIABLE_PREFIX}: {n_near_boundary} of {len(recalls)} recalls are {intervals.NEAR_BOUNDARY}"
            )
            return with_caveats(Estimate(mean, ci95, n, method), [caveat] if n_near_boundary else [])
        return self.bootstrap.estimate(
            mean,
            n,
            *(_column_mean(arrays, f"view {view}", columns) for arrays in self._samples_and_jackknife()),
        )

    def _shared_groups(self, columns: NDArray[np.intp]) -> intervals.SharedGroups:
        """Return what the recalls of some classes share."""
        scored = self.scored_set
        masks = [scored.y_true == column for column in columns]
        is_correct = scored.y_pred == scored.y_true
        return intervals.shared_groups(masks, [is_correct] * len(masks), scored.groups)

    def _samples_and_jackknife(self) -> tuple[dict[str, Floats], dict[str, Floats]]:
        return self.bootstrap.samples, self.bootstrap.jackknife

    # Of one class, or of the malignant ones, against the rest

    def _binary_estimates(self) -> Iterator[tuple[str, Estimate]]:
        k = len(self.scored_set.classes)
        estimate_of_view = {view: self._view_estimate(view, k) for view in self.point_estimates.one_vs_rest}
        yield from (
            estimate_of_view | {metric: estimate_of_view[view] for metric, view in SYNONYMS.items()}
        ).items()
        n, n_positive = len(self.scored_set.y_true), int(self.scored_set.is_malignant.sum())
        side_caveats, roc_end_caveats = (
            self._too_few_per_side(k),
            self._too_few_per_side(k, min_groups=MIN_ROC_END_GROUPS),
        )
        for metric, values in self.point_estimates.binary.items():
            value = float(values[0])
            estimate = (
                undefined_estimate(n, self._binary_reason(n_positive))
                if np.isnan(value)
                else self._bootstrap_estimate(metric, value, n)
            )
            sides = roc_end_caveats if metric.startswith("pauc_") else side_caveats
            yield metric, with_caveats(estimate, [*sides, *self._too_few_groups(k)])
        caveats = [*side_caveats, *self._too_few_groups(k)]
        yield from (
            (metric, with_caveats(estimate, caveats))
            for metric, estimate in self._calibration_estimates(n_positive)
        )

    def _calibration_estimates(self, n_positive: int) -> Iterator[tuple[str, Estimate]]:
        n = len(self.scored_set.y_true)
        missing_reason = self._class_table_reason() or self._one_class_reason(n_positive)
        if missing_reason:
            yield from (
                (metric, undefined_estimate(n, missing_reason))
                for metric in ("calibration_slope", "calibration_intercept")
            )
            return
        scored = self.scored_set
        line = calibration_slope_intercept(
            scored.p_malignant, scored.is_malignant, scored.groups, complement=scored.p_other
        )
        # Log odds have no scale of their own: a slope is as uncertain as what it makes of their spread.
        yield (
            "calibration_slope",
            _wald_estimate(
                line, line.slope, line.slope_variance, n, line.logit_sd,
                "a threshold parts the sides, or all odds are equal: the best slope is no number",
            ),
        )  # fmt: skip
        yield (
            "calibration_intercept",
            _wald_estimate(
                line, line.intercept, line.intercept_variance, n, 1.0,
                "all probabilities are 0 or 1, or so near that no intercept is better than another",
            ),
        )  # fmt: skip

    def _view_estimate(self, view: str, column: int) -> Estimate:
        """Return one metric of a class against the rest, or of the malignant classes (column K)."""
        if (view, column) not in self._view_cache:
            self._view_cache[view, column] = self._compute_view(view, column)
        return self._view_cache[view, column]

    def _compute_view(self, view: str, column: int) -> Estimate:
        is_class, is_called = self._labels_and_calls(column)
        mask, is_success = {
            "precision": (is_called, is_class), "recall": (is_class, is_called),
            "specificity": (~is_class, ~is_called), "npv": (~is_called, ~is_class),
        }.get(view, (np.ones(len(is_class), dtype=bool), is_class))  # fmt: skip
        n = int((is_class | is_called).sum() if view == "f1" else mask.sum())
        value = float(self.point_estimates.one_vs_rest[view][0, column])
        if column == len(self.scored_set.classes) and self._class_table_reason():
            return undefined_estimate(n, self._class_table_reason())
        if np.isnan(value):
            return undefined_estimate(n, self._undefined_reason(view, column, n_positive=int(is_class.sum())))
        if view in PROPORTION_METRICS:
            return self._proportion_estimate(is_success, mask)
        if view == "auroc":
            return with_caveats(
                self._auroc_estimate(value, column, is_class),
                self._too_few_per_side(column) or self._near_boundary(value, is_class),
            )
        samples, jackknife = (
            _view_column(arrays, f"view {view}", column) for arrays in self._samples_and_jackknife()
        )
        caveats = [*self._too_few_per_side(column), *self._too_few_groups(column)]
        return with_caveats(self.bootstrap.estimate(value, n, samples, jackknife), caveats)

    def _too_few_per_side(self, column: int, *, min_groups: int = intervals.MIN_GROUPS) -> list[str]:
        """Return the caveats of a metric that needs both a class and the rest, if either has too few groups.

        min_groups: needed of the class; of the rest MIN_GROUPS is enough.
        """
        is_class = self._labels_and_calls(column)[0]
        return [
            *intervals.too_few(self.scored_set.n_groups_in(is_class), min_groups=min_groups),
            *intervals.too_few(self.scored_set.n_groups_in(~is_class), "other "),
        ]

    def _too_few_groups(self, column: int | None = None) -> list[str]:
        """Return the caveats of a bootstrap interval: too few groups in all, or predicted wrongly, or rightly.

        column: of that class (K: malignant) against the rest; None: of all classes.
        """
        if column not in self._caveats_of_view:
            scored, minimum = self.scored_set, MIN_OUTCOME_GROUPS
            labels, calls = (scored.y_true, scored.y_pred) if column is None else self._labels_and_calls(column)
            is_correct = np.asarray(labels == calls, dtype=bool)
            self._caveats_of_view[column] = (
                intervals.too_few(scored.n_groups, min_groups=MIN_BOOTSTRAP_GROUPS)
                or intervals.too_few(scored.n_groups_in(~is_correct), "wrongly called ", min_groups=minimum)
                or intervals.too_few(scored.n_groups_in(is_correct), "rightly called ", min_groups=minimum)
            )
        return self._caveats_of_view[column]

    def _near_boundary(self, value: float, is_class: Bools) -> list[str]:
        """Return the caveat of an AUROC near 0 or 1: less than MIN_RARER groups' worth of pairs is ranked otherwise."""
        n_rarer = min(self.scored_set.n_groups_in(is_class), self.scored_set.n_groups_in(~is_class))
        is_near = min(value, 1 - value) * n_rarer < intervals.MIN_RARER
        return [f"{UNRELIABLE_PREFIX}: of {n_rarer} units, {intervals.NEAR_BOUNDARY}"] if is_near else []

    def _labels_and_calls(self, column: int) -> tuple[Bools, Bools]:
        """Return which images are of the class (K: malignant), and which were predicted as it."""
        y_true, y_pred = self.scored_set.y_true, self.scored_set.y_pred
        if column < len(self.scored_set.classes):
            return y_true == column, y_pred == column
        return self.scored_set.is_malignant, self.scored_set.malignant_classes[y_pred]

    def _auroc_estimate(self, value: float, column: int, is_class: Bools) -> Estimate:
        is_malignant_view = column == len(self.scored_set.classes)
        score = self.scored_set.p_malignant if is_malignant_view else self.scored_set.probabilities[:, column]
        n, groups = len(score), self.scored_set.groups
        if self.scored_set.n_groups == 1:
            return Estimate(value, None, n, "none", intervals.ONE_GROUP_REASON)
        if self.scored_set.nets is not None:
            return self._nets_auroc_estimate(value, score, is_class)
        ci95 = delong.auroc_interval(score, is_class, groups)
        if ci95 is not None:
            return Estimate(value, ci95, n, AUROC_METHOD)
        # A perfect ranking has no DeLong variance: a score interval over one image per group and side.
        first_rows = np.unique(np.column_stack([groups, is_class]), axis=0, return_index=True)[1]
        singleton_groups, one_fold = np.arange(len(first_rows)), np.zeros(len(first_rows), dtype=np.int64)
        perfect_auroc = fold_auroc(
            score[first_rows], is_class[first_rows], groups=singleton_groups, folds=one_fold
        )
        return Estimate(value, perfect_auroc.interval(), n, PERFECT_METHOD)

    def _nets_auroc_estimate(self, value: float, score: Floats, is_class: Bools) -> Estimate:
        """Return an AUROC within nets; where every net ranks perfectly, of one image per group, net and class."""
        rows, groups, nets = np.arange(len(score)), self.scored_set.groups, self.scored_set.net_numbers
        method = NETS_AUROC_METHOD
        if value in (0.0, 1.0):
            rows, method = (
                np.unique(np.column_stack([groups, is_class]), axis=0, return_index=True)[1],
                PERFECT_METHOD,
            )
        within_nets = fold_auroc(score[rows], is_class[rows], groups=groups[rows], folds=nets[rows])
        return Estimate(value, within_nets.interval(), len(score), method)

    def _class_table_reason(self) -> str:
        if self.scored_set.has_both_sides:
            return ""
        quantifier = "every" if self.scored_set.malignant_classes.any() else "no"
        return f"{quantifier} class is malignant in the class table, so there are not two sides"

    def _binary_reason(self, n_positive: int) -> str:
        """Return why a figure of malignant against the rest is undefined."""
        reason = self._class_table_reason() or self._one_class_reason(n_positive)
        return reason or NO_NET_OF_BOTH.format("a malignant class")

    def _one_class_reason(self, n_positive: int) -> str:
        if 0 < n_positive < len(self.scored_set.y_true):
            return ""
        return "no image of a malignant class" if n_positive == 0 else "every image is of a malignant class"

    def _undefined_reason(self, view: str, column: int, *, n_positive: int) -> str:
        class_names = self.scored_set.classes
        class_name = class_names[column] if column < len(class_names) else "a malignant class"
        if n_positive == 0:
            return f"no image of {class_name}"
        if n_positive == len(self.scored_set.y_true) and view != "precision":
            return f"every image is of {class_name}"
        if view in ("auroc", "average_precision") and self.scored_set.nets is not None:
            return NO_NET_OF_BOTH.format(class_name)
        is_called = self._labels_and_calls(column)[1]
        return f"{'every' if is_called.all() else 'no'} image was predicted as {class_name}"

    # Intervals

    def _proportion_estimate(self, is_success: Bools, mask: Bools) -> Estimate:
        return intervals.proportion_estimate(is_success[mask], self.scored_set.groups[mask])

    def _bootstrap_estimate(self, metric: str, value: float, n: int) -> Estimate:
        samples, jackknife = self._samples_and_jackknife()
        estimate = self.bootstrap.estimate(value, n, samples.get(metric), jackknife.get(metric))
        reasons = [reason for prefix, reason in OPTIMISTIC_PREFIXES if metric.startswith(prefix)]
        return with_caveats(estimate, [f"{UNRELIABLE_PREFIX}: {reason}" for reason in reasons])


def _view_column(arrays: dict[str, Floats], name: str, column: int) -> Floats | None:
    return arrays[name][:, column] if name in arrays else None


def _column_mean(arrays: dict[str, Floats], name: str, columns: NDArray[np.intp]) -> Floats | None:
    return confusion.macro_mean(arrays[name][:, columns]) if name in arrays else None


def _wald_estimate(
    line: CalibrationLine, value: float, variance: float, n: int, scale: float, reason: str
) -> Estimate:
    """Return the slope or the intercept of a calibration line; scale: its unit in log odds."""
    if line.n_refuted:
        return undefined_estimate(
            n, f"{line.n_refuted} images have a probability of 0 or 1 and are wrong: their log odds are infinite"
        )
    if not np.isfinite(value) or not np.isfinite(variance):
        return undefined_estimate(n, reason)
    half_width = intervals.Z * float(np.sqrt(variance))
    if half_width * scale > MAX_LOGIT_HALF_WIDTH:
        return undefined_estimate(n, "these images leave it open: nearly all probabilities are next to 0 or 1")
    estimate = Estimate(value, (value - half_width, value + half_width), n, WALD_METHOD)
    caveat = f"{UNRELIABLE_PREFIX}: {line.n_certain} images of probability 0 or 1 have no part in it"
    return with_caveats(estimate, [caveat] if line.n_certain else [])
