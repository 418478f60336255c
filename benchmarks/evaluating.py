"""What evaluating costs: made predictions of 10,000 to 1,000,000 images, or a run's; rows in benchmarks/evaluating.csv.

    python benchmarks/evaluating.py made FOLDER [--rows 10000 100000 1000000]
    python benchmarks/evaluating.py run RUN
    python benchmarks/evaluating.py table

`made` writes a table of seven classes in the shares of HAM10000, half of it validation and half test, alone or with a
lesion each (three of four images have a lesion of their own), and measures `dermkit evaluate --predictions` with
everything it does: figures and intervals of both sides, calibration, operating points, sets, report. `run` measures
`dermkit evaluate RUN`. Each in a process of its own; memory is the largest that the system counted for it.
"""

import argparse
import datetime
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from scale import add_rows, commit, machine, measure, read_rows, versions

HERE = Path(__file__).parent
ROWS = HERE / "evaluating.csv"
HEADER = (
    "date", "commit", "machine", "versions", "what", "n", "seconds", "cpu_seconds", "maxrss_mb", "command",
)  # fmt: skip
NAMES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
SHARES = (0.03, 0.05, 0.11, 0.01, 0.11, 0.67, 0.02)


def make(path: Path, n: int, *, grouped: bool) -> None:
    generator = np.random.default_rng(1)
    true = generator.choice(len(NAMES), size=n, p=SHARES)
    odds = generator.normal(0, 1, (n, len(NAMES))) + np.log(SHARES)
    odds[np.arange(n), true] += 2.0
    p = np.exp(odds)
    p /= p.sum(axis=1, keepdims=True)
    frame = pd.DataFrame({
        "image_id": [f"image-{i:07d}" for i in range(n)], "label": np.array(NAMES)[true],
        "split": np.where(np.arange(n) % 2, "test", "validation"),
    })  # fmt: skip
    if grouped:
        frame["lesion_id"] = [f"lesion-{i}" for i in generator.integers(0, int(0.75 * n), n)]
    for k, name in enumerate(NAMES):
        frame[f"p_{name}"] = p[:, k]
    frame.to_csv(path, index=False)


def made(folder: Path, sizes: list[int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for n in sizes:
        for grouped in (False, True):
            table, out = folder / "made.csv", folder / "evaluated"
            make(table, n, grouped=grouped)
            shutil.rmtree(out, ignore_errors=True)
            what = f"made predictions, {'in lesions' if grouped else 'alone'}"
            measured(
                what,
                n,
                ["--predictions", str(table), "--out", str(out)],
                "--predictions TABLE --out FOLDER",
                folder,
            )


def measured(what: str, n: int, words: list[str], told: str, folder: Path) -> None:
    log = folder / "command.log"
    found = measure([sys.executable, "-m", "dermkit.cli", "evaluate", *words], log)
    if found.code != 0:
        raise SystemExit(f"{what}, {n}: exit code {found.code}\n{log.read_text()[-3000:]}")
    row = (
        datetime.datetime.now(tz=datetime.UTC).date().isoformat(), commit(), machine(), versions(), what, n,
        round(found.seconds, 1), round(found.cpu_seconds, 1), round(found.maxrss_mb), f"dermkit evaluate {told}",
    )  # fmt: skip
    add_rows(ROWS, HEADER, [row])
    print(*row[4:9], flush=True)


def table() -> str:
    lines = ["| what | predictions | seconds | cpu seconds | MB resident | commit |", "|" + "---|" * 6]
    lines += [
        f"| {r['what']} | {int(r['n']):,} | {r['seconds']} | {r['cpu_seconds']} | {r['maxrss_mb']} | {r['commit']} |"
        for r in read_rows(ROWS)
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    making = verbs.add_parser("made")
    making.add_argument("folder", type=Path)
    making.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    verbs.add_parser("run").add_argument("run", type=Path)
    verbs.add_parser("table")
    given = parser.parse_args()
    if given.verb == "made":
        made(given.folder, given.rows)
    elif given.verb == "run":
        rows = sum(1 for _ in (given.run / "predictions.csv").open(encoding="utf-8")) - 1
        measured(f"run, {given.run.name}", rows, [str(given.run)], "RUN", given.run)
        (given.run / "command.log").unlink()
    else:
        print(table())


if __name__ == "__main__":
    main()
