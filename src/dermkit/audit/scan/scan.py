"""One pass over all images: each is decoded once, measured and described. Resumable, bounded memory, all cores.

The store is a folder of memory maps in the audit folder. A block is complete when its table exists; a killed scan
resumes at the first block without one. Images are identified by their file's hash, so the store of an earlier audit
serves for a manifest that lost rows or changed its labels.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from dermkit.audit.scan import descriptors, measures
from dermkit.data.manifest import Dataset
from dermkit.errors import DataError, ImageRejected, RejectionReason
from dermkit.files import (
    check_writable,
    file_stat,
    fingerprint,
    make_folder,
    output_errors,
    read_json,
    write_json,
    write_rows,
)
from dermkit.images.decode import open_image, read_image_file
from dermkit.images.image_header import HeaderRejected
from dermkit.progress import Progress
from dermkit.threads import cpu_count, worker_pool

SCAN_FORMAT = 1
SCAN_VERSION = 6
"""Raised whenever a measure or descriptor changes: a store of another version is made again."""
IMAGES_PER_BLOCK = 1024
"""Images of a block; a stopped scan resumes at a block."""
_IMAGES_PER_BATCH = 32
"""Images described at once: about 10 MB of blurred canvases per thread."""

_ARRAYS: Mapping[str, tuple[tuple[int, ...], type[Any]]] = {
    "canvas": ((descriptors.CANVAS_SIDE, descriptors.CANVAS_SIDE), np.uint8),
    "square": ((descriptors.SQUARE_SIDE, descriptors.SQUARE_SIDE, 3), np.uint8),
    "size": ((2,), np.int16),
    "global_descriptor": ((descriptors.GLOBAL_WIDTH,), np.float16),
    "patch_descriptors": ((descriptors.N_DISCS, descriptors.PATCH_WIDTH), np.float16),
    "keypoints": ((descriptors.N_DISCS, 3), np.float32),
    "polar_patches": ((descriptors.N_DISCS, descriptors.N_RINGS, descriptors.N_ANGLES), np.int8),
}
BYTES_PER_IMAGE = sum(int(np.prod(shape)) * np.dtype(kind).itemsize for shape, kind in _ARRAYS.values())
_STATE_COLUMNS = ("state", "stat")
STATES = ("", "changed", "missing", "refused")
"""The state of a file since the import ("" = unchanged)."""


@dataclass(frozen=True, eq=False)
class Scan:
    """The scan of the N images of a manifest.

    table: `MEASURE_COLUMNS` and `state` (one of `STATES`), in the order of the manifest. store_rows: (N,) rows in the
    other arrays, which are memory maps of the store and may hold more images: (M, ...), as in `SmallImage` and
    `ImageDescriptors`; 0 for files that could not be read.
    """

    table: pd.DataFrame
    store_rows: NDArray[np.int64]
    canvas: NDArray[np.uint8]
    square: NDArray[np.uint8]
    size: NDArray[np.int16]
    global_descriptor: NDArray[np.float16]
    patch_descriptors: NDArray[np.float16]
    keypoints: NDArray[np.float32]
    polar_patches: NDArray[np.int8]


def scan_images(
    dataset: Dataset, *, folder: Path | None = None, workers: int = 0, progress: Progress | None = None
) -> Scan:
    """Scan a data set into `folder` (default: audit/scan of the data set), or resume a stopped scan.

    A file whose size or modification time changed is scanned again, with its block. workers: threads, 0 = all cores.
    Raises `OutputError` if the store does not fit on the disk or cannot be written, `DataError` if no file can be read.
    """
    folder = folder or dataset.work_folder / "audit" / "scan"
    frame = dataset.manifest
    store_rows = _stored_rows(folder, frame)
    if store_rows is None:
        _create_store(folder, frame)
        store_rows = np.arange(len(frame))
    files = _read_files(folder)
    _remove_stale_blocks(dataset.image_root, folder, files, store_rows)
    _scan_missing_blocks(dataset.image_root, folder, files, workers, progress or Progress())
    table = _read_table(folder, len(files)).iloc[store_rows].reset_index(drop=True)
    if (table["state"].isin(["missing", "refused"])).all():
        raise DataError(
            f"{dataset.image_root}: none of the {len(frame)} images can be read",
            remedy="bring the images back, or correct location.json",
        )
    maps = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
    return Scan(table.drop(columns="stat"), store_rows, **maps)


def stored_measures(dataset: Dataset) -> pd.DataFrame | None:
    """Return the table of the last audit's scan, as `Scan.table`, without opening an image; None where it has gaps."""
    folder = dataset.work_folder / "audit" / "scan"
    store_rows = _stored_rows(folder, dataset.manifest)
    if store_rows is None:
        return None
    n_files = len(_read_files(folder))
    if not all((folder / _block_name(start)).is_file() for start in range(0, n_files, IMAGES_PER_BLOCK)):
        return None
    return _read_table(folder, n_files).iloc[store_rows].reset_index(drop=True)


def _read_files(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "files.csv", dtype=str, keep_default_na=False)


def _stored_rows(folder: Path, frame: pd.DataFrame) -> NDArray[np.int64] | None:
    """Return (N,) rows of the manifest's images in the store; None if it is of other files, old or broken."""
    try:
        scan_json = read_json(folder / "scan.json", format=SCAN_FORMAT, error=DataError)
        files = _read_files(folder)
        shapes = {name: np.load(folder / f"{name}.npy", mmap_mode="r").shape for name in _ARRAYS}
    except (DataError, OSError, ValueError):
        return None
    is_complete = all(shapes[name] == (len(files), *shape) for name, (shape, _) in _ARRAYS.items())
    if (
        not is_complete
        or scan_json.get("version") != SCAN_VERSION
        or scan_json.get("files") != _files_fingerprint(files)
    ):
        return None
    row_by_file = pd.Series(np.arange(len(files)), index=pd.MultiIndex.from_frame(files[["path", "file_sha256"]]))
    store_rows = row_by_file.reindex(pd.MultiIndex.from_frame(frame[["path", "file_sha256"]]))
    return None if store_rows.isna().any() else store_rows.to_numpy().astype(np.int64)


def _files_fingerprint(files: pd.DataFrame) -> str:
    return fingerprint(SCAN_VERSION, pd.util.hash_pandas_object(files, index=False).to_numpy().tobytes().hex())


def _create_store(folder: Path, frame: pd.DataFrame) -> None:
    """Create an empty store; its disk space is reserved before the first image is opened."""
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
    write_json(
        folder / "scan.json",
        {"version": SCAN_VERSION, "files": _files_fingerprint(_read_files(folder))},
        format=SCAN_FORMAT,
    )


def _block_name(start: int) -> str:
    return f"block-{start // IMAGES_PER_BLOCK:05d}.csv"


def _remove_stale_blocks(root: Path, folder: Path, files: pd.DataFrame, store_rows: NDArray[np.int64]) -> None:
    """Remove the blocks with an image of the manifest whose file changed."""
    is_used = np.zeros(len(files), bool)
    is_used[store_rows] = True
    for start in range(0, len(files), IMAGES_PER_BLOCK):
        path = folder / _block_name(start)
        if not path.is_file():
            continue
        stored_stats = pd.read_csv(path, usecols=["stat"], dtype=str, keep_default_na=False)["stat"].tolist()
        names = files["path"].iloc[start : start + IMAGES_PER_BLOCK].tolist()
        entries = zip(names, stored_stats, is_used[start : start + IMAGES_PER_BLOCK], strict=False)
        if len(stored_stats) != len(names) or any(
            in_use and file_stat(root / name) != stat for name, stat, in_use in entries
        ):
            path.unlink()


def _scan_missing_blocks(root: Path, folder: Path, files: pd.DataFrame, workers: int, progress: Progress) -> None:
    """Scan the incomplete blocks, in the order of files.csv."""
    total = len(files)
    starts = [
        block_start
        for block_start in range(0, total, IMAGES_PER_BLOCK)
        if not (folder / _block_name(block_start)).is_file()
    ]
    if not starts:
        return
    maps = {name: np.load(folder / f"{name}.npy", mmap_mode="r+") for name in _ARRAYS}
    scan_batch = _batch_scanner(root, files["path"].tolist(), files["file_sha256"].tolist(), maps)
    n_done = total - sum(min(IMAGES_PER_BLOCK, total - block_start) for block_start in starts)
    # Threads of the matrix library would compete with ours for the same cores.
    with threadpool_limits(1), worker_pool(workers or cpu_count()) as pool:
        for start in starts:
            stop = min(start + IMAGES_PER_BLOCK, total)
            batches = [
                (block_start, min(block_start + _IMAGES_PER_BATCH, stop))
                for block_start in range(start, stop, _IMAGES_PER_BATCH)
            ]
            rows: list[dict[str, Any]] = []
            for (low, high), batch_rows in zip(batches, pool.map(scan_batch, batches), strict=True):
                rows += batch_rows
                n_done += high - low
                progress.step("images scanned", n_done, total)
            for values in maps.values():
                values.flush()
            header = [*measures.MEASURE_COLUMNS, *_STATE_COLUMNS]
            write_rows(folder / _block_name(start), header, ([row[name] for name in header] for row in rows))


def _batch_scanner(
    root: Path, paths: list[str], hashes: list[str], maps: dict[str, NDArray[Any]]
) -> Callable[[tuple[int, int]], list[dict[str, Any]]]:
    def scan_batch(batch: tuple[int, int]) -> list[dict[str, Any]]:
        rows, small_images, store_rows = [], [], []
        for index in range(*batch):
            row, small_image = _scan_file(root / paths[index], hashes[index])
            rows.append(row)
            if small_image is not None:
                small_images.append(small_image)
                store_rows.append(index)
        if small_images:
            _write_descriptors(maps, np.asarray(store_rows), small_images)
        return rows

    return scan_batch


def _scan_file(path: Path, file_sha256: str) -> tuple[dict[str, Any], descriptors.SmallImage | None]:
    """Measure and shrink one image; the file may have changed since the import."""
    stat = file_stat(path)
    try:
        data = read_image_file(path)
        image = open_image(data, name=str(path))
    except HeaderRejected as rejection:
        state = "missing" if rejection.reason == RejectionReason.MISSING else "refused"
        return measures.empty_measures() | {"state": state, "stat": stat}, None
    except ImageRejected:
        return measures.empty_measures() | {"state": "refused", "stat": stat}, None
    state = "" if image.file_sha256 == file_sha256 else "changed"
    return measures.measure(image, data) | {"state": state, "stat": stat}, descriptors.shrink(image.pixels)


def _write_descriptors(
    maps: dict[str, NDArray[Any]], store_rows: NDArray[np.int64], small_images: list[descriptors.SmallImage]
) -> None:
    canvas, tint, square = (
        np.stack([getattr(small_image, name) for small_image in small_images])
        for name in ("canvas", "tint", "square")
    )
    size = np.array([[small_image.width, small_image.height] for small_image in small_images])
    described = descriptors.describe_images(canvas, tint, size, square)
    arrays = {
        "canvas": canvas,
        "square": square,
        "size": size,
        "global_descriptor": described.global_descriptor,
        "patch_descriptors": described.patch_descriptors,
        "keypoints": described.keypoints,
        "polar_patches": described.polar_patches,
    }
    for name, values in arrays.items():
        maps[name][store_rows] = values


def _read_table(folder: Path, total: int) -> pd.DataFrame:
    blocks = [folder / _block_name(block_start) for block_start in range(0, total, IMAGES_PER_BLOCK)]
    texts = dict.fromkeys([*measures.TEXT_COLUMNS, *_STATE_COLUMNS], str)
    kinds = dict.fromkeys(measures.NUMBER_COLUMNS, "float64") | texts
    tables = [
        pd.read_csv(
            path, dtype=kinds, keep_default_na=False, na_values=dict.fromkeys(measures.NUMBER_COLUMNS, "nan")
        )
        for path in blocks
    ]
    return pd.concat(tables, ignore_index=True)
