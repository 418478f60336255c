"""The input and output of a check, and its card, read from its docstring."""

import ast
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.data.manifest import Dataset

PlannedUse = Literal["research", "commercial", "redistribution"]
"""The planned use of the data."""

IMAGE_PAIR_COLUMNS = ("image_a", "image_b", "label_a", "label_b", "split_a", "split_b", "distance", "kind")
"""The columns of a CSV of pairs. kind: `exact`, or how the second image differs from the first."""

IMAGE_COLUMNS = ("image_id", "path", "label", "split")
"""The first columns of a CSV of images; a check may add measures after them."""


class Severity(StrEnum):
    """error: a published figure is wrong. warning: it may be. note: it says less than it seems to."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, kw_only=True, eq=False)
class AuditInput:
    """The input of the checks; tables have one row per image of the manifest, index 0 .. N-1.

    frame: the manifest's columns and `split` ("" = in no split, else train, validation, test or "fold 0" ...).
    measures: numbers and short texts per image, NaN or "" where unknown (`MEASURE_COLUMNS`). pairs: duplicates found
    in the pixels, row numbers `a` < `b`, `distance` (0 = the same pixels .. 1), `kind`. group_ids: (N,) resampling
    group of each image: components of lesion, patient, copy group and duplicate pairs.
    """

    dataset: Dataset
    frame: pd.DataFrame
    measures: pd.DataFrame
    pairs: pd.DataFrame
    group_ids: NDArray[np.int64]
    use: PlannedUse = "research"

    @property
    def has_split(self) -> bool:
        """Whether any image is in a split."""
        return bool((self.frame["split"] != "").any())


@dataclass(frozen=True, kw_only=True, eq=False)
class Finding:
    """The finding of one check.

    n: images affected. sentence: the finding, every number with its n and interval. rows: the CSV, worst first. kind:
    what a row of it is. figures: the numbers, as JSON values. per_class: images affected per class.
    """

    severity: Severity
    n: int
    sentence: str
    rows: pd.DataFrame
    kind: Literal["images", "pairs", "table"] = "images"
    per_class: Mapping[str, int] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NotApplicable:
    """Why a check is not applicable."""

    reason: str


Outcome = Finding | NotApplicable | None
"""None: the check passed."""

CheckFunction = Callable[[AuditInput], Outcome]


@dataclass(frozen=True)
class CheckCard:
    """The description of a check. code: `DA012`. threshold, severity, effect: from its docstring."""

    code: str
    title: str
    threshold: str
    severity: str
    effect: str


def read_check_card(check: Callable[..., Outcome]) -> CheckCard:
    """Read a check's card from its name (such as da012_exact_copies_across) and its docstring.

    The docstring is a title of one line, then paragraphs that start with `Threshold:`, `Severity:` and `Effect:`.
    """
    text = inspect.getdoc(check) or _docstring_in_source(check)
    paragraphs = {
        name.lower(): " ".join(paragraph.split())
        for name, paragraph in re.findall(
            r"^(Threshold|Severity|Effect): (.+?)(?=\n\s*\n|\Z|\n[A-Z]\w+: )", text, re.S | re.M
        )
    }
    code = check.__name__.partition("_")[0].upper()
    return CheckCard(
        code,
        text.partition("\n")[0].rstrip("."),
        paragraphs["threshold"],
        paragraphs["severity"],
        paragraphs["effect"],
    )


def _docstring_in_source(check: Callable[..., Outcome]) -> str:
    """Return a function's docstring as its file has it: `python -OO` leaves none on the function itself."""
    (function,) = ast.parse(inspect.getsource(check)).body
    return ast.get_docstring(cast(ast.FunctionDef, function)) or ""


def image_table(
    audit_input: AuditInput, rows: NDArray[np.int64] | NDArray[np.bool_], **extra_columns: Any
) -> pd.DataFrame:
    """Return the CSV of the images `rows` (numbers or flags): `IMAGE_COLUMNS`, then the columns given."""
    table = audit_input.frame.loc[rows, list(IMAGE_COLUMNS)].reset_index(drop=True)
    for name, values in extra_columns.items():
        table[name] = values
    return table


def pair_table(audit_input: AuditInput, pairs: pd.DataFrame) -> pd.DataFrame:
    """Return the CSV of pairs within a data set: `IMAGE_PAIR_COLUMNS`, the nearest first."""
    sorted_pairs = pairs.sort_values(["distance", "a", "b"], kind="stable")
    return image_pair_table(sorted_pairs, audit_input.frame, audit_input.frame)


def image_pair_table(pairs: pd.DataFrame, first_frame: pd.DataFrame, second_frame: pd.DataFrame) -> pd.DataFrame:
    """Return `IMAGE_PAIR_COLUMNS` of pairs, in their order: row `a` of the first table with row `b` of the second."""
    columns = {
        f"{name}_{suffix}": frame[source].to_numpy()[pairs[suffix].to_numpy(dtype=np.int64)]
        for name, source in (("image", "image_id"), ("label", "label"), ("split", "split"))
        for suffix, frame in (("a", first_frame), ("b", second_frame))
    }
    columns |= {"distance": pairs["distance"].to_numpy(), "kind": pairs["kind"].to_numpy()}
    return pd.DataFrame(columns)[list(IMAGE_PAIR_COLUMNS)]


def images_per_class(audit_input: AuditInput, rows: NDArray[np.int64] | NDArray[np.bool_]) -> dict[str, int]:
    """Return the number of the images `rows` per class, without classes that have none."""
    counts = audit_input.frame.loc[rows, "label"].value_counts()
    return {name: int(counts[name]) for name in audit_input.dataset.class_names if counts.get(name, 0)}


AUDIT_ALPHA = 0.05
"""Family-wise error rate: probability of any false warning by the statistical checks on a data set without faults."""

TESTS_PER_CLASS = 13
"""Statistical tests of one class against the rest: file size, dimensions, JPEG tables, border, colour, source, two of
metadata, artefact scores jointly, and the presence of four artefacts one by one."""


def alpha_per_test(n_classes: int) -> float:
    """Return the significance level of one test of one of `n_classes` classes (Bonferroni)."""
    return AUDIT_ALPHA / TESTS_PER_CLASS / max(n_classes, 1)
