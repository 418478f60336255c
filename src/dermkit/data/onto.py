"""Arrays of one value or index per image, brought to where a batch lies."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def onto(values: NDArray[np.generic], batch: Tensor) -> Tensor:
    """Return the values as a tensor on a batch's device."""
    return torch.from_numpy(values).to(batch.device)


def column(values: NDArray[np.generic], batch: Tensor) -> Tensor:
    """Return one value per image, shaped to go with a batch (N, 3, H, W) and on its device."""
    return onto(values, batch).view(-1, 1, 1, 1)
