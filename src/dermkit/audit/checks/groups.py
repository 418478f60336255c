"""DA020 to DA024: lesions, patients and archive ids across splits, under several labels, or missing."""

from collections.abc import Iterator
from dataclasses import dataclass
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
from dermkit.errors import first_of
from dermkit.metrics.stats.arrays import Bools, Ints

_MAX_NAMED = 4
"""Classes or lesions that a sentence names; the CSV has all."""


@dataclass(frozen=True, eq=False)
class Leak:
    """split_rows: (n,) images of one split. siblings: (n,) for each an image of its id in another split, -1 = none."""

    split_name: str
    source_text: str
    split_rows: Ints
    siblings: Ints

    @property
    def leaking_rows(self) -> Ints:
        """The images that leak."""
        return self.split_rows[self.siblings >= 0]

    @property
    def leaking_siblings(self) -> Ints:
        """For each of `leaking_rows` its sibling."""
        return self.siblings[self.siblings >= 0]


def da020_lesions_across_splits(audit_input: AuditInput) -> Outcome:
    """Photographs of one lesion in two splits

    Threshold: one lesion id in two splits (test against train and validation, validation against train, two folds).
    Severity: error.
    Effect: The model has seen these lesions: test accuracy is too high, most of all for the classes named.
    """
    return _across_splits(audit_input, "lesion_id", "show a lesion that {learned} shows too")


def da021_patients_across_splits(audit_input: AuditInput) -> Outcome:
    """Photographs of one patient in two splits

    Threshold: one patient id in two splits (test against train and validation, validation against train, two folds).
    Severity: error.
    Effect: Skin, camera and lesions of one patient look alike: test accuracy is not that for new patients.
    """
    return _across_splits(audit_input, "patient_id", "are of a patient who is in {learned} too")


def da022_labels_within_lesion(audit_input: AuditInput) -> Outcome:
    """One lesion with several labels

    Threshold: one lesion id with two labels or more.
    Severity: error.
    Effect: One of the labels is wrong: a model that gives both photographs the same answer is counted wrong on one of
    them.
    """
    lesion = audit_input.frame["lesion_id"]
    if not (lesion != "").any():
        return NotApplicable("no lesion ids")
    has_several_labels = audit_input.frame.groupby("lesion_id")["label"].transform("nunique") > 1
    contradictory = audit_input.frame[has_several_labels & (lesion != "")]
    labels_by_lesion = contradictory.groupby("lesion_id")["label"].agg(
        lambda names: " / ".join(sorted(set(names)))
    )
    if labels_by_lesion.empty:
        return None
    rows = contradictory.index.to_numpy(dtype=np.int64)
    rows = rows[np.lexsort((audit_input.frame["label"].to_numpy()[rows], lesion.to_numpy()[rows]))]
    has_several_images = lesion[lesion != ""].value_counts() > 1
    examples = first_of((f"{name} ({text})" for name, text in labels_by_lesion.items()), _MAX_NAMED)
    sentence = (
        f"Of {plural(int(has_several_images.sum()), 'lesion')} with several images "
        f"{proportion_text(len(labels_by_lesion), int(has_several_images.sum()))} "
        f"carry more than one label ({plural(len(rows), 'image')}): {examples}."
    )
    table = image_table(audit_input, rows).assign(lesion_id=lesion.to_numpy()[rows])
    table["labels_of_lesion"] = [labels_by_lesion[name] for name in table["lesion_id"]]
    figures = {
        "lesions": proportion_json(len(labels_by_lesion), int(has_several_images.sum())),
        "images": len(rows),
    }
    return Finding(
        severity=Severity.ERROR, n=len(rows), sentence=sentence, rows=table,
        per_class=images_per_class(audit_input, rows), figures=figures,
    )  # fmt: skip


def da023_ids_missing(audit_input: AuditInput) -> Outcome:
    """Lesion or patient ids are missing

    Threshold: an image without a lesion id or without a patient id.
    Severity: note.
    Effect: Photographs of one lesion may be in training and in test without anyone knowing: accuracy may be too high by
    an unknown amount.
    """
    missing_by_id = {name: (audit_input.frame[f"{name}_id"] == "").to_numpy() for name in ("lesion", "patient")}
    lacks_any_id = missing_by_id["lesion"] | missing_by_id["patient"]
    if not lacks_any_id.any():
        return None
    n = len(audit_input.frame)
    sentences = [
        f"No {name} ids (n {n:,}): images of one {name} cannot be kept in one split"
        if is_missing.all()
        else f"{proportion_text(int(is_missing.sum()), n)} of {n:,} images have no {name} id"
        for name, is_missing in missing_by_id.items()
        if is_missing.any()
    ]
    label = audit_input.frame["label"].to_numpy()
    table = pd.DataFrame(
        [
            {"label": name, "images": int(in_class.sum()),
             **{f"without_{key}_id": int((is_missing & in_class).sum()) for key, is_missing in missing_by_id.items()}}
            for name, in_class in ((name, label == name) for name in audit_input.dataset.class_names)
        ]
    )  # fmt: skip
    return Finding(
        severity=Severity.NOTE,
        n=int(lacks_any_id.sum()),
        sentence=". ".join(sentences) + ".",
        rows=table,
        kind="table",
        per_class=images_per_class(audit_input, lacks_any_id),
        figures={name: proportion_json(int(is_missing.sum()), n) for name, is_missing in missing_by_id.items()},
    )


_PROBLEM_PHRASES = {
    "two labels": "with two labels", "two sides": "in two splits", "different pixels": "with different pixels",
}  # fmt: skip


def da024_archive_id_repeats(audit_input: AuditInput) -> Outcome:
    """One ISIC id for several different images

    Threshold: one ISIC id under two labels, in two splits, or of images with different pixels.
    Severity: error for two labels or two splits, else warning.
    Effect: It is one photograph: in two splits it makes accuracy too high; with two labels no answer is right for both.
    """
    frame = audit_input.frame
    with_id = frame[frame["isic_id"] != ""]
    if with_id.empty:
        return NotApplicable("no ISIC ids")
    by_id = with_id.groupby("isic_id")
    problems = {
        "two labels": by_id["label"].nunique() > 1,
        "two sides": with_id[with_id["split"] != ""].groupby("isic_id")["split"].nunique() > 1,
        "different pixels": with_id[with_id["pixel_sha256"] != ""].groupby("isic_id")["pixel_sha256"].nunique()
        > 1,
    }
    flags = pd.DataFrame(problems).reindex(by_id.size().index).fillna(False).astype(bool)
    flags = flags[flags.any(axis=1)].sort_values([*problems], ascending=False, kind="stable")
    if flags.empty:
        return None
    problem_text = flags.apply(lambda row: ", ".join(row.index[row]), axis=1)
    rank = pd.Series(np.arange(len(flags)), index=flags.index)
    rows = np.flatnonzero(frame["isic_id"].isin(flags.index))
    ids = frame["isic_id"].to_numpy()[rows]
    order = np.lexsort((rows, rank[ids].to_numpy()))
    table = image_table(audit_input, rows[order]).assign(
        isic_id=ids[order], problem=problem_text[ids[order]].to_numpy()
    )
    counts = {name: int(flags[name].sum()) for name in problems}
    is_error = counts["two labels"] + counts["two sides"] > 0
    texts = [f"{n} {_PROBLEM_PHRASES[name]}" for name, n in counts.items() if n]
    sentence = (
        f"{plural(len(flags), 'ISIC id')} of {len(by_id):,} belong{'s' * (len(flags) == 1)} to several different "
        f"images ({plural(len(rows), 'image')}): {join_words(texts)}."
    )
    return Finding(
        severity=Severity.ERROR if is_error else Severity.WARNING, n=len(rows), sentence=sentence, rows=table,
        per_class=images_per_class(audit_input, rows), figures={**counts, "ids": len(flags), "total": len(by_id)},
    )  # fmt: skip


# Across splits


def find_leaks(audit_input: AuditInput, column: str) -> list[Leak]:
    """Return the leaks into test and validation, or between folds: images that share `column` with another split."""
    split_names, ids = audit_input.frame["split"].to_numpy(), audit_input.frame[column].to_numpy()
    is_fold = audit_input.frame["split"].str.startswith("fold").to_numpy(dtype=bool)
    if is_fold.any():
        test_rows = np.flatnonzero(split_names == "test")
        leaks = [_find_leak("test", "a fold", test_rows, [is_fold], ids)] if len(test_rows) else []
        return [*leaks, _leak_between_folds(np.flatnonzero(is_fold), split_names, ids)]
    train, validation, test = (split_names == name for name in ("train", "validation", "test"))
    source_text = (
        "train or validation" if validation.any() and train.any() else "train" if train.any() else "validation"
    )
    return [
        _find_leak("test", source_text, np.flatnonzero(test), [train, validation], ids),
        _find_leak("validation", "train", np.flatnonzero(validation), [train], ids),
    ]


def _find_leak(
    split_name: str, source_text: str, split_rows: Ints, source_masks: list[Bools], ids: NDArray[Any]
) -> Leak:
    siblings = np.full(len(split_rows), -1, dtype=np.int64)
    for is_source in source_masks:
        rows = np.flatnonzero(is_source & (ids != ""))
        first_rows = pd.Series(rows, index=ids[rows])
        sibling = (
            pd.Series(ids[split_rows])
            .map(first_rows[~first_rows.index.duplicated()])
            .fillna(-1)
            .to_numpy(dtype=np.int64)
        )
        siblings = np.where(siblings < 0, sibling, siblings)
    return Leak(split_name, source_text, split_rows, siblings)


def _leak_between_folds(divided_rows: Ints, split_names: NDArray[Any], ids: NDArray[Any]) -> Leak:
    """With k folds every image is held out in its fold; its sibling is the first image of its id in another fold."""
    table = pd.DataFrame({"row": divided_rows, "fold": split_names[divided_rows], "key": ids[divided_rows]})
    with_id = table[table["key"] != ""]
    first_of_id = with_id.drop_duplicates("key").set_index("key")
    with_id = with_id.assign(
        first=with_id["key"].map(first_of_id["row"]), first_fold=with_id["key"].map(first_of_id["fold"])
    )
    first_elsewhere = (
        with_id[with_id["fold"] != with_id["first_fold"]].drop_duplicates("key").set_index("key")["row"]
    )
    sibling = with_id["first"].where(with_id["fold"] != with_id["first_fold"], with_id["key"].map(first_elsewhere))
    siblings = sibling.reindex(table.index).fillna(-1).to_numpy(dtype=np.int64)
    return Leak("fold", "another fold", divided_rows, siblings)


def _across_splits(audit_input: AuditInput, column: str, sentence_template: str) -> Outcome:
    if not audit_input.has_split:
        return NotApplicable("no split")
    if not (audit_input.frame[column] != "").any():
        return NotApplicable(f"no {column.replace('_', ' ')}s")
    leaks = [leak for leak in find_leaks(audit_input, column) if len(leak.leaking_rows)]
    if not leaks:
        return None
    rows = np.concatenate([leak.leaking_rows for leak in leaks])
    return Finding(
        severity=Severity.ERROR,
        n=len(rows),
        sentence=" ".join(_leak_sentence(audit_input, leak, sentence_template) for leak in leaks),
        rows=pd.concat([_leak_rows(audit_input, leak, column) for leak in leaks], ignore_index=True),
        per_class=images_per_class(audit_input, rows),
        figures={leak.split_name: _leak_figures(audit_input, leak) for leak in leaks},
    )


def _leaks_by_class(audit_input: AuditInput, leak: Leak) -> Iterator[tuple[str, int, int]]:
    """Yield (class, leaking images, images of the split)."""
    label = audit_input.frame["label"].to_numpy()
    for name in audit_input.dataset.class_names:
        yield name, int((label[leak.leaking_rows] == name).sum()), int((label[leak.split_rows] == name).sum())


def _leak_sentence(audit_input: AuditInput, leak: Leak, sentence_template: str) -> str:
    classes = sorted(
        (class_leak for class_leak in _leaks_by_class(audit_input, leak) if class_leak[1]),
        key=lambda class_leak: -class_leak[1] / class_leak[2],
    )
    class_texts = [
        f"{name} {n:,} of {n_total:,} {proportion_text(n, n_total).partition(' ')[2]}"
        for name, n, n_total in classes[:_MAX_NAMED]
    ]
    more_text = f"; {len(classes) - _MAX_NAMED} more classes" if len(classes) > _MAX_NAMED else ""
    use = "validated" if "test" in set(audit_input.frame["split"]) else "tested"
    images_text = f"{leak.split_name} images" if leak.split_name != "fold" else f"images, each {use} in its fold,"
    total_text = proportion_text(len(leak.leaking_rows), len(leak.split_rows))
    return (
        f"Of {len(leak.split_rows):,} {images_text} {total_text} "
        f"{sentence_template.format(learned=leak.source_text)}: {'; '.join(class_texts)}{more_text}."
    )


def _leak_rows(audit_input: AuditInput, leak: Leak, column: str) -> pd.DataFrame:
    """Return one row per leaking image, with its sibling; malignant classes first."""
    frame = audit_input.frame
    is_benign = ~frame["label"].isin(audit_input.dataset.malignant_classes).to_numpy()[leak.leaking_rows]
    order = np.lexsort((leak.leaking_rows, frame[column].to_numpy()[leak.leaking_rows], is_benign))
    rows, partners = leak.leaking_rows[order], leak.leaking_siblings[order]
    sibling_columns = {
        f"sibling_{name}": frame[name].to_numpy()[partners] for name in ("image_id", "path", "label", "split")
    }
    return image_table(audit_input, rows).assign(**{column: frame[column].to_numpy()[rows]}, **sibling_columns)


def _leak_figures(audit_input: AuditInput, leak: Leak) -> dict[str, Any]:
    return {
        **proportion_json(len(leak.leaking_rows), len(leak.split_rows)),
        "per_class": {
            name: proportion_json(n, n_total) for name, n, n_total in _leaks_by_class(audit_input, leak) if n_total
        },
    }
