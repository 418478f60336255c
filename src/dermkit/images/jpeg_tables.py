"""How a JPEG file was compressed, read from its own tables: programs and cameras each have their own."""

import hashlib
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# The luminance table of the JPEG standard (ITU-T T.81, table K.1), in the zigzag order of files.
_STANDARD = (
    16, 11, 12, 14, 12, 10, 16, 14, 13, 14, 18, 17, 16, 19, 24, 40, 26, 24, 22, 22, 24, 49, 35, 37, 29, 40, 58, 51,
    61, 60, 57, 51, 56, 55, 64, 72, 92, 78, 64, 68, 87, 69, 55, 56, 80, 109, 81, 87, 95, 98, 103, 104, 103, 62, 77,
    113, 121, 112, 100, 120, 92, 101, 103, 99,
)  # fmt: skip
_DQT, _SOS, _EOI = 0xDB, 0xDA, 0xD9
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_BARE = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers without a length behind them."""


@dataclass(frozen=True)
class JpegTables:
    """What a JPEG says of its compression.

    name: 10 hex digits of the quantisation tables and the sampling, "" = unknown. quality: 1..100 as the scale of the
    standard's luminance table that is nearest, NaN = unknown; encoders with tables of their own have none exactly.
    """

    name: str
    quality: float


UNKNOWN = JpegTables("", float("nan"))


def read_tables(data: bytes) -> JpegTables:
    """Return the tables of a JPEG file, `UNKNOWN` for anything else; never raises."""
    if not data.startswith(b"\xff\xd8"):
        return UNKNOWN
    try:
        tables, sampling = _walk(data)
    except (struct.error, IndexError, ValueError):
        return UNKNOWN
    if not tables:
        return UNKNOWN
    digest = hashlib.sha256(sampling)
    for number in sorted(tables):
        digest.update(bytes([number]) + tables[number].astype("<u2").tobytes())
    return JpegTables(digest.hexdigest()[:10], _quality(tables[min(tables)]))


def _walk(data: bytes) -> tuple[dict[int, NDArray[np.int64]], bytes]:
    """Read segments up to the first scan; tables after it belong to later scans of the same picture."""
    tables: dict[int, NDArray[np.int64]] = {}
    sampling, at = b"", 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            raise ValueError("no marker")
        kind = data[at + 1]
        if kind == 0xFF or kind in _BARE:
            at += 1 if kind == 0xFF else 2
            continue
        if kind in (_SOS, _EOI):
            break
        (length,) = struct.unpack_from(">H", data, at + 2)
        body = data[at + 4 : at + 2 + length]
        if kind == _DQT:
            tables |= _tables(body)
        elif kind in _FRAMES:
            # Component number, sampling, table number; behind precision, height, width and the count.
            sampling = bytes([kind]) + body[6 : 6 + 3 * body[5]]
        at += 2 + length
    return tables, sampling


def _tables(body: bytes) -> dict[int, NDArray[np.int64]]:
    found, at = {}, 0
    while at < len(body):
        wide, number = body[at] >> 4, body[at] & 15
        kind = ">u2" if wide else "u1"
        found[number] = np.frombuffer(body, kind, 64, at + 1).astype(np.int64)
        at += 1 + 64 * (2 if wide else 1)
    return found


def _quality(table: NDArray[np.int64]) -> float:
    """Invert the rule of the common encoder: scale = 5000 / quality below 50, 200 - 2 quality above."""
    # Entries end at 1 and 255; those say less than the others.
    inner = (table > 1) & (table < 255)
    scale = float(np.median((table * 100 / np.array(_STANDARD))[inner if inner.any() else slice(None)]))
    quality = 5000 / scale if scale > 100 else (200 - scale) / 2
    return float(np.clip(round(quality), 1, 100))
