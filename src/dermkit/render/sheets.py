"""Thumbnails and contact sheets. Every file is encoded anew from pixels, so no metadata of a patient is copied.

Pixels are (H, W, 3) uint8 RGB.
"""

import base64
import io
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dermkit.errors import DataError, printable
from dermkit.files import write_bytes

_BORDER = 3  # width of a tile's coloured border, in pixels
_GAP = 12  # between tiles, in pixels
_CAPTION_LINES = 4  # a longer caption ends in an ellipsis
_LONG_CAPTION_LINES = 12  # the same, on a sheet with a note
_NOTE_COLUMNS = 3  # a sheet with a note is at least as wide as this many tiles
_NOTE_LINES = 24  # a longer note ends in an ellipsis
_PAPER, _INK, _LIGHT_GREY = "#ffffff", "#222222", "#f1f1f1"

_Pixels = NDArray[np.uint8]
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, eq=False)
class Tile:
    """An image of a contact sheet.

    pixels: (H, W, 3) uint8 RGB. caption: may hold line breaks. colour: of the border, as Pillow reads colours.
    """

    pixels: _Pixels
    caption: str
    colour: str = "#333333"


@dataclass(frozen=True)
class _FontMetrics:
    font: _Font
    line_height: int  # height of a line in pixels
    signs: frozenset[int]  # code points that the font draws

    def wrap(self, text: str, width: int, max_lines: int) -> list[str]:
        """Break a text into at most `max_lines` lines of `width` pixels; a longer text ends in an ellipsis."""
        text_lines = (
            line
            for paragraph in _drawable(text, self.signs).split("\n")
            for line in self._split_lines(paragraph, width)
        )
        wrapped_lines = list(islice(text_lines, max_lines + 1))
        if len(wrapped_lines) <= max_lines:
            return wrapped_lines
        return [*wrapped_lines[: max_lines - 1], self._shorten(wrapped_lines[max_lines - 1], width)]

    def _split_lines(self, paragraph: str, width: int) -> Iterator[str]:
        line = ""
        for word in paragraph.split():
            candidate = f"{line} {word}" if line else word
            if self._fits(candidate, width):
                line = candidate
                continue
            if line:
                yield line
            line = word
            while not self._fits(line, width) and len(line) > 1:
                n_fitting = self._break_at(line, width)
                yield line[:n_fitting]
                line = line[n_fitting:]
        yield line

    def _fits(self, text: str, width: int) -> bool:
        # A letter is at least one pixel wide, so a text with more letters than pixels is not measured.
        return len(text) <= width and self.font.getlength(text) <= width

    def _break_at(self, word: str, width: int) -> int:
        """Return how many characters fit, preferably up to a `_`, `-`, `/` or `.`, since file names have no spaces."""
        n_fitting = max((n for n in range(1, min(len(word), width)) if self._fits(word[:n], width)), default=1)
        after_sign = max(word.rfind(sign, 0, n_fitting) for sign in "_-/.") + 1
        return after_sign if after_sign > n_fitting // 2 else n_fitting

    def _shorten(self, line: str, width: int) -> str:
        while line and self.font.getlength(line + "…") > width:
            line = line[:-1]
        return line.rstrip() + "…"


def thumbnail(pixels: _Pixels, edge: int = 96) -> Image.Image:
    """Return the image scaled so that its longer side is `edge` pixels. pixels: (H, W, 3) uint8 RGB.

    Raises `DataError` for another shape or dtype.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise DataError(f"pixels are {pixels.shape} {pixels.dtype}, expected (H, W, 3) uint8")
    height, width = pixels.shape[:2]
    scale = edge / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    # `reducing_gap` averages blocks first: no visible difference, several times faster on photographs.
    return Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def jpeg_bytes(picture: _Pixels | Image.Image, quality: int = 80) -> bytes:
    """Return an image as a JPEG file without metadata. picture: (H, W, 3) uint8 RGB, or a Pillow image."""
    buffer = io.BytesIO()
    _pixels_only(picture).save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def data_uri(pixels: _Pixels, edge: int = 96) -> str:
    """Return a thumbnail as `data:image/jpeg;base64,...`, to embed it in a page. pixels: (H, W, 3) uint8 RGB."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg_bytes(thumbnail(pixels, edge))).decode("ascii")


def png_bytes(image: Image.Image, dpi: float | None = None) -> bytes:
    """Return an image as an RGB PNG file without metadata but `dpi`."""
    buffer = io.BytesIO()
    resolution = {} if dpi is None else {"dpi": (dpi, dpi)}
    # Not `optimize`: it saved 2 % of the bytes and took three times as long. zlib's level 4 takes 40 % of the time of
    # its default, 6, for 5 % more bytes.
    _pixels_only(image).save(buffer, "PNG", compress_level=4, **resolution)
    return buffer.getvalue()


def save_png(image: Image.Image, path: Path) -> None:
    """Write an image as a PNG without metadata, crash-safely; raises `OutputError`."""
    write_bytes(path, png_bytes(image))


def _pixels_only(picture: _Pixels | Image.Image) -> Image.Image:
    """Return an image without its metadata: Pillow copies comments and profiles when it saves."""
    pixels = np.asarray(picture.convert("RGB")) if isinstance(picture, Image.Image) else picture
    return Image.fromarray(pixels)


def contact_sheet(
    tiles: Sequence[Tile], *, columns: int, edge: int = 128, title: str = "", note: str = ""
) -> Image.Image:
    """Return one image that shows the tiles in rows, with captions below them.

    columns: tiles per row, at least 1. edge: side of the square that each tile's image fits into, in pixels, at least
    16. note: small print below the title; with a note the sheet is wider and captions may be longer. Raises `DataError`
    for invalid numbers or pixels.
    """
    if columns < 1 or edge < 16:
        raise DataError(f"a sheet of {columns} columns and tiles of {edge} pixels; at least 1 and 16")
    caption_font = _load_font(max(11, round(edge * 0.1)), "".join([note, *(tile.caption for tile in tiles)]))
    title_font = _load_font(max(16, round(edge * 0.15)), title)
    min_columns = min(columns, _NOTE_COLUMNS) if note else 1
    columns = max(1, min(columns, len(tiles)))
    cell_size = edge + 2 * _BORDER
    width = _GAP + max(columns, min_columns) * (cell_size + _GAP)
    max_lines = _LONG_CAPTION_LINES if note else _CAPTION_LINES
    captions = [caption_font.wrap(tile.caption, cell_size, max_lines) if tile.caption else [] for tile in tiles]
    rows = [range(note_top, min(note_top + columns, len(tiles))) for note_top in range(0, len(tiles), columns)]
    heights = [
        cell_size + 4 + caption_font.line_height * max(len(captions[i]) for i in row) + _GAP for row in rows
    ]
    title_lines = title_font.wrap(title, width - 2 * _GAP, 4) if title else []
    note_lines = caption_font.wrap(note, width - 2 * _GAP, _NOTE_LINES) if note else []
    note_top = _GAP + (title_font.line_height * len(title_lines) + _GAP // 2 if title_lines else 0)
    top = note_top + (caption_font.line_height * len(note_lines) + _GAP // 2 if note_lines else 0)

    sheet = Image.new("RGB", (width, top + sum(heights) + (0 if rows else _GAP)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    _write_lines(draw, title_lines, (_GAP, _GAP), title_font)
    _write_lines(draw, note_lines, (_GAP, note_top), caption_font)
    for row, height in zip(rows, heights, strict=True):
        for column, index in enumerate(row):
            left = _GAP + column * (cell_size + _GAP)
            _paste_tile(sheet, tiles[index], left, top, edge)
            _write_lines(draw, captions[index], (left, top + cell_size + 4), caption_font)
        top += height
    return sheet


def _paste_tile(sheet: Image.Image, tile: Tile, left: int, top: int, edge: int) -> None:
    """Draw a tile's border, its background and its image in the middle."""
    sheet.paste(tile.colour, (left, top, left + edge + 2 * _BORDER, top + edge + 2 * _BORDER))
    inner_corner = (left + _BORDER, top + _BORDER)
    sheet.paste(_LIGHT_GREY, (*inner_corner, inner_corner[0] + edge, inner_corner[1] + edge))
    picture = thumbnail(tile.pixels, edge)
    sheet.paste(
        picture, (inner_corner[0] + (edge - picture.width) // 2, inner_corner[1] + (edge - picture.height) // 2)
    )


def _write_lines(
    draw: ImageDraw.ImageDraw, lines: list[str], origin: tuple[int, int], font_metrics: _FontMetrics
) -> None:
    for line_number, text in enumerate(lines):
        draw.text(
            (origin[0], origin[1] + line_number * font_metrics.line_height),
            text,
            fill=_INK,
            font=font_metrics.font,
        )


def _drawable(text: str, signs: frozenset[int]) -> str:
    """Return text in the signs of a font: accents it lacks are dropped, what it lacks stands as its code, `<4E2D>`.

    Two names stay two, which a `?` for each sign would not do.
    """
    return "".join(_drawable_sign(sign, signs) for sign in unicodedata.normalize("NFC", printable(text)))


def _drawable_sign(sign: str, signs: frozenset[int]) -> str:
    if sign == "\n" or ord(sign) in signs:
        return sign
    letters = [letter for letter in unicodedata.normalize("NFKD", sign) if not unicodedata.combining(letter)]
    if letters and all(ord(letter) in signs for letter in letters):
        return "".join(letters)
    return f"<{ord(sign):04X}>"


_ASCII = frozenset(range(32, 127))


def _load_font(size: int, text: str = "") -> _FontMetrics:
    """Return Pillow's own font, or where it lacks signs of the text the font of this machine that has most of them."""
    line_height = round(size * 1.3)
    missing = frozenset(map(ord, unicodedata.normalize("NFC", text))) - _ASCII - {10}
    if not missing:
        return _FontMetrics(ImageFont.load_default(size=size), line_height, _ASCII)
    path, signs = _font_for(missing)
    return _FontMetrics(ImageFont.truetype(path, size), line_height, signs)


@lru_cache(maxsize=64)
def _font_for(missing: frozenset[int]) -> tuple[str, frozenset[int]]:
    """Return the font file with most of these signs, and all that it has; Latin letters and digits it must have."""
    from matplotlib import font_manager  # here: it takes long, and few names need it

    default = str(font_manager.findfont("DejaVu Sans"))
    best_path, best_signs = default, _signs_of(default)
    for path in sorted(map(str, font_manager.findSystemFonts())):
        if missing <= best_signs:
            break
        signs = _signs_of(path)
        if signs >= _ASCII and len(missing & signs) > len(missing & best_signs):
            best_path, best_signs = path, signs
    return best_path, best_signs


@lru_cache(maxsize=4096)
def _signs_of(path: str) -> frozenset[int]:
    """Return the code points that a font draws, none where it cannot be read."""
    from fontTools.ttLib import TTFont  # type: ignore[import-untyped]

    try:
        with TTFont(path, fontNumber=0, lazy=True) as font:
            return frozenset(font.getBestCmap() or ())
    except Exception:  # noqa: BLE001  a font of the machine may be anything
        return frozenset()
