"""How a JPEG file was compressed, read from its own tables: programs and cameras each have their own."""

import hashlib
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# The luminance table of the JPEG standard (ITU-T T.81, table K.1), in the zigzag order of files.
_STANDARD_LUMINANCE = (
    16, 11, 12, 14, 12, 10, 16, 14, 13, 14, 18, 17, 16, 19, 24, 40, 26, 24, 22, 22, 24, 49, 35, 37, 29, 40, 58, 51,
    61, 60, 57, 51, 56, 55, 64, 72, 92, 78, 64, 68, 87, 69, 55, 56, 80, 109, 81, 87, 95, 98, 103, 104, 103, 62, 77,
    113, 121, 112, 100, 120, 92, 101, 103, 99,
)  # fmt: skip
_DQT, _SOS, _EOI = 0xDB, 0xDA, 0xD9
_FRAME_MARKERS = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_MARKERS_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers without a length behind them."""


@dataclass(frozen=True)
class JpegTables:
    """What a JPEG says of its compression.

    name: 10 hex digits of the quantisation tables and the sampling, "" = unknown. quality: 1..100 as the scale of the
    standard's luminance table that is nearest, NaN = unknown; encoders with tables of their own have none exactly.
    """

    key: str
    quality: float


UNKNOWN_TABLES = JpegTables("", float("nan"))


def read_jpeg_tables(data: bytes) -> JpegTables:
    """Return the tables of a JPEG file, `UNKNOWN_TABLES` for anything else; never raises."""
    if not data.startswith(b"\xff\xd8"):
        return UNKNOWN_TABLES
    try:
        tables, sampling = _read_segments(data)
    except (struct.error, IndexError, ValueError):
        return UNKNOWN_TABLES
    if not tables:
        return UNKNOWN_TABLES
    digest = hashlib.sha256(sampling)
    for number in sorted(tables):
        digest.update(bytes([number]) + tables[number].astype("<u2").tobytes())
    return JpegTables(digest.hexdigest()[:10], _quality(tables[min(tables)]))


def _read_segments(data: bytes) -> tuple[dict[int, NDArray[np.int64]], bytes]:
    """Read segments up to the first scan; tables after it belong to later scans of the same picture."""
    tables: dict[int, NDArray[np.int64]] = {}
    sampling, position = b"", 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            raise ValueError("no marker")
        marker = data[position + 1]
        if marker == 0xFF or marker in _MARKERS_WITHOUT_LENGTH:
            position += 1 if marker == 0xFF else 2
            continue
        if marker in (_SOS, _EOI):
            break
        (length,) = struct.unpack_from(">H", data, position + 2)
        segment = data[position + 4 : position + 2 + length]
        if marker == _DQT:
            tables |= _parse_tables(segment)
        elif marker in _FRAME_MARKERS:
            # Component number, sampling, table number; behind precision, height, width and the count.
            sampling = bytes([marker]) + segment[6 : 6 + 3 * segment[5]]
        position += 2 + length
    return tables, sampling


def _parse_tables(segment: bytes) -> dict[int, NDArray[np.int64]]:
    tables, position = {}, 0
    while position < len(segment):
        is_16_bit, number = segment[position] >> 4, segment[position] & 15
        dtype = ">u2" if is_16_bit else "u1"
        tables[number] = np.frombuffer(segment, dtype, 64, position + 1).astype(np.int64)
        position += 1 + 64 * (2 if is_16_bit else 1)
    return tables


def _quality(table: NDArray[np.int64]) -> float:
    """Invert the rule of the common encoder: scale = 5000 / quality below 50, 200 - 2 quality above."""
    # Entries end at 1 and 255; those say less than the others.
    is_informative = (table > 1) & (table < 255)
    scale = float(
        np.median(
            (table * 100 / np.array(_STANDARD_LUMINANCE))[is_informative if is_informative.any() else slice(None)]
        )
    )
    quality = 5000 / scale if scale > 100 else (200 - scale) / 2
    return float(np.clip(round(quality), 1, 100))
