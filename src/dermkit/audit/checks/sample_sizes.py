"""DA030 to DA033: whether there are enough images to train on and to test with."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.audit.checks.finding import (
    AuditInput,
    Finding,
    NotApplicable,
    Outcome,
    Severity,
    image_table,
    images_per_class,
)
from dermkit.audit.checks.text import join_words, plural, proportion_json, proportion_text
from dermkit.metrics.stats.arrays import Bools
from dermkit.metrics.stats.intervals import wilson_interval
from dermkit.metrics.stats.power import effective_sample_size, minimum_detectable_difference

SMALL_CLASS_IMAGES = 100
"""Images of a class; with fewer, a fifth of them as test images give its recall an interval of +-17 points or more."""

MIN_CLASS_TEST_IMAGES = 30
"""Test images of a class; with fewer the interval of a recall of 0.8 is +-14 points or wider."""

ASSUMED_RATE = 0.8
"""The accuracy and the sensitivity for which widths of intervals are computed."""

WIDE_ACCURACY = 0.05
WIDE_SENSITIVITY = 0.10
MAX_DETECTABLE_DIFFERENCE = 0.05
"""Half widths of the intervals, and the difference between two models, above which little can be concluded."""

DISCORDANT_FRACTIONS = (0.2, 0.3)
"""Fraction of images on which exactly one of two models is right: 0.32 for independent models of accuracy 0.8."""

CONTRADICTED_FRACTION = 0.5
"""Fraction of a class's test images with a contradictory duplicate from which its recall is meaningless."""


def da030_small_classes(audit_input: AuditInput) -> Outcome:
    """Small classes

    Threshold: a class with fewer than 100 images, or with 1 to 29 test images.
    Severity: note.
    Effect: Sensitivity and precision of these classes are very uncertain, and so is every mean over classes.
    """
    table = _class_table(audit_input)
    too_few = table["images"] < SMALL_CLASS_IMAGES
    too_few_tested = table["test"].between(1, MIN_CLASS_TEST_IMAGES - 1) if "test" in table else too_few & False
    small_classes = table[too_few | too_few_tested]
    if small_classes.empty:
        return None
    class_texts = [
        f"{row['label']} {row['images']:,}" + (f" ({row['test']:,} in test)" if "test" in table else "")
        for row in small_classes.sort_values("images").to_dict("records")
    ]
    noun = "class" if len(small_classes) == 1 else "classes"
    sentence = (
        f"{len(small_classes)} of {len(table)} {noun} have fewer than {SMALL_CLASS_IMAGES} images, or "
        f"fewer than {MIN_CLASS_TEST_IMAGES} test images: {join_words(class_texts)}."
    )
    in_small_class = audit_input.frame["label"].isin(small_classes["label"]).to_numpy()
    return Finding(
        severity=Severity.NOTE, n=int(in_small_class.sum()), sentence=sentence, rows=table, kind="table",
        per_class=images_per_class(audit_input, in_small_class), figures={"classes": small_classes.to_dict("records")},
    )  # fmt: skip


def da031_class_missing_in_split(audit_input: AuditInput) -> Outcome:
    """A split lacks a class

    Threshold: a class of the data set without an image in one of the splits.
    Severity: note.
    Effect: Without training images every test image of the class is wrong; without test images its sensitivity is
    unknown.
    """
    if not audit_input.has_split:
        return NotApplicable("no split")
    table = _class_table(audit_input)
    split_names = _split_names(audit_input)
    missing_by_split = {
        split_name: [str(name) for name in table.loc[table[split_name] == 0, "label"]]
        for split_name in split_names
    }
    missing_by_split = {split_name: names for split_name, names in missing_by_split.items() if names}
    if not missing_by_split:
        return None
    missing_classes = {name for names in missing_by_split.values() for name in names}
    in_missing_class = audit_input.frame["label"].isin(missing_classes).to_numpy()
    gap_texts = [f"{split_name} has no {join_words(names)}" for split_name, names in missing_by_split.items()]
    sentence = f"{join_words(gap_texts)}."
    return Finding(
        severity=Severity.NOTE, n=int(in_missing_class.sum()), sentence=sentence, rows=table, kind="table",
        per_class=images_per_class(audit_input, in_missing_class), figures={"missing_classes": missing_by_split},
    )  # fmt: skip


def da032_test_too_small(audit_input: AuditInput) -> Outcome:
    """Too few test images for firm conclusions

    Threshold: half width of the 95 % interval above 0.05 for an accuracy of 0.8 or above 0.10 for a sensitivity of
    0.8; or a least detectable difference above 0.05 between two models (McNemar, two-sided 0.05, power 0.8, 20 % of
    the images discordant). Photographs of one lesion are assumed to agree entirely.
    Severity: note.
    Effect: Two published accuracies that differ by less than that on this test set are not shown to differ.
    """
    is_test = _is_test(audit_input)
    if not is_test.any():
        return NotApplicable("no test split")
    precision = test_set_precision(audit_input, is_test)
    sensitivity = precision["sensitivity"]
    detectable_difference = precision["detectable_differences"][0]["difference"]
    is_wide = precision["accuracy"]["half_width"] > WIDE_ACCURACY or (
        sensitivity and sensitivity["half_width"] > WIDE_SENSITIVITY
    )
    if not is_wide and detectable_difference is not None and detectable_difference <= MAX_DETECTABLE_DIFFERENCE:
        return None
    return Finding(
        severity=Severity.NOTE,
        n=int(is_test.sum()),
        sentence=_precision_text(precision),
        rows=_precision_rows(precision),
        kind="table",
        per_class=images_per_class(audit_input, is_test),
        figures=precision,
    )


def da033_class_contradicted(audit_input: AuditInput) -> Outcome:
    """Most test images of a class have a copy with another label

    Threshold: at least half of the test images of a class (of all its images, without a test split) have an exact or
    near copy under another label.
    Severity: error.
    Effect: No model can be right on these images and on their copies: the sensitivity of the class means nothing.
    """
    is_test = _is_test(audit_input)
    images_text = "test images" if is_test.any() else "images"
    in_scope = is_test if is_test.any() else np.ones(len(audit_input.frame), dtype=bool)
    nearest_duplicate, distance = _nearest_contradictions(audit_input)
    label = audit_input.frame["label"].to_numpy()
    contradicted_counts = {
        name: (int((in_class & (nearest_duplicate >= 0)).sum()), int(in_class.sum()))
        for name, in_class in ((name, in_scope & (label == name)) for name in audit_input.dataset.class_names)
    }
    contradicted_classes = {
        name: pair
        for name, pair in contradicted_counts.items()
        if pair[1] and pair[0] >= CONTRADICTED_FRACTION * pair[1]
    }
    if not contradicted_classes:
        return None
    rows = np.flatnonzero(in_scope & (nearest_duplicate >= 0) & np.isin(label, list(contradicted_classes)))
    rows = rows[np.lexsort((rows, distance[rows], label[rows]))]
    duplicate_columns = {
        f"duplicate_{name}": audit_input.frame[name].to_numpy()[nearest_duplicate[rows]]
        for name in ("image_id", "path", "label", "split")
    }
    class_texts = [
        f"of {n_total:,} {images_text} of {name} {proportion_text(n, n_total)}"
        for name, (n, n_total) in contradicted_classes.items()
    ]
    sentence = f"{join_words(class_texts)} have a copy under another label."
    return Finding(
        severity=Severity.ERROR,
        n=len(rows),
        sentence=sentence[0].upper() + sentence[1:],
        rows=image_table(audit_input, rows).assign(**duplicate_columns, distance=distance[rows]),
        per_class=images_per_class(audit_input, rows),
        figures={name: proportion_json(*pair) for name, pair in contradicted_counts.items()},
    )


# Precision of a test set


def test_set_precision(audit_input: AuditInput, is_test: Bools) -> dict[str, Any]:
    """Return the precision of the test images: widths at `ASSUMED_RATE`, and least detectable differences."""
    group_ids = audit_input.group_ids[is_test]
    is_malignant = audit_input.frame["label"].isin(audit_input.dataset.malignant_classes).to_numpy()[is_test]
    n = max(1, int(effective_sample_size(group_ids)))
    return {
        "images": int(is_test.sum()),
        "effective_n": n,
        "accuracy": _interval_precision(group_ids),
        "sensitivity": _interval_precision(group_ids[is_malignant]) if is_malignant.any() else None,
        "detectable_differences": [
            {"discordant_fraction": discordant, "difference": minimum_detectable_difference(n, discordant)}
            for discordant in DISCORDANT_FRACTIONS
        ],
    }


def _interval_precision(group_ids: NDArray[np.int64]) -> dict[str, Any]:
    """Return the Wilson interval of a proportion of `ASSUMED_RATE` on so many independent images."""
    n = max(1, int(effective_sample_size(group_ids)))
    low, high = wilson_interval(round(ASSUMED_RATE * n), n)
    return {
        "images": len(group_ids),
        "effective_n": n,
        "assumed_rate": ASSUMED_RATE,
        "ci95": [low, high],
        "half_width": (high - low) / 2,
    }


def _precision_text(precision: dict[str, Any]) -> str:
    def rate_interval(proportion: dict[str, Any]) -> str:
        low, high = (100 * bound for bound in proportion["ci95"])
        return f"{100 * ASSUMED_RATE:.0f} % has the interval {low:.0f} to {high:.0f} %"

    n, independent = precision["images"], precision["effective_n"]
    worth_text = f" (worth {plural(independent, 'independent image')})" if independent < n else ""
    text = f"{plural(n, 'test image')}{worth_text}: an accuracy of {rate_interval(precision['accuracy'])}"
    if precision["sensitivity"]:
        malignant = plural(precision["sensitivity"]["images"], "malignant image")
        text += f"; a sensitivity on {malignant} of {rate_interval(precision['sensitivity'])}"
    differences = [difference["difference"] for difference in precision["detectable_differences"]]
    if None in differences:
        return f"{text}; hardly any difference between two models can be shown (McNemar, power 80 %)."
    low, high = (100 * points for points in differences)
    return (
        f"{text}; two models must differ by {low:.1f} to {high:.1f} points to be told apart (McNemar, power 80 %, "
        f"{100 * DISCORDANT_FRACTIONS[0]:.0f} to {100 * DISCORDANT_FRACTIONS[1]:.0f} % of the images discordant)."
    )


def _precision_rows(precision: dict[str, Any]) -> pd.DataFrame:
    rows = [
        {"quantity": f"half width of the 95 % interval of {name} {ASSUMED_RATE}", "images": precision[name]["images"],
         "effective_n": precision[name]["effective_n"], "value": precision[name]["half_width"]}
        for name in ("accuracy", "sensitivity") if precision[name]
    ]  # fmt: skip
    rows += [
        {
            "quantity": f"least detectable difference, {difference['discordant_fraction']:.0%} discordant",
            "images": precision["images"],
            "effective_n": precision["effective_n"],
            "value": difference["difference"],
        }
        for difference in precision["detectable_differences"]
    ]
    return pd.DataFrame(rows)


# Splits and classes


def _split_names(audit_input: AuditInput) -> list[str]:
    """Return the splits in use: train, validation, test, or the folds by number."""
    split_names = [split_name for split_name in audit_input.frame["split"].unique() if split_name]
    order = {"train": 0, "validation": 1, "test": 2}
    return sorted(split_names, key=lambda split_name: (order.get(split_name, 3), len(split_name), split_name))


def _is_test(audit_input: AuditInput) -> Bools:
    """Return (N,) flags of the test images; of k folds without any, of every image in a fold."""
    split_names = audit_input.frame["split"]
    is_test = split_names == "test"
    return (is_test if is_test.any() else split_names.str.startswith("fold")).to_numpy(dtype=bool)


def _class_table(audit_input: AuditInput) -> pd.DataFrame:
    """Return label, images, groups and one column per split."""
    frame = pd.DataFrame(
        {
            "label": audit_input.frame["label"],
            "split": audit_input.frame["split"],
            "group_id": audit_input.group_ids,
        }
    )
    by_label = frame.groupby("label")
    names = list(audit_input.dataset.class_names)
    table = pd.DataFrame({"images": by_label.size(), "groups": by_label["group_id"].nunique()})
    counts = pd.crosstab(frame["label"], frame["split"])
    for split_name in _split_names(audit_input):
        table[split_name] = counts[split_name]
    return table.reindex(names, fill_value=0).rename_axis("label").reset_index()


def _nearest_contradictions(audit_input: AuditInput) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return (N,) row of the nearest duplicate under another label (-1 = none), and (N,) its distance."""
    n = len(audit_input.frame)
    nearest_duplicate, distance = np.full(n, -1, dtype=np.int64), np.full(n, np.nan)
    label = audit_input.frame["label"].to_numpy()
    pairs = audit_input.pairs.sort_values("distance", ascending=False, kind="stable")
    a, b = pairs["a"].to_numpy(dtype=np.int64), pairs["b"].to_numpy(dtype=np.int64)
    labels_differ = label[a] != label[b]
    distances = pairs["distance"].to_numpy(dtype=np.float64)[labels_differ]
    for rows, duplicate_rows in ((a[labels_differ], b[labels_differ]), (b[labels_differ], a[labels_differ])):
        # Of several pairs of an image the nearest is written last.
        is_nearer = np.isnan(distance[rows]) | (distances < distance[rows])
        nearest_duplicate[rows[is_nearer]], distance[rows[is_nearer]] = (
            duplicate_rows[is_nearer],
            distances[is_nearer],
        )
    return nearest_duplicate, distance
