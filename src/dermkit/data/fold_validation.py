"""Which part of each fold validates the net of the fold before it (docs/decisions/0017-validation-within-folds.md)."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.data.folds import fold_numbers
from dermkit.data.groups import leakage_groups
from dermkit.data.stratify import stratified_group_split

if TYPE_CHECKING:
    from dermkit.recipes.schema import SplitSpec


def validates_in_part(spec: "SplitSpec | None") -> bool:
    """Return whether a part of each fold validates, in place of the whole fold. spec: None for a hand-written file."""
    return spec is not None and spec.scheme == "kfold" and spec.validation * spec.folds < 1.0 - 1e-9


def validation_rows(frame: pd.DataFrame, spec: "SplitSpec | None", manifest: pd.DataFrame) -> NDArray[np.bool_]:
    """Return (n,) bool: which rows of a split of k folds validate the net of the fold before theirs.

    frame: image_id, split, fold, n rows sorted by image_id. Each class of a fold with two groups is in both parts. A
    fold of one group validates whole, and so does every fold of a hand-written file, which says no fraction.
    """
    validates = np.ones(len(frame), bool)
    if spec is None or not validates_in_part(spec):
        return validates
    # Groups of all images, as in the folds: two images may be linked by one that the split leaves out.
    in_order = manifest.sort_values("image_id")
    is_in_split = in_order["image_id"].isin(frame["image_id"]).to_numpy()
    labels = pd.factorize(in_order["label"], sort=True)[0].astype(np.int64)[is_in_split]
    groups, folds = leakage_groups(in_order)[is_in_split], frame["fold"].to_numpy()
    fraction = spec.validation * len(fold_numbers(frame))
    for fold in fold_numbers(frame):
        rows = np.flatnonzero(folds == fold)
        is_train = stratified_group_split(labels[rows], groups[rows], [1.0 - fraction, fraction], spec.seed) == 0
        if not is_train.all():
            validates[rows] = ~is_train
    return validates


def missing_class_notes(frame: pd.DataFrame, spec: "SplitSpec", manifest: pd.DataFrame) -> list[str]:
    """Return a sentence for each class that a part of a fold lacks though the fold has it; [] for whole folds.

    frame: as of `validation_rows`. Such a class has one group in the fold, which trains.
    """
    if not validates_in_part(spec):
        return []
    labels = frame["image_id"].map(manifest.set_index("image_id")["label"])
    counts = pd.crosstab(labels, frame["fold"])
    n_validation = pd.crosstab(labels[validation_rows(frame, spec, manifest)], frame["fold"])
    n_validation = n_validation.reindex(index=counts.index, columns=counts.columns, fill_value=0)
    missing = {
        name: [str(fold) for fold in counts.columns if counts.at[name, fold] and not n_validation.at[name, fold]]
        for name in counts.index
    }
    return [
        f"class {name!r}: the part of fold {', '.join(folds)} that validates has no image of it, since it has one "
        "group there; split.validation of 1 / folds takes whole folds"
        for name, folds in missing.items()
        if folds
    ]
