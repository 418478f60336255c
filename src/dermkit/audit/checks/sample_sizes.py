"""DA030 to DA033: whether there is enough to learn from, and enough to conclude from."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.audit.checks.finding import Finding, NotApplicable, Outcome, Severity, Subject, image_rows, per_class
from dermkit.audit.checks.text import counted, listed, share_figures, share_text
from dermkit.metrics.stats.intervals import wilson
from dermkit.metrics.stats.power import effective_size, least_detectable_difference

Flags = NDArray[np.bool_]

FEW = 100
"""Images of a class; with fewer, a fifth of them as a test side gives its recall an interval of +-17 points or more."""

FEW_TESTED = 30
"""Test images of a class; with fewer the interval of a recall of 0.8 is +-14 points or wider."""

SUPPOSED = 0.8
"""The accuracy and the sensitivity that the widths are worked out for."""

WIDE = 0.05
WIDE_SENSITIVITY = 0.10
BLUNT = 0.05
"""Half widths of the intervals, and the difference between two models, above which little can be concluded."""

DISCORDANT = (0.2, 0.3)
"""Share of images on which just one of two models is right: 0.32 for unrelated models of accuracy 0.8, less for kin."""

CONTRADICTED = 0.5
"""Share of a class's test images; where half of them are contradicted, its recall says nothing."""

NAMED = 4


def da030_small_classes(subject: Subject) -> Outcome:
    """Small classes

    Threshold: a class with fewer than 100 images, or with 1 to 29 test images.
    Severity: note.
    Effect: The recall and precision of these classes are guesses, and so is every figure averaged over classes.
    """
    table = _table_of_classes(subject)
    few = table["images"] < FEW
    tested = table["test"].between(1, FEW_TESTED - 1) if "test" in table else few & False
    small = table[few | tested]
    if small.empty:
        return None
    parts = [
        f"{row['label']} {row['images']:,}" + (f" ({row['test']:,} on the test side)" if "test" in table else "")
        for row in small.sort_values("images").to_dict("records")
    ]
    noun = "class" if len(small) == 1 else "classes"
    sentence = (
        f"{len(small)} of {len(table)} {noun} have fewer than {FEW} images, or fewer than {FEW_TESTED} to be tested "
        f"with: {listed(parts)}."
    )
    mine = subject.frame["label"].isin(small["label"]).to_numpy()
    return Finding(
        severity=Severity.NOTE, n=int(mine.sum()), sentence=sentence, rows=table, kind="table",
        per_class=per_class(subject, mine), figures={"classes": small.to_dict("records")},
    )  # fmt: skip


def da031_class_missing_on_side(subject: Subject) -> Outcome:
    """A side lacks a class

    Threshold: a class of the data set without an image on a side of the split.
    Severity: note.
    Effect: Without training images every test image of the class is wrong; without test images it has no recall.
    """
    if not subject.has_sides:
        return NotApplicable("no split")
    table = _table_of_classes(subject)
    sides = _sides(subject)
    lacking = {side: [str(name) for name in table.loc[table[side] == 0, "label"]] for side in sides}
    lacking = {side: names for side, names in lacking.items() if names}
    if not lacking:
        return None
    missing = {name for names in lacking.values() for name in names}
    mine = subject.frame["label"].isin(missing).to_numpy()
    sentence = f"{listed([f'{side} has no {listed(names)}' for side, names in lacking.items()])}."
    return Finding(
        severity=Severity.NOTE, n=int(mine.sum()), sentence=sentence, rows=table, kind="table",
        per_class=per_class(subject, mine), figures={"lacking": lacking},
    )  # fmt: skip


def da032_test_too_small(subject: Subject) -> Outcome:
    """The test images cannot carry a conclusion

    Threshold: half width of the 95 % interval above 0.05 for an accuracy of 0.8 or above 0.10 for a sensitivity of
    0.8; or a least detectable difference above 0.05 between two models (McNemar, two-sided 0.05, power 0.8, 20 % of
    the images discordant). Photographs of one lesion are supposed to agree entirely.
    Severity: note.
    Effect: Two published accuracies that differ by less than that on this test set are not shown to differ.
    """
    tested = _tested(subject)
    if not tested.any():
        return NotApplicable("no test side")
    found = conclusions(subject, tested)
    sensitivity = found["sensitivity"]
    blunt = found["least_difference"][0]["points"]
    wide = found["accuracy"]["half_width"] > WIDE or (sensitivity and sensitivity["half_width"] > WIDE_SENSITIVITY)
    if not wide and blunt is not None and blunt <= BLUNT:
        return None
    return Finding(
        severity=Severity.NOTE, n=int(tested.sum()), sentence=_conclusion_text(found), rows=_conclusion_rows(found),
        kind="table", per_class=per_class(subject, tested), figures=found,
    )  # fmt: skip


def da033_class_contradicted(subject: Subject) -> Outcome:
    """Most test images of a class carry another label elsewhere

    Threshold: at least half of the test images of a class (of all its images, without a test side) have an exact or
    near copy under another label.
    Severity: error.
    Effect: No model can be right on these images and on their copies: recall of the class means nothing.
    """
    tested = _tested(subject)
    where = "test images" if tested.any() else "images"
    asked = tested if tested.any() else np.ones(len(subject.frame), dtype=bool)
    twin, distance = _contradictions(subject)
    label = subject.frame["label"].to_numpy()
    shares = {
        name: (int((mine & (twin >= 0)).sum()), int(mine.sum()))
        for name, mine in ((name, asked & (label == name)) for name in subject.dataset.class_names)
    }
    bad = {name: pair for name, pair in shares.items() if pair[1] and pair[0] >= CONTRADICTED * pair[1]}
    if not bad:
        return None
    rows = np.flatnonzero(asked & (twin >= 0) & np.isin(label, list(bad)))
    rows = rows[np.lexsort((rows, distance[rows], label[rows]))]
    extra = {
        f"copy_{name}": subject.frame[name].to_numpy()[twin[rows]]
        for name in ("image_id", "path", "label", "split")
    }
    parts = [f"of {of:,} {where} of {name} {share_text(n, of)}" for name, (n, of) in bad.items()]
    sentence = f"{listed(parts)} have a copy under another label."
    return Finding(
        severity=Severity.ERROR, n=len(rows), sentence=sentence[0].upper() + sentence[1:],
        rows=image_rows(subject, rows).assign(**extra, distance=distance[rows]), per_class=per_class(subject, rows),
        figures={name: share_figures(*pair) for name, pair in shares.items()},
    )  # fmt: skip


# What a test set can carry


def conclusions(subject: Subject, tested: Flags) -> dict[str, Any]:
    """Return what the test images can show: widths at `SUPPOSED`, and the least detectable differences."""
    units = subject.units[tested]
    malignant = subject.frame["label"].isin(subject.dataset.malignant).to_numpy()[tested]
    n = max(1, int(effective_size(units)))
    return {
        "images": int(tested.sum()),
        "independent": n,
        "accuracy": _width(units),
        "sensitivity": _width(units[malignant]) if malignant.any() else None,
        "least_difference": [
            {"discordant": share, "points": least_detectable_difference(n, share)} for share in DISCORDANT
        ],
    }


def _width(units: NDArray[np.int64]) -> dict[str, Any]:
    """Return the Wilson interval of a proportion of `SUPPOSED` on so many independent images."""
    n = max(1, int(effective_size(units)))
    low, high = wilson(round(SUPPOSED * n), n)
    return {
        "images": len(units),
        "independent": n,
        "supposed": SUPPOSED,
        "ci95": [low, high],
        "half_width": (high - low) / 2,
    }


def _conclusion_text(found: dict[str, Any]) -> str:
    def range_of(item: dict[str, Any]) -> str:
        low, high = (100 * bound for bound in item["ci95"])
        return f"{100 * SUPPOSED:.0f} % has the interval {low:.0f} to {high:.0f} %"

    n, independent = found["images"], found["independent"]
    worth = f" (worth {counted(independent, 'independent image')})" if independent < n else ""
    text = f"{counted(n, 'test image')}{worth}: an accuracy of {range_of(found['accuracy'])}"
    if found["sensitivity"]:
        malignant = counted(found["sensitivity"]["images"], "malignant image")
        text += f"; a sensitivity on {malignant} of {range_of(found['sensitivity'])}"
    differences = [item["points"] for item in found["least_difference"]]
    if None in differences:
        return f"{text}; hardly any difference between two models can be shown (McNemar, power 80 %)."
    low, high = (100 * points for points in differences)
    return (
        f"{text}; two models must differ by {low:.1f} to {high:.1f} points to be told apart (McNemar, power 80 %, "
        f"{100 * DISCORDANT[0]:.0f} to {100 * DISCORDANT[1]:.0f} % of the images discordant)."
    )


def _conclusion_rows(found: dict[str, Any]) -> pd.DataFrame:
    rows = [
        {"figure": f"half width of the 95 % interval of {name} {SUPPOSED}", "images": found[name]["images"],
         "independent": found[name]["independent"], "value": found[name]["half_width"]}
        for name in ("accuracy", "sensitivity") if found[name]
    ]  # fmt: skip
    rows += [
        {"figure": f"least detectable difference, {item['discordant']:.0%} discordant", "images": found["images"],
         "independent": found["independent"], "value": item["points"]}
        for item in found["least_difference"]
    ]  # fmt: skip
    return pd.DataFrame(rows)


# Sides and classes


def _sides(subject: Subject) -> list[str]:
    """Return the sides in use: train, validation, test, or the folds by number."""
    found = [side for side in subject.frame["split"].unique() if side]
    order = {"train": 0, "validation": 1, "test": 2}
    return sorted(found, key=lambda side: (order.get(side, 3), len(side), side))


def _tested(subject: Subject) -> Flags:
    """Return the images that are tested: the test side, or with folds every image on one."""
    side = subject.frame["split"]
    return ((side == "test") | side.str.startswith("fold")).to_numpy(dtype=bool)


def _table_of_classes(subject: Subject) -> pd.DataFrame:
    """Return label, images, groups and one column per side."""
    frame = pd.DataFrame({"label": subject.frame["label"], "split": subject.frame["split"], "unit": subject.units})
    by_label = frame.groupby("label")
    names = list(subject.dataset.class_names)
    table = pd.DataFrame({"images": by_label.size(), "groups": by_label["unit"].nunique()})
    counts = pd.crosstab(frame["label"], frame["split"])
    for side in _sides(subject):
        table[side] = counts[side]
    return table.reindex(names, fill_value=0).rename_axis("label").reset_index()


def _contradictions(subject: Subject) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return for each image the row of its nearest copy under another label (-1 = none), and the distance."""
    n = len(subject.frame)
    twin, distance = np.full(n, -1, dtype=np.int64), np.full(n, np.nan)
    label = subject.frame["label"].to_numpy()
    pairs = subject.pairs.sort_values("distance", ascending=False, kind="stable")
    a, b = pairs["a"].to_numpy(dtype=np.int64), pairs["b"].to_numpy(dtype=np.int64)
    differs = label[a] != label[b]
    gap = pairs["distance"].to_numpy(dtype=np.float64)[differs]
    for here, there in ((a[differs], b[differs]), (b[differs], a[differs])):
        # Of several pairs of one image the nearest is written last.
        better = np.isnan(distance[here]) | (gap < distance[here])
        twin[here[better]], distance[here[better]] = there[better], gap[better]
    return twin, distance
