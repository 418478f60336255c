"""The two files of a split, NAME.csv and NAME.excluded.csv, checked against the manifest."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from dermkit.data.folds import has_test_beside_folds
from dermkit.errors import DataError, first_of
from dermkit.files import open_regular, write_rows

SPLITS = ("train", "validation", "test")
_MAX_LISTED = 20
"""An error message lists at most this many cases of one kind, and their number."""


def write_split_rows(path: Path, frame: pd.DataFrame, excluded: pd.DataFrame) -> None:
    """Write both tables; NAME.csv last, so that if it exists, the other is complete."""
    write_rows(path.with_suffix(".excluded.csv"), ["image_id", "reason"], excluded.itertuples(index=False))
    folds = ["" if fold < 0 else int(fold) for fold in frame["fold"]]
    write_rows(path, ["image_id", "split", "fold"], zip(frame["image_id"], frame["split"], folds, strict=True))


def read_split_rows(
    path: Path, manifest: pd.DataFrame, *, require_all_splits: bool = True
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the tables (image_id, split, fold) and (image_id, reason), sorted by image_id; fold is int64, -1 = none.

    Images in neither file are excluded, with that as the reason. require_all_splits: whether train, validation and test
    must all have an image, or just one of them. Raises `DataError` that lists all problems.
    """
    frame = _read_table(path, ("image_id", "split"))
    if "fold" not in frame:
        frame["fold"] = ""
    excluded_path = path.with_suffix(".excluded.csv")
    excluded = (
        _read_table(excluded_path, ("image_id", "reason")) if excluded_path.exists() else excluded_frame([], [])
    )
    problems = _find_problems(frame, excluded, manifest, require_all_splits)
    if problems:
        raise DataError(
            f"{path}: does not fit the manifest:\n" + "\n".join("  " + problem for problem in problems),
            outcome="nothing was changed",
            remedy="correct the file, or make the split again",
        )
    is_unlisted = ~manifest["image_id"].isin(frame["image_id"]) & ~manifest["image_id"].isin(excluded["image_id"])
    ids = [*excluded["image_id"], *manifest.loc[is_unlisted, "image_id"]]
    reasons = [*excluded["reason"], *[f"not named in {path.name}"] * int(is_unlisted.sum())]
    frame["fold"] = frame["fold"].replace("", "-1").astype("int64")
    frame = frame[["image_id", "split", "fold"]].sort_values("image_id", ignore_index=True)
    return frame, excluded_frame(ids, reasons)


def excluded_frame(ids: Iterable[str], reasons: Iterable[str]) -> pd.DataFrame:
    """Return the table of excluded images, sorted by image_id."""
    frame = pd.DataFrame({"image_id": list(ids), "reason": list(reasons)}, dtype=str)
    return frame.sort_values("image_id", ignore_index=True)


def _read_table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    try:
        with open_regular(path) as stream:
            frame = pd.read_csv(stream, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read: {error}", remedy="check the path, or make the split again"
        ) from error
    missing_columns = [column for column in columns if column not in frame]
    if missing_columns:
        raise DataError(
            f"{path}: lacks the columns {', '.join(missing_columns)}", remedy="the header is image_id,split,fold"
        )
    return frame


def _find_problems(
    frame: pd.DataFrame, excluded: pd.DataFrame, manifest: pd.DataFrame, require_all_splits: bool
) -> list[str]:
    """Return a line for every kind of problem of a split file."""
    ids, split_names, known_ids = frame["image_id"], frame["split"], manifest["image_id"]
    is_fold = split_names == "fold"
    has_folds = bool(is_fold.any())
    allowed_names = ("fold", "test") if has_folds else SPLITS
    is_valid_fold = frame["fold"].str.fullmatch(r"\d{1,4}").where(is_fold, frame["fold"] == "").astype(bool)
    cases = {
        "unknown image": ids[~ids.isin(known_ids)],
        "image named twice": ids[ids.duplicated()].drop_duplicates(),
        "unknown image among the excluded": excluded["image_id"][~excluded["image_id"].isin(known_ids)],
        "image both in the split and excluded": ids[ids.isin(excluded["image_id"])],
        f"split name other than {', '.join(allowed_names)}": (ids + ": " + split_names)[
            ~split_names.isin(allowed_names)
        ],
        "wrong fold": (ids + ": " + frame["fold"])[~is_valid_fold],
    }
    problems = [_problem_text(problem, examples) for problem, examples in cases.items() if len(examples)]
    if has_folds and not problems:
        folds, fewest = set(frame.loc[is_fold, "fold"].astype(int)), 2 if has_test_beside_folds(frame) else 3
        if len(folds) < fewest or folds != set(range(len(folds))):
            number = "two beside test images" if fewest == 2 else "three"
            problems.append(f"folds are {sorted(folds)}; they must be 0, 1, 2 and so on, at least {number}")
    if not has_folds and require_all_splits:
        problems += [f"no image is in the {name} split" for name in SPLITS if not (split_names == name).any()]
    elif not has_folds and not split_names.isin(SPLITS).any():
        problems.append("no image is in any split")
    return problems


def _problem_text(problem: str, examples: "pd.Series[Any]") -> str:
    return f"{problem} ({len(examples)}): {first_of(examples, _MAX_LISTED)}"
