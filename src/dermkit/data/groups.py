"""What belongs together: rows joined by pairs and by shared keys."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Ints = NDArray[np.int64]


def connect_rows(n: int, first: Ints, second: Ints, *keys: Ints) -> Ints:
    """Return one component number per row, shape (n,), numbered in the order of the rows.

    first, second: row numbers that are joined, one by one. keys: (n,) codes; rows with the same code are joined,
    -1 is like no other.
    """
    edges, n_nodes = [first, second], n
    starts, targets = [first], [second]
    for key in keys:
        known_rows = np.flatnonzero(key >= 0)
        starts.append(known_rows)
        targets.append(key[known_rows] + n_nodes)
        n_nodes += int(key.max(initial=-1)) + 1
    edges = [np.concatenate(starts), np.concatenate(targets)]
    graph = coo_array((np.ones(len(edges[0]), dtype=np.int8), (edges[0], edges[1])), shape=(n_nodes, n_nodes))
    component = connected_components(graph, directed=False)[1][:n]
    return pd.factorize(component)[0].astype(np.int64)


def id_codes(values: "pd.Series[str]") -> Ints:
    """Number equal texts alike; an empty text is unknown and gets -1."""
    is_known = (values != "").to_numpy()
    return np.where(is_known, pd.factorize(values)[0], -1).astype(np.int64)
