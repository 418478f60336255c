"""Where a new value stands among all earlier ones: conformal ranks, as standard normal scores.

If the values of the reference and of the log are exchangeable (drawn alike, in any order), the randomised rank of each
among itself and all before it is uniform on 0..1 and independent of the ranks before it (Vovk, Gammerman and Shafer,
Algorithmic Learning in a Random World). That holds for a reference of any size, so a small one cannot cause false
alarms; it only makes drift harder to see. Values are counted in fixed bins, so that memory does not grow with the log.

Shapes: N values, in the order of the log.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from dermkit.metrics.stats.arrays import Bools, Floats, Ints

N_RANK_BINS = 512
"""Fixed before any value is seen: bins that follow the reference would make its values unlike the others."""

_SMALLEST = 1e-15
"""Keeps a score finite."""


class ValueRanks:
    """How many values lie in each bin so far."""

    def __init__(self) -> None:
        self._counts = np.zeros(N_RANK_BINS, dtype=np.int64)

    @property
    def n(self) -> int:
        """Return the number of values so far."""
        return int(self._counts.sum())

    def add(self, positions: Floats) -> None:
        """Count values without ranking them. positions: (N,) 0..1; what lies outside is counted at the end."""
        self._counts += np.bincount(bins_of(positions), minlength=N_RANK_BINS)

    def scores(self, positions: Floats, uniforms: Floats) -> Floats:
        """Return standard normal scores of (N,) values, each among itself and all before it, and count them.

        positions: (N,) 0..1. uniforms: (N,) random numbers of 0..1, which break ties. High values have high scores.
        """
        bins = bins_of(positions)
        above = self.n - np.cumsum(self._counts)
        later = np.tri(len(bins), k=-1, dtype=bool)  # [i, j]: value j came before value i, within this call
        n_above = above[bins] + (later & (bins[None, :] > bins[:, None])).sum(axis=1)
        n_equal = self._counts[bins] + (later & (bins[None, :] == bins[:, None])).sum(axis=1)
        p_values = (n_above + uniforms * (n_equal + 1)) / (self.n + np.arange(1, len(bins) + 1))
        self._counts += np.bincount(bins, minlength=N_RANK_BINS)
        return np.asarray(-ndtri(np.clip(p_values, _SMALLEST, 1 - _SMALLEST)), dtype=np.float64)

    def shares_before(self, is_event: Bools) -> Floats:
        """Return the share of events before each of (N,) values that are about to be ranked; half a value is added."""
        n_events = self._counts[-1] + np.concatenate([[0], np.cumsum(is_event)[:-1]]) if len(is_event) else []
        return np.asarray((np.asarray(n_events) + 0.5) / (self.n + np.arange(len(is_event)) + 1), dtype=np.float64)


def bins_of(positions: Floats) -> Ints:
    """Return the bin of each position, (N,)."""
    return np.clip(np.floor(positions * N_RANK_BINS), 0, N_RANK_BINS - 1).astype(np.int64)


def uniforms_of(row_numbers: NDArray[np.uint64], salt: int) -> Floats:
    """Return a number of 0..1 for each row, (N,), the same each time. row_numbers: from the random ids of the rows.

    salt: another one for each statistic, so that its numbers are independent of the others' (splitmix64).
    """
    mixed = row_numbers + np.uint64(salt)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed = mixed ^ (mixed >> np.uint64(31))
    return np.asarray((mixed >> np.uint64(11)).astype(np.float64) / 2**53, dtype=np.float64)
