"""Between an image and the input of a net: where in the image each pixel of a map lies.

The inverse of `images.preprocess.resize_pixels`. Shapes: H x W pixels of the image, S x S of the net's input.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dermkit.images.preprocess import Preprocessing

_Map = NDArray[np.float32]


def to_image(values: _Map, preprocessing: Preprocessing, shape: tuple[int, int]) -> _Map:
    """Return a map (S, S) in the frame of an image of `shape` (H, W): (H, W), NaN where the net saw nothing of it."""
    size, (height, width) = preprocessing.size, shape
    if preprocessing.resize == "squash":
        return _resize(values, shape)
    if preprocessing.resize == "pad":
        return _resize(values[_padded_box(size, shape)], shape)
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    framed = np.full(shape, np.nan, dtype=np.float32)
    framed[top : top + edge, left : left + edge] = _resize(values, (edge, edge))
    return framed


def to_input(values: _Map, preprocessing: Preprocessing) -> _Map:
    """Return a map in the frame of the image (H, W) as the net's input shows it, (S, S); padding is NaN."""
    size, (height, width) = preprocessing.size, values.shape
    if preprocessing.resize == "squash":
        return _resize(values, (size, size))
    if preprocessing.resize == "crop":
        edge = min(height, width)
        top, left = (height - edge) // 2, (width - edge) // 2
        return _resize(values[top : top + edge, left : left + edge], (size, size))
    framed = np.full((size, size), np.nan, dtype=np.float32)
    rows, columns = _padded_box(size, (height, width))
    framed[rows, columns] = _resize(values, (rows.stop - rows.start, columns.stop - columns.start))
    return framed


def _padded_box(size: int, shape: tuple[int, int]) -> tuple[slice, slice]:
    """Return where `pad` puts an image in the input, as rows and columns."""
    height, width = shape
    longer_side = max(shape)
    inner_width, inner_height = (max(1, round(edge * size / longer_side)) for edge in (width, height))
    left, top = (size - inner_width) // 2, (size - inner_height) // 2
    return slice(top, top + inner_height), slice(left, left + inner_width)


def _resize(values: _Map, shape: tuple[int, int]) -> _Map:
    """Return a map resized bilinearly, which keeps values between its smallest and largest."""
    image = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    return np.asarray(image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR), dtype=np.float32)


def weighted_mean(maps: list[_Map], weights: list[float]) -> _Map:
    """Return the weighted mean of maps (H, W) where at least one is known, scaled to a maximum of 1; NaN elsewhere."""
    stacked = np.stack(maps).astype(np.float64)
    known_weights = np.where(np.isnan(stacked), 0.0, np.asarray(weights)[:, None, None])
    total = known_weights.sum(axis=0)
    summed = (np.nan_to_num(stacked) * known_weights).sum(axis=0)
    mean = np.divide(summed, total, out=np.full(total.shape, np.nan), where=total > 0)
    largest = np.nanmax(mean)
    return np.asarray(mean / largest if largest > 0 else mean, dtype=np.float32)
