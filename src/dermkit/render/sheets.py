"""Pictures for people: thumbnails and sheets. Every file is made from pixels, so no EXIF travels."""

import base64
import io
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dermkit.errors import DataError
from dermkit.files import write_with

_BORDER = 3  # pixels of colour around a tile
_GAP = 12
_CAPTION_LINES = 4  # a longer caption ends in an ellipsis
_LONG_CAPTION_LINES = 12  # on a sheet with a note
_NOTE_COLUMNS = 3  # a note needs the width of so many tiles
_PAPER, _INK, _FAINT = "#ffffff", "#222222", "#f1f1f1"

Pixels = NDArray[np.uint8]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, eq=False)
class Tile:
    """One picture of a sheet. pixels: (H, W, 3) uint8. caption: may hold line breaks. colour: of the border."""

    pixels: Pixels
    caption: str
    colour: str = "#333333"


@dataclass(frozen=True)
class _Lettering:
    font: Font
    line: int  # height of a line in pixels

    def wrap(self, text: str, width: int, lines: int) -> list[str]:
        """Break text into at most `lines` lines of `width` pixels; what does not fit ends in an ellipsis."""
        rows = (row for paragraph in _plain(text).split("\n") for row in self._rows(paragraph, width))
        wrapped = list(islice(rows, lines + 1))
        if len(wrapped) <= lines:
            return wrapped
        return [*wrapped[: lines - 1], self._shorten(wrapped[lines - 1], width)]

    def _rows(self, paragraph: str, width: int) -> Iterator[str]:
        row = ""
        for word in paragraph.split():
            joined = f"{row} {word}" if row else word
            if self._fits(joined, width):
                row = joined
                continue
            if row:
                yield row
            row = word
            while not self._fits(row, width) and len(row) > 1:
                fits = self._fitting(row, width)
                yield row[:fits]
                row = row[fits:]
        yield row

    def _fits(self, text: str, width: int) -> bool:
        # A letter is at least a pixel wide: more letters than pixels need no measuring.
        return len(text) <= width and self.font.getlength(text) <= width

    def _fitting(self, word: str, width: int) -> int:
        """Return how many characters fit, preferring a break after `_`, `-`, `/` or `.`: names hold no spaces."""
        fits = max((n for n in range(1, min(len(word), width)) if self._fits(word[:n], width)), default=1)
        at_sign = max(word.rfind(sign, 0, fits) for sign in "_-/.") + 1
        return at_sign if at_sign > fits // 2 else fits

    def _shorten(self, row: str, width: int) -> str:
        while row and self.font.getlength(row + "…") > width:
            row = row[:-1]
        return row.rstrip() + "…"


def thumbnail(pixels: Pixels, side: int = 96) -> Image.Image:
    """Return the picture with its longer side at `side` pixels, aspect kept. pixels: (H, W, 3) uint8."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise DataError(f"pixels are {pixels.shape} {pixels.dtype}, expected (H, W, 3) uint8")
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    # `reducing_gap` averages whole blocks first: as good to the eye, several times faster on photographs.
    return Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def jpeg_bytes(picture: Pixels | Image.Image, quality: int = 80) -> bytes:
    """Return a JPEG of nothing but pixels."""
    buffer = io.BytesIO()
    _bare(picture).save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def data_uri(pixels: Pixels, side: int = 96) -> str:
    """Return a thumbnail as `data:image/jpeg;base64,...`, for a page that must stay one file."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg_bytes(thumbnail(pixels, side))).decode("ascii")


def save_png(image: Image.Image, path: Path) -> None:
    """Write a PNG of nothing but pixels, whole or not at all; raises `OutputError`."""
    # Not `optimize`: a fiftieth fewer bytes took three times as long, a second of scoring 10,000 small images.
    write_with(path, lambda temporary: _bare(image).save(temporary, "PNG"))


def _bare(picture: Pixels | Image.Image) -> Image.Image:
    """Drop what a picture carries beside its pixels: savers copy comments and profiles unasked."""
    pixels = np.asarray(picture.convert("RGB")) if isinstance(picture, Image.Image) else picture
    return Image.fromarray(pixels)


def contact_sheet(
    tiles: Sequence[Tile], *, columns: int, side: int = 128, title: str = "", note: str = ""
) -> Image.Image:
    """Return pictures in rows with captions below and borders in their colours.

    side: of the square that each picture fits into, in pixels. A row is as high as its longest caption. note: small
    print below the title; a sheet that has one is wide enough to read it, and its captions may be longer.
    """
    if columns < 1 or side < 16:
        raise DataError(f"a sheet of {columns} columns and tiles of {side} pixels; at least 1 and 16")
    small, large = _lettering(max(11, round(side * 0.1))), _lettering(max(16, round(side * 0.15)))
    broad = min(columns, _NOTE_COLUMNS) if note else 1
    columns = max(1, min(columns, len(tiles)))
    cell = side + 2 * _BORDER
    width = _GAP + max(columns, broad) * (cell + _GAP)
    most = _LONG_CAPTION_LINES if note else _CAPTION_LINES
    captions = [small.wrap(tile.caption, cell, most) if tile.caption else [] for tile in tiles]
    rows = [range(start, min(start + columns, len(tiles))) for start in range(0, len(tiles), columns)]
    heights = [cell + 4 + small.line * max(len(captions[i]) for i in row) + _GAP for row in rows]
    heading = large.wrap(title, width - 2 * _GAP, 4) if title else []
    below = small.wrap(note, width - 2 * _GAP, 12) if note else []
    start = _GAP + (large.line * len(heading) + _GAP // 2 if heading else 0)
    top = start + (small.line * len(below) + _GAP // 2 if below else 0)

    sheet = Image.new("RGB", (width, top + sum(heights) + (0 if rows else _GAP)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    _write_lines(draw, heading, (_GAP, _GAP), large)
    _write_lines(draw, below, (_GAP, start), small)
    for row, height in zip(rows, heights, strict=True):
        for column, index in enumerate(row):
            left = _GAP + column * (cell + _GAP)
            _place(sheet, tiles[index], left, top, side)
            _write_lines(draw, captions[index], (left, top + cell + 4), small)
        top += height
    return sheet


def _place(sheet: Image.Image, tile: Tile, left: int, top: int, side: int) -> None:
    """Draw the border, a faint ground and the picture in its middle."""
    sheet.paste(tile.colour, (left, top, left + side + 2 * _BORDER, top + side + 2 * _BORDER))
    inner = (left + _BORDER, top + _BORDER)
    sheet.paste(_FAINT, (*inner, inner[0] + side, inner[1] + side))
    picture = thumbnail(tile.pixels, side)
    sheet.paste(picture, (inner[0] + (side - picture.width) // 2, inner[1] + (side - picture.height) // 2))


def _write_lines(draw: ImageDraw.ImageDraw, lines: list[str], at: tuple[int, int], lettering: _Lettering) -> None:
    for number, text in enumerate(lines):
        draw.text((at[0], at[1] + number * lettering.line), text, fill=_INK, font=lettering.font)


def _plain(text: str) -> str:
    """Pillow's own font draws a box for what is not ASCII: accents are dropped, other signs become `?`."""
    decomposed = unicodedata.normalize("NFKD", text)
    letters = "".join(sign for sign in decomposed if not unicodedata.combining(sign))
    return letters.encode("ascii", "replace").decode("ascii")


def _lettering(size: int) -> _Lettering:
    return _Lettering(ImageFont.load_default(size=size), round(size * 1.3))
