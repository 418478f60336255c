"""The gate for images: what has no defined pixels is refused with its reason, at no cost."""

import io
import os
import random
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, TiffImagePlugin

from dermkit.data.rejection_texts import REASON_TEXTS
from dermkit.errors import ImageRejected, RejectionReason
from dermkit.images.decode import open_image
from made_images import (
    FORMATS,
    chunk,
    encoded,
    flat,
    frames,
    orientation_exif,
    png,
    speckled,
    tiff,
    webp_bomb,
    with_byte,
)


def refusal(data: bytes | Path) -> RejectionReason:
    with pytest.raises(ImageRejected) as caught:
        open_image(data, name="lesion.jpg")
    assert caught.value.detail
    return caught.value.reason


HOSTILE: dict[str, tuple[Callable[[], bytes], RejectionReason]] = {
    "zero bytes": (lambda: b"", RejectionReason.EMPTY),
    "renamed text": (lambda: b"lesion_id,dx\nHAM_0000118,bkl\n" * 9, RejectionReason.NOT_AN_IMAGE),
    "text that begins like BMP": (lambda: b"BMI of the patients: 24.1, 25.3, 22.8", RejectionReason.NOT_AN_IMAGE),
    "GIF": (lambda: encoded(flat(1, "P"), "GIF"), RejectionReason.FORMAT_NOT_ALLOWED),
    "DICOM": (lambda: bytes(128) + b"DICM" + bytes(99), RejectionReason.BROKEN),
    "camera raw": (lambda: b"\0\0\0\x18ftypcrx " + bytes(99), RejectionReason.FORMAT_NOT_ALLOWED),
    "HEIC of zeros": (lambda: b"\0\0\0\x18ftypheic" + bytes(99), RejectionReason.BROKEN),
    "run-length BMP": (lambda: with_byte(encoded(speckled(), "BMP"), 30, 1), RejectionReason.FORMAT_NOT_ALLOWED),
    "PNG bomb": (lambda: png(100_000, 100_000, 1, 0, b""), RejectionReason.TOO_LARGE),
    "PNG bomb that holds its pixels": (
        lambda: png(16_000, 5_000, 1, 0, bytes(2_000 * 5_000)),
        RejectionReason.TOO_LARGE,
    ),
    "WebP bomb": (webp_bomb, RejectionReason.TOO_LARGE),
    "WebP bomb below the cap": (
        lambda: encoded(flat("white", size=(5000, 5000)), "WEBP", lossless=True, method=0),
        RejectionReason.TOO_LARGE,
    ),
    "BMP bomb": (
        lambda: encoded(speckled(), "BMP")[:18] + struct.pack("<ii", 99_999, -99_999) + bytes(99),
        RejectionReason.TOO_LARGE,
    ),
    "TIFF bomb": (lambda: tiff("<", 100_000, 100_000, 8, 1, bytes(99)), RejectionReason.TOO_LARGE),
    "TIFF tile bomb": (
        lambda: tiff("<", 16, 16, 8, 1, bytes(256), t322=99_999, t323=99_999, t324=8, t325=9),
        RejectionReason.TOO_LARGE,
    ),
    "long and thin": (lambda: png(20_000, 8, 1, 0, bytes(2500 * 8)), RejectionReason.TOO_LARGE),
    "tracking pixel": (lambda: encoded(flat("white", size=(1, 1)), "PNG"), RejectionReason.TOO_SMALL),
    "animated WebP": (lambda: frames("WEBP"), RejectionReason.ANIMATED),
    "animated PNG": (lambda: frames("PNG"), RejectionReason.ANIMATED),
    "multi-page TIFF": (lambda: frames("TIFF"), RejectionReason.MULTI_PAGE),
    "flipped bit in PNG pixels": (
        lambda: with_byte(data := encoded(speckled(), "PNG"), at := len(data) // 2, data[at] ^ 1),
        RejectionReason.BROKEN,
    ),
    "one strip for two": (lambda: tiff("<", 16, 16, 8, 1, bytes(256), t278=8), RejectionReason.BROKEN),
    "overlapping tags": (
        lambda: tiff("<", 16, 16, 8, 1, bytes(256), t320=0).replace(
            struct.pack("<HHII", 320, 4, 1, 0), struct.pack("<HHII", 320, 1, 385, 0)
        ),
        RejectionReason.BROKEN,
    ),
    "strip beyond the end": (lambda: tiff("<", 16, 16, 8, 1, bytes(256), t273=9_999), RejectionReason.TRUNCATED),
    "fractions above one": (
        lambda: encoded(Image.fromarray(np.full((16, 16), 1.5, np.float32)), "TIFF"),
        RejectionReason.UNDEFINED_PIXELS,
    ),
    "not a number": (
        lambda: encoded(Image.fromarray(np.full((16, 16), np.nan, np.float32)), "TIFF"),
        RejectionReason.UNDEFINED_PIXELS,
    ),
    "integers of unknown range": (
        lambda: encoded(Image.fromarray(np.full((16, 16), 70_000, np.int32)), "TIFF"),
        RejectionReason.UNDEFINED_PIXELS,
    ),
    "LAB": (lambda: encoded(flat((50, 0, 0), "LAB"), "TIFF"), RejectionReason.UNDEFINED_PIXELS),
    "16-bit transparent colour": (
        lambda: png(16, 16, 16, 2, bytes(16 * 6 * 16), chunk(b"tRNS", bytes(6))),
        RejectionReason.UNDEFINED_PIXELS,
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_refuses_with_its_reason(case: str) -> None:
    make, reason = HOSTILE[case]
    assert refusal(make()) is reason


@pytest.mark.parametrize("tolerant", [False, True], ids=["strict", "another library made Pillow tolerant"])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("format", FORMATS)
def test_refuses_truncated_files(format: str, share: float, tolerant: bool, monkeypatch: Any) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)
    data = encoded(speckled(), format)
    open_image(data)
    assert refusal(data[: min(int(len(data) * share), len(data) - 3)]) is RejectionReason.TRUNCATED


@pytest.mark.parametrize("tolerant", [False, True])
def test_refuses_flipped_bits_in_png_pixels(tolerant: bool, monkeypatch: Any) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)
    data = encoded(speckled(), "PNG", compress_level=0)
    at = data.index(b"IDAT") + 99
    assert refusal(with_byte(data, at, data[at] ^ 64)) is RejectionReason.BROKEN


def test_refuses_a_jpeg_of_many_scans() -> None:
    data = encoded(speckled(), "JPEG", progressive=True)
    first = data.index(b"\xff\xda")
    scan = data[first : min(data.index(marker, first + 2) for marker in (b"\xff\xda", b"\xff\xc4"))]
    open_image(data[:first] + scan * 9 + data[first:])  # a harmless repetition
    with pytest.raises(ImageRejected, match="scans"):
        open_image(data[:first] + scan * 99 + data[first:])


def test_refuses_an_animation_that_hides_its_flag() -> None:
    data = frames("WEBP")
    assert data[12:16] == b"VP8X"
    assert refusal(with_byte(data, 20, data[20] & ~2)) is RejectionReason.ANIMATED


def test_refuses_what_is_no_readable_file(tmp_path: Path, monkeypatch: Any) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    assert refusal(tmp_path / "nothing.jpg") is RejectionReason.MISSING
    assert refusal(tmp_path) is RejectionReason.UNREADABLE
    assert refusal(tmp_path / "pipe.jpg") is RejectionReason.UNREADABLE
    assert refusal(tmp_path / "loop.jpg") is RejectionReason.UNREADABLE
    assert refusal(tmp_path / "nul\0.jpg") is RejectionReason.UNREADABLE
    path = tmp_path / "secret.jpg"
    path.write_bytes(encoded(speckled(), "JPEG"))

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("dermkit.files.os.open", denied)
    assert refusal(path) is RejectionReason.UNREADABLE


def test_refuses_a_file_above_the_size_cap(monkeypatch: Any, tmp_path: Path) -> None:
    data = encoded(speckled(), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    monkeypatch.setattr("dermkit.images.decode.MAX_FILE_BYTES", len(data) - 1)
    monkeypatch.setattr("dermkit.images.headers.MAX_FILE_BYTES", len(data) - 1)
    assert refusal(tmp_path / "a.png") is RejectionReason.TOO_LARGE


@pytest.mark.parametrize("error", [TypeError, SyntaxError, struct.error, RecursionError, EOFError])
def test_every_exception_of_a_decoder_becomes_a_refusal(error: type[Exception], monkeypatch: Any) -> None:
    def explode(*_: object) -> None:
        raise error("planted")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", explode)
    expected = RejectionReason.TRUNCATED if error is EOFError else RejectionReason.BROKEN
    assert refusal(encoded(speckled(), "PNG")) is expected


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_bombs_cost_neither_memory_nor_time() -> None:
    script = """if True:
        import re, sys, time
        from dermkit.images.decode import open_image
        from dermkit.errors import ImageRejected
        def peak():
            return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
        bombs = [bytes.fromhex(line) for line in sys.stdin]
        before, start = peak(), time.perf_counter()
        for bomb in bombs:
            try:
                open_image(bomb)
            except ImageRejected:
                print("refused")
        print(peak() - before, time.perf_counter() - start)
    """
    bombs = [make().hex() for name, (make, _) in HOSTILE.items() if "bomb" in name]
    done = subprocess.run(
        [sys.executable, "-c", script], input="\n".join(bombs), capture_output=True, text=True, check=True
    )
    *refused, last = done.stdout.splitlines()
    megabytes, seconds = map(float, last.split())
    assert refused == ["refused"] * len(bombs)
    assert megabytes < 8
    assert seconds < 1  # measured: below 0.01; the limit allows for a busy machine


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(FORMATS), st.integers(0, 2**32), st.integers(1, 12))
def test_mutated_files_are_let_in_or_refused_and_nothing_else(format: str, seed: int, changes: int) -> None:
    rng = random.Random(seed)
    options: dict[str, Any] = {"exif": orientation_exif(6)} if format != "BMP" else {}
    if format == "TIFF":
        options["compression"] = rng.choice(["raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg"])
    data = bytearray(encoded(speckled(24, 16), format, **options))
    for _ in range(changes):
        # Headers decide most: half of the changes go there.
        at = rng.randrange(min(len(data), 400)) if rng.random() < 0.5 else rng.randrange(len(data))
        match rng.randrange(4):
            case 0 | 1:
                data[at] = rng.choice([0, 1, 0xFF, rng.randrange(256)])
            case 2:
                del data[at : at + rng.randrange(1, 9)]
            case _:
                data[at:at] = rng.randbytes(rng.randrange(1, 9))
    if format == "PNG":
        data = bytearray(with_right_checksums(bytes(data)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            image = open_image(bytes(data))
        except ImageRejected as refused:
            assert refused.detail
        else:
            assert image.pixels.dtype == np.uint8
            assert image.pixels.shape[2] == 3
    assert not caught  # a warning would depend on the settings of the process


def with_right_checksums(data: bytes) -> bytes:
    """Make a mutated PNG pass the checksums, so that the decoder sees the mutation."""
    out, at = data[:8], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        if at + 12 + length > len(data):
            break
        out += chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + length])
        at += 12 + length
    return out + data[at:]


def tiff_with(tags: dict[int, Any]) -> bytes:
    """Return a small TIFF with further tags, as a raw file begins whose photograph lies in a sub-directory."""
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        info[tag] = value
    stream = io.BytesIO()
    Image.new("RGB", (64, 48), (200, 10, 10)).save(stream, "TIFF", tiffinfo=info)
    return stream.getvalue()


@pytest.mark.parametrize(
    "tags",
    [{50706: b"\1\4\0\0"}, {254: 1, 50706: b"\1\4\0\0"}, {254: 1, 271: "NIKON CORPORATION", 330: (2000, 3000)}],
    ids=["DNG", "DNG that begins with a preview", "NEF"],
)
def test_the_preview_of_a_camera_raw_file_is_not_taken_for_the_photograph(tags: dict[int, Any]) -> None:
    with pytest.raises(ImageRejected, match="camera raw") as caught:
        open_image(tiff_with(tags))
    assert caught.value.reason == RejectionReason.FORMAT_NOT_ALLOWED
    assert REASON_TEXTS[caught.value.reason][1] == "save it as JPEG or PNG"


@pytest.mark.parametrize("tags", [{}, {254: 0, 330: (2000,)}, {254: 1}], ids=["plain", "pyramid", "single"])
def test_a_tiff_that_begins_with_its_only_or_largest_picture_is_read(tags: dict[int, Any]) -> None:
    assert open_image(tiff_with(tags)).pixels.shape == (48, 64, 3)
