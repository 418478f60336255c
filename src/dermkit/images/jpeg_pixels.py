"""Pixels of sequential JPEG files straight from libjpeg-turbo: those of Pillow, in about half of its time.

Pillow stores four bytes a pixel and packs them again for NumPy, which takes longer than the decoding.
"""

from typing import Literal

import numpy as np
import simplejpeg

from dermkit.images.preprocess import RgbPixels


def plain_jpeg_pixels(data: bytes, mode: str) -> RgbPixels | None:
    """Return the pixels of a JPEG file, (H, W, 3) uint8 RGB or (H, W) uint8 grey; None where Pillow has to decode it.

    mode: as Pillow names its colours. None for other colours than RGB and L, and where the decoder so much as warns: a
    file that lacks bytes or holds wrong ones is a matter for `jpeg_damage`.
    """
    if mode not in ("RGB", "L"):
        return None
    colorspace: Literal["RGB", "GRAY"] = "RGB" if mode == "RGB" else "GRAY"
    try:
        pixels = simplejpeg.decode_jpeg(data, colorspace=colorspace, strict=True)
    except (ValueError, RuntimeError):  # by its version
        return None
    return np.asarray(pixels[..., 0] if mode == "L" else pixels)
