"""The rungs of a leak ladder: the same images divided by image, by lesion, by patient and by source.

A coarser rung keeps more images together. Exact copies and copy groups stay together in all of them, so that the rungs
differ by lesions, patients or sources alone. Training, validation and test images of a class are as many in the rungs
by image, lesion and patient: what one has more is left out, at random.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.data.groups import connect_rows, id_codes, leakage_groups
from dermkit.data.split import Split, check_split
from dermkit.data.split_file import SPLITS, excluded_frame
from dermkit.data.stratify import stratified_group_split
from dermkit.data.unknown import known_ids
from dermkit.errors import DataError

RungName = Literal["image", "lesion", "patient", "source"]

RUNG_COLUMNS: Mapping[RungName, tuple[str, ...]] = {
    "image": (),
    "lesion": ("lesion_id",),
    "patient": ("lesion_id", "patient_id"),
    "source": ("lesion_id", "patient_id", "source"),
}
"""The ids that a rung keeps on one side, beside identical pixels and copy groups; finest first."""

LEAK_COLUMNS = ("lesion_id", "patient_id", "source")

_COPY_COLUMNS = ("copy_group", "pixel_sha256")
_LEFT_OUT = "leak ladder: left out, so that every rung has as many images of the class here"

_Ints = NDArray[np.int64]
_Objects = NDArray[np.object_]


@dataclass(frozen=True)
class RungOption:
    """One rung that was asked for. reason: why it does not apply to a data set, "" where it does."""

    name: RungName
    reason: str = ""


def rung_options(manifest: pd.DataFrame) -> list[RungOption]:
    """Return all rungs, finest first; one that is as another is, or that leaves a class on one side, does not apply."""
    options: list[RungOption] = []
    finer: _Ints | None = None
    for name in RUNG_COLUMNS:
        groups = _groups(manifest, RUNG_COLUMNS[name])
        reason = _unknown_reason(manifest, name)
        if not reason and finer is not None and len(np.unique(groups)) == len(np.unique(finer)):
            reason = f"no {name} links images that the rung before does not keep together already"
        reason = reason or _class_reason(manifest, groups, name)
        options.append(RungOption(name, reason))
        finer = finer if reason else groups
    return options


def _unknown_reason(manifest: pd.DataFrame, name: RungName) -> str:
    """Return why the ids of a rung are not there, "" where they are."""
    if name == "image":
        return ""
    ids = known_ids(manifest[RUNG_COLUMNS[name][-1]])
    n_unknown = int((ids == "").sum())
    if n_unknown == len(ids):
        return f"no image has a known {name}"
    if name == "source" and n_unknown:
        return f"{n_unknown} of {len(ids)} images have no known source, so they cannot be kept apart by it"
    if name == "source" and ids.nunique() < 2:
        return f"all images are of one source, {ids.iloc[0]}"
    return ""


def _class_reason(manifest: pd.DataFrame, groups: _Ints, name: RungName) -> str:
    """Return which classes have too few groups for train and test, and for validation; "" where none has."""
    needed = 2 if name == "source" else 3  # validation images of the rung by source come from the training sources
    n_groups = pd.Series(groups).groupby(manifest["label"].to_numpy()).nunique()
    rare = [f"{label} ({n})" for label, n in n_groups.items() if n < needed]
    return f"classes with fewer than {needed} groups by {name}: {', '.join(rare)}" if rare else ""


def _groups(manifest: pd.DataFrame, columns: Sequence[str]) -> _Ints:
    """Return (n,) group numbers of images that share one of these ids, a copy group or their exact pixels."""
    nothing = np.empty(0, np.int64)
    keys = [id_codes(manifest[column].astype(str)) for column in (*columns, *_COPY_COLUMNS)]
    return connect_rows(len(manifest), nothing, nothing, *keys)


def make_rungs(
    manifest: pd.DataFrame, names: Sequence[RungName], *, validation: float, test: float, seed: int
) -> dict[RungName, Split]:
    """Return the split of each rung, drawn with one seed, with its leaks counted.

    validation, test: fractions of the images. The rung by source divides its sources into test and the others, and
    these by patient and lesion into train and validation; its class mix is that of the sources, and it has at most as
    many training images of a class as the other rungs. Raises `DataError` for a class that has no training image.
    """
    rows = manifest.sort_values("image_id", ignore_index=True)
    labels = pd.factorize(rows["label"], sort=True)[0].astype(np.int64)
    divided = {name: _divide(rows, labels, name, validation, test, seed) for name in names}
    limits = _common_counts(labels, [sides for name, sides in divided.items() if name != "source"])
    splits: dict[RungName, Split] = {}
    for name, sides in divided.items():
        limited = SPLITS if name != "source" else ("train", "validation")
        trimmed = _trim(labels, sides, {side: limits[side] for side in limited}, seed)
        splits[name] = _to_split(rows, name, trimmed)
        splits[name] = replace(splits[name], leaks=check_split(manifest, splits[name], allow_leaks=True))
    return splits


def _divide(
    rows: pd.DataFrame, labels: _Ints, name: RungName, validation: float, test: float, seed: int
) -> _Objects:
    """Return the side of each image."""
    groups, names = _groups(rows, RUNG_COLUMNS[name]), np.array(("train", "test", "validation"), dtype=object)
    if name != "source":
        index = stratified_group_split(labels, groups, [1 - validation - test, test, validation], seed)
        return names[index]
    sides = names[stratified_group_split(labels, groups, [1 - test, test], seed)]
    rest = np.flatnonzero(sides == "train")
    share, lesions = validation / (1 - test), _groups(rows, RUNG_COLUMNS["patient"])
    index = stratified_group_split(labels[rest], lesions[rest], [1 - share, share], seed)
    sides[rest] = np.array(("train", "validation"), dtype=object)[index]
    return sides


def _common_counts(labels: _Ints, divided: Sequence[_Objects]) -> dict[str, _Ints]:
    """Return side -> (K,) the smallest number of images of each class that a division has there."""
    n_classes = int(labels.max()) + 1
    return {
        side: np.min([np.bincount(labels[sides == side], minlength=n_classes) for sides in divided], axis=0)
        for side in SPLITS
    }


def _trim(labels: _Ints, sides: _Objects, limits: Mapping[str, _Ints], seed: int) -> _Objects:
    """Return the sides with images left out ("") at random, so that no class has more than its limit on a side."""
    rng, trimmed = np.random.default_rng([seed, 6]), sides.copy()
    for side, counts in limits.items():
        for label, limit in enumerate(counts):
            images = np.flatnonzero((sides == side) & (labels == label))
            trimmed[rng.permutation(images)[limit:]] = ""
    return trimmed


def _to_split(rows: pd.DataFrame, name: RungName, sides: _Objects) -> Split:
    has_side = sides != ""
    if missing := sorted(set(rows["label"]) - set(rows.loc[sides == "train", "label"])):
        raise DataError(
            f"leak ladder, split by {name}: no training image of {', '.join(missing)}",
            outcome="nothing was trained",
            remedy="add images of these classes, or import the data set without them",
        )
    frame = pd.DataFrame(
        {"image_id": rows.loc[has_side, "image_id"].to_numpy(), "split": sides[has_side].astype(str)}
    ).assign(fold=np.int64(-1))
    left_out = rows.loc[~has_side, "image_id"]
    return Split(f"by-{name}", frame, excluded_frame(left_out, [_LEFT_OUT] * len(left_out)), {})


def count_leaks(manifest: pd.DataFrame, frame: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Return class -> test images: `n`, and of these with `lesion_id`, `patient_id`, `source` of a training image.

    frame: image_id and split of a rung. Unknown ids link nothing.
    """
    table = manifest.merge(frame[["image_id", "split"]], on="image_id")
    is_train, is_test = table["split"] == "train", table["split"] == "test"
    leaks = {}
    for column in LEAK_COLUMNS:
        ids = known_ids(table[column])
        leaks[column] = is_test & ids.isin(set(ids[is_train]) - {""})
    labels = sorted(table["label"].unique())
    return {
        label: {
            "n": int((is_test & (table["label"] == label)).sum()),
            **{column: int((flags & (table["label"] == label)).sum()) for column, flags in leaks.items()},
        }
        for label in labels
    }


def count_sides(manifest: pd.DataFrame, frame: pd.DataFrame) -> dict[str, Any]:
    """Return `images`, side -> class -> number, and `lesions`, side -> number of groups by lesion and patient."""
    table = manifest.assign(group=leakage_groups(manifest)).merge(frame[["image_id", "split"]], on="image_id")
    sides = {side: table[table["split"] == side] for side in SPLITS}
    labels = sorted(table["label"].unique())
    return {
        "images": {
            side: {label: int((rows["label"] == label).sum()) for label in labels} for side, rows in sides.items()
        },
        "lesions": {side: int(rows["group"].nunique()) for side, rows in sides.items()},
    }
