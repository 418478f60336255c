"""Image files made byte by byte or by Pillow, for the tests of the gate."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def speckled(width: int = 40, height: int = 32, seed: int = 0, channels: int = 3) -> Image.Image:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def save_noise(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    speckled(16, 12, seed).save(path)
    return path


def flat(colour: object, mode: str = "RGB", size: tuple[int, int] = (16, 16)) -> Image.Image:
    return Image.new(mode, size, colour)  # type: ignore[arg-type]


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    """Write a PNG by hand: `rows` are the bytes of all lines, unfiltered."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    stride = len(rows) // height if rows else 0
    body = b"".join(b"\0" + rows[i * stride : (i + 1) * stride] for i in range(height if rows else 0))
    pixels = chunk(b"IDAT", zlib.compress(body))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + pixels + chunk(b"IEND", b"")


def tiff(order: str, width: int, height: int, bits: int, photometric: int, pixels: bytes, **more: int) -> bytes:
    """Write an uncompressed one-strip grey TIFF by hand; `more` are further tags, as t<number>=value."""
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1, 278: height}
    tags |= {279: len(pixels)} | {int(key[1:]): value for key, value in more.items()}
    tags[273] = tags[273] or 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(f"{order}IH", 8, len(tags)) + entries + bytes(4) + pixels


def webp_bomb() -> bytes:
    """34 bytes that claim 16,384 x 16,384 pixels."""
    body = b"WEBPVP8L" + struct.pack("<IBI", 14, 0x2F, (1 << 28) - 1) + bytes(9)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def frames(format: str) -> bytes:
    return encoded(speckled(), format, save_all=True, append_images=[speckled(seed=1), speckled(seed=2)])


def with_byte(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + bytes([value]) + data[at + 1 :]


def orientation_exif(value: int) -> bytes:
    exif = Image.Exif()
    exif[274] = value
    exif[271] = "camera"
    return exif.tobytes()


def icc(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """Write an ICC version 2 display profile by hand."""
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    header = struct.pack(">I4xI4s4s4s12x4s", start + len(body), 0x02100000, b"mntr", space, b"XYZ ", b"acsp")
    header += bytes(28) + xyz(0.9642, 1.0, 0.8249)[8:]
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))


ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
GAMMA = b"curv" + bytes(4) + struct.pack(">IH", 1, 0x0233)
ADOBE_RGB = icc(
    b"RGB ",
    {
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 6) + b"Adobe\0" + bytes(78),
    }
    | {name + b"XYZ": xyz(*column) for name, column in zip((b"r", b"g", b"b"), ADOBE, strict=True)}
    | {name + b"TRC": GAMMA for name in (b"r", b"g", b"b")},
)
GREY_LINEAR = icc(b"GRAY", {b"wtpt": xyz(0.9642, 1.0, 0.8249), b"kTRC": b"curv" + bytes(8)})
