"""Groups: images that must stay together, as connected components of shared ids, pixels and pairs."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

_Ints = NDArray[np.int64]

GROUP_COLUMNS = ("lesion_id", "patient_id", "copy_group")
"""The ids that tie images into one group; an empty id ties nothing."""


def connect_rows(n: int, first: _Ints, second: _Ints, *keys: _Ints) -> _Ints:
    """Return a group number for each of n rows, shape (n,), numbered in the order of the rows.

    first, second: row numbers that are connected, pair by pair. keys: (n,) codes; rows with the same code are
    connected, and -1 connects to nothing.
    """
    # A graph whose nodes are the rows and, behind them, one node per code of each key.
    starts, targets, n_nodes = [first], [second], n
    for key in keys:
        known_rows = np.flatnonzero(key >= 0)
        starts.append(known_rows)
        targets.append(key[known_rows] + n_nodes)
        n_nodes += int(key.max(initial=-1)) + 1
    edges = np.concatenate(starts), np.concatenate(targets)
    graph = coo_array((np.ones(len(edges[0]), dtype=np.int8), edges), shape=(n_nodes, n_nodes))
    component = connected_components(graph, directed=False)[1][:n]
    return pd.factorize(component)[0].astype(np.int64)


def id_codes(values: "pd.Series[Any]") -> _Ints:
    """Return a code per text, equal texts alike; an empty text is unknown and gets -1."""
    is_known = (values != "").to_numpy()
    return np.where(is_known, pd.factorize(values)[0], -1).astype(np.int64)


def distinct_codes(values: "pd.Series[Any]") -> _Ints:
    """Return a code per value, equal values alike; an empty value is unknown and gets a code of its own."""
    codes = pd.factorize(values)[0].astype(np.int64)
    is_unknown = (values == "").to_numpy()
    return np.where(is_unknown, codes.max(initial=0) + 1 + np.arange(len(codes)), codes)


def id_groups(frame: pd.DataFrame) -> _Ints:
    """Return a group number per row: components over lesion, patient and copy group. A row without ids is alone."""
    return _connect_by_keys(frame, GROUP_COLUMNS)


def leakage_groups(manifest: pd.DataFrame) -> _Ints:
    """Return a group number per row: components over lesion, patient, copy group and identical pixels.

    All images of a group must be in one split; a group in two splits is a leak.
    """
    return _connect_by_keys(manifest, (*GROUP_COLUMNS, "pixel_sha256"))


def _connect_by_keys(frame: pd.DataFrame, columns: tuple[str, ...]) -> _Ints:
    no_pairs = np.empty(0, np.int64)
    return connect_rows(
        len(frame), no_pairs, no_pairs, *(id_codes(frame[column].astype(str)) for column in columns)
    )
