"""Charts of curves as PNG files: ROC, ROC with human readers, net benefit, calibration."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dermkit.metrics.classification.reader_studies import ReaderStudy
from dermkit.render.style import (
    COLOURS,
    INK_COLOUR,
    LIGHT_GREY,
    LINE_STYLES,
    TEST_COLOUR,
    TRAIN_COLOUR,
    VALIDATION_COLOUR,
    float_column,
    mpl_safe,
    render_png,
    save_figure,
    style_axes,
)

# Two charts that stand side by side in a report: equal sizes in inches, square axes, the legend below.
PAIR_SIZE = (5.6, 6.9)
PAIR_AXES = (0.155, 0.28, 0.825, 0.825 * 5.6 / 6.9)
PAIR_LEGEND: Mapping[str, Any] = {
    "loc": "upper left", "bbox_to_anchor": (-0.15, -0.12), "frameon": False, "fontsize": 8.5, "handlelength": 2.0,
}  # fmt: skip


def draw_roc(
    curves: pd.DataFrame,
    path: Path,
    *,
    auroc: Mapping[str, float | None] | None = None,
    malignant_classes: Collection[str] = (),
    title: str = "",
) -> None:
    """Draw the ROC curve of each class against the rest; malignant classes have thicker lines.

    curves: columns class, fpr, tpr, in 0..1. auroc: class -> the number in the legend, None = not defined.
    """
    class_names = list(dict.fromkeys(str(class_name) for class_name in curves["class"]))
    figure = Figure(figsize=(8.2, max(4.4, 1.2 + 0.34 * len(class_names))), layout="constrained")
    axes = figure.subplots()
    style_axes(axes, x="1 - specificity (false positive rate)", y="sensitivity (true positive rate)", title=title)
    axes.plot([0, 1], [0, 1], color=LIGHT_GREY, linewidth=1.2, linestyle="--", label="chance: 0.50")
    for number, class_name in enumerate(class_names):
        rows = curves[curves["class"].astype(str) == class_name]
        class_auroc = (auroc or {}).get(class_name)
        axes.plot(
            float_column(rows, "fpr"),
            float_column(rows, "tpr"),
            color=COLOURS[number % len(COLOURS)],
            linestyle=LINE_STYLES[(number // len(COLOURS) + number) % len(LINE_STYLES)]
            if len(class_names) > 2
            else "-",
            linewidth=2.6 if class_name in malignant_classes else 1.5,
            label=mpl_safe(class_name, 26) + ("" if class_auroc is None else f": {class_auroc:.2f}"),
        )
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_aspect("equal")
    legend_title = "class: AUROC" + ("\n(thick: malignant)" if malignant_classes else "")
    axes.legend(
        loc="center left",
        bbox_to_anchor=(1.02, 0.5),
        frameon=False,
        fontsize=9,
        title=legend_title,
        title_fontsize=9,
    )
    save_figure(figure, path)


def render_roc_overlay(
    curves: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64], float | None]],
) -> bytes:
    """Return a PNG of several models' ROC curves with their names; malignant is the positive class.

    curves: name -> (false positive rates, true positive rates, AUROC or None). Letters are large enough for a screen of
    390 pixels.
    """
    figure = Figure(figsize=(4.7, 4.7 + 0.24 * len(curves)), layout="constrained")
    axes = figure.subplots()
    style_axes(axes, x="1 - specificity", y="sensitivity")
    axes.plot([0, 1], [0, 1], color=LIGHT_GREY, linewidth=1.2, linestyle="--")
    for number, (name, (fpr, tpr, auroc)) in enumerate(curves.items()):
        label = mpl_safe(name) + ("" if auroc is None else f": {auroc:.3f}")
        axes.plot(
            fpr, tpr, color=COLOURS[number % len(COLOURS)], linestyle=LINE_STYLES[number % len(LINE_STYLES)],
            linewidth=2.0, label=label,
        )  # fmt: skip
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_aspect("equal")
    figure.legend(loc="outside lower left", frameon=False, fontsize=10, title="AUROC", title_fontsize=10)
    return render_png(figure)


def draw_roc_with_readers(
    curve: pd.DataFrame, path: Path, *, studies: Sequence[ReaderStudy], auroc: str = "", title: str = ""
) -> None:
    """Draw the ROC curve of malignant (positive) against the rest, and the results of human readers as points.

    curve: columns fpr, tpr, in 0..1. studies: their sensitivity and specificity are the points, named in the legend.
    auroc: text for the legend.
    """
    figure = Figure(figsize=PAIR_SIZE)
    axes = figure.add_axes(PAIR_AXES)
    style_axes(axes, x="1 - specificity (false positive rate)", y="sensitivity (true positive rate)", title=title)
    axes.plot([0, 1], [0, 1], color=LIGHT_GREY, linewidth=1.2, linestyle="--", label="chance")
    label = "the net" + (f": AUROC {auroc}" if auroc else "")
    axes.plot(
        float_column(curve, "fpr"), float_column(curve, "tpr"), color=VALIDATION_COLOUR, linewidth=2.4, label=label
    )
    for number, study in enumerate(studies, 1):
        x, y = 1 - study.specificity, study.sensitivity
        axes.scatter([x], [y], s=150, color=TRAIN_COLOUR, edgecolor="white", linewidth=1.2, zorder=3)
        axes.text(x, y - 0.002, str(number), ha="center", va="center", color="white", fontsize=8, zorder=4)
        rates = f"sensitivity {study.sensitivity:.2f}, specificity {study.specificity:.2f}"
        axes.plot([], [], linestyle="", label=f"{number}  {mpl_safe(study.readers)}: {rates}")
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.02)
    axes.legend(**PAIR_LEGEND)
    save_figure(figure, path)


def draw_net_benefit(table: pd.DataFrame, path: Path, *, title: str = "") -> None:
    """Draw the decision curve (Vickers and Elkin 2006): net benefit over thresholds of the malignancy probability.

    table: columns threshold (0..1), as_trained, calibrated (empty without calibration), call_all, call_none: net
    benefit per image.
    """
    figure = Figure(figsize=PAIR_SIZE)
    axes = figure.add_axes(PAIR_AXES)
    style_axes(axes, x="threshold: act from this probability on", y="net benefit per image", title=title)
    thresholds = float_column(table, "threshold")
    lines = (
        ("call_all", "call everyone malignant", TRAIN_COLOUR, "--", 1.4),
        ("call_none", "call no one", INK_COLOUR, ":", 1.4),
        ("as_trained", "the net as trained", VALIDATION_COLOUR, "-", 2.2),
        ("calibrated", "the net, calibrated", TEST_COLOUR, "-.", 2.2),
    )
    series = [float_column(table, column) for column, *_ in lines]
    if np.array_equal(series[2], series[3]):  # calibration that changes nothing would hide the net's own line
        series[3] = np.full(len(thresholds), np.nan)
    for values, (_, label, colour, style, width) in zip(series, lines, strict=True):
        if np.isfinite(values).any():
            axes.plot(thresholds, values, color=colour, linestyle=style, linewidth=width, label=label)
    highest = max(float(np.nanmax(values)) for values in series if np.isfinite(values).any())
    axes.set_xlim(0.0, 1.0)
    axes.set_ylim(-0.25 * max(highest, 0.02), 1.08 * max(highest, 0.02))
    axes.legend(**PAIR_LEGEND)
    save_figure(figure, path)


def draw_calibration(bins: pd.DataFrame, path: Path, *, title: str = "") -> None:
    """Draw a reliability diagram (accuracy against confidence, per bin) above a histogram of the confidences.

    bins: columns n, confidence, accuracy, the last two in 0..1; bins without images are left out. Points below the
    diagonal mean overconfidence.
    """
    n = np.nan_to_num(float_column(bins, "n"))
    rows = bins[n > 0]
    n = n[n > 0]
    figure = Figure(figsize=(5.2, 5.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1.0])
    style_axes(upper, y="accuracy in the bin", title=title)
    upper.plot([0, 1], [0, 1], color=LIGHT_GREY, linestyle="--", linewidth=1.2, label="confidence = accuracy")
    confidence, accuracy = float_column(rows, "confidence"), float_column(rows, "accuracy")
    area = 30.0 + 220.0 * n / n.max(initial=1.0)
    upper.vlines(
        confidence, np.minimum(confidence, accuracy), np.maximum(confidence, accuracy), color=TRAIN_COLOUR
    )
    upper.scatter(confidence, accuracy, s=area, color=VALIDATION_COLOUR, zorder=3, label="bin (area: images)")
    upper.set_ylim(-0.04, 1.04)
    upper.legend(loc="upper left", frameon=False, fontsize=9, markerscale=0.5)
    style_axes(lower, x="confidence (probability of the predicted class)", y="images")
    lower.bar(confidence, n, width=0.04, color=VALIDATION_COLOUR)
    lower.set_xlim(0.0, 1.02)
    save_figure(figure, path)
