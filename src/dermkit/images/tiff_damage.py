"""Deflated TIFF files with damaged pixels: libtiff ends with a strip's last pixel and never compares its checksum."""

import zlib
from collections.abc import Iterable

from dermkit.errors import RejectionReason
from dermkit.images.image_header import HeaderRejected

DEFLATE = frozenset({8, 32_946})
"""Values of the tag of compression that stand for zlib: Adobe's and the older one."""
_CHUNK_BYTES = 64 * 1024


def check_deflated(pieces: Iterable[memoryview], piece_bytes: int) -> None:
    """Raise `HeaderRejected` where a strip or tile does not inflate to its end, or not to what its checksum says.

    piece_bytes: the most that a piece holds, in bytes of pixels. One that inflates to more is damaged too: zeros in
    place of the end of a stream go on as pixels without end.
    """
    for piece in pieces:
        try:
            _check_piece(piece, piece_bytes)
        except zlib.error as error:
            raise HeaderRejected(RejectionReason.BROKEN, f"pixels of a TIFF do not inflate: {error}") from None


def _check_piece(piece: memoryview, piece_bytes: int) -> None:
    """Inflate in small parts: `unconsumed_tail` is a copy of all that is left of one."""
    stream = zlib.decompressobj()
    coded, position, n_bytes = b"", 0, 0
    while not stream.eof:
        if not coded:
            coded = bytes(piece[position : position + _CHUNK_BYTES])
            position += _CHUNK_BYTES
        inflated = stream.decompress(coded, _CHUNK_BYTES)
        coded, n_bytes = stream.unconsumed_tail, n_bytes + len(inflated)
        if n_bytes > piece_bytes:
            raise HeaderRejected(RejectionReason.BROKEN, "pixels of a TIFF inflate to more than its size asks for")
        if not inflated and not coded and position >= len(piece) and not stream.eof:
            raise HeaderRejected(RejectionReason.TRUNCATED, "pixels of a TIFF end before their checksum")
