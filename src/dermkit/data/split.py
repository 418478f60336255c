"""Manifest -> split: grouped, stratified by class, seeded, independent of row order; refuses overlap.

A group is a connected component of lesion, patient, copy group and identical pixels. A leak is a group, or the
same pixels, on two sides.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from dermkit.data.leakage import LINKS, codes, find_overlap
from dermkit.data.manifest import groups
from dermkit.data.split_file import SIDES, excluded_frame, read_rows, save_rows
from dermkit.data.stratify import divide
from dermkit.errors import DataError, UsageError
from dermkit.files import read_json, write_json
from dermkit.recipes.schema import SplitSpec

FORMAT = 1

GIVEN_NAMES = {
    "": "", "train": "train", "training": "train", "val": "validation", "valid": "validation",
    "validation": "validation", "test": "test", "testing": "test",
}  # fmt: skip
MORE_IMAGES = "add images of other lesions, merge the class into another one, or leave it out of the data set"

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Split:
    """Which image is on which side.

    frame: image_id, split (train, validation, test; `fold` for k folds), fold (-1 outside k folds), sorted by
    image_id. excluded: image_id, reason. leaks: as `check_split` returns. spec is None for a hand-written file.
    """

    name: str
    frame: pd.DataFrame
    excluded: pd.DataFrame
    leaks: dict[str, Any]
    spec: SplitSpec | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Plan:
    """The manifest sorted by image_id, and what has been decided about each row so far.

    side: "" = undecided or excluded. reason: "" = not excluded. given: the published side.
    """

    frame: pd.DataFrame
    classes: tuple[str, ...]
    label: Ints
    unit: Ints
    given: NDArray[np.object_]
    side: NDArray[np.object_]
    reason: NDArray[np.object_]
    notes: list[str]

    def exclude(self, rows: Flags, reason: str | NDArray[np.object_]) -> None:
        self.side[rows] = ""
        self.reason[rows] = reason


def split_groups(manifest: pd.DataFrame) -> Ints:
    """Return one group number per row: components of lesion, patient, copy group and identical pixels."""
    n, linked = len(manifest), groups(manifest)
    # A graph of image nodes 0..n-1, then one node per linked group, then one per distinct picture.
    keys = n + np.concatenate([linked, codes(manifest["pixel_sha256"]) + linked.max(initial=0) + 1])
    edges = (np.ones(2 * n, np.int8), (np.tile(np.arange(n), 2), keys))
    graph = coo_matrix(edges, shape=(keys.max(initial=0) + 1,) * 2)
    component = connected_components(graph, directed=False)[1][:n]
    return pd.factorize(component)[0].astype(np.int64)


def make_split(manifest: pd.DataFrame, spec: SplitSpec, *, name: str) -> Split:
    """Divide a manifest; the same rows and spec give the same split in any row order.

    Own division (holdout, kfold): every class is on every side where it has as many groups as there are sides;
    with two groups it is in train and test. Where each group holds one class, a side's share of a class is met to
    within the largest group of that class. Published division: the test rows stay whole.
    Raises DataError for a class with too few groups, too few images to draw, or no published test rows.
    """
    _check_name(name)
    plan = _start(manifest)
    if spec.scheme in ("given", "given-as-published"):
        _divide_given(plan, spec)
    else:
        _divide_own(plan, spec)
    split = _finished(plan, spec, name)
    return replace(split, leaks=check_split(manifest, split, allow_leaks=spec.scheme == "given-as-published"))


def check_split(manifest: pd.DataFrame, split: Split, *, allow_leaks: bool = False) -> dict[str, Any]:
    """Count leaks; raises DataError that lists them unless `allow_leaks`.

    Returns `n` test images, of which `total` leak: `identical_pixels` and `same_group` (lesion, patient, copy group,
    or linked through other images; an image may be both); `per_class` with the same counts; `validation` with the
    same counts of validation images against train; `contradictions`: images whose exact pixels also carry another
    label. With k folds every image is a test image of its fold.
    """
    overlap = find_overlap(_sides(manifest, split))
    if overlap.any and not allow_leaks:
        raise overlap.error(split.name)
    return overlap.counts()


def for_fold(split: Split, fold: int) -> pd.DataFrame:
    """Return image_id, split, fold with train, validation and test filled in.

    k folds: fold f is the test side, fold (f + 1) mod k validation, the others train. Otherwise `fold` is not
    looked at and the frame comes back as it is. Raises UsageError for a fold that does not exist.
    """
    frame = split.frame.copy()
    if not (frame["split"] == "fold").any():
        return frame
    folds = int(frame["fold"].max()) + 1
    if not 0 <= fold < folds:
        raise UsageError(f"split {split.name}: there is no fold {fold}", remedy=f"choose 0 to {folds - 1}")
    frame["split"] = "train"
    frame.loc[frame["fold"] == (fold + 1) % folds, "split"] = "validation"
    frame.loc[frame["fold"] == fold, "split"] = "test"
    return frame


def save_split(split: Split, folder: Path) -> Path:
    """Write NAME.csv, NAME.excluded.csv and NAME.json into a folder; returns the path of NAME.csv, written last."""
    _check_name(split.name)
    path = folder / f"{split.name}.csv"
    counts = {str(side): int(n) for side, n in split.frame["split"].value_counts().sort_index().items()}
    facts = {
        "name": split.name,
        "spec": asdict(split.spec) if split.spec else None,
        "counts": {**counts, "excluded": len(split.excluded)},
        "leaks": split.leaks,
        "notes": list(split.notes),
    }
    write_json(path.with_suffix(".json"), facts, format=FORMAT)
    save_rows(path, split.frame, split.excluded)
    return path


def load_split(path: Path, manifest: pd.DataFrame) -> Split:
    """Read a split file, ours or hand-written, and check it against the manifest.

    Images that neither the file nor NAME.excluded.csv names are excluded, with that as the reason. Leaks are
    allowed only where NAME.json says `given-as-published`. Raises DataError listing every problem.
    """
    frame, excluded = read_rows(path, manifest)
    facts = path.with_suffix(".json")
    body = read_json(facts, format=FORMAT, error=DataError) if facts.exists() else {}
    spec = _read_spec(body.get("spec"), facts)
    split = Split(
        name=path.stem,
        frame=frame,
        excluded=excluded,
        leaks={},
        spec=spec,
        notes=tuple(body.get("notes", ())),
    )
    allowed = spec is not None and spec.scheme == "given-as-published"
    return replace(split, leaks=check_split(manifest, split, allow_leaks=allowed))


# Making a split


def _start(manifest: pd.DataFrame) -> _Plan:
    if manifest.empty:
        raise DataError("the manifest has no images, so there is nothing to split", remedy="import images first")
    # Only the columns that a division looks at: a million rows of all would be sorted and copied for nothing.
    frame = manifest[["image_id", "given_split", "label", *LINKS]].sort_values("image_id", ignore_index=True)
    names = frame["given_split"].str.lower()
    wrong = sorted(set(names) - set(GIVEN_NAMES))
    if wrong:
        raise DataError(
            f"given_split has unknown names: {', '.join(wrong)}", remedy="use train, validation or test"
        )
    label, classes = pd.factorize(frame["label"], sort=True)
    blank = np.full(len(frame), "", dtype=object)
    return _Plan(
        frame=frame,
        classes=tuple(str(name) for name in classes),
        label=label.astype(np.int64),
        unit=split_groups(frame),
        given=names.map(GIVEN_NAMES).to_numpy(dtype=object),
        side=blank,
        reason=blank.copy(),
        notes=[],
    )


def _finished(plan: _Plan, spec: SplitSpec, name: str) -> Split:
    out = plan.reason != ""
    ids = plan.frame["image_id"]
    kfold = spec.scheme == "kfold"
    frame = pd.DataFrame({"image_id": ids[~out].to_numpy(), "split": plan.side[~out].astype(str)})
    frame["fold"] = frame["split"].astype("int64") if kfold else np.int64(-1)
    if kfold:
        frame["split"] = "fold"
    return Split(name, frame, excluded_frame(ids[out], plan.reason[out]), {}, spec, tuple(plan.notes))


def _divide_own(plan: _Plan, spec: SplitSpec) -> None:
    _draw(plan, spec, np.ones(len(plan.frame), bool))
    pool = plan.reason == ""
    if spec.scheme == "kfold":
        names: Sequence[str] = [str(fold) for fold in range(spec.folds)]
        _require_groups(plan, pool, 3, "k folds need one each for train, validation and test")
        plan.side[pool] = _divide(plan, pool, names, [1.0 / spec.folds] * spec.folds, spec.seed)
        _require_folds(plan, pool)
        return
    _require_groups(plan, pool, 2, "train and test need one each")
    # In this order a class that is too small for every side is placed: train, then test, then validation.
    shares = [1.0 - spec.validation - spec.test, spec.test, spec.validation]
    plan.side[pool] = _divide(plan, pool, ("train", "test", "validation"), shares, spec.seed)
    _note_absent(plan, SIDES)


def _divide_given(plan: _Plan, spec: SplitSpec) -> None:
    if not (plan.given == "test").any():
        raise DataError(
            f"scheme {spec.scheme}: the data set has no published test images",
            remedy="use scheme holdout or kfold, or import a folder that has a test folder",
        )
    if GIVEN_NAMES.get(spec.draw_from) not in ("", "train"):
        raise UsageError(f"split.draw_from={spec.draw_from}: scheme {spec.scheme} draws from train only")
    plan.side[:] = plan.given
    plan.exclude(plan.given == "", "the published split does not name this image")
    if spec.scheme == "given":
        _exclude_twins(plan, plan.side != "test", plan.side == "test", "test image")
        _exclude_twins(plan, plan.side == "train", plan.side == "validation", "validation image")
    _draw(plan, spec, plan.side == "train")
    pool = plan.side == "train"
    if (plan.side == "validation").any():
        _require_groups(plan, pool, 1, "training needs at least one")
        plan.notes.append("the published validation images were used; the fraction asked for was not")
    else:
        _require_groups(plan, pool, 2, "train and validation need one each")
        shares = [1.0 - spec.validation, spec.validation]
        plan.side[pool] = _divide(plan, pool, ("train", "validation"), shares, spec.seed)
    _note_absent(plan, SIDES)


def _exclude_twins(plan: _Plan, among: Flags, of: Flags, noun: str) -> None:
    """Exclude the rows `among` that share a group with a row `of`, each naming the first such image."""
    ids = plan.frame["image_id"]
    linked = among & (plan.reason == "") & np.isin(plan.unit, plan.unit[of])
    units = pd.Series(ids[of].to_numpy(), index=plan.unit[of])
    first = pd.Series(plan.unit).map(units[~units.index.duplicated()])
    reason = f"linked through other images to {noun} " + first.astype(str)
    for column in reversed(LINKS):  # the strongest link is written last
        keys = plan.frame[column]
        known = pd.Series(ids[of].to_numpy(), index=keys[of].to_numpy())
        twin = keys.map(known[~known.index.duplicated() & (known.index != "")])
        reason = reason.where(twin.isna(), f"{LINKS[column]} {noun} " + twin.astype(str))
    plan.exclude(linked, reason.to_numpy(dtype=object)[linked])


def _draw(plan: _Plan, spec: SplitSpec, pool: Flags) -> None:
    """Exclude what `draw_from` and `per_class` leave out of the pool."""
    if spec.draw_from and not spec.scheme.startswith("given"):
        away = pool & (plan.given != GIVEN_NAMES.get(spec.draw_from.lower(), spec.draw_from))
        plan.exclude(away, f"not in draw_from={spec.draw_from}")
        # What is left out stays unseen, so that it can serve as a second test set.
        _exclude_twins(plan, pool & ~away, away, "left-out image")
    if spec.per_class == 0:
        return
    rng = np.random.default_rng([spec.seed, 1])
    pool = pool & (plan.reason == "")
    counts = np.bincount(plan.label[pool], minlength=len(plan.classes))
    if (counts < spec.per_class).any():
        short = [f"{name} has {n}" for name, n in zip(plan.classes, counts, strict=True) if n < spec.per_class]
        raise DataError(
            f"per_class={spec.per_class} images cannot be drawn: {'; '.join(short)}",
            remedy="lower per_class in the recipe, or add images",
        )
    drawn = [
        rng.choice(np.flatnonzero(pool & (plan.label == c)), spec.per_class, replace=False)
        for c in range(len(counts))
    ]
    left = pool.copy()
    left[np.concatenate(drawn)] = False
    plan.exclude(left, f"balance: not drawn ({spec.per_class} per class wanted)")


def _group_counts(plan: _Plan, rows: Flags) -> Ints:
    """Return the number of groups per class."""
    pairs = np.unique(np.stack([plan.unit[rows], plan.label[rows]]), axis=1)
    counts: Ints = np.bincount(pairs[1], minlength=len(plan.classes)).astype(np.int64)
    return counts


def _require_groups(plan: _Plan, pool: Flags, least: int, why: str) -> None:
    images = np.bincount(plan.label[pool], minlength=len(plan.classes))
    found = zip(plan.classes, images, _group_counts(plan, pool), strict=True)
    small = [f"class {name!r} has {n} image(s) in {g} group(s)" for name, n, g in found if g < least]
    if small:
        raise DataError(f"too few to divide: {'; '.join(small)}; {why}", remedy=MORE_IMAGES)


def _require_folds(plan: _Plan, pool: Flags) -> None:
    """Refuse a class that sits in fewer than three folds: some run would train without it."""
    for code, name in enumerate(plan.classes):
        folds = set(plan.side[pool & (plan.label == code)])
        if len(folds) < 3:
            raise DataError(
                f"class {name!r} fits into {len(folds)} fold(s) only; 3 are needed", remedy=MORE_IMAGES
            )
    _note_absent(plan, sorted(set(plan.side[pool]), key=int))


def _note_absent(plan: _Plan, sides: Sequence[str]) -> None:
    """Refuse a class without training images; note one that another side lacks."""
    for code, name in enumerate(plan.classes):
        missing = [side for side in sides if not (plan.side[plan.label == code] == side).any()]
        if "train" in missing:
            raise DataError(f"class {name!r} has no training image after the division", remedy=MORE_IMAGES)
        for side in missing:
            plan.notes.append(f"class {name!r} has no image in {'fold ' * side.isdigit()}{side}")


def _divide(
    plan: _Plan, pool: Flags, names: Sequence[str], shares: Sequence[float], seed: int
) -> NDArray[np.object_]:
    sides = divide(plan.label[pool], plan.unit[pool], shares, seed)
    return np.array(names, dtype=object)[sides]


# Checking a split


def _sides(manifest: pd.DataFrame, split: Split) -> pd.DataFrame:
    """Return the manifest's rows that are on a side, with `split`, `fold` and the group numbers `linked` and `unit`."""
    rows = manifest[["image_id", "label", *LINKS]].assign(linked=groups(manifest), unit=split_groups(manifest))
    return rows.merge(split.frame, on="image_id", how="inner").sort_values("image_id", ignore_index=True)


# Files


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UsageError(
            f"split name {name!r}: becomes a file name", remedy="use letters, digits, `.`, `_` and `-`"
        )


def _read_spec(value: Any, path: Path) -> SplitSpec | None:
    if value is None:
        return None
    try:
        return SplitSpec(**value)
    except (ValidationError, TypeError) as error:
        raise DataError(f"{path}: its spec is not valid: {error}", remedy="make the split again") from error
