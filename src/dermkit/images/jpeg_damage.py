"""JPEG files that end rightly and still lost their pixels: decoders fill what is missing with grey, and say nothing."""

import io
import re
import struct

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

DAMAGE_PREFIX = "JPEG damaged"
"""How a note of damage begins; the audit looks for it."""

_NO_DATA_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
_RESTART_MARKER = re.compile(rb"\xff[\xd0-\xd7]")
_FEWEST_ZEROS = bytes(64)
_ZEROS = re.compile(rb"\x00{64,}")
_SOS, _EOI, _DRI = 0xDA, 0xD9, 0xDD
_BETWEEN_SCANS = frozenset({0xC4, _SOS, 0xDB, _DRI, 0xDC, 0xFE, *range(0xE0, 0xF0)})
_GREY = (127, 128)
"""What a decoder fills missing blocks with: the middle of each channel."""
_STRIP_ROWS = 8
_FILLER = b"\x5a" * 64
"""Bytes that a decoder takes for pixels where it has too few, and leaves where it has all."""


def scan_damage(data: bytes, start: int, markers: set[int]) -> tuple[str, ...]:
    """Return a note where the scans of a JPEG, from `start` on, hold marks that cannot be there; else none.

    markers: of the segments before. Between two scans only tables stand, one after the other, and restart marks only
    where they were announced. Random bytes hold a wrong mark every 256 bytes.
    """
    position = start
    while match := _NO_DATA_MARKER.search(data, position):
        if _DRI not in markers and _RESTART_MARKER.search(data, position, match.start()):
            return (f"{DAMAGE_PREFIX}: restart marks that were not announced",)
        marker = match[1][0]
        if marker == _EOI:
            return ()
        if marker not in _BETWEEN_SCANS or match.end() + 2 > len(data):
            break
        (length,) = struct.unpack_from(">H", data, match.end())
        position = match.end() + max(length, 2)
        if marker != _SOS and data[position : position + 1] != b"\xff":
            break
    return (f"{DAMAGE_PREFIX}: marks that cannot be among its pixels",)


def pixel_damage(image: Image.Image, data: bytes) -> tuple[str, ...]:
    """Return a note where a decoded JPEG lacked bytes, or had zeros of which nothing was made; else none.

    image: as decoded, before its colours are converted. data: what the decoder was given. Only what looks so is
    decoded again: a grey end, progressive files, and long runs of zeros.
    """
    start = _scans_start(data)
    end = data.find(b"\xff\xd9", start)
    is_progressive = bool(image.info.get("progressive"))
    if not is_progressive and _lacks_restarts(image, data, start, end):
        return (f"{DAMAGE_PREFIX}: restart marks are missing",)
    pixels = np.asarray(image)
    if is_progressive or _ends_in_grey(pixels):
        is_whole = _decode_again(data[:end] + _FILLER + data[end:]) == pixels.tobytes()
        return () if is_whole else (f"{DAMAGE_PREFIX}: it ends before its last pixel, and the rest is filled in",)
    return zeros_damage(pixels, data)


def zeros_damage(pixels: NDArray[np.uint8], data: bytes) -> tuple[str, ...]:
    """Return a note where long runs of zeros in a JPEG made none of its pixels; else none.

    pixels: as decoded from data, a sequential file. No note is made where the picture ends in plain grey, which takes
    few bytes: a decoder that lacked bytes there would have warned, and such files do not come here.
    """
    start = _scans_start(data)
    end = data.find(b"\xff\xd9", start)
    if data.find(_FEWEST_ZEROS, start, end) < 0:  # a tenth of the time of the expression, for nearly all files
        return ()
    n_zeros = max(len(match[0]) for match in _ZEROS.finditer(data, start, end))
    if n_zeros <= (end - start) // 20 or _ends_in_grey(pixels):
        return ()
    if _decode_again(data[: end - n_zeros // 2] + data[end:]) == pixels.tobytes():
        return (f"{DAMAGE_PREFIX}: a part of its pixels is zeros",)
    return ()


def _scans_start(data: bytes) -> int:
    """Return where the first scan begins, by the segments before it: a profile may hold the same two bytes."""
    position = 2
    while data[position + 1] != _SOS:
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return position


def _lacks_restarts(image: Image.Image, data: bytes, start: int, end: int) -> bool:
    """Tell whether a file of one scan has fewer restart marks than its size and their interval ask for."""
    announced = re.search(rb"\xff\xdd\x00\x04(..)", data[:start], re.DOTALL)
    layers = getattr(image, "layer", [])
    if announced is None or not layers or data.count(b"\xff\xda", start, end) != 1:
        return False
    interval = int.from_bytes(announced[1], "big")
    across, down = (8 * max(layer[axis] for layer in layers) if len(layers) > 1 else 8 for axis in (1, 2))
    n_blocks = -(-image.width // across) * -(-image.height // down)
    n_expected = -(-n_blocks // interval) - 1 if interval else 0
    return len(_RESTART_MARKER.findall(data, start, end)) < n_expected


def _decode_again(data: bytes) -> bytes:
    try:
        with JpegImageFile(io.BytesIO(data)) as image:
            image.load()
            return image.tobytes()
    except (OSError, SyntaxError, ValueError):
        return b""


def _ends_in_grey(pixels: NDArray[np.uint8]) -> bool:
    strip = pixels[-_STRIP_ROWS:].reshape(-1, 1 if pixels.ndim == 2 else pixels.shape[2])
    return bool((strip == strip[0]).all() and np.isin(strip[0], _GREY).all())
