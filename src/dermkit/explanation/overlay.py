"""A heat map drawn over its image, with its legend. Without torch.

Shapes: h x w pixels of the picture, in the frame of the image.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, to_hex
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dermkit.render.style import COLOURS, INK_COLOUR, mpl_safe, render_png, style_axes

_COLOUR_MAP = "inferno"
"""Of even steps in lightness, and told apart with every common colour blindness (unlike the rainbow)."""

_MAX_OPACITY = 0.8
_UNSEEN_GREY = 235
NOT_SEEN = "hatched: cut off before the net saw the image"


def blend_map(pixels: NDArray[np.uint8], heat_map: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return a picture (h, w, 3) uint8 with the map (h, w) in colours over it; NaN is hatched in grey.

    The stronger the evidence, the less of the picture shows through, so that skin without evidence keeps its colours.
    """
    is_seen = ~np.isnan(heat_map)
    values = np.where(is_seen, heat_map, 0).astype(np.float64)
    colours = colormaps[_COLOUR_MAP](values)[..., :3] * 255
    opacity = (_MAX_OPACITY * values)[..., None]
    blended = (1 - opacity) * pixels + opacity * colours
    rows, columns = np.indices(heat_map.shape)
    stripes = np.where((rows + columns) % 10 < 3, 150, _UNSEEN_GREY)[..., None]
    unseen = 0.35 * pixels + 0.65 * stripes
    return np.asarray(np.where(is_seen[..., None], blended, unseen).round(), dtype=np.uint8)


def colour_stops(n: int = 9) -> str:
    """Return the colours from 0 to 1, over white, as the stops of a CSS gradient."""
    return ", ".join(to_hex(colour) for colour in _legend_colours(n))


def _legend_colours(n: int) -> NDArray[np.float64]:
    """Return `n` colours from 0 to 1 over white, (n, 3) in 0..1: in the picture they lie over the skin."""
    values = np.linspace(0, 1, n)
    opacity = (_MAX_OPACITY * values)[:, None]
    return np.asarray(1 - opacity + opacity * colormaps[_COLOUR_MAP](values)[:, :3])


def draw_overlay(
    blended: NDArray[np.uint8], title: str, lines: Sequence[str], *, label: str, has_unseen: bool
) -> bytes:
    """Return a PNG of a blended picture with a colour bar and text above and below it. label: of the colour bar."""
    height, width = blended.shape[:2]
    picture_width = 4.6
    picture_height = min(max(picture_width * height / width, 1.8), 9.0)
    figure = Figure(
        figsize=(picture_width + 1.3, picture_height + 0.5 + 0.2 * (len(lines) + 2)), layout="constrained"
    )
    axes = figure.add_subplot()
    axes.imshow(blended)
    axes.set_axis_off()
    axes.set_title(mpl_safe(title), fontsize=11, loc="left", fontweight="bold", color=INK_COLOUR)
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), ListedColormap(_legend_colours(256))), ax=axes, fraction=0.045, pad=0.03
    )
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    notes = [*lines, *([NOT_SEEN] if has_unseen else []), "Research use only. Not a medical device."]
    figure.supxlabel("\n".join(_plain(line) for line in notes), fontsize=8.5, x=0.02, ha="left", color=INK_COLOUR)
    return render_png(figure)


def _plain(line: str) -> str:
    return line.replace("$", r"\$")


def draw_curves(
    fractions: NDArray[np.float64],
    curves: Sequence[tuple[str, NDArray[np.float64], NDArray[np.float64]]],
    label: str,
) -> bytes:
    """Return a PNG of mean curves, each given as (title, in the map's order, in random orders). label: of y."""
    figure = Figure(figsize=(4.2 * len(curves), 3.2), layout="constrained")
    for number, (title, mapped, random) in enumerate(curves, start=1):
        axes = figure.add_subplot(1, len(curves), number)
        axes.plot(fractions, mapped, color=COLOURS[0], label="order of the map")
        axes.plot(fractions, random, color=COLOURS[1], linestyle="--", label="random order")
        axes.set_ylim(0, 1.02)
        style_axes(axes, x="fraction of cells", y=label if number == 1 else "", title=title)
        axes.legend(fontsize=8, frameon=False)
    return render_png(figure)
