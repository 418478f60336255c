"""The lesion hidden, or all but the lesion: from its mask, one that is found in the image, or an ellipse in its middle.

Pixels are (H, W, 3) uint8 RGB; a mask is (H, W), true where the lesion is.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter
from scipy import ndimage

from dermkit.images.lesion_masks import Mask
from dermkit.images.preprocess import RgbPixels
from dermkit.perturbation.plan import MaskSource

_SEARCH_SIDE = 128
"""Longer side at which a lesion is looked for, in pixels."""
_MARGIN = 0.02
"""How far beyond a mask the lesion is hidden, as a fraction of the longer side: its border tells as much."""
_SMALLEST_AREA, _LARGEST_AREA = 0.02, 0.55
"""Fractions of an image that an automatic mask may cover; outside, it is hair or the whole skin."""
_LARGEST_BORDER = 0.25
"""Greatest fraction of the image's border inside an automatic mask: beyond, it is a dark corner or the background."""


class LesionArea(NamedTuple):
    """Where the lesion is, and how that is known."""

    mask: Mask
    source: MaskSource


def find_lesion(pixels: RgbPixels, given_mask: Mask | None = None) -> LesionArea:
    """Return where the lesion is: the given mask, else one found in the image, else an ellipse in the middle."""
    if given_mask is not None:
        return LesionArea(given_mask, "mask")
    automatic_mask = _automatic_mask(pixels)
    if automatic_mask is not None:
        return LesionArea(automatic_mask, "automatic")
    height, width = pixels.shape[:2]
    y, x = np.ogrid[:height, :width]
    distance = ((x + 0.5) / width - 0.5) ** 2 + ((y + 0.5) / height - 0.5) ** 2
    return LesionArea(np.asarray(distance <= 0.25**2), "ellipse")


def _automatic_mask(pixels: RgbPixels) -> Mask | None:
    """Return the region in the middle that is darker or redder than the skin; None where none looks like a lesion."""
    height, width = pixels.shape[:2]
    scale = _SEARCH_SIDE / max(height, width)
    size = max(8, round(width * scale)), max(8, round(height * scale))
    small_image = Image.fromarray(pixels).resize(size, Image.Resampling.BOX).filter(ImageFilter.MedianFilter(5))
    rgb = np.asarray(small_image, np.float32)
    darkness = 255 - rgb @ np.array([0.0, 0.5, 0.5], np.float32)  # pigment and blood take green and blue light
    mask = _central_region(ndimage.binary_opening(darkness > _otsu_threshold(darkness), iterations=1))
    if (
        mask is None
        or not _SMALLEST_AREA <= mask.mean() <= _LARGEST_AREA
        or _border_fraction(mask) > _LARGEST_BORDER
    ):
        return None
    picture = Image.fromarray(np.asarray(ndimage.binary_fill_holes(mask), np.uint8) * 255)
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR)) > 127


def _otsu_threshold(values: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]") -> float:
    """Return the threshold of the greatest variance between the values below and above (Otsu 1979)."""
    counts, edges = np.histogram(values, bins=128)
    centres = (edges[:-1] + edges[1:]) / 2
    below, above = np.cumsum(counts)[:-1], np.cumsum(counts[::-1])[::-1][1:]
    sums = np.cumsum(counts * centres)
    mean_below = sums[:-1] / np.maximum(below, 1)
    mean_above = (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    return float(edges[1:-1][np.argmax(below * above * (mean_below - mean_above) ** 2)])


def _central_region(mask: Mask) -> Mask | None:
    """Return the connected region with most pixels near the middle, None where no region lies there."""
    labels, n_regions = ndimage.label(mask)
    height, width = mask.shape
    y, x = np.ogrid[:height, :width]
    nearness = np.exp(-(((x / width - 0.5) ** 2 + (y / height - 0.5) ** 2) / 0.06))
    weights = np.bincount(labels.ravel(), weights=nearness.ravel(), minlength=n_regions + 1)[1:]
    if not len(weights):
        return None
    return np.asarray(labels == int(weights.argmax()) + 1)


def _border_fraction(mask: Mask) -> float:
    return float(np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).mean())


def hide_lesion(pixels: RgbPixels, mask: Mask) -> RgbPixels:
    """Return the image with the mean colour of the skin where the lesion is, its border softened."""
    return _fill(pixels, mask, is_lesion_hidden=True)


def hide_background(pixels: RgbPixels, mask: Mask) -> RgbPixels:
    """Return the image with the mean colour of the skin everywhere but where the lesion is, its border softened."""
    return _fill(pixels, mask, is_lesion_hidden=False)


def _fill(pixels: RgbPixels, mask: Mask, *, is_lesion_hidden: bool) -> RgbPixels:
    image, margin = Image.fromarray(pixels), max(1, round(_MARGIN * max(mask.shape)))
    # A blurred mask is above a few percent as far out as the margin: cheaper than a dilation, and soft.
    blurred = Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(margin))
    opacity = blurred.point([min(255, 4 * level) for level in range(256)])
    skin = pixels[np.asarray(opacity) == 0]
    colour = tuple(int(level) for level in np.median(skin if len(skin) else pixels.reshape(-1, 3), axis=0))
    flat = Image.new("RGB", image.size, colour)
    return np.asarray(
        Image.composite(flat, image, opacity) if is_lesion_hidden else Image.composite(image, flat, opacity)
    )
