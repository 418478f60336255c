"""What `dermkit audit` finds of what was planted, and how fast, as rows in benchmarks/audit.csv; stop, go on at will.

    python benchmarks/audit.py made FOLDER [--first 1000] [--seeds 20]
    python benchmarks/audit.py real HAM10000 FOLDER [--first 2000] [--seeds 3]
    python benchmarks/audit.py search FOLDER [--sizes 10000 100000 1000000]
    python benchmarks/audit.py sets DATASETS FOLDER
    python benchmarks/audit.py table
    python benchmarks/audit.py plot benchmarks/search.svg

FOLDER takes what is made and can be deleted afterwards. HAM10000 is the folder with HAM10000_metadata.csv and images/;
DATASETS holds imported data set folders. The seeds from 1000 on were not looked at while thresholds were set.
"""

import argparse
import csv
import datetime
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dermkit.audit.checks.finding import Severity
from dermkit.audit.near_duplicates.neighbours import find_neighbours
from dermkit.data.importers.run import import_dataset
from dermkit.data.manifest import Dataset, load_dataset
from dermkit.data.synthetic.dataset import PlantedFaults, make_dataset_folder
from dermkit.data.synthetic.duplicates import COPY_KINDS, plant_copy
from dermkit.images.decode import open_image
from dermkit.pipeline.data import audit_dataset

HERE = Path(__file__).parent
ROWS = Path(os.environ.get("AUDIT_ROWS", HERE / "audit.csv"))
HEADER = (
    "date",
    "commit",
    "machine",
    "versions",
    "part",
    "seed",
    "what",
    "n",
    "found",
    "wrong",
    "value",
    "command",
)
CLASSES = {"melanoma": 90, "nevus": 120, "seborrheic keratosis": 90}
PER_KIND = 12
EXPECTED = {
    "copies across sides": "DA012",
    "contradictions": "DA011",
    "siblings across sides": "DA020",
    "lesion under two labels": "DA022",
    "artefact": "DA052",
    "another archive": "DA045",
    "near copies across sides": "DA015",
}


@dataclass(frozen=True)
class Row:
    """One result. n: planted or looked at; found: of these; wrong: false pairs or findings; value: anything else."""

    part: str
    seed: int
    what: str
    n: int
    found: int | str = ""
    wrong: int | str = ""
    value: object = ""


def append(rows: Sequence[Row]) -> None:
    """Append results with where they are from."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False
    )
    cores = len(os.sched_getaffinity(0))
    about = [
        datetime.datetime.now(datetime.UTC).date().isoformat(), commit.stdout.strip(),
        f"{platform.machine()}, {cores} cores", f"dermkit {version('dermkit')}, numpy {np.__version__}",
    ]  # fmt: skip
    command = "python benchmarks/audit.py " + sys.argv[1]
    new = not ROWS.exists()
    with ROWS.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        if new:
            writer.writerow(HEADER)
        writer.writerows([*about, *vars(row).values(), command] for row in rows)


def done(part: str) -> set[int]:
    """Return the seeds of a part whose rows are there."""
    if not ROWS.exists():
        return set()
    table = pd.read_csv(ROWS, dtype=str, keep_default_na=False)
    return {int(seed) for seed in table.loc[table["part"] == part, "seed"]}


# Made images ---------------------------------------------------------------------------------------------------------


def made(folder: Path, seeds: Sequence[int]) -> None:
    """Plant every fault into made images, audit them, and audit their clean twins."""
    for seed in seeds:
        if seed not in done("made"):
            append([*planted_set(folder / f"made-{seed}", seed), *clean_twin(folder / f"twin-{seed}", seed)])
            print(f"made, seed {seed}: done", flush=True)


def planted_set(folder: Path, seed: int) -> Iterator[Row]:
    """Yield what the audit of one planted set found; artefact and other archive take turns with the seeds."""
    shutil.rmtree(folder, ignore_errors=True)
    extra: dict[str, Any] = {"source": ("melanoma", 0.5)} if seed % 2 else {"artefact": ("ink", "melanoma", 0.5)}
    plant = PlantedFaults(copies=10, contradictions=10, siblings=10, lesion_labels=5, **extra)
    make_dataset_folder(
        folder / "images",
        lesions_per_class=CLASSES,
        photos_per_lesion=(1, 2),
        seed=seed,
        given_test=0.3,
        planted_faults=plant,
    )
    copies = add_copies(folder / "images", seed)
    dataset = imported(folder)
    outcome = audit_dataset(dataset)
    findings = {item.card.code: item for item in outcome.findings}
    yield from recall(dataset, copies, outcome.audit.audit_input.pairs, "made", seed)
    expected = {what: code for what, code in EXPECTED.items() if not _absent(what, seed)}
    for what, code in expected.items():
        yield Row("made", seed, f"finding: {what} ({code})", 1, int(code in findings))
    yield Row("made", seed, "seconds", len(dataset.manifest), value=round(outcome.audit.seconds, 1))
    shutil.rmtree(folder)


def _absent(what: str, seed: int) -> bool:
    return what == ("artefact" if seed % 2 else "another archive")


def add_copies(folder: Path, seed: int, per_kind: int = PER_KIND) -> pd.DataFrame:
    """Add near copies of every kind, half of them on the other side, to a made folder and its table."""
    rng = np.random.default_rng([seed, 31])
    table = pd.read_csv(folder / "metadata.csv", dtype=str, keep_default_na=False)
    planted = read_planted(folder)
    busy = {*planted["image"], *planted["partner"]}
    free = table[~table["image"].isin(busy)].drop_duplicates("lesion_id")
    chosen = free.sample(per_kind * len(COPY_KINDS), random_state=seed)
    rows, truth = [], []
    for number, item in enumerate(chosen.to_dict("records")):
        kind = list(COPY_KINDS)[number % len(COPY_KINDS)]
        data, ending = plant_copy(open_image(folder / item["image"]).pixels, kind, rng)
        side = item["given_split"] if number % 2 else {"train": "test", "test": "train"}[item["given_split"]]
        name = f"{side}/{item['label']}/COPY_{number:04d}{ending}"
        (folder / name).write_bytes(data)
        # A copy that somebody made carries no lesion id.
        rows.append(item | {"image": name, "given_split": side, "lesion_id": "", "patient_id": ""})
        truth.append((kind, item["image"], name))
    pd.concat([table, pd.DataFrame(rows)]).to_csv(folder / "metadata.csv", index=False)
    return pd.DataFrame(truth, columns=["kind", "a", "b"])


def read_planted(folder: Path) -> pd.DataFrame:
    """Return the planting list; none was written where nothing was planted."""
    path = folder / "planted.csv"
    if not path.is_file():
        return pd.DataFrame({"fault": [], "image": [], "partner": []}, dtype=str)
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def imported(folder: Path) -> Dataset:
    """Import a made folder by its table, which has the lesion and patient ids."""
    return import_dataset("csv", folder / "images" / "metadata.csv", out=folder / "set").dataset


def recall(dataset: Dataset, copies: pd.DataFrame, pairs: pd.DataFrame, part: str, seed: int) -> Iterator[Row]:
    """Yield how many copies of each kind were found, and how many pairs are of different lesions."""
    paths = dataset.manifest["path"].to_numpy()
    found = {frozenset((paths[a], paths[b])) for a, b in zip(pairs["a"], pairs["b"], strict=True)}
    for kind, rows in copies.groupby("kind", sort=False):
        hits = sum(frozenset(pair) in found for pair in zip(rows["a"], rows["b"], strict=True))
        yield Row(part, seed, f"copies: {kind}", len(rows), hits)
    lesion = dict(zip(paths, dataset.manifest["lesion_id"], strict=True))
    lesion |= {b: lesion[a] for a, b in zip(copies["a"], copies["b"], strict=True)}
    for word, kept in (("exact", pairs["kind"] == "exact"), ("near", pairs["kind"] != "exact")):
        some = pairs[kept]
        wrong = sum(lesion[paths[a]] != lesion[paths[b]] for a, b in zip(some["a"], some["b"], strict=True))
        yield Row(part, seed, f"pairs: {word}", len(some), wrong=wrong)


def clean_twin(folder: Path, seed: int) -> Iterator[Row]:
    """Yield the error and warning findings of the same set without any planted fault."""
    shutil.rmtree(folder, ignore_errors=True)
    make_dataset_folder(
        folder / "images", lesions_per_class=CLASSES, photos_per_lesion=(1, 2), seed=seed, given_test=0.3
    )
    outcome = audit_dataset(imported(folder))
    for severity in (Severity.ERROR, Severity.WARNING):
        codes = [item.card.code for item in outcome.findings if item.finding.severity == severity]
        yield Row("twin", seed, f"{severity} findings", 1, wrong=len(codes), value=" ".join(codes))
    shutil.rmtree(folder)


# Real images ---------------------------------------------------------------------------------------------------------


def real(source: Path, folder: Path, seeds: Sequence[int]) -> None:
    """Plant copies among 1,000 images of HAM10000, one per lesion."""
    table = pd.read_csv(source / "HAM10000_metadata.csv", dtype=str, keep_default_na=False)
    for seed in seeds:
        if seed in done("real"):
            continue
        here = folder / f"real-{seed}"
        shutil.rmtree(here, ignore_errors=True)
        chosen = table.drop_duplicates("lesion_id").sample(1000, random_state=seed)
        append(list(real_set(source, here, chosen, seed)))
        shutil.rmtree(here)
        print(f"real, seed {seed}: done", flush=True)


def real_set(source: Path, folder: Path, chosen: pd.DataFrame, seed: int) -> Iterator[Row]:
    """Yield what was found among real images with 100 copies of each kind."""
    rng = np.random.default_rng([seed, 32])
    (folder / "images").mkdir(parents=True)
    rows, truth = [], []
    for number, item in enumerate(chosen.to_dict("records")):
        name = f"{item['image_id']}.jpg"
        shutil.copy(source / "images" / name, folder / "images" / name)
        rows.append({"image": name, "label": item["dx"], "lesion_id": item["lesion_id"]})
        if number < 100 * len(COPY_KINDS):
            kind = list(COPY_KINDS)[number % len(COPY_KINDS)]
            data, ending = plant_copy(open_image(folder / "images" / name).pixels, kind, rng)
            copy = f"copy{number:04d}{ending}"
            (folder / "images" / copy).write_bytes(data)
            rows.append({"image": copy, "label": item["dx"], "lesion_id": ""})
            truth.append((kind, name, copy))
    pd.DataFrame(rows).to_csv(folder / "images" / "metadata.csv", index=False)
    dataset = imported(folder)
    outcome = audit_dataset(dataset)
    copies = pd.DataFrame(truth, columns=["kind", "a", "b"])
    yield from recall(dataset, copies, outcome.audit.audit_input.pairs, "real", seed)
    yield Row("real", seed, "seconds", len(dataset.manifest), value=round(outcome.audit.seconds, 1))


# Search, sets, table -------------------------------------------------------------------------------------------------


def search(sizes: Sequence[int]) -> None:
    """Search near copies among made descriptions, 5 % of them planted copies, each size in a process of its own."""
    for n in sizes:
        if n not in done("search"):
            here = f"import sys; sys.argv += ['search']; sys.path.insert(0, {str(HERE)!r})"
            subprocess.run([sys.executable, "-c", f"{here}; import audit; audit.search_one({n})"], check=True)


def search_one(n: int) -> None:
    """Append time, memory and recall of one search."""
    rng = np.random.default_rng(n)
    width, copies = 66, n // 20
    vectors = rng.standard_normal((n, width)).astype(np.float32)
    source = rng.choice(n - copies, copies, replace=False)
    noise = rng.standard_normal((copies, width)).astype(np.float32)
    vectors[n - copies :] = vectors[source] + noise * (1.3 / np.sqrt(width))
    start = time.perf_counter()
    found = find_neighbours(vectors, np.arange(n), max_distance=2.5, max_neighbours=16)
    seconds = time.perf_counter() - start
    got = set(zip(found.first.tolist(), found.second.tolist(), strict=True))
    hits = sum(pair in got for pair in zip(source.tolist(), range(n - copies, n), strict=True))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    append([
        Row("search", n, "copies found", copies, hits),
        Row("search", n, "seconds", n, value=round(seconds, 2)),
        Row("search", n, "maxrss MB", n, value=memory),
    ])  # fmt: skip
    print(f"search {n}: {seconds:.1f} s, {hits} of {copies}, {memory} MB", flush=True)


def sets(datasets: Path, folder: Path) -> None:
    """Audit data sets by the command line; the findings of each, with time and memory."""
    for number, source in enumerate(sorted(item.parent for item in datasets.glob("*/dataset.json"))):
        here = folder / source.name
        if not here.exists():
            shutil.copytree(source, here, ignore=shutil.ignore_patterns("cache", "audit"))
        start = time.perf_counter()
        script = (
            f"import sys; from dermkit.cli import main; sys.argv = ['dermkit', 'audit', {str(here)!r}]; main()"
        )
        process = subprocess.Popen([sys.executable, "-c", script])
        _, _, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        facts = json.loads((here / "audit" / "audit.json").read_text(encoding="utf-8"))
        part = f"set {load_dataset(here).name}"
        append([
            *(
                Row(part, number, f"{item['code']} {item['severity']}", item["n"], value=item["sentence"])
                for item in facts["findings"]
            ),
            Row(part, number, "seconds", len(load_dataset(here).manifest), value=round(seconds, 1)),
            Row(part, number, "cpu seconds", 0, value=round(usage.ru_utime + usage.ru_stime, 1)),
            Row(part, number, "maxrss MB", 0, value=usage.ru_maxrss // 1024),
        ])  # fmt: skip


def plot(path: Path) -> None:
    """Draw seconds of the near-copy search against the number of images, with a line of exponent 1."""
    rows = pd.read_csv(ROWS, keep_default_na=False)
    some = rows[(rows["part"] == "search") & (rows["what"] == "seconds")]
    n, seconds = some["n"].astype(float).to_numpy(), some["value"].astype(float).to_numpy()
    slope = float(np.polyfit(np.log(n), np.log(seconds), 1)[0])
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.loglog(n, seconds, "o-", label=f"measured, exponent {slope:.2f}")
    axes.loglog(n, seconds[0] * n / n[0], ":", color="grey", label="exponent 1")
    axes.set(xlabel="images", ylabel="seconds", title="Near-copy search, two cores")
    axes.legend()
    figure.savefig(str(path), metadata={"Date": None})
    print(f"{path}: exponent {slope:.2f} over {len(n)} sizes")


def table() -> None:
    """Print the sums over seeds as Markdown."""
    rows = pd.read_csv(ROWS, keep_default_na=False)
    for column in ("n", "found", "wrong"):
        rows[column] = pd.to_numeric(rows[column], errors="coerce")
    for part in ("made", "twin", "real", "search"):
        some = rows[rows["part"] == part]
        print(f"\n| {part} | seeds | n | found | wrong |\n|---|---|---|---|---|")
        for what, group in some.groupby("what", sort=False):
            sums = [group[column].sum(min_count=1) for column in ("n", "found", "wrong")]
            shown = " | ".join("" if pd.isna(value) else f"{int(value):,}" for value in sums)
            print(f"| {what} | {group['seed'].nunique()} | {shown} |")


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["made", "real", "search", "sets", "table", "plot"])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=0)
    parser.add_argument("--sizes", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    given = parser.parse_args()
    first, count = {"made": (1000, 20), "real": (2000, 3)}.get(given.part, (0, 0))
    seeds = range(given.first or first, (given.first or first) + (given.seeds or count))
    one, two = (*given.folders, Path(), Path())[:2]
    parts: dict[str, Callable[[], None]] = {
        "made": lambda: made(one, seeds), "real": lambda: real(one, two, seeds),
        "search": lambda: search(given.sizes), "sets": lambda: sets(one, two), "table": table,
        "plot": lambda: plot(one),
    }  # fmt: skip
    parts[given.part]()


if __name__ == "__main__":
    main()
