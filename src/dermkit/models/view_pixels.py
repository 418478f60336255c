"""The pixels of a test-time view (`models.views`), made from normalised ones.

Shapes: N images of S x S pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dermkit.models.views import CROP_FRACTION, IDENTITY_VIEW


def view_of(inputs: Tensor, view: str) -> Tensor:
    """Return one view (`models.views`) of normalised pixels (N, 3, S, S) float32, in their memory order."""
    if view in IDENTITY_VIEW:
        return inputs
    if view.startswith("crop_"):
        changed = _crop(inputs, view.removeprefix("crop_"))
    else:
        flipped = inputs.flip(3) if view.startswith("flip") else inputs
        quarter_turns = int(view.rpartition("rotate_")[2]) // 90 if "rotate" in view else 0
        changed = torch.rot90(flipped, quarter_turns, (2, 3))
    return changed.contiguous(memory_format=torch.channels_last)


def _crop(inputs: Tensor, corner: str) -> Tensor:
    size = inputs.shape[-1]
    side = max(1, round(CROP_FRACTION * size))
    margin = size - side
    top = margin // 2 if corner == "centre" else margin * corner.startswith("bottom")
    left = margin // 2 if corner == "centre" else margin * corner.endswith("right")
    crop = inputs[:, :, top : top + side, left : left + side]
    return F.interpolate(crop, (size, size), mode="bilinear", align_corners=False, antialias=True)
