"""Images in memory -> upright (H, W, 3) uint8 sRGB pixels, by the rules and limits of `open_image`.

A Pillow image, a NumPy array or a torch tensor; nothing about its values is guessed.
"""

import sys
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dermkit.errors import ImageRejected, RejectionReason, ResourceError, out_of_memory
from dermkit.images.decode import error_summary, memory_ran_out, rejection_reason, upright_srgb
from dermkit.images.headers import read_orientation
from dermkit.images.image_header import HeaderRejected, ImageHeader, check_size
from dermkit.images.preprocess import RgbPixels

_BITS_TAG, _PHOTOMETRIC_TAG, _ORIENTATION_TAG = 258, 262, 274  # of a TIFF
_BITS_OF_MODE = {"I": 32, "F": 32}
_LOAD_LOCKS = tuple(threading.Lock() for _ in range(64))
"""Pillow reads a file when its pixels are first used, and two threads must not do that to one image at once."""


def is_tensor(image: object) -> bool:
    """Return whether this is a torch tensor; torch is not loaded for it, since without it there is none."""
    torch: Any = sys.modules.get("torch")
    return torch is not None and isinstance(image, torch.Tensor)


def is_in_memory(image: object) -> bool:
    """Return whether this is a Pillow image, a NumPy array or a torch tensor."""
    return isinstance(image, Image.Image | np.ndarray) or is_tensor(image)


def read_pixels(image: Any, *, name: str) -> tuple[RgbPixels, tuple[str, ...]]:
    """Return the pixels of an image in memory, a copy of (H, W, 3) uint8, and notes on what was converted.

    image: a Pillow image of any mode, whose EXIF orientation is applied as that of a file; an array (H, W, 3), (H, W)
    or (H, W, 1) uint8; a tensor of such a shape or (3, H, W) or (1, H, W). Colours are RGB. name: what messages call
    it. Raises `ImageRejected` for another shape or type of values and beyond the limits of files, `ResourceError`
    where memory ran out. Safe to call from several threads.
    """
    try:
        if isinstance(image, Image.Image):
            return _from_pillow(image)
        if is_tensor(image):
            return _from_array(_tensor_values(image), has_channels_first=True), ()
        return _from_array(image, has_channels_first=False), ()
    except ResourceError:
        raise
    except HeaderRejected as rejection:
        raise ImageRejected(name, rejection.reason, rejection.detail) from None
    except Exception as error:  # Pillow reads the file only now, and its decoders raise anything
        if memory_ran_out(error):
            raise out_of_memory(name) from error
        raise ImageRejected(name, rejection_reason(error), error_summary(error)) from error


# Pillow -------------------------------------------------------------------------------------------------------------


def _from_pillow(image: Image.Image) -> tuple[RgbPixels, tuple[str, ...]]:
    check_size(*image.size)
    if getattr(image, "is_animated", False) and image.format != "MPO":  # as of a file, the first picture of an MPO
        reason = RejectionReason.MULTI_PAGE if image.format == "TIFF" else RejectionReason.ANIMATED
        raise HeaderRejected(reason, f"a {image.format} image of several pictures; give one, such as image.copy()")
    with _LOAD_LOCKS[id(image) % len(_LOAD_LOCKS)]:
        bits = _bits_per_sample(image)
        _check_transparent_colour(image, bits)
        image.load()
        header, notes = _header(image, bits)
        raw_image = image.copy()  # what follows may change it, and it is the caller's
    colour, all_notes = upright_srgb(raw_image, header, notes)
    return np.array(colour), all_notes


def _bits_per_sample(image: Image.Image) -> int:
    """Return the bits that the image's file has for a sample; without one those of its mode. Before it is loaded."""
    tags = getattr(image, "tag_v2", None) or {}
    if _BITS_TAG in tags:
        return int(max(np.atleast_1d(tags[_BITS_TAG])))
    tiles = getattr(image, "tile", None)
    rawmode = str(tiles[0][3] if tiles else "")
    endings = {";16B": 16, ";4": 4, ";2": 2}  # as a PNG names its samples
    if image.format == "PNG" and (of_file := [bits for end, bits in endings.items() if rawmode.endswith(end)]):
        return of_file[0]
    return 16 if image.mode.startswith("I;16") else _BITS_OF_MODE.get(image.mode, 8)


def _header(image: Image.Image, bits: int) -> tuple[ImageHeader, list[str]]:
    """Return what the file of a loaded image says about its pixels."""
    tags = getattr(image, "tag_v2", None) or {}
    exif = image.info.get("exif")
    block = exif.removeprefix(b"Exif\0\0") if isinstance(exif, bytes) and image.format != "TIFF" else b""
    orientation, notes = read_orientation(block)
    of_tiff = tags.get(_ORIENTATION_TAG, 1)  # current versions of Pillow turn a TIFF themselves and drop the tag
    header = ImageHeader(
        image.format or "", *image.size, b"", bits=bits, white_is_zero=tags.get(_PHOTOMETRIC_TAG) == 0,
        orientation=of_tiff if of_tiff in range(2, 9) else orientation,
    )  # fmt: skip
    return header, list(notes)


def _check_transparent_colour(image: Image.Image, bits: int) -> None:
    """Raise `HeaderRejected` where it is not known which colour is transparent.

    A PNG with 2 or 4 bits a sample is scaled to 8 when it is loaded, its transparent colour is not, and the bits are
    then forgotten; of 16 bits a colour, 8 are read.
    """
    colour = image.info.get("transparency")
    is_small_grey = image.mode == "L" and bits == 8 and isinstance(colour, int) and 0 < colour < 16
    is_large = image.mode == "RGB" and isinstance(colour, tuple) and max(colour) > 255
    if is_large or (is_small_grey and not getattr(image, "tile", None) and image.format in ("PNG", None)):
        raise HeaderRejected(
            RejectionReason.UNDEFINED_PIXELS,
            "a transparent colour of unknown scale; give the path of the file",
        )


# Arrays and tensors -------------------------------------------------------------------------------------------------


def _tensor_values(tensor: Any) -> NDArray[Any]:
    """Return a tensor's values; of another type than uint8 only as many as a message needs."""
    if str(tensor.layout) != "torch.strided":
        raise _undefined(f"a tensor of layout {tensor.layout}; give a dense one")
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype != "uint8":
        raise _undefined(_wrong_type(dtype))
    values: NDArray[Any] = tensor.detach().cpu().numpy()
    return values


def _from_array(array: NDArray[Any], *, has_channels_first: bool) -> RgbPixels:
    """Return the pixels of an array; raises `HeaderRejected`. has_channels_first: may be (3, H, W), as tensors are."""
    if isinstance(array, np.ma.MaskedArray):
        raise _undefined("a masked array; fill what is masked")
    if array.dtype != np.uint8:
        raise _undefined(_wrong_type(str(array.dtype)))
    pixels = np.asarray(array)
    channels_first = pixels.ndim == 3 and pixels.shape[0] in (1, 3)
    channels_last = pixels.ndim == 3 and pixels.shape[2] in (1, 3)
    if channels_first and channels_last:
        raise _undefined(f"shape {pixels.shape}: the colour channels may be the first axis or the last")
    if channels_first and has_channels_first:
        pixels, channels_last = pixels.transpose(1, 2, 0), True
    if pixels.ndim != 2 and not channels_last:
        raise _undefined(_wrong_shape(pixels.shape, channels_first=channels_first, is_tensor=has_channels_first))
    height, width = pixels.shape[:2]
    check_size(width, height)
    grey_or_rgb = pixels.reshape(height, width, -1)
    return np.array(np.broadcast_to(grey_or_rgb, (height, width, 3)), order="C")


def _undefined(detail: str) -> HeaderRejected:
    return HeaderRejected(RejectionReason.UNDEFINED_PIXELS, detail)


def _wrong_type(dtype: str) -> str:
    return f"values of type {dtype}, whose range is not defined: give uint8 from 0 (black) to 255 (white)"


def _wrong_shape(shape: tuple[int, ...], *, channels_first: bool, is_tensor: bool) -> str:
    """Return what is wrong with a shape, and what to do."""
    if channels_first:
        return f"shape {shape}: the colour channels come first; give (H, W, 3), as np.moveaxis(x, 0, -1) does"
    if len(shape) == 3 and 4 in (shape[2], shape[0] if is_tensor else 0):
        return f"shape {shape}: four channels; give (H, W, 3), or Pillow images where the fourth is opacity"
    if len(shape) == 4:
        return f"shape {shape}: several images in a list of images; give them one by one"
    return f"shape {shape}: not an image; give {'(3, H, W), ' * is_tensor}(H, W, 3) or (H, W)"
