"""Reader of MedMNIST files: writes the arrays of an .npz as PNG files and returns their rows.

An .npz holds, for each split, images (n, height, width[, channels]) uint8 and labels (n,) or (n, 1) integers.
"""

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

from dermkit.data.importers.archives import (
    ENCRYPTION_FLAGS,
    READ_METHODS,
    check_total,
    open_archive,
)
from dermkit.data.importers.extract import write_unsynced
from dermkit.data.importers.reader import make_frame
from dermkit.data.importers.records import Note, Records
from dermkit.errors import DataError
from dermkit.files import walk_files
from dermkit.images.image_header import MAX_SIDE, MIN_SIDE

SPLIT_OF_PREFIX = MappingProxyType({"train": "train", "val": "validation", "test": "test"})
"""Prefix of an array's name -> `given_split`."""
DERMAMNIST_CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
"""Classes 0 to 6 of DermaMNIST (Yang et al. 2023), in its order."""

MAX_NPZ_IMAGES = 5_000_000
"""Per split. The largest MedMNIST set, TissueMNIST, has 236,386 images in all."""
MAX_ARRAY_BYTES = 64 * 1024**3
"""The 89,996 training images of PathMNIST take 13.5 GB at 224 x 224 x 3."""

_HEADER_BYTES = 4096  # the header of a plain array takes 118 bytes
_BATCH_BYTES = 64 * 1024**2
_NPZ_ERRORS = (
    zipfile.BadZipFile, zlib.error, EOFError, ValueError, struct.error, KeyError, NotImplementedError, RuntimeError,
)  # fmt: skip


@dataclass(frozen=True)
class _SplitArrays:
    """The arrays of one split. image_member: name in the archive; shape: of the images; labels: (n,) int64."""

    prefix: str
    image_member: str
    shape: tuple[int, ...]
    labels: NDArray[np.int64]


def read_medmnist(
    source: Path, folder: Path, *, name: str = "", on_progress: Callable[[int, int], None] | None = None
) -> Records:
    """Write the images of an .npz as `folder/<prefix>/<class>/NNNNN.png`, and return their rows.

    No pickle is read: types and shapes are checked in the arrays' headers, sizes in the archive's directory, before
    anything is unpacked. name: the original file name. on_progress: called with (images done, all images). Raises
    `DataError` that lists all problems, and `OutputError`.
    """
    name = name or source.name
    with open_archive(source) as zip_file:
        splits, problems = _read_splits(zip_file)
        if problems:
            problem_lines = "\n".join(f"  {problem}" for problem in problems)
            raise DataError(
                f"{name}: {len(problems)} problem{'s' * (len(problems) > 1)}:\n{problem_lines}",
                outcome="nothing was written",
                remedy="download the file again; {train,val,test}_{images,labels} are read",
            )
        check_total(source, [zip_file.getinfo(split.image_member) for split in splits], folder)
        classes, notes = _class_names(splits, name)
        total = sum(split.shape[0] for split in splits)
        rows: list[tuple[str, str, str]] = []
        for split in splits:
            for path, label in _write_images(zip_file, split, classes, folder, name):
                rows.append((path, label, SPLIT_OF_PREFIX[split.prefix]))
                if on_progress:
                    on_progress(len(rows), total)
    paths, labels, given_splits = (list(column) for column in zip(*rows, strict=True))
    frame = make_frame({"path": paths, "label": labels, "given_split": given_splits})
    return Records(frame, folder, [], notes)


def find_npz(source: Path) -> Path:
    """Return the .npz itself, or the only one below a folder; raises `DataError`."""
    if source.is_dir():
        npz_files = sorted(path for path in walk_files(source) if path.suffix == ".npz")
        if len(npz_files) != 1:
            names = ", ".join(path.name for path in npz_files) or "none"
            raise DataError(f"{source}: one .npz is needed, found: {names}", remedy="give the file itself")
        return npz_files[0]
    if not source.is_file():
        raise DataError(f"{source}: does not exist", remedy="give the .npz file")
    return source


# Headers ----------------------------------------------------------------------------------------------------------


def _read_splits(zip_file: zipfile.ZipFile) -> tuple[list[_SplitArrays], list[str]]:
    problems: list[str] = []
    names = zip_file.namelist()
    problems += [
        f"{name} is there {names.count(name)} times" for name in sorted(set(names)) if names.count(name) > 1
    ]
    splits = []
    for prefix in SPLIT_OF_PREFIX:
        is_present = [f"{prefix}_{array_kind}.npy" in names for array_kind in ("images", "labels")]
        if all(is_present):
            try:
                splits.append(_read_split(zip_file, prefix))
            except _NPZ_ERRORS as error:
                problems.append(f"{prefix}: {' '.join(str(error).split())[:300]}")
        elif any(is_present):
            problems.append(f"{prefix}: images and labels are not both there")
    if not splits and not problems:
        problems.append(f"no arrays of images and labels (it holds: {', '.join(names[:20]) or 'nothing'})")
    return splits, problems


def _read_split(zip_file: zipfile.ZipFile, name: str) -> _SplitArrays:
    """Return a split's arrays after checking their headers; raises one of `_NPZ_ERRORS`."""
    shape = _checked_shape(zip_file, f"{name}_images.npy", ("|u1",), (3, 4))
    n, height, width, *channels = shape
    if channels not in ([], [1], [3]):
        raise ValueError(f"{name}_images has {channels[0]} channels; 1 or 3 are read")
    if not (MIN_SIDE <= height <= MAX_SIDE and MIN_SIDE <= width <= MAX_SIDE):
        raise ValueError(f"{name}_images are {width} x {height}; {MIN_SIDE} to {MAX_SIDE} a side are read")
    integers = ("|u1", "|i1", "<i2", "<i4", "<i8", "<u2", "<u4", "<u8")
    labels_shape = _checked_shape(zip_file, f"{name}_labels.npy", integers, (1, 2))
    if labels_shape[1:] not in ((), (1,)):
        raise ValueError(f"{name}_labels is {labels_shape}; one class per image is read")
    if labels_shape[0] != n or not 0 < n <= MAX_NPZ_IMAGES:
        raise ValueError(f"{n} images and {labels_shape[0]} labels")
    with zip_file.open(f"{name}_labels.npy") as stream:
        data = stream.read()
    _, _, dtype, start = _read_npy_header(io.BytesIO(data))
    labels = np.frombuffer(data, dtype, n, start).astype(np.int64)
    if labels.min() < 0 or labels.max() > 999:
        raise ValueError(
            f"{name}_labels holds the class {int(labels.min())} to {int(labels.max())}; 0 to 999 are read"
        )
    return _SplitArrays(name, f"{name}_images.npy", shape, labels)


def _checked_shape(
    zip_file: zipfile.ZipFile, member: str, types: Sequence[str], dimensions: Sequence[int]
) -> tuple[int, ...]:
    """Return an array's shape after checking type, order and size, without unpacking it; raises `ValueError`."""
    info = zip_file.getinfo(member)
    if info.compress_type not in READ_METHODS or info.flag_bits & ENCRYPTION_FLAGS:
        raise ValueError(f"{member} is encrypted or packed by an unknown method")
    with zip_file.open(info) as stream:
        shape, is_fortran, dtype, start = _read_npy_header(stream)
    if dtype.hasobject or dtype.str not in types:
        raise ValueError(
            f"{member} holds {dtype}; {', '.join(str(np.dtype(type_text)) for type_text in types)} is read"
        )
    if is_fortran or len(shape) not in dimensions:
        raise ValueError(f"{member} has the shape {shape}{' in Fortran order' * is_fortran}")
    n_bytes = start + int(np.prod([int(length) for length in shape], dtype=object)) * dtype.itemsize
    if n_bytes != info.file_size or n_bytes > MAX_ARRAY_BYTES:
        raise ValueError(
            f"{member}: its shape {shape} takes {n_bytes:,} bytes, the archive says {info.file_size:,}"
        )
    return shape


def _read_npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic], int]:
    """Return shape, whether in Fortran order, dtype and offset of the values; raises only `ValueError`.

    NumPy's own reader also accepts headers of Python 2 through a tokenizer, which raises further types of errors.
    """
    data = stream.read(_HEADER_BYTES)
    length_formats = {b"\x93NUMPY\x01\x00": "<H", b"\x93NUMPY\x02\x00": "<I"}
    if data[:8] not in length_formats:
        raise ValueError("no array of NumPy's format 1 or 2")
    length = struct.unpack_from(length_formats[data[:8]], data, 8)[0]
    start = 8 + struct.calcsize(length_formats[data[:8]])
    if start + length > len(data):
        raise ValueError(f"a header of {length:,} bytes; a plain array's takes 118")
    try:
        header = ast.literal_eval(data[start : start + length].decode("latin-1").strip())
        shape, is_fortran, descr = header["shape"], header["fortran_order"], header["descr"]
        if not re.fullmatch(r"[<>|=]?[biufcSUOVMm]\d{0,4}", descr):
            raise ValueError("a type of several parts, or none")
        dtype = np.dtype(descr)
    except (SyntaxError, ValueError, TypeError, KeyError, MemoryError, RecursionError) as error:
        raise ValueError(f"a header that cannot be read: {type(error).__name__}") from error
    dimensions = shape if isinstance(shape, tuple) else (None,)
    if (
        not all(type(dimension) is int and dimension >= 0 for dimension in dimensions)
        or type(is_fortran) is not bool
    ):
        raise ValueError(f"a header that cannot be read: shape {str(shape)[:60]}")
    return shape, is_fortran, dtype, start + length


# Images -----------------------------------------------------------------------------------------------------------


def _class_names(splits: Sequence[_SplitArrays], name: str) -> tuple[list[str], list[Note]]:
    """Return the name of each class number: DermaMNIST's classes if the file looks like it, else the number."""
    class_numbers = np.unique(np.concatenate([split.labels for split in splits]))
    n_classes = len(DERMAMNIST_CLASSES)
    if class_numbers.max() < n_classes and ("derma" in name.lower() or len(class_numbers) == n_classes):
        text = f"Classes 0 to 6 are taken for DermaMNIST's: {', '.join(DERMAMNIST_CLASSES)}."
        return list(DERMAMNIST_CLASSES), [Note("class_names", text, len(class_numbers))]
    text = "The file does not name its classes, so they are numbers."
    return [str(number) for number in range(int(class_numbers.max()) + 1)], [
        Note("class_names", text, len(class_numbers))
    ]


def _write_images(
    zip_file: zipfile.ZipFile, split: _SplitArrays, classes: Sequence[str], folder: Path, name: str
) -> "list[tuple[str, str]]":
    """Write a split's images; returns (path, label) of each. Files that already have the right bytes are left."""
    n, *shape = split.shape
    image_bytes = int(np.prod(shape))
    batch_size = max(1, _BATCH_BYTES // image_bytes)
    rows: list[tuple[str, str]] = []
    try:
        with zip_file.open(split.image_member) as stream:
            stream.read(_data_start(zip_file, split.image_member))
            for start in range(0, n, batch_size):
                n_images = min(batch_size, n - start)
                pixels = np.frombuffer(_read_exactly(stream, n_images * image_bytes), np.uint8).reshape(
                    n_images, *shape
                )
                for index in range(n_images):
                    label = classes[int(split.labels[start + index])]
                    path = f"{split.prefix}/{label}/{start + index:05d}.png"
                    _write_png(folder / path, pixels[index])
                    rows.append((path, label))
    except _NPZ_ERRORS as error:
        raise DataError(
            f"{name}: {split.image_member}: {type(error).__name__}: {error}",
            outcome=f"the {len(rows)} images before it",
            remedy="download the file again",
        ) from error
    return rows


def _data_start(zip_file: zipfile.ZipFile, member: str) -> int:
    with zip_file.open(member) as stream:
        return _read_npy_header(stream)[3]


def _read_exactly(stream: IO[bytes], size: int) -> bytes:
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
        write_unsynced(path, lambda out: out.write(data))
