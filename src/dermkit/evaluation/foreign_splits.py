"""Which rows of a foreign table are training, validation and test images: the data set decides, not the table."""

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.data.folds import fold_numbers, has_test_beside_folds
from dermkit.data.importers.csv_tables import TextTable
from dermkit.data.importers.normalise import parse_split
from dermkit.data.manifest import Dataset
from dermkit.data.split import Split
from dermkit.errors import DataError, UsageError, first_of

DEFAULT_SPLIT = "test"
"""Split of a row where neither the data set nor the table says one."""
MAX_ROWS_LISTED = 5


def read_split_names(column: "pd.Series[str]") -> NDArray[np.object_]:
    """Return the split that each cell says: "Val" is validation; a name of no known split stays as it is."""
    parsed_names = [parse_split(text) for text in column]
    return np.array(
        [text if name is None else name for text, name in zip(column, parsed_names, strict=True)], dtype=object
    )


def assign_splits(
    matched_rows: pd.DataFrame, table_names: NDArray[np.object_] | None, dataset: Dataset, split: Split | None
) -> tuple[NDArray[np.object_], NDArray[np.int64]]:
    """Return the split of each row, "" for an image that the data set's split leaves out, and the contradicted rows.

    matched_rows: the manifest's row of each row of the table. table_names: what the table says, "" = nothing. split:
    the one that decides, None: the data set's given split, whose training images a table may divide further where it
    has no validation images of its own; so may it the images of folds beside test images, which are out-of-fold
    predictions then. Raises `UsageError` for a split of folds alone.
    """
    dataset_names = split_in_dataset(matched_rows, split)
    if table_names is None:
        table_names = np.full(len(matched_rows), "", dtype=object)
    given_splits = set(dataset.manifest["given_split"])
    is_divided_train = (dataset_names == "train") & (table_names == "validation")
    is_divided_train &= "validation" not in given_splits if split is None else has_test_beside_folds(split.frame)
    names = np.where((dataset_names == "") | is_divided_train, table_names, dataset_names)
    contradicted_rows = np.flatnonzero((table_names != "") & (dataset_names != "") & (names != table_names))
    if split is not None:
        names = np.where(dataset_names == "", "", names)
    elif given_splits <= {""}:
        names = np.where(names == "", DEFAULT_SPLIT, names)
    return names, contradicted_rows


def contradiction_error(
    rows: NDArray[np.int64],
    names: NDArray[np.object_],
    table_names: NDArray[np.object_],
    table: TextTable,
    dataset: Dataset,
) -> DataError:
    """Return the error that names the first rows, with what table and data set say of them."""
    examples = first_of(
        (f"row {table.row_numbers[i]}: {table_names[i]} here, {names[i]} there" for i in rows), MAX_ROWS_LISTED
    )
    return DataError(
        f"{table.path}: the column `split` contradicts {dataset.name} in {len(rows)} of {len(names)} rows "
        f"({examples})",
        outcome="nothing was written",
        remedy="correct or leave out the column, or name the data set's split that was used with --split",
    )


def split_in_dataset(matched_rows: pd.DataFrame, split: Split | None) -> NDArray[np.object_]:
    """Return the split of each row in the data set, "" for none; raises `UsageError` for a split of folds alone."""
    if split is None:
        return matched_rows["given_split"].to_numpy(dtype=object)
    if has_test_beside_folds(split.frame):
        rows = split.frame.assign(split=split.frame["split"].replace("fold", "train"))
        return _names_in(rows, matched_rows)
    if fold_numbers(split.frame):
        raise UsageError(
            f"--split {split.name}: is made of folds: an image is a test image of one and a training image of others",
            outcome="nothing was written",
            remedy="name a split with train, validation and test",
        )
    return _names_in(split.frame, matched_rows)


def _names_in(split_rows: pd.DataFrame, matched_rows: pd.DataFrame) -> NDArray[np.object_]:
    names = split_rows.set_index("image_id")["split"].reindex(matched_rows["image_id"])
    return names.fillna("").to_numpy(dtype=object)


def split_warnings(
    names: NDArray[np.object_], image_ids: "pd.Series[str]", dataset: Dataset, split: Split | None
) -> list[str]:
    """Return what is said of rows that are no test images, and of test images without a row."""
    origin = f"the split {split.name}" if split is not None else f"the given split of {dataset.name}"
    test_ids = _test_ids(dataset, split)
    if not test_ids:
        return _undivided_warnings(names, image_ids, dataset)
    warnings = [
        f"{int((names == name).sum())} of {len(names)} rows are {text} of {origin}: they are a split of their own, "
        f"`{name}`, and count in no test figure."
        for name, text in (("train", "training images"), ("validation", "validation images"))
        if (names == name).any()
    ]
    is_left_out = names == ""
    if is_left_out.any():
        warnings.append(
            f"{int(is_left_out.sum())} of {len(names)} rows are of images without a side in {origin}, and are left out "
            f"({first_of(image_ids[is_left_out], MAX_ROWS_LISTED)})."
        )
    missing_ids = sorted(test_ids - set(image_ids))
    if missing_ids:
        warnings.append(
            f"{len(missing_ids)} of {len(test_ids)} test images of {origin} have no prediction here "
            f"({first_of(missing_ids, MAX_ROWS_LISTED)})."
        )
    return warnings


def _test_ids(dataset: Dataset, split: Split | None) -> set[str]:
    if split is not None:
        return set(split.frame.loc[split.frame["split"] == "test", "image_id"])
    return set(dataset.manifest.loc[dataset.manifest["given_split"] == "test", "image_id"])


def _undivided_warnings(names: NDArray[np.object_], image_ids: "pd.Series[str]", dataset: Dataset) -> list[str]:
    """Return the warnings where the data set has no test images of its own."""
    warnings = []
    split_files = sorted(
        path.stem for path in (dataset.folder / "splits").glob("*.csv") if not path.stem.endswith(".excluded")
    )
    if split_files and (names == DEFAULT_SPLIT).any():
        warnings.append(
            f"{dataset.name} has no given test split, so {int((names == DEFAULT_SPLIT).sum())} rows count as test "
            f"images; --split NAME evaluates the test images of one of its own splits alone ({', '.join(split_files)})."
        )
    n_missing = len(set(dataset.manifest["image_id"]) - set(image_ids))
    if n_missing:
        warnings.append(
            f"{n_missing} of {len(dataset.manifest)} images of {dataset.name} have no prediction here."
        )
    return warnings


def check_not_only_train(names: NDArray[np.object_], table: Path, dataset: Dataset, split: Split | None) -> None:
    """Raise `DataError` where no row is left that a model can be judged by."""
    if (~np.isin(names, ["", "train"])).any():
        return
    origin = f"the split {split.name}" if split is not None else "its given split"
    raise DataError(
        f"{table}: none of its {len(names)} rows is of a test or validation image of {dataset.name} ({origin}); "
        f"{int((names == 'train').sum())} are of training images",
        outcome="nothing was written",
        remedy="add the predictions of the test images, or name the split that was used with --split",
    )
