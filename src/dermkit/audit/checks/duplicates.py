"""Checks of copies: the same picture twice, on one side or on two, under one label or under two."""

from typing import Any

import numpy as np
import pandas as pd

from dermkit.audit.checks.finding import Finding, NotApplicable, Outcome, Severity, Subject, pair_rows, per_class
from dermkit.audit.checks.text import counted, listed, share_figures, share_text
from dermkit.data.manifest import GROUP_COLUMNS

HELD_OUT = ("test", "validation")


def da010_exact_copies(subject: Subject) -> Outcome:
    """Exact copies under one label.

    Threshold: one pair of images with identical decoded pixels and the same label that no split parts.

    Severity: warning where the next split could part a pair; note where lesion, patient or copy group ties them all.

    Effect: A picture that counts twice weighs twice, and the next random split puts its twin on the other side.
    """
    return _same_label(subject, "exact", "identical pixels")


def da011_exact_contradictions(subject: Subject) -> Outcome:
    """Exact copies under different labels.

    Threshold: one pair of images with identical decoded pixels and different labels.

    Severity: error.

    Effect: At least one label of each pair is wrong, and no model can be right on both: it caps every accuracy.
    """
    return _contradictions(subject, "exact", "identical pixels")


def da012_exact_copies_across(subject: Subject) -> Outcome:
    """Exact copies across the sides of a split.

    Threshold: one pair of images with identical decoded pixels on two sides.

    Severity: error.

    Effect: The model is tested on pictures that it was trained on: the published accuracy counts what was memorised.
    """
    return _across(subject, "exact", "identical pixels")


def da013_near_copies(subject: Subject) -> Outcome:
    """Near copies under one label.

    Threshold: one pair that lies on each other with correlation above .985, under 3.7 grey levels apart and with fine
    detail agreeing above .6 (or above .992, under 6.5 levels and .85), the same label, parted by no split.

    Severity: warning where the next split could part a pair; note where lesion, patient or copy group ties them all.

    Effect: Resaved, resized, flipped, turned or cropped copies weigh twice, and a random split parts them: a leak.
    """
    return _same_label(subject, "near", "near copies")


def da014_near_contradictions(subject: Subject) -> Outcome:
    """Near copies under different labels.

    Threshold: one pair of near copies (as DA013) with different labels.

    Severity: error.

    Effect: One picture, two diagnoses: at least one label is wrong, and it caps every accuracy on this set.
    """
    return _contradictions(subject, "near", "near copies")


def da015_near_copies_across(subject: Subject) -> Outcome:
    """Near copies across the sides of a split.

    Threshold: one pair of near copies (as DA013) on two sides.

    Severity: error.

    Effect: The model is tested on pictures that it saw in another size, turn or crop: the accuracy is too high.
    """
    return _across(subject, "near", "near copies")


def _pairs(subject: Subject, which: str) -> pd.DataFrame:
    """Return the pairs, exact or near, with: same (label), parted (by a split), tied (by an id)."""
    exact = subject.pairs["kind"] == "exact"
    pairs = subject.pairs[exact if which == "exact" else ~exact].reset_index(drop=True)
    a, b = pairs["a"].to_numpy(), pairs["b"].to_numpy()
    values = {name: subject.frame[name].to_numpy() for name in ("label", "split", *GROUP_COLUMNS)}
    tied = np.zeros(len(pairs), bool)
    for name in GROUP_COLUMNS:
        tied |= (values[name][a] == values[name][b]) & (values[name][a] != "")
    side = values["split"]
    parted = (side[a] != side[b]) & (side[a] != "") & (side[b] != "")
    return pairs.assign(same=values["label"][a] == values["label"][b], parted=parted, tied=tied)


def _finding(subject: Subject, pairs: pd.DataFrame, severity: Severity, sentence: str, **figures: Any) -> Finding:
    images = np.unique(pairs[["a", "b"]].to_numpy())
    kinds = {str(kind): int(n) for kind, n in pairs["kind"].value_counts().items()}
    return Finding(
        severity=severity, n=len(images), sentence=sentence, rows=pair_rows(subject, pairs), kind="pairs",
        per_class=per_class(subject, images), figures={"pairs": len(pairs), "kinds": kinds, **figures},
    )  # fmt: skip


def _kinds(pairs: pd.DataFrame) -> str:
    counts = pairs["kind"].value_counts()
    return listed([f"{n:,} {kind}" for kind, n in counts.items()])


def _same_label(subject: Subject, which: str, words: str) -> Outcome:
    pairs = _pairs(subject, which)
    pairs = pairs[pairs["same"] & ~pairs["parted"]]
    if pairs.empty:
        return None
    images = len(np.unique(pairs[["a", "b"]].to_numpy()))
    loose = int((~pairs["tied"]).sum())
    tie = (
        f"Nothing ties {counted(loose, 'pair')}: a new split could part them."
        if loose
        else "Lesion, patient or copy group keeps each pair on one side."
    )
    kinds = "" if which == "exact" else f" ({_kinds(pairs)})"
    sentence = (
        f"{share_text(images, len(subject.frame))} of {len(subject.frame):,} images are in "
        f"{counted(len(pairs), 'pair')} of {words} under one label{kinds}. {tie}"
    )
    severity = Severity.WARNING if loose else Severity.NOTE
    return _finding(
        subject, pairs, severity, sentence, untied=loose, share=share_figures(images, len(subject.frame))
    )


def _contradictions(subject: Subject, which: str, words: str) -> Outcome:
    if subject.frame["label"].nunique() < 2:
        return NotApplicable("There is one class only.")
    pairs = _pairs(subject, which)
    pairs = pairs[~pairs["same"]]
    if pairs.empty:
        return None
    images = len(np.unique(pairs[["a", "b"]].to_numpy()))
    label = subject.frame["label"].to_numpy()
    between = pd.Series(
        [" / ".join(sorted(both)) for both in zip(label[pairs["a"]], label[pairs["b"]], strict=True)]
    ).value_counts()
    more = " and others" if len(between) > 5 else ""
    shown = listed([f"{name} ({n:,})" for name, n in between.head(5).items()])
    sentence = (
        f"{share_text(images, len(subject.frame))} of {len(subject.frame):,} images are in "
        f"{counted(len(pairs), 'pair')} of {words} under two labels: {shown}{more}."
    )
    figures = {"between": {str(name): int(n) for name, n in between.items()}}
    return _finding(
        subject, pairs, Severity.ERROR, sentence, share=share_figures(images, len(subject.frame)), **figures
    )


def _across(subject: Subject, which: str, words: str) -> Outcome:
    sides = set(subject.frame["split"]) - {""}
    if len(sides) < 2:
        return NotApplicable("No image is on a side of a split; audit one with --split NAME.")
    pairs = _pairs(subject, which)
    pairs = pairs[pairs["parted"]]
    if pairs.empty:
        return None
    images = np.unique(pairs[["a", "b"]].to_numpy())
    split = subject.frame["split"].to_numpy()
    parts, figures = [], {}
    for side in [name for name in HELD_OUT if name in sides] or sorted(sides):
        hit, whole = images[split[images] == side], subject.frame["split"] == side
        figures[side] = share_figures(len(hit), int(whole.sum())) | {
            "per_class": {
                name: share_figures(n, int((whole & (subject.frame["label"] == name)).sum()))
                for name, n in per_class(subject, hit).items()
            }
        }
        parts.append(f"{share_text(len(hit), int(whole.sum()))} of {int(whole.sum()):,} {side} images")
    wrong = int((~pairs["same"]).sum())
    two = f"; {counted(wrong, 'pair')} also under two labels" if wrong else ""
    sentence = (
        f"{counted(len(pairs), 'pair')} of {words} ({_kinds(pairs)}) on two sides: {listed(parts)} have a twin on "
        f"another side{two}."
    )
    return _finding(subject, pairs, Severity.ERROR, sentence, sides=figures, under_two_labels=wrong)
