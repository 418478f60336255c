"""LN003, LN006 to LN014: a table of predictions, one's own or brought from elsewhere."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.lint.column_order import Order, find_order
from dermkit.lint.rules import Lint, same_images
from dermkit.metrics.stats.intervals import wilson

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PREFIX = "p_"
SUMS = 1e-3
"""Off 1 by more than rounding to four digits can bring about in nine classes."""
REPEATS = 0.05
"""Share of rows that repeat within a side, above which equal rows are chance, rounding or saturation."""
SURE = 1e-6
TOO_GOOD, ENOUGH, LIKE_HAM = 0.92, 50, 5
CONSTANT_ROWS = 10

HAM_DIAGNOSES = frozenset(
    {
        "melanoma", "nevus", "basal cell carcinoma", "actinic keratosis", "pigmented benign keratosis",
        "dermatofibroma", "vascular lesion",
    }
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Table:
    """Predictions with probabilities as numbers (NaN where they are none) and labels as class numbers (-1 unknown)."""

    frame: pd.DataFrame
    classes: Sequence[str]
    p: Floats
    labels: Ints

    @property
    def looked_at(self) -> Ints:
        """The rows whose figures are judged: of the test side, of all where there is none."""
        test = (
            (self.frame["split"] == "test").to_numpy()
            if "split" in self.frame
            else np.zeros(len(self.frame), bool)
        )
        return np.flatnonzero(test) if test.any() else np.arange(len(self.frame))


def lint_predictions(
    frame: pd.DataFrame,
    classes: Sequence[str],
    *,
    diagnoses: Mapping[str, str] | None = None,
    sides: pd.DataFrame | None = None,
    labels: Mapping[str, str] | None = None,
    audited: bool = False,
) -> list[Lint]:
    """Return what the rules find in a table of predictions, which need not be valid.

    frame: image_id, label, `p_<class>` for each class, and, where known, split, fold, seed, predicted; text or
    numbers. classes: in the order of the model's outputs. diagnoses: class -> canonical diagnosis. sides: image_id
    and split of the split that was to be predicted. labels: image_id -> label of the data set. audited: an audit of
    the data found no leak.
    """
    absent = [PREFIX + name for name in classes if PREFIX + name not in frame]
    if absent:
        return [Lint("LN007", "error", f"There is no column {', '.join(absent)}.", len(frame))]
    p = np.column_stack([pd.to_numeric(frame[PREFIX + name], errors="coerce") for name in classes]).astype(
        np.float64
    )
    table = _Table(frame, list(classes), p, pd.Index(list(classes)).get_indexer(pd.Index(frame["label"])))
    found: list[Lint | None] = [_ln003(table), _ln007(table), _ln008(table), _ln014(table, labels)]
    found += [_ln009(table, sides), _ln012(table)]
    if not np.isnan(p).any() and len(frame):
        found += [_ln006(table), _ln010(table, diagnoses or {}, audited), _ln011(table), _ln013(table)]
    return [item for item in found if item is not None]


def _ln003(table: _Table) -> Lint | None:
    frame = table.frame
    if "split" not in frame:
        return None
    test, validation = frame[frame["split"] == "test"], frame[frame["split"] == "validation"]
    if test.empty or validation.empty:
        return None
    # With folds, an image is a test image in one of them and a validation image in another.
    run = [name for name in ("fold", "seed") if name in frame]
    keys = ["image_id", *run]
    shared = pd.MultiIndex.from_frame(test[keys].astype(str)).isin(
        pd.MultiIndex.from_frame(validation[keys].astype(str))
    )
    if shared.any():
        return same_images(int(shared.sum()), len(test))
    twins, unique = _twins(table.p, frame["split"].to_numpy())
    repeats = 1 - unique / len(validation)
    if unique < CONSTANT_ROWS or 2 * twins <= len(validation) or repeats > REPEATS or _coarse(table.p, len(test)):
        return None
    return Lint(
        "LN003",
        "error",
        f"{twins:,} of {len(validation):,} validation rows have the very probabilities of a test row: the two sides "
        "are the same images under other names.",
        twins,
    )


def _digits(p: Floats) -> int:
    """Return the decimal places that a table was rounded to; 12 = not rounded."""
    known = p[np.isfinite(p)]
    return next((d for d in range(1, 12) if np.abs(known - np.round(known, d)).max(initial=0) < 1e-12), 12)


def _coarse(p: Floats, n: int) -> bool:
    """Say whether so few different rows are possible at the table's decimal places that twins come by chance."""
    return bool(_digits(p) * (p.shape[1] - 1) < np.log10(20 * max(n, 1)))


def _twins(p: Floats, sides: NDArray[Any]) -> tuple[int, int]:
    """Count validation rows whose probabilities stand in the test rows too, and those that could.

    Rows that repeat within their own side are saturated or constant, and prove nothing.
    """
    rows = [tuple(row) for row in np.round(p, 12).tolist()]
    ours = Counter(row for row, side in zip(rows, sides, strict=True) if side == "validation")
    theirs = {row for row, side in zip(rows, sides, strict=True) if side == "test"}
    unique = {row for row, n in ours.items() if n == 1}
    return len(unique & theirs), len(unique)


def _ln006(table: _Table) -> Lint | None:
    rows = table.looked_at
    rows = rows[np.argsort(table.frame["image_id"].iloc[rows].to_numpy(dtype=str), kind="stable")]
    known = rows[table.labels[rows] >= 0]
    order = find_order(table.p[known], table.labels[known], table.classes)
    if order is None:
        return None
    moved = sum(item != column for item, column in enumerate(order.columns))
    sure = bool(order.name) or 2 * moved >= len(order.columns)
    return Lint("LN006", "error" if sure else "warning", _order_sentence(order, table.classes), len(rows))


def _order_sentence(order: Order, classes: Sequence[str]) -> str:
    moved = [
        f"p_{classes[column]} ranks {classes[item]}" for item, column in enumerate(order.columns) if item != column
    ]
    more = f" and {len(moved) - 3} more" if len(moved) > 3 else ""
    guess = f" This is the {order.name} order of the classes." if order.name else ""
    return (
        f"Probability columns seem to be in another order than the classes: {'; '.join(moved[:3])}{more} (mean AUROC "
        f"{order.found:.2f}, by their own names {order.own:.2f}).{guess}"
    )


def _ln007(table: _Table) -> Lint | None:
    p = table.p
    missing, outside = np.isnan(p).any(axis=1), ((p < 0) | (p > 1)).any(axis=1)
    # Each value may be off by half of its last decimal place.
    off = np.abs(p.sum(axis=1) - 1) > max(SUMS, p.shape[1] * 0.5 * 10.0 ** -_digits(p))
    wrong = missing | outside | off
    n = int(wrong.sum())
    if not n:
        return None
    if missing.any():
        what = "values that are no numbers"
    elif outside.any():
        hundred = np.abs(p.sum(axis=1) - 100) < 100 * SUMS
        what = (
            "percentages" if hundred.mean() > 0.9 and (p >= 0).all() else "values outside 0 to 1, as logits have"
        )
    else:
        what = f"sums from {p.sum(axis=1).min():.3g} to {p.sum(axis=1).max():.3g}, as one-against-rest scores have"
    return Lint("LN007", "error", f"{n:,} of {len(p):,} rows are no probabilities: {what}.", n)


def _ln008(table: _Table) -> Lint | None:
    keys = [name for name in ("image_id", "split", "fold", "seed") if name in table.frame]
    again = table.frame.duplicated(keys)
    n = int(again.sum())
    if not n:
        return None
    example = table.frame.loc[again, "image_id"].iloc[0]
    return Lint("LN008", "error", f"{n:,} rows repeat an image that was predicted before (such as {example}).", n)


def _ln009(table: _Table, sides: pd.DataFrame | None) -> Lint | None:
    if sides is None or "split" not in table.frame:
        return None
    wanted = sides[sides["split"].isin(table.frame["split"].unique())]
    should = set(zip(wanted["image_id"], wanted["split"], strict=True))
    given = set(zip(table.frame["image_id"], table.frame["split"], strict=True))
    extra, missing = given - should, should - given
    if not extra and not missing:
        return None
    parts = [f"{len(extra):,} predictions are of images that are not on that side" if extra else ""]
    parts += [f"{len(missing):,} of {len(should):,} images have no prediction" if missing else ""]
    example = min(extra or missing)[0]
    text = " and ".join(part for part in parts if part)
    return Lint("LN009", "error", f"{text[0].upper()}{text[1:]} (such as {example}).", len(extra) + len(missing))


def _ln010(table: _Table, diagnoses: Mapping[str, str], audited: bool) -> Lint | None:
    rows = table.looked_at
    rows = rows[table.labels[rows] >= 0]
    alike = {diagnoses.get(name, "") for name in table.classes} & HAM_DIAGNOSES
    if len(rows) < ENOUGH or len(alike) < LIKE_HAM:
        return None
    labels = table.labels[rows]
    hit = table.p[rows].argmax(axis=1) == labels
    balanced = float(np.mean([hit[labels == item].mean() for item in np.unique(labels)]))
    if max(balanced, float(hit.mean())) <= TOO_GOOD:
        return None
    low, high = wilson(int(hit.sum()), len(hit))
    known = " An audit found no leak." if audited else ""
    return Lint(
        "LN010",
        "note" if audited else "warning",
        f"Accuracy is {hit.mean():.3f} (95 % interval {low:.3f} to {high:.3f}, n {len(hit):,}), balanced accuracy "
        f"{balanced:.3f}, on diagnoses where .70 to .80 is the honest range of a split by lesion.{known}",
        len(hit),
    )


def _ln011(table: _Table) -> Lint | None:
    p = table.p[table.looked_at]
    sure = p.max(axis=1) >= 1 - SURE
    n = int(sure.sum())
    # Values above 1 are no saturation but no probabilities at all.
    if 2 * n <= len(p) or (p > 1 + SUMS).any():
        return None
    hard = bool((np.minimum(np.abs(p), np.abs(p - 1)) <= SURE).all())
    what = (
        "All values are 0 or 1: decisions, not probabilities"
        if hard
        else f"{n:,} of {len(p):,} rows give one class 1"
    )
    return Lint("LN011", "warning" if hard else "note", f"{what}.", n)


def _ln012(table: _Table) -> Lint | None:
    if "predicted" not in table.frame or np.isnan(table.p).any():
        return None
    predicted = pd.Index(table.classes).get_indexer(pd.Index(table.frame["predicted"]))
    of_predicted = table.p[np.arange(len(table.p)), predicted]
    wrong = (predicted < 0) | (of_predicted < table.p.max(axis=1))
    n = int(wrong.sum())
    return (
        Lint("LN012", "error", f"In {n:,} of {len(wrong):,} rows another class is more probable.", n)
        if n
        else None
    )


def _ln013(table: _Table) -> Lint | None:
    p = table.p[table.looked_at]
    if len(p) < CONSTANT_ROWS or np.ptp(p, axis=0).max() > SURE:
        return None
    answer = table.classes[int(p[0].argmax())]
    return Lint("LN013", "error", f"All {len(p):,} images get the same probabilities ({answer} first).", len(p))


def _ln014(table: _Table, labels: Mapping[str, str] | None) -> Lint | None:
    if labels is None:
        return None
    wrong = list(_other_labels(table.frame, labels))
    if not wrong:
        return None
    image_id, here, there = wrong[0]
    return Lint(
        "LN014", "error",
        f"{len(wrong):,} labels are not those of the data set (such as {image_id}: {here} here, {there} there).",
        len(wrong),
    )  # fmt: skip


def _other_labels(frame: pd.DataFrame, labels: Mapping[str, str]) -> Iterator[tuple[Any, Any, str]]:
    for image_id, label in zip(frame["image_id"], frame["label"], strict=True):
        if labels.get(image_id, label) != label:
            yield image_id, label, labels[image_id]
