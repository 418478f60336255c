"""The two tables that a split is on disk: NAME.csv and NAME.excluded.csv, checked against the manifest."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from dermkit.errors import DataError
from dermkit.files import write_rows

SIDES = ("train", "validation", "test")
LISTED = 20
"""An error lists at most this many cases of one kind, and the total."""


def save_rows(path: Path, frame: pd.DataFrame, excluded: pd.DataFrame) -> None:
    """Write both tables; NAME.csv comes last, so where it is, the other is whole."""
    write_rows(path.with_suffix(".excluded.csv"), ["image_id", "reason"], excluded.itertuples(index=False))
    folds = ["" if fold < 0 else int(fold) for fold in frame["fold"]]
    write_rows(path, ["image_id", "split", "fold"], zip(frame["image_id"], frame["split"], folds, strict=True))


def read_rows(path: Path, manifest: pd.DataFrame, *, need_sides: bool = True) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the tables image_id, split, fold (int, -1 for none) and image_id, reason; both sorted by image_id.

    Images that neither file names are excluded, with that as the reason. need_sides: whether train, validation and
    test must all have an image, or just one of them. Raises DataError listing every problem.
    """
    frame = _read_table(path, ("image_id", "split"))
    if "fold" not in frame:
        frame["fold"] = ""
    beside = path.with_suffix(".excluded.csv")
    excluded = _read_table(beside, ("image_id", "reason")) if beside.exists() else excluded_frame([], [])
    problems = _problems(frame, excluded, manifest, need_sides)
    if problems:
        raise DataError(
            f"{path}: does not fit the manifest:\n" + "\n".join("  " + problem for problem in problems),
            kept="nothing was changed",
            remedy="correct the file, or make the split again",
        )
    unnamed = ~manifest["image_id"].isin(frame["image_id"]) & ~manifest["image_id"].isin(excluded["image_id"])
    ids = [*excluded["image_id"], *manifest.loc[unnamed, "image_id"]]
    reasons = [*excluded["reason"], *[f"not named in {path.name}"] * int(unnamed.sum())]
    frame["fold"] = frame["fold"].replace("", "-1").astype("int64")
    frame = frame[["image_id", "split", "fold"]].sort_values("image_id", ignore_index=True)
    return frame, excluded_frame(ids, reasons)


def excluded_frame(ids: Iterable[str], reasons: Iterable[str]) -> pd.DataFrame:
    """Return the table of excluded images, sorted by image_id."""
    frame = pd.DataFrame({"image_id": list(ids), "reason": list(reasons)}, dtype=str)
    return frame.sort_values("image_id", ignore_index=True)


def _read_table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read: {error}", remedy="check the path, or make the split again"
        ) from error
    missing = [column for column in columns if column not in frame]
    if missing:
        raise DataError(
            f"{path}: lacks the columns {', '.join(missing)}", remedy="the header is image_id,split,fold"
        )
    return frame


def _problems(frame: pd.DataFrame, excluded: pd.DataFrame, manifest: pd.DataFrame, need_sides: bool) -> list[str]:
    """Say what is wrong with a split file, one line per kind of fault."""
    ids, side, known = frame["image_id"], frame["split"], manifest["image_id"]
    folded = bool((side == "fold").any())
    allowed = ("fold",) if folded else SIDES
    fold = frame["fold"].str.fullmatch(r"\d{1,4}") if folded else frame["fold"] == ""
    cases = {
        "unknown image": ids[~ids.isin(known)],
        "image named twice": ids[ids.duplicated()].drop_duplicates(),
        "unknown image among the excluded": excluded["image_id"][~excluded["image_id"].isin(known)],
        "image both divided and excluded": ids[ids.isin(excluded["image_id"])],
        f"split name other than {', '.join(allowed)}": (ids + ": " + side)[~side.isin(allowed)],
        "wrong fold": (ids + ": " + frame["fold"])[~fold],
    }
    problems = [_listed(what, found) for what, found in cases.items() if len(found)]
    if folded and not problems:
        folds = set(frame["fold"].astype(int))
        if len(folds) < 3 or folds != set(range(len(folds))):
            problems.append(f"folds are {sorted(folds)}; they must be 0, 1, 2 and so on, at least three")
    if not folded and need_sides:
        problems += [f"no image is on the {name} side" for name in SIDES if not (side == name).any()]
    elif not folded and not side.isin(SIDES).any():
        problems.append("no image is on any side")
    return problems


def _listed(what: str, found: "pd.Series[Any]") -> str:
    more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
    return f"{what} ({len(found)}): {', '.join(found[:LISTED])}{more}"
