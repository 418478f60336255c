"""The gate for images gives defined pixels, and the preprocessing known answers."""

import hashlib
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile
from pydantic import TypeAdapter, ValidationError

from dermkit.errors import DataError
from dermkit.images.decode import LesionImage, open_image
from dermkit.images.preprocess import Preprocessing, resize_pixels
from made_images import (
    ADOBE,
    ADOBE_RGB,
    FORMATS,
    GREY_LINEAR,
    chunk,
    encoded,
    flat,
    orientation_exif,
    png,
    speckled,
    tiff,
    with_byte,
)


def opened(data: bytes) -> LesionImage:
    image = open_image(data)
    assert image.pixels.dtype == np.uint8
    assert image.pixels.shape[2] == 3
    return image


@pytest.mark.parametrize("format", FORMATS)
def test_pixels_of_a_lossless_file_come_back(format: str) -> None:
    image = speckled()
    loaded = opened(data := encoded(image, format, **({"lossless": True} if format == "WEBP" else {})))
    if format != "JPEG":
        assert np.array_equal(loaded.pixels, np.asarray(image))
    assert (loaded.format, loaded.notes) == (format, ())
    assert loaded.file_sha256 == hashlib.sha256(data).hexdigest()


def test_pixel_hash_follows_pixels_and_shape_only() -> None:
    image = flat("red", size=(16, 32))
    assert opened(encoded(image, "PNG")).pixel_sha256 == opened(encoded(image, "BMP")).pixel_sha256
    assert (
        opened(encoded(image, "PNG")).pixel_sha256
        != opened(encoded(flat("red", size=(32, 16)), "PNG")).pixel_sha256
    )


RAMP = np.tile(np.arange(256, dtype=np.uint16) * 257, (16, 1))
GREY_RAMP = np.repeat(np.tile(np.arange(256, dtype=np.uint8), (16, 1))[..., None], 3, axis=2)


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.fromarray(RAMP), "PNG"),
        encoded(Image.fromarray(RAMP), "TIFF"),
        encoded(Image.fromarray(RAMP), "TIFF", compression="tiff_lzw"),
        tiff("<", 256, 16, 16, 1, RAMP.astype("<u2").tobytes()),
        tiff(">", 256, 16, 16, 1, RAMP.astype(">u2").tobytes()),
        tiff("<", 256, 16, 16, 0, (65535 - RAMP).astype("<u2").tobytes()),  # white is zero
        png(256, 16, 16, 2, np.repeat(RAMP[..., None], 3, axis=2).astype(">u2").tobytes()),
        encoded(Image.fromarray(RAMP.astype(np.int32)), "TIFF"),
        encoded(Image.fromarray((RAMP / 65535).astype(np.float32)), "TIFF"),
    ],
    ids=["png16", "tiff16", "lzw", "little", "big", "white-is-zero", "rgb16", "int32", "float"],
)
def test_sixteen_bits_and_more_are_scaled_not_clipped(data: bytes) -> None:
    assert np.array_equal(opened(data).pixels, GREY_RAMP)


def test_twelve_bits_are_scaled() -> None:
    packed = np.tile(np.array([0xFF, 0xF8, 0x00], np.uint8), (16, 8))  # 4095 and 2048, in turn
    assert opened(tiff("<", 16, 16, 12, 1, packed.tobytes())).pixels[0, :4, 0].tolist() == [255, 128, 255, 128]


def keyed(bits: int, clear: int, stored: int) -> bytes:
    """A grey PNG of one value, whose value `clear` means transparent."""
    line = "".join(f"{stored:0{bits}b}" for _ in range(16))
    row = int(line, 2).to_bytes(2 * bits, "big")
    return png(16, 16, bits, 0, row * 16, chunk(b"tRNS", struct.pack(">H", clear)))


def palette(*, opacities: bytes) -> bytes:
    image = flat(0, "P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(1, (8, 0, 16, 16))
    return encoded(image, "PNG", transparency=opacities)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded(flat((200, 0, 100, 0), "RGBA"), "PNG"), (255, 255, 255)),
        (encoded(flat((200, 0, 100, 51), "RGBA"), "PNG"), (244, 204, 224)),
        (encoded(flat((200, 0, 100, 51), "RGBA"), "TIFF"), (244, 204, 224)),
        (encoded(flat((200, 0, 100, 51), "RGBA"), "WEBP", lossless=True), (244, 204, 224)),
        (encoded(flat((0, 51), "LA"), "PNG"), (204, 204, 204)),
        (encoded(flat((0, 51), "LA"), "TIFF"), (204, 204, 204)),
        (palette(opacities=b"\0\xff"), (255, 255, 255)),
        (palette(opacities=b"\x33\xff"), (206, 208, 210)),
        (keyed(16, 300, 300), (255, 255, 255)),
        (keyed(8, 30, 30), (255, 255, 255)),
        (keyed(4, 3, 3), (255, 255, 255)),
        (keyed(1, 0, 0), (255, 255, 255)),
        (png(16, 16, 8, 2, bytes([9, 8, 7] * 256), chunk(b"tRNS", b"\0\t\0\b\0\a")), (255, 255, 255)),
    ],
)
def test_alpha_is_composited_on_white_and_noted(data: bytes, expected: tuple[int, int, int]) -> None:
    image = opened(data)
    assert np.abs(image.pixels[4, 4].astype(int) - expected).max() <= 1
    assert image.notes[-1] == "alpha composited on white"


def test_transparency_that_no_pixel_has_changes_nothing() -> None:
    assert opened(keyed(4, 3, 5)).pixels[0, 0].tolist() == [85, 85, 85]
    assert opened(keyed(16, 300, 301)).pixels[0, 0].tolist() == [1, 1, 1]
    assert opened(palette(opacities=b"\xff\xff")).notes == ()
    assert opened(palette(opacities=b"\0\xff")).pixels[4, 12].tolist() == [200, 100, 50]


def test_one_bit_is_black_and_white() -> None:
    image = flat(0, "1")
    image.paste(1, (0, 0, 8, 16))
    for data in (encoded(image, "PNG"), encoded(image, "TIFF", compression="group4"), encoded(image, "BMP")):
        assert opened(data).pixels[3, [0, 12]].tolist() == [[255] * 3, [0] * 3]


@pytest.mark.parametrize(
    ("cmyk", "expected"), [((0, 0, 0, 0), (255,) * 3), ((0, 0, 0, 255), (0,) * 3), ((0, 255, 255, 0), (255, 0, 0))]
)
def test_cmyk(cmyk: tuple[int, ...], expected: tuple[int, ...]) -> None:
    for stored in ("JPEG", "TIFF"):  # the JPEG is stored inverted, as Adobe does
        image = opened(encoded(flat(cmyk, "CMYK"), stored))
        assert np.abs(image.pixels[8, 8].astype(int) - expected).max() <= 2
        assert image.notes == ("CMYK without a profile: plain conversion",)


def test_ycck_as_adobe_stores_it() -> None:
    data = encoded(flat((255 - 200, 127, 127, 0), "CMYK"), "JPEG")  # stored: Y 200, Cb 128, Cr 128, K 255
    ycck = with_byte(data, data.index(b"Adobe") + 11, 2)
    assert np.abs(opened(ycck).pixels[8, 8].astype(int) - 55).max() <= 1


CORNERS = {1: "abcd", 2: "badc", 3: "dcba", 4: "cdab", 5: "acbd", 6: "cadb", 7: "dbca", 8: "bdac"}
"""Stored corners, a b above c d, as each orientation shows them: top left, top right, bottom left, bottom right."""
COLOURS = {"a": (255, 0, 0), "b": (0, 255, 0), "c": (0, 0, 255), "d": (255, 255, 0)}


@pytest.mark.parametrize("orientation", CORNERS)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(format: str, orientation: int) -> None:
    image = flat("white", size=(48, 32))
    for letter, box in zip("abcd", [(0, 0), (24, 0), (0, 16), (24, 16)], strict=True):
        image.paste(COLOURS[letter], (*box, box[0] + 24, box[1] + 16))
    loaded = opened(encoded(image, format, exif=orientation_exif(orientation), quality=95))
    assert loaded.pixels.shape == ((32, 48, 3) if orientation < 5 else (48, 32, 3))
    shown = [loaded.pixels[row, column] for row in (2, -3) for column in (2, -3)]
    for pixel, letter in zip(shown, CORNERS[orientation], strict=True):
        assert np.abs(pixel.astype(int) - COLOURS[letter]).max() < 60
    assert loaded.notes == (("EXIF orientation applied",) if orientation > 1 else ())


def test_broken_exif_is_noted_and_the_image_let_in() -> None:
    for exif in (b"Exif\0\0garbage", b"Exif\0\0" + orientation_exif(6)[6:20]):
        assert opened(encoded(speckled(), "JPEG", exif=exif)).notes == ("EXIF ignored: broken",)


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SRGB_TO_XYZ = np.array([[0.43607, 0.38506, 0.14308], [0.22250, 0.71688, 0.06062], [0.01393, 0.09710, 0.71417]])


def srgb_curve(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("colour", [(200, 120, 100), (90, 130, 110), (128, 128, 128)])
def test_adobe_rgb_is_converted(colour: tuple[int, int, int], format: str) -> None:
    options: dict[str, Any] = {"lossless": True} if format == "WEBP" else {"quality": 100, "subsampling": 0}
    image = opened(encoded(flat(colour), format, icc_profile=ADOBE_RGB, **options))
    light = np.array(ADOBE).T @ (np.array(colour) / 255) ** 2.19921875
    expected = srgb_curve(np.linalg.solve(SRGB_TO_XYZ, light))
    assert np.abs(image.pixels[8, 8] - expected).max() <= (4 if format == "JPEG" else 2)
    assert image.notes == ("ICC profile converted to sRGB",)


def test_grey_profile_is_converted_and_alpha_stays() -> None:
    image = opened(encoded(flat(55, "L"), "PNG", icc_profile=GREY_LINEAR))
    assert np.abs(image.pixels[0, 0] - srgb_curve(np.array(55 / 255))).max() <= 2
    clear = opened(encoded(flat((200, 120, 100, 0), "RGBA"), "PNG", icc_profile=ADOBE_RGB))
    assert (clear.pixels == 255).all()
    assert clear.notes == ("ICC profile converted to sRGB", "alpha composited on white")


def test_srgb_profile_changes_nothing() -> None:
    image = opened(encoded(speckled(), "PNG", icc_profile=SRGB))
    assert np.array_equal(image.pixels, np.asarray(speckled()))
    assert image.notes == ()
    assert opened(encoded(flat(55, "L"), "PNG", icc_profile=SRGB)).pixels[0, 0].tolist() == [55] * 3


@pytest.mark.parametrize("profile", [b"garbage" * 9, ADOBE_RGB[:300], GREY_LINEAR, b"\0" * 128])
def test_broken_or_foreign_profile_is_ignored_and_noted(profile: bytes) -> None:
    image = opened(encoded(speckled(), "PNG", icc_profile=profile))
    assert np.array_equal(image.pixels, np.asarray(speckled()))
    assert image.notes[0].startswith("ICC profile ignored: broken")
    if profile is GREY_LINEAR:
        assert "a profile of GRAY on RGB pixels" in image.notes[0]


def test_mpo_gives_its_first_picture() -> None:
    data = encoded(flat("red"), "MPO", save_all=True, append_images=[flat("blue")])
    image = opened(data)
    assert np.abs(image.pixels[8, 8].astype(int) - (254, 0, 0)).max() <= 2
    assert "MPO" in image.notes[0]
    assert image.format == "JPEG"


MODES = {
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB"),
    "TIFF": ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I;16", "F"),
}


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([(stored, mode) for stored, modes in MODES.items() for mode in modes]),
    st.tuples(st.integers(8, 70), st.integers(8, 70)),
    st.integers(1, 8),
)
def test_any_mode_size_and_orientation_gives_rgb(kind: tuple[str, str], size: tuple[int, int], turn: int) -> None:
    stored, mode = kind
    image = speckled(*size, channels=4).convert("RGBA")
    if mode == "F":
        image = Image.fromarray(np.asarray(image.convert("L"), np.float32) / 255)
    elif mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        image = (image.convert("P") if mode == "PA" else image.convert("RGB")).convert(mode)
    turn = turn if stored != "BMP" else 1
    pixels = opened(encoded(image, stored, **({"exif": orientation_exif(turn)} if turn > 1 else {}))).pixels
    assert pixels.shape == ((*size, 3) if turn > 4 else (*size[::-1], 3))


def test_threads_agree_and_the_process_is_left_alone() -> None:
    files = [
        encoded(speckled(200, 160, seed), kind, icc_profile=ADOBE_RGB) for seed in range(4) for kind in FORMATS
    ]
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
    alone = [open_image(data).pixel_sha256 for data in files]
    with ThreadPoolExecutor(8) as pool:
        assert [image.pixel_sha256 for image in pool.map(open_image, files * 5)] == alone * 5
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)) == before


# Preprocessing ---------------------------------------------------------------------------------------------------


def preprocessing(**changes: Any) -> Preprocessing:
    values: dict[str, Any] = {"size": 16, "resize": "squash", "interpolation": "bilinear", "divide_by": 255.0}
    values |= {"mean": (0.5, 0.25, 0.0), "std": (0.25, 0.5, 1.0)}
    return Preprocessing(**(values | changes))


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 15},
        {"size": 4097},
        {"size": 16.0},
        {"resize": "stretch"},
        {"interpolation": "nearest"},
        {"divide_by": 0.0},
        {"std": (1.0, 0.0, 1.0)},
        {"std": (1.0, float("nan"), 1.0)},
        {"mean": (0.5, 0.5)},
        {"mean": (0.5, 0.5, float("inf"))},
        {"crop_fraction": 0.9},
    ],
)
def test_preprocessing_refuses_what_makes_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        preprocessing(**wrong)


def test_preprocessing_survives_json() -> None:
    adapter = TypeAdapter(Preprocessing)
    assert adapter.validate_json(adapter.dump_json(preprocessing())) == preprocessing()


def test_resize_known_answers() -> None:
    values = np.array([[0, 100], [200, 60]], np.uint8)
    squares = values.repeat(16, axis=0).repeat(16, axis=1)[..., None].repeat(3, axis=2)
    box = resize_pixels(squares, preprocessing(interpolation="box"))
    assert box[[0, 0, 15, 15], [0, 15, 0, 15], 0].tolist() == [0, 100, 200, 60]
    stripes = np.zeros((16, 48, 3), np.uint8)
    stripes[:, :16], stripes[:, 16:32], stripes[:, 32:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    assert (resize_pixels(stripes, preprocessing(resize="crop", interpolation="box")) == (0, 255, 0)).all()
    padded = resize_pixels(np.full((20, 40, 3), 90, np.uint8), preprocessing(resize="pad"))
    assert (padded[4:12] == 90).all()
    assert (padded[:4] == 0).all()
    assert (padded[12:] == 0).all()


@settings(max_examples=100, deadline=None)
@given(
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.integers(16, 64),
    st.sampled_from(["squash", "pad", "crop"]),
    st.sampled_from(["bilinear", "bicubic", "lanczos", "box"]),
)
def test_resize_gives_exactly_the_size(shape: tuple[int, int], size: int, how: str, by: str) -> None:
    pixels = np.full((*shape, 3), 200, np.uint8)
    small = resize_pixels(pixels, preprocessing(size=size, resize=how, interpolation=by))
    assert small.shape == (size, size, 3)
    assert small.dtype == np.uint8
    assert small.flags.writeable
    bright = small[..., 0] == 200
    if how != "pad":
        assert bright.all()
        return
    seen = (bright.any(axis=1).sum(), bright.any(axis=0).sum())
    assert max(seen) == size
    for side, stored in zip(seen, shape, strict=True):
        assert abs(side - stored * size / max(shape)) <= 1


def test_wrong_shapes_are_refused() -> None:
    for wrong in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((0, 8, 3), np.uint8)):
        with pytest.raises(DataError, match="expected"):
            resize_pixels(wrong, preprocessing())
