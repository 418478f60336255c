"""The measures of an image: file, light, sharpness, border, artefacts."""

import numpy as np
from numpy.typing import NDArray

from dermkit.audit.scan.artefacts import ARTEFACT_COLUMNS, score_artefacts
from dermkit.images.decode import LesionImage
from dermkit.images.jpeg_tables import read_jpeg_tables
from dermkit.images.statistics import DARK_PIXEL, grey_of, reduce_pixels, sharpness_of

BORDER_FRACTION = 0.05
"""Width of the border, as a fraction of the shorter side."""

TEXT_COLUMNS = ("format", "jpeg_tables", "notes")
NUMBER_COLUMNS = (
    "bytes", "width", "height", "jpeg_quality",
    "brightness", "contrast", "low_level", "high_level", "dark_fraction", "bright_fraction", "entropy", "sharpness",
    "mean_r", "mean_g", "mean_b", "border_r", "border_g", "border_b", "border_spread",
    *ARTEFACT_COLUMNS,
)  # fmt: skip
MEASURE_COLUMNS = (*TEXT_COLUMNS, *NUMBER_COLUMNS)
"""The columns of `measure`: texts ("" = unknown), then numbers (NaN = unknown).

bytes: of the file. width, height: pixels as decoded. brightness, contrast: mean and standard deviation of the grey
image, 0..255. low_level, high_level: the 5 % and 95 % quantiles of the grey levels. dark_fraction, bright_fraction: of
the pixels, below `DARK_PIXEL`, and at `BRIGHT_PIXEL` or above. entropy: bits of the grey histogram, 0..8. sharpness:
fine over medium detail; 0.7 to 1.8 in focus, depending on the set, and less with blur. mean_*, border_*: of red, green
and blue, 0..255; border_spread: standard deviation of the border's grey levels. Artefacts: scores of 0..1.
"""

BRIGHT_PIXEL = 245


def empty_measures() -> dict[str, float | str]:
    """Return a row without any measurement."""
    return dict.fromkeys(TEXT_COLUMNS, "") | dict.fromkeys(NUMBER_COLUMNS, float("nan"))


def measure(image: LesionImage, file_bytes: bytes) -> dict[str, float | str]:
    """Return the `MEASURE_COLUMNS` of one image. Raises `MemoryError` alone: a measure that fails stays unknown."""
    row = empty_measures() | {
        "format": image.format,
        "notes": "; ".join(image.notes),
        "bytes": float(len(file_bytes)),
    }
    tables = read_jpeg_tables(file_bytes) if image.format == "JPEG" else None
    if tables:
        row |= {"jpeg_tables": tables.key, "jpeg_quality": tables.quality}
    height, width = image.pixels.shape[:2]
    row |= {"width": float(width), "height": float(height)}
    try:
        planes = reduce_pixels(image.pixels)
        grey = grey_of(planes)
        row |= _light_measures(planes, grey) | _border_measures(planes, grey) | {"sharpness": sharpness_of(grey)}
        row |= score_artefacts(planes)
    except MemoryError:  # says nothing of the picture
        raise
    except Exception:  # noqa: BLE001  one odd picture must not end the scan of a hundred thousand
        return row
    return row


def _light_measures(planes: NDArray[np.float32], grey: NDArray[np.float32]) -> dict[str, float]:
    counts = np.bincount(grey.astype(np.uint8).ravel(), minlength=256) / grey.size
    probabilities = counts[counts > 0]
    low, high = np.searchsorted(np.cumsum(counts), [0.05, 0.95])
    red, green, blue = (float(value) for value in planes.mean(axis=(1, 2)))
    return {
        "brightness": float(grey.mean()),
        "contrast": float(grey.std()),
        "low_level": float(low),
        "high_level": float(high),
        "dark_fraction": float(counts[:DARK_PIXEL].sum()),
        "bright_fraction": float(counts[BRIGHT_PIXEL:].sum()),
        "entropy": float(-(probabilities * np.log2(probabilities)).sum()),
        "mean_r": red,
        "mean_g": green,
        "mean_b": blue,
    }


def _border_measures(planes: NDArray[np.float32], grey: NDArray[np.float32]) -> dict[str, float]:
    border_width = max(1, round(BORDER_FRACTION * min(grey.shape)))
    mask = np.ones(grey.shape, bool)
    mask[border_width:-border_width, border_width:-border_width] = False
    red, green, blue = (float(value) for value in planes[:, mask].mean(axis=1))
    return {"border_r": red, "border_g": green, "border_b": blue, "border_spread": float(grey[mask].std())}
