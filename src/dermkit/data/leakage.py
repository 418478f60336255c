"""What sits on two sides of a split: identical pixels, or a lesion, patient or copy group."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.data.folds import has_test_beside_folds
from dermkit.data.groups import distinct_codes
from dermkit.errors import DataError

_MAX_LISTED = 20
"""An error lists at most this many cases of one kind, and the total."""

LINK_TEXTS = {
    "pixel_sha256": "same pixels as", "lesion_id": "same lesion as", "patient_id": "same patient as",
    "copy_group": "same copy group as",
}  # fmt: skip
"""The ways in which two images can be linked, strongest first."""

_Ints = NDArray[np.int64]
_Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Leakage:
    """The divided rows, and how each test image (`test`) and validation image (`validation`) leaks.

    test, validation: bool columns identical_pixels, same_group, total, on the index of `table`.
    """

    table: pd.DataFrame
    test: pd.DataFrame
    validation: pd.DataFrame

    @property
    def has_leaks(self) -> bool:
        return bool(self.test["total"].any() or self.validation["total"].any())

    def counts(self) -> dict[str, Any]:
        """Return leak counts, in total and per class, as `check_split` documents them."""
        classes = self.test.groupby(self.table.loc[self.test.index, "label"], sort=True)
        n_labels = self.table.groupby(distinct_codes(self.table["pixel_sha256"]))["label"].transform("nunique")
        return {
            **_leak_counts(self.test),
            "per_class": {str(name): _leak_counts(rows) for name, rows in classes},
            "validation": _leak_counts(self.validation),
            "contradictions": int((n_labels > 1).sum()),
        }

    def to_error(self, name: str) -> DataError:
        """Return the error that lists the first images on two sides, and how many there are."""
        leaking = pd.concat([self.test[self.test["total"]], self.validation[self.validation["total"]]])
        lines = ["  " + _leak_text(self.table, int(row)) for row in leaking.index[:_MAX_LISTED]]
        n_more = len(leaking) - len(lines)
        return DataError(
            f"split {name}: {len(leaking)} image(s) share a group or their exact pixels with another split:\n"
            + "\n".join(lines)
            + (f"\n  and {n_more} more" if n_more else ""),
            outcome="nothing was changed",
            remedy="put each lesion in one split, or let `dermkit split` make the division",
        )


def find_leakage(table: pd.DataFrame) -> Leakage:
    """Find leaks. table: manifest rows in a split, index 0..N-1, with split, fold, `id_group` (component of
    lesion, patient and copy group) and `leakage_group` (with identical pixels too).

    A test image leaks
    from train or validation, a validation image from train; with k folds every image is a test image of its fold, or
    beside test images a validation image of it.
    """
    is_fold, is_test = (table["split"] == "fold").to_numpy(), (table["split"] == "test").to_numpy()
    if is_fold.any() and not has_test_beside_folds(table):
        is_test = np.ones(len(table), bool)
        test = _leak_flags(table, table["fold"].to_numpy(), is_test)
    else:
        test = _leak_flags(table, is_test, is_test)
    non_test = table.loc[~is_test]
    is_validation = (non_test["split"] == "validation").to_numpy()
    if is_fold.any():
        every_image = np.ones(len(non_test), bool)
        return Leakage(table, test, _leak_flags(non_test, non_test["fold"].to_numpy(), every_image))
    return Leakage(table, test, _leak_flags(non_test, is_validation, is_validation))


def _leak_flags(table: pd.DataFrame, split_key: NDArray[Any], is_evaluated: _Bools) -> pd.DataFrame:
    """Return, for the rows `is_evaluated`, how each leaks: columns identical_pixels, same_group, total (bool)."""

    def is_shared(keys: _Ints) -> _Bools:
        splits_by_key = pd.Series(split_key).groupby(keys)
        return np.asarray(splits_by_key.transform("min") != splits_by_key.transform("max"), dtype=bool)

    pixels = is_shared(distinct_codes(table["pixel_sha256"]))
    total = is_shared(table["leakage_group"].to_numpy())
    # An image that leaks, but not only by its own pixels, leaks by lesion, patient or copy group.
    by_group = is_shared(table["id_group"].to_numpy()) | (total & ~pixels)
    columns = {"identical_pixels": pixels, "same_group": by_group, "total": total}
    return pd.DataFrame(columns, index=table.index).loc[is_evaluated]


def _leak_counts(leak_flags: pd.DataFrame) -> dict[str, int]:
    return {"n": len(leak_flags), **{column: int(leak_flags[column].sum()) for column in leak_flags.columns}}


def _leak_text(table: pd.DataFrame, row: int) -> str:
    """Describe one image and the strongest link that it has to another split."""
    image = table.iloc[row]
    is_elsewhere = (table["split"] != image["split"]) | (table["fold"] != image["fold"])
    linked_images = table[is_elsewhere & (table["leakage_group"] == image["leakage_group"])]
    for column, link_text in LINK_TEXTS.items():
        matches = linked_images[linked_images[column] == image[column]] if image[column] else linked_images.head(0)
        if len(matches):
            return f"{_location_text(image)}: {link_text} {_location_text(matches.iloc[0])}"
    return f"{_location_text(image)}: linked through other images to {_location_text(linked_images.iloc[0])}"


def _location_text(row: "pd.Series[Any]") -> str:
    return f"{row['image_id']} ({row['split']}{' ' + str(row['fold']) if row['split'] == 'fold' else ''})"
