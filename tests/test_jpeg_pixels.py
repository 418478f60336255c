"""JPEG files are decoded without Pillow where nothing is wrong with them, to the pixels and notes that Pillow gives."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from dermkit.errors import ImageRejected
from dermkit.images import decode
from dermkit.images.decode import LesionImage, open_image
from dermkit.images.jpeg_pixels import plain_jpeg_pixels


def jpeg(width: int = 61, height: int = 45, *, mode: str = "RGB", seed: int = 0, **options: Any) -> bytes:
    """Return a JPEG file of smooth colours and noise."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(0, 3, width), np.linspace(0, 2, height))
    waves = np.stack([np.sin(x + y), np.cos(2 * x), np.sin(3 * y)], axis=2)
    pixels = (127 + 90 * waves + rng.normal(0, 12, (height, width, 3))).clip(0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, "JPEG", **options)
    return stream.getvalue()


def by_pillow(monkeypatch: pytest.MonkeyPatch, data: bytes) -> LesionImage | ImageRejected:
    """Return what the gate makes of a file with Pillow alone."""
    with monkeypatch.context() as patch:
        patch.setattr(decode, "plain_jpeg_pixels", lambda *_: None)
        return by_gate(data)


def by_gate(data: bytes) -> LesionImage | ImageRejected:
    try:
        return open_image(data)
    except ImageRejected as rejection:
        return rejection


def assert_equal(ours: LesionImage | ImageRejected, expected: LesionImage | ImageRejected) -> None:
    if isinstance(expected, ImageRejected):
        assert isinstance(ours, ImageRejected)
        assert (ours.reason, ours.detail) == (expected.reason, expected.detail)
        return
    assert isinstance(ours, LesionImage) and ours.pixels.flags.writeable and ours.pixels.flags.c_contiguous
    np.testing.assert_array_equal(ours.pixels, expected.pixels)
    assert (ours.notes, ours.pixel_sha256) == (expected.notes, expected.pixel_sha256)


P3 = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("size", [(61, 45), (64, 64), (1, 1), (7, 200), (200, 3), (17, 16)])
@pytest.mark.parametrize("quality", [30, 92])
def test_pixels_are_those_of_pillow(
    size: tuple[int, int], subsampling: str, quality: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    variants: tuple[dict[str, Any], ...] = (
        {},
        {"progressive": True},
        {"optimize": True, "restart_marker_blocks": 3},
    )
    for options in variants:
        data = jpeg(*size, subsampling=subsampling, quality=quality, **options)
        assert plain_jpeg_pixels(data, "RGB") is not None
        assert_equal(by_gate(data), by_pillow(monkeypatch, data))


def test_grey_turned_and_profiled_files_are_converted_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        for mode in ("RGB", "L"):
            data = jpeg(mode=mode, exif=exif)
            assert plain_jpeg_pixels(data, mode) is not None
            assert_equal(by_gate(data), by_pillow(monkeypatch, data))
    data = jpeg(icc_profile=P3)
    ours = by_gate(data)
    assert isinstance(ours, LesionImage) and any("ICC profile ignored" in note for note in ours.notes)
    assert_equal(ours, by_pillow(monkeypatch, data))


def test_colours_that_are_not_three_or_one_are_left_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    data = jpeg(mode="CMYK")
    assert plain_jpeg_pixels(data, "CMYK") is None
    assert_equal(by_gate(data), by_pillow(monkeypatch, data))


def test_a_file_that_its_decoder_warns_of_is_left_to_pillow() -> None:
    data = jpeg(200, 150)
    start = data.index(b"\xff\xda") + 40
    for damaged in (data[: len(data) // 2] + b"\xff\xd9", data[:start] + b"\xff\xd1" + data[start:]):
        assert plain_jpeg_pixels(damaged, "RGB") is None


@pytest.mark.parametrize("options", [{}, {"restart_marker_blocks": 5}, {"progressive": True}])
def test_damaged_files_have_the_same_pixels_notes_and_refusals(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    n_plain = n_rejected = 0
    for seed in range(100):
        data = bytearray(jpeg(120, 90, seed=seed, quality=75, **options))
        scan = data.index(b"\xff\xda") + 14
        position = int(rng.integers(scan, len(data) - 2))
        kind = seed % 5
        if kind == 0:
            data[position] = int(rng.integers(256))
        elif kind == 1:
            del data[position : position + int(rng.integers(1, 300))]
        elif kind == 2:
            data[position:-2] = bytes(len(data) - 2 - position)
        elif kind == 3:
            data[position:] = b"\xff\xd9"
        else:
            data = data[:position]
        ours, expected = by_gate(bytes(data)), by_pillow(monkeypatch, bytes(data))
        assert_equal(ours, expected)
        n_rejected += isinstance(ours, ImageRejected)
        n_plain += plain_jpeg_pixels(bytes(data), "RGB") is not None
    assert n_rejected >= 15 and 0 < n_plain < 90, "both ways were taken"
