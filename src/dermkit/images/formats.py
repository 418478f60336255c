"""The formats of image files: how their first bytes and their names tell them, also those that are not decoded."""

from collections.abc import Callable
from types import MappingProxyType

BMP_HEADERS = frozenset({12, 40, 52, 56, 64, 108, 124})
_SIGNATURES: MappingProxyType[str, Callable[[bytes], bool]] = MappingProxyType(
    {
        "JPEG": lambda data: data.startswith(b"\xff\xd8\xff"),
        "PNG": lambda data: data.startswith(b"\x89PNG\r\n\x1a\n"),
        "WEBP": lambda data: data[:4] == b"RIFF" and data[8:12] == b"WEBP",
        # Two letters are not enough ("BMI 24" is text), so the header length is checked too.
        "BMP": lambda data: data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in BMP_HEADERS,
        "TIFF": lambda data: data.startswith((b"II*\0", b"MM\0*")),
        "DICOM": lambda data: data.startswith(b"DICM", 128),
    }
)
_VIDEO, _ICON, _SHORT_JPEG_XL = "a video", "an icon", "JPEG XL without a container"
_FOREIGN_SIGNATURES = (
    (0, b"GIF8", "GIF"),
    (4, b"jP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"\xff\x0a", _SHORT_JPEG_XL),
    (0, b"8BPS", "Photoshop"),
    (0, b"II+\0", "BigTIFF"),
    (0, b"MM\0+", "BigTIFF"),
    (0, b"\0\0\1\0", _ICON),
)
_FORMATS_OF_BRANDS = MappingProxyType(
    dict.fromkeys((b"avif", b"avis"), "AVIF")
    | dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIC")
    | {b"crx ": "camera raw (CR3)"}
)
"""Brands of ISO base media files (ISO/IEC 23008-12) that are pictures; others are videos."""
_NO_IMAGES = frozenset({_VIDEO, _ICON, _SHORT_JPEG_XL})
"""Kinds that a file may begin like by chance, or that are no photographs: only their name makes them images."""
IMAGE_SUFFIXES = frozenset(
    {
        ".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib", ".tif",
        ".tiff", ".gif", ".heic", ".heif", ".heics", ".hif", ".avif", ".jp2", ".j2k", ".jpx", ".jxl", ".dcm", ".dicom",
        ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".psd",
    }
)  # fmt: skip
"""Suffixes, in lower case, of files that are called images. The bytes decide the format, not the suffix: a file of any
other name that begins like an image is one too (`recognise.is_image`)."""


def image_kind(head: bytes) -> str:
    """Return the format of a file by its first bytes (132 are enough), "" for a file that is no image."""
    kind = own_format(head) or foreign_format(head)
    return "" if kind in _NO_IMAGES else kind


def own_format(data: bytes) -> str | None:
    """Return the format of a file that is decoded, None for any other."""
    return next((format_name for format_name, matches in _SIGNATURES.items() if matches(data)), None)


def foreign_format(data: bytes) -> str:
    """Return what a file is that is not decoded, "" if nothing tells."""
    if data[4:8] == b"ftyp":
        return _FORMATS_OF_BRANDS.get(data[8:12], _VIDEO)
    return next((kind for offset, magic, kind in _FOREIGN_SIGNATURES if data.startswith(magic, offset)), "")
