"""A small set of statistics of an image, which drift is watched by: size, colour, sharpness."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import uniform_filter

STATISTICS_SIDE = 256
"""Longest side, in pixels, of the reduced image on which all but the size is measured."""
DARK_PIXEL = 30

_EDGE_LEVEL = 15.0
"""Difference in grey levels from the surroundings from which a pixel is an edge and not detail."""
_ROUNDING_VARIANCE = 0.2
"""Variance that rounding to grey levels (1/12) and good JPEG compression leave in an image without detail."""

BLURRED_SHARPNESS = 0.45
"""Below it an image is called blurred. Of 1,200 public images (400 each of HAM10000, ISIC nine classes and melanoma
10,000, at 160 to 200 pixels a side) none lies below, and with a Gaussian blur of 4 pixels at 450 pixels a side 98.7 %;
with one of 2 pixels 0.1 %. Sets differ in sharpness, so this is coarse; the audit compares within a set."""


@dataclass(frozen=True)
class ImageStatistics:
    """Statistics of one image; nothing of the lesion can be seen from them.

    width, height: pixels as decoded, upright. mean_*, sd_*: mean and standard deviation of red, green and blue, 0..255.
    sharpness: fine over medium detail; 0.7 to 1.8 in focus, less with blur, None where there is too little to measure.
    """

    width: int
    height: int
    mean_red: float
    mean_green: float
    mean_blue: float
    sd_red: float
    sd_green: float
    sd_blue: float
    sharpness: float | None

    @property
    def aspect(self) -> float:
        """Return width over height."""
        return self.width / self.height

    @property
    def is_blurred(self) -> bool | None:
        """Whether the image is less sharp than photographs are; None where there is too little to measure."""
        return None if self.sharpness is None else self.sharpness < BLURRED_SHARPNESS


def image_statistics(pixels: NDArray[np.uint8]) -> ImageStatistics:
    """Return the statistics of decoded pixels, (H, W, 3) uint8 RGB."""
    height, width = pixels.shape[:2]
    planes = reduce_pixels(pixels)
    means, spreads = planes.mean(axis=(1, 2), dtype=np.float64), planes.std(axis=(1, 2), dtype=np.float64)
    detail = sharpness_of(grey_of(planes))
    red, green, blue = means.tolist()
    sd_red, sd_green, sd_blue = spreads.tolist()
    return ImageStatistics(
        width, height, red, green, blue, sd_red, sd_green, sd_blue, None if math.isnan(detail) else detail
    )


def reduce_pixels(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return (3, h, w) float32, 0..255, by whole-number box reduction to at most `STATISTICS_SIDE` pixels a side."""
    factor = -(-max(pixels.shape[:2]) // STATISTICS_SIDE)
    if factor > 1:
        pixels = np.asarray(Image.fromarray(pixels).reduce(factor))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32)


def grey_of(planes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the grey levels (h, w) of colour planes (3, h, w)."""
    grey: NDArray[np.float32] = (
        np.float32(0.299) * planes[0] + np.float32(0.587) * planes[1] + np.float32(0.114) * planes[2]
    )
    return grey


def sharpness_of(grey: NDArray[np.float32]) -> float:
    """Return the strength of detail of 1 to 2 pixels over that of 2 to 5: independent of contrast and light.

    Strong edges and black surroundings are left out: the rim of a round field would outweigh all inside it. NaN where
    too few pixels are left.
    """
    if min(grey.shape) < 8:
        return float("nan")
    rows = grey[2:] + grey[1:-1] + grey[:-2]
    smoothed = (rows[:, 2:] + rows[:, 1:-1] + rows[:, :-2]) * np.float32(1 / 9)
    coarse_detail = smoothed - uniform_filter(smoothed, 5, mode="nearest")
    fine_detail = grey[1:-1, 1:-1] - smoothed
    is_used = (np.abs(coarse_detail) < _EDGE_LEVEL) & (smoothed > DARK_PIXEL)
    if is_used.sum() < 0.1 * is_used.size:
        return float("nan")
    strength = float(np.square(fine_detail[is_used]).mean()) - _ROUNDING_VARIANCE
    return math.sqrt(max(strength, 0.0) / max(float(np.square(coarse_detail[is_used]).mean()), 0.3))
