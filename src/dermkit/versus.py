"""comparison.html: runs against each other on one page, read from what `compare` found."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dermkit.claims import Checked
from dermkit.compare import Comparison, Pair, as_dict
from dermkit.files import make_folder, write_json, write_text
from dermkit.labels import page_templates
from dermkit.mistaken import opener, thumbnail

FORMAT = 1
FIGURES = ("balanced_accuracy", "accuracy", "sensitivity", "specificity", "auroc", "f1_macro", "loss")
"""Columns of the leaderboard; its order is that of the first one."""

HEADLINE = ("accuracy", "balanced_accuracy", "auroc")
SHOWN = 24
"""Images on a sheet of disagreements."""


def write_versus(
    comparison: Comparison | None, claims: Sequence[Checked], folder: Path, *, images: Path | None
) -> Path:
    """Write comparison.json and comparison.html; returns the page's path.

    comparison: None where only published figures are looked at. images: the root that paths of images start at, None
    where they are not at hand.
    """
    make_folder(folder)
    body = as_dict(comparison) if comparison else {"runs": {}, "same_images": {}, "pairs": []}
    body["published"] = [item.as_dict() for item in claims]
    write_json(folder / "comparison.json", body, format=FORMAT)
    splits = list(body["same_images"])
    environment = page_templates()
    environment.filters["signed"] = lambda value: f"{value:+.3f}"
    html = environment.get_template("comparison.html.j2").render(
        runs=body["runs"],
        splits=[split for split in ("test", "validation", "train") if split in splits],
        boards={split: _board(body["runs"], split) for split in splits},
        figures=FIGURES,
        same_images=body["same_images"],
        pairs=body["pairs"],
        claims=body["published"],
        headline=headline(comparison, claims),
        sheets={} if comparison is None else {s: _sheet(t, images) for s, t in comparison.disagreements.items()},
        disagreements={} if comparison is None else {s: len(t) for s, t in comparison.disagreements.items()},
    )
    write_text(folder / "comparison.html", html)
    return folder / "comparison.html"


def headline(comparison: Comparison | None, claims: Sequence[Checked]) -> list[str]:
    """Return the sentences to read first: of the pairs on test (else validation), then of the published figures."""
    pairs = comparison.pairs if comparison else ()
    last = "test" if any(pair.split == "test" for pair in pairs) else "validation"
    said = [sentence for pair in pairs if pair.split == last for sentence in _first(pair)]
    return said + [sentence for item in claims for sentence in item.sentences()]


def _first(pair: Pair) -> list[str]:
    if pair.reason:
        return pair.sentences()
    return [
        sentence
        for item, sentence in zip(pair.differences, pair.sentences(), strict=True)
        if item.figure in HEADLINE and item.estimate.value is not None
    ]


def _board(runs: dict[str, Any], split: str) -> list[str]:
    """Return the runs of a split, best first; a run without the figure comes last."""

    def worth(name: str) -> float:
        value = runs[name][split].get(FIGURES[0], {}).get("value")
        return float("inf") if value is None else -float(value)

    return sorted((name for name in runs if split in runs[name]), key=lambda name: (worth(name), name))


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
