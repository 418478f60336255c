"""LN003, LN006 to LN014: a table of predictions, of a run or of another tool."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.errors import first_of
from dermkit.lint.column_order import ColumnOrder, find_column_order
from dermkit.lint.rules import LintFinding, shared_images_finding
from dermkit.metrics.classification.confusion import accuracy, balanced_accuracy_present, confusion_matrix
from dermkit.metrics.stats.arrays import Floats, Ints
from dermkit.metrics.stats.intervals import wilson_interval

_PREFIX = "p_"
_SUM_TOLERANCE = 1e-3
"""Tolerance of a row sum: more than rounding nine probabilities to four digits can cause."""
MAX_REPEAT_FRACTION = 0.05
"""Fraction of rows that repeat within a split above which equal rows are chance, rounding or saturation."""
CERTAINTY_TOLERANCE = 1e-6
SUSPICIOUS_ACCURACY, MIN_TEST_IMAGES, MIN_HAM_DIAGNOSES = 0.92, 50, 5
MIN_CONSTANT_ROWS = 10

HAM_DIAGNOSES = frozenset(
    {
        "melanoma", "nevus", "basal cell carcinoma", "actinic keratosis", "pigmented benign keratosis",
        "dermatofibroma", "vascular lesion",
    }
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class _PredictionTable:
    """Predictions. p: (N, K) probabilities, NaN where a cell is no number. labels: (N,) class indices, -1 = unknown."""

    frame: pd.DataFrame
    classes: Sequence[str]
    p: Floats
    labels: Ints

    @property
    def evaluated_rows(self) -> Ints:
        """The test rows, or all rows if there are none."""
        is_test = (
            (self.frame["split"] == "test").to_numpy()
            if "split" in self.frame
            else np.zeros(len(self.frame), bool)
        )
        return np.flatnonzero(is_test) if is_test.any() else np.arange(len(self.frame))


def lint_predictions(
    frame: pd.DataFrame,
    classes: Sequence[str],
    *,
    diagnoses: Mapping[str, str] | None = None,
    split_frame: pd.DataFrame | None = None,
    labels: Mapping[str, str] | None = None,
    is_audited: bool = False,
) -> list[LintFinding]:
    """Return the findings of the rules on a table of predictions, which need not be valid.

    frame: image_id, label, `p_<class>` for each class, and, where known, split, fold, seed, predicted; text or
    numbers. classes: in the order of the model's outputs. diagnoses: class -> canonical diagnosis. split_frame:
    image_id and split of the split that was to be predicted. labels: image_id -> label of the data set. is_audited:
    an audit of the data found no leak.
    """
    missing_columns = [_PREFIX + name for name in classes if _PREFIX + name not in frame]
    if missing_columns:
        return [LintFinding("LN007", "error", f"There is no column {', '.join(missing_columns)}.", len(frame))]
    p = np.column_stack([pd.to_numeric(frame[_PREFIX + name], errors="coerce") for name in classes]).astype(
        np.float64
    )
    table = _PredictionTable(
        frame, list(classes), p, pd.Index(list(classes)).get_indexer(pd.Index(frame["label"]))
    )
    findings: list[LintFinding | None] = [_ln003(table), _ln007(table), _ln008(table), _ln014(table, labels)]
    findings += [_ln009(table, split_frame), _ln012(table)]
    if not np.isnan(p).any() and len(frame):
        findings += [_ln006(table), _ln010(table, diagnoses or {}, is_audited), _ln011(table), _ln013(table)]
    return [finding for finding in findings if finding is not None]


def _ln003(table: _PredictionTable) -> LintFinding | None:
    frame = table.frame
    if "split" not in frame:
        return None
    test, validation = frame[frame["split"] == "test"], frame[frame["split"] == "validation"]
    if test.empty or validation.empty:
        return None
    # With folds, an image is a test image in one of them and a validation image in another.
    run_columns = [name for name in ("fold", "seed") if name in frame]
    keys = ["image_id", *run_columns]
    is_shared = pd.MultiIndex.from_frame(test[keys].astype(str)).isin(
        pd.MultiIndex.from_frame(validation[keys].astype(str))
    )
    if is_shared.any():
        return shared_images_finding(int(is_shared.sum()), len(test))
    n_repeated, n_unique = _count_repeated_rows(table.p, frame["split"].to_numpy())
    repeat_fraction = 1 - n_unique / len(validation)
    if (
        n_unique < MIN_CONSTANT_ROWS
        or 2 * n_repeated <= len(validation)
        or repeat_fraction > MAX_REPEAT_FRACTION
        or _is_coarse(table.p, len(test))
    ):
        return None
    return LintFinding(
        "LN003",
        "error",
        f"{n_repeated:,} of {len(validation):,} validation rows have the very probabilities of a test "
        f"row: the two sides "
        "are the same images under other names.",
        n_repeated,
    )


def _decimal_places(p: Floats) -> int:
    """Return the decimal places that a table was rounded to; 12 = not rounded."""
    finite = p[np.isfinite(p)]
    return next((d for d in range(1, 12) if np.abs(finite - np.round(finite, d)).max(initial=0) < 1e-12), 12)


def _is_coarse(p: Floats, n: int) -> bool:
    """Return whether the table has so few decimal places that equal rows occur by chance."""
    return bool(_decimal_places(p) * (p.shape[1] - 1) < np.log10(20 * max(n, 1)))


def _count_repeated_rows(p: Floats, split_names: NDArray[Any]) -> tuple[int, int]:
    """Return how many unique validation rows have the probabilities of a test row, and how many are unique.

    Rows that repeat within their split are saturated or constant, and are no evidence.
    """
    rows = [tuple(row) for row in np.round(p, 12).tolist()]
    validation_counts = Counter(
        row for row, split_name in zip(rows, split_names, strict=True) if split_name == "validation"
    )
    test_rows = {row for row, split_name in zip(rows, split_names, strict=True) if split_name == "test"}
    unique_rows = {row for row, n in validation_counts.items() if n == 1}
    return len(unique_rows & test_rows), len(unique_rows)


def _ln006(table: _PredictionTable) -> LintFinding | None:
    rows = table.evaluated_rows
    rows = rows[np.argsort(table.frame["image_id"].iloc[rows].to_numpy(dtype=str), kind="stable")]
    labelled_rows = rows[table.labels[rows] >= 0]
    order = find_column_order(table.p[labelled_rows], table.labels[labelled_rows], table.classes)
    if order is None:
        return None
    n_moved = sum(class_code != column for class_code, column in enumerate(order.columns))
    is_error = bool(order.name) or 2 * n_moved >= len(order.columns)
    return LintFinding(
        "LN006", "error" if is_error else "warning", _order_sentence(order, table.classes), len(rows)
    )


def _order_sentence(order: ColumnOrder, classes: Sequence[str]) -> str:
    moved_texts = [
        f"p_{classes[column]} ranks {classes[class_code]}"
        for class_code, column in enumerate(order.columns)
        if class_code != column
    ]
    guess_text = f" This is the {order.name} order of the classes." if order.name else ""
    return (
        f"Probability columns seem to be in another order than the classes: "
        f"{first_of(moved_texts, 3, '; ')} (mean AUROC "
        f"{order.reordered_auroc:.2f}, by their own names {order.named_auroc:.2f}).{guess_text}"
    )


def _ln007(table: _PredictionTable) -> LintFinding | None:
    p = table.p
    is_missing, is_outside = np.isnan(p).any(axis=1), ((p < 0) | (p > 1)).any(axis=1)
    # Each value may be off by half of its last decimal place.
    sum_is_off = np.abs(p.sum(axis=1) - 1) > max(_SUM_TOLERANCE, p.shape[1] * 0.5 * 10.0 ** -_decimal_places(p))
    is_invalid = is_missing | is_outside | sum_is_off
    n = int(is_invalid.sum())
    if not n:
        return None
    if is_missing.any():
        problem = "values that are no numbers"
    elif is_outside.any():
        sums_to_hundred = np.abs(p.sum(axis=1) - 100) < 100 * _SUM_TOLERANCE
        problem = (
            "percentages"
            if sums_to_hundred.mean() > 0.9 and (p >= 0).all()
            else "values outside 0 to 1, as logits have"
        )
    else:
        problem = (
            f"sums from {p.sum(axis=1).min():.3g} to {p.sum(axis=1).max():.3g}, as one-against-rest scores have"
        )
    return LintFinding("LN007", "error", f"{n:,} of {len(p):,} rows are no probabilities: {problem}.", n)


def _ln008(table: _PredictionTable) -> LintFinding | None:
    keys = [name for name in ("image_id", "split", "fold", "seed") if name in table.frame]
    is_repeated = table.frame.duplicated(keys)
    n = int(is_repeated.sum())
    if not n:
        return None
    example = table.frame.loc[is_repeated, "image_id"].iloc[0]
    return LintFinding(
        "LN008", "error", f"{n:,} rows repeat an image that was predicted before (such as {example}).", n
    )


def _ln009(table: _PredictionTable, split_frame: pd.DataFrame | None) -> LintFinding | None:
    if split_frame is None or "split" not in table.frame:
        return None
    expected_rows = split_frame[split_frame["split"].isin(table.frame["split"].unique())]
    expected = set(zip(expected_rows["image_id"], expected_rows["split"], strict=True))
    predicted = set(zip(table.frame["image_id"], table.frame["split"], strict=True))
    unexpected, unpredicted = predicted - expected, expected - predicted
    if not unexpected and not unpredicted:
        return None
    clauses = [f"{len(unexpected):,} predictions are of images that are not on that side" if unexpected else ""]
    clauses += [f"{len(unpredicted):,} of {len(expected):,} images have no prediction" if unpredicted else ""]
    example = min(unexpected or unpredicted)[0]
    text = " and ".join(clause for clause in clauses if clause)
    return LintFinding(
        "LN009", "error", f"{text[0].upper()}{text[1:]} (such as {example}).", len(unexpected) + len(unpredicted)
    )


def _ln010(table: _PredictionTable, diagnoses: Mapping[str, str], is_audited: bool) -> LintFinding | None:
    rows = table.evaluated_rows
    rows = rows[table.labels[rows] >= 0]
    ham_diagnoses = {diagnoses.get(name, "") for name in table.classes} & HAM_DIAGNOSES
    if len(rows) < MIN_TEST_IMAGES or len(ham_diagnoses) < MIN_HAM_DIAGNOSES:
        return None
    labels = table.labels[rows]
    confusion = confusion_matrix(labels, table.p[rows].argmax(axis=1), len(table.classes))
    total_accuracy, mean_recall = float(accuracy(confusion)), balanced_accuracy_present(confusion)
    if max(mean_recall, total_accuracy) <= SUSPICIOUS_ACCURACY:
        return None
    low, high = wilson_interval(int(np.trace(confusion)), len(labels))
    audit_text = " An audit found no leak." if is_audited else ""
    return LintFinding(
        "LN010",
        "note" if is_audited else "warning",
        f"Accuracy is {total_accuracy:.3f} (95 % interval {low:.3f} to {high:.3f}, n "
        f"{len(labels):,}), mean recall over the classes present "
        f"{mean_recall:.3f}, on diagnoses where .70 to .80 is the honest range of a split by lesion.{audit_text}",
        len(labels),
    )


def _ln011(table: _PredictionTable) -> LintFinding | None:
    p = table.p[table.evaluated_rows]
    is_certain = p.max(axis=1) >= 1 - CERTAINTY_TOLERANCE
    n = int(is_certain.sum())
    # Values above 1 are no saturation but no probabilities at all.
    if 2 * n <= len(p) or (p > 1 + _SUM_TOLERANCE).any():
        return None
    is_hard = bool((np.minimum(np.abs(p), np.abs(p - 1)) <= CERTAINTY_TOLERANCE).all())
    description = (
        "All values are 0 or 1: decisions, not probabilities"
        if is_hard
        else f"{n:,} of {len(p):,} rows give one class 1"
    )
    return LintFinding("LN011", "warning" if is_hard else "note", f"{description}.", n)


def _ln012(table: _PredictionTable) -> LintFinding | None:
    if "predicted" not in table.frame or np.isnan(table.p).any():
        return None
    predicted_code = pd.Index(table.classes).get_indexer(pd.Index(table.frame["predicted"]))
    p_predicted = table.p[np.arange(len(table.p)), predicted_code]
    is_inconsistent = (predicted_code < 0) | (p_predicted < table.p.max(axis=1))
    n = int(is_inconsistent.sum())
    return (
        LintFinding(
            "LN012", "error", f"In {n:,} of {len(is_inconsistent):,} rows another class is more probable.", n
        )
        if n
        else None
    )


def _ln013(table: _PredictionTable) -> LintFinding | None:
    p = table.p[table.evaluated_rows]
    if len(p) < MIN_CONSTANT_ROWS or np.ptp(p, axis=0).max() > CERTAINTY_TOLERANCE:
        return None
    answer = table.classes[int(p[0].argmax())]
    return LintFinding(
        "LN013", "error", f"All {len(p):,} images get the same probabilities ({answer} first).", len(p)
    )


def _ln014(table: _PredictionTable, labels: Mapping[str, str] | None) -> LintFinding | None:
    if labels is None:
        return None
    mismatches = list(_label_mismatches(table.frame, labels))
    if not mismatches:
        return None
    image_id, table_label, dataset_label = mismatches[0]
    return LintFinding(
        "LN014",
        "error",
        f"{len(mismatches):,} labels are not those of the data set (such as {image_id}: {table_label} "
        f"here, {dataset_label} there).",
        len(mismatches),
    )


def _label_mismatches(frame: pd.DataFrame, labels: Mapping[str, str]) -> Iterator[tuple[Any, Any, str]]:
    for image_id, label in zip(frame["image_id"], frame["label"], strict=True):
        if labels.get(image_id, label) != label:
            yield image_id, label, labels[image_id]
