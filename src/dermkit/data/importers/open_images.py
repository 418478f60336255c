"""Opens every image of an import once, in threads, and keeps what the manifest needs in few bytes per image."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from dermkit.data.importers.records import Note, Refused, Rows
from dermkit.errors import ImageRefused
from dermkit.images.decode import open_image
from dermkit.threads import cores

MOST_THREADS = 16
"""Beyond this the parts of the gate that hold Python's lock are the limit, not the decoders."""

_TASK = 32  # images per task: waking a thread for each one cost as much as a small image
_HASH = 32  # bytes of a SHA-256


class Opened(NamedTuple):
    """What the manifest holds of one image, and what was decided about its pixels."""

    pixel_sha256: str
    file_sha256: str
    width: int
    height: int
    notes: tuple[str, ...]


def open_all(
    rows: Rows, on_progress: Callable[[int, int], None] | None
) -> tuple[pd.DataFrame, list[Refused], list[Note]]:
    """Open every image once; return the rows that were let in, with hashes and sizes, the refused, and the notes.

    on_progress: called with (images done, images in all).
    """
    paths = rows.frame["path"].tolist()
    let_in = np.zeros(len(paths), bool)
    sizes = np.zeros((len(paths), 2), np.int64)
    hashes = bytearray(2 * _HASH * len(paths))  # a million as text weigh 230 MB, as bytes 64
    refused: list[Refused] = []
    counts: Counter[str] = Counter()
    for at, result in enumerate(_in_order(rows.images, paths)):
        if isinstance(result, Refused):
            refused.append(result)
        else:
            let_in[at] = True
            sizes[at] = result.width, result.height
            both = bytes.fromhex(result.pixel_sha256 + result.file_sha256)
            hashes[2 * _HASH * at : 2 * _HASH * (at + 1)] = both
            counts.update(result.notes)
        if on_progress:
            on_progress(at + 1, len(paths))
    kept = rows.frame[let_in].reset_index(drop=True)
    kept["pixel_sha256"] = pd.Series(list(_hex(hashes, let_in, 0)), dtype="str")
    kept["file_sha256"] = pd.Series(list(_hex(hashes, let_in, _HASH)), dtype="str")
    kept["width"], kept["height"] = sizes[let_in].T
    notes = [Note("pixels", f"{text[0].upper()}{text[1:]}.", n) for text, n in sorted(counts.items())]
    return kept, refused, notes


def _hex(hashes: bytearray, let_in: np.ndarray, start: int) -> Iterator[str]:
    for at in np.flatnonzero(let_in).tolist():
        begin = 2 * _HASH * at + start
        yield hashes[begin : begin + _HASH].hex()


def _in_order(root: Path, paths: Sequence[str]) -> Iterator[Opened | Refused]:
    """Open images in threads, results in the order of `paths`.

    Threads, since decoders and hashes release Python's lock, and a started process would need the caller's script to
    be importable. 10,015 JPEGs of 200 x 150 on two busy cores: one thread 2.6 s, two 2.7 s, two processes 1.5 to
    2.4 s; the larger the images, the more the threads gain.
    """
    tasks = [paths[start : start + _TASK] for start in range(0, len(paths), _TASK)]
    pool = ThreadPoolExecutor(min(MOST_THREADS, cores()))
    try:
        for results in pool.map(lambda task: [_open_one(root / path, path) for path in task], tasks):
            yield from results
    finally:
        pool.shutdown(cancel_futures=True)


def _open_one(file: Path, path: str) -> Opened | Refused:
    try:
        image = open_image(file, name=path)
    except ImageRefused as error:
        return Refused(path, error.reason.value, error.detail)
    height, width = image.pixels.shape[:2]
    return Opened(image.pixel_sha256, image.file_sha256, width, height, image.notes)
