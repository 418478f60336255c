"""The resampling units of predictions of other tools: the images that share a group, patient or lesion."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.data.groups import connect_rows, id_codes, unknown_ids_warnings
from dermkit.data.unknown import known_ids

FOREIGN_GROUP_COLUMNS = ("group", "patient_id", "lesion_id")
"""Columns of a table that say which images belong together; all are used, an unknown value joins nothing."""


def group_numbers(image_ids: "pd.Series[str]", ids: pd.DataFrame) -> NDArray[np.int64] | None:
    """Return (n,) group numbers of the rows of a table, None if no row has a known id.

    image_ids: (n,); rows of one image (folds, seeds) are one group. ids: those of `FOREIGN_GROUP_COLUMNS` in the table.
    A lesion id that occurs with several patients is unique only within a patient, so it joins no two patients.
    """
    columns = {name: known_ids(ids[name]) for name in ids.columns}
    if not any((column != "").any() for column in columns.values()):
        return None
    if {"patient_id", "lesion_id"} <= set(columns):
        columns["lesion_id"] = _lesions_within_patients(columns["lesion_id"], columns["patient_id"])
    no_pairs = np.empty(0, np.int64)
    image_codes = pd.factorize(image_ids)[0].astype(np.int64)
    return connect_rows(len(ids), no_pairs, no_pairs, image_codes, *map(id_codes, columns.values()))


def _lesions_within_patients(lesions: "pd.Series[str]", patients: "pd.Series[str]") -> "pd.Series[str]":
    pairs = pd.DataFrame({"lesion": lesions, "patient": patients})
    pairs = pairs[(pairs != "").all(axis=1)].drop_duplicates()
    repeated = pairs["lesion"][pairs["lesion"].duplicated()]
    return lesions.where(~lesions.isin(repeated), patients + "\0" + lesions)


def group_warnings(ids: pd.DataFrame) -> list[str]:
    """Return the warnings about a table's ids: known for some images only, or lesion ids shared by patients.

    Without any known id there is none here: the evaluation says so, because it finds no groups.
    """
    columns = pd.DataFrame({name: known_ids(ids[name]) for name in ids.columns})
    is_known = (columns != "").any(axis=1)
    if not is_known.any():
        return []
    warnings = unknown_ids_warnings(pd.DataFrame({"lesion_id": np.where(is_known, "known", "")}))
    if {"patient_id", "lesion_id"} <= set(columns):
        within_patients = _lesions_within_patients(columns["lesion_id"], columns["patient_id"])
        n_repeated = int(((within_patients != columns["lesion_id"]) & (columns["patient_id"] != "")).sum())
        text = "lesion ids that occur with several patients are taken as ids within a patient"
        warnings += [f"{text}: {n_repeated:,} rows"] if n_repeated else []
    return warnings
