"""Detectors of artefacts: hair, ruler, ink, dark corners.

Each score is 0..1; an image shows the artefact from its `PRESENCE_THRESHOLDS` on. Checked by eye on three public sets
(160 to 200 pixels). Precision: hair 33 to 39 of 40 images per set, ruler 19 in 20 of 269, dark corners nearly all, ink
about half of 60 (false: violet vignettes, blue lesions at the frame). Hair is missed where it is fine or fair: 1 in 7
of the images without a detection have some.
"""

from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from dermkit.audit.scan.hair_and_rulers import find_lines, hair_length, ruler_row_length

_Plane = NDArray[np.float32]

ARTEFACT_COLUMNS = ("hair", "ruler", "ink", "dark_corner")
PRESENCE_THRESHOLDS = MappingProxyType({"hair": 0.1, "ruler": 0.5, "ink": 0.06, "dark_corner": 0.5})
"""The score from which an image counts as showing the artefact."""
MIN_ARTEFACT_SIDE = 64
"""Shorter side, in pixels, below which hairs and marks cannot be seen; scores are then NaN."""
MIN_RULER_SIDE = 112
"""The same for the marks of a ruler."""

# What makes a score of 1.
_FULL_SCORE_HAIR = 4.0  # sides of the picture
_FULL_SCORE_MARKS = 10.0
_FULL_SCORE_INK = 0.01  # share of the picture

_LIT_LEVEL = 36.0
"""Brightest channel, 0..255, below which a pixel is in the dark and has no colour."""
_PERIPHERY = 0.6
"""From here to the frame (0 centre, 1 frame): ink lies around a lesion; inside, blue and violet can be the lesion."""


def score_artefacts(planes: _Plane) -> dict[str, float]:
    """Return the `ARTEFACT_COLUMNS` of (3, h, w) float32, 0..255; NaN where the picture is too small."""
    if min(planes.shape[1:]) < MIN_ARTEFACT_SIDE:
        return dict.fromkeys(ARTEFACT_COLUMNS, float("nan"))
    lines = find_lines(planes[0], planes[1])
    # On 80 and 96 pixels none of a planted scale's marks are found, on 112 they are.
    ruler = (
        min(1.0, ruler_row_length(lines) / _FULL_SCORE_MARKS)
        if min(planes.shape[1:]) >= MIN_RULER_SIDE
        else float("nan")
    )
    brightest = np.maximum(np.maximum(planes[0], planes[1]), planes[2])
    return {
        "hair": min(1.0, hair_length(lines) / _FULL_SCORE_HAIR),
        "ruler": ruler,
        "ink": min(1.0, ink_fraction(planes, brightest) / _FULL_SCORE_INK),
        "dark_corner": dark_corner_score(brightest),
    }


def ink_fraction(planes: _Plane, brightest: _Plane) -> float:
    """Return the fraction of the image with ink: blue, violet or green as no skin is, away from the centre.

    Relative to the image's own skin colour, so that tinted light does not count.
    """
    height, width = brightest.shape
    vertical = np.abs(np.arange(height, dtype=np.float32) * 2 / height - 1)
    horizontal = np.abs(np.arange(width, dtype=np.float32) * 2 / width - 1)
    periphery = np.maximum(vertical[:, None], horizontal[None]) > _PERIPHERY
    periphery &= brightest > _LIT_LEVEL
    pixels = planes[:, periphery] + 4
    if pixels.shape[1] < 100:
        return 0.0
    ink_mask = np.zeros(brightest.shape, np.float32)
    ink_mask[periphery] = _is_ink(pixels, np.median(pixels[:, ::3], axis=1))
    if ink_mask.sum() < 9:
        return 0.0
    # Only areas count, and not the coloured fringe around a dark field.
    ink_area = uniform_filter(ink_mask, 3, mode="nearest") > 0.6
    dark_rim = uniform_filter((brightest < _LIT_LEVEL).astype(np.float32), 25, mode="nearest") > 0.1
    return float((ink_area & ~dark_rim).mean())


def _is_ink(pixels: _Plane, skin: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Flag pixels (3, N) of ink. Melanin and blood take more from blue than from red; pens do the opposite."""
    red, green, blue = pixels
    red_ratio, green_ratio, blue_ratio = red / skin[0], green / skin[1], blue / skin[2]
    lowest, brightest = np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)
    saturation = 1 - lowest / brightest
    # Violet keeps least of green; the blue-white veil of a lesion keeps more of green than of red.
    violet = (blue_ratio > 1.3 * red_ratio) & (blue_ratio > 1.4 * green_ratio) & (green_ratio < 1.05 * red_ratio)
    violet &= (red_ratio < 0.68) & (saturation > 0.25) & (blue > 0.5 * red)
    bluish = (blue > 1.15 * red) & (blue > green)
    greenish = (green > 1.15 * red) & (green > 0.85 * blue)
    vivid = (saturation > 0.6) & (np.maximum(blue_ratio, green_ratio) > 1.5 * red_ratio)
    return np.asarray(violet | ((bluish | greenish) & vivid), np.bool_)


def dark_corner_score(brightest: _Plane) -> float:
    """Return the mean black fraction of the two darkest corners, 0..1; corners are 0.14 of the shorter side.

    Two, since one may be a dark lesion at the edge. brightest: (h, w), the brightest channel, 0..255.
    """
    corner_side = max(3, round(0.14 * min(brightest.shape)))
    corner = np.add.outer(np.arange(corner_side), np.arange(corner_side)) < corner_side
    # Against the lit skin: most of a small round field may be black.
    dark_limit = min(60.0, 0.35 * float(np.quantile(brightest[::4, ::4], 0.9)))
    orientations = (brightest, brightest[:, ::-1], brightest[::-1], brightest[::-1, ::-1])
    dark_fractions = sorted(
        float((orientation[:corner_side, :corner_side][corner] < dark_limit).mean())
        for orientation in orientations
    )
    return (dark_fractions[-1] + dark_fractions[-2]) / 2
