"""Bombs, hostile colour profiles and folders of odd files through the image gate; appends to benchmarks/image_gate.csv.

    python benchmarks/image_gate.py bombs              # 130 images and profiles that ask for too much
    python benchmarks/image_gate.py profiles           # 4,000 damaged colour profiles inside ordinary images
    python benchmarks/image_gate.py files FOLDER...    # every file below these folders, such as test files of decoders

Each file is opened by `open_image` in a process that only does this, 100 files a process; a process that dies or takes
longer than a minute for one file names that file. A file is accounted for if it is decoded or refused with a reason.
"""

import argparse
import multiprocessing
import queue
import random
import re
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

from PIL import Image

from scale import add_rows, commit, machine, versions

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from made_images import chunk, encoded, icc, png, speckled, tiff, webp_bomb, xyz  # noqa: E402
from test_profiles import curves, lookup, make_profile, pipeline, stage  # noqa: E402

ROWS = HERE / "image_gate.csv"
HEADER = (
    "commit", "machine", "versions", "source", "files", "decoded", "refused", "unaccounted", "slowest_s",
    "over_2_s", "most_mb", "reasons",
)  # fmt: skip
PROCESS_FILES = 100
STUCK_SECONDS = 60.0
Make = Callable[[], bytes]


# Bombs ------------------------------------------------------------------------------------------------------------


def bombs() -> dict[str, Make]:
    """Return name -> maker of every bomb: sizes, compression, segments, scans, directories and colour profiles."""
    return {**size_bombs(), **png_bombs(), **jpeg_bombs(), **tiff_bombs(), **profile_bombs()}


def size_bombs() -> dict[str, Make]:
    """Small files that claim 64 megapixels to 4 gigapixels, in each format."""
    sizes = [(16_000, 16_000), (65_000, 65_000), (16_384, 4_000), (60_000, 2_000), (2, 60_000)]
    makers: dict[str, Make] = {"WebP of 34 bytes": webp_bomb}
    for width, height in sizes:
        name = f"{width} x {height}"
        makers[f"PNG {name}"] = partial(png, width, height, 8, 2, b"")
        makers[f"grey PNG {name}"] = partial(png, width, height, 1, 0, b"")
        makers[f"JPEG {name}"] = partial(with_jpeg_size, width, height)
        makers[f"progressive JPEG {name}"] = partial(with_jpeg_size, width, height, progressive=True)
        makers[f"BMP {name}"] = partial(with_bmp_size, width, height)
        makers[f"TIFF {name}"] = partial(tiff, "<", width, height, 8, 1, bytes(64))
        makers[f"big-endian TIFF {name}"] = partial(tiff, ">", width, height, 1, 0, bytes(64))
    for side in (5_000, 7_900):
        makers[f"flat WebP {side}"] = partial(flat, side, "WEBP", lossless=True, method=0)
        makers[f"flat PNG {side}"] = partial(flat, side, "PNG")
        makers[f"flat JPEG {side}"] = partial(flat, side, "JPEG", quality=1)
    return makers


def with_jpeg_size(width: int, height: int, **options: bool) -> bytes:
    data = bytearray(encoded(speckled(), "JPEG", **options))
    start = re.search(rb"\xff[\xc0\xc2]\0\x11", data)
    if start is None:
        raise ValueError("no start of frame")
    struct.pack_into(">HH", data, start.start() + 5, height, width)
    return bytes(data)


def with_bmp_size(width: int, height: int) -> bytes:
    data = encoded(speckled(), "BMP")
    return data[:18] + struct.pack("<ii", width, height) + data[26:]


def png_bombs() -> dict[str, Make]:
    """Compressed text, profiles, EXIF and pixels of 200 MB in 200 KB, and hundreds of thousands of chunks."""
    zeros = zlib.compress(bytes(200_000_000), 9)
    image = (40, 32, 8, 0, bytes(40 * 32))
    extras = {
        "zTXt": [chunk(b"zTXt", b"a\0\0" + zeros)],
        "iTXt": [chunk(b"iTXt", b"a\0\1\0\0\0" + zeros)],
        "iCCP": [chunk(b"iCCP", b"a\0\0" + zeros)],
        "many zTXt": [chunk(b"zTXt", b"a\0\0" + zeros)] * 20,
        "many tEXt": [chunk(b"tEXt", b"a\0b")] * 300_000,
        "many unknown chunks": [chunk(b"abCd", b"")] * 300_000,
        "many palettes": [chunk(b"PLTE", bytes(768))] * 50_000,
        "eXIf": [chunk(b"eXIf", b"MM\0*" + bytes(20_000_000))],
        "long name": [chunk(b"tEXt", b"a" * 50_000_000)],
    }
    makers: dict[str, Make] = {f"PNG {name}": partial(png, *image, *extra) for name, extra in extras.items()}
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 40, 32, 8, 2, 0, 0, 0))
    end = chunk(b"IEND", b"")
    makers["PNG pixels of 200 MB"] = lambda: head + chunk(b"IDAT", zeros) + end
    makers["PNG empty IDATs"] = lambda: head + chunk(b"IDAT", b"") * 300_000 + end
    makers["PNG one byte per IDAT"] = lambda: (
        head + b"".join(chunk(b"IDAT", zeros[i : i + 1]) for i in range(90_000)) + end
    )
    makers["PNG length of 2 GB"] = lambda: head + struct.pack(">I", 2**31 - 1) + b"IDAT" + zeros[:99]
    makers["PNG twice IHDR"] = lambda: (
        head + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)) + end
    )
    return makers


def jpeg_bombs() -> dict[str, Make]:
    """Scans, segments, tables and restarts without end."""
    makers: dict[str, Make] = {}
    for size, n in ((1_000, 65), (1_000, 5_000), (7_900, 64), (7_900, 1_000)):
        makers[f"JPEG {n} scans of {size}"] = partial(many_scans, size, n)
    segments = {
        "comments": b"\xff\xfe\0\2", "tables": b"\xff\xdb\0\x43\0" + b"\1" * 64, "restarts": b"\xff\xdd\0\4\0\1",
        "applications": b"\xff\xe1\0\x08Exif\0\0", "photoshop": b"\xff\xed\0\x10Photoshop 3.0\0",
        "profile parts": b"\xff\xe2\0\x10ICC_PROFILE\0\1\xff",
    }  # fmt: skip
    for name, segment in segments.items():
        for n in (50_000, 400_000):
            makers[f"JPEG {n} {name}"] = partial(after_start, segment * n)
    makers["JPEG fill bytes"] = lambda: after_start(b"\xff" * 50_000_000)
    makers["JPEG 16 MB of profile"] = lambda: after_start(
        b"".join(
            b"\xff\xe2" + struct.pack(">H", 65_535) + b"ICC_PROFILE\0" + bytes((i, 255)) + bytes(65_519)
            for i in range(1, 256)
        )
    )
    makers["JPEG restart marks in pixels"] = lambda: (
        encoded(speckled(), "JPEG")[:-2] + b"\xff\xd0" * 10_000_000 + b"\xff\xd9"
    )
    return makers


def many_scans(size: int, n: int) -> bytes:
    data = encoded(Image.new("L", (size, size), 128), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * n + b"\xff\xd9"


def after_start(segments: bytes) -> bytes:
    data = encoded(speckled(), "JPEG")
    return data[:2] + segments + data[2:]


def tiff_bombs() -> dict[str, Make]:
    """Directories that point to themselves, counts, tiles and strips without end, compressed zeros."""
    makers: dict[str, Make] = {}
    for tag in (258, 273, 277, 279, 322, 323, 324, 330, 34377, 34665, 34675, 700, 320, 339):
        makers[f"TIFF tag {tag} without end"] = partial(
            tiff, "<", 16, 16, 8, 1, bytes(256), **{f"t{tag}": 2**31 - 1}
        )
    for order in "<>":
        makers[f"TIFF {order} that points to itself"] = partial(circular_directory, order)
        makers[f"TIFF {order} of 65,535 tags"] = partial(endless_directory, order)
    for compression in ("tiff_adobe_deflate", "tiff_lzw", "packbits", "jpeg"):
        makers[f"TIFF {compression} of 60 megapixels"] = partial(flat, 7_700, "TIFF", compression=compression)
    makers["TIFF of 300 pages"] = lambda: encoded(
        speckled(), "TIFF", save_all=True, append_images=[speckled()] * 300
    )
    return makers


def flat(side: int, image_format: str, **options: object) -> bytes:
    mode = "RGB" if image_format == "WEBP" else "L"
    return encoded(Image.new(mode, (side, side)), image_format, **options)


def endless_directory(order: str) -> bytes:
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(f"{order}IH", 8, 65_535) + bytes(12 * 65_535)


def circular_directory(order: str) -> bytes:
    data = bytearray(tiff(order, 16, 16, 8, 1, bytes(256)))
    (n_tags,) = struct.unpack_from(f"{order}H", data, 8)
    struct.pack_into(f"{order}I", data, 10 + 12 * n_tags, 8)
    return bytes(data)


def profile_bombs() -> dict[str, Make]:
    """Pipelines, curves and tables of a colour profile, in each format that carries one."""
    parts = {
        "100,000 stages": (b"D2B0", pipeline(100_000)), "as A2B0": (b"A2B0", pipeline(5_000)),
        "wide stage": (b"D2B0", pipeline(2, stage(inputs=15))),
        "60,000 segments": (b"D2B0", pipeline(1, curves(60_000))),
        "table of 15 channels": (b"A2B0", lookup(b"mft2", 15)), "new table of 15": (b"A2B0", lookup(b"mAB ", 15)),
        "table of 8": (b"A2B0", lookup(b"mft1", 8)), "unknown stage": (b"D2B0", pipeline(1, stage(b"abcd"))),
    }  # fmt: skip
    makers: dict[str, Make] = {}
    for (name, part), image_format in product(parts.items(), ("JPEG", "PNG", "WEBP", "TIFF")):
        makers[f"{image_format} profile, {name}"] = partial(
            encoded, speckled(300, 200), image_format, icc_profile=make_profile(part)
        )
    return makers


# Damaged profiles -------------------------------------------------------------------------------------------------


def damaged_profiles(n: int) -> Iterator[tuple[str, Make]]:
    """Yield n ordinary images whose profiles are changed at random, half of the changes in the table of tags."""
    for seed in range(n):
        yield f"profile {seed}", partial(damaged_profile, seed)


def damaged_profile(seed: int) -> bytes:
    rng = random.Random(seed)
    profiles = (
        make_profile(), make_profile((b"D2B0", pipeline(3))), make_profile((b"A2B0", lookup(b"mft2", 3))),
        make_profile((b"A2B0", lookup(b"mAB ", 3))), make_profile((b"D2B0", pipeline(1, curves(9)))),
        icc(b"GRAY", {b"wtpt": xyz(0.96, 1, 0.82), b"kTRC": b"curv" + bytes(8)}),
    )  # fmt: skip
    data = bytearray(rng.choice(profiles))
    for _ in range(rng.randrange(1, 9)):
        at = rng.randrange(128, min(len(data), 400)) if rng.random() < 0.5 else rng.randrange(len(data))
        data[at] = rng.choice([0, 1, 0x7F, 0xFF, rng.randrange(256)])
    if rng.random() < 0.2:
        data = data[: rng.randrange(len(data))]
    return encoded(speckled(60, 40), rng.choice(("JPEG", "PNG", "WEBP", "TIFF")), icc_profile=bytes(data) or b"x")


# Measuring --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """One file: `decoded`, the reason of its refusal, or what went wrong; seconds; peak memory of its process in MB."""

    name: str
    result: str
    is_accounted: bool
    seconds: float
    peak_mb: float


def open_files(files: Sequence[tuple[str, Path | Make]], results: "multiprocessing.Queue[Outcome]") -> None:
    from dermkit.errors import ImageRejected
    from dermkit.images.decode import open_image

    for name, file in files:
        source = file if isinstance(file, Path) else file()
        start = time.perf_counter()
        try:
            open_image(source, name=name)
            result, is_accounted = "decoded", True
        except ImageRejected as rejection:
            result, is_accounted = rejection.reason.value, bool(rejection.detail)
        except BaseException as error:  # noqa: BLE001  whatever else comes is what this looks for
            result, is_accounted = f"{type(error).__name__}: {error}", False
        results.put(Outcome(name, result, is_accounted, time.perf_counter() - start, peak_mb()))


def peak_mb() -> float:
    match = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(match[1]) / 1024 if match else float("nan")


def measure(files: Sequence[tuple[str, Path | Make]]) -> list[Outcome]:
    """Return the outcome of each file, also of one at which its process died or was stuck."""
    outcomes: list[Outcome] = []
    while len(outcomes) < len(files):
        batch = files[len(outcomes) : len(outcomes) + PROCESS_FILES]
        outcomes += measure_in_process(batch)
    return outcomes


def measure_in_process(batch: Sequence[tuple[str, Path | Make]]) -> list[Outcome]:
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[Outcome] = context.Queue()
    process = context.Process(target=open_files, args=(batch, results))
    process.start()
    outcomes: list[Outcome] = []
    last = time.monotonic()
    while len(outcomes) < len(batch):
        try:
            outcomes.append(results.get(timeout=0.5))
            last = time.monotonic()
        except queue.Empty:
            if process.is_alive() and time.monotonic() - last < STUCK_SECONDS:
                continue
            result = "stuck" if process.is_alive() else f"process ended with {process.exitcode}"
            outcomes.append(Outcome(batch[len(outcomes)][0], result, False, time.monotonic() - last, 0.0))
            break
    process.kill()
    process.join()
    return outcomes


def report(source: str, outcomes: Sequence[Outcome]) -> None:
    """Append a row and print it, with every file that is unaccounted for or took more than 2 s."""
    slow = [outcome for outcome in outcomes if outcome.seconds > 2]
    unaccounted = [outcome for outcome in outcomes if not outcome.is_accounted]
    reasons = Counter(outcome.result for outcome in outcomes if outcome.is_accounted)
    n_decoded = reasons.pop("decoded", 0)
    row = (
        commit(), machine(), versions(), source, len(outcomes), n_decoded, sum(reasons.values()), len(unaccounted),
        round(max(outcome.seconds for outcome in outcomes), 2), len(slow),
        round(max(outcome.peak_mb for outcome in outcomes)),
        "; ".join(f"{reason} {n}" for reason, n in reasons.most_common()),
    )  # fmt: skip
    add_rows(ROWS, HEADER, [row])
    print(dict(zip(HEADER[3:], row[3:], strict=True)))
    for outcome in {*slow, *unaccounted}:
        print(f"{outcome.name}: {outcome.result}, {outcome.seconds:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", choices=("bombs", "profiles", "files"))
    parser.add_argument("folders", nargs="*", type=Path)
    options = parser.parse_args()
    if options.source == "bombs":
        report("bombs", measure(list(bombs().items())))
    elif options.source == "profiles":
        report("profiles", measure(list(damaged_profiles(4_000))))
    for folder in options.folders:
        files = [(str(path), path) for path in sorted(folder.rglob("*")) if path.is_file()]
        report(folder.name, measure(files))


if __name__ == "__main__":
    main()
