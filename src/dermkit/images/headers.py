"""Reads and checks the headers of image files before any decoder runs.

A decoder may allocate whatever a header claims: a WebP of 34 bytes made one ask for 1.3 GB. So size, number of frames
and completeness are checked here, and the decoder gets a copy of the file without the parts that do not affect pixels
(EXIF, XMP, text, thumbnails).
"""

import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

from dermkit.errors import RejectionReason
from dermkit.images.dicom import read_dicom
from dermkit.images.formats import foreign_format, own_format
from dermkit.images.heif import read_heif
from dermkit.images.image_header import (
    MAX_FILE_BYTES,
    MAX_PIXELS_PER_BYTE,
    MAX_SEGMENTS,
    UNCHECKED_PIXELS,
    HeaderRejected,
    ImageHeader,
    check_size,
)
from dermkit.images.jpeg_damage import scan_damage
from dermkit.images.tiff_damage import DEFLATE, check_deflated


def read_image_header(data: bytes, *, unchecked_pixels: int = UNCHECKED_PIXELS) -> ImageHeader:
    """Recognise the format of a file and check size, frames and completeness; raises `HeaderRejected`.

    unchecked_pixels: up to so many a file may be as small as it likes.
    """
    if not data:
        raise HeaderRejected(RejectionReason.EMPTY, "the file has no bytes")
    if len(data) > MAX_FILE_BYTES:
        raise HeaderRejected(RejectionReason.TOO_LARGE, f"more than {MAX_FILE_BYTES // 1024**2} MB")
    format_name = own_format(data) or foreign_format(data)
    if not format_name:
        raise HeaderRejected(RejectionReason.NOT_AN_IMAGE, "the bytes are of no image format")
    if format_name not in _READERS:
        raise HeaderRejected(
            RejectionReason.FORMAT_NOT_ALLOWED,
            f"{format_name}; allowed: {', '.join(sorted(_READERS))}; save it as JPEG or PNG",
        )
    try:
        header = _READERS[format_name](data)
    except (struct.error, IndexError):
        raise HeaderRejected(RejectionReason.TRUNCATED, f"the {format_name} header is cut short") from None
    if header.width * header.height > max(unchecked_pixels, MAX_PIXELS_PER_BYTE * len(data)):
        raise HeaderRejected(
            RejectionReason.TOO_LARGE, f"{header.width} x {header.height} pixels claimed by {len(data):,} bytes"
        )
    return header


# JPEG -------------------------------------------------------------------------------------------------------------

MAX_SCANS = 64
"""Scans of a progressive JPEG. Encoders write about 10; even an empty one costs a pass over all pixels."""
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SOS, _EOI, _APP0, _APP1, _APP2, _APP14, _APP15, _COM = 0xDA, 0xD9, 0xE0, 0xE1, 0xE2, 0xEE, 0xEF, 0xFE


def _read_jpeg(data: bytes) -> ImageHeader:
    pixel_segments, size, bits, exif, position = [data[:2]], (0, 0), 8, b"", 2
    notes: tuple[str, ...] = ()
    for _ in range(MAX_SEGMENTS):
        match = _JPEG_MARKER.search(data, position)
        if match is None:
            raise HeaderRejected(RejectionReason.TRUNCATED, "ends before its pixels")
        marker, start = data[match.end() - 1], match.end()
        if marker == _SOS:
            scan_data = _jpeg_scans(data, start - 2)
            check_size(*size)
            orientation, exif_notes = read_orientation(exif)
            decoder_data, notes = b"".join(pixel_segments) + scan_data, notes + exif_notes
            notes += scan_damage(data, start - 2, {mark[0] for mark in pixel_segments[2::3]})
            return ImageHeader("JPEG", *size, decoder_data, orientation=orientation, bits=bits, notes=notes)
        (length,) = struct.unpack_from(">H", data, start)
        position = start + length
        segment = data[start:position]
        if marker == _EOI or length < 2:
            raise HeaderRejected(RejectionReason.BROKEN, "a JPEG segment that cannot be")
        if len(segment) < length:
            raise HeaderRejected(RejectionReason.TRUNCATED, "ends inside a JPEG segment")
        if marker in _SOF:
            bits, height, width = struct.unpack_from(">BHH", segment, 2)
            size = (width, height)
            check_size(*size)
        if marker == _APP1 and segment.startswith(b"Exif\0\0", 2):
            exif = exif or segment[8:]
        if marker == _APP2 and segment.startswith(b"MPF\0", 2):
            notes = ("several pictures in one file (MPO): the first one used",)
        if _affects_pixels(marker, segment):
            pixel_segments += [b"\xff", data[start - 1 : start], segment]
    raise HeaderRejected(RejectionReason.BROKEN, f"more than {MAX_SEGMENTS:,} segments")


def _affects_pixels(marker: int, segment: bytes) -> bool:
    """Whether a segment holds tables, frame, colour transform or profile, not EXIF, XMP, a preview or a comment."""
    if _APP0 <= marker <= _APP15:
        return marker in (_APP0, _APP14) or segment.startswith(b"ICC_PROFILE\0", 2)
    return marker != _COM


def _jpeg_scans(data: bytes, start: int) -> bytes:
    if data.rfind(b"\xff\xd9", start) < 0:
        raise HeaderRejected(RejectionReason.TRUNCATED, "ends before the end marker")
    if data.count(b"\xff\xda", start) > MAX_SCANS:
        raise HeaderRejected(RejectionReason.BROKEN, f"more than {MAX_SCANS} scans")
    return data[start:]


# PNG --------------------------------------------------------------------------------------------------------------

_PNG_PIXEL_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"iCCP", b"IDAT", b"IEND"})


def _read_png(data: bytes) -> ImageHeader:
    chunk_type, width, height, bits = struct.unpack_from(">4sIIB", data, 12)
    if chunk_type != b"IHDR":
        raise HeaderRejected(RejectionReason.BROKEN, "does not begin with its header chunk")
    check_size(width, height)
    view, exif, position = memoryview(data), b"", 8
    pixel_chunks = [view[:8]]
    for _ in range(MAX_SEGMENTS):
        length, chunk_type = struct.unpack_from(">I4s", data, position)
        chunk_end = position + 12 + length
        if chunk_end > len(data):
            raise HeaderRejected(RejectionReason.TRUNCATED, "ends inside a chunk")
        if chunk_type == b"acTL":
            raise HeaderRejected(RejectionReason.ANIMATED, "an animated PNG")
        if chunk_type == b"eXIf":
            exif = data[position + 8 : chunk_end - 4]
        if chunk_type in _PNG_PIXEL_CHUNKS:
            # Checked here because another library may have set Pillow's LOAD_TRUNCATED_IMAGES, which skips it.
            if zlib.crc32(view[position + 4 : chunk_end - 4]) != int.from_bytes(
                view[chunk_end - 4 : chunk_end], "big"
            ):
                raise HeaderRejected(RejectionReason.BROKEN, f"checksum of chunk {chunk_type.decode('ascii')}")
            pixel_chunks.append(view[position:chunk_end])
        if chunk_type == b"IEND":
            orientation, notes = read_orientation(exif)
            return ImageHeader(
                "PNG", width, height, b"".join(pixel_chunks), orientation=orientation, bits=bits, notes=notes
            )
        position = chunk_end
    raise HeaderRejected(RejectionReason.BROKEN, f"more than {MAX_SEGMENTS:,} chunks")


# WebP -------------------------------------------------------------------------------------------------------------


def _read_webp(data: bytes) -> ImageHeader:
    (declared_length,) = struct.unpack_from("<I", data, 4)
    size, exif, position = (0, 0), b"", 12
    for _ in range(MAX_SEGMENTS):
        if position + 8 > min(declared_length + 8, len(data)):
            break
        chunk_type, length = struct.unpack_from("<4sI", data, position)
        chunk_size = _webp_size(chunk_type, data, position + 8)
        if chunk_size is not None:
            size = chunk_size
            check_size(*size)
        if chunk_type in (b"ANIM", b"ANMF") or (chunk_type == b"VP8X" and data[position + 8] & 2):
            raise HeaderRejected(RejectionReason.ANIMATED, "an animated WebP")
        if chunk_type == b"EXIF":
            exif = data[position + 8 : position + 8 + length].removeprefix(b"Exif\0\0")
        position += 8 + length + length % 2
    if declared_length + 8 > len(data) or position > len(data) + 1:
        raise HeaderRejected(RejectionReason.TRUNCATED, "ends inside a chunk")
    if size == (0, 0):
        raise HeaderRejected(RejectionReason.BROKEN, "no picture inside")
    orientation, notes = read_orientation(exif)
    return ImageHeader("WEBP", *size, data, orientation=orientation, notes=notes)


def _webp_size(chunk_type: bytes, data: bytes, offset: int) -> tuple[int, int] | None:
    """Return the size that a chunk states (of the canvas, or of the image in it); None if it states none."""
    if chunk_type == b"VP8X":
        low, high, low2, high2 = struct.unpack_from("<4xHBHB", data, offset)
        return low + (high << 16) + 1, low2 + (high2 << 16) + 1
    if chunk_type == b"VP8L":
        _, bits = struct.unpack_from("<BI", data, offset)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk_type == b"VP8 ":
        width, height = struct.unpack_from("<6xHH", data, offset)
        return width & 0x3FFF, height & 0x3FFF
    return None


# BMP --------------------------------------------------------------------------------------------------------------


def _read_bmp(data: bytes) -> ImageHeader:
    pixel_offset, header_size = struct.unpack_from("<II", data, 10)
    if header_size == 12:
        width, height, bits = struct.unpack_from("<HH2xH", data, 18)
        compression = 0
    else:
        width, height, bits, compression = struct.unpack_from("<ii2xHI", data, 18)
    height = abs(height)  # negative: stored from the top
    check_size(width, height)
    if compression not in (0, 3):
        # Pillow decodes run lengths in Python, which could take minutes. No camera writes such files.
        raise HeaderRejected(RejectionReason.FORMAT_NOT_ALLOWED, "compressed BMP")
    row_bytes = (width * bits + 31) // 32 * 4
    if pixel_offset + row_bytes * (height - 1) + (width * bits + 7) // 8 > len(data):
        raise HeaderRejected(RejectionReason.TRUNCATED, "fewer pixels than its header says")
    return ImageHeader("BMP", width, height, data)


# TIFF, and EXIF blocks of other formats, which are small TIFFs ----------------------------------------------------

_TYPE_BYTES = MappingProxyType({1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4})
_WIDTH, _HEIGHT, _BITS_PER_SAMPLE, _PHOTOMETRIC, _ORIENTATION, _PLANAR = 256, 257, 258, 262, 274, 284
_COMPRESSION, _FILL_ORDER = 259, 266
_MAX_SAMPLES, _MAX_BITS = 6, 64
"""Of a pixel: CMYK with two more, and double precision."""
_STRIP_OFFSETS, _STRIP_BYTE_COUNTS, _ROWS_PER_STRIP, _SAMPLES_PER_PIXEL = 273, 279, 278, 277
_TILE_OFFSETS, _TILE_BYTE_COUNTS, _TILE_WIDTH, _TILE_HEIGHT = 324, 325, 322, 323
_TIFF_SINGLE_VALUE_TAGS = frozenset({256, 257, 259, 262, 266, 277, 278, 284, 317, 322, 323})
"""Tags with exactly one integer: size, compression, photometric, fill order, layout, predictor, tiles."""
_TIFF_PIXEL_TAGS = _TIFF_SINGLE_VALUE_TAGS | {
    258, 273, 279, 292, 293, 320, 324, 325, 332, 338, 339, 347, 529, 530, 531, 532, 34675,
}  # fmt: skip
"""Tags that affect pixels: also bits, strips, tiles, colour map, sample format, JPEG tables, YCbCr and ICC profile."""


@dataclass(frozen=True)
class _TiffDirectory:
    """The first image directory of a TIFF.

    byte_order: "<" or ">", as in `struct`. entries: tag -> its 12 bytes. next_offset: of the next directory, 0 = none.
    """

    data: bytes
    byte_order: str
    offset: int
    entries: dict[int, bytes]
    next_offset: int

    def integers(self, tag: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Return the integers of a tag; raises `HeaderRejected` for other types, or a position outside the file."""
        if tag not in self.entries:
            return default
        raw, count, value_type = self.raw_value(tag)
        struct_code = {1: "B", 3: "H", 4: "I", 13: "I"}.get(value_type)
        if struct_code is None:
            raise HeaderRejected(RejectionReason.BROKEN, f"tag {tag} is not of whole numbers")
        if count > MAX_SEGMENTS:
            raise HeaderRejected(RejectionReason.BROKEN, f"tag {tag} has {count:,} values")
        return struct.unpack(f"{self.byte_order}{count}{struct_code}", raw)

    def raw_value(self, tag: int) -> tuple[bytes, int, int]:
        """Return a tag's bytes, count and type."""
        entry = self.entries[tag]
        value_type, count = struct.unpack_from(f"{self.byte_order}2xHI", entry)
        length = count * _TYPE_BYTES.get(value_type, 0)
        if length == 0:
            raise HeaderRejected(RejectionReason.BROKEN, f"tag {tag} has no content")
        if length <= 4:
            return entry[8 : 8 + length], count, value_type
        (offset,) = struct.unpack_from(f"{self.byte_order}8xI", entry)
        if offset + length > len(self.data):
            raise HeaderRejected(RejectionReason.TRUNCATED, f"tag {tag} points beyond the end")
        return self.data[offset : offset + length], count, value_type


def _read_directory(data: bytes) -> _TiffDirectory:
    byte_order = "<" if data[:2] == b"II" else ">"
    (offset,) = struct.unpack_from(f"{byte_order}I", data, 4)
    (count,) = struct.unpack_from(f"{byte_order}H", data, offset)
    block = data[offset + 2 : offset + 2 + 12 * count]
    entries = {
        struct.unpack_from(f"{byte_order}H", block, position)[0]: block[position : position + 12]
        for position in range(0, len(block), 12)
    }
    end = offset + 2 + 12 * count
    next_offset = struct.unpack_from(f"{byte_order}I", data, end)[0] if end + 4 <= len(data) else 0
    if end > len(data):
        raise HeaderRejected(RejectionReason.TRUNCATED, "ends inside its directory")
    return _TiffDirectory(data, byte_order, offset, entries, next_offset)


_NEW_SUBFILE_TYPE, _SUB_DIRECTORIES, _DNG_VERSION = 254, 330, 50706
_IS_REDUCED = 1


def _check_no_camera_raw(directory: _TiffDirectory) -> None:
    """Raise `HeaderRejected` for a camera's raw file: its first picture is a preview, the photograph lies elsewhere.

    DNG has a tag of its own; of others (NEF, ARW) the first picture says that it is a reduced one, and names others.
    """
    if _DNG_VERSION in directory.entries or directory.data[8:10] == b"CR":
        raise HeaderRejected(RejectionReason.FORMAT_NOT_ALLOWED, "camera raw")
    if _SUB_DIRECTORIES not in directory.entries:
        return
    if any(kind & _IS_REDUCED for kind in directory.integers(_NEW_SUBFILE_TYPE, (0,))):
        raise HeaderRejected(
            RejectionReason.FORMAT_NOT_ALLOWED, "camera raw, or a TIFF that begins with its thumbnail"
        )


def _read_tiff(data: bytes) -> ImageHeader:
    directory = _read_directory(data)
    _check_no_camera_raw(directory)
    pixel_tags = _TIFF_PIXEL_TAGS & directory.entries.keys()
    for tag in pixel_tags & _TIFF_SINGLE_VALUE_TAGS:
        if len(directory.integers(tag)) != 1:
            raise HeaderRejected(RejectionReason.BROKEN, f"tag {tag} has several values")
    if sum(len(directory.raw_value(tag)[0]) for tag in pixel_tags) > len(data):
        raise HeaderRejected(RejectionReason.BROKEN, "tags larger than the file")
    width, height = directory.integers(_WIDTH, (0,))[0], directory.integers(_HEIGHT, (0,))[0]
    check_size(width, height)
    if directory.next_offset:
        raise HeaderRejected(RejectionReason.MULTI_PAGE, "a TIFF of several pages")
    pieces, piece_pixels = _strips_or_tiles(directory, width, height)
    bits_per_pixel = _bits_per_pixel(directory)
    if directory.integers(_COMPRESSION, (1,))[0] in DEFLATE and directory.integers(_FILL_ORDER, (1,))[0] == 1:
        view = memoryview(data)
        check_deflated((view[start:end] for start, end in pieces), piece_pixels * -(-bits_per_pixel // 8))
    orientation = directory.integers(_ORIENTATION, (1,))[0]
    bits, white_is_zero = (
        max(directory.integers(_BITS_PER_SAMPLE, (1,))),
        directory.integers(_PHOTOMETRIC, (0,))[0] == 0,
    )
    decoder_data = _strip_metadata(directory)
    return ImageHeader(
        "TIFF",
        width,
        height,
        decoder_data,
        orientation=orientation if 1 <= orientation <= 8 else 1,
        bits=bits,
        white_is_zero=white_is_zero,
    )


def _bits_per_pixel(directory: _TiffDirectory) -> int:
    """Return the bits of a pixel; raises `HeaderRejected` for more than any photograph has."""
    n_samples = directory.integers(_SAMPLES_PER_PIXEL, (1,))[0]
    bits = max(directory.integers(_BITS_PER_SAMPLE, (1,)))
    if n_samples > _MAX_SAMPLES or bits > _MAX_BITS:
        raise HeaderRejected(RejectionReason.BROKEN, f"a pixel of {n_samples} samples of {bits} bits")
    return n_samples * bits


def _strips_or_tiles(directory: _TiffDirectory, width: int, height: int) -> tuple[list[tuple[int, int]], int]:
    """Return where each strip or tile begins and ends in the file, and the pixels of one.

    Raises `HeaderRejected` where their number does not fit the image size, or one lies outside the file.
    """
    if _TILE_OFFSETS in directory.entries:
        tile_width, tile_height = (
            directory.integers(_TILE_WIDTH, (0,))[0],
            directory.integers(_TILE_HEIGHT, (0,))[0],
        )
        check_size(tile_width, tile_height)
        n_expected, n_pixels = -(-width // tile_width) * -(-height // tile_height), tile_width * tile_height
        offsets, lengths = directory.integers(_TILE_OFFSETS), directory.integers(_TILE_BYTE_COUNTS)
    else:
        rows_per_strip = directory.integers(_ROWS_PER_STRIP, (height,))[0]
        if not rows_per_strip:
            raise HeaderRejected(RejectionReason.BROKEN, "strips of no rows")
        n_expected, n_pixels = -(-height // rows_per_strip), width * min(rows_per_strip, height)
        offsets, lengths = directory.integers(_STRIP_OFFSETS), directory.integers(_STRIP_BYTE_COUNTS)
    if directory.integers(_PLANAR, (1,))[0] == 2:
        n_expected *= directory.integers(_SAMPLES_PER_PIXEL, (1,))[0]
    if len(offsets) != n_expected or len(lengths) != n_expected:
        raise HeaderRejected(
            RejectionReason.BROKEN, f"{len(offsets)} pieces of pixels where its size asks for {n_expected}"
        )
    pieces = [(offset, offset + length) for offset, length in zip(offsets, lengths, strict=True)]
    if max(end for _, end in pieces) > len(directory.data):
        raise HeaderRejected(RejectionReason.TRUNCATED, "pixels point beyond the end")
    if sum(lengths) > len(directory.data):  # thousands of strips that are all the same bytes
        raise HeaderRejected(RejectionReason.BROKEN, "its pieces of pixels are larger than the file")
    return pieces, n_pixels


def _strip_metadata(directory: _TiffDirectory) -> bytes:
    """Return the file with only the tags that affect pixels in its directory."""
    entries = [entry for tag, entry in sorted(directory.entries.items()) if tag in _TIFF_PIXEL_TAGS]
    block = struct.pack(f"{directory.byte_order}H", len(entries)) + b"".join(entries) + b"\0\0\0\0"
    return directory.data[: directory.offset] + block + directory.data[directory.offset + len(block) :]


def read_orientation(block: bytes) -> tuple[int, tuple[str, ...]]:
    """Return the orientation (1 to 8) of an EXIF block, 1 if it has none, and notes. A broken block is no error."""
    if not block:
        return 1, ()
    try:
        if not own_format(block) == "TIFF":
            raise HeaderRejected(RejectionReason.BROKEN, "not an EXIF block")
        orientation = _read_directory(block).integers(_ORIENTATION, (1,))[0]
    except (HeaderRejected, struct.error):
        return 1, ("EXIF ignored: broken",)
    return (orientation, ()) if 1 <= orientation <= 8 else (1, ("EXIF orientation ignored: not 1 to 8",))


# Readers and signatures -------------------------------------------------------------------------------------------

# Formats of cameras and archives of skin images, single images only. GIF is not among them: 256 colours, animated.
_READERS: MappingProxyType[str, Callable[[bytes], ImageHeader]] = MappingProxyType(
    {
        "JPEG": _read_jpeg, "PNG": _read_png, "WEBP": _read_webp, "BMP": _read_bmp, "TIFF": _read_tiff,
        "HEIC": read_heif, "AVIF": read_heif, "DICOM": lambda data: read_dicom(data, _read_jpeg),
    }
)  # fmt: skip
