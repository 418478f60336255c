"""comparison.html and the tables beside it: runs and recipes against each other, as `compare` found them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dermkit.comparison.against_published import Beside, beside_print
from dermkit.comparison.claims import Checked
from dermkit.comparison.compare import Comparison, Pair
from dermkit.comparison.variance import Sources
from dermkit.comparison.verdict import LOWER_IS_BETTER, Difference, Repeated, about, verdict
from dermkit.files import make_folder, write_json, write_rows, write_text
from dermkit.reporting.labels import page_templates
from dermkit.reporting.mistakes import opener, thumbnail

FORMAT = 1
FIGURES = ("balanced_accuracy", "accuracy", "sensitivity", "specificity", "auroc", "f1_macro", "loss")
"""Columns of the leaderboard; its order is that of the first one."""

HEADLINE = ("accuracy", "balanced_accuracy", "auroc")
SHOWN = 24
"""Images on a sheet of disagreements."""

MOVED = ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "auroc", "loss")
"""Rows of the table that says what moves a group's figures."""

PAIR_COLUMNS = (
    "first", "second", "split", "figure", "difference", "low", "high", "n", "test", "p", "p_holm", "first_alone_right",
    "second_alone_right", "images_needed", "method", "verdict", "kind", "first_trainings", "second_trainings", "folds",
    "first_mean", "second_mean", "first_sd", "second_sd", "first_sd_seed", "second_sd_seed", "first_sd_images",
    "second_sd_images", "error_seeds", "error_images",
)  # fmt: skip


def write_versus(
    comparison: Comparison | None, claims: Sequence[Checked], folder: Path, *, images: Path | None
) -> Path:
    """Write comparison.json and comparison.html; returns the page's path.

    comparison: None where only published figures are looked at. images: the root that paths of images start at, None
    where they are not at hand.
    """
    make_folder(folder)
    body = (
        as_dict(comparison)
        if comparison
        else {"runs": {}, "same_images": {}, "pairs": [], "groups": {}, "notes": []}
    )
    unpaired = _beside_print(comparison, claims)
    body["published"] = [
        {**item.as_dict(), "beside": [found.as_dict() for found in unpaired[item.claim.name]]} for item in claims
    ]
    write_json(folder / "comparison.json", body, format=FORMAT)
    splits = list(body["same_images"])
    environment = page_templates()
    environment.filters["signed"] = lambda value: f"{value:+.3f}"
    environment.filters["about"] = about
    html = environment.get_template("comparison.html.j2").render(
        runs=body["runs"],
        groups=body["groups"],
        notes=body["notes"],
        moved=MOVED,
        lower_is_better=LOWER_IS_BETTER,
        singles=len(body["runs"]) - sum(len(group["runs"]) for group in body["groups"].values()),
        splits=[split for split in ("test", "validation", "train") if split in splits],
        boards={split: _board(body["runs"], body["groups"], split) for split in splits},
        figures=FIGURES,
        same_images=body["same_images"],
        pairs=body["pairs"],
        claims=body["published"],
        leads=_leads(comparison, claims),
        sheets={} if comparison is None else {s: _sheet(t, images) for s, t in comparison.disagreements.items()},
        disagreements={} if comparison is None else {s: len(t) for s, t in comparison.disagreements.items()},
    )
    write_text(folder / "comparison.html", html)
    return folder / "comparison.html"


def headline(comparison: Comparison | None, claims: Sequence[Checked]) -> list[str]:
    """Return the sentences to read first: of the pairs on test (else validation), then of the published figures."""
    return [f"{of}: {said}" if of else said for of, sentences in _leads(comparison, claims) for said in sentences]


def _leads(comparison: Comparison | None, claims: Sequence[Checked]) -> list[tuple[str, list[str]]]:
    """Return the same as what a sentence is about, "" where that needs no saying, and its sentences."""
    pairs = comparison.pairs if comparison else ()
    last = "test" if any(pair.split == "test" for pair in pairs) else "validation"
    first = [pair for pair in pairs if pair.split == last]
    several = len(first) > 1
    leads = [
        (f"{pair.first} against {pair.second}" if several and not pair.reason else "", _first(pair))
        for pair in first
    ]
    if comparison and not pairs:
        leads = [(name, _alone(splits)) for name, splits in comparison.spreads.items()]
    printed = [sentence for item in claims for sentence in item.sentences()]
    beside = [found.sentence() for rows in _beside_print(comparison, claims).values() for found in rows]
    return [*leads, ("", printed + beside)]


def _beside_print(comparison: Comparison | None, claims: Sequence[Checked]) -> dict[str, list[Beside]]:
    if comparison is None:
        return {item.claim.name: [] for item in claims}
    names = [entry.name for entry in comparison.entries]
    return beside_print(comparison.table, names, comparison.spreads, claims)


def _alone(splits: Mapping[str, Mapping[str, Sources]]) -> list[str]:
    """Return what is said of a recipe that is set against nothing: how far it strays, and why."""
    made = []
    for figure, item in splits.get("test", splits.get("validation", {})).items():
        if figure not in HEADLINE or item.between is None:
            continue
        said = f"{figure.replace('_', ' ')}: {item.mean:.3f}, mean of {item.runs}"
        if item.data is None:
            made.append(f"{said} folds, which differ by {item.between:.3f} (SD).")
        else:
            made.append(
                f"{said} trainings; another training on these images lies {item.between:.3f} away (SD), one training "
                f"on other images {item.data:.3f}."
            )
    return made


def _first(pair: Pair) -> list[str]:
    if pair.reason:
        return pair.sentences()
    return [
        sentence
        for item, sentence in zip(pair.differences, pair.sentences(), strict=True)
        if item.figure in HEADLINE and item.estimate.value is not None
    ]


def _board(runs: dict[str, Any], groups: dict[str, Any], split: str) -> list[tuple[str, list[str]]]:
    """Return groups and single runs of a split, best first, with a group's members; those without the figure last."""
    members = {name for group in groups.values() for name in group["runs"]}
    figures = {name: body.get(split) for name, body in runs.items() if name not in members}
    figures |= {name: group["figures"].get(split) for name, group in groups.items()}

    def worth(name: str) -> float:
        value = (figures[name] or {}).get(FIGURES[0], {}).get("value")
        return float("inf") if value is None else -float(value)

    names = sorted((name for name, body in figures.items() if body), key=lambda name: (worth(name), name))
    return [(name, groups[name]["runs"] if name in groups else []) for name in names]


def _sheet(table: pd.DataFrame, images: Path | None) -> list[dict[str, Any]]:
    shown = table.head(SHOWN)
    find = opener(shown, images)
    names = [name for name in table.columns if name not in ("image_id", "path", "label", "wrong_in")]
    return [
        {
            "image_id": row["image_id"],
            "label": row["label"],
            "uri": thumbnail(find(row["image_id"])),
            "answers": [(name, row[name]) for name in names],
        }
        for row in shown.to_dict("records")
    ]


_OF_A_RUN = ("value", "low", "high", "n", "method", "reason")
_OF_A_GROUP = ("trainings", "sd", "min", "max")


# Tables and JSON --------------------------------------------------------------------------------------------------


def write_comparison(comparison: Comparison, folder: Path) -> Path:
    """Write leaderboard.csv, pairs.csv and disagreements_<split>.csv; returns the first one's path."""
    make_folder(folder)
    write_text(folder / "leaderboard.csv", comparison.table.to_csv(index=False, lineterminator="\n"))
    write_rows(folder / "pairs.csv", PAIR_COLUMNS, [row for pair in comparison.pairs for row in _pair_rows(pair)])
    for split, table in comparison.disagreements.items():
        write_text(folder / f"disagreements_{split}.csv", table.to_csv(index=False, lineterminator="\n"))
    return folder / "leaderboard.csv"


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """Return what comparison.json holds: runs and groups with their figures, pairs with differences and sentences."""
    together = {entry.name: entry for entry in comparison.entries if entry.is_group}
    runs: dict[str, Any] = {}
    figures: dict[str, Any] = {name: {} for name in together}
    for row in comparison.table.astype(object).where(comparison.table.notna(), None).to_dict("records"):
        fields = (*_OF_A_RUN, *_OF_A_GROUP) if row["run"] in together else _OF_A_RUN
        side = figures if row["run"] in together else runs
        side.setdefault(row["run"], {}).setdefault(row["split"], {})[row["metric"]] = {f: row[f] for f in fields}
    groups = {
        name: {
            "runs": list(entry.names), "note": entry.note, "figures": figures[name],
            "moved_by": {
                split: {figure: _sources(item) for figure, item in found.items()}
                for split, found in comparison.spreads.get(name, {}).items()
            },
        }
        for name, entry in together.items()
    }  # fmt: skip
    pairs = [
        {
            "first": pair.first, "second": pair.second, "split": pair.split, "n": pair.n, "reason": pair.reason,
            "kind": pair.kind, "figures": {item.figure: _difference(pair, item) for item in pair.differences},
        }
        for pair in comparison.pairs
    ]  # fmt: skip
    same = comparison.same_images
    return {"runs": runs, "groups": groups, "same_images": same, "pairs": pairs, "notes": comparison.notes}


def _sources(item: Sources | None) -> dict[str, Any]:
    """Return what moves a figure: deviations of trainings on these images, of trainings alone, of images."""
    if item is None:
        return {}
    return {
        "mean": item.mean, "values": list(item.values), "sd": item.between, "sd_seed": item.seed,
        "sd_images": item.data,
    }  # fmt: skip


def _difference(pair: Pair, item: Difference) -> dict[str, Any]:
    facts = {
        **item.estimate.as_dict(), "test": item.test, "p": item.p, "p_holm": item.p_holm,
        "discordant": None if item.discordant is None else list(item.discordant), "images_needed": item.more_images,
        "found": item.is_found, "verdict": verdict(item, pair.first, pair.second),
    }  # fmt: skip
    if not isinstance(item, Repeated):
        return facts
    return {
        **facts, "first": _sources(item.first), "second": _sources(item.second), "error_seeds": item.seeds,
        "error_images": item.images, "borrowed": item.borrowed, "folds": item.folds,
        "trainings": list(item.trainings), "needs_trainings": item.needs_trainings,
    }  # fmt: skip


def _pair_rows(pair: Pair) -> list[tuple[object, ...]]:
    if pair.reason:
        said, after = pair.sentences()[0], len(PAIR_COLUMNS) - PAIR_COLUMNS.index("kind") - 1
        return [
            (pair.first, pair.second, pair.split, *[""] * 4, pair.n, *[""] * 7, said, pair.kind, *[""] * after)
        ]
    return [
        (
            pair.first, pair.second, pair.split, item.figure, _blank(item.estimate.value),
            *(item.estimate.ci95 or ("", "")), item.estimate.n, item.test, _blank(item.p), _blank(item.p_holm),
            *(item.discordant or ("", "")), _blank(item.more_images), item.estimate.method,
            verdict(item, pair.first, pair.second), pair.kind, *_trainings_row(item),
        )
        for item in pair.differences
    ]  # fmt: skip


def _trainings_row(item: Difference) -> list[object]:
    """Return the columns that only several trainings have; a run is one training."""
    if not isinstance(item, Repeated):
        return [1, 1, *[""] * (len(PAIR_COLUMNS) - PAIR_COLUMNS.index("first_trainings") - 2)]
    sides = [_sources(item.first), _sources(item.second)]
    told = [_blank(side.get(name)) for name in ("mean", "sd", "sd_seed", "sd_images") for side in sides]
    return [*item.trainings, _blank(item.folds or None), *told, _blank(item.seeds), _blank(item.images)]


def _blank(value: float | None) -> object:
    return "" if value is None else value
