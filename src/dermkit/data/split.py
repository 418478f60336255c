"""Manifest -> split: grouped, stratified by class, seeded, independent of row order; refuses overlap.

A group is a connected component of lesion, patient, copy group and identical pixels. A leak is a group, or the
same pixels, on two sides.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import ValidationError

from dermkit.data.fold_validation import missing_class_notes, validates_in_part, validation_rows
from dermkit.data.folds import fold_numbers, rows_for_fold
from dermkit.data.groups import id_groups, leakage_groups
from dermkit.data.leakage import LINK_TEXTS, find_leakage
from dermkit.data.split_file import SPLITS, excluded_frame, read_split_rows, write_split_rows
from dermkit.data.stratify import stratified_group_split
from dermkit.errors import DataError, UsageError
from dermkit.files import check_file_name, read_json, write_json
from dermkit.recipes.schema import SplitSpec

SPLIT_FORMAT = 1

GIVEN_SPLIT_ALIASES = {
    "": "", "train": "train", "training": "train", "val": "validation", "valid": "validation",
    "validation": "validation", "test": "test", "testing": "test",
}  # fmt: skip
MORE_IMAGES_REMEDY = (
    "add images of other lesions, or import the data set again and merge the class into another one "
    '(`--merge "CLASS=OTHER"`) or leave it out (`--drop "CLASS"`)'
)

_Ints = NDArray[np.int64]
_Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Split:
    """A division of the images into splits.

    frame: image_id, split (train, validation, test; `fold` for k folds, beside `test` or alone), fold (-1 outside k
    folds), sorted by image_id. excluded: image_id, reason. leaks: as `check_split` returns. spec is None for a
    hand-written file.
    """

    name: str
    frame: pd.DataFrame
    excluded: pd.DataFrame
    leaks: dict[str, Any]
    spec: SplitSpec | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Draft:
    """The manifest sorted by image_id, and the split of each row decided so far.

    split_names: "" = undecided or excluded. reason: "" = not excluded. published: the published split.
    """

    frame: pd.DataFrame
    classes: tuple[str, ...]
    label: _Ints
    group_ids: _Ints
    published: NDArray[np.object_]
    split_names: NDArray[np.object_]
    reason: NDArray[np.object_]
    notes: list[str]

    def exclude(self, rows: _Bools, reason: str | NDArray[np.object_]) -> None:
        self.split_names[rows] = ""
        self.reason[rows] = reason


def make_split(manifest: pd.DataFrame, spec: SplitSpec, *, name: str) -> Split:
    """Divide a manifest; the same rows and spec give the same split in any row order.

    New splits (holdout, kfold): a class with as many groups as there are splits is in each of them; with two groups it
    is in train and test. If each group has one class, a split's fraction of a class is met to within the largest group
    of that class. Published split: its test rows stay complete, and no fold holds one.
    Raises DataError for a class with too few groups, too few groups for the folds, too few images to draw, or no
    published test rows.
    """
    _check_name(name)
    draft = _start_draft(manifest)
    if spec.scheme in ("given", "given-as-published"):
        _divide_published(draft, spec)
    else:
        _divide_new(draft, spec)
    split = _to_split(draft, spec, name)
    leaks = check_split(manifest, split, allow_leaks=spec.scheme == "given-as-published")
    notes = (*split.notes, *missing_class_notes(split.frame, spec, manifest))
    return replace(split, leaks=leaks, notes=notes)


def check_split(manifest: pd.DataFrame, split: Split, *, allow_leaks: bool = False) -> dict[str, Any]:
    """Count leaks; raises DataError that lists them unless `allow_leaks`.

    Returns `n` test images, of which `total` leak: `identical_pixels` and `same_group` (lesion, patient, copy group,
    or linked through other images; an image may be both); `per_class` with the same counts; `validation` with the
    same counts of validation images against train; `contradictions`: images whose exact pixels also carry another
    label. With k folds every image is a test image of its fold, or beside test images a validation image of it.
    """
    leakage = find_leakage(_divided_rows(manifest, split))
    if leakage.has_leaks and not allow_leaks:
        raise leakage.to_error(split.name)
    return leakage.counts()


def tables_by_fold(split: Split, manifest: pd.DataFrame) -> dict[int, pd.DataFrame]:
    """Return per fold the table image_id, split, fold with train, validation and test filled in.

    k folds: fold f is test, a part of fold (f + 1) mod k validation (`split.validation` of all images, by group and
    class, at most the whole fold), the others train. Folds beside test images: fold f is validation, the others train,
    and test stays as it is. A split without folds is returned as it is, under -1.
    """
    folds = fold_numbers(split.frame)
    if not folds:
        return {-1: split.frame.copy()}
    validates = validation_rows(split.frame, split.spec, manifest)
    return {fold: rows_for_fold(split.frame, fold, len(folds), validates) for fold in folds}


def division_bytes(split: Split, tables: Mapping[int, pd.DataFrame]) -> bytes:
    """Return what identifies a division: image_id, split, fold of its file as CSV, or of all folds' tables.

    tables: of `tables_by_fold`; which part of a fold validates is not in the file.
    """
    rows = pd.concat(tables.values()) if validates_in_part(split.spec) else split.frame
    return rows[["image_id", "split", "fold"]].to_csv(index=False).encode()


def is_automatic_split(name: str) -> bool:
    """Return whether a name is one that `train` gives to the split of a recipe, after a hash of its settings."""
    return re.fullmatch(r"(given|given-as-published|holdout|kfold)-[0-9a-f]{8}", name) is not None


def save_split(split: Split, folder: Path) -> Path:
    """Write NAME.csv, NAME.excluded.csv and NAME.json into a folder; returns the path of NAME.csv, written last."""
    _check_name(split.name)
    path = folder / f"{split.name}.csv"
    counts = {
        str(split_name): int(n) for split_name, n in split.frame["split"].value_counts().sort_index().items()
    }
    split_json = {
        "name": split.name,
        "spec": asdict(split.spec) if split.spec else None,
        "counts": {**counts, "excluded": len(split.excluded)},
        "leaks": split.leaks,
        "notes": list(split.notes),
    }
    write_json(path.with_suffix(".json"), split_json, format=SPLIT_FORMAT)
    write_split_rows(path, split.frame, split.excluded)
    return path


def load_split(path: Path, manifest: pd.DataFrame) -> Split:
    """Read a split file, ours or hand-written, and check it against the manifest.

    Images that neither the file nor NAME.excluded.csv names are excluded, with that as the reason. Leaks are
    allowed only where NAME.json says `given-as-published`. Raises DataError listing every problem.
    """
    frame, excluded = read_split_rows(path, manifest)
    json_path = path.with_suffix(".json")
    split_json = read_json(json_path, format=SPLIT_FORMAT, error=DataError) if json_path.exists() else {}
    spec, notes = _read_spec(split_json.get("spec"), json_path), split_json.get("notes", [])
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise DataError(
            f"{json_path}: `notes` is not a list of texts", remedy="restore it, or make the split again"
        )
    split = Split(
        name=path.stem,
        frame=frame,
        excluded=excluded,
        leaks={},
        spec=spec,
        notes=tuple(notes),
    )
    leaks_allowed = spec is not None and spec.scheme == "given-as-published"
    return replace(split, leaks=check_split(manifest, split, allow_leaks=leaks_allowed))


# Making a split


def _start_draft(manifest: pd.DataFrame) -> _Draft:
    if manifest.empty:
        raise DataError("the manifest has no images, so there is nothing to split", remedy="import images first")
    # Only the columns that a division looks at: a million rows of all would be sorted and copied for nothing.
    frame = manifest[["image_id", "given_split", "label", *LINK_TEXTS]].sort_values("image_id", ignore_index=True)
    names = frame["given_split"].str.lower()
    unknown_names = sorted(set(names) - set(GIVEN_SPLIT_ALIASES))
    if unknown_names:
        raise DataError(
            f"given_split has unknown names: {', '.join(unknown_names)}", remedy="use train, validation or test"
        )
    label, classes = pd.factorize(frame["label"], sort=True)
    blank = np.full(len(frame), "", dtype=object)
    return _Draft(
        frame=frame,
        classes=tuple(str(name) for name in classes),
        label=label.astype(np.int64),
        group_ids=leakage_groups(frame),
        published=names.map(GIVEN_SPLIT_ALIASES).to_numpy(dtype=object),
        split_names=blank,
        reason=blank.copy(),
        notes=[],
    )


def _to_split(draft: _Draft, spec: SplitSpec, name: str) -> Split:
    is_excluded = draft.reason != ""
    ids = draft.frame["image_id"]
    frame = pd.DataFrame(
        {"image_id": ids[~is_excluded].to_numpy(), "split": draft.split_names[~is_excluded].astype(str)}
    )
    is_fold = frame["split"].str.isdigit()  # a fold is divided under its number
    frame["fold"] = frame["split"].where(is_fold, "-1").astype("int64")
    frame.loc[is_fold, "split"] = "fold"
    return Split(
        name, frame, excluded_frame(ids[is_excluded], draft.reason[is_excluded]), {}, spec, tuple(draft.notes)
    )


def _divide_new(draft: _Draft, spec: SplitSpec) -> None:
    _sample_pool(draft, spec, np.ones(len(draft.frame), bool))
    pool = draft.reason == ""
    if spec.scheme == "kfold":
        _require_groups(draft, pool, 3, "k folds need one each for train, validation and test")
        _divide_into_folds(draft, pool, spec, min_folds=3)
        return
    if spec.folds:
        _divide_with_test(draft, pool, spec)
        return
    _require_groups(draft, pool, 2, "train and test need one each")
    # A class with fewer groups than splits gets them in this order: train, then test, then validation.
    fractions = [1.0 - spec.validation - spec.test, spec.test, spec.validation]
    draft.split_names[pool] = _divide_pool(draft, pool, ("train", "test", "validation"), fractions, spec.seed)
    _note_missing_classes(draft, SPLITS)


def _divide_with_test(draft: _Draft, pool: _Bools, spec: SplitSpec) -> None:
    """Draw the test images, and divide the others into folds."""
    _require_groups(draft, pool, 3, "folds beside test images need one each for train, validation and test")
    fractions = [1.0 - spec.test, spec.test]
    draft.split_names[pool] = _divide_pool(draft, pool, ("train", "test"), fractions, spec.seed)
    _divide_into_folds(draft, draft.split_names == "train", spec, min_folds=2)
    _note_missing_classes(draft, ["test"])


def _divide_published(draft: _Draft, spec: SplitSpec) -> None:
    if not (draft.published == "test").any():
        raise DataError(
            f"scheme {spec.scheme}: the data set has no published test images",
            remedy="use scheme holdout or kfold, or import a folder that has a test folder",
        )
    if GIVEN_SPLIT_ALIASES.get(spec.draw_from) not in ("", "train"):
        raise UsageError(f"split.draw_from={spec.draw_from}: scheme {spec.scheme} draws from train only")
    draft.split_names[:] = draft.published
    draft.exclude(draft.published == "", "the published split does not name this image")
    if spec.folds and (draft.published == "validation").any():
        draft.split_names[draft.published == "validation"] = "train"
        draft.notes.append("the published validation images are in the folds, like the published training images")
    if spec.scheme == "given":
        _exclude_linked(draft, draft.split_names != "test", draft.split_names == "test", "test image")
        _exclude_linked(draft, draft.split_names == "train", draft.split_names == "validation", "validation image")
    _sample_pool(draft, spec, draft.split_names == "train")
    pool = draft.split_names == "train"
    if spec.folds:
        _require_groups(draft, pool, 2, "folds beside test images need one each for train and validation")
        _divide_into_folds(draft, pool, spec, min_folds=2)
        _note_missing_classes(draft, ["test"])
        return
    if (draft.split_names == "validation").any():
        _require_groups(draft, pool, 1, "training needs at least one")
        draft.notes.append("the published validation images were used; the fraction asked for was not")
    else:
        _require_groups(draft, pool, 2, "train and validation need one each")
        fractions = [1.0 - spec.validation, spec.validation]
        draft.split_names[pool] = _divide_pool(draft, pool, ("train", "validation"), fractions, spec.seed)
    _note_missing_classes(draft, SPLITS)


def _exclude_linked(draft: _Draft, candidates: _Bools, reference: _Bools, noun: str) -> None:
    """Exclude the rows `candidates` that share a group with a row `reference`, each naming the first such image."""
    ids = draft.frame["image_id"]
    is_linked = candidates & (draft.reason == "") & np.isin(draft.group_ids, draft.group_ids[reference])
    image_by_group = pd.Series(ids[reference].to_numpy(), index=draft.group_ids[reference])
    first_image = pd.Series(draft.group_ids).map(image_by_group[~image_by_group.index.duplicated()])
    reason = f"linked through other images to {noun} " + first_image.astype(str)
    for column in reversed(LINK_TEXTS):  # the strongest link is written last
        keys = draft.frame[column]
        image_by_key = pd.Series(ids[reference].to_numpy(), index=keys[reference].to_numpy())
        linked_image = keys.map(image_by_key[~image_by_key.index.duplicated() & (image_by_key.index != "")])
        reason = reason.where(linked_image.isna(), f"{LINK_TEXTS[column]} {noun} " + linked_image.astype(str))
    draft.exclude(is_linked, reason.to_numpy(dtype=object)[is_linked])


def _sample_pool(draft: _Draft, spec: SplitSpec, pool: _Bools) -> None:
    """Exclude what `draw_from` and `per_class` leave out of the pool."""
    if spec.draw_from and not spec.scheme.startswith("given"):
        is_outside = pool & (draft.published != GIVEN_SPLIT_ALIASES.get(spec.draw_from.lower(), spec.draw_from))
        draft.exclude(is_outside, f"not in draw_from={spec.draw_from}")
        # What is left out stays unseen, so that it can serve as a second test set.
        _exclude_linked(draft, pool & ~is_outside, is_outside, "left-out image")
    if spec.per_class == 0:
        return
    rng = np.random.default_rng([spec.seed, 1])
    pool = pool & (draft.reason == "")
    counts = np.bincount(draft.label[pool], minlength=len(draft.classes))
    if (counts < spec.per_class).any():
        shortages = [
            f"{name} has {n}" for name, n in zip(draft.classes, counts, strict=True) if n < spec.per_class
        ]
        raise DataError(
            f"per_class={spec.per_class} images cannot be drawn: {'; '.join(shortages)}",
            remedy="lower per_class in the recipe, or add images",
        )
    samples = [
        rng.choice(np.flatnonzero(pool & (draft.label == c)), spec.per_class, replace=False)
        for c in range(len(counts))
    ]
    is_unsampled = pool.copy()
    is_unsampled[np.concatenate(samples)] = False
    draft.exclude(is_unsampled, f"balance: not drawn ({spec.per_class} per class wanted)")


def _group_counts(draft: _Draft, rows: _Bools) -> _Ints:
    """Return the number of groups per class."""
    pairs = np.unique(np.stack([draft.group_ids[rows], draft.label[rows]]), axis=1)
    counts: _Ints = np.bincount(pairs[1], minlength=len(draft.classes)).astype(np.int64)
    return counts


def _require_groups(draft: _Draft, pool: _Bools, minimum: int, explanation: str) -> None:
    n_images = np.bincount(draft.label[pool], minlength=len(draft.classes))
    class_counts = zip(draft.classes, n_images, _group_counts(draft, pool), strict=True)
    problems = [f"class {name!r} has {n} image(s) in {g} group(s)" for name, n, g in class_counts if g < minimum]
    if problems:
        raise DataError(f"too few to divide: {'; '.join(problems)}; {explanation}", remedy=MORE_IMAGES_REMEDY)


def _divide_into_folds(draft: _Draft, pool: _Bools, spec: SplitSpec, *, min_folds: int) -> None:
    """Divide the pool; refuse a class in fewer than `min_folds` folds (some run would train without it) or no image."""
    names = [str(fold) for fold in range(spec.folds)]
    n_groups = len(np.unique(draft.group_ids[pool]))
    if n_groups < spec.folds:
        raise DataError(
            f"{int(pool.sum())} images in {n_groups} groups (lesion, patient, copies) cannot fill {spec.folds} folds",
            remedy=f"ask for at most {n_groups} folds, or add images of other lesions",
        )
    draft.split_names[pool] = _divide_pool(draft, pool, names, [1.0 / spec.folds] * spec.folds, spec.seed)
    for code, name in enumerate(draft.classes):
        folds = set(draft.split_names[pool & (draft.label == code)])
        if len(folds) < min_folds:
            raise DataError(
                f"class {name!r} fits into {len(folds)} fold(s) only; {min_folds} are needed",
                remedy=MORE_IMAGES_REMEDY,
            )
    if empty := sorted(set(names) - set(draft.split_names[pool]), key=int):
        raise DataError(
            f"{spec.folds} folds: no image is left for fold {', '.join(empty)}, since groups (lesion, patient, "
            "copies) stay together",
            remedy="ask for fewer folds, or add images of other lesions",
        )
    _note_missing_classes(draft, names)


def _note_missing_classes(draft: _Draft, split_names: Sequence[str]) -> None:
    """Raise for a class without training images; add a note for one without validation or test images."""
    for code, name in enumerate(draft.classes):
        missing_splits = [
            split_name
            for split_name in split_names
            if not (draft.split_names[draft.label == code] == split_name).any()
        ]
        if "train" in missing_splits:
            raise DataError(f"class {name!r} has no training image after the division", remedy=MORE_IMAGES_REMEDY)
        for split_name in missing_splits:
            draft.notes.append(f"class {name!r} has no image in {'fold ' * split_name.isdigit()}{split_name}")


def _divide_pool(
    draft: _Draft, pool: _Bools, names: Sequence[str], fractions: Sequence[float], seed: int
) -> NDArray[np.object_]:
    split_index = stratified_group_split(draft.label[pool], draft.group_ids[pool], fractions, seed)
    return np.array(names, dtype=object)[split_index]


# Checking a split


def _divided_rows(manifest: pd.DataFrame, split: Split) -> pd.DataFrame:
    """Return the manifest's rows in a split, with `split`, `fold` and the groups `id_group` and `leakage_group`."""
    rows = manifest[["image_id", "label", *LINK_TEXTS]].assign(
        id_group=id_groups(manifest), leakage_group=leakage_groups(manifest)
    )
    return rows.merge(split.frame, on="image_id", how="inner").sort_values("image_id", ignore_index=True)


# Files


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UsageError(
            f"split name {name!r}: becomes a file name", remedy="use letters, digits, `.`, `_` and `-`"
        )
    check_file_name(name, "split name")


def _read_spec(value: Any, path: Path) -> SplitSpec | None:
    if value is None:
        return None
    try:
        return SplitSpec(**value)
    except (ValidationError, TypeError) as error:
        raise DataError(f"{path}: its spec is not valid: {error}", remedy="make the split again") from error
