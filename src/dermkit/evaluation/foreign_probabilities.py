"""Numbers of foreign tables: decimal commas, percent, logits and independent scores become probabilities."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.errors import DataError, UsageError
from dermkit.metrics.stats.arrays import Floats
from dermkit.runs.predictions import FOREIGN_SUM_TOLERANCE

SCALES = ("logits", "percent", "independent")
"""What numbers can be that are no probabilities with a sum of 1: `--probabilities`."""
MAX_BAD_FRACTION = 0.1
"""Fraction of rows above which numbers are of another scale; fewer are faults, and are named by their lines."""
MIN_ROUNDED_DECIMALS = 2
FULL_PRECISION = 12
_NOT_NUMBERS = frozenset({"", "nan", "inf", "-inf", "+inf", "infinity", "-infinity", "na", "n/a", "null", "none"})
"""What other tools write for a number that is not there, in lower case."""
_DECIMAL_COMMA = re.compile(r"[-+]?\d*,\d+(?:[eE][-+]?\d+)?")
_DECIMALS = re.compile(r"\.(\d+)")


class Numbers(NamedTuple):
    """A column as numbers, NaN where a cell is none; what its cells were written with."""

    values: Floats
    decimals: int
    has_comma: bool
    is_percent: bool
    is_numeric: bool


def check_scale(scale: str | None) -> None:
    """Raise `UsageError` for a scale that is not one of `SCALES`."""
    if scale is not None and scale not in SCALES:
        raise UsageError(
            f"--probabilities {scale}: is not one of {', '.join(SCALES)}",
            outcome="nothing was written",
            remedy="leave it out for probabilities between 0 and 1 with a sum of 1",
        )


def parse_numbers(column: "pd.Series[str]") -> Numbers:
    """Return a column as numbers. A column is numeric if every cell is a number, inf or absent, and one is a number."""
    texts = [text.strip() for text in column]
    is_percent = any(text.endswith("%") for text in texts)
    texts = [text.removesuffix("%").strip() for text in texts]
    has_comma = any(map(_DECIMAL_COMMA.fullmatch, texts)) and not any("." in text for text in texts)
    texts = [text.replace(",", ".") for text in texts] if has_comma else texts
    values = np.array([_to_float(text) for text in texts], dtype=np.float64)
    is_absent = np.array([text.lower() in _NOT_NUMBERS for text in texts], dtype=bool)
    is_number = np.isfinite(values)
    is_numeric = bool((is_number | is_absent | np.isinf(values)).all() and is_number.any())
    return Numbers(values, max(map(_n_decimals, texts), default=0), has_comma, is_percent, is_numeric)


def _to_float(text: str) -> float:
    try:
        return float(text) if "_" not in text else float("nan")
    except ValueError:
        return float("nan")


def _n_decimals(text: str) -> int:
    if "e" in text.lower():
        return FULL_PRECISION
    match = _DECIMALS.search(text)
    return len(match.group(1)) if match else 0


def to_probabilities(columns: Mapping[str, Numbers], scale: str | None, table: Path) -> tuple[Floats, list[str]]:
    """Return the columns as probabilities, (N, K), and what was assumed; a single column is the chance of one class.

    Rows that no scale explains stay as they are, to be refused by their lines. Raises `DataError` where the numbers are
    of another scale than the one named, with the option that reads them.
    """
    p = np.column_stack([numbers.values for numbers in columns.values()])
    decimals = max(numbers.decimals for numbers in columns.values())
    notes = ["Decimal commas were read as decimal points."] if any(n.has_comma for n in columns.values()) else []
    if scale is None and all(numbers.is_percent for numbers in columns.values()):
        scale = "percent"
    _check_named_scale(p, scale, table)
    if scale == "logits":
        return _softmax(p), [*notes, f"Numbers were read as logits: {_logit_text(p)}."]
    if scale == "percent":
        p, decimals = p / 100, decimals + 2
        notes.append("Numbers were read as percent and divided by 100.")
    if scale == "independent":
        return _divide_by_sum(p), [*notes, _independent_text(p)]
    rounded, rounding_notes = _divide_rounded(p, decimals)
    _check_is_probability(rounded, table)
    return rounded, [*notes, *rounding_notes]


def _logit_text(p: Floats) -> str:
    return "the logistic function of each" if p.shape[1] == 1 else "softmax over the columns of each row"


def _softmax(p: Floats) -> Floats:
    if p.shape[1] == 1:
        return np.exp(-np.logaddexp(0.0, -p))
    exponents = np.exp(p - p.max(axis=1, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=1, keepdims=True))


def _divide_by_sum(p: Floats) -> Floats:
    """Return each row divided by its sum; a row whose sum is 0 says nothing and becomes NaN, which is refused."""
    sums = p.sum(axis=1, keepdims=True)
    return p if p.shape[1] == 1 else np.asarray(p / np.where(sums > 0, sums, np.nan))


def _independent_text(p: Floats) -> str:
    sums = p.sum(axis=1)
    return (
        f"Numbers were read as independent scores: each row was divided by its sum ({sums.min():.3g} to "
        f"{sums.max():.3g}), so calibration and thresholds are those of the divided values."
    )


def _sum_tolerance(n_columns: int, decimals: int) -> float:
    """Return by how much a row's sum may differ from 1: half of the last decimal place for each number."""
    is_rounded = MIN_ROUNDED_DECIMALS <= decimals < FULL_PRECISION
    return max(FOREIGN_SUM_TOLERANCE, n_columns * 0.5 * 10.0**-decimals * (1 + 1e-9)) if is_rounded else (
        FOREIGN_SUM_TOLERANCE
    )  # fmt: skip


def _divide_rounded(p: Floats, decimals: int) -> tuple[Floats, list[str]]:
    """Divide rows by their sum where rounding alone explains the difference from 1, and tell of the larger ones."""
    if p.shape[1] == 1:
        return p, []
    sums = p.sum(axis=1)
    is_proper = np.isfinite(sums) & (p.min(axis=1) >= 0)
    is_rounded = (
        is_proper & (np.abs(sums - 1) <= _sum_tolerance(p.shape[1], decimals)) & (np.abs(sums - 1) > 1e-12)
    )
    n_coarse = int((is_rounded & (np.abs(sums - 1) > FOREIGN_SUM_TOLERANCE)).sum())
    p = np.where(is_rounded[:, None], p / np.where(is_rounded, sums, 1.0)[:, None], p)
    if not n_coarse:
        return p, []
    return p, [
        f"{n_coarse} of {len(p)} rows were rounded to {decimals} decimals, and were divided by their sum "
        f"({sums[is_rounded].min():.4g} to {sums[is_rounded].max():.4g})."
    ]


def _check_named_scale(p: Floats, scale: str | None, table: Path) -> None:
    """Raise `DataError` where the numbers cannot be, or need not be, of the scale that was named."""
    finite = p[np.isfinite(p).all(axis=1)]
    is_unit = bool(len(finite) and finite.min() >= 0 and finite.max() <= 1)
    sums_to_one = is_unit and p.shape[1] > 1 and bool((np.abs(finite.sum(axis=1) - 1) <= 0.01).all())
    problem = ""
    if scale == "logits" and sums_to_one:
        problem = "its numbers are probabilities already (0 to 1, each row sums to 1), not logits"
    elif scale == "percent" and len(finite) and (finite.min() < 0 or finite.max() > 100 or is_unit):
        problem = f"its numbers ({finite.min():.3g} to {finite.max():.3g}) are not percent"
    elif scale == "independent" and len(finite) and not is_unit:
        problem = (
            f"independent scores lie between 0 and 1; these lie between {finite.min():.3g} and {finite.max():.3g}"
        )
    if problem:
        raise table_error(table, problem, "leave out --probabilities, or name the scale that the numbers have")


def _check_is_probability(p: Floats, table: Path) -> None:
    """Raise `DataError` with the option that reads them where many rows are no probabilities."""
    finite = p[np.isfinite(p).all(axis=1)]
    if not len(finite):
        return
    is_outside = (finite.min(axis=1) < 0) | (finite.max(axis=1) > 1)
    if is_outside.mean() > MAX_BAD_FRACTION:
        raise table_error(table, *_outside_problem(finite, is_outside))
    is_off = ~is_outside & (np.abs(finite.sum(axis=1) - 1) > FOREIGN_SUM_TOLERANCE)
    if p.shape[1] > 1 and is_off.mean() > MAX_BAD_FRACTION:
        sums = finite.sum(axis=1)
        raise table_error(
            table,
            f"{int(is_off.sum())} of {len(p)} rows do not sum to 1 (but to {sums.min():.3g} to {sums.max():.3g})",
            "add --probabilities independent if each column is a score of its own (sigmoid): rows are divided by their "
            "sum; if a class has no column, add it",
        )


def _outside_problem(finite: Floats, is_outside: NDArray[np.bool_]) -> tuple[str, str]:
    problem = f"{int(is_outside.sum())} of {len(finite)} rows have numbers outside 0 to 1"
    sums_to_hundred = finite.shape[1] > 1 and (np.abs(finite.sum(axis=1) - 100) <= 1).mean() > 1 - MAX_BAD_FRACTION
    if sums_to_hundred:
        return f"{problem}; the rows sum to 100", "add --probabilities percent"
    if finite.shape[1] == 1 and finite.min() >= 0 and finite.max() <= 100:
        return problem, "add --probabilities percent or --probabilities logits, whichever they are"
    return problem, "add --probabilities logits if they are logits (softmax is applied), or percent"


def table_error(
    file: Path, problem: str, remedy: str = "docs/metrics.md says which columns are read"
) -> DataError:
    """Return the error about a table that cannot be read as predictions; `remedy` names what helps."""
    return DataError(f"{file}: {problem}", outcome="nothing was written", remedy=remedy)
