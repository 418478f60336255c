"""DICOM files of single photographs: their header is read without its identity tags, and only plain pixels are taken.

pydicom is told which elements to read; names, dates and ids of people are passed over and never become values. What is
decoded is a JPEG, by the rules for JPEG files, or uncompressed 8-bit samples.
"""

import io
import struct
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from dermkit.errors import RejectionReason
from dermkit.images.image_header import HeaderRejected, ImageHeader, check_size

_FORMAT = "DICOM"
_SOP_CLASS, _FRAMES, _BURNED_IN = 0x00080016, 0x00280008, 0x00280301
_SAMPLES, _PHOTOMETRIC, _PLANAR, _ROWS, _COLUMNS = 0x00280002, 0x00280004, 0x00280006, 0x00280010, 0x00280011
_BITS_ALLOCATED, _BITS_STORED, _SIGNED = 0x00280100, 0x00280101, 0x00280103
_INTERCEPT, _SLOPE, _LOOK_UP_TABLE, _PROFILE = 0x00281052, 0x00281053, 0x00283000, 0x00282000
_ASPECT_RATIO, _LOOK_UP_SHAPE = 0x00280034, 0x20500020
_PIXELS = 0x7FE00010
_TAGS = (
    _SOP_CLASS, _FRAMES, _BURNED_IN, _SAMPLES, _PHOTOMETRIC, _PLANAR, _ROWS, _COLUMNS, _BITS_ALLOCATED, _BITS_STORED,
    _SIGNED, _INTERCEPT, _SLOPE, _LOOK_UP_TABLE, _PROFILE, _ASPECT_RATIO,
    _LOOK_UP_SHAPE, _PIXELS,
)  # fmt: skip
"""Every element that is read: none of them is about a person."""

_CLASSES = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.7",  # Secondary Capture
        "1.2.840.10008.5.1.4.1.1.7.4",  # Multi-frame True Color Secondary Capture, of one frame
        "1.2.840.10008.5.1.4.1.1.77.1.4",  # VL Photographic
        "1.2.840.10008.5.1.4.1.1.77.1.7",  # Dermoscopic Photography
    }
)
_JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
_UNCOMPRESSED = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1"})
_SAMPLES_OF = MappingProxyType({"RGB": 3, "YBR_FULL": 3, "YBR_FULL_422": 3, "MONOCHROME2": 1})
_MODES = MappingProxyType({"RGB": "RGB", "YBR_FULL": "YCbCr", "MONOCHROME2": "L"})
_MAX_META_BYTES = 64 * 1024
_HEAD = struct.Struct("<5sII")
_MAX_SEGMENT_BYTES = 65_519
"""Of a profile in one segment of a JPEG, after its name and numbers."""
_READ_LOCK = threading.Lock()

Elements = Mapping[int, Any]


def read_dicom(data: bytes, read_jpeg: Callable[[bytes], ImageHeader]) -> ImageHeader:
    """Check the header of a DICOM file; raises `HeaderRejected`, with a reason that quotes nothing of the file.

    read_jpeg: reads the header of a JPEG. The result's `data` is a JPEG, or what `open_samples` reads.
    """
    if find_spec("pydicom") is None:
        raise _not_allowed("DICOM; `pip install 'dermkit[dicom]'` to read it, or save it as JPEG or PNG")
    syntax = _transfer_syntax(data)
    if syntax not in _UNCOMPRESSED and syntax != _JPEG_BASELINE:
        raise _not_allowed("DICOM of another compression than JPEG Baseline; save it as JPEG or PNG")
    elements = _read_elements(data)
    _check_kind(elements)
    colours = _text(elements, _PHOTOMETRIC)
    width, height = _number(elements, _COLUMNS), _number(elements, _ROWS)
    check_size(width, height)
    _check_samples(elements, colours)
    _check_shape(elements)
    profile = bytes(elements.get(_PROFILE) or b"").rstrip(b"\0")
    if syntax == _JPEG_BASELINE:
        return _jpeg_header(elements[_PIXELS], (width, height), colours, profile, read_jpeg)
    return _sample_header(elements, (width, height), colours, profile)


# The header ---------------------------------------------------------------------------------------------------------


def _transfer_syntax(data: bytes) -> str:
    """Return how the data set is written, from the file's first group; before anything is inflated or parsed.

    The group is always in explicit VR, little endian (PS3.10, 7.1).
    """
    position = 132
    while position + 8 <= min(len(data), _MAX_META_BYTES):
        group, element, kind, length = struct.unpack_from("<HH2sH", data, position)
        if group != 2:
            break
        start = position + 8
        if kind in (b"OB", b"UN"):
            (length,) = struct.unpack_from("<I", data, start)
            start += 4
        if element == 0x10:
            return data[start : start + length].rstrip(b"\0 ").decode("ascii", "replace")
        position = start + length
    raise HeaderRejected(RejectionReason.BROKEN, "DICOM without a transfer syntax")


def _read_elements(data: bytes) -> Elements:
    """Return the raw values of the elements that are read; all others are passed over."""
    import pydicom

    try:
        # Its warnings quote values. The lock: the filter of warnings is one for all threads.
        with _READ_LOCK, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(io.BytesIO(data), specific_tags=list(_TAGS))
            elements = {tag: dataset.get_item(tag) for tag in _TAGS if tag in dataset}
            return {tag: None if element is None else element.value for tag, element in elements.items()}
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  whatever it says may quote the file
        raise HeaderRejected(RejectionReason.BROKEN, "the DICOM header cannot be read") from None


def _check_kind(elements: Elements) -> None:
    """Raise `HeaderRejected` for anything but one photograph without text in its pixels."""
    if _text(elements, _SOP_CLASS) not in _CLASSES:
        raise _not_allowed("DICOM of another kind than a photograph or secondary capture")
    if (_text(elements, _FRAMES) or "1") != "1":
        raise HeaderRejected(RejectionReason.MULTI_PAGE, "a DICOM file of several frames")
    if _text(elements, _BURNED_IN).upper() == "YES":
        raise _not_allowed("a DICOM file that says that text is burned into its pixels, which may be a name")
    if _PIXELS not in elements or not isinstance(elements[_PIXELS], bytes):
        raise HeaderRejected(RejectionReason.BROKEN, "a DICOM file without pixels")


def _check_samples(elements: Elements, colours: str) -> None:
    """Raise `HeaderRejected` for samples whose meaning is not that of an 8-bit photograph."""
    if colours not in _SAMPLES_OF:
        raise _not_allowed("DICOM of other colours than RGB, YBR_FULL, YBR_FULL_422 and MONOCHROME2")
    if _number(elements, _SAMPLES) != _SAMPLES_OF[colours]:
        raise HeaderRejected(RejectionReason.BROKEN, "the DICOM header names two numbers of colours")
    bits = _number(elements, _BITS_ALLOCATED), _number(elements, _BITS_STORED), _number(elements, _SIGNED)
    if bits != (8, 8, 0):
        raise _not_allowed("DICOM of another depth than 8 bits")
    is_scaled = (_text(elements, _SLOPE) or "1", _text(elements, _INTERCEPT) or "0")
    try:
        is_identity = [float(text) for text in is_scaled] == [1.0, 0.0]
    except ValueError:
        is_identity = False
    if not is_identity or _LOOK_UP_TABLE in elements or _text(elements, _LOOK_UP_SHAPE).upper() == "INVERSE":
        raise HeaderRejected(RejectionReason.UNDEFINED_PIXELS, "a DICOM file whose grey levels need a table")


def _check_shape(elements: Elements) -> None:
    """Raise `HeaderRejected` for pixels that are not square: a lesion would be stretched."""
    down, _, across = _text(elements, _ASPECT_RATIO).partition("\\")
    if down.strip() != across.strip():
        raise HeaderRejected(RejectionReason.UNDEFINED_PIXELS, "a DICOM file whose pixels are not square")


def _number(elements: Elements, tag: int) -> int:
    value = elements.get(tag)
    if not isinstance(value, bytes) or len(value) != 2:
        raise HeaderRejected(RejectionReason.BROKEN, f"the DICOM header lacks element {tag:08x}")
    return int.from_bytes(value, "little")


def _text(elements: Elements, tag: int) -> str:
    value = elements.get(tag)
    return value.decode("ascii", "replace").strip("\0 ") if isinstance(value, bytes) else ""


def _not_allowed(detail: str) -> HeaderRejected:
    return HeaderRejected(RejectionReason.FORMAT_NOT_ALLOWED, detail)


# Pixels -------------------------------------------------------------------------------------------------------------


def _jpeg_header(
    pixels: bytes, size: tuple[int, int], colours: str, profile: bytes, read_jpeg: Callable[[bytes], ImageHeader]
) -> ImageHeader:
    """Return the header of the JPEG in a DICOM file; its colours are as it says itself."""
    jpeg = _only_frame(pixels)
    header = read_jpeg(jpeg)
    if (header.width, header.height) != size:
        raise HeaderRejected(RejectionReason.BROKEN, "the DICOM header and the JPEG in it have two sizes")
    if colours == "RGB" and not (b"JFIF\0" in header.data[:64] or b"Adobe\0" in header.data[:4096]):
        raise HeaderRejected(RejectionReason.UNDEFINED_PIXELS, "a DICOM file whose JPEG does not say its colours")
    has_profile = b"ICC_PROFILE\0" in header.data[:_MAX_SEGMENT_BYTES]
    data = header.data if has_profile or not profile else _with_profile(header.data, profile)
    return replace(header, format=_FORMAT, data=data)


def _only_frame(pixels: bytes) -> bytes:
    """Return the JPEG of encapsulated pixels (PS3.5, A.4): its fragments after the table of offsets."""
    fragments, position = [], 0
    while position + 8 <= len(pixels):
        tag, length = struct.unpack_from("<II", pixels, position)
        if tag != 0xE000FFFE:  # group fffe, element e000: an item
            break
        if position + 8 + length > len(pixels):
            raise HeaderRejected(RejectionReason.TRUNCATED, "ends inside the pixels of a DICOM file")
        fragments.append(pixels[position + 8 : position + 8 + length])
        position += 8 + length
    if sum(fragment.startswith(b"\xff\xd8\xff") for fragment in fragments[1:]) > 1:
        raise HeaderRejected(RejectionReason.MULTI_PAGE, "a DICOM file of several frames")
    jpeg = b"".join(fragments[1:])
    if not jpeg.startswith(b"\xff\xd8\xff"):
        raise HeaderRejected(RejectionReason.BROKEN, "a DICOM file whose JPEG is none")
    return jpeg.rstrip(b"\0")


def _with_profile(jpeg: bytes, profile: bytes) -> bytes:
    """Return a JPEG with a colour profile after its first mark."""
    pieces = [profile[start : start + _MAX_SEGMENT_BYTES] for start in range(0, len(profile), _MAX_SEGMENT_BYTES)]
    if len(pieces) > 255:
        return jpeg
    segments = [
        b"\xff\xe2" + struct.pack(">H", 16 + len(piece)) + b"ICC_PROFILE\0" + bytes((number, len(pieces))) + piece
        for number, piece in enumerate(pieces, start=1)
    ]
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def _sample_header(elements: Elements, size: tuple[int, int], colours: str, profile: bytes) -> ImageHeader:
    """Return the header of uncompressed samples, put in the order that `open_samples` reads."""
    if colours not in _MODES:
        raise _not_allowed("uncompressed DICOM with fewer colours than pixels")
    n_samples = _SAMPLES_OF[colours]
    n_bytes = size[0] * size[1] * n_samples
    pixels = elements[_PIXELS]
    if len(pixels) < n_bytes:
        raise HeaderRejected(RejectionReason.TRUNCATED, "fewer pixels than the DICOM header says")
    if len(pixels) > n_bytes + 1:
        raise HeaderRejected(RejectionReason.BROKEN, "more pixels than the DICOM header says")
    samples = pixels[:n_bytes]
    if n_samples == 3 and _number(elements, _PLANAR) == 1:
        planes = np.frombuffer(samples, np.uint8).reshape(3, size[1], size[0])
        samples = np.ascontiguousarray(planes.transpose(1, 2, 0)).tobytes()
    head = _HEAD.pack(_MODES[colours].encode(), len(profile), n_bytes)
    return ImageHeader(_FORMAT, *size, head + struct.pack("<II", *size) + profile + samples)


def open_samples(stream: io.BytesIO) -> Image.Image:
    """Return the image of samples as `read_dicom` put them in order: Pillow has no decoder for them."""
    mode, n_profile, n_bytes = _HEAD.unpack(stream.read(_HEAD.size))
    size = struct.unpack("<II", stream.read(8))
    profile = stream.read(n_profile)
    image = Image.frombytes(mode.rstrip(b"\0").decode("ascii"), size, stream.read(n_bytes))
    if profile:
        image.info["icc_profile"] = profile
    return image
