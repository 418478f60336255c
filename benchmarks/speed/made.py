"""Images by the ten thousand: distinct pixels out of a few real photographs, or hard links of these.

    python benchmarks/speed/made.py distinct SOURCE FOLDER N
    python benchmarks/speed/made.py links SOURCE FOLDER N

`distinct`: each is a photograph of SOURCE, resized to 128 px, rolled by a number of pixels that no other copy of it
has, and saved anew, in nine folders; so neither bytes nor pixels are there twice. `links`: names alone, for memory.
"""

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from asked import pictures

SIDE = 128
CLASSES = ("nevus", "melanoma", "basal cell carcinoma", "dermatofibroma", "vascular lesion")


def distinct(source: Path, folder: Path, n: int) -> None:
    """Write images 0 to n - 1; those that are there are left alone, so that a larger n goes on from a smaller."""
    photographs = pictures(source)
    for name in CLASSES:
        (folder / name).mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor() as pool:
        starts = range(0, len(photographs), 50)
        parts = [range(start, min(start + 50, len(photographs))) for start in starts]
        jobs = [pool.submit(_write_all, photographs, part, folder, n) for part in parts]
        for job in jobs:
            job.result()


def _write_all(photographs: list[Path], chosen: range, folder: Path, n: int) -> None:
    import numpy as np
    from PIL import Image

    for position in chosen:
        with Image.open(photographs[position]) as image:
            pixels = np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        for copy, number in enumerate(range(position, n, len(photographs))):
            path = place(folder, number)
            if not path.exists():
                turned = np.roll(pixels, (copy // SIDE, copy % SIDE), axis=(0, 1))
                Image.fromarray(turned).save(path.with_suffix(".half"), "JPEG", quality=90)
                path.with_suffix(".half").rename(path)


def place(folder: Path, number: int) -> Path:
    return folder / CLASSES[number % len(CLASSES)] / f"made_{number:07d}.jpg"


def first(pool: Path, folder: Path, n: int) -> None:
    """Link the first n images of a pool into a folder of their own."""
    for name in CLASSES:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(n):
        if not place(folder, number).exists():
            os.link(place(pool, number), place(folder, number))


def links(source: Path, folder: Path, n: int) -> None:
    """Give the images of SOURCE n names, a thousand in a folder."""
    photographs = pictures(source)
    for number in range(n):
        path = (
            folder / f"{number // 1000:04d}" / f"link_{number:07d}{photographs[number % len(photographs)].suffix}"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            os.link(photographs[number % len(photographs)], path)


if __name__ == "__main__":
    verb, given_source, given_folder, given_n = sys.argv[1:]
    {"distinct": distinct, "links": links}[verb](Path(given_source), Path(given_folder), int(given_n))
