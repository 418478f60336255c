"""Reader of MedMNIST files: arrays of pixels in an .npz, written out as pictures that every other part can open."""

import ast
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dermkit.data.importers.archives import check_total, open_archive, put
from dermkit.data.importers.reader import make_frame
from dermkit.data.importers.records import Note, Rows
from dermkit.errors import DataError
from dermkit.images.headers import MAX_SIDE, MIN_SIDE

SIDES = MappingProxyType({"train": "train", "val": "validation", "test": "test"})
"""Prefix of an array's name -> `given_split`."""
DERMAMNIST = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
"""Class 0 to 6 of DermaMNIST, as its authors number them."""

MOST_IMAGES = 5_000_000
MOST_BYTES = 64 * 1024**3

_HEADER_BYTES = 4096  # the header of a plain array takes 118
_BATCH_BYTES = 64 * 1024**2
_BROKEN = (
    zipfile.BadZipFile, zlib.error, EOFError, ValueError, struct.error, KeyError, NotImplementedError, RuntimeError,
)  # fmt: skip


@dataclass(frozen=True)
class _Side:
    """One side of the file. images: the member, and its shape; labels: (n,) integers."""

    name: str
    images: str
    shape: tuple[int, ...]
    labels: NDArray[np.int64]


def read_medmnist(
    source: Path, folder: Path, *, name: str = "", on_progress: Callable[[int, int], None] | None = None
) -> Rows:
    """Write the images of an .npz as `folder/<side>/<class>/NNNNN.png`, and return their rows.

    No pickle is read: names, types and shapes are judged by the arrays' headers, sizes by the archive's directory,
    before anything is inflated. name: what the file was called. on_progress: called with (images done, in all).
    Raises `DataError` with everything that is wrong.
    """
    name = name or source.name
    with open_archive(source) as packed:
        sides, problems = _sides(packed)
        if problems:
            listed = "\n".join(f"  {problem}" for problem in problems)
            raise DataError(
                f"{name}: {len(problems)} problem{'s' * (len(problems) > 1)}:\n{listed}",
                kept="nothing was written",
                remedy="download the file again; {train,val,test}_{images,labels} are read",
            )
        check_total(source, [packed.getinfo(side.images) for side in sides], folder)
        classes, notes = _class_names(sides, name)
        total = sum(side.shape[0] for side in sides)
        rows: list[tuple[str, str, str]] = []
        for side in sides:
            for path, label in _write(packed, side, classes, folder, name):
                rows.append((path, label, SIDES[side.name]))
                if on_progress:
                    on_progress(len(rows), total)
    paths, labels, given = (list(column) for column in zip(*rows, strict=True))
    frame = make_frame({"path": paths, "label": labels, "given_split": given})
    return Rows(frame, folder, [], notes)


def find_npz(source: Path) -> Path:
    """Return the .npz itself, or the only one in a folder; raises `DataError`."""
    if source.is_dir():
        found = sorted(path for path in source.rglob("*.npz") if path.is_file() and not path.is_symlink())
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "none"
            raise DataError(f"{source}: one .npz is needed, found: {names}", remedy="give the file itself")
        return found[0]
    if not source.is_file():
        raise DataError(f"{source}: does not exist", remedy="give the .npz file")
    return source


# Headers ----------------------------------------------------------------------------------------------------------


def _sides(packed: zipfile.ZipFile) -> tuple[list[_Side], list[str]]:
    problems: list[str] = []
    names = packed.namelist()
    problems += [
        f"{name} is there {names.count(name)} times" for name in sorted(set(names)) if names.count(name) > 1
    ]
    sides = []
    for side in SIDES:
        present = [f"{side}_{what}.npy" in names for what in ("images", "labels")]
        if all(present):
            try:
                sides.append(_side(packed, side))
            except _BROKEN as error:
                problems.append(f"{side}: {' '.join(str(error).split())[:300]}")
        elif any(present):
            problems.append(f"{side}: images and labels are not both there")
    if not sides and not problems:
        problems.append(f"no arrays of images and labels (it holds: {', '.join(names[:20]) or 'nothing'})")
    return sides, problems


def _side(packed: zipfile.ZipFile, name: str) -> _Side:
    """Return a side after its headers were judged; raises one of `_BROKEN`."""
    shape = _check(packed, f"{name}_images.npy", ("|u1",), (3, 4))
    n, height, width, *channels = shape
    if channels not in ([], [1], [3]):
        raise ValueError(f"{name}_images has {channels[0]} channels; 1 or 3 are read")
    if not (MIN_SIDE <= height <= MAX_SIDE and MIN_SIDE <= width <= MAX_SIDE):
        raise ValueError(f"{name}_images are {width} x {height}; {MIN_SIDE} to {MAX_SIDE} a side are read")
    integers = ("|u1", "|i1", "<i2", "<i4", "<i8", "<u2", "<u4", "<u8")
    of_labels = _check(packed, f"{name}_labels.npy", integers, (1, 2))
    if of_labels[1:] not in ((), (1,)):
        raise ValueError(f"{name}_labels is {of_labels}; one class per image is read")
    if of_labels[0] != n or not 0 < n <= MOST_IMAGES:
        raise ValueError(f"{n} images and {of_labels[0]} labels")
    with packed.open(f"{name}_labels.npy") as stream:
        data = stream.read()
    _, _, kind, start = _header(io.BytesIO(data))
    classes = np.frombuffer(data, kind, n, start).astype(np.int64)
    if classes.min() < 0 or classes.max() > 999:
        raise ValueError(
            f"{name}_labels holds the class {int(classes.min())} to {int(classes.max())}; 0 to 999 are read"
        )
    return _Side(name, f"{name}_images.npy", shape, classes)


def _check(
    packed: zipfile.ZipFile, member: str, types: Sequence[str], dimensions: Sequence[int]
) -> tuple[int, ...]:
    """Return an array's shape after type, order and size were checked, without inflating it."""
    info = packed.getinfo(member)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 0x2041:
        raise ValueError(f"{member} is encrypted or packed by an unknown method")
    with packed.open(info) as stream:
        shape, fortran, kind, start = _header(stream)
    if kind.hasobject or kind.str not in types:
        raise ValueError(f"{member} holds {kind}; {', '.join(str(np.dtype(item)) for item in types)} is read")
    if fortran or len(shape) not in dimensions:
        raise ValueError(f"{member} has the shape {shape}{' in Fortran order' * fortran}")
    size = start + int(np.prod([int(side) for side in shape], dtype=object)) * kind.itemsize
    if size != info.file_size or size > MOST_BYTES:
        raise ValueError(f"{member}: its shape {shape} takes {size:,} bytes, the archive says {info.file_size:,}")
    return shape


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic], int]:
    """Return shape, Fortran order, type and the place where the array's bytes begin; raises `ValueError`.

    NumPy's own reader repairs headers of its first years by a tokenizer, which fails in further ways.
    """
    head = stream.read(_HEADER_BYTES)
    lengths = {b"\x93NUMPY\x01\x00": "<H", b"\x93NUMPY\x02\x00": "<I"}
    if head[:8] not in lengths:
        raise ValueError("no array of NumPy's format 1 or 2")
    length = struct.unpack_from(lengths[head[:8]], head, 8)[0]
    start = 8 + struct.calcsize(lengths[head[:8]])
    if start + length > len(head):
        raise ValueError(f"a header of {length:,} bytes; a plain array's takes 118")
    try:
        value = ast.literal_eval(head[start : start + length].decode("latin-1").strip())
        shape, fortran, descr = value["shape"], value["fortran_order"], value["descr"]
        if not re.fullmatch(r"[<>|=]?[biufcSUOVMm]\d{0,4}", descr):
            raise ValueError("a type of several parts, or none")
        kind = np.dtype(descr)
    except (SyntaxError, ValueError, TypeError, KeyError, MemoryError, RecursionError) as error:
        raise ValueError(f"a header that cannot be read: {type(error).__name__}") from error
    sides = shape if isinstance(shape, tuple) else (None,)
    if not all(type(side) is int and side >= 0 for side in sides) or type(fortran) is not bool:
        raise ValueError(f"a header that cannot be read: shape {str(shape)[:60]}")
    return shape, fortran, kind, start + length


# Pictures ---------------------------------------------------------------------------------------------------------


def _class_names(sides: Sequence[_Side], name: str) -> tuple[list[str], list[Note]]:
    """Return the name of each class number: DermaMNIST's where the file is one, else the number itself."""
    present = np.unique(np.concatenate([side.labels for side in sides]))
    seven = len(DERMAMNIST)
    if present.max() < seven and ("derma" in name.lower() or len(present) == seven):
        text = f"Classes 0 to 6 are taken for DermaMNIST's: {', '.join(DERMAMNIST)}."
        return list(DERMAMNIST), [Note("class_names", text, len(present))]
    text = "The file does not name its classes, so they are numbers."
    return [str(number) for number in range(int(present.max()) + 1)], [Note("class_names", text, len(present))]


def _write(
    packed: zipfile.ZipFile, side: _Side, classes: Sequence[str], folder: Path, name: str
) -> "list[tuple[str, str]]":
    """Write a side's pictures; returns (path, label) of each. A picture that is there already is left."""
    n, *shape = side.shape
    each = int(np.prod(shape))
    batch = max(1, _BATCH_BYTES // each)
    rows: list[tuple[str, str]] = []
    try:
        with packed.open(side.images) as stream:
            stream.read(_data_start(packed, side.images))
            for start in range(0, n, batch):
                count = min(batch, n - start)
                pixels = np.frombuffer(_exactly(stream, count * each), np.uint8).reshape(count, *shape)
                for at in range(count):
                    label = classes[int(side.labels[start + at])]
                    path = f"{side.name}/{label}/{start + at:05d}.png"
                    _write_png(folder / path, pixels[at])
                    rows.append((path, label))
    except _BROKEN as error:
        raise DataError(
            f"{name}: {side.images}: {type(error).__name__}: {error}",
            kept=f"the {len(rows)} images before it",
            remedy="download the file again",
        ) from error
    return rows


def _data_start(packed: zipfile.ZipFile, member: str) -> int:
    with packed.open(member) as stream:
        return _header(stream)[3]


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise EOFError("the array ends too early")
    return data


def _write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels).save(
        buffer, "PNG", compress_level=1
    )
    data = buffer.getvalue()
    if path.is_symlink() or not path.is_file() or path.read_bytes() != data:
        put(path, lambda out: out.write(data))
