"""What sits on two sides of a split: identical pixels, or a lesion, patient or copy group."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.errors import DataError

LISTED = 20
"""An error lists at most this many cases of one kind, and the total."""

LINKS = {
    "pixel_sha256": "same pixels as", "lesion_id": "same lesion as", "patient_id": "same patient as",
    "copy_group": "same copy group as",
}  # fmt: skip
"""The ways in which two images can be linked, strongest first."""

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Overlap:
    """The divided rows, and how each test image (`test`) and validation image (`validation`) leaks.

    test, validation: bool columns identical_pixels, same_group, total, on the index of `table`.
    """

    table: pd.DataFrame
    test: pd.DataFrame
    validation: pd.DataFrame

    @property
    def any(self) -> bool:
        return bool(self.test["total"].any() or self.validation["total"].any())

    def counts(self) -> dict[str, Any]:
        """Return leak counts, in total and per class, as `check_split` documents them."""
        classes = self.test.groupby(self.table.loc[self.test.index, "label"], sort=True)
        labels = self.table.groupby(codes(self.table["pixel_sha256"]))["label"].transform("nunique")
        return {
            **_counted(self.test),
            "per_class": {str(name): _counted(rows) for name, rows in classes},
            "validation": _counted(self.validation),
            "contradictions": int((labels > 1).sum()),
        }

    def error(self, name: str) -> DataError:
        """Return the error that lists the first images on two sides, and how many there are."""
        found = pd.concat([self.test[self.test["total"]], self.validation[self.validation["total"]]])
        lines = ["  " + _pair(self.table, int(row)) for row in found.index[:LISTED]]
        more = len(found) - len(lines)
        return DataError(
            f"split {name}: {len(found)} image(s) share a group or their exact pixels with another side:\n"
            + "\n".join(lines)
            + (f"\n  and {more} more" if more else ""),
            kept="nothing was changed",
            remedy="put each lesion on one side, or let `dermkit split` make the division",
        )


def find_overlap(table: pd.DataFrame) -> Overlap:
    """Find leaks. table: manifest rows that are on a side, index 0..N-1, with split, fold, linked and unit.

    linked: component of lesion, patient and copy group; unit: those and identical pixels. A test image leaks from
    train or validation, a validation image from train; with k folds every image is a test image of its fold.
    """
    kfold = bool((table["split"] == "fold").any())
    ours = np.ones(len(table), bool) if kfold else (table["split"] == "test").to_numpy()
    test = _leaking(table, table["fold"].to_numpy() if kfold else ours, ours)
    rest = table.loc[~ours]
    is_validation = (rest["split"] == "validation").to_numpy()
    return Overlap(table, test, _leaking(rest, is_validation, is_validation))


def codes(values: "pd.Series[Any]") -> Ints:
    """Number equal values alike; an empty value means unknown and is like no other."""
    known = pd.factorize(values)[0].astype(np.int64)
    blank = (values == "").to_numpy()
    return np.where(blank, known.max(initial=0) + 1 + np.arange(len(known)), known)


def _leaking(table: pd.DataFrame, side: NDArray[Any], ours: Flags) -> pd.DataFrame:
    """Return, for the rows `ours`, how each leaks: columns identical_pixels, same_group, total (bool)."""

    def shared(keys: Ints) -> Flags:
        sides = pd.Series(side).groupby(keys)
        return np.asarray(sides.transform("min") != sides.transform("max"), dtype=bool)

    pixels = shared(codes(table["pixel_sha256"]))
    total = shared(table["unit"].to_numpy())
    # What is linked, but by more than its own pixels, is linked by lesion, patient or copy group.
    by_group = shared(table["linked"].to_numpy()) | (total & ~pixels)
    columns = {"identical_pixels": pixels, "same_group": by_group, "total": total}
    return pd.DataFrame(columns, index=table.index).loc[ours]


def _counted(leaking: pd.DataFrame) -> dict[str, int]:
    return {"n": len(leaking), **{column: int(leaking[column].sum()) for column in leaking.columns}}


def _pair(table: pd.DataFrame, row: int) -> str:
    """Describe one image and the strongest link that it has to another side."""
    this = table.iloc[row]
    away = (table["split"] != this["split"]) | (table["fold"] != this["fold"])
    others = table[away & (table["unit"] == this["unit"])]
    for column, words in LINKS.items():
        twins = others[others[column] == this[column]] if this[column] else others.head(0)
        if len(twins):
            return f"{_where(this)}: {words} {_where(twins.iloc[0])}"
    return f"{_where(this)}: linked through other images to {_where(others.iloc[0])}"


def _where(row: "pd.Series[Any]") -> str:
    return f"{row['image_id']} ({row['split']}{' ' + str(row['fold']) if row['split'] == 'fold' else ''})"
