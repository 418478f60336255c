"""ladder.html: what a split by image, lesion, patient or source makes of one recipe's figures."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dermkit.files import write_text
from dermkit.metrics.stats.estimate import reliability
from dermkit.reporting.labels import page_templates
from dermkit.reporting.terminal import figure_lines, wrapped
from dermkit.runs.documents import saved_content
from dermkit.runs.layout import LADDER, LADDER_PAGE, LADDER_TABLE

_Json = Mapping[str, Any]

FIGURE_TITLES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "auroc_macro": "AUROC, mean over classes",
    "sensitivity": "Sensitivity, malignant",
    "specificity": "Specificity, malignant",
    "auroc": "AUROC, malignant",
}
_HEADLINE_METRICS = ("balanced_accuracy", "accuracy")
"""Named first: the one that counts classes alike, and the one with the most images behind it."""
_LEAK_NAMES = {"lesion_id": "lesion", "patient_id": "patient", "source": "source"}


def write_ladder_page(folder: Path) -> Path:
    """Write ladder.html of a folder that has its ladder.json; returns its path."""
    with saved_content(folder):
        ladder = LADDER.read(folder)
        rungs = [rung for rung in ladder["rungs"] if not rung["reason"]]
        html = page_templates().get_template("ladder.html.j2").render(
            title=f"Leak ladder of {ladder['recipe']} on {ladder['dataset']}",
            ladder=ladder,
            rungs=rungs,
            skipped=[rung for rung in ladder["rungs"] if rung["reason"]],
            sentences=list(ladder_sentences(ladder)),
            blocks=list(_difference_blocks(ladder)),
            figure_rows=list(_figure_rows(rungs)),
            leak_rows=list(_leak_rows(rungs)),
            leak_names=_LEAK_NAMES,
            side_rows=list(_side_rows(rungs)),
            confounders=list(confounders(ladder)),
            table=LADDER_TABLE,
        )  # fmt: skip
    write_text(folder / LADDER_PAGE, html)
    return folder / LADDER_PAGE


def figure_title(row: _Json) -> str:
    """Return the name of a figure of ladder.json."""
    if not row["class"]:
        return FIGURE_TITLES[row["metric"]]
    return f"{'Sensitivity' if row['metric'] == 'recall' else 'AUROC'}, {row['class']}"


def ladder_sentences(ladder: _Json) -> Iterator[str]:
    """Yield what each rung makes of balanced accuracy and accuracy, against the reference."""
    for metric in _HEADLINE_METRICS:
        for row in ladder["differences"]:
            if (row["metric"], row["class"]) == (metric, "") and ladder["reference"] in (
                row["first"],
                row["second"],
            ):
                yield difference_sentence(row)


def difference_sentence(row: _Json) -> str:
    """Return a difference between two rungs as a sentence. row: of `differences` in ladder.json."""
    name = figure_title(row)
    name = name if name.startswith("AUROC") else name[0].lower() + name[1:]
    if row["value"] is None or not row["ci95"]:
        reason = row.get("reason") or "no interval"
        return f"{name}, split by {row['first']} against {row['second']}: not known ({reason})."
    low, high = row["ci95"]
    marked = ", an interval that cannot be relied on" if reliability(row) else ""
    figures = f"{row['value']:+.3f} [{low:+.3f}, {high:+.3f}]{marked}, n = {row['n']:,} test images a repeat"
    if row["second"] == "source":
        outcome = "better on sources of the training images" if low > 0 else "not shown to depend on the source"
        outcome = "worse on sources of the training images" if high < 0 else outcome
        return f"Split by {row['first']} in place of source, {name} is {outcome}: {figures}."
    outcome = "looks better than it is" if low > 0 else "is not shown to look better"
    outcome = "looks worse than it is" if high < 0 else outcome
    return f"Split by {row['first']} in place of {row['second']}, {name} {outcome}: {figures}."


def _difference_blocks(ladder: _Json) -> Iterator[dict[str, Any]]:
    """Yield each pair of rungs with its rows, those with the reference first; places are in percent of the scale."""
    pairs = list(dict.fromkeys((row["first"], row["second"]) for row in ladder["differences"]))
    for first, second in sorted(pairs, key=lambda pair: ladder["reference"] not in pair):
        rows = [row for row in ladder["differences"] if (row["first"], row["second"]) == (first, second)]
        bounds = [abs(bound) for row in rows for bound in (row["ci95"] or ())]
        limit = min(1.0, max([0.05, *bounds]))
        yield {
            "first": first,
            "second": second,
            "limit": limit,
            "is_open": ladder["reference"] in (first, second),
            "rows": [_placed(row, limit) for row in rows],
        }


def _placed(row: _Json, limit: float) -> dict[str, Any]:
    def place(value: float) -> float:
        return 50 + 50 * max(-1.0, min(1.0, value / limit))

    placed: dict[str, Any] = {
        **row,
        "title": figure_title(row),
        "mark": bool(reliability(row)) and bool(row["ci95"]),
    }
    if row["value"] is not None and row["ci95"]:
        low, high = map(place, row["ci95"])
        placed |= {"left": low, "width": high - low, "dot": place(row["value"])}
        placed["kind"] = "above" if row["ci95"][0] > 0 else "below" if row["ci95"][1] < 0 else ""
    return placed


def _figure_rows(rungs: Sequence[_Json]) -> Iterator[dict[str, Any]]:
    for rows in zip(*(rung["figures"] for rung in rungs), strict=True):
        cells = [{**row, "mark": bool(reliability(row)) and bool(row["ci95"])} for row in rows]
        yield {"title": figure_title(rows[0]), "cells": cells}


def _leak_rows(rungs: Sequence[_Json]) -> Iterator[dict[str, Any]]:
    """Yield for every class and all of them the leaking test images of each rung, summed over repeats."""
    classes = list(rungs[0]["leaks"][0])
    for title, names in [("all", classes), *((name, [name]) for name in classes)]:
        cells = []
        for rung in rungs:
            counts = [repeat[name] for repeat in rung["leaks"] for name in names if name in repeat]
            cells.append({key: sum(count[key] for count in counts) for key in ("n", *_LEAK_NAMES)})
        yield {"title": title, "cells": cells}


def _side_rows(rungs: Sequence[_Json]) -> Iterator[dict[str, Any]]:
    """Yield what the repeats of each rung have in training, validation and test: images, and groups of them."""
    for rung in rungs:
        images = [{side: sum(counts.values()) for side, counts in one["images"].items()} for one in rung["sides"]]
        yield {
            "name": rung["name"],
            "images": {side: _range([one[side] for one in images]) for side in images[0]},
            "lesions": {side: _range([one["lesions"][side] for one in rung["sides"]]) for side in images[0]},
        }


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def confounders(ladder: _Json) -> Iterator[str]:
    """Yield what the rungs still differ by beside what they keep together."""
    names = [rung["name"] for rung in ladder["rungs"] if not rung["reason"]]
    yield (
        "As many training images come from more lesions where images of one lesion may lie on both sides. Such a net "
        "has seen more lesions, which makes it a little better, leak or not. The table of sizes has the numbers."
    )
    yield ("Validation images leak as the test images do, so a rung that leaks may keep a later epoch.")
    yield (
        "Near copies are kept together in every rung only where the audit found them (`dermkit audit DATASET "
        "--clean`). Those that nobody found leak in every rung, and the ladder does not show them."
    )
    yield (
        "The repeats draw from one pool, so their training images overlap; a data set collected anew varies more than "
        "these intervals say."
    )
    if "source" in names:
        yield (
            "The rung by source is a shift too: other cameras, other patients, another mixture of classes, often "
            "another number of images. Its difference is what a new place costs, not a leak alone. Accuracy depends on "
            "the mixture, balanced accuracy and AUROC less so."
        )


def ladder_lines(folder: Path) -> list[str]:
    """Return what to read first of a ladder: the headline figure of every rung, and the differences."""
    with saved_content(folder):
        ladder = LADDER.read(folder)
        lines = [f"{FIGURE_TITLES[_HEADLINE_METRICS[0]].lower()} of {ladder['repeats']} repeats a rung:"]
        lines += figure_lines([(f"by {rung['name']}", _rung_text(rung)) for rung in ladder["rungs"]])
        for sentence in ladder_sentences(ladder):
            lines += wrapped(sentence, indent="  ")
    return lines


def _rung_text(rung: _Json) -> str:
    if rung["reason"]:
        return f"not applicable: {rung['reason']}"
    (row,) = [row for row in rung["figures"] if row["metric"] == _HEADLINE_METRICS[0]]
    if row["value"] is None or not row["ci95"]:
        return f"not known: {row.get('reason', 'no interval')}"
    low, high = row["ci95"]
    mark = ", unreliable" if reliability(row) else ""
    return f"{row['value']:.3f} [{low:.3f}, {high:.3f}]{mark}, n = {row['n']:,}"
