"""A cache of resized images, shared by runs, folds and data sets.

A key is a hash of an image's pixels and of the resizing, (N, 32) uint8; pixels are (N, S, S, 3) uint8 RGB.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.data.cache.segments import KEY_BYTES
from dermkit.data.cache.store import Store, StoredRows, evict, hash_keys
from dermkit.data.manifest import Dataset
from dermkit.errors import DataError, ImageRejected, first_of
from dermkit.files import canonical_json, sha256_bytes
from dermkit.images.decode import open_image
from dermkit.images.preprocess import Preprocessing, resize_pixels
from dermkit.progress import Progress
from dermkit.threads import cpu_count, worker_pool

DECODER_VERSION = 1
"""Part of every key. Raise it when `open_image` or `resize_pixels` return other pixels than before."""

MAX_CACHE_BYTES = 50 * 10**9
"""By default 50 GB: 330,000 images of 224 x 224 pixels."""

_MAX_LISTED = 10
"""Problems listed in a message; the others are counted."""

_MAX_THREADS = 16
"""More do not help, since some code holds Python's global lock; and every thread has a photograph in memory."""

_IMAGES_PER_TASK = 16  # handing over a single image costs as much as decoding a small one
_BLOCKS_IN_MEMORY = 2  # one is written while the next is decoded


@dataclass(frozen=True)
class PixelCache:
    """Resized pixels of N images.

    pixels: (N, S, S, 3) uint8 sRGB, read from memory maps. index: image_id -> row. key: a hash of the list of images
    and the resizing.
    """

    pixels: StoredRows
    index: dict[str, int]
    key: str


def pixel_cache(
    dataset: Dataset,
    image_ids: Sequence[str],
    preprocessing: Preprocessing,
    *,
    folder: Path,
    on_progress: Callable[[int, int], None] | None = None,
    workers: int = 0,
) -> PixelCache:
    """Return the resized pixels of these images, in this order; only images that are not cached are decoded.

    folder: of the cache. on_progress: called with (images decoded, images to decode). workers: threads, 0 = one per
    core, at most 16. After an interruption or an error, decoded images stay cached. Raises `DataError` that lists
    images that are unknown, missing, rejected, or changed since the import, and `OutputError` if the disk has no room,
    before anything is decoded.
    """
    rows = _manifest_rows(dataset, image_ids)
    keys = pixel_keys(rows, preprocessing)
    edge = preprocessing.size
    store = Store(folder, store_name(preprocessing), shape=(edge, edge, 3), dtype="uint8")
    positions = store.index(keys)
    if (positions < 0).any():
        missing_rows = _first_rows(keys, np.flatnonzero(positions < 0))
        _Build(dataset, preprocessing, store, workers, on_progress).run(
            rows.iloc[missing_rows], keys[missing_rows]
        )
        positions = store.index(keys)
    index = {name: row for row, name in enumerate(rows["image_id"])}
    return PixelCache(StoredRows(store, positions), index, _pixel_key(rows, preprocessing))


def dataset_pixels(
    dataset: Dataset, image_ids: Sequence[str], preprocessing: Preprocessing, progress: Progress
) -> PixelCache:
    """Return `pixel_cache` in the folder that all work on a data set shares."""
    return pixel_cache(
        dataset,
        image_ids,
        preprocessing,
        folder=dataset.work_folder / "cache",
        on_progress=lambda count, total: progress.step("images", count, total),
    )


def evict_to_size(folder: Path, max_bytes: int = MAX_CACHE_BYTES) -> int:
    """Remove the least recently used files of the caches below a folder, but none that this process used.

    Returns the number of bytes removed. Called after a run.
    """
    return evict(folder, max_bytes, spare_used=True)


def pixel_keys(rows: pd.DataFrame, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return (N, 32) uint8 keys of resized images: hashes of the image's pixels and of the resizing.

    rows: of a manifest, with pixel_sha256.
    """
    return hash_keys(canonical_json(geometry(preprocessing)), (text.encode() for text in rows["pixel_sha256"]))


def geometry(preprocessing: Preprocessing) -> list[object]:
    """Return what determines the result of resizing an image; mean and std are applied later."""
    return [preprocessing.size, preprocessing.resize, preprocessing.interpolation, DECODER_VERSION]


def store_name(preprocessing: Preprocessing) -> str:
    """Return the name of the store for pixels of this size and resizing."""
    return "-".join(["pixels", *map(str, geometry(preprocessing))])


def _pixel_key(rows: pd.DataFrame, preprocessing: Preprocessing) -> str:
    key_fields = [geometry(preprocessing), rows["pixel_sha256"].tolist()]
    return "pixels-" + sha256_bytes(canonical_json(key_fields).encode())[:32]


def _manifest_rows(dataset: Dataset, image_ids: Sequence[str]) -> pd.DataFrame:
    if len(image_ids) == 0:
        raise DataError(f"{dataset.name}: no images were asked for", remedy="check the split and the manifest")
    positions = pd.Index(dataset.manifest["image_id"]).get_indexer(pd.Index(image_ids))
    unknown = [name for name, position in zip(image_ids, positions, strict=True) if position < 0]
    if unknown:
        raise DataError(
            f"{dataset.folder}: {first_of(unknown, _MAX_LISTED)} not in manifest.csv",
            remedy="use the split that belongs to this data set, or make it again with `dermkit split`",
        )
    rows: pd.DataFrame = dataset.manifest.iloc[positions].reset_index(drop=True)
    return rows


def _first_rows(keys: NDArray[np.uint8], rows: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the first of these rows with each key, so that identical images are decoded once."""
    key_values = np.ascontiguousarray(keys[rows]).view(f"V{KEY_BYTES}")[:, 0]
    return rows[np.sort(np.unique(key_values, return_index=True)[1])]


@dataclass(eq=False)
class _Block:
    """Images that become one segment. is_filled: (n,) bool, the rows of `pixels` that are decoded."""

    paths: list[str]
    pixel_hashes: list[str]
    keys: NDArray[np.uint8]
    pixels: NDArray[np.uint8]
    is_filled: NDArray[np.bool_]


_PendingBlock = tuple[_Block, list[Future[list[str]]]]


class _Build:
    """Decodes images into a store, block by block, in threads: Pillow releases Python's global lock."""

    def __init__(
        self,
        dataset: Dataset,
        preprocessing: Preprocessing,
        store: Store,
        workers: int,
        on_progress: Callable[[int, int], None] | None,
    ) -> None:
        self.dataset = dataset
        self.preprocessing = preprocessing
        self.store = store
        self.workers = workers or min(_MAX_THREADS, cpu_count())
        self.on_progress = on_progress
        self.stop_event = threading.Event()
        self.n_finished = 0

    def run(self, rows: pd.DataFrame, keys: NDArray[np.uint8]) -> None:
        """Decode these images and add them to the store; raises one `DataError` that lists all invalid ones."""
        self.store.check_room(len(rows))
        problems: list[str] = []
        pending: deque[_PendingBlock] = deque()
        try:
            with worker_pool(self.workers) as pool, self._stopping_threads():
                for block in self._blocks(rows, keys):
                    pending.append((block, self._submit(pool, block)))
                    if len(pending) == _BLOCKS_IN_MEMORY:
                        problems += self._finish(pending, len(rows))
                while pending:
                    problems += self._finish(pending, len(rows))
        finally:
            for block, _ in pending:
                self._save(block)
        self._refuse(problems, len(rows))

    @contextmanager
    def _stopping_threads(self) -> Iterator[None]:
        try:
            yield
        finally:
            self.stop_event.set()  # an interrupt must not wait for all images

    def _blocks(self, rows: pd.DataFrame, keys: NDArray[np.uint8]) -> Iterator[_Block]:
        size = self.store.rows_per_segment
        for start in range(0, len(rows), size):
            block_rows = rows.iloc[start : start + size]
            pixels = np.empty((len(block_rows), *self.store.shape), np.uint8)
            yield _Block(
                block_rows["path"].tolist(),
                block_rows["pixel_sha256"].tolist(),
                keys[start : start + size],
                pixels,
                np.zeros(len(block_rows), np.bool_),
            )

    def _submit(self, pool: ThreadPoolExecutor, block: _Block) -> list[Future[list[str]]]:
        starts = range(0, len(block.paths), _IMAGES_PER_TASK)
        return [
            pool.submit(self._decode, block, start, min(start + _IMAGES_PER_TASK, len(block.paths)))
            for start in starts
        ]

    def _decode(self, block: _Block, start: int, stop: int) -> list[str]:
        """Decode the rows start to stop of a block; return the problem of each, or ""."""
        problems = []
        for row in range(start, stop):
            if self.stop_event.is_set():
                break
            try:
                image = open_image(self.dataset.image_root / block.paths[row], name=block.paths[row])
            except ImageRejected as error:
                problems.append(f"{error.name} ({error.reason.value})")
                continue
            if image.pixel_sha256 != block.pixel_hashes[row]:
                problems.append(f"{block.paths[row]}: changed since it was imported")
                continue
            block.pixels[row] = resize_pixels(image.pixels, self.preprocessing)
            block.is_filled[row] = True
            problems.append("")
        return problems

    def _finish(self, pending: deque[_PendingBlock], total: int) -> list[str]:
        """Wait for the oldest block and save it; return its problems."""
        block, futures = pending[0]
        problems = self._collect(futures, total)
        self._save(block)
        pending.popleft()  # last: an interrupted block is still pending, and `run` saves it
        return problems

    def _collect(self, futures: Sequence[Future[list[str]]], total: int) -> list[str]:
        problems = []
        for future in futures:
            for problem in future.result():
                problems += [problem] if problem else []
                self.n_finished += 1
                if self.on_progress is not None:
                    self.on_progress(self.n_finished, total)
        return problems

    def _save(self, block: _Block) -> None:
        is_filled = block.is_filled.copy()  # a thread that an interrupt left behind may fill another row meanwhile
        if is_filled.all():
            self.store.add(block.keys, block.pixels)
        else:
            self.store.add(block.keys[is_filled], block.pixels[is_filled])

    def _refuse(self, problems: Sequence[str], total: int) -> None:
        if problems:
            raise DataError(
                f"{self.dataset.image_root}: {len(problems)} of {total} images cannot be used: "
                f"{first_of(sorted(problems), _MAX_LISTED)}",
                outcome="the data set and its manifest are untouched, and what was decoded need not be decoded again",
                remedy="restore these images, or import the data set again",
            )
