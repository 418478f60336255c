"""Import and split 10,000 to 1,000,000 rows; append time and memory to benchmarks/scale.csv; stop and go on at will.

    python benchmarks/scale.py run FOLDER [--rows 10000 100000 1000000] [--again]
    python benchmarks/scale.py table
    python benchmarks/scale.py plot FILE.png

FOLDER takes the made source and the data sets, 0.8 GB and 100,000 inodes for a million rows; it can be deleted
afterwards. A job whose rows are there is skipped. Memory is the largest resident set of the command's process, as the
system counted it when the process ended; seconds are on the clock, cpu_seconds those of the processor.
"""

import argparse
import csv
import datetime
import hashlib
import json
import math
import os
import platform
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
ROWS = HERE / "scale.csv"
HEADER = (
    "date",
    "commit",
    "machine",
    "versions",
    "what",
    "n",
    "seconds",
    "cpu_seconds",
    "maxrss_mb",
    "out_mb",
    "command",
)
LINKS = 10
"""Rows per picture: hard links cost one inode together, and no file system here takes more than 65,000 of them."""

CLASSES = ("NV", "NV", "NV", "NV", "NV", "NV", "MEL", "BKL", "BCC", "DF")
SITES = ("", "torso", "lower extremity", "head/neck")
COLUMNS = ("image", "diagnosis", "lesion", "patient", "age", "sex", "site")
MAPPED = ("--column", "label=diagnosis", "--column", "lesion_id=lesion", "--column", "patient_id=patient")
BUDGET_MB = 2000


@dataclass(frozen=True)
class Job:
    """One command line; `{source}` and `{data}` stand for the made folder and the data set."""

    what: str
    command: tuple[str, ...]


JOBS = (
    Job("import csv", ("import", "csv", "{source}/table.csv", *MAPPED, "--out", "{data}")),
    Job("split holdout", ("split", "{data}", "--scheme", "holdout")),
    Job("split kfold", ("split", "{data}", "--scheme", "kfold", "--folds", "5")),
)


@dataclass(frozen=True)
class Measured:
    """What a command cost. seconds: on the clock; cpu_seconds: user and system; maxrss_mb: largest resident set."""

    code: int
    seconds: float
    cpu_seconds: float
    maxrss_mb: float


def run(folder: Path, sizes: list[int], *, again: bool) -> None:
    """Run every job at every size whose row is not there yet."""
    for n in sizes:
        todo = [job for job in JOBS if again or (job.what, n) not in done()]
        if not todo:
            continue
        source, data = folder / f"source-{n}", folder / f"data-{n}"
        make_source(source, n)
        if todo[0] is JOBS[0]:
            shutil.rmtree(data, ignore_errors=True)
        for job in todo:
            command = [part.format(source=source, data=data) for part in job.command]
            measured = measure([sys.executable, "-m", "dermkit.cli", *command], folder / "command.log")
            if measured.code != 0:
                print((folder / "command.log").read_text()[-3000:], flush=True)
                raise SystemExit(f"{job.what}, {n} rows: exit code {measured.code}")
            append(job, n, measured, data)


def done() -> set[tuple[str, int]]:
    """Return (what, n) of the rows that are there."""
    return {(row["what"], int(row["n"])) for row in read_rows()}


def read_rows(file: Path = ROWS) -> list[dict[str, str]]:
    """Return the rows of a CSV, none where there is no file yet."""
    if not file.exists():
        return []
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def add_rows(file: Path, header: Sequence[str], made: Sequence[Sequence[object]]) -> None:
    """Add rows to a CSV, and the header where it is new."""
    fresh = not file.exists()
    with file.open("a", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([header, *made] if fresh else made)


def campaign_parsers(
    description: str | None, seeds: int
) -> tuple[argparse.ArgumentParser, argparse.ArgumentParser, argparse.ArgumentParser]:
    """Return the parser of a campaign of trainings and those of its verbs `run` and `table`; `data` has no options."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("data").add_argument("datasets", type=Path)
    runner = verbs.add_parser("run")
    runner.add_argument("datasets", type=Path)
    runner.add_argument("weights", type=Path)
    runner.add_argument("--out", type=Path, default=Path("runs"))
    runner.add_argument("--seeds", type=int, default=seeds, help="at most this many seeds of each job")
    return parser, runner, verbs.add_parser("table")


def append(job: Job, n: int, measured: Measured, data: Path) -> None:
    size = sum(path.stat().st_size for path in data.rglob("*") if path.is_file()) / 1e6
    row = (
        datetime.datetime.now(tz=datetime.UTC).date().isoformat(), commit(), machine(), versions(), job.what, n,
        round(measured.seconds, 2), round(measured.cpu_seconds, 2), round(measured.maxrss_mb, 1), round(size, 1),
        "dermkit " + " ".join(job.command).format(source="SOURCE", data="DATASET"),
    )  # fmt: skip
    add_rows(ROWS, HEADER, [row])
    print(*row[4:9], flush=True)


_METER = """
import json, os, subprocess, sys, time
started = time.perf_counter()
process = subprocess.Popen(sys.argv[2:], stdout=open(sys.argv[1], "wb"), stderr=subprocess.STDOUT)
_, status, used = os.wait4(process.pid, 0)
seconds = time.perf_counter() - started
print(json.dumps([os.waitstatus_to_exitcode(status), seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
"""


def measure(command: list[str], log: Path) -> Measured:
    """Run a command to its end and return what the system counted for it and its own children.

    By way of a small process: a command started from a large one counts that one's memory as its own peak.
    """
    meter = [sys.executable, "-I", "-S", "-c", _METER, str(log), *command]
    done = subprocess.run(meter, capture_output=True, text=True, check=True)
    code, seconds, cpu_seconds, maxrss_mb = json.loads(done.stdout)
    return Measured(code, seconds, cpu_seconds, maxrss_mb)


# The made source --------------------------------------------------------------------------------------------------


def make_source(folder: Path, n: int) -> None:
    """Write a table of n rows and their pictures: n / LINKS different ones, each under LINKS names as hard links.

    Identical pixels hold a group together, so the names of one picture are photographs of a few lesions of one
    patient, under one diagnosis; a third of all rows have no patient, a tenth no lesion. Nothing is done where the
    table is there already: it is written last.
    """
    table = folder / "table.csv"
    if table.exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    for start in range(0, n, 1000):
        (folder / "images" / f"{start // 1000:04d}").mkdir(parents=True)
    half = folder / "table.half"
    with half.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(_rows(folder, n))
    half.rename(table)


def _rows(folder: Path, n: int) -> Iterator[tuple[str, ...]]:
    pictures = math.ceil(n / LINKS)
    for number in range(n):
        picture, photograph = number % pictures, number // pictures
        name = f"images/{number // 1000:04d}/ISIC_{number:07d}.png"
        if photograph == 0:
            (folder / name).write_bytes(png(picture))
        else:
            os.link(folder / f"images/{picture // 1000:04d}/ISIC_{picture:07d}.png", folder / name)
        lesion = f"IL_{picture:06d}{photograph // 3}" if number % 10 else ""
        patient = f"IP_{picture:07d}" if picture % 3 else ""
        age, sex = str(5 * (picture % 18)), ("male", "female")[picture % 2]
        yield name, CLASSES[picture % len(CLASSES)], lesion, patient, age, sex, SITES[number % len(SITES)]


def png(number: int) -> bytes:
    """Return a PNG of 8 x 8 pixels that no other number has."""
    noise = hashlib.shake_128(str(number).encode()).digest(8 * 8 * 3)
    lines = b"".join(b"\0" + noise[start : start + 24] for start in range(0, len(noise), 24))
    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, body) for kind, body in parts)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


# What the rows say ------------------------------------------------------------------------------------------------


def commit() -> str:
    shown = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True, check=False
    )
    return shown.stdout.strip() or "unknown"


def machine() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def versions() -> str:
    found = {name: version(name) for name in ("dermkit", "numpy", "pandas", "pillow", "scipy")}
    return " ".join(f"{name} {number}" for name, number in {**found, "python": platform.python_version()}.items())


def table() -> str:
    """Return the latest row of each job and size as Markdown, with the exponent of time in n between sizes."""
    latest = {(row["what"], int(row["n"])): row for row in read_rows()}
    lines = [
        "| what | n | seconds | cpu seconds | MB resident | exponent | commit |",
        "|---|---|---|---|---|---|---|",
    ]
    for (what, n), row in sorted(latest.items()):
        sizes = sorted(size for name, size in latest if name == what and size < n)
        slope = exponent(latest[what, sizes[-1]], row) if sizes else ""
        cells = (what, f"{n:,}", row["seconds"], row["cpu_seconds"], row["maxrss_mb"], slope, row["commit"])
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def exponent(small: dict[str, str], large: dict[str, str]) -> str:
    """Return b of processor time ~ n^b between two rows; the clock also sees what else the machine does."""
    grown = math.log(float(large["cpu_seconds"]) / float(small["cpu_seconds"]))
    return f"{grown / math.log(int(large['n']) / int(small['n'])):.2f}"


def plot(path: Path) -> None:
    """Draw time against n, both logarithmic, with a straight line for comparison."""
    from matplotlib.figure import Figure

    rows = read_rows()
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    for what in sorted({row["what"] for row in rows}):
        latest = {int(row["n"]): float(row["seconds"]) for row in rows if row["what"] == what}
        axes.loglog(sorted(latest), [latest[n] for n in sorted(latest)], marker="o", label=what)
    axes.set(xlabel="rows", ylabel="seconds", title="dermkit: time against rows")
    axes.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    runs = verbs.add_parser("run")
    runs.add_argument("folder", type=Path)
    runs.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    runs.add_argument("--again", action="store_true", help="measure once more what is there already")
    verbs.add_parser("table")
    verbs.add_parser("plot").add_argument("file", type=Path)
    given = parser.parse_args()
    if given.verb == "run":
        given.folder.mkdir(parents=True, exist_ok=True)
        run(given.folder.resolve(), given.rows, again=given.again)
    elif given.verb == "plot":
        plot(given.file)
    else:
        print(table())


if __name__ == "__main__":
    main()
