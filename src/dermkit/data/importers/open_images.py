"""Opens every image of an import once, in threads, and collects what the manifest needs of it.

Arrays have one entry per image: sizes (n, 2) int64, width and height in pixels; hashes 64 bytes, of pixels and of file.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from dermkit.data.importers.records import Note, Records, Rejected
from dermkit.errors import ImageRejected
from dermkit.images.decode import open_image
from dermkit.threads import cpu_count, ordered_map

MAX_THREADS = 16
"""More threads do not help: the code that holds Python's global lock is then the limit, not the decoders."""

_IMAGES_PER_TASK = 32  # handing over a single image costs as much as decoding a small one
_HASH_BYTES = 32  # bytes of a SHA-256


class ImageSummary(NamedTuple):
    """The manifest's entries about one image, and notes about conversions of its pixels."""

    pixel_sha256: str
    file_sha256: str
    width: int
    height: int
    notes: tuple[str, ...]


def open_images(
    records: Records, on_progress: Callable[[int, int], None] | None
) -> tuple[pd.DataFrame, list[Rejected], list[Note]]:
    """Open every image once; return the rows of valid images with hashes and sizes, the rejected ones, and notes.

    on_progress: called with (images done, all images).
    """
    paths = records.frame["path"].tolist()
    is_accepted = np.zeros(len(paths), bool)
    sizes = np.zeros((len(paths), 2), np.int64)
    hashes = bytearray(2 * _HASH_BYTES * len(paths))  # of a million images: 64 MB, as text 230 MB
    rejected: list[Rejected] = []
    counts: Counter[str] = Counter()
    for index, result in enumerate(_open_in_threads(records.image_root, paths)):
        if isinstance(result, Rejected):
            rejected.append(result)
        else:
            is_accepted[index] = True
            sizes[index] = result.width, result.height
            digests = bytes.fromhex(result.pixel_sha256 + result.file_sha256)
            hashes[2 * _HASH_BYTES * index : 2 * _HASH_BYTES * (index + 1)] = digests
            counts.update(result.notes)
        if on_progress:
            on_progress(index + 1, len(paths))
    accepted_rows = records.frame[is_accepted].reset_index(drop=True)
    accepted_rows["pixel_sha256"] = pd.Series(list(_hex_digests(hashes, is_accepted, 0)), dtype="str")
    accepted_rows["file_sha256"] = pd.Series(list(_hex_digests(hashes, is_accepted, _HASH_BYTES)), dtype="str")
    accepted_rows["width"], accepted_rows["height"] = sizes[is_accepted].T
    notes = [Note("pixels", f"{text[0].upper()}{text[1:]}.", n) for text, n in sorted(counts.items())]
    return accepted_rows, rejected, notes


def _hex_digests(hashes: bytearray, is_accepted: np.ndarray, hash_offset: int) -> Iterator[str]:
    for index in np.flatnonzero(is_accepted).tolist():
        offset = 2 * _HASH_BYTES * index + hash_offset
        yield hashes[offset : offset + _HASH_BYTES].hex()


def _open_in_threads(root: Path, paths: Sequence[str]) -> Iterator[ImageSummary | Rejected]:
    """Open images in threads, results in the order of `paths`.

    Threads, because decoders and hashes release Python's global lock, and new processes would need the caller's script
    to be importable. 10,015 JPEGs of 200 x 150 pixels on two busy cores took one thread 2.6 s, two threads 2.7 s, two
    processes 1.5 to 2.4 s; larger images gain more.
    """
    tasks = [paths[start : start + _IMAGES_PER_TASK] for start in range(0, len(paths), _IMAGES_PER_TASK)]

    def open_task(task: Sequence[str]) -> list[ImageSummary | Rejected]:
        return [_open_one(root / path, path) for path in task]

    for summaries in ordered_map(open_task, tasks, n_threads=min(MAX_THREADS, cpu_count())):
        yield from summaries


def _open_one(file: Path, path: str) -> ImageSummary | Rejected:
    try:
        image = open_image(file, name=path)
    except ImageRejected as error:
        return Rejected(path, error.reason.value, error.detail)
    height, width = image.pixels.shape[:2]
    return ImageSummary(image.pixel_sha256, image.file_sha256, width, height, image.notes)
