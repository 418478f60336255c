"""Import hostile sources with the real command, and append how each ended to benchmarks/hostile.csv; stop and go on.

    python benchmarks/hostile.py run FOLDER [--again]
    python benchmarks/hostile.py table

The same 60 tables, 40 folders and 60 archives as in `tests/test_hostile.py`, each in a process of its own under a new
folder of FOLDER, whose every other file is hashed before and after. A case whose row is there is skipped.
"""

import argparse
import csv
import shutil
import sys
from collections import Counter
from pathlib import Path

from scale import add_rows, commit, machine, measure, versions

HERE = Path(__file__).parent
ROWS = HERE / "hostile.csv"
HEADER = ("commit", "machine", "versions", "kind", "seed", "faults", "exit_code", "wrong", "seconds", "maxrss_mb")


def run(folder: Path, *, again: bool) -> None:
    """Run every case whose row is not there yet, and print the counts so far."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    from test_hostile import MAKERS

    there = set() if again else {(row["kind"], int(row["seed"])) for row in read_rows()}
    for kind, (_, n, _) in MAKERS.items():
        for seed in range(n):
            if (kind, seed) not in there:
                append(kind, seed, folder)
        print(counts(kind), flush=True)


def append(kind: str, seed: int, folder: Path) -> None:
    """Import one hostile source and append a row."""
    from hostile_watch import differences, judge, snapshot
    from test_hostile import MAKERS

    root = folder / f"{kind}-{seed}"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    case = MAKERS[kind][0](root, seed)
    out, log = root / "out", folder / "command.log"
    before = snapshot(root, but=out)
    measured = measure([sys.executable, "-m", "dermkit.cli", "import", *case.arguments, "--out", str(out)], log)
    message = log.read_text(errors="replace")
    wrong = [*judge(case, measured.code, message, out), *differences(before, snapshot(root, but=out))]
    row = (
        commit(), machine(), versions(), kind, seed, ", ".join(case.faults), measured.code, "; ".join(wrong),
        round(measured.seconds, 2), round(measured.maxrss_mb, 1),
    )  # fmt: skip
    add_rows(ROWS, HEADER, [row])
    shutil.rmtree(root, ignore_errors=True)


def read_rows() -> list[dict[str, str]]:
    """Return the latest row of each case."""
    if not ROWS.exists():
        return []
    with ROWS.open(newline="") as stream:
        return list({(row["kind"], row["seed"]): row for row in csv.DictReader(stream)}.values())


def counts(kind: str) -> str:
    """Return how the cases of a kind ended, as a row of Markdown."""
    rows = [row for row in read_rows() if row["kind"] == kind]
    ends = Counter(row["exit_code"] for row in rows)
    wrong = sum(bool(row["wrong"]) for row in rows)
    most = max((float(row["maxrss_mb"]) for row in rows), default=0.0)
    cells = (kind, len(rows), ends["3"], ends["7"], ends["0"], wrong, f"{most:.0f}")
    return "| " + " | ".join(map(str, cells)) + " |"


def table() -> str:
    head = "| kind | cases | refused as a whole (3) | rest imported (7) | all imported (0) | wrong | most MB resident |"
    kinds = dict.fromkeys(row["kind"] for row in read_rows())
    return "\n".join([head, "|" + "---|" * 7, *map(counts, kinds)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    runs = verbs.add_parser("run")
    runs.add_argument("folder", type=Path)
    runs.add_argument("--again", action="store_true", help="run once more what is there already")
    verbs.add_parser("table")
    given = parser.parse_args()
    if given.verb == "run":
        given.folder.mkdir(parents=True, exist_ok=True)
        run(given.folder.resolve(), again=given.again)
    else:
        print(table())


if __name__ == "__main__":
    main()
