"""Small equal pictures as SVG files: confusion matrix, and curves with bands: ROC, precision, calibration, decisions.

They are drawn for a width of 330 pixels on a page and for a column of a paper.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from dermkit.render.style import (
    INK_COLOUR,
    LIGHT_GREY,
    TRAIN_COLOUR,
    VALIDATION_COLOUR,
    float_column,
    mpl_safe,
    save_svg,
)

SIZE = (3.4, 3.4)  # inches
FONT_SIZE = 8.5  # points
MAX_CLASS_NAME = 18  # characters


# Fixed margins: a constrained layout measures every label and takes half of the time of a small picture.
_MARGINS = {"left": 0.16, "right": 0.97, "bottom": 0.13, "top": 0.92}

_Corner = Literal["lower right", "lower left", "upper left", "upper right"]


def _panel(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE)
    figure.subplots_adjust(**_MARGINS)
    axes = figure.subplots()
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)
    axes.grid(True, color="#E7EAED", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=FONT_SIZE - 1, colors=INK_COLOUR)
    axes.set_xlabel(x, fontsize=FONT_SIZE)
    axes.set_ylabel(y, fontsize=FONT_SIZE)
    axes.set_title(mpl_safe(title), fontsize=FONT_SIZE + 0.5, loc="left", fontweight="bold", color=INK_COLOUR)
    return figure, axes


def _draw_band(axes: Axes, x: NDArray[np.float64], frame: pd.DataFrame, label: str) -> None:
    low, high = float_column(frame, "low"), float_column(frame, "high")
    if np.isfinite(low).any():
        axes.fill_between(x, low, high, color=VALIDATION_COLOUR, alpha=0.18, linewidth=0, label=label)


def _finish(figure: Figure, axes: Axes, path: Path, *, legend: _Corner) -> None:
    axes.legend(loc=legend, frameon=False, fontsize=FONT_SIZE - 1.5)
    save_svg(figure, path)


def draw_roc_band(table: pd.DataFrame, path: Path, *, auroc: str, title: str) -> None:
    """Draw the ROC curve of malignant against the rest with its band.

    table: columns fpr, tpr, low, high, in 0..1; low and high may be empty. auroc: text for the legend.
    """
    figure, axes = _panel(title, "1 - specificity", "sensitivity")
    x = float_column(table, "fpr")
    axes.plot([0, 1], [0, 1], color=LIGHT_GREY, linestyle="--", linewidth=1.0, label="chance")
    _draw_band(axes, x, table, "95 % band")
    label = f"AUROC {auroc}" if auroc else "malignant"
    axes.plot(x, float_column(table, "tpr"), color=VALIDATION_COLOUR, linewidth=1.8, label=label)
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.02)
    _finish(figure, axes, path, legend="lower right")


def draw_precision_recall(table: pd.DataFrame, path: Path, *, prevalence: float, title: str) -> None:
    """Draw precision against recall of malignant with its band. table: columns recall, precision, low, high, 0..1."""
    figure, axes = _panel(title, "sensitivity (recall)", "precision (PPV)")
    x = float_column(table, "recall")
    axes.axhline(
        prevalence, color=LIGHT_GREY, linestyle="--", linewidth=1.0, label=f"share malignant {prevalence:.0%}"
    )
    _draw_band(axes, x, table, "95 % band")
    axes.plot(x, float_column(table, "precision"), color=VALIDATION_COLOUR, linewidth=1.8, label="malignant")
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.02)
    _finish(figure, axes, path, legend="lower left")


def draw_calibration_band(table: pd.DataFrame, path: Path, *, title: str) -> None:
    """Draw the observed share of malignant images against the mean probability, by tenths of the probability.

    table: columns n, stated, observed, low, high. The area of a point is the number of images.
    """
    figure, axes = _panel(title, "stated probability of malignant", "share that is malignant")
    x, observed, n = (float_column(table, name) for name in ("stated", "observed", "n"))
    low, high = float_column(table, "low"), float_column(table, "high")
    axes.plot([0, 1], [0, 1], color=LIGHT_GREY, linestyle="--", linewidth=1.0, label="stated = observed")
    axes.vlines(x, low, high, color=VALIDATION_COLOUR, alpha=0.45, linewidth=2.2, label="95 % interval")
    axes.scatter(
        x, observed, s=14 + 90 * n / n.max(initial=1.0), color=VALIDATION_COLOUR, zorder=3, label="images"
    )
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    _finish(figure, axes, path, legend="upper left")


def draw_decision_curve(table: pd.DataFrame, path: Path, *, title: str) -> None:
    """Draw net benefit over thresholds of 1 to 50 % with its band, beside calling everyone and no one malignant.

    table: columns threshold, net_benefit, low, high, call_all, call_none.
    """
    figure, axes = _panel(title, "threshold to act from", "net benefit per image")
    x, benefit = float_column(table, "threshold"), float_column(table, "net_benefit")
    axes.plot(
        x, float_column(table, "call_all"), color=TRAIN_COLOUR, linestyle="--", linewidth=1.2, label="call all"
    )
    axes.plot(
        x, float_column(table, "call_none"), color=INK_COLOUR, linestyle=":", linewidth=1.2, label="call none"
    )
    _draw_band(axes, x, table, "95 % band")
    axes.plot(x, benefit, color=VALIDATION_COLOUR, linewidth=1.8, label="the net")
    highest = max(0.02, float(np.nanmax(benefit)), float(float_column(table, "call_all").max()))
    axes.set_xlim(0.0, 0.5)
    axes.set_xticks([0.01, 0.1, 0.2, 0.3, 0.4, 0.5], ["1 %", "10 %", "20 %", "30 %", "40 %", "50 %"])
    axes.set_ylim(-0.25 * highest, 1.1 * highest)
    _finish(figure, axes, path, legend="upper right")


def draw_small_confusion(matrix: ArrayLike, classes: Sequence[str], path: Path, *, title: str) -> None:
    """Draw a confusion matrix: counts, coloured by the share of each row. matrix: (k, k), rows = true classes."""
    counts = np.asarray(matrix, dtype=np.int64)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    figure, axes = _panel(title, "predicted", "true")
    figure.set_layout_engine("constrained")  # names of classes are of any length
    axes.grid(False)
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.15, aspect="equal")
    size = float(np.interp(len(classes), [2, 9, 20], [13.0, 8.0, 4.5]))
    for (row, column), count in np.ndenumerate(counts):
        if count or row == column:
            axes.text(
                column, row, str(count), ha="center", va="center", fontsize=size,
                color="white" if shares[row, column] > 0.55 else INK_COLOUR,
                fontweight="bold" if row == column else "normal",
            )  # fmt: skip
    names = [mpl_safe(_short(name)) for name in classes]
    turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if len(classes) > 3 else {}
    axes.set_xticks(range(len(classes)), names, fontsize=min(FONT_SIZE - 1, size), **turned)  # type: ignore[arg-type]
    axes.set_yticks(range(len(classes)), names, fontsize=min(FONT_SIZE - 1, size))
    axes.tick_params(length=0)
    save_svg(figure, path)


def _short(name: str) -> str:
    return name if len(name) <= MAX_CLASS_NAME else name[: MAX_CLASS_NAME - 1] + "…"
