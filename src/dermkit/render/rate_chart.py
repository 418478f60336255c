"""The chart of a sweep of learning rates."""

import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dermkit.render.style import INK_COLOUR, LIGHT_GREY, TRAIN_COLOUR, VALIDATION_COLOUR, save_figure, style_axes


def draw_rates(
    rates: NDArray[np.float64],
    losses: NDArray[np.float64],
    smoothed: NDArray[np.float64],
    path: Path,
    *,
    suggestion: float,
    diverged: float,
) -> None:
    """Draw the loss of each step as a dot and the smoothed loss as a line over the rate; nan draws no mark.

    The axis ends a little above the highest smoothed loss: single losses of a diverging net would hide the rest.
    """
    figure = Figure(figsize=(8.2, 3.8), layout="constrained")
    axes = figure.subplots()
    style_axes(axes, x="learning rate of the head", y="training loss", title="Learning rates")
    axes.set_xscale("log")
    axes.plot(rates, losses, ".", color=LIGHT_GREY, markersize=5, label="batch")
    axes.plot(rates, smoothed, color=TRAIN_COLOUR, linewidth=2, label="smoothed")
    if math.isfinite(suggestion):
        axes.axvline(suggestion, color=VALIDATION_COLOUR, linestyle="--", label=f"suggested: {suggestion:.2g}")
    if math.isfinite(diverged):
        axes.axvline(diverged, color=INK_COLOUR, linestyle=":", label=f"diverged: {diverged:.2g}")
    start = smoothed[: max(1, len(smoothed) // 2)]
    bottom, top = float(np.min(smoothed, initial=math.inf)), float(np.max(start, initial=-math.inf))
    if math.isfinite(bottom) and top > bottom:
        axes.set_ylim(bottom - 0.1 * (top - bottom), top + 0.5 * (top - bottom))
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    save_figure(figure, path)
