"""JPEG decoders beside the image gate: processor seconds for the same files, and whether the pixels are equal.

    python -m pip install simplejpeg opencv-python-headless imagecodecs        # the others; those absent are left out
    python benchmarks/decode.py IMAGES [--images 200] [--sides 0 1024 3000] [--rounds 5]

IMAGES is a folder of JPEG files. For each of `sides` the images are taken as they are (0) or enlarged to this longer
side and compressed again (quality 90, 4:2:0), in memory. One thread; the decoders take turns in every round. Rows go to
benchmarks/decode.csv: the median of the rounds, and the ratio to Pillow's plain decoding. `gate` is what dermkit does
with each file: header and completeness checked, decoded by Pillow, colour space converted, pixels hashed.
"""

import argparse
import datetime
import importlib
import io
import statistics
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dermkit.images.decode import open_image
from scale import add_rows, commit, machine

ROWS = Path(__file__).parent / "decode.csv"
HEADER = (
    "date", "commit", "machine", "decoder", "version", "side", "n", "seconds", "images_per_second", "of_pillow",
    "n_equal", "max_difference",
)  # fmt: skip

Pixels = NDArray[np.uint8]
Decoder = Callable[[bytes], Pixels]


def by_pillow(content: bytes) -> Pixels:
    """Decode as Pillow does."""
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


def by_gate(content: bytes) -> Pixels:
    """Decode as dermkit does, with every check."""
    return open_image(content).pixels


def _simplejpeg(module: Any) -> Decoder:
    return lambda content: np.asarray(module.decode_jpeg(content))


def _opencv(module: Any) -> Decoder:
    def decode(content: bytes) -> Pixels:
        pixels = module.imdecode(np.frombuffer(content, np.uint8), module.IMREAD_COLOR)
        return np.asarray(module.cvtColor(pixels, module.COLOR_BGR2RGB))

    return decode


def _imagecodecs(module: Any) -> Decoder:
    return lambda content: np.asarray(module.jpeg8_decode(content))


def _torchvision(module: Any) -> Decoder:
    torch = importlib.import_module("torch")

    def decode(content: bytes) -> Pixels:
        coded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        pixels = module.decode_jpeg(coded, mode=module.ImageReadMode.RGB)
        return np.asarray(pixels.permute(1, 2, 0).contiguous().numpy())

    return decode


OTHERS: tuple[tuple[str, str, str, Callable[[Any], Decoder]], ...] = (
    ("torchvision", "torchvision.io", "torchvision", _torchvision),
    ("simplejpeg", "simplejpeg", "simplejpeg", _simplejpeg),
    ("opencv", "cv2", "opencv-python-headless", _opencv),
    ("imagecodecs", "imagecodecs", "imagecodecs", _imagecodecs),
)
"""Name, module, package, and how its decoder is made."""


def decoders() -> dict[str, tuple[str, Decoder]]:
    """Return name -> (version, decoder) of those that are installed; Pillow and the gate first."""
    ready: dict[str, tuple[str, Decoder]] = {
        "pillow": (version("pillow"), by_pillow), "gate": (version("pillow"), by_gate),
    }  # fmt: skip
    for name, module, package, make in OTHERS:
        try:
            ready[name] = (version(package), make(importlib.import_module(module)))
        except (ImportError, PackageNotFoundError, RuntimeError) as error:  # torchvision raises the last
            print(f"{name}: left out, {type(error).__name__}: {error}")
    return ready


def enlarge(content: bytes, side: int) -> bytes:
    """Return a JPEG file enlarged to a longer side of so many pixels; 0 = as it is."""
    if not side:
        return content
    with Image.open(io.BytesIO(content)) as image:
        factor = side / max(image.size)
        size = (round(image.width * factor), round(image.height * factor))
        coded = io.BytesIO()
        image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(
            coded, "JPEG", quality=90, subsampling="4:2:0"
        )
    return coded.getvalue()


def equality(decoder: Decoder, files: list[bytes]) -> tuple[int, int]:
    """Return how many files have Pillow's pixels, and the largest difference of a level."""
    differences = []
    for content in files:
        pixels, expected = decoder(content), by_pillow(content)
        differences.append(int(np.abs(pixels.astype(np.int16) - expected.astype(np.int16)).max()))
    return sum(difference == 0 for difference in differences), max(differences)


def measure(files: list[bytes], rounds: int) -> dict[str, float]:
    """Return decoder -> median seconds for all files; the first round is not counted."""
    ready = decoders()
    seconds: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(rounds + 1):
        for name, (_, decode) in ready.items():
            start = time.process_time()
            for content in files:
                decode(content)
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def run(folder: Path, n_images: int, sides: list[int], rounds: int) -> None:
    """Measure every decoder on every size, and append the rows."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    chosen = np.random.default_rng(0).permutation(len(paths))[:n_images]
    originals = [paths[number].read_bytes() for number in chosen]
    ready = decoders()
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    for side in sides:
        files = [enlarge(content, side) for content in originals]
        medians = measure(files, rounds)
        for name, seconds in medians.items():
            n_equal, difference = equality(ready[name][1], files)
            ratio = seconds / medians["pillow"]
            rate = len(files) / seconds
            print(f"{side:5d} {name:12s} {rate:8.1f} a second, {ratio:.2f} of Pillow's time, {n_equal} equal")
            add_rows(ROWS, HEADER, [(
                today, commit(), machine(), name, ready[name][0], side, len(files), round(seconds, 4),
                round(rate, 1), round(ratio, 3), n_equal, difference,
            )])  # fmt: skip


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--sides", type=int, nargs="+", default=[0, 1024, 3000])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    run(options.folder, options.images, options.sides, options.rounds)


if __name__ == "__main__":
    main()
