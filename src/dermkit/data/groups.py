"""Groups of images that must stay together in a split: connected components of shared ids, identical pixels and pairs.

Arrays have one entry per row of a manifest, (n,) int64: a code (equal values have equal codes) or a group number.
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.data.unknown import known_ids

_Ints = NDArray[np.int64]

GROUP_COLUMNS = ("lesion_id", "patient_id", "copy_group")
"""Images that share one of these ids are in one group; unknown ids connect nothing."""


def connect_rows(n: int, first: _Ints, second: _Ints, *keys: _Ints) -> _Ints:
    """Return the group number of each of n rows: (n,), numbered in the order of first appearance.

    first, second: (m,) row numbers; first[i] and second[i] are connected. keys: (n,) codes; rows with the same code of
    a key are connected, and -1 connects to nothing.
    """
    from scipy.sparse import coo_array  # here: a prediction reads tables and has no groups
    from scipy.sparse.csgraph import connected_components

    # The graph has a node for every row and, after them, a node for every code of each key.
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
    """Return (n,) codes of ids; an unknown one (see `known_ids`) gets -1."""
    ids = known_ids(values)
    return np.where((ids != "").to_numpy(), pd.factorize(ids)[0], -1).astype(np.int64)


def distinct_codes(values: "pd.Series[Any]") -> _Ints:
    """Return (n,) codes of ids; every unknown one (see `known_ids`) gets a code of its own."""
    codes = id_codes(values)
    return np.where(codes < 0, codes.max(initial=0) + 1 + np.arange(len(codes)), codes)


def id_groups(frame: pd.DataFrame) -> _Ints:
    """Return (n,) group numbers by lesion, patient and copy group; a row without any of them is a group of its own."""
    return _connect_by_keys(frame, GROUP_COLUMNS)


def leakage_groups(manifest: pd.DataFrame) -> _Ints:
    """Return (n,) group numbers by lesion, patient, copy group and identical pixels.

    All images of a group must be in one split; a group in two splits is a leak.
    """
    return _connect_by_keys(manifest, (*GROUP_COLUMNS, "pixel_sha256"))


def unknown_ids_warnings(frame: pd.DataFrame) -> list[str]:
    """Return a line if images have neither a lesion nor a patient: their intervals may be too narrow."""
    columns = [known_ids(frame[name]) for name in ("lesion_id", "patient_id") if name in frame]
    n_known = int(np.any([column != "" for column in columns], axis=0).sum()) if columns else 0
    if n_known == len(frame):
        return []
    if not n_known:
        return ["lesions and patients are unknown: intervals take every image as independent"]
    return [
        f"lesion and patient are unknown for {len(frame) - n_known:,} of {len(frame):,} images: intervals take each of "
        "them as independent"
    ]


def _connect_by_keys(frame: pd.DataFrame, columns: tuple[str, ...]) -> _Ints:
    no_pairs = np.empty(0, np.int64)
    return connect_rows(
        len(frame), no_pairs, no_pairs, *(id_codes(frame[column].astype(str)) for column in columns)
    )
