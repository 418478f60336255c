"""Charts of a search: the trials' values in their order, and the importance of each field."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dermkit.render.style import (
    INK_COLOUR,
    TRAIN_COLOUR,
    VALIDATION_COLOUR,
    float_column,
    mpl_safe,
    save_figure,
    style_axes,
)

_SIZE = (4.8, 3.8)
"""Inches: letters stay readable where the picture fills a phone of 390 pixels."""


def draw_history(history: pd.DataFrame, path: Path, *, metric: str, corrected: float | None = None) -> None:
    """Draw each trial's value as a dot and the best so far as steps; the corrected value as a line.

    history: columns trial, value, best_so_far.
    """
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    style_axes(axes, x="trial", y=mpl_safe(metric), title="Trials")
    trial = float_column(history, "trial")
    axes.scatter(
        trial, float_column(history, "value"), s=36, facecolor="none", edgecolor=VALIDATION_COLOUR, label="trial"
    )
    axes.step(trial, float_column(history, "best_so_far"), where="post", color=TRAIN_COLOUR, label="best so far")
    if corrected is not None:
        axes.axhline(corrected, color=INK_COLOUR, linestyle=(0, (2, 2)), linewidth=1, label="best, corrected")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    save_figure(figure, path)


def draw_importance(importance: pd.DataFrame, path: Path) -> None:
    """Draw the importance of each field as a bar, the largest first; columns field, importance (summing to 1)."""
    values = float_column(importance, "importance")
    figure = Figure(figsize=(_SIZE[0], 1.2 + 0.32 * len(values)), layout="constrained")
    axes = figure.subplots()
    style_axes(axes, x="weight, all adding up to 1", title="Weight of each field (PED-ANOVA)")
    positions = np.arange(len(values))
    axes.barh(positions, values, height=0.7, color=VALIDATION_COLOUR)
    axes.set_yticks(positions, [mpl_safe(str(name)) for name in importance["field"]])
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.set_xlim(0.0, 1.02)
    axes.grid(False, axis="y")
    save_figure(figure, path)
