"""ladder.html: what a split by image, lesion, patient or source makes of one recipe's figures."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dermkit.files import write_text
from dermkit.metrics.stats.estimate import reliability
from dermkit.render.forest import forest_rows
from dermkit.render.titles import lower_first
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
            lead=ladder_lead(ladder),
            answer=_ladder_answer(ladder),
            headline=_reference_forest(ladder),
            remedies=list(ladder_remedies(ladder)),
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


def ladder_lead(ladder: _Json) -> str:
    """Return what was done, in plain words."""
    names = [rung["name"] for rung in ladder["rungs"] if not rung["reason"]]
    return (
        f"The same recipe was trained {ladder['repeats']} times on each kind of split, by {', by '.join(names)}, of "
        f"{ladder['n']:,} images in {ladder['n_groups']:,} independent groups. A split by image may put photographs of "
        "one lesion into training and test: how much does that flatter the figures?"
    )


def figure_title(row: _Json) -> str:
    """Return the name of a figure of ladder.json."""
    if not row["class"]:
        return FIGURE_TITLES[row["metric"]]
    return f"{'Sensitivity' if row['metric'] == 'recall' else 'AUROC'}, {row['class']}"


def ladder_sentences(ladder: _Json) -> Iterator[str]:
    """Yield what each rung makes of balanced accuracy and accuracy, against the reference."""
    yield from map(difference_sentence, _reference_rows(ladder))


def difference_sentence(row: _Json) -> str:
    """Return a difference between two rungs as a sentence. row: of `differences` in ladder.json."""
    name = lower_first(figure_title(row))
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


def _ladder_answer(ladder: _Json) -> dict[str, Any]:
    """Return the word on what the finer split does, its kind and its sentences for the first screen."""
    rows = [row for row in _reference_rows(ladder) if row["value"] is not None and row["ci95"]]
    flattering = [row for row in rows if row["ci95"][0] > 0 and row["second"] != "source"]
    if not rows:
        word, about, kind = "Not known", "what a finer split does to the figures", "care"
    elif flattering:
        row = flattering[0]
        word, kind = f"{row['value']:+.3f} too good", "bad"
        about = (
            f"{lower_first(figure_title(row))} where the split is by {row['first']} in place of {row['second']}"
        )
    else:
        word, kind = "No inflation is shown", "care"
        about = f"by a finer split than by {ladder['reference']}, with {ladder['repeats']} repeats"
    return {"word": word, "about": about, "kind": kind, "sentences": list(ladder_sentences(ladder))}


def _reference_rows(ladder: _Json) -> Iterator[_Json]:
    """Yield the headline differences between the reference and any other rung."""
    for metric in _HEADLINE_METRICS:
        for row in ladder["differences"]:
            if (row["metric"], row["class"]) == (metric, "") and ladder["reference"] in (
                row["first"],
                row["second"],
            ):
                yield row


def _reference_forest(ladder: _Json) -> dict[str, Any]:
    """Return the forest plot of the first screen."""
    several = len({(row["first"], row["second"]) for row in _reference_rows(ladder)}) > 1
    items = [
        (f"{figure_title(row)}, {row['first']} less {row['second']}" if several else figure_title(row), row)
        for row in _reference_rows(ladder)
    ]
    return _forest(items)


def _forest(items: Sequence[tuple[str, _Json]]) -> dict[str, Any]:
    """Return rows of differences on a scale from -limit to limit, and what is not known: (name, reason)."""
    ends = [abs(end) for _, row in items for end in (row["ci95"] or ())]
    limit = min(1.0, max([0.05, *ends]))
    return {
        "rows": forest_rows([(name, row) for name, row in items if row["ci95"]], low=-limit, high=limit),
        "limit": limit,
        "unknown": [(name, row.get("reason") or "no interval") for name, row in items if not row["ci95"]],
    }


def ladder_remedies(ladder: _Json) -> Iterator[str]:
    """Yield what to do next after a ladder, in plain words."""
    yield (
        f"Report the figures split by {ladder['reference']}, the only ones here that are those of a model. `dermkit "
        "train` splits by lesion and patient unasked."
    )
    if any(row["ci95"] and row["ci95"][0] <= 0 <= row["ci95"][1] for row in _reference_rows(ladder)):
        yield (
            f"Repeat more often to narrow the intervals: `--repeats {2 * ladder['repeats']}`. An interval across 0 "
            "does not show that the split makes no difference."
        )
    yield "Look for copies that no id tells of: `dermkit audit DATASET --clean`. They leak in every split."


def _difference_blocks(ladder: _Json) -> Iterator[dict[str, Any]]:
    """Yield each pair of rungs with the rows of its forest plot, those with the reference first."""
    pairs = list(dict.fromkeys((row["first"], row["second"]) for row in ladder["differences"]))
    for first, second in sorted(pairs, key=lambda pair: ladder["reference"] not in pair):
        rows = [row for row in ladder["differences"] if (row["first"], row["second"]) == (first, second)]
        yield {"first": first, "second": second, **_forest([(figure_title(row), row) for row in rows])}


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
        "Where the images of one lesion may be divided between training and test, the same number of training images "
        "comes from more lesions. A net that has seen more lesions is a little better, even without a leak."
    )
    yield "Validation images leak as test images do, so a split that leaks may choose a later epoch."
    yield (
        "Near copies stay together only where the audit found them (`dermkit audit DATASET --clean`). Copies that were "
        "not found leak in every split, and the ladder does not show them."
    )
    yield (
        "All repeats draw from the same images, so their training images overlap; newly collected images would vary "
        "more than these intervals say."
    )
    if "source" in names:
        yield (
            "A split by source changes more than the leak: other cameras, other patients, another mixture of classes, "
            "often another number of images. Its difference is what a new clinic costs, not a leak alone. Accuracy "
            "depends on the mixture of classes, balanced accuracy and AUROC less so."
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
