"""Approximate nearest neighbours among many short vectors: a forest of random projection trees.

A tree splits the vectors at the median along random directions until a leaf holds a few dozen; distances are computed
within leaves alone. One tree may separate a close pair, but hardly all trees do. Time grows as n log n.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dermkit.metrics.stats.arrays import Ints

_Float32s = NDArray[np.float32]

N_SEARCH_TREES = 12
"""About 4 in 10 trees separate a pair at the largest distance that copies have: 12 trees miss 1 in 60,000."""
SEARCH_LEAF_SIZE = 64
_VECTORS_PER_CHUNK = 1 << 14
"""Vectors whose leaves are compared at once: 16 MB of distances."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """P pairs of rows. first < second: (P,) int64, each pair once, sorted. distance: (P,) float32, Euclidean."""

    first: Ints
    second: Ints
    distance: _Float32s


def find_neighbours(
    vectors: NDArray[np.floating],
    owners: Ints,
    *,
    max_distance: float,
    max_neighbours: int,
    n_trees: int = N_SEARCH_TREES,
    seed: int = 0,
) -> Neighbours:
    """Return pairs of vectors closer than `max_distance` that are among the `max_neighbours` nearest of one of the two.

    vectors: (n, d), float16 or float32. owners: (n,) int64; vectors of one owner are never paired. Deterministic.
    """
    rng = np.random.default_rng([seed, len(vectors)])
    neighbours = _no_neighbours()
    if len(vectors) < 2:
        return neighbours
    for _ in range(n_trees if len(vectors) > SEARCH_LEAF_SIZE else 1):
        leaves = _leaves(vectors, rng)
        neighbours = _merge(
            neighbours, _pairs_within_leaves(vectors, owners, leaves, max_distance, max_neighbours), max_neighbours
        )
    return neighbours


def _no_neighbours() -> Neighbours:
    return Neighbours(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))


def _leaves(vectors: NDArray[np.floating], rng: np.random.Generator) -> Ints:
    """Return one tree's leaves: (n_leaves, leaf_size) row numbers, -1 for an empty slot."""
    n, width = vectors.shape
    depth = max(0, int(np.ceil(np.log2(max(n, 1) / SEARCH_LEAF_SIZE))))
    size = -(-n // 2**depth)
    # A random number of empty slots moves the medians: otherwise all trees would separate the same neighbours.
    size += int(rng.integers(0, size // 2 + 1)) if depth else 0
    order = np.full(2**depth * size, -1, np.int32 if n < 2**31 else np.int64)
    order[:n] = rng.permutation(n)
    for level in range(depth):
        projections = _project(vectors, rng.standard_normal((width,)).astype(np.float32))
        rows = order.reshape(2**level, -1)
        # Empty slots sort last, into the last leaves.
        keys = np.where(rows >= 0, projections[rows], np.float32(np.inf))
        half = rows.shape[1] // 2
        order = np.take_along_axis(rows, np.argpartition(keys, half - 1, axis=1), axis=1).reshape(-1)
    return order.reshape(2**depth, size)


def _project(vectors: NDArray[np.floating], direction: _Float32s) -> _Float32s:
    projections = np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), _VECTORS_PER_CHUNK * 4):
        chunk = slice(start, start + _VECTORS_PER_CHUNK * 4)
        projections[chunk] = vectors[chunk].astype(np.float32) @ direction
    return projections


def _pairs_within_leaves(
    vectors: NDArray[np.floating],
    owners: Ints,
    leaves: NDArray[np.integer],
    max_distance: float,
    max_neighbours: int,
) -> Neighbours:
    """Return the near pairs within leaves. leaves: (n_leaves, leaf_size)."""
    step = max(1, _VECTORS_PER_CHUNK // leaves.shape[1])
    chunks = [
        _compare_leaves(vectors, owners, leaves[start : start + step], max_distance, max_neighbours)
        for start in range(0, len(leaves), step)
    ]
    return Neighbours(*(np.concatenate([getattr(chunk, name) for chunk in chunks]) for name in _FIELDS))


_FIELDS = ("first", "second", "distance")


def _compare_leaves(
    vectors: NDArray[np.floating],
    owners: Ints,
    leaves: NDArray[np.integer],
    max_distance: float,
    max_neighbours: int,
) -> Neighbours:
    # l leaves, s slots in a leaf, d dimensions: (l, s, d); distances (l, s, s).
    leaf_vectors = vectors[leaves].astype(np.float32)
    squared_norms = np.einsum("lsd,lsd->ls", leaf_vectors, leaf_vectors)
    squared_distances = (
        squared_norms[:, :, None]
        + squared_norms[:, None, :]
        - 2 * (leaf_vectors @ leaf_vectors.transpose(0, 2, 1))
    )
    leaf_owners = np.where(leaves >= 0, owners[leaves], -1)
    different_owners = (
        (leaf_owners[:, :, None] != leaf_owners[:, None, :])
        & (leaves >= 0)[:, :, None]
        & (leaves >= 0)[:, None, :]
    )
    is_near = different_owners & (squared_distances < max_distance * max_distance)
    if is_near.sum(axis=2).max(initial=0) > max_neighbours:
        near_distances = np.where(is_near, squared_distances, np.inf)
        limit = np.partition(near_distances, max_neighbours - 1, axis=2)[:, :, max_neighbours - 1]
        # A pair is retained if either of the two has the other among its nearest.
        is_near &= (squared_distances <= limit[:, :, None]) | (squared_distances <= limit[:, None, :])
    leaf, first_slot, second_slot = np.nonzero(np.triu(is_near, 1))
    first, second = leaves[leaf, first_slot].astype(np.int64), leaves[leaf, second_slot].astype(np.int64)
    distance = np.sqrt(np.maximum(squared_distances[leaf, first_slot, second_slot], 0)).astype(np.float32)
    return Neighbours(np.minimum(first, second), np.maximum(first, second), distance)


def _merge(all_pairs: Neighbours, tree_pairs: Neighbours, max_neighbours: int) -> Neighbours:
    """Return the union, each pair once, with the pairs that are among the nearest of one of the two."""
    first, second, distance = (np.concatenate([getattr(all_pairs, f), getattr(tree_pairs, f)]) for f in _FIELDS)
    order = np.lexsort((second, first))
    first, second, distance = first[order], second[order], distance[order]
    is_new = np.ones(len(first), bool)
    is_new[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    is_nearest = among_nearest(first[is_new], second[is_new], distance[is_new], max_neighbours)
    return Neighbours(first[is_new][is_nearest], second[is_new][is_nearest], distance[is_new][is_nearest])


def among_nearest(first: Ints, second: Ints, distance: _Float32s, max_neighbours: int) -> NDArray[np.bool_]:
    """Return (P,) flags of the pairs that are among the `max_neighbours` nearest of one of their two members."""
    is_nearest = np.zeros(len(first), bool)
    for member in (first, second):
        order = np.lexsort((distance, member))
        sorted_members = member[order]
        start = (
            np.r_[0, np.flatnonzero(sorted_members[1:] != sorted_members[:-1]) + 1]
            if len(sorted_members)
            else np.empty(0, np.int64)
        )
        rank = np.arange(len(sorted_members)) - np.repeat(start, np.diff(np.r_[start, len(sorted_members)]))
        is_nearest[order[rank < max_neighbours]] = True
    return is_nearest
