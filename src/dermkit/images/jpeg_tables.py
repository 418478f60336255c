"""The quantisation tables of JPEG files, which tell the programs and cameras that wrote them apart."""

import hashlib
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL.JpegImagePlugin import JpegImageFile, zigzag_index

# The luminance table of the JPEG standard (ITU-T T.81, table K.1), row by row.
_STANDARD_LUMINANCE = np.array((
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29,
    51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120,
    101, 72, 92, 95, 98, 112, 100, 103, 99,
))  # fmt: skip


@dataclass(frozen=True)
class JpegTables:
    """How a JPEG file was compressed.

    key: 10 hex digits of a hash of the quantisation tables and the chroma subsampling, "" = unknown. quality: 1..100 as
    libjpeg counts it, estimated from the luminance table; NaN = unknown.
    """

    key: str
    quality: float


UNKNOWN_TABLES = JpegTables("", float("nan"))


def read_jpeg_tables(data: bytes) -> JpegTables:
    """Return the tables of a JPEG file, `UNKNOWN_TABLES` for any other bytes; raises `MemoryError` alone."""
    try:
        image = JpegImageFile(BytesIO(data))  # reads the header alone
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  Pillow raises many types for a broken header
        return UNKNOWN_TABLES
    tables = image.quantization
    if not tables:
        return UNKNOWN_TABLES
    digest = hashlib.sha256(bytes([0xC2 if image.info.get("progressive") else 0xC0]))
    for component, horizontal, vertical, table in image.layer:
        digest.update(bytes([component, horizontal << 4 | vertical, table]))
    for number in sorted(tables):
        in_file_order = np.empty(64, "<u2")  # the order that keys of stored scans were computed with
        in_file_order[list(zigzag_index)] = tables[number]
        digest.update(bytes([number]) + in_file_order.tobytes())
    return JpegTables(digest.hexdigest()[:10], _quality(np.array(tables[min(tables)])))


def _quality(table: NDArray[np.int64]) -> float:
    """Invert libjpeg's rule for the scale of the tables in percent: 5000 / quality below 50, 200 - 2 quality above."""
    is_informative = (table > 1) & (table < 255)  # values clipped to 1 and 255 say nothing about the scale
    ratios = table * 100 / _STANDARD_LUMINANCE
    scale = float(np.median(ratios[is_informative] if is_informative.any() else ratios))
    quality = 5000 / scale if scale > 100 else (200 - scale) / 2
    return float(np.clip(round(quality), 1, 100))
