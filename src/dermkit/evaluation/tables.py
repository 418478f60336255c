"""Rows and text for the files beside the figures: classification report, ROC curves, calibration, confusions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dermkit.metrics.classification import calibration, probabilistic, roc
from dermkit.metrics.classification.scored_set import Scored
from dermkit.metrics.stats.arrays import Floats
from dermkit.metrics.stats.estimate import in_words

Rows = list[list[object]]

REPORT_COLUMNS = ("precision", "recall", "f1", "specificity", "auroc", "average_precision")
REPORT_HEADER = ("class", "n", *(f"{c}{end}" for c in REPORT_COLUMNS for end in ("", "_low", "_high")))
ROC_HEADER = ("class", "fpr", "tpr", "threshold")
CALIBRATION_HEADER = ("bin", "n", "confidence", "accuracy")
NET_BENEFIT_HEADER = (
    "threshold", "n", "malignant", "model", "found", "false_alarms", "calibrated", "calibrated_found",
    "calibrated_false_alarms", "call_all", "call_none",
)  # fmt: skip
CONFUSIONS_HEADER = ("label", "predicted", "n", "share_of_label", "mean_confidence")
MALIGNANT = "malignant classes"
"""The binary view's name in tables: all malignant classes against the rest."""


def confusion_rows(body: Mapping[str, Any], classes: Sequence[str]) -> Rows:
    """Return one row per true class: its name, then the counts per predicted class."""
    return [[name, *row] for name, row in zip(classes, body["confusion_matrix"], strict=True)]


def confusions(scored: Scored) -> Rows:
    """Return which class is taken for which, most frequent first: `CONFUSIONS_HEADER`; right answers left out."""
    k = len(scored.classes)
    cells = scored.true * k + scored.predicted
    n = np.bincount(cells, minlength=k * k)
    confidence = np.bincount(cells, weights=scored.confidence, minlength=k * k)
    of_label = n.reshape(k, k).sum(axis=1)
    wrong = [cell for cell in np.argsort(-n, kind="stable").tolist() if n[cell] and cell // k != cell % k]
    return [
        [
            scored.classes[cell // k], scored.classes[cell % k], int(n[cell]),
            float(n[cell] / of_label[cell // k]), float(confidence[cell] / n[cell]),
        ]
        for cell in wrong
    ]  # fmt: skip


def roc_rows(scored: Scored) -> Rows:
    """Return the ROC curves of each class and of the malignant classes; a curve that does not exist has no rows."""
    views = [(name, scored.probabilities[:, i], scored.true == i) for i, name in enumerate(scored.classes)]
    if scored.has_binary_view:
        score = scored.probabilities[:, scored.malignant].sum(axis=1)
        views.append((MALIGNANT, score, scored.malignant[scored.true]))
    rows: Rows = []
    for name, score, positive in views:
        if positive.any() and not positive.all():
            curve = roc.roc_curve(score, positive)
            points = zip(curve.fpr.tolist(), curve.tpr.tolist(), curve.threshold.tolist(), strict=True)
            rows += [[name, *point] for point in points]
    return rows


def calibration_rows(scored: Scored) -> Rows:
    """Return per confidence bin: n, mean confidence, accuracy (both empty where the bin is)."""
    bins = probabilistic.calibration_bins(scored.confidence, scored.true == scored.predicted)
    columns = zip(bins.n.tolist(), bins.confidence.tolist(), bins.correct.tolist(), strict=True)
    return [
        [i, int(n), confidence / n if n else "", correct / n if n else ""]
        for i, (n, confidence, correct) in enumerate(columns)
    ]


def net_benefit_rows(scored: Scored, settled: Scored | None) -> Rows:
    """Return the decision curve, `NET_BENEFIT_HEADER`, at thresholds 0.01 to 0.99; none without two sides.

    settled: the same images with calibrated probabilities; without it, its columns are empty.
    """
    positive = scored.is_malignant
    if not scored.has_binary_view or positive.all() or not positive.any():
        return []
    thresholds = np.arange(1, 100) / 100
    n, malignant = len(positive), int(positive.sum())
    views = [
        _benefit(scored, thresholds),
        [["", "", ""]] * 99 if settled is None else _benefit(settled, thresholds),
    ]
    everyone = calibration.benefit_of_all(malignant / n, thresholds).tolist()
    return [
        [at, n, malignant, *plain, *calibrated, of_all, 0.0]
        for at, plain, calibrated, of_all in zip(thresholds.tolist(), *views, everyone, strict=True)
    ]


def _benefit(scored: Scored, thresholds: Floats) -> Rows:
    """Return net benefit, malignant images called and others called, per threshold."""
    positive = scored.is_malignant
    called = scored.p_malignant[:, None] >= thresholds
    benefit = calibration.net_benefit(scored.p_malignant, positive, thresholds)
    columns = (benefit, called[positive].sum(axis=0), called[~positive].sum(axis=0))
    return [list(row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def report_rows(body: Mapping[str, Any]) -> Rows:
    """Return the classification report: a row per class, then the malignant classes and both macro means."""
    metrics, rows = body["metrics"], []
    for name, figures in body["per_class"].items():
        rows.append([name, figures["n"], *_cells(figures, "")])
    positives = metrics["sensitivity"]["n"]
    rows.append([MALIGNANT, positives, *_cells(metrics, "")])
    rows.append(["macro", body["n"], *_cells(metrics, "_macro")])
    rows.append(["macro of the classes present", body["n"], *_cells(metrics, "_macro_present")])
    return rows


def _cells(figures: Mapping[str, Any], suffix: str) -> list[object]:
    cells: list[object] = []
    for name in REPORT_COLUMNS:
        estimate = figures[name + suffix]
        low, high = estimate["ci95"] or ("", "")
        cells += ["" if estimate["value"] is None else estimate["value"], low, high]
    return cells


def report_text(body: Mapping[str, Any]) -> str:
    """Return the classification report for people: value and 95 % interval, `-` where undefined."""
    rows = report_rows(body)
    width = max(len(str(row[0])) for row in rows)
    header = f"{'':{width}}  {'n':>6}  " + "  ".join(f"{name:>18}" for name in REPORT_COLUMNS)
    lines = [header]
    for row in rows:
        cells = [_cell(*row[2 + 3 * i : 5 + 3 * i]) for i in range(len(REPORT_COLUMNS))]
        lines.append(f"{row[0]!s:{width}}  {row[1]!s:>6}  " + "  ".join(f"{cell:>18}" for cell in cells))
    for name in ("accuracy", "balanced_accuracy", "loss", "brier", "ece"):
        estimate = body["metrics"][name]
        low, high = estimate["ci95"] or ("", "")
        value = "" if estimate["value"] is None else estimate["value"]
        lines.append(f"{name:{width}}  {estimate['n']:>6}  {_cell(value, low, high):>18}")
    undefined = sorted({in_words(item["reason"]) for item in body["metrics"].values() if item.get("reason")})
    return "\n".join([*lines, "", *undefined]) + "\n"


def _cell(value: object, low: object, high: object) -> str:
    if value == "":
        return "-"
    return f"{value:.3f}" + (f" {low:.3f}-{high:.3f}" if low != "" else "")
