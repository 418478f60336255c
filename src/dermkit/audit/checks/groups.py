"""DA020 to DA024: lesions, patients and archive ids that stand where they should not."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.audit.checks.finding import Finding, NotApplicable, Outcome, Severity, Subject, image_rows, per_class
from dermkit.audit.checks.text import counted, listed, share_figures, share_text

Flags = NDArray[np.bool_]
Rows = NDArray[np.int64]

NAMED = 4
"""Classes or lesions that a sentence names; the CSV has all."""


@dataclass(frozen=True, eq=False)
class Leak:
    """Images that are judged on a side (`judged`), and for each the row of a sibling on another side (-1 = none)."""

    side: str
    learned: str
    judged: Rows
    partner: Rows

    @property
    def rows(self) -> Rows:
        """The images that leak."""
        return self.judged[self.partner >= 0]

    @property
    def partners(self) -> Rows:
        """For each of `rows` its sibling."""
        return self.partner[self.partner >= 0]


def da020_lesions_across(subject: Subject) -> Outcome:
    """Photographs of one lesion stand on two sides

    Threshold: one lesion id on two sides (test against train and validation, validation against train, two folds).
    Severity: error.
    Effect: The model has seen these lesions: test accuracy is too high, most of all for the classes named.
    """
    return _across(subject, "lesion_id", "show a lesion that {learned} shows too")


def da021_patients_across(subject: Subject) -> Outcome:
    """Photographs of one patient stand on two sides

    Threshold: one patient id on two sides (test against train and validation, validation against train, two folds).
    Severity: error.
    Effect: Skin, camera and lesions of a patient are alike: test accuracy is not that of patients never seen.
    """
    return _across(subject, "patient_id", "are of a patient of whom {learned} has pictures too")


def da022_labels_within_lesion(subject: Subject) -> Outcome:
    """One lesion carries several labels

    Threshold: one lesion id with two labels or more.
    Severity: error.
    Effect: One of the labels is wrong: a model that gives both pictures one answer is counted wrong on one of them.
    """
    lesion = subject.frame["lesion_id"]
    if not (lesion != "").any():
        return NotApplicable("no lesion ids")
    several_labels = subject.frame.groupby("lesion_id")["label"].transform("nunique") > 1
    mixed = subject.frame[several_labels & (lesion != "")]
    torn = mixed.groupby("lesion_id")["label"].agg(lambda names: " / ".join(sorted(set(names))))
    if torn.empty:
        return None
    rows = mixed.index.to_numpy(dtype=np.int64)
    rows = rows[np.lexsort((subject.frame["label"].to_numpy()[rows], lesion.to_numpy()[rows]))]
    several = lesion[lesion != ""].value_counts() > 1
    examples = [f"{name} ({text})" for name, text in torn[:NAMED].items()]
    more = f" and {len(torn) - NAMED} more" if len(torn) > NAMED else ""
    sentence = (
        f"Of {counted(int(several.sum()), 'lesion')} with several images {share_text(len(torn), int(several.sum()))} "
        f"carry more than one label ({counted(len(rows), 'image')}): {', '.join(examples)}{more}."
    )
    table = image_rows(subject, rows).assign(lesion_id=lesion.to_numpy()[rows])
    table["labels_of_lesion"] = [torn[name] for name in table["lesion_id"]]
    figures = {"lesions": share_figures(len(torn), int(several.sum())), "images": len(rows)}
    return Finding(
        severity=Severity.ERROR, n=len(rows), sentence=sentence, rows=table,
        per_class=per_class(subject, rows), figures=figures,
    )  # fmt: skip


def da023_ids_missing(subject: Subject) -> Outcome:
    """Lesion or patient ids are missing

    Threshold: an image without a lesion id or without a patient id.
    Severity: note.
    Effect: Siblings without ids may stand on both sides unseen: accuracy may be too high by an unknown amount.
    """
    gaps = {name: (subject.frame[f"{name}_id"] == "").to_numpy() for name in ("lesion", "patient")}
    missing = gaps["lesion"] | gaps["patient"]
    if not missing.any():
        return None
    n = len(subject.frame)
    parts = [
        f"No {name} ids (n {n:,}): images of one {name} cannot be kept on one side"
        if gap.all()
        else f"{share_text(int(gap.sum()), n)} of {n:,} images have no {name} id"
        for name, gap in gaps.items()
        if gap.any()
    ]
    label = subject.frame["label"].to_numpy()
    table = pd.DataFrame(
        [
            {"label": name, "images": int(mine.sum()),
             **{f"without_{key}_id": int((gap & mine).sum()) for key, gap in gaps.items()}}
            for name, mine in ((name, label == name) for name in subject.dataset.class_names)
        ]
    )  # fmt: skip
    return Finding(
        severity=Severity.NOTE, n=int(missing.sum()), sentence=". ".join(parts) + ".", rows=table, kind="table",
        per_class=per_class(subject, missing),
        figures={name: share_figures(int(gap.sum()), n) for name, gap in gaps.items()},
    )  # fmt: skip


def da024_archive_id_repeats(subject: Subject) -> Outcome:
    """One ISIC id stands on several images that differ

    Threshold: one ISIC id under two labels, on two sides, or on pictures with different pixels.
    Severity: error for two labels or two sides, else warning.
    Effect: It is one photograph: on two sides it makes accuracy too high, under two labels no answer is right.
    """
    frame = subject.frame
    known = frame[frame["isic_id"] != ""]
    if known.empty:
        return NotApplicable("no ISIC ids")
    by_id = known.groupby("isic_id")
    problems = {
        "two labels": by_id["label"].nunique() > 1,
        "two sides": known[known["split"] != ""].groupby("isic_id")["split"].nunique() > 1,
        "different pixels": known[known["pixel_sha256"] != ""].groupby("isic_id")["pixel_sha256"].nunique() > 1,
    }
    flags = pd.DataFrame(problems).reindex(by_id.size().index).fillna(False).astype(bool)
    flags = flags[flags.any(axis=1)].sort_values([*problems], ascending=False, kind="stable")
    if flags.empty:
        return None
    words = flags.apply(lambda row: ", ".join(row.index[row]), axis=1)
    rank = pd.Series(np.arange(len(flags)), index=flags.index)
    rows = np.flatnonzero(frame["isic_id"].isin(flags.index))
    ids = frame["isic_id"].to_numpy()[rows]
    order = np.lexsort((rows, rank[ids].to_numpy()))
    table = image_rows(subject, rows[order]).assign(isic_id=ids[order], problem=words[ids[order]].to_numpy())
    counts = {name: int(flags[name].sum()) for name in problems}
    wrong = counts["two labels"] + counts["two sides"] > 0
    texts = [f"{n} with {name}" for name, n in counts.items() if n]
    sentence = (
        f"{counted(len(flags), 'ISIC id')} of {len(by_id):,} stand{'s' * (len(flags) == 1)} on several images that "
        f"differ ({counted(len(rows), 'image')}): {listed(texts)}."
    )
    return Finding(
        severity=Severity.ERROR if wrong else Severity.WARNING, n=len(rows), sentence=sentence, rows=table,
        per_class=per_class(subject, rows), figures={**counts, "ids": len(flags), "of": len(by_id)},
    )  # fmt: skip


# Across sides


def find_leaks(subject: Subject, column: str) -> list[Leak]:
    """Return for test and for validation, or for all folds at once, which image shares `column` with another side."""
    side, key = subject.frame["split"].to_numpy(), subject.frame[column].to_numpy()
    if any(name.startswith("fold") for name in subject.frame["split"].unique()):
        return [_between_folds(side, key)]
    train, validation, test = (side == name for name in ("train", "validation", "test"))
    learned = (
        "train or validation" if validation.any() and train.any() else "train" if train.any() else "validation"
    )
    return [
        _leak("test", learned, np.flatnonzero(test), [train, validation], key),
        _leak("validation", "train", np.flatnonzero(validation), [train], key),
    ]


def _leak(side: str, learned: str, judged: Rows, sources: list[Flags], key: NDArray[Any]) -> Leak:
    partner = np.full(len(judged), -1, dtype=np.int64)
    for source in sources:
        rows = np.flatnonzero(source & (key != ""))
        first = pd.Series(rows, index=key[rows])
        twin = pd.Series(key[judged]).map(first[~first.index.duplicated()]).fillna(-1).to_numpy(dtype=np.int64)
        partner = np.where(partner < 0, twin, partner)
    return Leak(side, learned, judged, partner)


def _between_folds(side: NDArray[Any], key: NDArray[Any]) -> Leak:
    """Every image is a test image of its fold; a sibling is the first of its key, or the first on another fold."""
    judged = np.flatnonzero(side != "")
    table = pd.DataFrame({"row": judged, "side": side[judged], "key": key[judged]})
    known = table[table["key"] != ""]
    first = known.drop_duplicates("key").set_index("key")
    known = known.assign(first=known["key"].map(first["row"]), first_side=known["key"].map(first["side"]))
    away = known[known["side"] != known["first_side"]].drop_duplicates("key").set_index("key")["row"]
    partner = known["first"].where(known["side"] != known["first_side"], known["key"].map(away))
    found = partner.reindex(table.index).fillna(-1).to_numpy(dtype=np.int64)
    return Leak("fold", "another fold", judged, found)


def _across(subject: Subject, column: str, words: str) -> Outcome:
    if not subject.has_sides:
        return NotApplicable("no split")
    if not (subject.frame[column] != "").any():
        return NotApplicable(f"no {column.replace('_', ' ')}s")
    leaks = [leak for leak in find_leaks(subject, column) if len(leak.rows)]
    if not leaks:
        return None
    rows = np.concatenate([leak.rows for leak in leaks])
    return Finding(
        severity=Severity.ERROR,
        n=len(rows),
        sentence=" ".join(_leak_sentence(subject, leak, words) for leak in leaks),
        rows=pd.concat([_leak_rows(subject, leak, column) for leak in leaks], ignore_index=True),
        per_class=per_class(subject, rows),
        figures={leak.side: _leak_figures(subject, leak) for leak in leaks},
    )


def _by_class(subject: Subject, leak: Leak) -> Iterator[tuple[str, int, int]]:
    """Yield (class, leaking images, images of the side)."""
    label = subject.frame["label"].to_numpy()
    for name in subject.dataset.class_names:
        yield name, int((label[leak.rows] == name).sum()), int((label[leak.judged] == name).sum())


def _leak_sentence(subject: Subject, leak: Leak, words: str) -> str:
    classes = sorted((item for item in _by_class(subject, leak) if item[1]), key=lambda item: -item[1] / item[2])
    parts = [f"{name} {n:,} of {of:,} {share_text(n, of).partition(' ')[2]}" for name, n, of in classes[:NAMED]]
    more = f"; {len(classes) - NAMED} more classes" if len(classes) > NAMED else ""
    side = f"{leak.side} images" if leak.side != "fold" else "images, each tested in its fold,"
    whole = share_text(len(leak.rows), len(leak.judged))
    return (
        f"Of {len(leak.judged):,} {side} {whole} {words.format(learned=leak.learned)}: {'; '.join(parts)}{more}."
    )


def _leak_rows(subject: Subject, leak: Leak, column: str) -> pd.DataFrame:
    """Return one row per image that leaks, with the image that it leaks from; malignant classes first."""
    frame = subject.frame
    benign = ~frame["label"].isin(subject.dataset.malignant).to_numpy()[leak.rows]
    order = np.lexsort((leak.rows, frame[column].to_numpy()[leak.rows], benign))
    rows, partners = leak.rows[order], leak.partners[order]
    extra = {
        f"sibling_{name}": frame[name].to_numpy()[partners] for name in ("image_id", "path", "label", "split")
    }
    return image_rows(subject, rows).assign(**{column: frame[column].to_numpy()[rows]}, **extra)


def _leak_figures(subject: Subject, leak: Leak) -> dict[str, Any]:
    return {
        **share_figures(len(leak.rows), len(leak.judged)),
        "per_class": {name: share_figures(n, of) for name, n, of in _by_class(subject, leak) if of},
    }
