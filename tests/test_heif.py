"""HEIC and AVIF: read like other photographs behind the same gate, by what their boxes and coded sizes say."""

import io
import random
import struct
from typing import Any

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from dermkit.errors import ImageRejected, RejectionReason
from dermkit.images import heif
from dermkit.images.coded_sizes import av1_sizes, hevc_sizes
from dermkit.images.decode import LesionImage, open_image
from dermkit.images.headers import read_image_header
from made_images import encoded, flat

TURNS = {
    1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""EXIF's orientation -> what brings the stored picture upright (EXIF 2.32, tag 274)."""
BOTH = ("HEIF", "AVIF")


def quarters(width: int = 204, height: int = 302) -> Image.Image:
    """Return a picture of four colours, whose turns and mirrors all differ."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:150, :100], pixels[150:, :100] = (200, 30, 30), (30, 200, 30)
    pixels[:150, 100:], pixels[150:, 100:] = (30, 30, 200), (220, 220, 40)
    return Image.fromarray(pixels)


def coded(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    """Return a file of the kind; one of HEIF by pillow-heif, which is not registered with Pillow."""
    image = image or quarters()
    if kind == "AVIF":
        return encoded(image, "AVIF", quality=90, **options)
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, format="HEIF", quality=90, **options)
    return buffer.getvalue()


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[274] = orientation
    return block.tobytes()


def difference(image: LesionImage, expected: Image.Image) -> float:
    """Return the mean difference in levels; both codecs lose about one."""
    assert image.pixels.shape == (expected.height, expected.width, 3)
    return float(np.abs(image.pixels.astype(int) - np.asarray(expected.convert("RGB")).astype(int)).mean())


def refusal(data: bytes) -> tuple[RejectionReason, str]:
    with pytest.raises(ImageRejected) as caught:
        open_image(data, name="IMG_0001.HEIC")
    return caught.value.reason, caught.value.detail


# What is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("orientation", TURNS)
def test_a_photograph_is_read_upright(kind: str, orientation: int) -> None:
    image = open_image(coded(kind, exif=exif(orientation)))
    turn = TURNS[orientation]
    assert difference(image, quarters() if turn is None else quarters().transpose(turn)) < 2
    assert image.format == ("HEIC" if kind == "HEIF" else "AVIF")
    assert (image.notes != ()) == (orientation != 1)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("size", [(203, 301), (64, 65), (9, 8)])
def test_odd_sizes_are_whole(kind: str, size: tuple[int, int]) -> None:
    assert open_image(coded(kind, flat("red", size=size))).pixels.shape == (size[1], size[0], 3)


@pytest.mark.parametrize("kind", BOTH)
def test_grey_opacity_and_profiles_are_those_of_other_formats(kind: str) -> None:
    assert difference(open_image(coded(kind, quarters().convert("L"))), quarters().convert("L")) < 2
    clear = quarters().convert("RGBA")
    clear.putalpha(0)
    image = open_image(coded(kind, clear))
    assert image.pixels.min() > 250 and "alpha composited on white" in image.notes


def test_more_than_8_bits_are_scaled_and_noted() -> None:
    grey = np.asarray(quarters().convert("L")).astype(np.uint16) * 257
    image = open_image(coded("HEIF", Image.fromarray(grey)))
    assert image.notes == ("16-bit grey scaled to 8 bits",)
    assert np.abs(image.pixels[..., 0].astype(int) - grey // 257).mean() < 1
    deep = pillow_heif.from_bytes("RGB;16", (204, 302), (np.asarray(quarters()).astype(np.uint16) * 257).tobytes())
    buffer = io.BytesIO()
    deep.save(buffer, format="HEIF", quality=90)
    image = open_image(buffer.getvalue())
    assert image.notes == ("10-bit colours scaled to 8 bits",) and difference(image, quarters()) < 2


def test_a_grid_of_tiles_is_one_photograph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Telephones store 512 x 512 tiles."""
    monkeypatch.setattr(pillow_heif.options, "GRID_TILE_SIZE", 128)
    data = coded("HEIF", quarters(300, 402))
    assert b"grid" in data
    assert difference(open_image(data), quarters(300, 402)) < 2
    one_fewer = data.replace(b"dimg", b"dimx", 1)
    assert refusal(one_fewer) == (RejectionReason.BROKEN, "0 tiles for 4 x 3")


def test_colours_and_previews_of_cameras(monkeypatch: pytest.MonkeyPatch) -> None:
    """The colours of a grid stand with its tiles; a preview may be coded larger than it says, and is not decoded."""
    monkeypatch.setattr(pillow_heif.options, "GRID_TILE_SIZE", 128)
    data = coded("HEIF", quarters(300, 402))
    start = data.index(b"nclx") + 4
    assert (
        refusal(data[:start] + struct.pack(">HH", 9, 16) + data[start + 4 :])[0]
        == RejectionReason.UNDEFINED_PIXELS
    )
    album = pillow_heif.from_pillow(quarters())
    album.info["thumbnails"] = [64]
    buffer = io.BytesIO()
    album.save(buffer, format="HEIF", quality=90)
    data = buffer.getvalue()
    assert b"thmb" in data
    start = data.rindex(b"ispe") + 8
    preview = struct.unpack(">II", data[start : start + 8])
    assert max(preview) <= 64
    larger = data[:start] + struct.pack(">II", preview[0] - 2, preview[1]) + data[start + 8 :]
    assert difference(open_image(larger), quarters()) < 2
    assert refusal(larger.replace(b"thmb", b"cdsc"))[0] == RejectionReason.BROKEN


def test_the_primary_one_of_several_pictures_is_read() -> None:
    album = pillow_heif.from_pillow(quarters())
    album.add_from_pillow(flat("white", size=(64, 64)))
    buffer = io.BytesIO()
    album.save(buffer, format="HEIF", quality=90)
    assert difference(open_image(buffer.getvalue()), quarters()) < 2


def test_without_a_decoder_the_way_on_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heif, "can_read", lambda _format_name: False)
    advice = {"HEIF": "HEIC; `pip install pillow-heif` to read it", "AVIF": "AVIF; install a Pillow that reads it"}
    for kind in BOTH:
        reason, detail = refusal(coded(kind))
        assert (reason, detail) == (
            RejectionReason.FORMAT_NOT_ALLOWED,
            f"{advice[kind]}, or save it as JPEG or PNG",
        )


# What is refused --------------------------------------------------------------------------------------------------


def with_size(data: bytes, width: int, height: int) -> bytes:
    """Return the file with another `ispe`."""
    start = data.index(b"ispe") + 8
    return data[:start] + struct.pack(">II", width, height) + data[start + 8 :]


def with_colours(primaries: int, curve: int) -> bytes:
    data = coded("AVIF")
    start = data.index(b"nclx") + 4
    return data[:start] + struct.pack(">HH", primaries, curve) + data[start + 4 :]


@pytest.mark.parametrize("kind", BOTH)
def test_sizes_that_the_pixels_contradict_are_refused(kind: str) -> None:
    """A decoder allocates what the coded data say, so a small size in the boxes must not hide a large one there."""
    data = coded(kind, flat("red", size=(512, 512)))
    for size in ((16, 16), (512, 511), (1024, 1024)):
        reason, detail = refusal(with_size(data, *size))
        assert reason == RejectionReason.BROKEN and "two sizes" in detail, detail
    assert refusal(with_size(data, 100_000, 100_000))[0] == RejectionReason.TOO_LARGE
    assert refusal(with_size(data, 4, 4))[0] == RejectionReason.TOO_SMALL


def test_coded_bombs_are_refused_before_a_decoder_runs() -> None:
    """Sequence headers of 65,536 x 65,536 (AV1) and 32,768 x 32,768 (HEVC), written bit by bit after the standards."""
    short_header = "000" + "1" + "1" + "00000" + "1111" + "1111" + "1" * 16 + "1" * 16
    bits = short_header.ljust(-(-len(short_header) // 8) * 8, "0")
    unit = int(bits, 2).to_bytes(len(bits) // 8, "big")
    (size,) = av1_sizes(bytes(4), bytes([0x0A, len(unit)]) + unit)
    assert (size.coded_width, size.coded_height) == (65_536, 65_536)
    golomb = f"{'0' * 15}1{'0' * 14}1"[:31]  # 2**15 - 1 + 1, as H.265 9.2 codes it
    parameters = "0000" + "000" + "1" + "0" * 96 + "1" + "010" + golomb * 2 + "0" + "1" * 20
    parameters = parameters.ljust(-(-len(parameters) // 8) * 8, "0")
    body = bytes([0x42, 1]) + int(parameters, 2).to_bytes(len(parameters) // 8, "big")
    escaped = body.replace(b"\0\0\0", b"\0\0\3\0")
    configuration = bytes(21) + b"\3\1\x21" + struct.pack(">HH", 1, len(escaped)) + escaped
    (size,) = hevc_sizes(configuration, b"")
    assert (size.coded_width, size.coded_height) == (32_768, 32_768)


@pytest.mark.parametrize(("primaries", "curve", "reason"), [
    (9, 16, RejectionReason.UNDEFINED_PIXELS), (9, 18, RejectionReason.UNDEFINED_PIXELS), (12, 13, None), (1, 13, None),
])  # fmt: skip
def test_colours_beyond_srgb_are_refused_or_noted(
    primaries: int, curve: int, reason: RejectionReason | None
) -> None:
    data = with_colours(primaries, curve)
    if reason:
        assert refusal(data)[0] == reason
    else:
        notes = open_image(data).notes
        assert notes == ((f"colour primaries {primaries} taken for those of sRGB",) if primaries != 1 else ())


def test_sequences_crops_and_other_pictures_are_refused() -> None:
    moving = encoded(quarters(), "AVIF", save_all=True, append_images=[quarters().rotate(9)])
    assert refusal(moving) == (RejectionReason.ANIMATED, "a sequence of pictures")
    for name in (b"iovl", b"iden", b"jpeg"):
        reason, detail = refusal(coded("AVIF").replace(b"av01Color", name + b"Color"))
        assert reason == RejectionReason.FORMAT_NOT_ALLOWED and name.decode() in detail
    cropped = bytearray(coded("HEIF", quarters(203, 301)))
    start = cropped.index(b"clap") + 4
    cropped[start : start + 4] = struct.pack(">I", 1000)
    assert refusal(bytes(cropped)) == (RejectionReason.FORMAT_NOT_ALLOWED, "a cropped picture; save it as JPEG")


@pytest.mark.parametrize("kind", BOTH)
def test_damaged_boxes_are_refused(kind: str) -> None:
    data = coded(kind)
    for marker in (b"meta", b"pitm", b"iloc", b"iinf", b"iprp", b"ipco", b"ipma", b"ispe", b"hvcC", b"av1C"):
        if marker in data:
            assert refusal(data.replace(marker, b"free", 1))[0] == RejectionReason.BROKEN, marker
    endless = data.replace(b"ispe", b"ispe" + bytes(8), 1)  # shifts what follows
    assert refusal(endless)[0] in RejectionReason
    for cut in (20, 100, 200, len(data) - 100):
        assert refusal(data[:cut])[0] in (RejectionReason.TRUNCATED, RejectionReason.BROKEN), cut
    boxes = data[: data.index(b"ftyp") - 4] + b"".join(struct.pack(">I4s", 8, b"free") for _ in range(20_000))
    assert refusal(data[:32] + boxes)[0] in (RejectionReason.BROKEN, RejectionReason.TRUNCATED)


@pytest.mark.parametrize("kind", BOTH)
def test_every_damaged_file_is_read_or_refused(kind: str) -> None:
    """Bytes of the boxes are changed at random: nothing but `ImageRejected` may come out, whatever the decoders say."""
    data, rng = coded(kind, flat("red", size=(64, 48))), random.Random(kind)
    n_boxes = data.index(b"mdat") if kind == "AVIF" else data.rindex(b"mdat")
    n_refused = 0
    for _ in range(400):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(4, min(n_boxes + 40, len(data)))] = rng.randrange(256)
        try:
            open_image(bytes(damaged))
        except ImageRejected as error:
            n_refused += 1
            assert error.detail
    assert n_refused > 100
    assert read_image_header(data).format in ("HEIC", "AVIF")
