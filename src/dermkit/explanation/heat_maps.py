"""Heat maps of one net for one image: by gradients at a layer, by attention, or by occlusion without any gradient.

Both explain the log-odds of a class (against all others, or against one): a shift of all logits, which changes no
probability, then changes no map. Shapes: S x S pixels of the net's input, N images, K classes.
"""

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dermkit.errors import UsageError
from dermkit.explanation.attention_rollout import (
    ROLLOUT_NAMES,
    RolloutMethod,
    reads_class_token,
    rollout_evidence,
    why_no_rollout,
)
from dermkit.explanation.layers import MapLayer, find_map_layer, grid_view, why_no_gradient, why_no_head_gradient
from dermkit.explanation.target import EvidenceTarget, MapMethod
from dermkit.images.preprocess import Preprocessing
from dermkit.models.inference import check_finite, exact_float32, normalise_on_device
from dermkit.models.net import Net

NetScore = Callable[[Tensor], Tensor]
"""Inputs (N, 3, S, S) float32 -> what is explained of each, (N,)."""

HeatMap = NDArray[np.float32]
"""(S, S) float32 in [0, 1], 1 where the evidence is largest; 0 everywhere where there is none."""

WINDOWS_PER_SIDE = 8
"""Occlusion's window has an eighth of the side (28 of 224 pixels) and moves by half of itself: some 225 passes an
image. Chosen, not tuned."""
COARSE_WINDOWS_PER_SIDE = 4
"""The same with a quarter of the side: 49 passes, for maps that nobody asked for."""


class NetExplainer:
    """Makes heat maps of one net, which is the same after each; not for several threads at once.

    method: `auto` takes gradient-weighted attention roll-out for a net that reads a class token, else gradients at a
    layer where the table knows the net, else occlusion. name: of the chosen method, `layer`: where
    gradients are taken, "" without. reason: why there are no gradients, "" where there are or none were wanted.
    windows_per_side: of occlusion. Raises `UsageError` where a method is wanted that the net cannot have.
    """

    def __init__(
        self, net: Net, preprocessing: Preprocessing, *, method: MapMethod, batch_size: int,
        windows_per_side: int = WINDOWS_PER_SIDE,
    ) -> None:  # fmt: skip
        method_name, self.reason = choose_method(net, method)
        self._net, self._preprocessing, self._device = net, preprocessing, next(net.parameters()).device
        self.name: str = method_name
        self.layer = ""
        self._attribute: Callable[[Tensor, NetScore], Tensor]
        if method_name == "gradient" and (layer := find_map_layer(net)) is not None:
            self.name, self.layer = layer.method, layer.name
            self._attribute = partial(_gradient_evidence, net, layer)
        elif method_name == "gradient-rollout" or method_name == "rollout":
            self.name = ROLLOUT_NAMES[method_name]
            self._attribute = partial(rollout_evidence, net, method=method_name)
        else:
            self._attribute = partial(occlusion_evidence, batch_size=batch_size, windows_per_side=windows_per_side)

    def __call__(
        self, pixels: NDArray[np.uint8], target: EvidenceTarget, metadata: NDArray[np.float32] | None = None
    ) -> HeatMap:
        """Return the heat map of resized pixels (S, S, 3) uint8.

        target: in the order of the net's columns. metadata: encoded for the net, (1, M), None = all unknown.
        """
        with exact_float32(self._device):
            batch = torch.from_numpy(pixels[None]).to(self._device)
            inputs = normalise_on_device(batch, self._preprocessing).contiguous()
            vector = None if metadata is None else torch.from_numpy(metadata).to(self._device)
            evidence = self._attribute(inputs, partial(_score, self._net, target, vector))
        check_finite(evidence[None], "the heat map")
        return scale_to_one(evidence.cpu().numpy())


def _captum() -> Any:
    """Return captum.attr. Its progress bar, which is not used here, warns in notebooks without ipywidgets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from captum import attr
    return attr


def choose_method(net: Net, method: MapMethod) -> tuple[MapMethod, str]:
    """Return the method for a net, and why `auto` takes no gradients, "" if it does; raises `UsageError` else."""
    if method == "occlusion":
        return method, ""
    if method in get_args(RolloutMethod):
        reason = (why_no_head_gradient(net) if method == "gradient-rollout" else "") or why_no_rollout(net)
    else:
        reason = why_no_gradient(net)
    if method == "auto" and not reason:
        # Of mean-pooled nets the residuals carry most evidence past the attention; decision 0015 has the measurements.
        is_rollout = not why_no_rollout(net) and reads_class_token(net)
        return ("gradient-rollout" if is_rollout else "gradient"), ""
    if not reason:
        return method, ""
    if method == "auto":
        return "occlusion", reason
    raise UsageError(
        f"--method {method}: {reason}", outcome="nothing was explained", remedy="--method occlusion, or auto"
    )


def scale_to_one(evidence: NDArray[np.floating]) -> HeatMap:
    """Return evidence (S, S) as a heat map: what speaks against the class is 0, the largest value 1."""
    positive = np.clip(np.asarray(evidence, dtype=np.float64), 0, None)
    largest = positive.max()
    return np.asarray(positive / largest if largest > 0 else positive, dtype=np.float32)


def log_odds(logits: Tensor, target: EvidenceTarget) -> Tensor:
    """Return the log-odds of the target's class, (N,), of logits (N, K)."""
    logit = logits[:, target.class_index]
    if target.against_index is not None:
        return logit - logits[:, target.against_index]
    other_columns = [column for column in range(logits.shape[1]) if column != target.class_index]
    return logit - logits[:, other_columns].logsumexp(dim=1)


def _score(net: Net, target: EvidenceTarget, metadata: Tensor | None, x: Tensor) -> Tensor:
    """Return what a map explains, the log-odds of the target's class, (N,). x: (N, 3, S, S); metadata: (1, M)."""
    vectors = None if metadata is None else metadata.expand(len(x), -1)
    return log_odds(net(x, vectors), target)


def _gradient_evidence(net: Net, layer: MapLayer, inputs: Tensor, score: NetScore) -> Tensor:
    """Return the evidence at each pixel, (S, S), from gradients at a layer. inputs: (1, 3, S, S) float32."""
    with grid_view(net, layer) as grid:
        attribution = (
            _captum().LayerGradCam(score, grid)
            if layer.is_pooled
            else _captum().LayerGradientXActivation(score, grid)
        )
        evidence = attribution.attribute(inputs.requires_grad_(True)).detach().sum(dim=1, keepdim=True)
    size = inputs.shape[-2:]
    # Clipped before it is enlarged: evidence against the class beside it must not eat into a region's border.
    return torch.nn.functional.interpolate(evidence.clamp_min(0), size, mode="bilinear", align_corners=False)[0, 0]


def occlusion_evidence(
    inputs: Tensor, score: NetScore, *, batch_size: int, windows_per_side: int = WINDOWS_PER_SIDE
) -> Tensor:
    """Return at each pixel by how much the score falls, on average over the windows that hide it, (S, S).

    inputs: (1, 3, S, S) float32. A window is filled with the image's mean colour.
    """
    size = inputs.shape[-1]
    window = math.ceil(size / windows_per_side)
    mean_colour = inputs.mean(dim=(2, 3), keepdim=True).expand_as(inputs)
    with torch.no_grad():
        evidence: Tensor = (
            _captum()
            .Occlusion(score)
            .attribute(
                inputs,
                sliding_window_shapes=(inputs.shape[1], window, window),
                strides=(inputs.shape[1], max(1, window // 2), max(1, window // 2)),
                baselines=mean_colour,
                perturbations_per_eval=batch_size,
            )
        )
    return evidence[0].mean(dim=0)
