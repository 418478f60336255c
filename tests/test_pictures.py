"""Pictures for people hold pixels and nothing else, and captions stay under their picture."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from dermkit.errors import DataError, OutputError
from dermkit.render.sheets import Tile, contact_sheet, data_uri, jpeg_bytes, save_png, thumbnail


def painted(height: int = 30, width: int = 60, value: int = 120) -> Any:
    return np.full((height, width, 3), value, np.uint8)


def talkative() -> Image.Image:
    """A picture that carries EXIF, a comment, a profile and text."""
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[271] = "SECRET camera"
    Image.fromarray(painted()).save(buffer, "JPEG", exif=exif, comment=b"SECRET", icc_profile=b"SECRET" * 30)
    image = Image.open(buffer)
    image.load()
    assert {"exif", "comment", "icc_profile"} <= image.info.keys()
    image.info["Title"] = "SECRET"
    return image


def test_thumbnail_keeps_the_aspect() -> None:
    assert thumbnail(painted(300, 600), 96).size == (96, 48)
    assert thumbnail(painted(20, 10), 96).size == (48, 96)
    assert thumbnail(painted(1, 500), 96).size == (96, 1)
    assert np.asarray(thumbnail(painted(), 50)).tolist() == np.full((25, 50, 3), 120).tolist()


def test_nothing_but_pixels_travels(tmp_path: Path) -> None:
    save_png(talkative(), tmp_path / "sheet.png")
    for data in (jpeg_bytes(talkative()), (tmp_path / "sheet.png").read_bytes()):
        assert b"SECRET" not in data
        image = Image.open(io.BytesIO(data))
        assert not image.getexif()
        assert not {"exif", "comment", "icc_profile", "Title"} & image.info.keys()
    with Image.open(tmp_path / "sheet.png") as written:
        assert isinstance(written, PngImagePlugin.PngImageFile)
        assert np.abs(np.asarray(written).astype(int) - 120).max() <= 1


def test_data_uri_is_a_small_jpeg() -> None:
    head, _, body = data_uri(painted(600, 800), 96).partition(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(body))) as image:
        assert (image.format, image.size) == ("JPEG", (96, 72))


def test_sheet_places_tiles_in_rows_with_borders() -> None:
    tiles = [
        Tile(painted(64, 64, 40 * i), f"n{i}", colour)
        for i, colour in enumerate(["#ff0000", "#00ff00", "#0000ff"])
    ]
    sheet = np.asarray(contact_sheet(tiles, columns=2, edge=64))
    cell, gap = 64 + 2 * 3, 12
    assert sheet.shape[1] == gap + 2 * (cell + gap)
    assert sheet[gap, gap].tolist() == [255, 0, 0]
    assert sheet[gap + 3, gap + 3].tolist() == [0, 0, 0]
    assert sheet[gap, gap + cell + gap].tolist() == [0, 255, 0]
    below = np.flatnonzero((sheet[:, gap] == (0, 0, 255)).all(axis=1))
    assert below[-1] - below[0] + 1 == cell
    assert below[0] > gap + cell
    assert (sheet[below[0], gap + cell + gap :] == 255).all()  # the place of a fourth tile is empty


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=300), st.sampled_from([48, 128]))
def test_captions_stay_under_their_picture(caption: str, side: int) -> None:
    sheet = np.asarray(contact_sheet([Tile(painted(), caption)] * 2, columns=2, edge=side))
    cell = side + 6
    lines = max(11, round(side * 0.1)) * 1.3 * 4
    assert sheet.shape[0] <= 12 + cell + 4 + lines + 12 + 4
    assert (sheet[:, :11] == 255).all()
    assert (sheet[:, 12 + cell + 2 : 12 + cell + 11] == 255).all()
    assert (sheet[-6:] == 255).all()


def ink(caption: str, side: int = 128) -> int:
    sheet = contact_sheet([Tile(painted(), caption)], columns=1, edge=side)
    return int((np.asarray(sheet)[12 + side + 8 :] < 128).sum())


def test_long_captions_are_wrapped_and_cut() -> None:
    heights = [
        contact_sheet([Tile(painted(), text)], columns=1).height for text in ("a", "a\nb", "word " * 12, "x" * 999)
    ]
    assert heights[0] < heights[1] < heights[2] <= heights[3]
    assert contact_sheet([Tile(painted(), "x" * 99_999)], columns=1).height == heights[3]
    assert ink("melanoma") > 0
    assert ink("nävus") > ink("navus") > 0  # accents are drawn, in a font that has them


def test_title_and_empty_sheet() -> None:
    plain = contact_sheet([Tile(painted(), "a")], columns=4)
    titled = contact_sheet([Tile(painted(), "a")], columns=4, title="Worst mistakes on the test images")
    assert titled.width == plain.width
    assert titled.height > plain.height
    assert contact_sheet([], columns=4, title="No mistakes").height > 16
    assert (np.asarray(contact_sheet([], columns=4)) == 255).all()


def test_wrong_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        thumbnail(np.zeros((8, 8), np.uint8))
    with pytest.raises(DataError):
        contact_sheet([], columns=0)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        save_png(thumbnail(painted()), tmp_path / "file" / "sheet.png")
