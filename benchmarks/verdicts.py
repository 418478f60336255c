"""Compare the runs of benchmarks/systems.py with each other; rows in benchmarks/verdicts.csv, words for systems.md.

    python benchmarks/verdicts.py run RUNS --out PAGES
    python benchmarks/verdicts.py table

RUNS is the folder that `systems.py run` wrote. Every run is evaluated again, so that all figures are of one version;
every comparison is `dermkit compare` with the folders and published figures named here, and none is left out.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scale import add_rows, commit, read_rows

HERE = Path(__file__).parent
ROWS = HERE / "verdicts.csv"
HEADER = (
    "commit", "comparison", "split", "kind", "first", "second", "figure", "value", "sd", "difference",
    "low", "high", "n", "test", "p_holm", "images_needed", "verdict",
)  # fmt: skip
UNPAIRED = ("figure", "published", "unpaired")
TOLD = ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "auroc", "loss")
S2 = tuple(f"s2-{step}-mobilenetv2" for step in ("resnet50", "normalised", "augmented", "dropout", "finetuned"))
S2_PUBLISHED = "S2 in print: accuracy=.4661,n=118"
S3_PUBLISHED = "S3 in print: accuracy=.74,precision=.76,recall=.71,specificity=.75"


@dataclass(frozen=True)
class Comparison:
    """recipes: folders of RUNS, of which the runs on `scheme` are taken ("" = all)."""

    name: str
    recipes: tuple[str, ...]
    scheme: str = ""
    published: tuple[str, ...] = ()


COMPARISONS = (
    Comparison(
        "S0 and S1, melanoma10k",
        ("s0-inception-v3-mixed7a-lr0.001-b16-d0.3", "s0-resnet50-frozen-mobilenetv2-lr0.0001-b16-d0.3", "s1-cnn"),
    ),
    Comparison("S2 step by step, given-as-published", S2, "given-as-published", (S2_PUBLISHED,)),
    Comparison("S2 step by step, given", S2, "given", (S2_PUBLISHED,)),
    Comparison("S2 and S4, given", ("s2-finetuned-mobilenetv2", "s4-cnn", "s2-resnet50-scratch"), "given"),
    Comparison("S3, six repeats", ("s3-resnet50-mobilenetv2",), "", (S3_PUBLISHED,)),
)


def run(runs: Path, out: Path) -> None:
    there = {row["comparison"] for row in read_rows(ROWS)}
    for item in COMPARISONS:
        if item.name in there:
            continue
        folders = [folder for recipe in item.recipes for folder in _folders(runs / recipe, item.scheme)]
        for folder in folders:
            _again(folder)
        published = [word for text in item.published for word in ("--published", text)]
        page = out / item.name.replace(", ", "-").replace(" ", "-")
        _dermkit("compare", *map(str, folders), *published, "--out", str(page))
        body = json.loads((page / "comparison.json").read_text(encoding="utf-8"))
        add_rows(ROWS, HEADER, [*_pairs(item, body), *_spreads(item, body), *_published(item, body)])
        print(item.name, len(body["pairs"]), "pairs", flush=True)


def _folders(recipe: Path, scheme: str) -> list[Path]:
    """Return a recipe's finished runs of one reading of the test folder, or the folder of its repeats."""
    found = sorted(path.parent for path in recipe.glob("*/predictions.csv")) or sorted(recipe.glob("*-versions"))
    return [path for path in found if not scheme or _read(path / "run.json")["split"]["scheme"] == scheme]


def _again(folder: Path) -> None:
    for run in [folder] if (folder / "run.json").exists() else [path.parent for path in folder.glob("*/run.json")]:
        _dermkit("evaluate", str(run))


def _read(path: Path) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return body


def _dermkit(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "dermkit.cli", *words], check=True, stdout=subprocess.DEVNULL)


def _pairs(item: Comparison, body: dict[str, Any]) -> list[tuple[object, ...]]:
    return [
        (commit(), item.name, pair["split"], pair["design"], pair["first"], pair["second"], name, "", "",
         found["value"], *(found["ci95"] or ("", "")), found["n"], found["test"], found["p_holm"],
         found["images_needed"], found["verdict"])
        for pair in body["pairs"]
        for name, found in pair["metrics"].items()
        if name in TOLD
    ]  # fmt: skip


def _spreads(item: Comparison, body: dict[str, Any]) -> list[tuple[object, ...]]:
    """Return the figures of each recipe over its trainings, and of each single run."""
    every = {**{name: group["metrics"] for name, group in body["groups"].items()}, **body["runs"]}
    return [
        (commit(), item.name, split, "figure", name, "", figure, found["value"], found.get("sd", ""), "", found["low"],
         found["high"], found["n"], "", "", "", "")
        for name, splits in every.items()
        for split, figures in splits.items()
        for figure, found in figures.items()
        if figure in TOLD
    ]  # fmt: skip


def _published(item: Comparison, body: dict[str, Any]) -> list[tuple[object, ...]]:
    """Return what is said of published figures, and each run's or recipe's difference to them, unpaired."""
    made: list[tuple[object, ...]] = []
    for claim in body["published"]:
        said = (commit(), item.name, "test", "published", claim["name"], "", "", *[""] * 9)
        made.append((*said, " ".join(claim["sentences"])))
        made += [
            (commit(), item.name, found["split"], "unpaired", found["name"], claim["name"], found["metric"],
             found["run"]["value"], "", found["value"], *found["ci95"], found["n"], found["method"], "", "",
             found["sentence"])
            for found in claim["comparisons"]
        ]  # fmt: skip
    return made


def table() -> str:
    """Return what was found on the test side as Markdown: a list of sentences for every comparison."""
    lines = []
    for item in COMPARISONS:
        part = [row for row in read_rows(ROWS) if row["comparison"] == item.name]
        pairs = [row for row in part if row["kind"] not in UNPAIRED and row["split"] == "test"]
        lines += ["", f"### {item.name}", ""]
        lines += [
            f"- {row['first']}: {row['figure']} {float(row['value']):.3f}, mean of trainings "
            f"(SD {float(row['sd']):.3f}), n {row['n']}"
            for row in part
            if row["kind"] == "figure" and row["split"] == "test" and row["figure"] in TOLD[:1] and row["sd"]
        ]
        for both in dict.fromkeys((row["first"], row["second"]) for row in pairs):
            told = [r["verdict"] for r in pairs if (r["first"], r["second"]) == both and r["figure"] in TOLD[:2]]
            lines += [f"- {both[0]} against {both[1]}", *(f"  - {verdict}" for verdict in told)]
        lines += [f"- {row['verdict']}" for row in part if row["kind"] in UNPAIRED[1:]]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    running = verbs.add_parser("run")
    running.add_argument("runs", type=Path)
    running.add_argument("--out", type=Path, required=True)
    verbs.add_parser("table")
    given = parser.parse_args()
    if given.verb == "run":
        run(given.runs, given.out)
    else:
        print(table())


if __name__ == "__main__":
    main()
