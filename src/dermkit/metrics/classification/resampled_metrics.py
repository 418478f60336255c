"""All metrics of a split and of its bootstrap resamples, computed from sums per group: a resample is a matrix product.

A group is the resampling unit: a lesion, a patient, or a single image. Terms per image (counts, losses) are summed
per group once; what depends on the order of scores is counted per group and distinct score, for each net by itself
where several scored the images: these metrics are means over the nets, weighted by the pairs that each can rank.

Shapes: N images, K classes, G groups, B resamples, C summed terms, T distinct scores.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from dermkit.metrics.classification import calibration, probabilistic
from dermkit.metrics.classification import confusion as classification_confusion
from dermkit.metrics.classification import roc as classification_roc
from dermkit.metrics.classification.confusion import BinaryCounts, CumulativeCounts
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.stats.arrays import Bools, Floats, Ints, ratio

RANK_METRICS = ("auroc", "average_precision")
FIXED_RATES = (0.9, 0.95)
"""Sensitivities (specificities) at which the other rate is reported."""

BENEFIT_THRESHOLDS = (0.05, 0.1, 0.2)
"""Threshold probabilities of the net benefit: 19, 9 and 4 needless biopsies weigh as much as one missed lesion."""

TOP_K = (2, 3)
MAX_EXACT_IMAGES = 20_000
"""Up to so many images resampled rankings use every score; above, scores are binned to save time and memory."""

N_SCORE_BINS = 2048
"""Bins of about equal size for scores of more than MAX_EXACT_IMAGES images."""


@dataclass(frozen=True, eq=False)
class MetricValues:
    """Metrics of B resamples, NaN where undefined.

    multiclass, binary: metric -> (B,). one_vs_rest: metric -> (B, K + 1), column K being the malignant classes
    against the rest, as all of `binary` is. counts: tp, fp, fn and tn, (B, K + 1).
    """

    multiclass: dict[str, Floats]
    one_vs_rest: dict[str, Floats]
    binary: dict[str, Floats]
    counts: BinaryCounts


def compared_metrics(metrics: MetricValues) -> dict[str, Floats]:
    """Return the metrics that comparisons test, metric -> (B,): multiclass, macro means, and malignant against rest."""
    one_vs_rest = metrics.one_vs_rest
    view_of_metric = {
        "sensitivity": "recall",
        "specificity": "specificity",
        "auroc": "auroc",
        "average_precision": "",
    }
    binary = {metric: one_vs_rest[view or metric][:, -1] for metric, view in view_of_metric.items()}
    macro_means = {
        "balanced_accuracy": classification_confusion.macro_mean(one_vs_rest["recall"][:, :-1]),
        "f1_macro": classification_confusion.macro_mean(one_vs_rest["f1"][:, :-1]),
    }
    return {**metrics.multiclass, **macro_means, **binary}


def n_images_for(scored_set: ScoredSet, metric: str) -> int:
    """Return how many images a metric is computed from: for sensitivity the malignant, for specificity the rest."""
    n_positive = int(scored_set.is_malignant.sum())
    return {"sensitivity": n_positive, "specificity": len(scored_set.y_true) - n_positive}.get(
        metric, len(scored_set.y_true)
    )


def n_groups_for(scored_set: ScoredSet, metric: str) -> int:
    """Return how many groups a metric is computed from; of a metric of several classes, those of the rarest class."""
    is_positive, all_images = scored_set.is_malignant, np.ones(len(scored_set.y_true), dtype=bool)
    class_masks = [scored_set.y_true == k for k in range(len(scored_set.classes))]
    masks = {
        "sensitivity": [is_positive], "specificity": [~is_positive],
        "auroc": [is_positive, ~is_positive], "average_precision": [is_positive, ~is_positive],
        "balanced_accuracy": class_masks, "f1_macro": class_masks,
    }.get(metric, [all_images])  # fmt: skip
    return min(scored_set.n_groups_in(mask) for mask in masks)


# Order ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _ScoreHistogram:
    """Images per group and distinct score, in descending order of score.

    counts: (G, 2 T), sparse: columns 0 to T - 1 count positives, T to 2 T - 1 negatives. n_steps: T.
    """

    counts: csr_matrix
    n_steps: int

    @classmethod
    def from_scores(
        cls, score: Floats, is_positive: Bools, groups: Ints, n_groups: int, *, use_bins: bool
    ) -> "_ScoreHistogram":
        """Count at every distinct score, or with `use_bins` in at most `N_SCORE_BINS` bins of about equal size."""
        step_of_image = np.unique(-score, return_inverse=True)[1]
        n_steps = int(step_of_image.max()) + 1
        if use_bins and n_steps > N_SCORE_BINS:
            last_ranks = np.cumsum(np.bincount(step_of_image, minlength=n_steps)) - 1
            step_of_image, n_steps = (last_ranks * N_SCORE_BINS // len(score))[step_of_image], N_SCORE_BINS
        columns = np.where(is_positive, step_of_image, step_of_image + n_steps)
        shape = (n_groups, 2 * n_steps)
        return cls(csr_matrix((np.ones(len(score)), (groups, columns)), shape=shape), n_steps)

    def cumulative_counts(self, sums: Floats) -> CumulativeCounts:
        """Return true and false positives at each step, (B, T), from resampled column sums (B, 2 T)."""
        return CumulativeCounts(
            np.cumsum(sums[:, : self.n_steps], axis=1), np.cumsum(sums[:, self.n_steps :], axis=1)
        )


# Everything -------------------------------------------------------------------------------------------------------


class ResampledMetrics:
    """Metrics of a split and of its bootstrap resamples; the sums per group are computed once.

    with_ranking: False leaves out AUROC and whatever else needs the order of scores.
    """

    def __init__(self, scored_set: ScoredSet, *, with_ranking: bool = True) -> None:
        self.scored_set = scored_set
        self._columns_of, self._group_sums = _per_group_sums(scored_set)
        views = self._score_views() if with_ranking else []
        fine_histograms = self._histograms(views, use_bins=False)
        self._coarse_histograms = self._histograms(views, use_bins=True)
        self._fine_histograms = fine_histograms if len(scored_set.y_true) <= MAX_EXACT_IMAGES else []
        self.point_estimates = self._sample_metrics(fine_histograms)

    def _score_views(self) -> list[tuple[Floats, Bools]]:
        """Return (score, is_positive) of every class against the rest, and of the malignant classes."""
        class_views = [
            (p, self.scored_set.y_true == class_index)
            for class_index, p in enumerate(self.scored_set.probabilities.T)
        ]
        return [*class_views, (self.scored_set.p_malignant, self.scored_set.is_malignant)]

    def _histograms(self, views: Sequence[tuple[Floats, Bools]], *, use_bins: bool) -> list[_ScoreHistogram]:
        """Return the histograms of every view and, of each, of every net."""
        groups, n_groups = self.scored_set.groups, self.scored_set.n_groups
        return [
            _ScoreHistogram.from_scores(score[rows], is_positive[rows], groups[rows], n_groups, use_bins=use_bins)
            for score, is_positive in views
            for rows in self.scored_set.rows_by_net
        ]

    def _sample_metrics(self, histograms: Sequence[_ScoreHistogram]) -> MetricValues:
        """Return the metrics of the sample itself, (1, ...)."""
        return self._weighted_metrics(np.ones((1, self.scored_set.n_groups)), histograms)

    def _weighted_metrics(self, weights: Floats, histograms: Sequence[_ScoreHistogram]) -> MetricValues:
        sums = (_multiply(weights, histogram.counts) for histogram in histograms)
        return self._metrics_from_sums(_multiply(weights, self._group_sums), sums, histograms)

    def bootstrap(self, weights: Floats) -> MetricValues:
        """Return all metrics of B resamples; weights: (B, G), how often each group was drawn.

        Above MAX_EXACT_IMAGES, scores are binned; ranking metrics are then shifted by the binning error that the
        sample itself shows.
        """
        histograms = self._fine_histograms or self._coarse_histograms
        metrics = self._weighted_metrics(weights, histograms)
        return metrics if self._fine_histograms or not histograms else self._correct_binning(metrics)

    def leave_one_group_out(self, group_indices: Ints) -> MetricValues:
        """Return all metrics without one group at a time, (len(group_indices), ...): the jackknife of BCa intervals."""
        histograms = self._coarse_histograms
        total = np.asarray(self._group_sums.sum(axis=0))
        sums = (
            np.asarray(histogram.counts.sum(axis=0)) - histogram.counts[group_indices].toarray()
            for histogram in histograms
        )
        return self._metrics_from_sums(total - self._group_sums[group_indices].toarray(), sums, histograms)

    @cached_property
    def _coarse_estimates(self) -> MetricValues:
        """The metrics of the sample itself with binned scores."""
        return self._sample_metrics(self._coarse_histograms)

    def _correct_binning(self, metrics: MetricValues) -> MetricValues:
        for metric in RANK_METRICS:
            metrics.one_vs_rest[metric][...] += (
                self.point_estimates.one_vs_rest[metric] - self._coarse_estimates.one_vs_rest[metric]
            )
        for metric in metrics.binary:
            metrics.binary[metric][...] += (
                self.point_estimates.binary[metric] - self._coarse_estimates.binary[metric]
            )
        return metrics

    def _metrics_from_sums(
        self, sums: Floats, histogram_sums: Iterator[Floats], histograms: Sequence[_ScoreHistogram]
    ) -> MetricValues:
        sums_of_term = {term: sums[:, columns] for term, columns in self._columns_of.items()}
        k = len(self.scored_set.classes)
        confusion = sums_of_term["confusion"].reshape(-1, k, k)
        binary_counts = _counts_with_binary(confusion, self.scored_set.malignant_classes)
        one_vs_rest = {
            "precision": classification_confusion.precision(binary_counts),
            "recall": classification_confusion.recall(binary_counts),
            "f1": classification_confusion.f1(binary_counts),
            "specificity": classification_confusion.specificity(binary_counts),
            "npv": classification_confusion.npv(binary_counts),
            "mcc": classification_confusion.binary_mcc(binary_counts),
        }
        binary_metrics = _malignant_probability_metrics(sums_of_term) if self.scored_set.has_both_sides else {}
        if histograms:
            steps = [
                histogram.cumulative_counts(step_sums)
                for histogram, step_sums in zip(histograms, histogram_sums, strict=True)
            ]
            n_nets = len(self.scored_set.rows_by_net)
            views = [steps[start : start + n_nets] for start in range(0, len(steps), n_nets)]
            ranking_metrics = [_mean_over_nets(view, _rank_metrics) for view in views]
            for metric in RANK_METRICS:
                one_vs_rest[metric] = np.column_stack([view_metrics[metric] for view_metrics in ranking_metrics])
            binary_metrics |= _mean_over_nets(views[-1], _roc_end_metrics)
        return MetricValues(
            _multiclass_metrics(sums_of_term, confusion), one_vs_rest, binary_metrics, binary_counts
        )


def _mean_over_nets(
    nets: Sequence[CumulativeCounts], metrics_of: Callable[[CumulativeCounts], dict[str, Floats]]
) -> dict[str, Floats]:
    """Return metrics, (B,), as means over nets weighted by their pairs of a positive and a negative."""
    if len(nets) == 1:
        return metrics_of(nets[0])
    n_pairs = np.stack([steps.tp[:, -1] * steps.fp[:, -1] for steps in nets])
    metrics_by_net, total = [metrics_of(steps) for steps in nets], n_pairs.sum(axis=0)
    return {
        name: ratio(
            np.where(n_pairs > 0, n_pairs * np.stack([metrics[name] for metrics in metrics_by_net]), 0.0).sum(
                axis=0
            ),
            total,
            total > 0,
        )
        for name in metrics_by_net[0]
    }


def _rank_metrics(steps: CumulativeCounts) -> dict[str, Floats]:
    metrics = classification_roc.auroc_and_ap(steps)
    return {"auroc": metrics.auroc, "average_precision": metrics.average_precision}


def _multiply(weights: Floats, matrix: csr_matrix) -> Floats:
    return np.asarray((matrix.T @ weights.T).T, dtype=np.float64)


def _per_group_sums(scored_set: ScoredSet) -> tuple[dict[str, slice], csr_matrix]:
    """Return the columns of each kind of term, and all terms summed per group, (G, C), sparse.

    Each block below is (kind, number of columns, [(column of each image, value of each image), ...]).
    """
    n, k, p = len(scored_set.y_true), len(scored_set.classes), scored_set.probabilities
    n_bins, first_column, ones = probabilistic.N_BINS, np.zeros(n, dtype=np.int64), np.ones(n)
    p_malignant, is_malignant = scored_set.p_malignant, scored_set.is_malignant.astype(np.float64)
    residuals = p - (scored_set.y_true[:, None] == np.arange(k))
    is_correct = (scored_set.y_true == scored_set.y_pred).astype(np.float64)
    benefit_tp = (p_malignant[:, None] >= np.array(BENEFIT_THRESHOLDS)) * is_malignant[:, None]
    benefit_fp = (p_malignant[:, None] >= np.array(BENEFIT_THRESHOLDS)) * (1 - is_malignant[:, None])
    top_hits = (scored_set.rank_of_true[:, None] < np.array(TOP_K)).astype(np.float64)

    def one_per_column(terms: Floats) -> list[tuple[Ints, Floats]]:
        return [(np.full(n, column), terms[:, column]) for column in range(terms.shape[1])]

    def binned(bin_of_image: NDArray[np.intp], *terms: Floats) -> list[tuple[Ints, Floats]]:
        return [(bin_of_image + i * n_bins, values) for i, values in enumerate(terms)]

    confidence_bin, malignant_bin = (
        probabilistic.bin_index(scored_set.confidence),
        probabilistic.bin_index(p_malignant),
    )
    blocks: list[tuple[str, int, list[tuple[Ints, Floats]]]] = [
        ("confusion", k * k, [(scored_set.y_true * k + scored_set.y_pred, ones)]),
        ("n", 1, [(first_column, ones)]),
        ("loss", 1, [(first_column, probabilistic.log_loss_terms(scored_set.y_true, p))]),
        ("brier", 1, [(first_column, probabilistic.brier_terms(scored_set.y_true, p))]),
        ("bins", 3 * n_bins, binned(confidence_bin, ones, scored_set.confidence, is_correct)),
        (
            "residuals",
            k * n_bins,
            [(probabilistic.bin_index(p[:, c]) + c * n_bins, residuals[:, c]) for c in range(k)],
        ),
        ("top_k", len(TOP_K), one_per_column(top_hits)),
        ("malignant_bins", 3 * n_bins, binned(malignant_bin, ones, p_malignant, is_malignant)),
        ("squared_errors", 1, [(first_column, (p_malignant - is_malignant) ** 2)]),
        ("benefit_tp", len(BENEFIT_THRESHOLDS), one_per_column(benefit_tp)),
        ("benefit_fp", len(BENEFIT_THRESHOLDS), one_per_column(benefit_fp)),
    ]
    return _sum_blocks(blocks, scored_set)


def _sum_blocks(
    blocks: Sequence[tuple[str, int, list[tuple[Ints, Floats]]]], scored_set: ScoredSet
) -> tuple[dict[str, slice], csr_matrix]:
    """Put blocks of terms side by side and sum them per group, (G, C)."""
    columns_of, start, columns, values = {}, 0, [], []
    for term, width, entries in blocks:
        columns_of[term] = slice(start, start + width)
        columns += [column_indices + start for column_indices, _ in entries]
        values += [value for _, value in entries]
        start += width
    group_rows = np.tile(scored_set.groups, len(columns))
    group_sums = csr_matrix(
        (np.concatenate(values), (group_rows, np.concatenate(columns))), shape=(scored_set.n_groups, start)
    )
    return columns_of, group_sums


def _multiclass_metrics(sums_of_term: dict[str, Floats], confusion: Floats) -> dict[str, Floats]:
    total = sums_of_term["n"][:, 0]
    k = confusion.shape[-1]
    residuals = sums_of_term["residuals"].reshape(len(total), k, -1)
    top_k_accuracies = {
        f"top_{top_k}_accuracy": sums_of_term["top_k"][:, i] / total for i, top_k in enumerate(TOP_K) if top_k < k
    }
    return {
        "accuracy": classification_confusion.accuracy(confusion),
        **top_k_accuracies,
        "mcc_multiclass": classification_confusion.mcc(confusion),
        "kappa": classification_confusion.kappa(confusion),
        "loss": sums_of_term["loss"][:, 0] / total,
        "brier": sums_of_term["brier"][:, 0] / total,
        "ece": probabilistic.ece_from_bins(
            probabilistic.CalibrationBins(*np.split(sums_of_term["bins"], 3, axis=1))
        ),
        "ece_classwise": calibration.classwise_ece_from_bins(residuals, total),
    }


def _malignant_probability_metrics(sums_of_term: dict[str, Floats]) -> dict[str, Floats]:
    n, probability_sums, event_counts = np.split(sums_of_term["malignant_bins"], 3, axis=1)
    brier = calibration.decompose_brier(n, probability_sums, event_counts, sums_of_term["squared_errors"][:, 0])
    total = sums_of_term["n"][:, 0]
    net_benefits = {
        f"net_benefit_{round(100 * threshold)}": calibration.net_benefit_from_counts(
            sums_of_term["benefit_tp"][:, i], sums_of_term["benefit_fp"][:, i], total, threshold
        )
        for i, threshold in enumerate(BENEFIT_THRESHOLDS)
    }
    return {
        "brier_malignant": brier.score, "brier_reliability": brier.reliability,
        "brier_resolution": brier.resolution, "brier_uncertainty": brier.uncertainty, **net_benefits,
    }  # fmt: skip


def _roc_end_metrics(steps: CumulativeCounts) -> dict[str, Floats]:
    roc = classification_roc.roc_curve_batch(steps)
    fixed_rate_metrics = {
        f"sensitivity_at_specificity_{round(100 * rate)}": classification_roc.sensitivity_at_specificity(roc, rate)
        for rate in FIXED_RATES
    }
    fixed_rate_metrics |= {
        f"specificity_at_sensitivity_{round(100 * rate)}": classification_roc.specificity_at_sensitivity(roc, rate)
        for rate in FIXED_RATES
    }
    return {
        "pauc_above_tpr80": classification_roc.partial_auroc_2024(roc),
        "auc_sens_80": classification_roc.partial_auroc_isic(roc),
        **fixed_rate_metrics,
    }


def _counts_with_binary(confusion: Floats, malignant_classes: Bools) -> BinaryCounts:
    class_counts = classification_confusion.one_vs_rest_counts(confusion)
    malignant_counts = classification_confusion.malignant_vs_rest_counts(confusion, malignant_classes)

    def append_column(class_values: Floats, malignant_values: Floats) -> Floats:
        return np.concatenate([class_values, malignant_values[..., None]], axis=-1)

    return BinaryCounts(
        append_column(class_counts.tp, malignant_counts.tp), append_column(class_counts.fp, malignant_counts.fp),
        append_column(class_counts.fn, malignant_counts.fn), append_column(class_counts.tn, malignant_counts.tn),
    )  # fmt: skip
