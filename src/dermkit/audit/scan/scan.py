"""One pass over all images: each is decoded once, measured and described. Resumable, bounded memory, all cores.

The store is a folder of memory maps beside the audit. A block is done when its table is there; what was killed is
begun again at the first block without one. Images are known by their file's hash, so the store of an earlier audit
serves for a manifest that lost rows or changed its labels.
"""

import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from dermkit.audit.scan import descriptors, measures
from dermkit.data.manifest import Dataset
from dermkit.errors import DataError, ImageRefused
from dermkit.files import (
    check_writable,
    fingerprint,
    make_folder,
    output_errors,
    read_json,
    write_json,
    write_rows,
)
from dermkit.images.decode import open_image
from dermkit.progress import Watch
from dermkit.threads import cores

FORMAT = 1
VERSION = 4
"""Raised whenever a measure or a description changes, so that an old store is not mixed with new numbers."""
BLOCK = 1024
"""Images between two points from which a stopped scan goes on."""
_BATCH = 32
"""Images described at once: about 10 MB of blurred pictures per thread."""

_ARRAYS: Mapping[str, tuple[tuple[int, ...], type[Any]]] = {
    "canvas": ((descriptors.CANVAS, descriptors.CANVAS), np.uint8),
    "square": ((descriptors.SQUARE, descriptors.SQUARE, 3), np.uint8),
    "size": ((2,), np.int16),
    "frame": ((descriptors.FRAME_WIDTH,), np.float16),
    "disc": ((descriptors.DISCS, descriptors.DISC_WIDTH), np.float16),
    "place": ((descriptors.DISCS, 3), np.float32),
    "polar": ((descriptors.DISCS, descriptors.RINGS, descriptors.ANGLES), np.int8),
}
BYTES_PER_IMAGE = sum(int(np.prod(shape)) * np.dtype(kind).itemsize for shape, kind in _ARRAYS.values())
_STATE_COLUMNS = ("changed", "stat")
STATES = ("", "changed", "missing", "refused")
"""What became of a file since the import ("" = nothing)."""


@dataclass(frozen=True, eq=False)
class Scan:
    """What was seen of each image of a manifest, in its order.

    table: `measures.COLUMNS` and `changed` (one of `STATES`). rows: (N,) places in the maps; the maps are those of
    the store and may hold more images. Rows whose file could not be read hold zeros.
    """

    table: pd.DataFrame
    rows: NDArray[np.int64]
    canvas: NDArray[np.uint8]
    square: NDArray[np.uint8]
    size: NDArray[np.int16]
    frame: NDArray[np.float16]
    disc: NDArray[np.float16]
    place: NDArray[np.float32]
    polar: NDArray[np.int8]


def scan(dataset: Dataset, *, folder: Path | None = None, workers: int = 0, watch: Watch | None = None) -> Scan:
    """Scan a data set into `folder` (default: audit/scan of the data set), or go on where a scan was stopped.

    A file whose size or time of change is another than it was is looked at again, with its block.
    workers: threads, 0 = all cores. Raises `OutputError` where the store does not fit or cannot be written, and
    `DataError` where no file can be read.
    """
    folder = folder or dataset.folder / "audit" / "scan"
    frame = dataset.manifest
    rows = _stored_rows(folder, frame)
    if rows is None:
        _start(folder, frame)
        rows = np.arange(len(frame))
    files = _read_files(folder)
    _forget_stale(dataset.images, folder, files, rows)
    _fill(dataset.images, folder, files, workers, watch or Watch())
    table = _read_table(folder, len(files)).iloc[rows].reset_index(drop=True)
    if (table["changed"].isin(["missing", "refused"])).all():
        raise DataError(
            f"{dataset.images}: none of the {len(frame)} images can be read",
            remedy="bring the images back, or correct location.json",
        )
    maps = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
    return Scan(table.drop(columns="stat"), rows, **maps)


def _read_files(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "files.csv", dtype=str, keep_default_na=False)


def _stored_rows(folder: Path, frame: pd.DataFrame) -> NDArray[np.int64] | None:
    """Return where the manifest's images lie in the store; None where it is another one's, old or broken."""
    try:
        facts = read_json(folder / "scan.json", format=FORMAT, error=DataError)
        files = _read_files(folder)
        shapes = {name: np.load(folder / f"{name}.npy", mmap_mode="r").shape for name in _ARRAYS}
    except (DataError, OSError, ValueError):
        return None
    whole = all(shapes[name] == (len(files), *shape) for name, (shape, _) in _ARRAYS.items())
    if not whole or facts.get("version") != VERSION or facts.get("files") != _files_key(files):
        return None
    places = pd.Series(np.arange(len(files)), index=pd.MultiIndex.from_frame(files[["path", "file_sha256"]]))
    wanted = places.reindex(pd.MultiIndex.from_frame(frame[["path", "file_sha256"]]))
    return None if wanted.isna().any() else wanted.to_numpy().astype(np.int64)


def _files_key(files: pd.DataFrame) -> str:
    return fingerprint(VERSION, pd.util.hash_pandas_object(files, index=False).to_numpy().tobytes().hex())


def _start(folder: Path, frame: pd.DataFrame) -> None:
    """Make an empty store; its space is reserved before the first image is opened."""
    (folder / "scan.json").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder)
    check_writable(folder, len(frame) * (BYTES_PER_IMAGE + 500))
    files = frame[["path", "file_sha256"]].astype(str)
    write_rows(folder / "files.csv", list(files.columns), files.itertuples(index=False))
    with output_errors(folder):
        for name, (shape, kind) in _ARRAYS.items():
            path = folder / f"{name}.npy"
            np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=(len(frame), *shape)).flush()
    write_json(folder / "scan.json", {"version": VERSION, "files": _files_key(_read_files(folder))}, format=FORMAT)


def _block_name(start: int) -> str:
    return f"block-{start // BLOCK:05d}.csv"


def _stat(path: Path) -> str:
    """Return what tells a file that was written anew: its size and its time of change; "" where there is none."""
    try:
        found = path.stat()
    except OSError:
        return ""
    return f"{found.st_size}:{found.st_mtime_ns}"


def _forget_stale(root: Path, folder: Path, files: pd.DataFrame, rows: NDArray[np.int64]) -> None:
    """Remove the blocks that hold an image of the manifest whose file is not as it was."""
    wanted = np.zeros(len(files), bool)
    wanted[rows] = True
    for start in range(0, len(files), BLOCK):
        path = folder / _block_name(start)
        if not path.is_file():
            continue
        before = pd.read_csv(path, usecols=["stat"], dtype=str, keep_default_na=False)["stat"].tolist()
        names = files["path"].iloc[start : start + BLOCK].tolist()
        here = zip(names, before, wanted[start : start + BLOCK], strict=False)
        if len(before) != len(names) or any(used and _stat(root / name) != stat for name, stat, used in here):
            path.unlink()


def _fill(root: Path, folder: Path, files: pd.DataFrame, workers: int, watch: Watch) -> None:
    """Scan the blocks that are not done, in the order of the store's own list of files."""
    total = len(files)
    starts = [at for at in range(0, total, BLOCK) if not (folder / _block_name(at)).is_file()]
    if not starts:
        return
    maps = {name: np.load(folder / f"{name}.npy", mmap_mode="r+") for name in _ARRAYS}
    one = _scanner(root, files["path"].tolist(), files["file_sha256"].tolist(), maps)
    done = total - sum(min(BLOCK, total - at) for at in starts)
    # The threads are ours: those of the matrix library would fight with them for the same cores.
    with threadpool_limits(1), ThreadPoolExecutor(workers or cores()) as pool:
        try:
            for start in starts:
                end = min(start + BLOCK, total)
                parts = [(at, min(at + _BATCH, end)) for at in range(start, end, _BATCH)]
                rows: list[dict[str, Any]] = []
                for (low, high), part in zip(parts, pool.map(one, parts), strict=True):
                    rows += part
                    done += high - low
                    watch.step("images looked at", done, total)
                for values in maps.values():
                    values.flush()
                header = [*measures.COLUMNS, *_STATE_COLUMNS]
                write_rows(folder / _block_name(start), header, ([row[name] for name in header] for row in rows))
        finally:
            pool.shutdown(cancel_futures=True)


def _scanner(
    root: Path, paths: list[str], hashes: list[str], maps: dict[str, NDArray[Any]]
) -> Callable[[tuple[int, int]], list[dict[str, Any]]]:
    def one(part: tuple[int, int]) -> list[dict[str, Any]]:
        rows, smalls, at = [], [], []
        for number in range(*part):
            row, small = _look(root / paths[number], hashes[number])
            rows.append(row)
            if small is not None:
                smalls.append(small)
                at.append(number)
        if smalls:
            _store(maps, np.asarray(at), smalls)
        return rows

    return one


def _look(path: Path, file_sha256: str) -> tuple[dict[str, Any], descriptors.Small | None]:
    """Measure and shrink one image; the file may have changed since the import."""
    stat = _stat(path)
    try:
        data = path.read_bytes()
        image = open_image(data, name=str(path))
    except OSError:
        return measures.unknown() | {"changed": "missing", "stat": stat}, None
    except ImageRefused:
        return measures.unknown() | {"changed": "refused", "stat": stat}, None
    changed = "" if image.file_sha256 == file_sha256 else "changed"
    return measures.measure(image, data) | {"changed": changed, "stat": stat}, descriptors.shrink(image.pixels)


def _store(maps: dict[str, NDArray[Any]], at: NDArray[np.int64], smalls: list[descriptors.Small]) -> None:
    canvas, tint, square = (
        np.stack([getattr(small, name) for small in smalls]) for name in ("canvas", "tint", "square")
    )
    size = np.array([[small.width, small.height] for small in smalls])
    found = descriptors.describe(canvas, tint, size, square)
    made = {
        "canvas": canvas, "square": square, "size": size, "frame": found.frame, "disc": found.disc,
        "place": found.place, "polar": found.polar,
    }  # fmt: skip
    for name, values in made.items():
        maps[name][at] = values


def _read_table(folder: Path, total: int) -> pd.DataFrame:
    blocks = [folder / _block_name(at) for at in range(0, total, BLOCK)]
    texts = dict.fromkeys([*measures.TEXTS, *_STATE_COLUMNS], str)
    kinds = dict.fromkeys(measures.NUMBERS, "float64") | texts
    tables = [
        pd.read_csv(path, dtype=kinds, keep_default_na=False, na_values=dict.fromkeys(measures.NUMBERS, "nan"))
        for path in blocks
    ]
    return pd.concat(tables, ignore_index=True)
