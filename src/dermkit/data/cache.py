"""Work done once: resized pixels, and any other array, in memory-mapped files named after what they were made from."""

import contextlib
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.data.images import Preprocessing, open_image, resize_pixels
from dermkit.data.manifest import Dataset
from dermkit.errors import DataError, DermkitError, ImageRefused
from dermkit.files import (
    canonical_json,
    check_writable,
    read_json,
    sha256_bytes,
    sha256_file,
    write_json,
    write_with,
)

FORMAT = 1

DECODER = 1
"""Raise it whenever `open_image` or `resize_pixels` gives other pixels than before: old caches are then not found."""

NAMED = 10
"""Problems that a message names; the rest is counted."""


@dataclass(frozen=True)
class PixelCache:
    """Resized pixels of a data set's images.

    pixels: (N, S, S, 3) uint8 sRGB, a read-only memory map. index: image_id -> row. key: what it was made from.
    """

    pixels: NDArray[np.uint8]
    index: dict[str, int]
    key: str


def pixel_cache(
    dataset: Dataset,
    image_ids: Sequence[str],
    preprocessing: Preprocessing,
    *,
    folder: Path,
    on_progress: Callable[[int, int], None] | None = None,
) -> PixelCache:
    """Return the resized pixels of these images, in this order; they are decoded once, on all cores.

    on_progress(done, total) is called while decoding, and not at all where the cache was valid. Raises `DataError`
    naming the images that are unknown, missing, refused, or no longer have the pixels that the manifest states.
    """
    rows = _rows(dataset, image_ids)
    key = _pixel_key(rows, preprocessing)
    side = preprocessing.size

    def fill(pixels: NDArray[np.uint8]) -> None:
        _decode_all(dataset, rows, preprocessing, pixels, on_progress)

    pixels = cached_array(folder, key, (len(rows), side, side, 3), "uint8", fill)
    return PixelCache(pixels, {name: row for row, name in enumerate(rows["image_id"])}, key)


def _rows(dataset: Dataset, image_ids: Sequence[str]) -> pd.DataFrame:
    if len(image_ids) == 0:
        raise DataError(f"{dataset.name}: no images were asked for", remedy="check the split and the manifest")
    positions = pd.Index(dataset.manifest["image_id"]).get_indexer(pd.Index(image_ids))
    unknown = [name for name, position in zip(image_ids, positions, strict=True) if position < 0]
    if unknown:
        raise DataError(
            f"{dataset.folder}: {_listing(unknown)} not in manifest.csv",
            remedy="use the split that belongs to this data set, or make it again with `dermkit split`",
        )
    rows: pd.DataFrame = dataset.manifest.iloc[positions].reset_index(drop=True)
    return rows


def _listing(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _pixel_key(rows: pd.DataFrame, preprocessing: Preprocessing) -> str:
    """Hash what decides the bytes: the images' own pixels in order, and the geometry. Mean and std come later."""
    geometry = [preprocessing.size, preprocessing.resize, preprocessing.interpolation, DECODER]
    return "pixels-" + sha256_bytes(canonical_json([geometry, rows["pixel_sha256"].tolist()]).encode())[:32]


def _decode_all(
    dataset: Dataset,
    rows: pd.DataFrame,
    preprocessing: Preprocessing,
    pixels: NDArray[np.uint8],
    on_progress: Callable[[int, int], None] | None,
) -> None:
    """Fill `pixels` row by row on a thread pool; Pillow decodes and resizes outside the interpreter's lock."""

    def decode(row: int, path: str, expected: str) -> None:
        image = open_image(dataset.images / path, name=path)
        if image.pixel_sha256 != expected:
            raise DataError(f"{path}: changed since it was imported")
        pixels[row] = resize_pixels(image.pixels, preprocessing)

    problems: list[str] = []
    pool = ThreadPoolExecutor(max_workers=os.cpu_count() or 1)
    try:
        columns = zip(rows["path"], rows["pixel_sha256"], strict=True)
        futures = [pool.submit(decode, row, path, expected) for row, (path, expected) in enumerate(columns)]
        for done, future in enumerate(as_completed(futures), start=1):
            problems += _problem_of(future)
            if on_progress is not None:
                on_progress(done, len(futures))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)  # an interrupt must not wait for the whole queue
    if problems:
        raise DataError(
            f"{dataset.images}: {len(problems)} of {len(rows)} images cannot be used: {_listing(sorted(problems))}",
            kept="the data set and its manifest are untouched",
            remedy="restore these images, or import the data set again",
        )


def _problem_of(future: Future[None]) -> list[str]:
    error = future.exception()
    if isinstance(error, ImageRefused):
        return [f"{error.name} ({error.reason.value})"]
    if isinstance(error, DataError):
        return [error.message]
    if error is not None:
        raise error
    return []


def cached_array(
    folder: Path, key: str, shape: tuple[int, ...], dtype: str, fill: Callable[[NDArray[Any]], None]
) -> NDArray[Any]:
    """Return the array named `key` as a read-only memory map, made by `fill` unless a sound file is there.

    `fill` gets a writable array of zeros. A file that is short, changed or of another shape or type is made
    again. Raises `OutputError` where there is no room, before anything is computed.
    """
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,128}", key) or 0 in shape:
        raise ValueError(f"not a cache key and shape: {key!r}, {shape}")
    data, card = _paths(folder, key)
    facts: dict[str, object] = {"key": key, "shape": list(shape), "dtype": np.dtype(dtype).str}
    if not _is_sound(data, card, facts):
        need = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize + 4096
        check_writable(folder, need)
        write_with(data, lambda temporary: _make(temporary, shape, dtype, fill))
        write_json(card, {**facts, "bytes": data.stat().st_size, "sha256": sha256_file(data)}, format=FORMAT)
    with contextlib.suppress(OSError):  # a shared cache may be read-only
        os.utime(card)  # `evict` counts age from the last use
    array: NDArray[Any] = np.load(data, mmap_mode="r", allow_pickle=False)
    return array


def _paths(folder: Path, key: str) -> tuple[Path, Path]:
    return folder / f"{key}.npy", folder / f"{key}.json"


def _is_sound(data: Path, card: Path, facts: dict[str, object]) -> bool:
    """Tell whether a cached file is whole and unchanged; hashing it also brings it into memory, where it is needed."""
    try:
        stated = read_json(card, format=FORMAT)
        return (
            {name: stated.get(name) for name in facts} == facts
            and data.stat().st_size == stated.get("bytes")
            and sha256_file(data) == stated.get("sha256")
        )
    except (DermkitError, OSError):
        return False


def _make(path: Path, shape: tuple[int, ...], dtype: str, fill: Callable[[NDArray[Any]], None]) -> None:
    """Write a .npy by filling its memory map.

    Its blocks are reserved first: a device that fills up later would kill the writer of a map with SIGBUS.
    """
    with path.open("wb") as stream:
        header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        start = stream.tell()
        size = start + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        stream.flush()
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(stream.fileno(), 0, size)
        else:
            stream.truncate(size)
    array = np.memmap(path, dtype=dtype, mode="r+", offset=start, shape=shape)
    fill(array)
    array.flush()


def evict(folder: Path, keep_bytes: int) -> int:
    """Remove the least recently used arrays until at most `keep_bytes` remain; returns the bytes removed.

    Only what `cached_array` wrote is touched. A map that a process still has open stays readable there.
    """
    entries = []
    for card in folder.glob("*.json"):
        data = card.with_suffix(".npy")
        try:
            if read_json(card, format=FORMAT).get("key") == card.stem:
                entries.append((card.stat().st_mtime_ns, data.stat().st_size if data.exists() else 0, data, card))
        except (DermkitError, OSError):
            continue
    total, removed = sum(entry[1] for entry in entries), 0
    for _, size, data, card in sorted(entries):
        if total - removed <= keep_bytes:
            break
        data.unlink(
            missing_ok=True
        )  # the data first: a card without data is made again, data without card would stay
        card.unlink(missing_ok=True)
        removed += size
    return removed
