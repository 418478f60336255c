"""The pixels of a test-time view (`models.views`), made from normalised ones.

Shapes: N images of S x S pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dermkit.models.views import CROP_FRACTION, CROP_VIEWS, IDENTITY_VIEW


def view_of(inputs: Tensor, view: str) -> Tensor:
    """Return one view (`models.views`) of normalised pixels (N, 3, S, S) float32, in their memory order."""
    if view in IDENTITY_VIEW:
        return inputs
    if view in CROP_VIEWS:
        # Antialiasing changes nothing where an image grows; models were evaluated with it, to the bit.
        size = inputs.shape[-1]
        crop = crop_of(inputs, view)
        changed = F.interpolate(crop, (size, size), mode="bilinear", align_corners=False, antialias=True)
    else:
        flipped = inputs.flip(3) if view.startswith("flip") else inputs
        quarter_turns = int(view.rpartition("rotate_")[2]) // 90 if "rotate" in view else 0
        changed = torch.rot90(flipped, quarter_turns, (2, 3))
    return changed.contiguous(memory_format=torch.channels_last)


def crop_of(inputs: Tensor, view: str) -> Tensor:
    """Return the part of images (N, 3, S, S) that a view of `CROP_VIEWS` shows, not resized yet, (N, 3, s, s)."""
    size, corner = inputs.shape[-1], view.removeprefix("crop_")
    side = max(1, round(CROP_FRACTION * size))
    margin = size - side
    top = margin // 2 if corner == "centre" else margin * corner.startswith("bottom")
    left = margin // 2 if corner == "centre" else margin * corner.endswith("right")
    return inputs[:, :, top : top + side, left : left + side]
