"""Draw equal figures once: a chart takes a tenth of a second, and hundreds of tests train one net on the same images.

What is drawn depends on the figure and on matplotlib's settings alone. Both are hashed whole, so that a figure in which
anything differs is drawn. Tests of the charts themselves draw every figure (`tests/test_charts.py`).
"""

import hashlib
import io
import pickle
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.transforms import TransformNode


class _FigurePickler(pickle.Pickler):
    """Pickles transforms without the transforms that depend on them, which they name by addresses in memory."""

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, TransformNode):
            return NotImplemented
        state = {name: part for name, part in vars(value).items() if name not in ("_parents", "_invalid")}
        return type, (type(value).__name__, (), {}), state


def figure_key(figure: Figure) -> bytes:
    """Return a hash of all that decides what is drawn: that of an equal figure."""
    buffer = io.BytesIO()
    _FigurePickler(buffer).dump((figure, dict(mpl.rcParams)))
    return hashlib.sha256(buffer.getbuffer()).digest()


def draw_once(render: Callable[[Figure], bytes]) -> Callable[[Figure], bytes]:
    """Return a function like `render` that draws equal figures once."""
    files: dict[bytes, bytes] = {}

    def render_once(figure: Figure) -> bytes:
        key = figure_key(figure)
        if key not in files:
            files[key] = render(figure)
        return files[key]

    return render_once
