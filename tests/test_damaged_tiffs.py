"""Deflated TIFF files whose pixels were damaged are refused, and sound ones of every layout are read."""

import io
import random
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dermkit.errors import ImageRejected, RejectionReason
from dermkit.images import headers
from dermkit.images.decode import open_image
from made_images import tiff as made_tiff
from test_damaged_jpegs import photograph


def tiff(picture: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "TIFF", **{"compression": "tiff_adobe_deflate", **options})
    return stream.getvalue()


def pieces(data: bytes) -> list[tuple[int, int]]:
    """Return where each strip begins and ends."""
    with Image.open(io.BytesIO(data)) as image:
        offsets, lengths = image.tag_v2[273], image.tag_v2[279]  # type: ignore[attr-defined]
        return [(offset, offset + length) for offset, length in zip(offsets, lengths, strict=True)]


@pytest.mark.parametrize("rows_per_strip", [None, 1, 7, 64, 4096])
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "CMYK", "RGBA", "I;16"])
def test_sound_files_are_read(mode: str, rows_per_strip: int | None) -> None:
    picture = photograph(0, 90)
    grey = np.asarray(picture.convert("L")).astype(np.uint16) * 200
    picture = Image.fromarray(grey) if mode == "I;16" else picture.convert(mode)
    options = {} if rows_per_strip is None else {"tiffinfo": {278: rows_per_strip}}
    for predictor in (1, 2) if mode in ("RGB", "L") else (1,):
        tags = {**options.get("tiffinfo", {}), 317: predictor}
        deflated = open_image(tiff(picture, tiffinfo=tags))
        raw = open_image(tiff(picture, compression="raw", **options))
        np.testing.assert_array_equal(deflated.pixels, raw.pixels)


def test_a_damaged_strip_is_refused() -> None:
    rng = random.Random(0)
    for seed in range(20):
        data = tiff(photograph(seed, 120), tiffinfo={278: 40})
        start, end = pieces(data)[seed % 3]
        middle = (start + end) // 2
        spoiled = {
            "zeros": data[:middle] + bytes(end - middle) + data[end:],
            "bits": data[:middle]
            + bytes(byte ^ 0x5A for byte in data[middle : middle + 50])
            + data[middle + 50 :],
            "one byte": data[:middle] + bytes([data[middle] ^ (1 << rng.randrange(8))]) + data[middle + 1 :],
            "checksum": data[: end - 1] + bytes([data[end - 1] ^ 1]) + data[end:],
        }
        for kind, content in spoiled.items():
            with pytest.raises(ImageRejected) as refusal:
                open_image(content)
            assert refusal.value.reason in (RejectionReason.BROKEN, RejectionReason.TRUNCATED), kind


def test_a_strip_that_ends_early_is_truncated() -> None:
    data = tiff(photograph(1, 120), tiffinfo={278: 120})
    ((start, end),) = pieces(data)
    length = (end - start).to_bytes(4, "little")
    assert data.count(length) == 1
    with pytest.raises(ImageRejected) as refusal:
        open_image(data.replace(length, ((end - start) // 2).to_bytes(4, "little")))
    assert refusal.value.reason == RejectionReason.TRUNCATED


def with_shared_strips(data: bytes) -> bytes:
    """Return the file with all strips beginning at byte 8, each half as long as the file."""
    directory, changed = headers._read_directory(data), bytearray(data)
    for tag, value in ((273, 8), (279, len(data) // 2)):
        _, count, kind = directory.raw_value(tag)
        (start,) = struct.unpack_from("<8xI", directory.entries[tag])
        code, size = {3: ("H", 2), 4: ("I", 4)}[kind]
        changed[start : start + count * size] = struct.pack(f"<{count}{code}", *[value] * count)
    return bytes(changed)


def test_files_that_would_inflate_for_ever_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "check_deflated", lambda *_: pytest.fail("inflated"))
    many_samples = made_tiff("<", 64, 64, 8, 1, zlib.compress(bytes(10_000)), t259=8, t277=60_000)
    shared = with_shared_strips(tiff(photograph(0, 120), tiffinfo={278: 1}))
    for content in (many_samples, shared):
        with pytest.raises(ImageRejected) as refusal:
            open_image(content)
        assert refusal.value.reason == RejectionReason.BROKEN
