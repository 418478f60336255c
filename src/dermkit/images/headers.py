"""What an image file says of itself, read from its bytes before any decoder runs.

A decoder may allocate what a header claims: a 34-byte WebP asked for 1.3 GB. So size, frames and completeness are
judged here, and the decoder then gets a copy without the parts that no pixel depends on (EXIF, XMP, text, thumbnails).
"""

import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from types import MappingProxyType

from dermkit.errors import Refusal

MAX_PIXELS = 64_000_000
"""Above the cameras that photograph skin (61 megapixels); decoding peaks at 0.6 GB (JPEG) to 1.3 GB (WebP)."""
FREE_PIXELS = 16_000_000
PIXELS_PER_BYTE = 256
"""Above 16 megapixels a file must hold a byte for 256 pixels: photographs hold 20 times that, 64 flat megapixels
in a 2.5 KB WebP cost 1.3 GB."""
MAX_SIDE = 16_384
"""A side longer than this is no photograph; WebP ends at 16,383 anyway."""
MIN_SIDE = 8
"""Below 8 pixels there is no lesion to see: tracking pixels and broken exports."""
MAX_FILE_BYTES = 256 * 1024**2
"""64 megapixels of uncompressed 8-bit colour take 192 MB."""
MAX_PARTS = 100_000
"""Segments or chunks walked in one file; a 256 MB PNG of 4 KB chunks has 65,000."""
MAX_SCANS = 64
"""Scans of a progressive JPEG; encoders write about 10, and each empty one costs a pass over all pixels."""


class Refused(Exception):
    """A file is not let in; `open_image` gives it the file's name."""

    def __init__(self, reason: Refusal, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Header:
    """A file that passed every check that needs no decoder.

    width, height: as stored, before the orientation. data: what the decoder gets. orientation: EXIF, 1 to 8.
    bits: per sample. white_is_zero: grey values that run from white to black.
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


def read_header(data: bytes) -> Header:
    """Sniff the format and check size, frames and completeness; raises `Refused`."""
    if not data:
        raise Refused(Refusal.EMPTY, "the file has no bytes")
    if len(data) > MAX_FILE_BYTES:
        raise Refused(Refusal.TOO_LARGE, f"more than {MAX_FILE_BYTES // 1024**2} MB")
    name = next((name for name, matches in _SIGNATURES.items() if matches(data)), None)
    if name is None:
        foreign = next((kind for at, magic, kind in _FOREIGN if data.startswith(magic, at)), None)
        if foreign:
            raise Refused(Refusal.FORMAT_NOT_ALLOWED, f"{foreign}; allowed: {', '.join(sorted(_READERS))}")
        raise Refused(Refusal.NOT_AN_IMAGE, "the bytes are of no image format")
    try:
        header = _READERS[name](data)
    except struct.error:
        raise Refused(Refusal.TRUNCATED, f"the {name} header is cut short") from None
    if header.width * header.height > max(FREE_PIXELS, PIXELS_PER_BYTE * len(data)):
        raise Refused(Refusal.TOO_LARGE, f"{header.width} x {header.height} pixels claimed by {len(data):,} bytes")
    return header


def _check_size(width: int, height: int) -> None:
    if width > MAX_SIDE or height > MAX_SIDE or width * height > MAX_PIXELS:
        raise Refused(
            Refusal.TOO_LARGE, f"{width} x {height}; at most {MAX_SIDE} a side and {MAX_PIXELS:,} pixels"
        )
    if width < MIN_SIDE or height < MIN_SIDE:
        raise Refused(Refusal.TOO_SMALL, f"{width} x {height}; at least {MIN_SIDE} a side")


# JPEG ------------------------------------------------------------------------------------------------------------

_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SOS, _EOI, _APP0, _APP1, _APP2, _APP14, _APP15, _COM = 0xDA, 0xD9, 0xE0, 0xE1, 0xE2, 0xEE, 0xEF, 0xFE


def _jpeg(data: bytes) -> Header:
    kept, size, bits, exif, position = [data[:2]], (0, 0), 8, b"", 2
    notes: tuple[str, ...] = ()
    for _ in range(MAX_PARTS):
        found = _JPEG_MARKER.search(data, position)
        if found is None:
            raise Refused(Refusal.TRUNCATED, "ends before its pixels")
        marker, start = data[found.end() - 1], found.end()
        if marker == _SOS:
            body = _jpeg_scans(data, start - 2)
            _check_size(*size)
            orientation, exif_notes = _exif(exif)
            whole, notes = b"".join(kept) + body, notes + exif_notes
            return Header("JPEG", *size, whole, orientation=orientation, bits=bits, notes=notes)
        (length,) = struct.unpack_from(">H", data, start)
        position = start + length
        segment = data[start:position]
        if marker == _EOI or length < 2:
            raise Refused(Refusal.BROKEN, "a JPEG segment that cannot be")
        if len(segment) < length:
            raise Refused(Refusal.TRUNCATED, "ends inside a JPEG segment")
        if marker in _SOF:
            bits, height, width = struct.unpack_from(">BHH", segment, 2)
            size = (width, height)
            _check_size(*size)
        if marker == _APP1 and segment.startswith(b"Exif\0\0", 2):
            exif = exif or segment[8:]
        if marker == _APP2 and segment.startswith(b"MPF\0", 2):
            notes = ("several pictures in one file (MPO): the first one used",)
        if _decides_pixels(marker, segment):
            kept += [b"\xff", data[start - 1 : start], segment]
    raise Refused(Refusal.BROKEN, f"more than {MAX_PARTS:,} segments")


def _decides_pixels(marker: int, segment: bytes) -> bool:
    """Tables, frame, colour transform and profile; not EXIF, XMP, previews or comments."""
    if _APP0 <= marker <= _APP15:
        return marker in (_APP0, _APP14) or segment.startswith(b"ICC_PROFILE\0", 2)
    return marker != _COM


def _jpeg_scans(data: bytes, start: int) -> bytes:
    if data.rfind(b"\xff\xd9", start) < 0:
        raise Refused(Refusal.TRUNCATED, "ends before the end marker")
    if data.count(b"\xff\xda", start) > MAX_SCANS:
        raise Refused(Refusal.BROKEN, f"more than {MAX_SCANS} scans")
    return data[start:]


# PNG -------------------------------------------------------------------------------------------------------------

_PNG_KEPT = frozenset({b"IHDR", b"PLTE", b"tRNS", b"iCCP", b"IDAT", b"IEND"})


def _png(data: bytes) -> Header:
    kind, width, height, bits = struct.unpack_from(">4sIIB", data, 12)
    if kind != b"IHDR":
        raise Refused(Refusal.BROKEN, "does not begin with its header chunk")
    _check_size(width, height)
    view, exif, position = memoryview(data), b"", 8
    kept = [view[:8]]
    for _ in range(MAX_PARTS):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            raise Refused(Refusal.TRUNCATED, "ends inside a chunk")
        if kind == b"acTL":
            raise Refused(Refusal.ANIMATED, "an animated PNG")
        if kind == b"eXIf":
            exif = data[position + 8 : end - 4]
        if kind in _PNG_KEPT:
            # Another library may have told Pillow to tolerate broken pixels (LOAD_TRUNCATED_IMAGES); this does not.
            if zlib.crc32(view[position + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
                raise Refused(Refusal.BROKEN, f"checksum of chunk {kind.decode('ascii')}")
            kept.append(view[position:end])
        if kind == b"IEND":
            orientation, notes = _exif(exif)
            return Header("PNG", width, height, b"".join(kept), orientation=orientation, bits=bits, notes=notes)
        position = end
    raise Refused(Refusal.BROKEN, f"more than {MAX_PARTS:,} chunks")


# WebP ------------------------------------------------------------------------------------------------------------


def _webp(data: bytes) -> Header:
    (declared,) = struct.unpack_from("<I", data, 4)
    size, exif, position = (0, 0), b"", 12
    for _ in range(MAX_PARTS):
        if position + 8 > min(declared + 8, len(data)):
            break
        kind, length = struct.unpack_from("<4sI", data, position)
        found = _webp_size(kind, data, position + 8)
        if found is not None:
            size = found
            _check_size(*size)
        if kind in (b"ANIM", b"ANMF") or (kind == b"VP8X" and data[position + 8] & 2):
            raise Refused(Refusal.ANIMATED, "an animated WebP")
        if kind == b"EXIF":
            exif = data[position + 8 : position + 8 + length].removeprefix(b"Exif\0\0")
        position += 8 + length + length % 2
    if declared + 8 > len(data) or position > len(data) + 1:
        raise Refused(Refusal.TRUNCATED, "ends inside a chunk")
    if size == (0, 0):
        raise Refused(Refusal.BROKEN, "no picture inside")
    turn, notes = _exif(exif)
    return Header("WEBP", *size, data, orientation=turn, notes=notes)


def _webp_size(kind: bytes, data: bytes, at: int) -> tuple[int, int] | None:
    """Return what a chunk says of the size; the canvas and the picture in it are both asked."""
    if kind == b"VP8X":
        low, high, low2, high2 = struct.unpack_from("<4xHBHB", data, at)
        return low + (high << 16) + 1, low2 + (high2 << 16) + 1
    if kind == b"VP8L":
        _, bits = struct.unpack_from("<BI", data, at)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<6xHH", data, at)
        return width & 0x3FFF, height & 0x3FFF
    return None


# BMP -------------------------------------------------------------------------------------------------------------

_BMP_HEADERS = frozenset({12, 40, 52, 56, 64, 108, 124})


def _bmp(data: bytes) -> Header:
    offset, size = struct.unpack_from("<II", data, 10)
    if size == 12:
        width, height, bits = struct.unpack_from("<HH2xH", data, 18)
        compression = 0
    else:
        width, height, bits, compression = struct.unpack_from("<ii2xHI", data, 18)
    height = abs(height)  # negative: stored from the top
    _check_size(width, height)
    if compression not in (0, 3):
        # The run-length decoder runs in Python: millions of runs would hold a thread. No camera writes it.
        raise Refused(Refusal.FORMAT_NOT_ALLOWED, "compressed BMP")
    row = (width * bits + 31) // 32 * 4
    if offset + row * (height - 1) + (width * bits + 7) // 8 > len(data):
        raise Refused(Refusal.TRUNCATED, "fewer pixels than its header says")
    return Header("BMP", width, height, data)


# TIFF, and the EXIF block of the others, which is a small TIFF ------------------------------------------------------

_TYPE_BYTES = MappingProxyType({1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4})
_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _ORIENTATION, _PLANAR = 256, 257, 258, 262, 274, 284
_STRIPS, _STRIP_BYTES, _ROWS, _SAMPLES = 273, 279, 278, 277
_TILES, _TILE_BYTES, _TILE_WIDTH, _TILE_HEIGHT = 324, 325, 322, 323
_TIFF_SINGLE = frozenset({256, 257, 259, 262, 266, 277, 278, 284, 317, 322, 323})
"""Tags with exactly one whole number: size, compression, photometric, fill order, layout, predictor, tiles."""
_TIFF_KEPT = _TIFF_SINGLE | {258, 273, 279, 292, 293, 320, 324, 325, 332, 338, 339, 347, 529, 530, 531, 532, 34675}


@dataclass(frozen=True)
class _Directory:
    """The first image directory of a TIFF. entries: tag -> its 12 bytes. following: offset of the next directory."""

    data: bytes
    order: str
    start: int
    entries: dict[int, bytes]
    following: int

    def numbers(self, tag: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Return the whole numbers of a tag; raises `Refused` where they lie outside the file."""
        if tag not in self.entries:
            return default
        body, count, kind = self.body(tag)
        letter = {1: "B", 3: "H", 4: "I", 13: "I"}.get(kind)
        if letter is None:
            raise Refused(Refusal.BROKEN, f"tag {tag} is not of whole numbers")
        if count > MAX_PARTS:
            raise Refused(Refusal.BROKEN, f"tag {tag} has {count:,} values")
        return struct.unpack(f"{self.order}{count}{letter}", body)

    def body(self, tag: int) -> tuple[bytes, int, int]:
        """Return a tag's bytes, count and type."""
        entry = self.entries[tag]
        kind, count = struct.unpack_from(f"{self.order}2xHI", entry)
        length = count * _TYPE_BYTES.get(kind, 0)
        if length == 0:
            raise Refused(Refusal.BROKEN, f"tag {tag} has no content")
        if length <= 4:
            return entry[8 : 8 + length], count, kind
        (offset,) = struct.unpack_from(f"{self.order}8xI", entry)
        if offset + length > len(self.data):
            raise Refused(Refusal.TRUNCATED, f"tag {tag} points beyond the end")
        return self.data[offset : offset + length], count, kind


def _directory(data: bytes) -> _Directory:
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, start)
    block = data[start + 2 : start + 2 + 12 * count]
    entries = {
        struct.unpack_from(f"{order}H", block, at)[0]: block[at : at + 12] for at in range(0, len(block), 12)
    }
    end = start + 2 + 12 * count
    following = struct.unpack_from(f"{order}I", data, end)[0] if end + 4 <= len(data) else 0
    if end > len(data):
        raise Refused(Refusal.TRUNCATED, "ends inside its directory")
    return _Directory(data, order, start, entries, following)


def _tiff(data: bytes) -> Header:
    directory = _directory(data)
    kept = _TIFF_KEPT & directory.entries.keys()
    for tag in kept & _TIFF_SINGLE:
        if len(directory.numbers(tag)) != 1:
            raise Refused(Refusal.BROKEN, f"tag {tag} has several values")
    if sum(len(directory.body(tag)[0]) for tag in kept) > len(data):
        raise Refused(Refusal.BROKEN, "tags larger than the file")
    width, height = directory.numbers(_WIDTH, (0,))[0], directory.numbers(_HEIGHT, (0,))[0]
    _check_size(width, height)
    if directory.following:
        raise Refused(Refusal.MULTI_PAGE, "a TIFF of several pages")
    _check_pieces(directory, width, height)
    turn = directory.numbers(_ORIENTATION, (1,))[0]
    bits, inverted = max(directory.numbers(_BITS, (1,))), directory.numbers(_PHOTOMETRIC, (0,))[0] == 0
    body = _without_metadata(directory)
    return Header(
        "TIFF", width, height, body, orientation=turn if 1 <= turn <= 8 else 1, bits=bits, white_is_zero=inverted
    )


def _check_pieces(directory: _Directory, width: int, height: int) -> None:
    """Strips or tiles must be as many as the size asks for, and lie inside the file."""
    if _TILES in directory.entries:
        across, down = directory.numbers(_TILE_WIDTH, (0,))[0], directory.numbers(_TILE_HEIGHT, (0,))[0]
        _check_size(across, down)
        expected = -(-width // across) * -(-height // down)
        offsets, lengths = directory.numbers(_TILES), directory.numbers(_TILE_BYTES)
    else:
        rows = directory.numbers(_ROWS, (height,))[0]
        if not rows:
            raise Refused(Refusal.BROKEN, "strips of no rows")
        expected = -(-height // rows)
        offsets, lengths = directory.numbers(_STRIPS), directory.numbers(_STRIP_BYTES)
    if directory.numbers(_PLANAR, (1,))[0] == 2:
        expected *= directory.numbers(_SAMPLES, (1,))[0]
    if len(offsets) != expected or len(lengths) != expected:
        raise Refused(Refusal.BROKEN, f"{len(offsets)} pieces of pixels where its size asks for {expected}")
    if max(at + length for at, length in zip(offsets, lengths, strict=True)) > len(directory.data):
        raise Refused(Refusal.TRUNCATED, "pixels point beyond the end")


def _without_metadata(directory: _Directory) -> bytes:
    """Rewrite the directory in its place with the tags that decide pixels; the rest of the file stays."""
    entries = [entry for tag, entry in sorted(directory.entries.items()) if tag in _TIFF_KEPT]
    block = struct.pack(f"{directory.order}H", len(entries)) + b"".join(entries) + b"\0\0\0\0"
    return directory.data[: directory.start] + block + directory.data[directory.start + len(block) :]


def _exif(block: bytes) -> tuple[int, tuple[str, ...]]:
    """Return the orientation of an EXIF block, 1 where it says nothing; a broken block is noted, not refused."""
    if not block:
        return 1, ()
    try:
        if not _SIGNATURES["TIFF"](block):
            raise Refused(Refusal.BROKEN, "not an EXIF block")
        value = _directory(block).numbers(_ORIENTATION, (1,))[0]
    except (Refused, struct.error):
        return 1, ("EXIF ignored: broken",)
    return (value, ()) if 1 <= value <= 8 else (1, ("EXIF orientation ignored: not 1 to 8",))


# The tables that sniffing reads -----------------------------------------------------------------------------------

_READERS: MappingProxyType[str, Callable[[bytes], Header]] = MappingProxyType(
    {"JPEG": _jpeg, "PNG": _png, "WEBP": _webp, "BMP": _bmp, "TIFF": _tiff}
)
_SIGNATURES: MappingProxyType[str, Callable[[bytes], bool]] = MappingProxyType(
    {
        "JPEG": lambda data: data.startswith(b"\xff\xd8\xff"),
        "PNG": lambda data: data.startswith(b"\x89PNG\r\n\x1a\n"),
        "WEBP": lambda data: data[:4] == b"RIFF" and data[8:12] == b"WEBP",
        # Two letters are too few: "BMI 24" is text. The header's own length makes it sure.
        "BMP": lambda data: data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in _BMP_HEADERS,
        "TIFF": lambda data: data.startswith((b"II*\0", b"MM\0*")),
    }
)
_FOREIGN = (
    (0, b"GIF8", "GIF"),
    (4, b"ftyp", "HEIC, AVIF or video"),
    (128, b"DICM", "DICOM"),
    (4, b"jP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"8BPS", "Photoshop"),
    (0, b"II+\0", "BigTIFF"),
    (0, b"MM\0+", "BigTIFF"),
    (0, b"\0\0\1\0", "icon"),
)
ALLOWED_FORMATS = frozenset(_READERS)
"""What cameras and archives of skin images write, still pictures only. GIF has 256 colours and moves."""
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
"""File endings, in lower case, that a folder walk takes for candidates; the bytes decide, not the ending."""
