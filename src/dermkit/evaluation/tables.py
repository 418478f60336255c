"""Rows of the CSV tables in `figures/`: classification report, ROC curves, calibration, confusions, net benefit."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dermkit.metrics.classification import calibration, confusion, probabilistic, roc
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.stats.arrays import Floats
from dermkit.metrics.stats.estimate import humanise
from dermkit.runs.layout import MALIGNANT_CURVE

CsvRows = list[list[object]]

REPORT_COLUMNS = ("precision", "recall", "f1", "specificity", "auroc", "average_precision")
REPORT_HEADER = ("class", "n", *(f"{c}{end}" for c in REPORT_COLUMNS for end in ("", "_low", "_high")))
ROC_HEADER = ("class", "fpr", "tpr", "threshold")
CALIBRATION_HEADER = ("bin", "n", "confidence", "accuracy")
NET_BENEFIT_HEADER = (
    "threshold", "n", "n_malignant", "as_trained", "true_positives", "false_positives", "calibrated",
    "calibrated_true_positives", "calibrated_false_positives", "call_all", "call_none",
)  # fmt: skip
CONFUSIONS_HEADER = ("label", "predicted", "n", "fraction_of_label", "mean_confidence")


def confusion_rows(split_metrics: Mapping[str, Any], classes: Sequence[str]) -> CsvRows:
    """Return one row per true class: its name, then the counts per predicted class."""
    return [[name, *row] for name, row in zip(classes, split_metrics["confusion_matrix"], strict=True)]


def confusion_pair_rows(scored_set: ScoredSet) -> CsvRows:
    """Return the errors per (label, predicted) pair, most frequent first, as rows of `CONFUSIONS_HEADER`."""
    k = len(scored_set.classes)
    cells = scored_set.y_true * k + scored_set.y_pred
    n = confusion.confusion_matrix(scored_set.y_true, scored_set.y_pred, k).ravel()
    confidence = np.bincount(cells, weights=scored_set.confidence, minlength=k * k)
    n_of_label = n.reshape(k, k).sum(axis=1)
    error_cells = [cell for cell in np.argsort(-n, kind="stable").tolist() if n[cell] and cell // k != cell % k]
    return [
        [
            scored_set.classes[cell // k], scored_set.classes[cell % k], int(n[cell]),
            float(n[cell] / n_of_label[cell // k]), float(confidence[cell] / n[cell]),
        ]
        for cell in error_cells
    ]  # fmt: skip


def roc_rows(scored_set: ScoredSet) -> CsvRows:
    """Return the ROC curves of each class and of the malignant classes; a curve that does not exist has no rows.

    Of several nets: the mean of their curves, without thresholds.
    """
    one_vs_rest_views = [
        (name, scored_set.probabilities[:, i], scored_set.y_true == i) for i, name in enumerate(scored_set.classes)
    ]
    if scored_set.has_both_sides:
        one_vs_rest_views.append((MALIGNANT_CURVE, scored_set.p_malignant, scored_set.is_malignant))
    rows: CsvRows = []
    for name, score, positive in one_vs_rest_views:
        if any(positive[net].any() and not positive[net].all() for net in scored_set.rows_by_net):
            curve = roc.mean_roc_curve(score, positive, scored_set.rows_by_net)
            points = zip(curve.fpr.tolist(), curve.tpr.tolist(), curve.thresholds.tolist(), strict=True)
            rows += [[name, fpr, tpr, "" if math.isnan(cut) else cut] for fpr, tpr, cut in points]
    return rows


def calibration_rows(scored_set: ScoredSet) -> CsvRows:
    """Return per confidence bin: n, mean confidence, accuracy (both empty where the bin is)."""
    bins = probabilistic.calibration_bins(scored_set.confidence, scored_set.y_true == scored_set.y_pred)
    columns = zip(bins.n.tolist(), bins.confidence_sum.tolist(), bins.n_correct.tolist(), strict=True)
    return [
        [i, int(n), confidence / n if n else "", correct / n if n else ""]
        for i, (n, confidence, correct) in enumerate(columns)
    ]


def net_benefit_rows(scored_set: ScoredSet, calibrated_set: ScoredSet | None) -> CsvRows:
    """Return the decision curve as rows of `NET_BENEFIT_HEADER`, at thresholds 0.01 to 0.99.

    No rows unless some images are malignant and some are not. calibrated_set: the same images with calibrated
    probabilities; None leaves those columns empty.
    """
    positive = scored_set.is_malignant
    if not scored_set.has_both_sides or positive.all() or not positive.any():
        return []
    thresholds = np.arange(1, 100) / 100
    n, n_malignant = len(positive), int(positive.sum())
    cells_by_model = [
        _benefit_cells(scored_set, thresholds),
        [["", "", ""]] * 99 if calibrated_set is None else _benefit_cells(calibrated_set, thresholds),
    ]
    call_all_benefit = calibration.net_benefit_call_all(n_malignant / n, thresholds).tolist()
    return [
        [threshold, n, n_malignant, *uncalibrated_cells, *calibrated_cells, call_all, 0.0]
        for threshold, uncalibrated_cells, calibrated_cells, call_all in zip(
            thresholds.tolist(), *cells_by_model, call_all_benefit, strict=True
        )
    ]


def _benefit_cells(scored_set: ScoredSet, thresholds: Floats) -> CsvRows:
    """Return [net benefit, true positives, false positives] per threshold, a list of T rows. thresholds: (T,)."""
    positive = scored_set.is_malignant
    is_called = scored_set.p_malignant[:, None] >= thresholds
    benefit = calibration.net_benefit(scored_set.p_malignant, positive, thresholds)
    columns = (benefit, is_called[positive].sum(axis=0), is_called[~positive].sum(axis=0))
    return [list(row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def report_rows(split_metrics: Mapping[str, Any]) -> CsvRows:
    """Return the classification report: a row per class, then the malignant classes and both macro means."""
    metrics, rows = split_metrics["metrics"], []
    for name, figures in split_metrics["per_class"].items():
        rows.append([name, figures["n"], *_report_cells(figures, "")])
    positives = metrics["sensitivity"]["n"]
    rows.append([MALIGNANT_CURVE, positives, *_report_cells(metrics, "")])
    rows.append(["macro", split_metrics["n"], *_report_cells(metrics, "_macro")])
    rows.append(["macro of the classes present", split_metrics["n"], *_report_cells(metrics, "_macro_present")])
    return rows


def _report_cells(figures: Mapping[str, Any], suffix: str) -> list[object]:
    cells: list[object] = []
    for name in REPORT_COLUMNS:
        estimate = figures[name + suffix]
        low, high = estimate["ci95"] or ("", "")
        cells += ["" if estimate["value"] is None else estimate["value"], low, high]
    return cells


def report_text(split_metrics: Mapping[str, Any]) -> str:
    """Return the classification report as text: value and 95 % interval, `-` where undefined."""
    rows = report_rows(split_metrics)
    width = max(len(str(row[0])) for row in rows)
    header = f"{'':{width}}  {'n':>6}  " + "  ".join(f"{name:>18}" for name in REPORT_COLUMNS)
    lines = [header]
    for row in rows:
        cells = [_cell_text(*row[2 + 3 * i : 5 + 3 * i]) for i in range(len(REPORT_COLUMNS))]
        lines.append(f"{row[0]!s:{width}}  {row[1]!s:>6}  " + "  ".join(f"{cell:>18}" for cell in cells))
    for name in ("accuracy", "balanced_accuracy", "loss", "brier", "ece"):
        estimate = split_metrics["metrics"][name]
        low, high = estimate["ci95"] or ("", "")
        value = "" if estimate["value"] is None else estimate["value"]
        lines.append(f"{name:{width}}  {estimate['n']:>6}  {_cell_text(value, low, high):>18}")
    undefined_reasons = sorted(
        {
            humanise(estimate_dict["reason"])
            for estimate_dict in split_metrics["metrics"].values()
            if estimate_dict.get("reason")
        }
    )
    return "\n".join([*lines, "", *undefined_reasons]) + "\n"


def _cell_text(value: object, low: object, high: object) -> str:
    if value == "":
        return "-"
    return f"{value:.3f}" + (f" {low:.3f}-{high:.3f}" if low != "" else "")
