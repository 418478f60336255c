"""Charts as PNG files: training progress, confusion matrix, metrics with intervals, spread over runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike, NDArray

from dermkit.render.style import (
    COLOURS,
    INK_COLOUR,
    TRAIN_COLOUR,
    VALIDATION_COLOUR,
    float_column,
    mpl_safe,
    save_figure,
    style_axes,
)


def draw_progress(log: pd.DataFrame, path: Path, *, best_epoch: int | None = None) -> None:
    """Draw loss, accuracy and balanced accuracy per epoch, the phases as bands and the best epoch as a line.

    log: the columns of `log.csv`; absent columns and NaN are left out. Raises `OutputError`, as all functions here.
    """
    figure = Figure(figsize=(9.0, 3.3), layout="constrained")
    panels = figure.subplots(1, 3)
    titles = {"loss": "Loss", "accuracy": "Accuracy", "balanced_accuracy": "Balanced accuracy"}
    for axes, (metric, title) in zip(panels, titles.items(), strict=True):
        style_axes(axes, x="epoch", title=title)
        _draw_phases(axes, log)
        _draw_train_and_val(axes, log, metric)
        if best_epoch is not None:
            axes.axvline(best_epoch, color=INK_COLOUR, linewidth=1, linestyle=(0, (2, 2)))
        if metric != "loss":
            axes.set_ylim(0.0, 1.02)
        axes.xaxis.get_major_locator().set_params(integer=True)
    handles = [
        Line2D([], [], color=TRAIN_COLOUR, marker="o", markersize=4, label="training"),
        Line2D([], [], color=VALIDATION_COLOUR, marker="s", markersize=4, linestyle="--", label="validation"),
    ]
    if best_epoch is not None:
        handles.append(Line2D([], [], color=INK_COLOUR, linestyle=(0, (2, 2)), label=f"best epoch: {best_epoch}"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    save_figure(figure, path)


def _draw_train_and_val(axes: Axes, log: pd.DataFrame, metric: str) -> None:
    epochs = float_column(log, "epoch")
    has_markers = len(log) <= 40  # beyond that markers merge into a band
    for prefix, colour, marker, style in (
        ("train", TRAIN_COLOUR, "o", "-"),
        ("val", VALIDATION_COLOUR, "s", "--"),
    ):
        values = float_column(log, f"{prefix}_{metric}")
        values = np.where(np.isfinite(values), values, np.nan)
        axes.plot(
            epochs, values, color=colour, linestyle=style, marker=marker if has_markers else "", markersize=3.5
        )


def _draw_phases(axes: Axes, log: pd.DataFrame) -> None:
    """Shade every second training phase and label all; nothing if there is only one."""
    if "phase" not in log.columns or log["phase"].nunique() < 2:
        return
    spans = log.groupby("phase", sort=False)["epoch"].agg(["min", "max"])
    for phase_index, (name, first_epoch, last_epoch) in enumerate(spans.itertuples(name=None)):
        if phase_index % 2:
            axes.axvspan(float(first_epoch) - 0.5, float(last_epoch) + 0.5, color="#EEF1F4", zorder=0, linewidth=0)
        axes.annotate(
            f"phase {mpl_safe(str(name))}", ((float(first_epoch) + float(last_epoch)) / 2, 1.0), va="top", ha="center",
            xycoords=("data", "axes fraction"), fontsize=7.5, color="#666666",
        )  # fmt: skip


def draw_confusion(matrix: ArrayLike, classes: Sequence[str], path: Path, *, title: str = "") -> None:
    """Draw a confusion matrix: counts, and the fraction of each row.

    matrix: (k, k) counts, rows = true classes, so the fractions on the diagonal are recalls. classes: k names in the
    order of the matrix. A row without images has no fractions.
    """
    counts = np.asarray(matrix, dtype=np.int64)
    if counts.shape != (len(classes), len(classes)):
        raise ValueError(f"matrix is {counts.shape}, but there are {len(classes)} classes")
    totals = counts.sum(axis=1, keepdims=True)
    fractions = np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
    k = len(classes)
    cell_size = float(np.interp(k, [2, 9], [1.25, 0.78]))
    figure = Figure(figsize=(2.6 + cell_size * k, 2.0 + cell_size * k), layout="constrained")
    axes = figure.subplots()
    axes.imshow(np.nan_to_num(fractions), cmap="Blues", vmin=0.0, vmax=1.15, aspect="equal")
    for (row, column), count in np.ndenumerate(counts):
        fraction = fractions[row, column]
        is_dark = np.isfinite(fraction) and fraction > 0.55
        text = f"{count}\n{fraction:.0%}" if np.isfinite(fraction) else "0\n-"
        axes.text(
            column, row, text, ha="center", va="center", fontsize=11 if k < 6 else 9,
            color="white" if is_dark else INK_COLOUR, fontweight="bold" if row == column else "normal",
        )  # fmt: skip
    _style_confusion_axes(axes, classes, totals[:, 0], title)
    save_figure(figure, path)


def _style_confusion_axes(axes: Axes, classes: Sequence[str], totals: NDArray[np.int64], title: str) -> None:
    ticks = np.arange(len(classes))
    axes.set_title(mpl_safe(title) if title else "", fontsize=11, loc="left", fontweight="bold", color=INK_COLOUR)
    rotation: dict[str, Any] = (
        {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if len(classes) > 3 else {}
    )
    axes.set_xticks(ticks, [mpl_safe(name, 20) for name in classes], fontsize=9, **rotation)
    labels = [f"{mpl_safe(name, 20)}\nn = {total}" for name, total in zip(classes, totals, strict=True)]
    axes.set_yticks(ticks, labels, fontsize=9)
    axes.set_xlabel("predicted", fontsize=10)
    axes.set_ylabel("true", fontsize=10)
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(len(classes) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(classes) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)


def draw_metric_bars(values: pd.DataFrame, path: Path, *, title: str = "") -> None:
    """Draw every metric as a bar with its 95 % interval as a whisker, one bar per split.

    values: columns metric, split, value, low, high, in 0..1; NaN = not defined, written instead of a bar.
    """
    metrics = list(dict.fromkeys(values["metric"].astype(str)))
    splits = list(dict.fromkeys(values["split"].astype(str)))
    bar_height = 0.8 / max(1, len(splits))
    figure = Figure(figsize=(8.2, 1.1 + 0.24 * len(metrics) * max(1, len(splits))), layout="constrained")
    axes = figure.subplots()
    style_axes(axes, x="value, with its 95 % interval", title=title)
    colours = {"validation": "#9CC3DE", "test": VALIDATION_COLOUR}
    for number, split in enumerate(splits):
        rows = values[values["split"].astype(str) == split]
        positions = (
            np.array([metrics.index(str(name)) for name in rows["metric"]]) + (number + 0.5) * bar_height - 0.4
        )
        _draw_bars(
            axes, rows, positions, bar_height * 0.86, colours.get(split, COLOURS[number % len(COLOURS)]), split
        )
    axes.set_yticks(np.arange(len(metrics)), [mpl_safe(name) for name in metrics])
    axes.set_ylim(len(metrics) - 0.4, -0.6)
    axes.set_xlim(0.0, 1.12)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.grid(False, axis="y")
    if splits:
        figure.legend(loc="outside lower center", frameon=False, fontsize=9, ncols=len(splits))
    save_figure(figure, path)


def _draw_bars(
    axes: Axes, rows: pd.DataFrame, positions: NDArray[np.float64], height: float, colour: str, label: str
) -> None:
    value, low, high = (float_column(rows, name) for name in ("value", "low", "high"))
    axes.barh(positions, np.nan_to_num(value), height=height, color=colour, label=mpl_safe(label))
    has_interval = np.isfinite(low) & np.isfinite(high)
    axes.hlines(positions[has_interval], low[has_interval], high[has_interval], color=INK_COLOUR, linewidth=1.4)
    for position, bar_value, text_start in zip(positions, value, np.where(has_interval, high, value), strict=True):
        text = f"{bar_value:.2f}" if np.isfinite(bar_value) else "not defined"
        axes.text(
            max(0.0, np.nan_to_num(text_start)) + 0.012,
            position,
            text,
            va="center",
            fontsize=8.5,
            color=INK_COLOUR,
        )


def draw_spread(values: pd.DataFrame, path: Path, *, final_run: str = "", title: str = "") -> None:
    """Draw every metric's values over repeated runs as dots, and their mean as a line.

    values: columns metric, run, value, in 0..1. final_run: the run of the final model, drawn as a filled dot.
    """
    metrics = list(dict.fromkeys(values["metric"].astype(str)))
    figure = Figure(figsize=(8.2, 1.4 + 0.36 * len(metrics)), layout="constrained")
    axes = figure.subplots()
    style_axes(axes, x="value", title=title)
    for position, metric in enumerate(metrics):
        rows = values[values["metric"].astype(str) == metric]
        run_values, is_final = float_column(rows, "value"), (rows["run"].astype(str) == final_run).to_numpy()
        axes.vlines(run_values.mean(), position - 0.32, position + 0.32, color=INK_COLOUR, linewidth=1.6)
        axes.scatter(
            run_values[~is_final],
            np.full((~is_final).sum(), position),
            s=46,
            facecolor="none",
            edgecolor=VALIDATION_COLOUR,
            linewidth=1.6,
        )
        axes.scatter(run_values[is_final], np.full(is_final.sum(), position), s=56, color=TRAIN_COLOUR, zorder=3)
    axes.set_yticks(np.arange(len(metrics)), [mpl_safe(name) for name in metrics])
    axes.set_ylim(len(metrics) - 0.4, -0.6)
    handles = [
        Line2D([], [], color=VALIDATION_COLOUR, marker="o", linestyle="", markerfacecolor="none", label="run"),
        Line2D([], [], color=TRAIN_COLOUR, marker="o", linestyle="", label="final model"),
        Line2D([], [], color=INK_COLOUR, marker="|", linestyle="", markersize=12, label="mean"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    save_figure(figure, path)
