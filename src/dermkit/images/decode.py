"""Safe decoding of image files: every image of dermkit is opened by `open_image`.

Pixels are (H, W, 3) uint8 RGB in the sRGB colour space.
"""

import hashlib
import io
import struct
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass as plain_dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from dermkit.errors import ImageRejected, RejectionReason, ResourceError, check_fault_of_path, out_of_memory
from dermkit.files import NOT_REGULAR, open_regular
from dermkit.images.dicom import open_samples
from dermkit.images.headers import read_image_header
from dermkit.images.icc import check_profile
from dermkit.images.image_header import MAX_FILE_BYTES, UNCHECKED_PIXELS, HeaderRejected, ImageHeader
from dermkit.images.jpeg_damage import DAMAGE_PREFIX, pixel_damage, zeros_damage
from dermkit.images.jpeg_pixels import plain_jpeg_pixels
from dermkit.images.preprocess import RgbPixels

_MAX_PROFILE_BYTES = 4 * 1024**2  # press profiles take 0.5 to 2.5 MB
_SRGB_TOLERANCE = 2  # levels of 0..255; sRGB profiles of different makers differ by 1


@plain_dataclass(frozen=True, eq=False)
class LesionImage:
    """A decoded image.

    pixels: (H, W, 3) uint8 RGB, sRGB, EXIF orientation applied. notes: conversions that changed pixels, such as a
    transparent background. format: JPEG, PNG, WEBP, BMP, TIFF, HEIC, AVIF or DICOM. pixel_sha256: hex SHA-256 of width,
    height and pixels. file_sha256: hex SHA-256 of the file.
    """

    pixels: RgbPixels
    notes: tuple[str, ...]
    format: str
    pixel_sha256: str
    file_sha256: str


def open_image(source: Path | bytes, *, name: str = "", unchecked_pixels: int = UNCHECKED_PIXELS) -> LesionImage:
    """Decode one image file safely; raises `ImageRejected` with the reason, or `ResourceError` if the machine failed.

    source: a path, or the bytes of a file. name: what the message calls an image without a path. unchecked_pixels: up
    to so many a file may be as small as it likes. Size, number of frames and completeness are checked in the header
    before a decoder runs. Safe to call from several threads.

        image = dk.open_image(Path("lesion.jpg"))
        image.pixels.shape
    """
    name = name or (str(source) if isinstance(source, Path) else "image")
    try:
        data = read_image_file(source) if isinstance(source, Path) else source
        header = read_image_header(data, unchecked_pixels=unchecked_pixels)
        pixels, notes = _decode_pixels(header)
    except ResourceError:
        raise
    except HeaderRejected as rejection:
        raise ImageRejected(name, rejection.reason, rejection.detail) from None
    except Exception as error:  # decoders raise anything: SyntaxError, TypeError, struct.error
        if memory_ran_out(error):
            raise out_of_memory(name) from error
        raise ImageRejected(name, rejection_reason(error), error_summary(error)) from error
    return LesionImage(pixels, notes, header.format, pixel_sha256_of(pixels), hashlib.sha256(data).hexdigest())


def read_image_file(path: Path) -> bytes:
    """Return a file's bytes, at most one more than the gate takes; raises `HeaderRejected` or `ResourceError`."""
    try:
        with open_regular(path) as stream:
            return stream.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise HeaderRejected(RejectionReason.MISSING, "no such file") from None
    except OSError as error:
        check_fault_of_path(error, path)
        detail = "not a file" if NOT_REGULAR in str(error) else error_summary(error)
        raise HeaderRejected(RejectionReason.UNREADABLE, detail) from None
    except ValueError as error:  # a NUL in the name
        raise HeaderRejected(RejectionReason.UNREADABLE, error_summary(error)) from None


_ONE_AT_A_TIME = threading.Lock()


def _decode_pixels(header: ImageHeader) -> tuple[RgbPixels, tuple[str, ...]]:
    """Decode; where memory ran out beside other threads, once more with no other such image beside it."""
    try:
        return _decode_once(header)
    except Exception as error:
        if not memory_ran_out(error):
            raise
    with _ONE_AT_A_TIME:
        return _decode_once(header)


def _decode_once(header: ImageHeader) -> tuple[RgbPixels, tuple[str, ...]]:
    decoded, notes = _decode(header)
    return decoded if isinstance(decoded, np.ndarray) else np.array(decoded), notes


def memory_ran_out(error: Exception) -> bool:
    """Tell memory from a broken file: Pillow's decoders report it as an `OSError` of these words."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and "out of memory" in str(error).lower())


def rejection_reason(error: Exception) -> RejectionReason:
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return RejectionReason.TOO_LARGE
    if isinstance(error, EOFError) or (isinstance(error, OSError) and "truncated" in str(error).lower()):
        return RejectionReason.TRUNCATED
    return RejectionReason.BROKEN


def error_summary(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def pixel_sha256_of(pixels: RgbPixels) -> str:
    digest = hashlib.sha256(struct.pack("<II", pixels.shape[1], pixels.shape[0]))
    digest.update(pixels.data)
    return digest.hexdigest()


# Decoding: from any stored mode to 8-bit sRGB without alpha -------------------------------------------------------


def _open_heic(stream: io.BytesIO) -> ImageFile.ImageFile:
    """Open a HEIC file with pillow-heif; registered with Pillow, it would also serve other code of the process."""
    import pillow_heif

    image: ImageFile.ImageFile = pillow_heif.HeifImageFile(stream)  # type: ignore[no-untyped-call]
    return image


def _open_dicom(stream: io.BytesIO) -> Image.Image:
    """Open what `read_dicom` took out of a DICOM file: a JPEG, or samples in order."""
    is_jpeg = stream.read(2) == b"\xff\xd8"
    stream.seek(0)
    return JpegImageFile(stream) if is_jpeg else open_samples(stream)


# The classes are called directly: `Image.open` would first issue Pillow's warning about large images.
_DECODERS: MappingProxyType[str, Callable[[io.BytesIO], Image.Image]] = MappingProxyType(
    {
        "JPEG": JpegImageFile,
        "PNG": PngImageFile,
        "WEBP": WebPImageFile,
        "BMP": BmpImageFile,
        "TIFF": TiffImageFile,
        "HEIC": _open_heic,
        "AVIF": AvifImageFile,
        "DICOM": _open_dicom,
    }
)
_ORIENTATION_TRANSPOSE = MappingProxyType(
    {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
)


def _decode(header: ImageHeader) -> tuple[Image.Image | RgbPixels, tuple[str, ...]]:
    """Return upright sRGB: an image, or the pixels themselves of a JPEG file that needs no conversion."""
    raw_image = _DECODERS[header.format](io.BytesIO(header.data))
    if raw_image.size != (header.width, header.height):
        raise HeaderRejected(
            RejectionReason.BROKEN, f"two sizes: {header.width} x {header.height} and {raw_image.size}"
        )
    is_jpeg = raw_image.format == "JPEG"  # that in a DICOM file too
    # A progressive file can lose the end of its last scan without a warning of the decoder (2 of 1,000 cut files).
    is_sequential = is_jpeg and not raw_image.info.get("progressive")
    pixels = plain_jpeg_pixels(header.data, raw_image.mode) if is_sequential else None
    if pixels is not None and pixels.shape[:2] == (header.height, header.width):
        return _convert_plain(pixels, raw_image.info.get("icc_profile"), header)
    raw_image.load()
    notes = list(header.notes)
    if is_jpeg and not _is_damaged(notes):
        notes += pixel_damage(raw_image, header.data)
    return upright_srgb(raw_image, header, notes)


def _is_damaged(notes: Iterable[str]) -> bool:
    return any(note.startswith(DAMAGE_PREFIX) for note in notes)


def _convert_plain(
    pixels: RgbPixels, profile: object, header: ImageHeader
) -> tuple[Image.Image | RgbPixels, tuple[str, ...]]:
    """Return the pixels of a JPEG file that was decoded without a warning, as upright sRGB."""
    notes = list(header.notes)
    if not _is_damaged(notes):
        notes += zeros_damage(pixels, header.data)
    if pixels.ndim == 3 and not profile and header.orientation == 1:
        return pixels, tuple(notes)
    image = Image.fromarray(pixels)
    if profile:
        image.info["icc_profile"] = profile
    return upright_srgb(image, header, notes)


def upright_srgb(
    raw_image: Image.Image, header: ImageHeader, notes: list[str]
) -> tuple[Image.Image, tuple[str, ...]]:
    """Return a loaded image as upright 8-bit sRGB without alpha, and the notes with those of each conversion.

    raw_image: may lose its transparent colour. header: its bits, orientation and meaning of grey. Raises
    `HeaderRejected` for pixels without a defined meaning.
    """
    profile = raw_image.info.get("icc_profile")
    alpha = _opacity(raw_image, header)
    colour, note = _to_srgb(_to_8_bit(raw_image, header, notes), profile)
    notes += [note] if note else []
    if alpha is not None and alpha.getextrema() != (255, 255):
        background = Image.new("RGB", colour.size, "white")
        background.paste(colour, mask=alpha)
        colour = background
        notes.append("alpha composited on white")
    if header.orientation != 1:
        colour = colour.transpose(_ORIENTATION_TRANSPOSE[header.orientation])
        notes.append("EXIF orientation applied")
    return colour, tuple(notes)


def _opacity(raw_image: Image.Image, header: ImageHeader) -> Image.Image | None:
    """Return the opacity as an L image (255 = opaque), from a channel, a palette or a transparent colour; else None."""
    if raw_image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        return raw_image.getchannel("A" if raw_image.mode[-1] == "A" else "a")
    transparent_colour = raw_image.info.get("transparency")
    if transparent_colour is None:
        return None
    if raw_image.mode == "P":
        return raw_image.convert("RGBA").getchannel("A")
    del raw_image.info["transparency"]  # else later conversions would apply it too
    if raw_image.mode == "RGB" and header.bits == 16:
        raise HeaderRejected(
            RejectionReason.UNDEFINED_PIXELS, "a 16-bit transparent colour, of which 8 bits were read"
        )
    if raw_image.mode == "L":
        transparent_colour *= 255 // (
            2**header.bits - 1
        )  # the decoder scaled 2 and 4 bits to 8, but not this value
    values = np.asarray(raw_image.convert("L") if raw_image.mode == "1" else raw_image)
    is_transparent = values == np.asarray(transparent_colour)
    is_transparent = is_transparent.all(axis=-1) if is_transparent.ndim == 3 else is_transparent
    return Image.fromarray(np.where(is_transparent, 0, 255).astype(np.uint8))


def _to_8_bit(raw_image: Image.Image, header: ImageHeader, notes: list[str]) -> Image.Image:
    """Return the colours as L, RGB or CMYK without alpha; raises `HeaderRejected` for a mode without colours."""
    mode = raw_image.mode
    if mode in ("L", "RGB", "CMYK"):
        return raw_image
    if mode in ("1", "LA"):
        return raw_image.convert("L")
    if mode == "La":
        return raw_image.convert("LA").convert("L")
    if mode in ("P", "PA", "RGBa"):
        # Through RGBA: converted directly, a palette with opacities causes a warning.
        return raw_image.convert("RGBA").convert("RGB")
    if mode in ("RGBA", "RGBX", "YCbCr"):
        return raw_image.convert("RGB")
    if mode.startswith("I") or mode == "F":
        return Image.fromarray(_scale_grey(np.asarray(raw_image), header, notes))
    raise HeaderRejected(RejectionReason.UNDEFINED_PIXELS, f"colours of mode {mode}")


def _scale_grey(values: NDArray[np.generic], header: ImageHeader, notes: list[str]) -> RgbPixels:
    """Scale grey values of more than 8 bits to 8 bits without clipping.

    16-bit values keep their high byte, as decoders do for colour; floats must lie in 0..1.
    """
    if values.dtype.kind == "f":
        low, high = float(values.min()), float(values.max())  # NaN fails the comparison below
        if not 0.0 <= low <= high <= 1.0:
            raise HeaderRejected(
                RejectionReason.UNDEFINED_PIXELS, f"fractions from {low:g} to {high:g}; only 0 to 1 is defined"
            )
        notes.append("fractions 0 to 1 scaled to 8 bits")
        grey = np.rint(values.astype(np.float64) * 255).astype(np.uint8)
    else:
        low, high = int(values.min()), int(values.max())
        if values.dtype.itemsize > 2 and not (header.bits > 16 and low >= 0 and 255 < high < 65536):
            raise HeaderRejected(
                RejectionReason.UNDEFINED_PIXELS,
                f"{header.bits}-bit integers from {low} to {high}, of unknown range",
            )
        bits = min(header.bits, 16)
        notes.append(f"{bits}-bit grey scaled to 8 bits")
        grey = (values.astype(np.int32) >> (bits - 8)).astype(np.uint8)
    return 255 - grey if header.white_is_zero else grey


# Colour: ICC profiles ---------------------------------------------------------------------------------------------


def _to_srgb(image: Image.Image, profile: object) -> tuple[Image.Image, str]:
    """Return the image in sRGB, and a note or "". Without a usable profile, L and RGB count as sRGB already."""
    if not profile:
        note = "CMYK without a profile: plain conversion" if image.mode == "CMYK" else ""
        return image if image.mode == "RGB" else image.convert("RGB"), note
    try:
        if not isinstance(profile, bytes) or len(profile) > _MAX_PROFILE_BYTES:
            raise ValueError("no profile, or too large")
        colour_space = profile[16:20]
        if image.mode == "L" and colour_space == b"RGB ":
            image = image.convert("RGB")
        transform = _srgb_transform(profile, image.mode)
        if transform is None:
            return image.convert("RGB"), ""
        return transform.apply(image), "ICC profile converted to sRGB"
    except Exception as error:  # lcms fails in many ways; the image is used all the same
        if memory_ran_out(error):
            raise
        return image.convert("RGB"), f"ICC profile ignored: broken ({error_summary(error)})"


@lru_cache(maxsize=16)
def _srgb_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform from a profile to sRGB; None if it changes no colour by more than `_SRGB_TOLERANCE`.

    Raises an exception of any kind for an unusable profile. NOCACHE makes the transform safe for several threads.
    """
    space_of_mode = {"L": b"GRAY", "RGB": b"RGB ", "CMYK": b"CMYK"}
    if profile[36:40] != b"acsp" or profile[12:16] not in (b"mntr", b"scnr", b"prtr", b"spac"):
        raise ValueError("not a profile of a device or colour space")
    if profile[16:20] != space_of_mode[mode]:
        raise ValueError(f"a profile of {profile[16:20].decode('ascii', 'replace').strip()} on {mode} pixels")
    check_profile(profile)
    transform = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        flags=ImageCms.Flags.NOCACHE,
    )
    if mode == "CMYK":
        return transform
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    colour_grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    probe_image = Image.fromarray(colour_grid if mode == "RGB" else np.arange(256, dtype=np.uint8)[None])
    source_colours = np.asarray(probe_image.convert("RGB")).astype(int)
    converted_colours = np.asarray(transform.apply(probe_image)).astype(int)
    return None if np.abs(source_colours - converted_colours).max() <= _SRGB_TOLERANCE else transform
