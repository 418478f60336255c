"""Pictures of curves: ROC curves, people beside one, net benefit, and accuracy against confidence."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dermkit.files import write_with
from dermkit.metrics.classification.reader_studies import Anchor
from dermkit.render.style import COLOURS, FAINT, INK, STYLES, TEST, TRAIN, VALIDATION, as_png, numbers, plain, tidy

# Two charts side by side: one size, a square for the curves, the legend below it.
PAIR_SIZE = (5.6, 6.9)
PAIR_AXES = (0.155, 0.28, 0.825, 0.825 * 5.6 / 6.9)
PAIR_LEGEND: Mapping[str, Any] = {
    "loc": "upper left", "bbox_to_anchor": (-0.15, -0.12), "frameon": False, "fontsize": 8.5, "handlelength": 2.0,
}  # fmt: skip


def _save(figure: Figure, path: Path) -> None:
    write_with(path, as_png(figure))


def draw_roc(
    curves: pd.DataFrame,
    path: Path,
    *,
    auroc: Mapping[str, float | None] | None = None,
    positive: Collection[str] = (),
    title: str = "",
) -> None:
    """Draw one ROC curve per class, one against the rest; malignant classes are drawn thicker.

    curves: columns class, fpr, tpr. auroc: the number beside a class's name. positive: malignant class names.
    """
    names = list(dict.fromkeys(str(name) for name in curves["class"]))
    figure = Figure(figsize=(8.2, max(4.4, 1.2 + 0.34 * len(names))), layout="constrained")
    axes = figure.subplots()
    tidy(axes, x="1 - specificity (false positive rate)", y="sensitivity (true positive rate)", title=title)
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1.2, linestyle="--", label="chance: 0.50")
    for number, name in enumerate(names):
        rows = curves[curves["class"].astype(str) == name]
        value = (auroc or {}).get(name)
        axes.plot(
            numbers(rows, "fpr"), numbers(rows, "tpr"), color=COLOURS[number % len(COLOURS)],
            linestyle=STYLES[(number // len(COLOURS) + number) % len(STYLES)] if len(names) > 2 else "-",
            linewidth=2.6 if name in positive else 1.5,
            label=plain(name, 26) + ("" if value is None else f": {value:.2f}"),
        )  # fmt: skip
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_aspect("equal")
    legend_title = "class: AUROC" + ("\n(thick: malignant)" if positive else "")
    axes.legend(
        loc="center left",
        bbox_to_anchor=(1.02, 0.5),
        frameon=False,
        fontsize=9,
        title=legend_title,
        title_fontsize=9,
    )
    _save(figure, path)


def draw_roc_with_people(
    curve: pd.DataFrame, path: Path, *, people: Sequence[Anchor], auroc: str = "", title: str = ""
) -> None:
    """Draw the ROC curve of malignant against the rest, and numbered points of how people did, named below it.

    curve: columns fpr, tpr. auroc: what the legend says of the curve.
    """
    figure = Figure(figsize=PAIR_SIZE)
    axes = figure.add_axes(PAIR_AXES)
    tidy(axes, x="1 - specificity (false positive rate)", y="sensitivity (true positive rate)", title=title)
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1.2, linestyle="--", label="chance")
    label = "the net" + (f": AUROC {auroc}" if auroc else "")
    axes.plot(numbers(curve, "fpr"), numbers(curve, "tpr"), color=VALIDATION, linewidth=2.4, label=label)
    for number, point in enumerate(people, 1):
        x, y = 1 - point.specificity, point.sensitivity
        axes.scatter([x], [y], s=150, color=TRAIN, edgecolor="white", linewidth=1.2, zorder=3)
        axes.text(x, y - 0.002, str(number), ha="center", va="center", color="white", fontsize=8, zorder=4)
        rates = f"sensitivity {point.sensitivity:.2f}, specificity {point.specificity:.2f}"
        axes.plot([], [], linestyle="", label=f"{number}  {plain(point.who)}: {rates}")
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.02)
    axes.legend(**PAIR_LEGEND)
    _save(figure, path)


def draw_net_benefit(table: pd.DataFrame, path: Path, *, title: str = "") -> None:
    """Draw the decision curve: the net as trained and calibrated, calling everyone, calling no one.

    table: columns threshold, model, calibrated (empty where there is none), call_all, call_none.
    """
    figure = Figure(figsize=PAIR_SIZE)
    axes = figure.add_axes(PAIR_AXES)
    tidy(axes, x="threshold: act from this probability on", y="net benefit per image", title=title)
    at = numbers(table, "threshold")
    lines = (
        ("call_all", "call everyone malignant", TRAIN, "--", 1.4), ("call_none", "call no one", INK, ":", 1.4),
        ("model", "the net as trained", VALIDATION, "-", 2.2), ("calibrated", "the net, calibrated", TEST, "-.", 2.2),
    )  # fmt: skip
    shown = [numbers(table, name) for name, *_ in lines]
    if np.array_equal(shown[2], shown[3]):  # calibration that changes nothing would hide the net's own line
        shown[3] = np.full(len(at), np.nan)
    for values, (_, label, colour, style, width) in zip(shown, lines, strict=True):
        if np.isfinite(values).any():
            axes.plot(at, values, color=colour, linestyle=style, linewidth=width, label=label)
    top = max(float(np.nanmax(values)) for values in shown if np.isfinite(values).any())
    axes.set_xlim(0.0, 1.0)
    axes.set_ylim(-0.25 * max(top, 0.02), 1.08 * max(top, 0.02))
    axes.legend(**PAIR_LEGEND)
    _save(figure, path)


def draw_calibration(bins: pd.DataFrame, path: Path, *, title: str = "") -> None:
    """Draw accuracy against confidence per bin over a histogram of confidences; below the diagonal is overconfident.

    bins: columns n, confidence, accuracy; bins without images are left out.
    """
    n = np.nan_to_num(numbers(bins, "n"))
    rows = bins[n > 0]
    n = n[n > 0]
    figure = Figure(figsize=(5.2, 5.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1.0])
    tidy(upper, y="accuracy in the bin", title=title)
    upper.plot([0, 1], [0, 1], color=FAINT, linestyle="--", linewidth=1.2, label="confidence = accuracy")
    confidence, accuracy = numbers(rows, "confidence"), numbers(rows, "accuracy")
    area = 30.0 + 220.0 * n / n.max(initial=1.0)
    upper.vlines(confidence, np.minimum(confidence, accuracy), np.maximum(confidence, accuracy), color=TRAIN)
    upper.scatter(confidence, accuracy, s=area, color=VALIDATION, zorder=3, label="bin (area: images)")
    upper.set_ylim(-0.04, 1.04)
    upper.legend(loc="upper left", frameon=False, fontsize=9, markerscale=0.5)
    tidy(lower, x="confidence (probability of the predicted class)", y="images")
    lower.bar(confidence, n, width=0.04, color=VALIDATION)
    lower.set_xlim(0.0, 1.02)
    _save(figure, path)
