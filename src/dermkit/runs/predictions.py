"""predictions.csv: its checks, and its translation to the classes of another data set.

Classes are matched by name, never by order.
"""

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.data.manifest import LesionClass
from dermkit.errors import DataError, UntrustedError, first_of
from dermkit.files import open_regular, write_rows
from dermkit.metrics.classification.scored_set import ScoredSet

MAP_FORMAT = 1
PREDICTION_COLUMNS = ("image_id", "path", "label", "split", "fold", "seed", "predicted")
PROBABILITY_PREFIX = "p_"
ATTRIBUTES = ("age", "sex", "site", "skin_type")
PIXEL_HASH = "pixel_sha256"
"""The column of attributes.csv that tells whether an image is the one that was scored; runs before it lack it."""
SUM_TOLERANCE = 1e-4
FOREIGN_SUM_TOLERANCE = 1e-3
"""In a table of another tool, rows that are off by so much were divided by their sum before they come here."""
SUM_TOLERANCE_TEXT = f"{SUM_TOLERANCE} (a table of another tool: {FOREIGN_SUM_TOLERANCE})"
MAX_LINES_LISTED = 20
"""Line numbers listed per kind of problem; the others are counted."""


@dataclass(frozen=True)
class ScoredImage:
    """A row of predictions.csv as people see it. p_predicted, p_label: 0..1, of the answer and of the true class."""

    image_id: str
    path: str
    label: str
    predicted: str
    p_predicted: float
    p_label: float


def prediction_columns(classes: Sequence[str]) -> list[str]:
    """Return the columns of predictions.csv in order."""
    return [*PREDICTION_COLUMNS, *(PROBABILITY_PREFIX + name for name in classes)]


def read_predictions(path: Path, classes: Sequence[str], *, labels: Sequence[str] | None = None) -> pd.DataFrame:
    """Read predictions.csv: text columns as they are, `p_<class>` as float64, in the order of `classes`.

    labels: allowed values of `label`, where they are another data set's. Raises `DataError` listing every problem
    with its line numbers (the header is line 1).
    """
    try:
        with open_regular(path) as stream:
            frame = pd.read_csv(stream, dtype=str, keep_default_na=False)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}", remedy="check the path") from error
    except (ValueError, UnicodeError) as error:
        raise DataError(f"{path}: is not a table: {error}", remedy="restore the file or make it again") from error
    return check_predictions(frame, classes, labels=labels, source_name=str(path))


def check_predictions(
    frame: pd.DataFrame,
    classes: Sequence[str],
    *,
    labels: Sequence[str] | None = None,
    source_name: str = "predictions",
) -> pd.DataFrame:
    """Return the table with columns in order and probabilities as float64; raises `DataError` as above."""
    columns = prediction_columns(classes)
    problems = [f"no column {name}" for name in columns if name not in frame.columns]
    problems += [f"unknown column {name}" for name in frame.columns if name not in columns]
    if problems or frame.empty:
        raise_problems(source_name, problems or ["no row"])
    frame = frame[columns].copy()
    for name in columns[len(PREDICTION_COLUMNS) :]:
        is_invalid = ~np.isfinite(pd.to_numeric(frame[name], errors="coerce").to_numpy(dtype=np.float64))
        problems += _line_problems(is_invalid, f"{name} is not a finite number")
        # float() of the text, not a fast parser: full precision must read back to the same bits.
        frame[name] = np.where(is_invalid, "0", frame[name].to_numpy(dtype=object)).astype(np.float64)
    problems += [] if problems else _value_problems(frame, classes)
    problems += _row_problems(frame, classes, classes if labels is None else labels)
    if problems:
        raise_problems(source_name, problems)
    return frame


def _value_problems(frame: pd.DataFrame, classes: Sequence[str]) -> list[str]:
    p = probabilities_of(frame, classes)
    problems = _line_problems((p.min(axis=1) < 0) | (p.max(axis=1) > 1), "a probability is outside 0 to 1")
    sum_error = np.abs(p.sum(axis=1) - 1.0)
    problems += _line_problems(
        sum_error > SUM_TOLERANCE, f"probabilities do not sum to 1 within {SUM_TOLERANCE_TEXT}"
    )
    predicted_index = class_indices(frame["predicted"], classes)
    p_predicted = p[np.arange(len(p)), predicted_index]
    return problems + _line_problems(
        (predicted_index >= 0) & (p_predicted < p.max(axis=1)), "predicted is not the most probable class"
    )


def _row_problems(frame: pd.DataFrame, classes: Sequence[str], labels: Sequence[str]) -> list[str]:
    problems = []
    for column, allowed_names in (("label", labels), ("predicted", classes)):
        for name in sorted(set(frame[column]) - set(allowed_names)):
            closest = difflib.get_close_matches(name, allowed_names, n=1)
            hint = f"; closest is {closest[0]!r}" if closest else ""
            problems += _line_problems(
                (frame[column] == name).to_numpy(), f"{column} {name!r} is not a class{hint}"
            )
    has_valid_split = (
        frame["split"].map(lambda name: bool(re.fullmatch(r"[A-Za-z0-9_-]+", name))).to_numpy(dtype=bool)
    )
    problems += _line_problems(~has_valid_split, "split must be a name of letters, digits, - and _")
    key = ["image_id", "split", "fold", "seed"]
    problems += _line_problems(frame.duplicated(key).to_numpy(), f"the same {', '.join(key)} as an earlier line")
    return problems


def _line_problems(is_invalid: NDArray[np.bool_], problem: str) -> list[str]:
    """Return one sentence with the line numbers of a problem, or none."""
    lines = (np.flatnonzero(is_invalid) + 2).tolist()
    if not lines:
        return []
    return [f"{problem}: line {first_of(lines, MAX_LINES_LISTED)}"]


def raise_problems(source_name: str, problems: Iterable[str]) -> NoReturn:
    """Raise `DataError` with one line per problem."""
    problem_lines = "\n".join("  " + problem for problem in problems)
    raise DataError(
        f"{source_name}: cannot be evaluated:\n{problem_lines}",
        outcome="nothing was written",
        remedy="correct these lines",
    )


def probabilities_of(frame: pd.DataFrame, classes: Sequence[str]) -> NDArray[np.float64]:
    """Return the probability columns by name, (N, K)."""
    return frame[[PROBABILITY_PREFIX + name for name in classes]].to_numpy(dtype=np.float64)


def class_indices(column: "pd.Series[Any]", classes: Sequence[str]) -> NDArray[np.int64]:
    """Return each name's index in `classes`, -1 for a name that is not there."""
    return pd.Index(list(classes)).get_indexer(pd.Index(column)).astype(np.int64)


def write_predictions(path: Path, classes: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write predictions.csv: image_id, path, label, split, fold, seed, predicted, then a column per class.

    Raises `UntrustedError` for a probability that is not finite; the file is then as it was.
    """
    write_rows(path, prediction_columns(classes), map(_finite_row, rows))


def _finite_row(row: Sequence[object]) -> Sequence[object]:
    if not all(math.isfinite(float(str(p))) for p in row[len(PREDICTION_COLUMNS) :]):
        raise UntrustedError(
            f"{row[0]}: its probabilities are not finite numbers (nan or inf)",
            outcome="every file there is either the old one or the complete new one",
            remedy="the model is broken: train it again, or copy it anew",
        )
    return row


_RULE_COLUMN = "rule"


def write_rule_predictions(path: Path, classes: Sequence[str], rules: Mapping[str, pd.DataFrame]) -> None:
    """Write the predictions of each rule, name -> table with the columns of predictions.csv, as one table."""
    columns = prediction_columns(classes)
    rows = (
        (name, *row) for name, frame in rules.items() for row in frame[columns].itertuples(index=False, name=None)
    )
    write_rows(path, (_RULE_COLUMN, *columns), rows)


def read_rule_predictions(path: Path, classes: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Read `write_rule_predictions`' table: rule -> checked predictions, rules that this version does not know too.

    Raises `DataError` for a broken table; the line numbers in its message are within the rule's rows.
    """
    try:
        with open_regular(path) as stream:
            frame = pd.read_csv(stream, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read as a table: {error}", remedy="restore the file, or train again"
        ) from error
    if _RULE_COLUMN not in frame:
        raise DataError(f"{path}: has no column {_RULE_COLUMN}", remedy="restore the file, or train again")
    return {
        str(name): check_predictions(
            rows.drop(columns=_RULE_COLUMN).reset_index(drop=True), classes, source_name=f"{path}, rule {name}"
        )
        for name, rows in frame.groupby(_RULE_COLUMN, sort=False)
    }


def write_groups(
    path: Path, all_ids: "pd.Series[str]", group_numbers: NDArray[np.int64], image_ids: "pd.Series[str]"
) -> None:
    """Write groups.csv: the resampling unit of each image (lesion, patient, copies), for intervals by group.

    group_numbers: (N,), of `all_ids`; rows are written for `image_ids`.
    """
    group_of_image = dict(zip(all_ids, group_numbers.tolist(), strict=True))
    write_rows(path, ("image_id", "group"), [(image_id, group_of_image[image_id]) for image_id in image_ids])


def write_attributes(path: Path, manifest: pd.DataFrame, image_ids: "pd.Series[str]") -> None:
    """Write attributes.csv: age, sex, body site, skin type and pixel hash of each scored image, "" = unknown."""
    columns = [*ATTRIBUTES, PIXEL_HASH]
    rows = manifest.set_index("image_id").loc[list(dict.fromkeys(image_ids)), columns]
    write_rows(path, ("image_id", *columns), rows.reset_index().to_numpy(dtype=object).tolist())


def net_labels(rows: pd.DataFrame) -> "pd.Series[str]":
    """Return the net that scored each row: its fold and seed."""
    return rows["fold"].astype(str) + "/" + rows["seed"].astype(str)


def net_text(label: str) -> str:
    """Return a label of `net_labels` for people: "fold 2, seed 0"."""
    fold, _, seed = label.rpartition("/")
    return ", ".join(f"{name} {value}" for name, value in (("fold", fold), ("seed", seed)) if value)


def to_scored_set(
    rows: pd.DataFrame, classes: Sequence[LesionClass], groups: Mapping[str, int] | None
) -> ScoredSet:
    """Return one split's rows as arrays, sorted by image, so that no metric depends on the order of rows.

    Rows that differ in fold or seed were scored by different nets.
    """
    rows = rows.sort_values(["image_id", "fold", "seed"], kind="stable")
    image_ids, class_names = rows["image_id"], [lesion_class.name for lesion_class in classes]
    group_labels = image_ids if groups is None else image_ids.map(groups)
    if group_labels.isna().any():
        ungrouped_ids = image_ids[group_labels.isna()].tolist()
        raise_problems(
            "groups", [f"{len(ungrouped_ids)} images have no group: {', '.join(ungrouped_ids[:MAX_LINES_LISTED])}"]
        )
    nets = net_labels(rows)
    return ScoredSet(
        classes=class_names,
        malignant_classes=np.array([lesion_class.malignancy == "malignant" for lesion_class in classes]),
        y_true=class_indices(rows["label"], class_names),
        y_pred=class_indices(rows["predicted"], class_names),
        probabilities=probabilities_of(rows, class_names),
        groups=pd.factorize(group_labels)[0].astype(np.int64),
        nets=pd.factorize(nets, sort=True)[0].astype(np.int64) if nets.nunique() > 1 else None,
    )
