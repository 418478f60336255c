"""Pictures on which a net is tried before it scores images: what runs it here must give what it gave elsewhere.

Without torch.
"""

import numpy as np
from numpy.typing import NDArray


def draw_test_pictures(size: int) -> NDArray[np.uint8]:
    """Return synthetic test images, (4, size, size, 3) uint8: noise, a dark spot on a gradient, both, one colour.

    They reach different parts of a net's range; the same in every process.
    """
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3))
    y, x = np.mgrid[0:size, 0:size] / size
    spot = 120 * np.exp(-((x - 0.5) ** 2 + (y - 0.5) ** 2) / 0.05)
    skin = (np.array([220, 170, 150]) - 40 * x[..., None]) - spot[..., None]
    images = [noise, skin, 0.8 * skin + 0.2 * noise, np.full_like(noise, 128)]
    return np.asarray(np.clip(np.stack(images), 0, 255), dtype=np.uint8)
