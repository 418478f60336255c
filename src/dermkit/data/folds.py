"""Folds of a split: of all its images, or of the training images beside test images that are in no fold.

In the first case every image is a test image of its fold, and at most once a validation image. In the second it is a
validation image of its fold, and the test images are for the ensemble of all folds.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dermkit.recipes.schema import SplitSpec


def fold_numbers(frame: pd.DataFrame) -> list[int]:
    """Return the numbers of a split's folds, none without folds. frame: split, fold."""
    return sorted({int(fold) for fold in frame.loc[frame["split"] == "fold", "fold"]})


def has_test_beside_folds(frame: pd.DataFrame) -> bool:
    """Return whether a split has folds, and test images that are in none of them. frame: split."""
    return bool((frame["split"] == "fold").any() and (frame["split"] == "test").any())


def leaves_test_to_ensemble(frame: pd.DataFrame, spec: "SplitSpec | None") -> bool:
    """Return whether no run of a split scores its test images, since the ensemble of its folds does.

    That holds for a split of folds beside test images, and for the one fold of it whose rows a run's split.csv holds.
    """
    return has_test_beside_folds(frame) or (spec is not None and spec.scheme != "kfold" and spec.folds > 0)


def rows_for_fold(
    frame: pd.DataFrame, fold: int, n_folds: int, validates: "NDArray[np.bool_] | None" = None
) -> pd.DataFrame:
    """Return a split's rows with train, validation and test in place of its folds. frame: image_id, split, fold.

    Beside test images fold f is validation; else it is test, and fold (f + 1) mod k validation, or those of its rows
    that `validates` says, (n,) (None: all), while the others are for training.
    """
    is_fold, has_test = frame["split"] == "fold", has_test_beside_folds(frame)
    validation_fold = fold if has_test else (fold + 1) % n_folds
    is_validation = is_fold & (frame["fold"] == validation_fold)
    if validates is not None and not has_test:
        is_validation &= validates
    rows = frame.copy()
    rows.loc[is_fold, "split"] = "train"
    rows.loc[is_fold & (frame["fold"] == fold), "split"] = "test"
    rows.loc[is_validation, "split"] = "validation"
    return rows


def rows_for_ensemble(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the ensemble of folds beside test images: image_id, split, fold.

    An image of a fold stands twice: some of the nets were trained on it, and one was validated on it. Sorted by image.
    """
    folds = frame[frame["split"] == "fold"]
    rows = [folds.assign(split="train"), folds.assign(split="validation"), frame[frame["split"] == "test"]]
    return pd.concat(rows).sort_values("image_id", kind="stable", ignore_index=True).assign(fold=np.int64(-1))
