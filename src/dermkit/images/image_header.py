"""The header of an image file, its limits, and why it is refused."""

from dataclasses import KW_ONLY, dataclass

from dermkit.errors import RejectionReason

MAX_PIXELS = 64_000_000
"""The largest cameras have 61 megapixels. Decoding 64 takes at most 0.6 GB (JPEG) to 1.3 GB (WebP) of memory."""
UNCHECKED_PIXELS = 16_000_000
"""Up to this many pixels a file may be as small as it likes."""
MAX_PIXELS_PER_BYTE = 256
"""Beyond `UNCHECKED_PIXELS`. Photographs have about 13 pixels per byte; a flat 64-megapixel WebP of 2.5 KB makes the
decoder use 1.3 GB."""
MAX_SIDE = 16_384
"""In pixels. Longer than any photograph; WebP allows 16,383."""
MIN_SIDE = 8
"""In pixels. Smaller files are tracking pixels or broken exports; no lesion can be seen in them."""
MAX_FILE_BYTES = 256 * 1024**2
"""64 megapixels of uncompressed 8-bit colour take 192 MB."""
MAX_SEGMENTS = 100_000
"""Segments or chunks of one file; a PNG of 256 MB with chunks of 4 KB has 65,000."""


class HeaderRejected(Exception):
    """A file failed a header check; `open_image` turns it into an `ImageRejected` with the file's name."""

    def __init__(self, reason: RejectionReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class ImageHeader:
    """The header of a file that passed the checks.

    width, height: in pixels as stored, before EXIF orientation. data: the bytes for the decoder. orientation: EXIF's,
    1 to 8 (1 = upright). bits: per sample. white_is_zero: grey values run from white (0) to black. notes: texts for
    the user.
    """

    format: str
    width: int
    height: int
    data: bytes
    _: KW_ONLY
    orientation: int = 1
    bits: int = 8
    white_is_zero: bool = False
    notes: tuple[str, ...] = ()


def check_size(width: int, height: int) -> None:
    """Raise `HeaderRejected` for a side or a number of pixels beyond the limits."""
    if width > MAX_SIDE or height > MAX_SIDE or width * height > MAX_PIXELS:
        raise HeaderRejected(
            RejectionReason.TOO_LARGE, f"{width} x {height}; at most {MAX_SIDE} a side and {MAX_PIXELS:,} pixels"
        )
    if width < MIN_SIDE or height < MIN_SIDE:
        raise HeaderRejected(RejectionReason.TOO_SMALL, f"{width} x {height}; at least {MIN_SIDE} a side")
