"""Resized pixels, decoded once: found again by an image's own pixels and its geometry, in any run, fold or data set."""

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

from dermkit.data.cache.store import KEY_BYTES, Store, StoredRows, evict, hash_keys
from dermkit.data.manifest import Dataset
from dermkit.errors import DataError, ImageRejected
from dermkit.files import canonical_json, sha256_bytes
from dermkit.images.decode import open_image
from dermkit.images.preprocess import Preprocessing, resize_pixels
from dermkit.threads import cpu_count, worker_pool

DECODER_VERSION = 1
"""Raise it whenever `open_image` or `resize_pixels` gives other pixels than before: old caches are then not found."""

MAX_CACHE_BYTES = 50 * 10**9
"""What a cache may hold by default: 330,000 images of 224 x 224, or several sizes of a smaller data set."""

_MAX_LISTED = 10
"""Problems that a message names; the rest is counted."""

_MAX_THREADS = 16
"""Beyond this the parts that hold Python's lock are the limit, and every thread holds a whole photograph in memory."""

_IMAGES_PER_TASK = (
    16  # images that a thread is given at once: waking it for each one costs as much as a small image
)
_BLOCKS_IN_MEMORY = 2  # blocks in memory: one is written while the next is decoded


@dataclass(frozen=True)
class PixelCache:
    """Resized pixels of a data set's images.

    pixels: (N, S, S, 3) uint8 sRGB, read from memory maps. index: image_id -> row. key: changes with the list of
    images and with the geometry.
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
    """Return the resized pixels of these images, in this order; only what no earlier run decoded is decoded.

    on_progress(done, total) counts the images that are decoded now, and is not called where there are none. workers:
    threads, 0 = one per core, at most 16. What was decoded is kept when this is interrupted or refuses. Raises
    `DataError` naming the images that are unknown, missing, refused, or no longer have the pixels that the manifest
    states, and `OutputError` where there is no room, before anything is decoded.
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


def evict_to_size(folder: Path, max_bytes: int = MAX_CACHE_BYTES) -> int:
    """Evict from the caches below a folder what was not used for longest, but nothing that this process used.

    Returns the bytes removed; call it after a run.
    """
    return evict(folder, max_bytes, spare_used=True)


def pixel_keys(rows: pd.DataFrame, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return (N, 32): what decides an image's resized pixels, its own pixels and the geometry. Mean and std come later.

    rows: of a manifest, with `pixel_sha256`.
    """
    return hash_keys(canonical_json(geometry(preprocessing)), (text.encode() for text in rows["pixel_sha256"]))


def geometry(preprocessing: Preprocessing) -> list[object]:
    """Return what decides the pixels that an image is resized to, beside the image."""
    return [preprocessing.size, preprocessing.resize, preprocessing.interpolation, DECODER_VERSION]


def store_name(preprocessing: Preprocessing) -> str:
    """Return the name of the store that pixels of this geometry lie in."""
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
            f"{dataset.folder}: {_name_list(unknown)} not in manifest.csv",
            remedy="use the split that belongs to this data set, or make it again with `dermkit split`",
        )
    rows: pd.DataFrame = dataset.manifest.iloc[positions].reset_index(drop=True)
    return rows


def _first_rows(keys: NDArray[np.uint8], rows: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the first row of each key among the chosen rows: identical images are decoded once."""
    key_values = np.ascontiguousarray(keys[rows]).view(f"V{KEY_BYTES}")[:, 0]
    return rows[np.sort(np.unique(key_values, return_index=True)[1])]


def _name_list(names: Sequence[str]) -> str:
    more_text = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more_text


@dataclass(eq=False)
class _Block:
    """Images that become one segment. done: (n,), the rows of `pixels` that are filled and not yet saved."""

    paths: list[str]
    pixel_hashes: list[str]
    keys: NDArray[np.uint8]
    pixels: NDArray[np.uint8]
    is_filled: NDArray[np.bool_]


_PendingBlock = tuple[_Block, list[Future[list[str]]]]


class _Build:
    """Decodes what a store lacks, block by block on threads; Pillow decodes and resizes outside Python's lock."""

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
        """Decode these images and add them; raises one `DataError` that names all that cannot be used."""
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
            self.stop_event.set()  # an interrupt must not wait for the whole queue

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
        """Fill rows start to end of a block; return for each its problem, or ""."""
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
        pending.popleft()  # only now: what is interrupted before is saved at the end
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
                f"{_name_list(sorted(problems))}",
                outcome="the data set and its manifest are untouched, and what was decoded need not be decoded again",
                remedy="restore these images, or import the data set again",
            )
