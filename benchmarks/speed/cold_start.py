"""Cold start of `dermkit predict` on one image: process to answer, with torch and from the exported folder without it.

    python benchmarks/speed/cold_start.py MODEL EXPORTED IMAGE [--python PYTHON] [--repeats 5]

MODEL and EXPORTED hold the same model. Both run in turn, after a round that is not counted, so that files are in the
system's cache and what else the machine does hits both alike. Appends a row for each run to benchmarks/cold_start.csv,
and prints medians and their ratio.
"""

import argparse
import csv
import datetime
import os
import statistics
import sys
import tempfile
from pathlib import Path

from meter import Measured, measure
from rows import HERE, commit, machine

OUT = HERE.parent / "cold_start.csv"
HEADER = (
    "date", "commit", "machine", "load", "path", "net", "repeat", "seconds", "cpu_seconds", "peak_rss_mb", "command",
)  # fmt: skip
PATHS = ("torch", "exported")
LIMIT = 600.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("exported", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("--python", default=sys.executable, help="The interpreter that dermkit is installed for.")
    parser.add_argument("--net", default="", help="What the net is, for the rows.")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    folders = dict(zip(PATHS, (given.model, given.exported), strict=True))
    runs: dict[str, list[Measured]] = {path: [] for path in PATHS}
    for repeat in range(given.repeats + 1):
        for path in PATHS:
            measured = run(given.python, folders[path], given.image)
            if repeat:
                runs[path].append(measured)
                append(path, given.net, repeat, measured)
    report(runs)


def run(python: str, folder: Path, image: Path) -> Measured:
    """Predict one image in a process of its own; raises `SystemExit` where it fails."""
    with tempfile.TemporaryDirectory() as work:
        command = [python, "-m", "dermkit.cli", "predict", str(folder), str(image), "--out", f"{work}/out"]
        measured = measure(command, Path(work) / "log.txt", env={}, limit=LIMIT)
        if measured.code:
            sys.exit((Path(work) / "log.txt").read_text())
    return measured


def append(path: str, net: str, repeat: int, measured: Measured) -> None:
    """Add one row to the table."""
    is_new = not OUT.exists()
    with OUT.open("a", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        if is_new:
            writer.writerow(HEADER)
        writer.writerow(
            (
                datetime.datetime.now(tz=datetime.UTC).date().isoformat(), commit(), machine(),
                f"{os.getloadavg()[0]:.1f}", path, net, repeat, f"{measured.seconds:.3f}",
                f"{measured.cpu_seconds:.3f}", f"{measured.peak_rss_mb:.0f}",
                f"dermkit predict {'MODEL' if path == 'torch' else 'EXPORTED'} IMAGE --out DIR",
            )
        )  # fmt: skip


def report(runs: dict[str, list[Measured]]) -> None:
    """Print the medians of each path, and how many times the exported folder is faster and smaller."""
    medians = {}
    for path, measured in runs.items():
        medians[path] = [
            statistics.median(getattr(one, name) for one in measured)
            for name in ("seconds", "cpu_seconds", "peak_rss_mb")
        ]
        seconds, cpu, memory = medians[path]
        print(
            f"{path}: {seconds:.2f} s, {cpu:.2f} s of processor time, {memory:.0f} MB (medians of {len(measured)})"
        )
    ratios = [one / other for one, other in zip(medians["torch"], medians["exported"], strict=True)]
    print(
        "torch against exported: {:.2f} times the seconds, {:.2f} the processor time, {:.2f} the memory".format(
            *ratios
        )
    )


if __name__ == "__main__":
    main()
