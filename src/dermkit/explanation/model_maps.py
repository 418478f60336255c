"""The heat map of a model: the mean of its nets' maps, in the frame of the image, and the same with random weights.

Shapes: S x S pixels of a net's input, h x w of the picture of an image, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.explanation.deletion import CurveSet, make_curves
from dermkit.explanation.frames import to_image, to_input, weighted_mean
from dermkit.explanation.heat_maps import WINDOWS_PER_SIDE, HeatMap, NetExplainer
from dermkit.explanation.random_net_check import CELLS, N_RANDOM_NETS, cell_means
from dermkit.explanation.random_nets import random_net
from dermkit.explanation.target import EvidenceTarget, MapMethod
from dermkit.images.preprocess import resize_pixels
from dermkit.metrics.stats.arrays import Floats
from dermkit.models.members import distinct_resizings, encode_for_members
from dermkit.models.net import Net
from dermkit.models.views import IDENTITY_VIEW
from dermkit.prediction.predictor import Predictor

_BATCH_SIZE = 16
"""Windows of occlusion in one forward pass; they change no number beyond rounding."""


@dataclass(frozen=True, eq=False)
class ModelMap:
    """The map of a model for one image.

    members: (S, S) float32 in [0, 1] of each net. combined: (h, w) float32 in [0, 1] in the frame of the image, NaN
    where no net saw it.
    """

    members: tuple[HeatMap, ...]
    combined: NDArray[np.float32]


class ModelExplainer:
    """Makes heat maps of a model, and what they are checked with.

    batch_size: images of a forward pass, None = 16. windows_per_side: of occlusion.
    """

    def __init__(
        self, predictor: Predictor, *, method: MapMethod = "auto", batch_size: int | None = None,
        windows_per_side: int = WINDOWS_PER_SIDE,
    ) -> None:  # fmt: skip
        self._predictor, self._method, self._batch_size = predictor, method, batch_size or _BATCH_SIZE
        self._windows_per_side = windows_per_side
        self._explainers = self._explain_nets(predictor.nets)
        resizings, self._resizing_of_member = distinct_resizings(predictor.members)
        self.resizings = resizings
        # The curves score hundreds of pictures of one image: the identity view stands for all, as in the maps.
        members = tuple(replace(member, views=IDENTITY_VIEW) for member in predictor.members)
        self._plain_predictor = predictor if members == predictor.members else replace(predictor, members=members)
        self._random_explainers: list[list[NetExplainer]] = []

    def _explain_nets(self, nets: Sequence[Net]) -> list[NetExplainer]:
        return [
            NetExplainer(
                net, member.preprocessing, method=self._method, batch_size=self._batch_size,
                windows_per_side=self._windows_per_side,
            )
            for net, member in zip(nets, self._predictor.members, strict=True)
        ]  # fmt: skip

    @property
    def methods(self) -> tuple[str, ...]:
        """Return the method of each net's map."""
        return tuple(explainer.name for explainer in self._explainers)

    @property
    def layers(self) -> tuple[str, ...]:
        """Return the layer of each net's map, "" where it takes none."""
        return tuple(explainer.layer for explainer in self._explainers)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Return why nets have no gradient-based map, each reason once."""
        return tuple(dict.fromkeys(explainer.reason for explainer in self._explainers if explainer.reason))

    def resize(self, pixels: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        """Return an image (H, W, 3) as the inputs of the model, (S, S, 3) uint8 for each way of resizing."""
        return [resize_pixels(pixels, preprocessing) for preprocessing in self.resizings]

    def map_image(
        self, inputs: Sequence[NDArray[np.uint8]], target: EvidenceTarget, shape: tuple[int, int],
        metadata: pd.DataFrame | None = None,
    ) -> ModelMap:  # fmt: skip
        """Return the map of one image. inputs: as `resize` gives them. shape: (h, w) of its picture.

        metadata: one row with the columns age, sex and site that the model takes, "" = unknown; None = all unknown.
        """
        return self._map_with(self._explainers, inputs, target, shape, metadata)

    def random_maps(
        self, inputs: Sequence[NDArray[np.uint8]], target: EvidenceTarget, shape: tuple[int, int],
        metadata: pd.DataFrame | None = None,
    ) -> list[ModelMap]:  # fmt: skip
        """Return the maps of the model's nets with random weights, for `N_RANDOM_NETS` draws of them."""
        if not self._random_explainers:
            self._random_explainers = [
                self._explain_nets(self._random_nets(seed)) for seed in range(N_RANDOM_NETS)
            ]
        return [
            self._map_with(explainers, inputs, target, shape, metadata) for explainers in self._random_explainers
        ]

    def _random_nets(self, seed: int) -> list[Net]:
        n_classes = len(self._predictor.classes)
        return [
            random_net(net, member.spec, n_classes, seed=1 + seed + N_RANDOM_NETS * position)
            for position, (net, member) in enumerate(
                zip(self._predictor.nets, self._predictor.members, strict=True)
            )
        ]

    def _map_with(
        self, explainers: Sequence[NetExplainer], inputs: Sequence[NDArray[np.uint8]], target: EvidenceTarget,
        shape: tuple[int, int], metadata: pd.DataFrame | None,
    ) -> ModelMap:  # fmt: skip
        members = self._predictor.members
        vectors = encode_for_members(members, metadata)
        maps = tuple(
            explainer(inputs[resizing], target.for_columns(member.class_order), vector)
            for explainer, member, resizing, vector in zip(
                explainers, members, self._resizing_of_member, vectors, strict=True
            )
        )
        framed = [to_image(one, member.preprocessing, shape) for one, member in zip(maps, members, strict=True)]
        return ModelMap(maps, weighted_mean(framed, [member.weight for member in members]))

    def input_maps(self, combined: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Return a map (h, w) in the frame of an image as each of the model's inputs shows it, (S, S) each."""
        return [to_input(np.nan_to_num(combined), preprocessing) for preprocessing in self.resizings]

    def cells(self, model_map: ModelMap) -> NDArray[np.float32]:
        """Return a map in the frame of the first input as means of its cells, (C, C): all that its check needs."""
        values = np.nan_to_num(self.input_maps(model_map.combined)[0])
        return np.asarray(cell_means(values, min(CELLS, len(values))), dtype=np.float32)

    def curves(
        self, inputs: Sequence[NDArray[np.uint8]], combined: NDArray[np.float32], target: EvidenceTarget,
        rng: np.random.Generator, metadata: pd.DataFrame | None = None,
    ) -> CurveSet:  # fmt: skip
        """Return the deletion and insertion curves of one image. combined: its map, as in `ModelMap`."""
        score = partial(self._score, metadata)
        return make_curves(score, inputs, self.input_maps(combined), target, rng)

    def _score(self, metadata: pd.DataFrame | None, inputs: list[NDArray[np.uint8]]) -> Floats:
        """Return the probabilities (N, K) of pictures of one image, whose metadata are one row."""

        def score(batch: list[NDArray[np.uint8]]) -> Floats:
            table = None if metadata is None else pd.concat([metadata] * len(batch[0]), ignore_index=True)
            return self._plain_predictor.probabilities(batch, table)

        starts = range(0, len(inputs[0]), self._batch_size)
        return np.concatenate(
            [score([array[start : start + self._batch_size] for array in inputs]) for start in starts]
        )
