"""HEIC and AVIF files: their boxes are read before a decoder runs, and must say all that a decoder will allocate.

Boxes: ISO/IEC 14496-12; pictures in them: ISO/IEC 23008-12. A picture is one coded item, or a grid of such tiles. The
sizes that the boxes state are compared with those in the coded data (`dermkit.images.coded_sizes`), since a decoder
believes the latter.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from types import MappingProxyType

from PIL import features

from dermkit.errors import RejectionReason
from dermkit.images.coded_sizes import av1_sizes, hevc_sizes
from dermkit.images.image_header import MAX_PIXELS, MAX_SIDE, HeaderRejected, ImageHeader, check_size

MAX_BOXES = 10_000
"""Boxes, items and extents of one file; a telephone's photograph of 48 megapixels has about 200."""
_CODED = MappingProxyType({b"hvc1": "HEIC", b"av01": "AVIF"})
_CONFIGURATION = MappingProxyType({b"hvc1": b"hvcC", b"av01": b"av1C"})
_HDR_CURVES = frozenset({16, 18})
"""Transfer curves PQ and HLG (ITU-T H.273): their values are no sRGB, and 8 bits cannot hold them."""
_SRGB_PRIMARIES = frozenset({1, 2})
"""Colour primaries of sRGB, and unknown ones (H.273)."""
_ORIENTATIONS = MappingProxyType(
    {
        (0, None): 1, (1, None): 8, (2, None): 3, (3, None): 6,
        (0, 0): 4, (1, 0): 5, (2, 0): 2, (3, 0): 7,
        (0, 1): 2, (1, 1): 7, (2, 1): 4, (3, 1): 5,
    }
)  # fmt: skip
"""(quarter turns against the clock, mirror axis: 0 top to bottom, 1 left to right) -> EXIF's orientation."""


@dataclass(frozen=True)
class _Box:
    """A box: its kind, and where its content lies in the file."""

    kind: bytes
    start: int
    end: int


@dataclass
class _Item:
    """An item of the file: its kind, where its bytes lie, and its properties in order."""

    kind: bytes
    extents: list[tuple[int, int]] = field(default_factory=list)
    properties: list[_Box] = field(default_factory=list)

    def property(self, kind: bytes) -> _Box | None:
        """Return the item's first property of a kind."""
        return next((box for box in self.properties if box.kind == kind), None)


@cache
def can_read(format_name: str) -> bool:
    """Return whether a decoder of HEIC (pillow-heif) or AVIF (Pillow's own) is installed."""
    return bool(features.check("avif")) if format_name == "AVIF" else find_spec("pillow_heif") is not None


def read_heif(data: bytes) -> ImageHeader:
    """Check the boxes of a HEIC or AVIF file; raises `HeaderRejected`.

    width, height of the result are those that the decoder gives: libheif turns the picture itself, Pillow's AVIF reader
    does not, so `orientation` says it.
    """
    picture = _Picture(data)
    coded, format_name = picture.coded_items()
    if not can_read(format_name):
        cure = (
            "`pip install pillow-heif` to read it" if format_name == "HEIC" else "install a Pillow that reads it"
        )
        raise HeaderRejected(
            RejectionReason.FORMAT_NOT_ALLOWED, f"{format_name}; {cure}, or save it as JPEG or PNG"
        )
    width, height = picture.cropped_size(format_name)
    check_size(width, height)
    _check_coded(picture, coded)
    orientation, notes = picture.orientation(), (*picture.depth_notes(), *picture.colour_notes())
    if format_name == "HEIC" and orientation != 1:
        width, height = (height, width) if orientation >= 5 else (width, height)
        orientation, notes = 1, (*notes, "the file's turn applied")
    # pillow-heif scales grey of more than 8 bits to 16.
    return ImageHeader(format_name, width, height, data, orientation=orientation, bits=16, notes=notes)


def _check_coded(picture: "_Picture", coded: list[_Item]) -> None:
    """Check that each coded item has the size that the boxes state, and all together no more pixels than allowed."""
    n_pixels = 0
    for item in coded:
        width, height = picture.size(item)
        n_pixels += width * height
        if max(width, height) > MAX_SIDE or n_pixels > 2 * MAX_PIXELS:  # a picture with an opacity of its size
            raise HeaderRejected(RejectionReason.TOO_LARGE, f"its parts have more than {2 * MAX_PIXELS:,} pixels")
        coded_data = b"".join(picture.data[start:end] for start, end in item.extents)
        configuration = item.property(_CONFIGURATION[item.kind])
        if configuration is None:
            raise HeaderRejected(RejectionReason.BROKEN, "a part without the settings of its decoder")
        read_sizes = hevc_sizes if item.kind == b"hvc1" else av1_sizes
        try:
            sizes = list(read_sizes(picture.data[configuration.start : configuration.end], coded_data))
        except ValueError as error:
            raise HeaderRejected(RejectionReason.BROKEN, str(error)) from None
        for size in sizes:
            if (size.width, size.height) != (width, height):
                raise HeaderRejected(
                    RejectionReason.BROKEN, f"two sizes: {width} x {height} and {size.width} x {size.height}"
                )
            # Frames are coded in blocks of at most 64 pixels.
            if size.coded_width > width + 64 or size.coded_height > height + 64:
                raise HeaderRejected(RejectionReason.BROKEN, "a coded picture that is larger than it says")


class _Picture:
    """The primary picture of a file, with all items of its `meta` box."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._n_boxes = 0
        top = list(self._boxes(0, len(data)))
        if any(box.kind == b"moov" for box in top):
            raise HeaderRejected(RejectionReason.ANIMATED, "a sequence of pictures")
        meta = [box for box in top if box.kind == b"meta"]
        if len(meta) != 1:
            raise HeaderRejected(RejectionReason.BROKEN, f"{len(meta)} `meta` boxes")
        boxes = {box.kind: box for box in self._boxes(meta[0].start + 4, meta[0].end)}
        if not {b"pitm", b"iinf", b"iloc", b"iprp"} <= boxes.keys():
            raise HeaderRejected(RejectionReason.BROKEN, "no primary picture")
        self.items = self._read_items(boxes[b"iinf"])
        self._read_locations(boxes[b"iloc"], boxes.get(b"idat"))
        self._read_properties(boxes[b"iprp"])
        self.references = self._read_references(boxes.get(b"iref"))
        version, primary_id = data[boxes[b"pitm"].start], boxes[b"pitm"].start + 4
        self.primary_id = self._number(primary_id, 2 if version == 0 else 4)
        if self.primary_id not in self.items:
            raise HeaderRejected(RejectionReason.BROKEN, "the primary picture is not there")
        self.primary = self.items[self.primary_id]
        # What the picture is made of: the tiles of a grid, or itself.
        self.parts = self._tiles() if self.primary.kind == b"grid" else [self.primary]

    def coded_items(self) -> tuple[list[_Item], str]:
        """Return every coded item of the file but previews, and the format of the primary one.

        Opacity, depth and what else there is may be decoded with the picture; previews are not, and cameras
        code them larger than they say.
        """
        kinds = {item.kind for item in self.parts}
        if len(kinds) != 1 or not kinds <= _CODED.keys():
            names = ", ".join(sorted(kind.decode("latin-1") for kind in kinds))
            raise HeaderRejected(RejectionReason.FORMAT_NOT_ALLOWED, f"a picture of kind {names}; save it as JPEG")
        preview_ids = {source for (kind, source), _ in self.references.items() if kind == b"thmb"} - {
            self.primary_id
        }
        others = [
            item for item_id, item in self.items.items() if item_id not in preview_ids and item.kind in _CODED
        ]
        return others, _CODED[kinds.pop()]

    def _tiles(self) -> list[_Item]:
        """Return the tiles of the primary grid, after a check of their number and of its size."""
        tile_ids = self.references.get((b"dimg", self.primary_id), [])
        grid = b"".join(self.data[start:end] for start, end in self.primary.extents)
        wide, rows, columns = grid[1] & 1, grid[2] + 1, grid[3] + 1
        size = struct.unpack_from(">II" if wide else ">HH", grid, 4)
        tiles = [self.items[tile_id] for tile_id in tile_ids if tile_id in self.items]
        if len(tiles) != rows * columns or len(tile_ids) != len(tiles):
            raise HeaderRejected(RejectionReason.BROKEN, f"{len(tiles)} tiles for {rows} x {columns}")
        tile_sizes = {self.size(tile) for tile in tiles}
        width, height = next(iter(tile_sizes))
        if len(tile_sizes) > 1 or not (
            size == self.size(self.primary)
            and width * (columns - 1) < size[0] <= width * columns
            and height * (rows - 1) < size[1] <= height * rows
        ):
            raise HeaderRejected(RejectionReason.BROKEN, f"tiles that do not make {size[0]} x {size[1]} pixels")
        return tiles

    def size(self, item: _Item) -> tuple[int, int]:
        """Return width and height in pixels that the boxes state for an item."""
        box = item.property(b"ispe")
        if box is None:
            raise HeaderRejected(RejectionReason.BROKEN, "a picture without a size")
        width, height = struct.unpack_from(">II", self.data, box.start + 4)
        return width, height

    def cropped_size(self, format_name: str) -> tuple[int, int]:
        """Return width and height of the primary picture after its crop, which libheif makes and Pillow does not."""
        size, crop = self.size(self.primary), self.primary.property(b"clap")
        if crop is None:
            return size
        numbers = struct.unpack_from(">8I", self.data, crop.start)
        width, height = numbers[0], numbers[2]
        if format_name == "AVIF" or numbers[1] != 1 or numbers[3] != 1 or width > size[0] or height > size[1]:
            raise HeaderRejected(RejectionReason.FORMAT_NOT_ALLOWED, "a cropped picture; save it as JPEG")
        return width, height

    def orientation(self) -> int:
        """Return the primary picture's turn and mirror as EXIF's orientation, 1 = upright."""
        turn, mirror = self.primary.property(b"irot"), self.primary.property(b"imir")
        order = [box.kind for box in self.primary.properties if box.kind in (b"irot", b"imir")]
        if len(order) != len(set(order)) or order == [b"imir", b"irot"]:
            raise HeaderRejected(RejectionReason.FORMAT_NOT_ALLOWED, "turned and mirrored twice; save it as JPEG")
        quarters = self.data[turn.start] & 3 if turn else 0
        return _ORIENTATIONS[quarters, self.data[mirror.start] & 1 if mirror else None]

    def depth_notes(self) -> tuple[str, ...]:
        """Return that decoders scale colours of more than 8 bits to 8, where the file has such."""
        box = self.primary.property(b"pixi")
        depths = self.data[box.start + 5 : box.end] if box else b""
        return (f"{max(depths)}-bit colours scaled to 8 bits",) if len(depths) > 1 and max(depths) > 8 else ()

    def colour_notes(self) -> tuple[str, ...]:
        """Return what is assumed of the colours; raises `HeaderRejected` for those of high dynamic range.

        Cameras state the colours of a grid with its tiles.
        """
        boxes = [box for item in (self.primary, *self.parts) for box in item.properties if box.kind == b"colr"]
        colours = {self.data[box.start : box.end] for box in boxes}
        for colour in colours:
            if colour[:4] == b"nclx":
                primaries, curve = struct.unpack_from(">HH", colour, 4)
                if curve in _HDR_CURVES:
                    raise HeaderRejected(
                        RejectionReason.UNDEFINED_PIXELS, "colours of high dynamic range; save it as JPEG"
                    )
                has_profile = any(other[:4] in (b"prof", b"rICC") for other in colours)
                if primaries not in _SRGB_PRIMARIES and not has_profile:
                    return (f"colour primaries {primaries} taken for those of sRGB",)
        return ()

    # Reading of boxes ---------------------------------------------------------------------------------------------

    def _count(self, n: int = 1) -> None:
        self._n_boxes += n
        if self._n_boxes > MAX_BOXES:
            raise HeaderRejected(RejectionReason.BROKEN, f"more than {MAX_BOXES:,} boxes")

    def _number(self, offset: int, length: int) -> int:
        """Return an unsigned number of so many bytes, 0 for none."""
        if offset + length > len(self.data):
            raise HeaderRejected(RejectionReason.TRUNCATED, "ends inside a box")
        return int.from_bytes(self.data[offset : offset + length], "big")

    def _boxes(self, start: int, end: int) -> Iterator[_Box]:
        """Yield the boxes between two positions."""
        while start + 8 <= end:
            self._count()
            length, header = self._number(start, 4), 8
            if length == 1:
                length, header = self._number(start + 8, 8), 16
            length = length or end - start
            if length < header:
                raise HeaderRejected(RejectionReason.BROKEN, "a box that cannot be")
            if start + length > end:
                raise HeaderRejected(RejectionReason.TRUNCATED, "ends inside a box")
            yield _Box(self.data[start + 4 : start + 8], start + header, start + length)
            start += length

    def _read_items(self, box: _Box) -> dict[int, _Item]:
        items: dict[int, _Item] = {}
        count_length = 2 if self.data[box.start] == 0 else 4
        for entry in self._boxes(box.start + 4 + count_length, box.end):
            version = self.data[entry.start]
            if entry.kind != b"infe" or version not in (2, 3):
                raise HeaderRejected(RejectionReason.BROKEN, "an item of an unknown form")
            id_length = 2 if version == 2 else 4
            item_id, kind_start = self._number(entry.start + 4, id_length), entry.start + 6 + id_length
            if item_id in items:
                raise HeaderRejected(RejectionReason.BROKEN, f"item {item_id} twice")
            if self._number(entry.start + 4 + id_length, 2):
                raise HeaderRejected(RejectionReason.FORMAT_NOT_ALLOWED, "a protected picture")
            items[item_id] = _Item(self.data[kind_start : kind_start + 4])
        return items

    def _read_locations(self, box: _Box, idat: _Box | None) -> None:
        """Read where each item lies; raises `HeaderRejected` for one that is not in this file."""
        version, position = self.data[box.start], box.start + 6
        offset_length, length_length = self.data[box.start + 4] >> 4, self.data[box.start + 4] & 15
        base_length, index_length = self.data[box.start + 5] >> 4, (self.data[box.start + 5] & 15) * (version > 0)
        id_length = 4 if version == 2 else 2
        n_items, position = self._number(position, id_length), position + id_length
        for _ in range(n_items):
            self._count()
            item_id, position = self._number(position, id_length), position + id_length
            method = self._number(position, 2) & 15 if version else 0
            position += 2 if version else 0
            reference, base = self._number(position, 2), self._number(position + 2, base_length)
            n_extents = self._number(position + 2 + base_length, 2)
            position += 4 + base_length
            extents = []
            for _ in range(n_extents):
                self._count()
                offset = base + self._number(position + index_length, offset_length)
                length = self._number(position + index_length + offset_length, length_length)
                position += index_length + offset_length + length_length
                extents.append(self._extent(offset, length, idat if method == 1 else None))
            if reference or method > 1 or position > box.end:
                raise HeaderRejected(RejectionReason.BROKEN, "an item that lies elsewhere")
            if item_id in self.items:
                self.items[item_id].extents = extents

    def _extent(self, offset: int, length: int, idat: _Box | None) -> tuple[int, int]:
        start, limit = (idat.start + offset, idat.end) if idat else (offset, len(self.data))
        end = start + length if length else limit
        if not start <= end <= limit:
            raise HeaderRejected(RejectionReason.TRUNCATED, "pixels point beyond the end")
        return start, end

    def _read_properties(self, box: _Box) -> None:
        boxes = {inner.kind: inner for inner in self._boxes(box.start, box.end)}
        if not {b"ipco", b"ipma"} <= boxes.keys():
            raise HeaderRejected(RejectionReason.BROKEN, "no properties")
        properties = list(self._boxes(boxes[b"ipco"].start, boxes[b"ipco"].end))
        start = boxes[b"ipma"].start
        id_length, index_length = (4 if self.data[start] else 2), 1 + (self.data[start + 3] & 1)
        position = start + 8
        for _ in range(self._number(start + 4, 4)):
            self._count()
            item_id, n_properties = self._number(position, id_length), self._number(position + id_length, 1)
            position += id_length + 1
            for _ in range(n_properties):
                self._count()
                index = self._number(position, index_length) & (0x7FFF if index_length == 2 else 0x7F)
                position += index_length
                if index > len(properties):
                    raise HeaderRejected(RejectionReason.BROKEN, "a property that is not there")
                if index and item_id in self.items:
                    self.items[item_id].properties.append(properties[index - 1])

    def _read_references(self, box: _Box | None) -> Mapping[tuple[bytes, int], list[int]]:
        """Return (kind, item) -> the items that it refers to."""
        references: dict[tuple[bytes, int], list[int]] = {}
        if box is None:
            return references
        id_length = 4 if self.data[box.start] else 2
        for entry in self._boxes(box.start + 4, box.end):
            n_items = self._number(entry.start + id_length, 2)
            self._count(n_items)
            first = entry.start + id_length + 2
            references[entry.kind, self._number(entry.start, id_length)] = [
                self._number(first + index * id_length, id_length) for index in range(n_items)
            ]
        return references
