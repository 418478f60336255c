"""What an image-blind rule sees: traces of files, and border and colours of the resized pixels.

Shapes: N images in the pixel cache, M selected rows of it, S pixels a side.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.data.manifest import Dataset
from dermkit.files import make_folder, open_regular, write_rows
from dermkit.images.jpeg_tables import read_jpeg_tables
from dermkit.images.preprocess import PixelArray
from dermkit.metrics.stats.arrays import Floats
from dermkit.threads import cpu_count, ordered_map

HISTOGRAM_LEVELS = 4
"""Levels of each of red, green and blue in the histogram of 64 cells."""
RING_FRACTION = 0.05
"""Width of the border, as a fraction of the side: that of the audit."""

_MAX_SIDE = 64
"""Pixels a side that the histogram counts at most: every k-th row and column of a larger image."""
_CHUNK = 512
_HEAD_BYTES = 65_536
"""Of a file, in which its JPEG tables are looked for first: nearly all hold them there."""

_FILE_MEASURES = ("bytes", "jpeg_tables", "jpeg_quality")
_FILE_MEASURES_TABLE = "file-measures-1.csv"
"""In the folder of the pixel cache: `_FILE_MEASURES` by the hash of a file, so that it is opened once."""


@dataclass(frozen=True, eq=False)
class PixelColumns:
    """Border and histogram of M images.

    border: (M, 30) mean and standard deviation of the border, then the means of its sides and of the corners, each of
    red, green and blue. histogram: (M, 64) square roots of the fraction of the pixels in each cell of colour.
    """

    border: Floats
    histogram: Floats


def pixel_columns(pixels: PixelArray, rows: NDArray[np.int64]) -> PixelColumns:
    """Return border and histogram of the resized images, as the net sees them.

    pixels: (N, S, S, 3) uint8; rows: (M,).
    """
    borders, histograms = [np.empty((0, 30))], [np.empty((0, HISTOGRAM_LEVELS**3))]
    for start in range(0, len(rows), _CHUNK):
        images = pixels[rows[start : start + _CHUNK]]
        borders.append(_border(images))
        histograms.append(_histogram(images))
    return PixelColumns(np.concatenate(borders), np.concatenate(histograms))


def _border(images: NDArray[np.uint8]) -> Floats:
    """Return the columns of `PixelColumns.border`, (M, 30); images: (M, S, S, 3)."""
    n, edge = images.shape[:2]
    width = max(1, round(RING_FRACTION * edge))
    sides: list[NDArray[np.uint8]] = [
        images[:, :width],
        images[:, -width:],
        images[:, :, :width],
        images[:, :, -width:],
    ]
    corners = [part[:, :, ends] for part in sides[:2] for ends in (slice(width), slice(-width, None))]
    side_pixels = [side.reshape(n, -1, 3).astype(np.float64) for side in sides]
    ring = np.concatenate(side_pixels, axis=1)
    means = [part.mean(axis=1) for part in side_pixels] + [part.reshape(n, -1, 3).mean(axis=1) for part in corners]
    return np.concatenate([ring.mean(axis=1), ring.std(axis=1), *means], axis=1)


def _histogram(images: NDArray[np.uint8]) -> Floats:
    """Return the columns of `PixelColumns.histogram`, (M, 64); images: (M, S, S, 3)."""
    step = -(-images.shape[1] // _MAX_SIDE)
    levels = images[:, ::step, ::step].reshape(len(images), -1, 3).astype(np.int64) * HISTOGRAM_LEVELS // 256
    n_cells = HISTOGRAM_LEVELS**3
    cells = levels @ np.array([HISTOGRAM_LEVELS**2, HISTOGRAM_LEVELS, 1])
    cells += n_cells * np.arange(len(images))[:, None]
    counts = np.bincount(cells.ravel(), minlength=n_cells * len(images)).reshape(len(images), n_cells)
    return np.sqrt(counts / levels.shape[1])


# Files ------------------------------------------------------------------------------------------------------------


def file_columns(dataset: Dataset, image_ids: Sequence[str]) -> pd.DataFrame:
    """Return bytes, width and height, pixels for a byte, JPEG quality (NaN = unknown) and tables ("" = none) by row.

    From the scan of the last audit, from an earlier call, or from the head of the file. A file that cannot be read has
    NaN bytes.
    """
    rows = dataset.manifest.set_index("image_id").loc[list(image_ids)]
    measures = _file_measures(dataset, rows)
    width, height = (
        pd.to_numeric(rows[name], errors="coerce").to_numpy(dtype=np.float64) for name in ("width", "height")
    )
    size = measures["bytes"].to_numpy(dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = {"bytes": np.log(size), "width": np.log(width), "height": np.log(height)}
    numbers = {name: np.where(np.isfinite(values), values, np.nan) for name, values in logs.items()}
    return pd.DataFrame(
        {
            **numbers,
            "bytes_per_pixel": numbers["bytes"] - numbers["width"] - numbers["height"],
            "jpeg_quality": measures["jpeg_quality"].to_numpy(dtype=np.float64),
            "jpeg_tables": measures["jpeg_tables"].to_numpy(dtype=object),
        }
    )


def _file_measures(dataset: Dataset, rows: pd.DataFrame) -> pd.DataFrame:
    """Return `_FILE_MEASURES` of these rows of the manifest, in their order, indexed by file_sha256."""
    path = dataset.work_folder / "cache" / _FILE_MEASURES_TABLE
    stored = _read_measures(path)
    missing = rows[~rows["file_sha256"].isin(stored.index)].drop_duplicates("file_sha256")
    if len(missing):
        stored = pd.concat([stored, _audit_measures(dataset, missing)])
        missing = missing[~missing["file_sha256"].isin(stored.index)]
        paths = [dataset.image_root / name for name in missing["path"]]
        measured = list(ordered_map(_measure_file, paths, n_threads=min(16, cpu_count())))
        new = pd.DataFrame(measured, columns=list(_FILE_MEASURES), index=missing["file_sha256"])
        stored = pd.concat([frame for frame in (stored, new) if len(frame)])
        readable = stored[stored["bytes"].notna()].reset_index(names="file_sha256")
        make_folder(path.parent)
        write_rows(path, ("file_sha256", *_FILE_MEASURES), readable.itertuples(index=False, name=None))
    return stored.loc[rows["file_sha256"].tolist()]


def _read_measures(path: Path) -> pd.DataFrame:
    """Return the table of an earlier call, empty where there is none or it is broken: it is made again then."""
    try:
        frame = pd.read_csv(
            path,
            dtype={"jpeg_tables": str, "file_sha256": str},
            keep_default_na=False,
            na_values={"jpeg_quality": ["nan"]},
        )
        return (
            frame.drop_duplicates("file_sha256")
            .set_index("file_sha256")[list(_FILE_MEASURES)]
            .astype({"bytes": "float64", "jpeg_quality": "float64"})
        )
    except (OSError, ValueError, KeyError):
        return pd.DataFrame(columns=list(_FILE_MEASURES))


def _audit_measures(dataset: Dataset, missing: pd.DataFrame) -> pd.DataFrame:
    """Return what the last audit measured of the files that are missing here and have not changed since the import."""
    from dermkit.audit.scan.scan import stored_measures

    table = stored_measures(dataset)
    if table is None:
        return pd.DataFrame(columns=list(_FILE_MEASURES))
    table = table.set_index(dataset.manifest["file_sha256"].to_numpy())
    is_wanted = table.index.isin(missing["file_sha256"]) & (table["state"] == "") & ~table.index.duplicated()
    return table.loc[is_wanted, list(_FILE_MEASURES)]


def _measure_file(path: Path) -> tuple[float, str, float]:
    """Return `_FILE_MEASURES` of a file; NaN bytes where it cannot be read."""
    try:
        with open_regular(path) as stream:
            size, head = os.fstat(stream.fileno()).st_size, stream.read(_HEAD_BYTES)
            tables = read_jpeg_tables(head)
            if not tables.key and head[:2] == b"\xff\xd8" and size > _HEAD_BYTES:
                tables = read_jpeg_tables(head + stream.read())
    except OSError:
        return float("nan"), "", float("nan")
    return float(size), tables.key, tables.quality
