"""The style of all charts: colours, plain axes, names that the font can show.

Charts are matplotlib `Figure` objects, made without pyplot: several threads may draw, and no global state changes.
"""

import functools
import io
import textwrap
import threading
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from numpy.typing import NDArray
from PIL import Image

from dermkit.files import write_bytes
from dermkit.render.sheets import png_bytes

# The eight colours of Okabe and Ito (2008), distinguishable with every common colour blindness; the yellow is darkened
# to be visible on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8C7A00", "#000000")
LINE_STYLES = ("-", "--", ":", "-.")
TRAIN_COLOUR, VALIDATION_COLOUR, TEST_COLOUR = COLOURS[1], COLOURS[0], COLOURS[2]
INK_COLOUR, LIGHT_GREY = "#222222", "#C8CDD2"
DPI = 110  # a figure of 9 inches then fills a report column of 1,000 CSS pixels
MAX_NAME_LENGTH = 44  # characters


@functools.lru_cache(maxsize=1)
def _font_characters() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def mpl_safe(name: str, width: int = 0) -> str:
    """Return a text that matplotlib draws literally: no math mode, no hidden label, no character without a glyph.

    width: wrap at this many characters (0 = one line).
    """
    text = " ".join(str(name).split()) or "(empty)"
    text = text if len(text) <= MAX_NAME_LENGTH else text[: MAX_NAME_LENGTH - 1] + "…"
    text = "".join(letter if ord(letter) in _font_characters() else "?" for letter in text)
    if width:
        text = "\n".join(textwrap.wrap(text, width))
    # A legend hides labels that start with an underscore; two dollar signs start mathematics.
    return (" " + text if text.startswith("_") else text).replace("$", r"\$")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG, crash-safely; raises `OutputError`."""
    write_bytes(path, render_png(figure))


def render_png(figure: Figure) -> bytes:
    """Return a figure as a PNG file.

    The pixels are those that matplotlib would save; it draws a figure twice where the layout is constrained. Without
    the software tag, machines with different matplotlib versions write the same bytes.
    """
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return png_bytes(Image.fromarray(pixels), dpi=DPI)


def save_svg(figure: Figure, path: Path) -> None:
    """Write a figure as an SVG, crash-safely; raises `OutputError`."""
    write_bytes(path, render_svg(figure))


def render_svg(figure: Figure) -> bytes:
    """Return a figure as an SVG file, letters as outlines; equal figures give equal bytes."""
    buffer = io.BytesIO()
    with _SVG_LOCK, mpl.rc_context({"svg.hashsalt": "dermkit", "svg.fonttype": "path"}):
        canvas = FigureCanvasSVG(figure)
        canvas.print_svg(buffer, metadata={"Date": None, "Creator": None})  # type: ignore[no-untyped-call]
    return buffer.getvalue()


_SVG_LOCK = threading.Lock()
"""matplotlib reads the seed of an SVG's ids from settings of the whole process."""


def style_axes(axes: Axes, *, x: str = "", y: str = "", title: str = "") -> None:
    """Give axes a light grid, no frame at the top and right, and their labels."""
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)
    axes.grid(True, color="#E7EAED", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, colors=INK_COLOUR)
    axes.set_xlabel(x, fontsize=10)
    axes.set_ylabel(y, fontsize=10)
    axes.set_title(mpl_safe(title) if title else "", fontsize=11, loc="left", fontweight="bold", color=INK_COLOUR)


def float_column(frame: pd.DataFrame, column: str) -> NDArray[np.float64]:
    """Return a column as (n,) float64, NaN where it is absent, empty or not a number."""
    if column not in frame.columns:
        return np.full(len(frame), np.nan)
    return pd.to_numeric(frame[column], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
