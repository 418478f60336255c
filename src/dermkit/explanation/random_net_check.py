"""Does a heat map depend on what was learned? Maps of a net against those of random nets. Without torch.

Adebayo and others (2018): some methods draw the image's edges whatever the weights are. Here the maps of the trained
net and of nets with random weights are compared by rank correlation, against the same maps moved and mirrored at
random: that keeps how smooth a map is, which alone would make correlations of single pixels look certain.

Shapes: N images, R random nets, C x C cells of a map.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from dermkit.metrics.stats.arrays import Floats

CELLS = 16
"""Cells a side that maps are averaged over: a gradient's map has 7 to 14 positions a side."""

N_RANDOM_NETS = 3
_N_DRAWS = 999
_MAX_P = 0.05
_MIN_CORRELATION = 0.5
"""A map fails from this mean correlation on: half of the order of its cells is there without training. Below it a
correlation that is beyond chance is reported as a part that is shared. Chosen, not measured."""


@dataclass(frozen=True)
class RandomNetCheck:
    """The mean rank correlation of maps of the trained and of random nets, -1..1.

    p: how often maps that were moved at random correlate at least as much, 0..1. n_images, n_nets: compared.
    correlation and p are None where no map could be compared, which is one without evidence anywhere.
    """

    correlation: float | None
    p: float | None
    n_images: int
    n_nets: int

    @property
    def fails(self) -> bool:
        """Whether the map is much the same without training."""
        return self.is_beyond_chance and self.correlation is not None and self.correlation >= _MIN_CORRELATION

    @property
    def is_beyond_chance(self) -> bool:
        """Whether trained and random nets have maps that are more alike than maps moved at random."""
        return self.p is not None and self.p <= _MAX_P

    @property
    def sentence(self) -> str:
        """Return what the check says."""
        if self.correlation is None:
            return "Not applicable: no map shows evidence in both the trained and a random net."
        figures = (
            f"rank correlation {self.correlation:z.2f} with {self.n_nets} random nets, n = {self.n_images} "
            f"image{'s' * (self.n_images != 1)}, p = {self.p:.3f}"
        )
        if self.fails:
            return f"Failed: the maps do not depend on what was learned; random weights give much the same ({figures})."
        if self.is_beyond_chance:
            return f"Passed in part: a part of the maps is the same with random weights ({figures})."
        return f"Passed: with random weights the maps differ ({figures})."


def map_ranks(values: NDArray[np.float32]) -> Floats | None:
    """Return the ranks of a map's cells, (C, C), with mean 0 and length 1; None for a map that is the same everywhere.

    values: (S, S); NaN counts as 0.
    """
    cells = cell_means(np.nan_to_num(values), min(CELLS, len(values)))
    ranks = rankdata(cells).reshape(cells.shape)
    centred = ranks - ranks.mean()
    length = float(np.sqrt((centred**2).sum()))
    return centred / length if length > 0 else None


def cell_means(values: NDArray[np.floating], cells: int) -> Floats:
    """Return the mean of a square map (S, S) in each of `cells` x `cells` cells, (cells, cells) float64."""
    labels = cell_labels(len(values), cells)
    sums = np.bincount(labels.ravel(), values.astype(np.float64).ravel(), cells**2)
    return np.asarray((sums / np.bincount(labels.ravel(), minlength=cells**2)).reshape(cells, cells))


def cell_labels(size: int, cells: int) -> NDArray[np.int64]:
    """Return the number of the cell, row by row, that each pixel of a square lies in: (size, size) int64."""
    positions = np.arange(size) * cells // size
    return np.asarray(positions[:, None] * cells + positions[None, :], dtype=np.int64)


def image_correlations(trained: NDArray[np.float32], random_maps: Sequence[NDArray[np.float32]]) -> list[float]:
    """Return the rank correlation of one image's map with that of each random net; without those that have none."""
    ranks = map_ranks(trained)
    random_ranks = [map_ranks(values) for values in random_maps]
    return (
        []
        if ranks is None
        else [float((ranks * random_rank).sum()) for random_rank in random_ranks if random_rank is not None]
    )


def compare_with_random_nets(
    pairs: Sequence[tuple[NDArray[np.float32], Sequence[NDArray[np.float32]]]], *, seed: int = 0
) -> RandomNetCheck:
    """Return the check over images, each given as its map (S, S) and those of R random nets; images count alike."""
    by_image: list[list[tuple[Floats, Floats]]] = []
    for trained, random_maps in pairs:
        ranks = map_ranks(trained)
        random_ranks = [random_rank for values in random_maps if (random_rank := map_ranks(values)) is not None]
        if ranks is not None and random_ranks:
            by_image.append([(ranks, random_rank) for random_rank in random_ranks])
    if not by_image:
        return RandomNetCheck(None, None, 0, 0)
    correlation = float(
        np.mean([np.mean([(ranks * random_rank).sum() for ranks, random_rank in one]) for one in by_image])
    )
    rng = np.random.default_rng(seed)
    null_mean = np.mean(
        [np.mean([_moved_correlations(*pair, rng) for pair in one], axis=0) for one in by_image], axis=0
    )
    p = (1 + int((null_mean >= correlation).sum())) / (1 + _N_DRAWS)
    return RandomNetCheck(correlation, p, len(by_image), max(map(len, by_image)))


def _moved_correlations(ranks: Floats, random_rank: Floats, rng: np.random.Generator) -> Floats:
    """Return the correlations with the other map moved, turned and mirrored at random, (draws,)."""
    table = np.stack([_all_shifts(ranks, turned) for turned in _symmetries(random_rank)])
    return np.asarray(rng.choice(table.ravel(), _N_DRAWS))


def _symmetries(values: Floats) -> list[Floats]:
    turned = [np.rot90(values, quarter) for quarter in range(4)]
    return [*turned, *(one.T for one in turned)]


def _all_shifts(ranks: Floats, random_rank: Floats) -> Floats:
    """Return the correlation at every cyclic shift, (C, C)."""
    product = np.fft.rfft2(ranks) * np.conj(np.fft.rfft2(random_rank))
    return np.asarray(np.fft.irfft2(product, s=ranks.shape))
