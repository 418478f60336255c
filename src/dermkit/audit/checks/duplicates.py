"""DA010 to DA015: duplicates, in one split or across splits, under one label or two."""

from typing import Any

import numpy as np
import pandas as pd

from dermkit.audit.checks.finding import (
    AuditInput,
    Finding,
    NotApplicable,
    Outcome,
    Severity,
    images_per_class,
    pair_table,
)
from dermkit.audit.checks.text import join_words, plural, proportion_json, proportion_text
from dermkit.data.groups import GROUP_COLUMNS

HELD_OUT = ("test", "validation")


def da010_exact_duplicates(audit_input: AuditInput) -> Outcome:
    """Exact copies under one label.

    Threshold: a pair of images with identical decoded pixels and one label, both in the same split or in none.

    Severity: warning where a random split could separate a pair; note where lesion, patient or copy group keeps every
    pair together.

    Effect: An image that is stored twice counts twice, and a random split can put one copy in training and one in test.
    """
    return _same_label(audit_input, "exact", "identical pixels")


def da011_exact_contradictions(audit_input: AuditInput) -> Outcome:
    """Exact copies under different labels.

    Threshold: one pair of images with identical decoded pixels and different labels.

    Severity: error.

    Effect: At least one label of each pair is wrong, and no model can be right on both: this limits every accuracy.
    """
    return _contradictions(audit_input, "exact", "identical pixels")


def da012_exact_duplicates_across_splits(audit_input: AuditInput) -> Outcome:
    """Exact copies in two splits.

    Threshold: one pair of images with identical decoded pixels in two splits.

    Severity: error.

    Effect: The model is tested on images that it was trained on: the accuracy counts what was memorised.
    """
    return _across_splits(audit_input, "exact", "identical pixels")


def da013_near_duplicates(audit_input: AuditInput) -> Outcome:
    """Near copies under one label.

    Threshold: one pair that can be laid over each other with correlation above .985, under 3.7 grey levels apart and
    with fine detail agreeing above .6 (or above .992, under 6.5 levels and .85), the same label, in one split or none.

    Severity: warning where a random split could separate a pair; note where lesion, patient or copy group keeps every
    pair together.

    Effect: Resaved, resized, flipped, turned or cropped copies count twice, and a random split can put one in training
    and one in test: a leak.
    """
    return _same_label(audit_input, "near", "near copies")


def da014_near_contradictions(audit_input: AuditInput) -> Outcome:
    """Near copies under different labels.

    Threshold: one pair of near copies (as DA013) with different labels.

    Severity: error.

    Effect: One image, two diagnoses: at least one label is wrong, and this limits every accuracy on this data set.
    """
    return _contradictions(audit_input, "near", "near copies")


def da015_near_duplicates_across_splits(audit_input: AuditInput) -> Outcome:
    """Near copies in two splits.

    Threshold: one pair of near copies (as DA013) in two splits.

    Severity: error.

    Effect: The model is tested on images that it saw in another size, turn or crop: the accuracy is too high.
    """
    return _across_splits(audit_input, "near", "near copies")


def _pairs(audit_input: AuditInput, duplicate_type: str) -> pd.DataFrame:
    """Return the pairs, exact or near, with flags same_label, across_splits, shares_group (a lesion, patient, ...)."""
    is_exact = audit_input.pairs["kind"] == "exact"
    pairs = audit_input.pairs[is_exact if duplicate_type == "exact" else ~is_exact].reset_index(drop=True)
    a, b = pairs["a"].to_numpy(), pairs["b"].to_numpy()
    values = {name: audit_input.frame[name].to_numpy() for name in ("label", "split", *GROUP_COLUMNS)}
    shares_group = np.zeros(len(pairs), bool)
    for name in GROUP_COLUMNS:
        shares_group |= (values[name][a] == values[name][b]) & (values[name][a] != "")
    split_names = values["split"]
    across_splits = (split_names[a] != split_names[b]) & (split_names[a] != "") & (split_names[b] != "")
    return pairs.assign(
        same_label=values["label"][a] == values["label"][b], across_splits=across_splits, shares_group=shares_group
    )


def _finding(
    audit_input: AuditInput, pairs: pd.DataFrame, severity: Severity, sentence: str, **figures: Any
) -> Finding:
    images = np.unique(pairs[["a", "b"]].to_numpy())
    kinds = {str(kind): int(n) for kind, n in pairs["kind"].value_counts().items()}
    return Finding(
        severity=severity, n=len(images), sentence=sentence, rows=pair_table(audit_input, pairs), kind="pairs",
        per_class=images_per_class(audit_input, images), figures={"pairs": len(pairs), "kinds": kinds, **figures},
    )  # fmt: skip


def _kinds_text(pairs: pd.DataFrame) -> str:
    counts = pairs["kind"].value_counts()
    return join_words([f"{n:,} {kind}" for kind, n in counts.items()])


def _same_label(audit_input: AuditInput, duplicate_type: str, duplicate_text: str) -> Outcome:
    pairs = _pairs(audit_input, duplicate_type)
    pairs = pairs[pairs["same_label"] & ~pairs["across_splits"]]
    if pairs.empty:
        return None
    n_images = len(np.unique(pairs[["a", "b"]].to_numpy()))
    n_untied = int((~pairs["shares_group"]).sum())
    tie_text = (
        f"A random split could separate {plural(n_untied, 'pair')}: no lesion id, patient id or copy group is shared."
        if n_untied
        else "Lesion id, patient id or copy group keeps each pair in one split."
    )
    kinds = "" if duplicate_type == "exact" else f" ({_kinds_text(pairs)})"
    sentence = (
        f"{proportion_text(n_images, len(audit_input.frame))} of {len(audit_input.frame):,} images are in "
        f"{plural(len(pairs), 'pair')} of {duplicate_text} under one label{kinds}. {tie_text}"
    )
    severity = Severity.WARNING if n_untied else Severity.NOTE
    return _finding(
        audit_input,
        pairs,
        severity,
        sentence,
        pairs_not_in_one_group=n_untied,
        images=proportion_json(n_images, len(audit_input.frame)),
    )


def _contradictions(audit_input: AuditInput, duplicate_type: str, duplicate_text: str) -> Outcome:
    if audit_input.frame["label"].nunique() < 2:
        return NotApplicable("There is one class only.")
    pairs = _pairs(audit_input, duplicate_type)
    pairs = pairs[~pairs["same_label"]]
    if pairs.empty:
        return None
    n_images = len(np.unique(pairs[["a", "b"]].to_numpy()))
    label = audit_input.frame["label"].to_numpy()
    label_pair_counts = pd.Series(
        [" / ".join(sorted(label_pair)) for label_pair in zip(label[pairs["a"]], label[pairs["b"]], strict=True)]
    ).value_counts()
    more_text = " and others" if len(label_pair_counts) > 5 else ""
    examples = join_words([f"{name} ({n:,})" for name, n in label_pair_counts.head(5).items()])
    sentence = (
        f"{proportion_text(n_images, len(audit_input.frame))} of {len(audit_input.frame):,} images are in "
        f"{plural(len(pairs), 'pair')} of {duplicate_text} under two labels: {examples}{more_text}."
    )
    figures = {"label_pairs": {str(name): int(n) for name, n in label_pair_counts.items()}}
    return _finding(
        audit_input,
        pairs,
        Severity.ERROR,
        sentence,
        images=proportion_json(n_images, len(audit_input.frame)),
        **figures,
    )


def _across_splits(audit_input: AuditInput, duplicate_type: str, duplicate_text: str) -> Outcome:
    split_names = set(audit_input.frame["split"]) - {""}
    if len(split_names) < 2:
        return NotApplicable("No image is in a split; audit one with --split NAME.")
    pairs = _pairs(audit_input, duplicate_type)
    pairs = pairs[pairs["across_splits"]]
    if pairs.empty:
        return None
    images = np.unique(pairs[["a", "b"]].to_numpy())
    split = audit_input.frame["split"].to_numpy()
    clauses, figures = [], {}
    held_out = [name for name in HELD_OUT if name in split_names]
    folds = sorted(name for name in split_names if name.startswith("fold "))
    for split_name in [*held_out, *folds] or sorted(split_names):
        affected, in_split = images[split[images] == split_name], audit_input.frame["split"] == split_name
        figures[split_name] = proportion_json(len(affected), int(in_split.sum())) | {
            "per_class": {
                name: proportion_json(n, int((in_split & (audit_input.frame["label"] == name)).sum()))
                for name, n in images_per_class(audit_input, affected).items()
            }
        }
        clauses.append(
            f"{proportion_text(len(affected), int(in_split.sum()))} of {int(in_split.sum()):,} {split_name} images"
        )
    n_contradictions = int((~pairs["same_label"]).sum())
    contradictions_text = f"; {plural(n_contradictions, 'pair')} also under two labels" if n_contradictions else ""
    sentence = (
        f"{plural(len(pairs), 'pair')} of {duplicate_text} ({_kinds_text(pairs)}) are in two splits: "
        f"{join_words(clauses)} have a copy in "
        f"another split{contradictions_text}."
    )
    return _finding(
        audit_input, pairs, Severity.ERROR, sentence, splits=figures, contradictory_pairs=n_contradictions
    )
