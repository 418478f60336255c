"""Columns of lesion and patient ids that are called otherwise, such as `lesion` and `Patient ID`."""

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import pandas as pd

from dermkit.data.importers.csv_tables import TextTable, find_first_column
from dermkit.data.unknown import known_ids

ID_COLUMN_NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "lesion_id": ("lesion_id", "lesion", "lesionid", "lesion id", "lesion-id", "lesion_no", "lesion_number"),
        "patient_id": (
            "patient_id", "patient", "patientid", "patient id", "patient-id", "patient_no", "patient_number",
            "subject_id", "subject", "subjectid", "subject id",
        ),
    }
)  # fmt: skip
"""Target -> the names of its column, the target itself first."""
_MIN_DISTINCT = 0.1
"""A column of another name holds ids if it has so many different values per row: `lesion` may be a diagnosis or yes."""


class IdColumns(NamedTuple):
    """Columns that are called like ids: target -> the column that holds them, and target -> one that holds none."""

    ids: Mapping[str, str]
    others: Mapping[str, str]

    def texts(self, cure: str) -> list[str]:
        """Return a sentence per column that was read as ids, or was not though its name says so.

        cure: what to do about the latter, with {target} and {column}.
        """
        texts = [f"The column {column} was read as the {target}." for target, column in self.ids.items()]
        for target, column in self.others.items():
            text = (
                f"The column {column} was not read as the {target}: it has too few different values, or fractions."
            )
            texts.append(f"{text} {cure.format(target=target, column=column)}".rstrip())
        return texts


def find_id_columns(
    table: TextTable, used_columns: Sequence[str] = (), known_targets: Collection[str] = ()
) -> IdColumns:
    """Return the columns of ids that are called otherwise.

    known_targets, targets that the table has under their own names, and columns in use are left alone.
    """
    free_columns = [name for name in table.columns if name not in used_columns]
    id_columns: dict[str, str] = {}
    other_columns: dict[str, str] = {}
    for target, names in ID_COLUMN_NAMES.items():
        column = find_first_column(free_columns, names[1:])
        if column is None or target in known_targets or find_first_column(table.columns, names[:1]):
            continue
        (id_columns if _are_ids(table.frame[column]) else other_columns)[target] = column
    return IdColumns(id_columns, other_columns)


def _are_ids(cells: "pd.Series[str]") -> bool:
    ids = known_ids(cells)
    known = ids[ids != ""]
    if known.nunique() < max(2, _MIN_DISTINCT * len(known)):
        return False
    numbers = pd.to_numeric(known, errors="coerce")
    return not bool((numbers.notna() & (numbers % 1 != 0)).any())
