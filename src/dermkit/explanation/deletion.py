"""Deletion and insertion curves: does the probability fall when what a map marks is hidden? (Petsiuk and others 2018)

Whole cells are hidden, in the order of the map and in random orders of the same cells: single pixels in random order
would be noise of a kind that no map makes, and would flatter every map. Without torch.

Shapes: S x S pixels of an input, T + 1 points of a curve, R random orders, K classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dermkit.explanation.random_net_check import cell_labels, cell_means
from dermkit.explanation.target import EvidenceTarget
from dermkit.metrics.stats.arrays import Floats

_CELLS = 12
_STEPS = 12
N_RANDOM_ORDERS = 5

ScoreInputs = Callable[[list[NDArray[np.uint8]]], Floats]
"""Resized pixels (N, S, S, 3) for each way in which the model resizes -> probabilities (N, K)."""


@dataclass(frozen=True, eq=False)
class CurveSet:
    """The target's probability while cells are hidden (deletion) or shown (insertion), from none to all of them.

    deletion, insertion: (T + 1,), in the order of the map. random_deletion, random_insertion: (R, T + 1).
    """

    deletion: Floats
    insertion: Floats
    random_deletion: Floats
    random_insertion: Floats

    @property
    def fractions(self) -> Floats:
        """Return the fraction of cells that are hidden or shown at each point, (T + 1,), 0..1."""
        return np.linspace(0, 1, len(self.deletion))

    @property
    def deletion_gain(self) -> float:
        """Return by how much the area of the random orders is larger: above 0 the map names what counts."""
        return float(np.mean(curve_area(self.random_deletion)) - curve_area(self.deletion))

    @property
    def insertion_gain(self) -> float:
        """Return by how much the area of the map's order is larger than that of the random orders."""
        return float(curve_area(self.insertion) - np.mean(curve_area(self.random_insertion)))


@dataclass(frozen=True)
class CurveSummary:
    """The gains over images: means, and in how many of `n` images the map's order is better than random ones."""

    n: int
    deletion_gain: float
    insertion_gain: float
    n_better_deletion: int
    n_better_insertion: int

    @property
    def sentence(self) -> str:
        """Return what the curves say."""
        return (
            f"Hiding cells in the order of the map instead of a random order lowers the area under the probability by "
            f"{self.deletion_gain:+.3f} (better in {self.n_better_deletion} of {self.n} images); showing them in that "
            f"order raises it by {self.insertion_gain:+.3f} (better in {self.n_better_insertion} of {self.n})."
        )


def curve_area(curve: Floats) -> Floats:
    """Return the area under curves (..., T + 1) over 0..1, by trapezoids: (...)."""
    return np.asarray(((curve[..., 1:] + curve[..., :-1]) / 2).mean(axis=-1))


def summarise_curves(curves: Sequence[CurveSet]) -> CurveSummary | None:
    """Return the summary over images, None without any."""
    if not curves:
        return None
    deletion = np.array([one.deletion_gain for one in curves])
    insertion = np.array([one.insertion_gain for one in curves])
    return CurveSummary(
        len(curves), float(deletion.mean()), float(insertion.mean()), int((deletion > 0).sum()),
        int((insertion > 0).sum()),
    )  # fmt: skip


def make_curves(
    score: ScoreInputs, inputs: Sequence[NDArray[np.uint8]], maps: Sequence[NDArray[np.float32]],
    target: EvidenceTarget, rng: np.random.Generator,
) -> CurveSet:  # fmt: skip
    """Return the curves of one image.

    inputs: its pixels (S, S, 3) for each way of resizing; maps: its map (S, S) in each of them, NaN counts as 0.
    """
    cells = min(_CELLS, *(len(values) for values in maps))
    noise = rng.random(cells**2)  # cells of equal value come in random order
    orders = [[np.lexsort((noise, -cell_means(np.nan_to_num(values), cells).ravel())) for values in maps]]
    for _ in range(N_RANDOM_ORDERS):
        order = rng.permutation(cells**2)
        orders.append([order] * len(maps))
    deletion, insertion = zip(
        *(_order_curves(score, inputs, order, cells, target) for order in orders), strict=True
    )
    return CurveSet(deletion[0], insertion[0], np.stack(deletion[1:]), np.stack(insertion[1:]))


def _order_curves(
    score: ScoreInputs, inputs: Sequence[NDArray[np.uint8]], orders: Sequence[NDArray[np.int64]], cells: int,
    target: EvidenceTarget,
) -> tuple[Floats, Floats]:  # fmt: skip
    """Return deletion and insertion for one order of the cells, given for each way of resizing."""
    deletion, insertion = [], []
    for pixels, order in zip(inputs, orders, strict=True):
        ranks = np.empty(cells**2, dtype=np.int64)
        ranks[order] = np.arange(cells**2)
        rank_of_pixel = ranks[cell_labels(len(pixels), cells)]
        limits = np.arange(_STEPS + 1) * cells**2 // _STEPS
        is_first = (rank_of_pixel[None] < limits[:, None, None])[..., None]
        mean_colour = np.rint(pixels.mean(axis=(0, 1))).astype(np.uint8)
        deletion.append(np.where(is_first, mean_colour, pixels))
        insertion.append(np.where(is_first, pixels, mean_colour))
    return target.probability(score(deletion)), target.probability(score(insertion))
