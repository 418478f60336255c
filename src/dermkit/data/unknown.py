"""What means "not known" in a table: one list for imports, manifests, predictions of other tools and groups.csv."""

from typing import Any

import numpy as np
import pandas as pd

UNKNOWN_SPELLINGS = frozenset(
    {
        "", "nan", "na", "n/a", "n.a.", "#n/a", "#na", "<na>", "nat", "none", "null", "nil", "unknown", "missing", "-",
        "--", ".", "?", "\N{EN DASH}", "\N{EM DASH}", "\\n", "not available", "not applicable", "not specified",
        "unspecified", "not known", "not recorded", "not reported", "undefined", "(blank)", "(null)", "(none)",
        "(unknown)",
    }
)  # fmt: skip
"""Spellings of an unknown value, in lower case."""

_UNKNOWN_IDS = frozenset({"-1", "-1.0", "-9", "-99", "-999", "unk", "no id", "no_id"})
"""Further ones that occur in columns of ids: the codes that tools give to what they do not know."""


def or_unknown(value: str) -> str:
    """Return a value, or "" if it is a spelling of "unknown"."""
    return "" if value.strip().casefold() in UNKNOWN_SPELLINGS else value


def known_id(value: str) -> str:
    """Return the id of a lesion, patient or group, or "" if it means that there is none."""
    return "" if value.strip().casefold() in _UNKNOWN_IDS else or_unknown(value)


def known_ids(values: "pd.Series[Any]") -> "pd.Series[str]":
    """Return a column of ids as text, with "" for every spelling of an unknown one, `None` and NaN."""
    codes, distinct_values = pd.factorize(values)  # None and NaN have the code -1, which is the last name
    names = np.array([*(known_id(str(value)) for value in distinct_values), ""], dtype=object)
    return pd.Series(names[codes], index=values.index, dtype="str")
