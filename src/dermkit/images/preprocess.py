"""Preprocessing, the same for training and prediction: from decoded pixels to the input of a net."""

from types import MappingProxyType
from typing import Annotated, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from dermkit.errors import DataError

RgbPixels = NDArray[np.uint8]


class PixelArray(Protocol):
    """Resized images, (N, S, S, 3) uint8 RGB: a NumPy array or a view of the pixel cache."""

    def __getitem__(self, rows: NDArray[np.int64], /) -> NDArray[np.uint8]:
        """Return the images of these rows."""
        ...

    def __len__(self) -> int:
        """Return N."""
        ...


_PositiveFloat = Annotated[float, Field(ge=1e-6, le=1e6, allow_inf_nan=False)]
_FiniteFloat = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]

MAX_INPUT_SIZE = 2048
"""Side of a net's input in pixels; at 4096 a small net needs gigabytes for one image."""

_RESAMPLING_FILTERS = MappingProxyType(
    {
        "bilinear": Image.Resampling.BILINEAR,
        "bicubic": Image.Resampling.BICUBIC,
        "lanczos": Image.Resampling.LANCZOS,
        "box": Image.Resampling.BOX,
    }
)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class Preprocessing:
    """How pixels become the input of a net; stored with the model.

    size: side of the square input, in pixels. resize: `squash` ignores the aspect ratio; `pad` keeps it and adds black
    bars; `crop` scales the shorter side to `size` and cuts out the centre. The input is (pixels / divide_by - mean) /
    std, channel by channel (RGB). Raises `pydantic.ValidationError` for an invalid value.
    """

    size: Annotated[int, Field(ge=16, le=MAX_INPUT_SIZE)]
    resize: Literal["squash", "pad", "crop"]
    interpolation: Literal["bilinear", "bicubic", "lanczos", "box"]
    divide_by: _PositiveFloat
    mean: tuple[_FiniteFloat, _FiniteFloat, _FiniteFloat]
    std: tuple[_PositiveFloat, _PositiveFloat, _PositiveFloat]


def resize_pixels(pixels: RgbPixels, preprocessing: Preprocessing) -> RgbPixels:
    """Resize an image to the size of a net's input; the values are normalised later.

    pixels: (H, W, 3) uint8 RGB. Returns (size, size, 3) uint8. Raises `DataError` for another shape or dtype.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise DataError(f"pixels are {pixels.shape} {pixels.dtype}, expected (H, W, 3) uint8")
    size, resample = preprocessing.size, _RESAMPLING_FILTERS[preprocessing.interpolation]
    height, width = pixels.shape[:2]
    image = Image.fromarray(pixels)
    if preprocessing.resize == "squash":
        return np.array(image.resize((size, size), resample))
    if preprocessing.resize == "crop":
        crop_size = min(height, width)
        left, top = (width - crop_size) / 2, (height - crop_size) / 2
        return np.array(image.resize((size, size), resample, box=(left, top, left + crop_size, top + crop_size)))
    longer_side = max(height, width)
    inner_size = max(1, round(width * size / longer_side)), max(1, round(height * size / longer_side))
    canvas = np.zeros((size, size, 3), np.uint8)
    left, top = (size - inner_size[0]) // 2, (size - inner_size[1]) // 2
    canvas[top : top + inner_size[1], left : left + inner_size[0]] = np.asarray(image.resize(inner_size, resample))
    return canvas
