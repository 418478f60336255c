"""predictions.csv: its checks, and its translation to the classes of another data set.

Classes are matched by name, never by order.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.data.manifest import Dataset, LesionClass
from dermkit.data.manifest import groups as manifest_groups
from dermkit.errors import DataError
from dermkit.files import write_rows
from dermkit.metrics.classification.scored_set import Scored

MAP_FORMAT = 1
ID_COLUMNS = ("image_id", "path", "label", "split", "fold", "seed", "predicted")
PREFIX = "p_"
ATTRIBUTES = ("age", "sex", "site", "skin_type")
SUM_TOLERANCE = 1e-4
BROUGHT_TOLERANCE = 1e-3
"""In a table of another tool, rows that are off by so much were divided by their sum before they come here."""
SUMS = f"{SUM_TOLERANCE} (a table of another tool: {BROUGHT_TOLERANCE})"
LISTED = 20
"""Line numbers printed per kind of problem; the rest are counted."""


def columns_of(classes: Sequence[str]) -> list[str]:
    """Return the columns of predictions.csv in order."""
    return [*ID_COLUMNS, *(PREFIX + name for name in classes)]


def read_predictions(path: Path, classes: Sequence[str], *, labels: Sequence[str] | None = None) -> pd.DataFrame:
    """Read predictions.csv: text columns as they are, `p_<class>` as float64, in the order of `classes`.

    labels: allowed values of `label`, where they are another data set's. Raises `DataError` listing every problem
    with its line numbers (the header is line 1).
    """
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}", remedy="check the path") from error
    except (ValueError, UnicodeError) as error:
        raise DataError(f"{path}: is not a table: {error}", remedy="restore the file or make it again") from error
    return check_predictions(frame, classes, labels=labels, where=str(path))


def check_predictions(
    frame: pd.DataFrame, classes: Sequence[str], *, labels: Sequence[str] | None = None, where: str = "predictions"
) -> pd.DataFrame:
    """Return the table with columns in order and probabilities as float64; raises `DataError` as above."""
    wanted = columns_of(classes)
    problems = [f"no column {name}" for name in wanted if name not in frame.columns]
    problems += [f"unknown column {name}" for name in frame.columns if name not in wanted]
    if problems or frame.empty:
        refuse(where, problems or ["no row"])
    frame = frame[wanted].copy()
    for name in wanted[len(ID_COLUMNS) :]:
        bad = ~np.isfinite(pd.to_numeric(frame[name], errors="coerce").to_numpy(dtype=np.float64))
        problems += _at(bad, f"{name} is not a finite number")
        # float() of the text, not a fast parser: full precision must read back to the same bits.
        frame[name] = np.where(bad, "0", frame[name].to_numpy(dtype=object)).astype(np.float64)
    problems += [] if problems else _value_problems(frame, classes)
    problems += _row_problems(frame, classes, classes if labels is None else labels)
    if problems:
        refuse(where, problems)
    return frame


def _value_problems(frame: pd.DataFrame, classes: Sequence[str]) -> list[str]:
    p = probabilities_of(frame, classes)
    problems = _at((p.min(axis=1) < 0) | (p.max(axis=1) > 1), "a probability is outside 0 to 1")
    off = np.abs(p.sum(axis=1) - 1.0)
    problems += _at(off > SUM_TOLERANCE, f"probabilities do not sum to 1 within {SUMS}")
    predicted = class_index(frame["predicted"], classes)
    of_predicted = p[np.arange(len(p)), predicted]
    return problems + _at(
        (predicted >= 0) & (of_predicted < p.max(axis=1)), "predicted is not the most probable class"
    )


def _row_problems(frame: pd.DataFrame, classes: Sequence[str], labels: Sequence[str]) -> list[str]:
    problems = []
    for column, known in (("label", labels), ("predicted", classes)):
        for name in sorted(set(frame[column]) - set(known)):
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; closest is {close[0]!r}" if close else ""
            problems += _at((frame[column] == name).to_numpy(), f"{column} {name!r} is not a class{hint}")
    names = frame["split"].map(lambda name: bool(re.fullmatch(r"[A-Za-z0-9_-]+", name))).to_numpy(dtype=bool)
    problems += _at(~names, "split must be a name of letters, digits, - and _")
    key = ["image_id", "split", "fold", "seed"]
    problems += _at(frame.duplicated(key).to_numpy(), f"the same {', '.join(key)} as an earlier line")
    return problems


def _at(bad: NDArray[np.bool_], what: str) -> list[str]:
    """Return one sentence with the line numbers of a problem, or none."""
    lines = (np.flatnonzero(bad) + 2).tolist()
    if not lines:
        return []
    more = f" and {len(lines) - LISTED} more" if len(lines) > LISTED else ""
    return [f"{what}: line {', '.join(map(str, lines[:LISTED]))}{more}"]


def refuse(where: str, problems: Iterable[str]) -> NoReturn:
    """Raise `DataError` with one line per problem."""
    listed = "\n".join("  " + problem for problem in problems)
    raise DataError(
        f"{where}: cannot be evaluated:\n{listed}", kept="nothing was written", remedy="correct these lines"
    )


def probabilities_of(frame: pd.DataFrame, classes: Sequence[str]) -> NDArray[np.float64]:
    """Return the probability columns by name, (N, K)."""
    return frame[[PREFIX + name for name in classes]].to_numpy(dtype=np.float64)


def class_index(column: "pd.Series[Any]", classes: Sequence[str]) -> NDArray[np.int64]:
    """Return each name's place in `classes`, -1 for a name that is not there."""
    return pd.Index(list(classes)).get_indexer(pd.Index(column)).astype(np.int64)


def write_predictions(path: Path, classes: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write predictions.csv: image_id, path, label, split, fold, seed, predicted, then a column per class."""
    write_rows(path, columns_of(classes), rows)


def write_groups(
    path: Path, all_ids: "pd.Series[str]", group: NDArray[np.int64], image_ids: "pd.Series[str]"
) -> None:
    """Write groups.csv: which images hang together (lesion, patient, copies), for intervals by group.

    group: a label for each of `all_ids`; rows are written for `image_ids`.
    """
    of = dict(zip(all_ids, group.tolist(), strict=True))
    write_rows(path, ("image_id", "group"), [(item, of[item]) for item in image_ids])


def write_attributes(path: Path, manifest: pd.DataFrame, image_ids: "pd.Series[str]") -> None:
    """Write attributes.csv: what is known of the person and the place of each scored image, "" = unknown."""
    rows = manifest.set_index("image_id").loc[list(dict.fromkeys(image_ids)), list(ATTRIBUTES)]
    write_rows(path, ("image_id", *ATTRIBUTES), rows.reset_index().to_numpy(dtype=object).tolist())


def read_attributes(run: Path) -> pd.DataFrame | None:
    """Return a run's attributes by image_id, None where it has none."""
    path = run / "attributes.csv"
    return read_table(path, "image_id", *ATTRIBUTES).set_index("image_id") if path.exists() else None


def read_groups(run: Path) -> dict[str, int] | None:
    """Return image_id -> what hangs together, from a run's groups.csv; None where there is none."""
    path = run / "groups.csv"
    if not path.exists():
        return None
    frame = read_table(path, "image_id", "group")
    return dict(zip(frame["image_id"], pd.factorize(frame["group"])[0].tolist(), strict=True))


def groups_of(run: Path, dataset: Dataset | None) -> dict[str, int] | None:
    """Return the groups of a run, else those of the data set; None where neither says."""
    found = read_groups(run)
    if found is not None or dataset is None:
        return found
    return dict(zip(dataset.manifest["image_id"], manifest_groups(dataset.manifest).tolist(), strict=True))


def read_table(path: Path, *text: str) -> pd.DataFrame:
    """Read a CSV, all of it as text where text columns are named, else as numbers; raises `DataError`."""
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False) if text else pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}", remedy="restore the file or train again") from error
    missing = [name for name in text if name not in frame]
    if missing:
        raise DataError(f"{path}: no column {', '.join(missing)}", remedy="restore the file or train again")
    return frame


def scored_of(part: pd.DataFrame, classes: Sequence[LesionClass], groups: Mapping[str, int] | None) -> Scored:
    """Return one split's rows as arrays, sorted by image, so that no figure depends on the order of rows."""
    part = part.sort_values(["image_id", "fold", "seed"], kind="stable")
    ids, names = part["image_id"], [item.name for item in classes]
    group = ids if groups is None else ids.map(groups)
    if group.isna().any():
        lost = ids[group.isna()].tolist()
        refuse("groups", [f"{len(lost)} images have no group: {', '.join(lost[:LISTED])}"])
    return Scored(
        classes=names,
        malignant=np.array([item.malignancy == "malignant" for item in classes]),
        true=class_index(part["label"], names),
        predicted=class_index(part["predicted"], names),
        probabilities=probabilities_of(part, names),
        groups=pd.factorize(group)[0].astype(np.int64),
    )
