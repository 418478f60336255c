"""Plant copies in made data sets, audit, clean, split; count the planted pairs that still stand on two sides.

    python benchmarks/clean.py run [--sets 200]
    python benchmarks/clean.py table

A row per data set goes to benchmarks/clean.csv; sets that have one are skipped, so it can be stopped and continued.
Each set is made anew from its number: two or three classes, pictures of 96 to 175 pixels, with or without a published
test side, two copies of every kind, four in ten of them in a folder drawn at random. `lost` counts planted pairs that
are both there after the cleaning and not in one copy group; `across` those that the split put on two sides.
"""

import argparse
import csv
import datetime
import platform
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

import dermkit as dk
from dermkit.data.synthetic.dataset import make_dataset_folder
from dermkit.data.synthetic.duplicates import COPY_KINDS, plant_copy
from dermkit.recipes.schema import SplitSpec, parse_split_spec

HERE = Path(__file__).parent
ROWS = HERE / "clean.csv"
HEADER = ("set", "date", "commit", "machine", "scheme", "images", "planted", "dropped", "lost", "across", "kinds_lost",
          "seconds")  # fmt: skip
CLASSES = ("nevus", "melanoma", "seborrheic keratosis")
LESIONS = 14
EACH = 2
ANYWHERE = 0.4

Planted = list[tuple[str, str, str]]
"""Kind, image, and the image that it is a copy of."""


def main() -> None:
    """Run what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--sets", type=int, default=200)
    options = parser.parse_args()
    if options.what == "run":
        run(options.sets)
    table()


def run(sets: int) -> None:
    """Append a row for each set that has none."""
    done = {int(row["set"]) for row in rows()}
    for number in range(sets):
        if number not in done:
            append(one_set(number))


def rows() -> list[dict[str, str]]:
    """Return the rows so far."""
    if not ROWS.exists():
        return []
    with ROWS.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def append(row: dict[str, object]) -> None:
    """Add one row, and the header before the first."""
    fresh = not ROWS.exists()
    with ROWS.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, HEADER, lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerow(row)
    print(row, flush=True)


def one_set(number: int) -> dict[str, object]:
    """Make a set, plant, audit with cleaning, split, and count."""
    began, rng = time.perf_counter(), np.random.default_rng([number, 9])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        planted, given = plant(folder / "images", number, rng)
        data = dk.import_dataset("folder", folder / "images", out=folder / "data").dataset
        outcome = dk.audit_dataset(data, clean=True)
        cleaned = dk.load_dataset(folder / "data")
        scheme = "given" if given else str(rng.choice(["holdout", "kfold"]))
        made = dk.split(
            cleaned,
            spec_of(scheme, number),
            name="made",
        )
    frame = made.frame
    side = dict(zip(frame["image_id"], frame["split"] + frame["fold"].astype(str), strict=True))
    group = dict(zip(cleaned.manifest["image_id"], cleaned.manifest["copy_group"], strict=True))
    there = [item for item in planted if item[1] in group and item[2] in group]
    lost = [kind for kind, one, other in there if not group[one] or group[one] != group[other]]
    across = [item for item in there if len({side[name] for name in item[1:] if name in side}) > 1]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False
    )
    return {
        "set": number, "date": datetime.datetime.now(datetime.UTC).date().isoformat(), "commit": commit.stdout.strip(),
        "machine": platform.machine(), "scheme": scheme, "images": len(data.manifest), "planted": len(planted),
        "dropped": outcome.n_dropped, "lost": len(lost), "across": len(across), "kinds_lost": " ".join(sorted(lost)),
        "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip


def spec_of(scheme: str, seed: int) -> SplitSpec:
    """Return the split that a set is divided by."""
    test, folds = (0.2, 0) if scheme == "holdout" else (0.0, 3 if scheme == "kfold" else 0)
    return parse_split_spec(
        scheme=scheme, seed=seed, validation=0.2, test=test, folds=folds, per_class=0, draw_from=""
    )


def plant(folder: Path, number: int, rng: np.random.Generator) -> tuple[Planted, bool]:
    """Write a made set with planted copies; returns the list of them, and whether there is a published test side."""
    classes, size = CLASSES[: int(rng.integers(2, 4))], int(rng.integers(96, 176))
    given = bool(rng.integers(2))
    make_dataset_folder(
        folder, lesions_per_class=dict.fromkeys(classes, LESIONS), photos_per_lesion=(1, 1), size=size, seed=number,
        given_test=0.3 if given else 0.0,
    )  # fmt: skip
    for beside in ("truth.csv", "planted.csv"):
        (folder / beside).unlink(missing_ok=True)
    files = sorted(folder.rglob("*.jpg"))
    homes = sorted({path.parent for path in files})
    planted: Planted = []
    for place, chosen in enumerate(rng.choice(len(files), EACH * len(COPY_KINDS), replace=False)):
        of, kind = files[chosen], list(COPY_KINDS)[place % len(COPY_KINDS)]
        fitting = homes if rng.random() < ANYWHERE else [home for home in homes if home.name == of.parent.name]
        data, ending = plant_copy(np.asarray(Image.open(of).convert("RGB")), kind, rng)
        path = fitting[rng.integers(len(fitting))] / f"planted{place}{ending}"
        path.write_bytes(data)
        image, original = (it.relative_to(folder).with_suffix("").as_posix() for it in (path, of))
        planted.append((kind, image, original))
    return planted, given


def table() -> None:
    """Print what was counted, as Markdown."""
    found = rows()
    total = {name: sum(int(row[name]) for row in found) for name in ("planted", "dropped", "lost", "across")}
    kinds = Counter(word for row in found for word in row["kinds_lost"].split())
    print(f"\n| data sets | planted pairs | rows dropped | in no common group | on two sides |\n|{'---|' * 5}")
    print(f"| {len(found)} | {total['planted']} | {total['dropped']} | {total['lost']} | {total['across']} |")
    print(f"\nNot found, by kind: {', '.join(f'{kind} {n}' for kind, n in sorted(kinds.items())) or 'none'}.")


if __name__ == "__main__":
    main()
