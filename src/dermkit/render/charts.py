"""Pictures of numbers as PNG files: progress, confusion matrix, intervals, spread.

Drawn on matplotlib Figure objects without pyplot, so threads may draw at once and nothing global changes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike, NDArray

from dermkit.files import write_with
from dermkit.render.style import COLOURS, INK, TRAIN, VALIDATION, as_png, numbers, plain, tidy


def _save(figure: Figure, path: Path) -> None:
    write_with(path, as_png(figure))


def draw_progress(log: pd.DataFrame, path: Path, *, best_epoch: int | None = None) -> None:
    """Draw loss, accuracy and balanced accuracy per epoch; phases as bands, the best epoch as a line.

    log: the columns of `log.csv`; absent columns and NaN are left out.
    """
    figure = Figure(figsize=(9.0, 3.3), layout="constrained")
    panels = figure.subplots(1, 3)
    titles = {"loss": "Loss", "accuracy": "Accuracy", "balanced_accuracy": "Balanced accuracy"}
    for axes, (stem, title) in zip(panels, titles.items(), strict=True):
        tidy(axes, x="epoch", title=title)
        _phases(axes, log)
        _curves(axes, log, stem)
        if best_epoch is not None:
            axes.axvline(best_epoch, color=INK, linewidth=1, linestyle=(0, (2, 2)))
        if stem != "loss":
            axes.set_ylim(0.0, 1.02)
        axes.xaxis.get_major_locator().set_params(integer=True)
    handles = [
        Line2D([], [], color=TRAIN, marker="o", markersize=4, label="training"),
        Line2D([], [], color=VALIDATION, marker="s", markersize=4, linestyle="--", label="validation"),
    ]
    if best_epoch is not None:
        handles.append(Line2D([], [], color=INK, linestyle=(0, (2, 2)), label=f"best epoch: {best_epoch}"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    _save(figure, path)


def _curves(axes: Axes, log: pd.DataFrame, stem: str) -> None:
    epochs = numbers(log, "epoch")
    marks = len(log) <= 40  # beyond that markers merge into a band
    for prefix, colour, marker, style in (("train", TRAIN, "o", "-"), ("val", VALIDATION, "s", "--")):
        values = numbers(log, f"{prefix}_{stem}")
        values = np.where(np.isfinite(values), values, np.nan)
        axes.plot(epochs, values, color=colour, linestyle=style, marker=marker if marks else "", markersize=3.5)


def _phases(axes: Axes, log: pd.DataFrame) -> None:
    """Shade every second phase and number them, where there is more than one."""
    if "phase" not in log.columns or log["phase"].nunique() < 2:
        return
    spans = log.groupby("phase", sort=False)["epoch"].agg(["min", "max"])
    for number, (name, first, last) in enumerate(spans.itertuples(name=None)):
        if number % 2:
            axes.axvspan(float(first) - 0.5, float(last) + 0.5, color="#EEF1F4", zorder=0, linewidth=0)
        axes.annotate(
            f"phase {plain(str(name))}", ((float(first) + float(last)) / 2, 1.0), va="top", ha="center",
            xycoords=("data", "axes fraction"), fontsize=7.5, color="#666666",
        )  # fmt: skip


def draw_confusion(matrix: ArrayLike, classes: Sequence[str], path: Path, *, title: str = "") -> None:
    """Draw counts and row shares; rows are the true classes, so the diagonal's shares are recalls.

    matrix: (k, k) counts. classes: k names in the matrix's order. A row without images is left without shares.
    """
    counts = np.asarray(matrix, dtype=np.int64)
    if counts.shape != (len(classes), len(classes)):
        raise ValueError(f"matrix is {counts.shape}, but there are {len(classes)} classes")
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
    k = len(classes)
    cell = float(np.interp(k, [2, 9], [1.25, 0.78]))
    figure = Figure(figsize=(2.6 + cell * k, 2.0 + cell * k), layout="constrained")
    axes = figure.subplots()
    axes.imshow(np.nan_to_num(shares), cmap="Blues", vmin=0.0, vmax=1.15, aspect="equal")
    for (row, column), count in np.ndenumerate(counts):
        share = shares[row, column]
        dark = np.isfinite(share) and share > 0.55
        text = f"{count}\n{share:.0%}" if np.isfinite(share) else "0\n-"
        axes.text(
            column, row, text, ha="center", va="center", fontsize=11 if k < 6 else 9,
            color="white" if dark else INK, fontweight="bold" if row == column else "normal",
        )  # fmt: skip
    _confusion_axes(axes, classes, totals[:, 0], title)
    _save(figure, path)


def _confusion_axes(axes: Axes, classes: Sequence[str], totals: NDArray[np.int64], title: str) -> None:
    ticks = np.arange(len(classes))
    axes.set_title(plain(title) if title else "", fontsize=11, loc="left", fontweight="bold", color=INK)
    rotation: dict[str, Any] = (
        {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if len(classes) > 3 else {}
    )
    axes.set_xticks(ticks, [plain(name, 20) for name in classes], fontsize=9, **rotation)
    labels = [f"{plain(name, 20)}\nn = {total}" for name, total in zip(classes, totals, strict=True)]
    axes.set_yticks(ticks, labels, fontsize=9)
    axes.set_xlabel("predicted", fontsize=10)
    axes.set_ylabel("true", fontsize=10)
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(len(classes) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(classes) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)


def draw_metric_bars(values: pd.DataFrame, path: Path, *, title: str = "") -> None:
    """Draw each metric's value as a bar with its 95 % interval as a whisker, a bar per split.

    values: columns metric, split, value, low, high; values in 0..1, NaN = not defined (said so, no bar).
    """
    metrics = list(dict.fromkeys(values["metric"].astype(str)))
    splits = list(dict.fromkeys(values["split"].astype(str)))
    thick = 0.8 / max(1, len(splits))
    figure = Figure(figsize=(8.2, 1.1 + 0.24 * len(metrics) * max(1, len(splits))), layout="constrained")
    axes = figure.subplots()
    tidy(axes, x="value, with its 95 % interval", title=title)
    colours = {"validation": "#9CC3DE", "test": VALIDATION}
    for number, split in enumerate(splits):
        rows = values[values["split"].astype(str) == split]
        places = np.array([metrics.index(str(name)) for name in rows["metric"]]) + (number + 0.5) * thick - 0.4
        _bars(axes, rows, places, thick * 0.86, colours.get(split, COLOURS[number % len(COLOURS)]), split)
    axes.set_yticks(np.arange(len(metrics)), [plain(name) for name in metrics])
    axes.set_ylim(len(metrics) - 0.4, -0.6)
    axes.set_xlim(0.0, 1.12)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.grid(False, axis="y")
    if splits:
        figure.legend(loc="outside lower center", frameon=False, fontsize=9, ncols=len(splits))
    _save(figure, path)


def _bars(
    axes: Axes, rows: pd.DataFrame, places: NDArray[np.float64], height: float, colour: str, label: str
) -> None:
    value, low, high = (numbers(rows, name) for name in ("value", "low", "high"))
    axes.barh(places, np.nan_to_num(value), height=height, color=colour, label=plain(label))
    known = np.isfinite(low) & np.isfinite(high)
    axes.hlines(places[known], low[known], high[known], color=INK, linewidth=1.4)
    for place, number, end in zip(places, value, np.where(known, high, value), strict=True):
        text = f"{number:.2f}" if np.isfinite(number) else "not defined"
        axes.text(max(0.0, np.nan_to_num(end)) + 0.012, place, text, va="center", fontsize=8.5, color=INK)


def draw_spread(values: pd.DataFrame, path: Path, *, final: str = "", title: str = "") -> None:
    """Draw one dot per run and metric, the mean as a line, the run `final` filled.

    values: columns metric, run, value; values in 0..1.
    """
    metrics = list(dict.fromkeys(values["metric"].astype(str)))
    figure = Figure(figsize=(8.2, 1.4 + 0.36 * len(metrics)), layout="constrained")
    axes = figure.subplots()
    tidy(axes, x="value", title=title)
    for place, metric in enumerate(metrics):
        rows = values[values["metric"].astype(str) == metric]
        dots, chosen = numbers(rows, "value"), (rows["run"].astype(str) == final).to_numpy()
        axes.vlines(dots.mean(), place - 0.32, place + 0.32, color=INK, linewidth=1.6)
        axes.scatter(
            dots[~chosen],
            np.full((~chosen).sum(), place),
            s=46,
            facecolor="none",
            edgecolor=VALIDATION,
            linewidth=1.6,
        )
        axes.scatter(dots[chosen], np.full(chosen.sum(), place), s=56, color=TRAIN, zorder=3)
    axes.set_yticks(np.arange(len(metrics)), [plain(name) for name in metrics])
    axes.set_ylim(len(metrics) - 0.4, -0.6)
    handles = [
        Line2D([], [], color=VALIDATION, marker="o", linestyle="", markerfacecolor="none", label="run"),
        Line2D([], [], color=TRAIN, marker="o", linestyle="", label="final model"),
        Line2D([], [], color=INK, marker="|", linestyle="", markersize=12, label="mean"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    _save(figure, path)
