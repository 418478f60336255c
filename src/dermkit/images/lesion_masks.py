"""Masks of lesions, and how much of a heat map lies inside. Without torch.

A mask is a PNG of its image's size, the lesion bright on black.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dermkit.errors import DataError, ImageRejected
from dermkit.files import file_stat, fingerprint
from dermkit.images.decode import open_image
from dermkit.images.image_header import MAX_PIXELS

_ENDINGS = ("", "_segmentation", "_mask")
"""What may follow an image's name in its mask's: those of HAM10000 end in `_segmentation`."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class LesionShare:
    """How much of a map lies inside the lesion.

    inside: fraction of the map's sum, 0..1; None for a map without evidence. area: fraction of what the net saw that is
    lesion, which is what an even map would have inside.
    """

    inside: float | None
    area: float

    @property
    def sentence(self) -> str:
        """Return what the share says, "" where most of the map lies inside the lesion."""
        if self.inside is None or self.inside >= 0.5:
            return ""
        outside, even = f"{100 * (1 - self.inside):.0f} %", f"{100 * (1 - self.area):.0f} %"
        return f"Most of the map lies outside the lesion: {outside} of it; an even map would have {even} outside."


@dataclass(frozen=True)
class LesionMasks:
    """The masks of images, in a folder. paths: image_id -> path below it, of a data set; None = they go by image name.

    A mask that does not fit its image ends a command that was given the folder. Of a data set, whose masks were checked
    as they were imported, it counts as none: the image was replaced since.
    """

    folder: Path
    paths: Mapping[str, str] | None = None

    @property
    def identity(self) -> str:
        """What tells these masks from others, as a text: a mask that was drawn anew has another size or time."""
        if self.paths is None:
            files = {str(file): file_stat(file) for file in sorted(self.folder.rglob("*.png"))}
        else:
            files = {image: f"{path} {file_stat(self.folder / path)}" for image, path in self.paths.items()}
        return f"{self.folder} {fingerprint(files)}"

    def path(self, image_name: str) -> Path | None:
        """Return the file of an image's mask, None where there is none. image_name: its path below its folder."""
        if self.paths is None:
            return find_mask(self.folder, image_name)
        mask = self.paths.get(Path(image_name).with_suffix("").as_posix())
        return None if mask is None or not (self.folder / mask).is_file() else self.folder / mask

    def mask(self, image_name: str, shape: tuple[int, int]) -> Mask | None:
        """Return an image's mask (H, W), None without one; raises `DataError` for a given one that does not fit.

        shape: (H, W) of the image.
        """
        path = self.path(image_name)
        if path is None:
            return None
        try:
            return read_mask(path, shape)
        except DataError:
            if self.paths is None:
                raise
            return None


def find_mask(folder: Path, image_name: str) -> Path | None:
    """Return the mask of an image in a folder, None where there is none. image_name: its path below its folder."""
    stem = Path(image_name).with_suffix("")
    candidates = [folder / f"{base}{ending}.png" for base in (stem, stem.name) for ending in _ENDINGS]
    return next((path for path in candidates if path.is_file()), None)


def read_mask(path: Path, shape: tuple[int, int]) -> Mask:
    """Return a mask (H, W), true where the lesion is; raises `DataError` where it cannot be used for the image.

    shape: (H, W) of the image.
    """
    try:  # two colours take fewer bytes than any photograph of this size
        pixels = open_image(path, unchecked_pixels=MAX_PIXELS).pixels
    except ImageRejected as refusal:
        raise _mask_error(path, f"is no mask: {refusal.reason.value}") from refusal
    if pixels.shape[:2] != shape:
        sizes = f"is {pixels.shape[1]} x {pixels.shape[0]} pixels, and its image is {shape[1]} x {shape[0]}"
        raise _mask_error(path, sizes)
    brightness = pixels.max(axis=2)
    mask = np.asarray(brightness > brightness.max() / 2)  # some masks hold 0 and 1, not 0 and 255
    if not mask.any():
        raise _mask_error(path, "marks no pixel as lesion")
    return mask


def _mask_error(path: Path, problem: str) -> DataError:
    return DataError(
        f"{path}: {problem}",
        outcome="nothing was written",
        remedy="give the mask of this image in its size, white on black, or leave --masks out",
    )


def lesion_share(heat_map: NDArray[np.float32], mask: Mask) -> LesionShare:
    """Return the share of a map in the frame of an image, (h, w), NaN where the net saw nothing. mask: (H, W)."""
    height, width = heat_map.shape
    scaled = Image.fromarray(mask.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BOX)
    lesion = np.asarray(scaled, dtype=np.float64) / 255
    is_seen = ~np.isnan(heat_map)
    weights = np.where(is_seen, heat_map, 0).astype(np.float64)
    total = float(weights.sum())
    inside = float((weights * lesion).sum()) / total if total > 0 else None
    return LesionShare(inside, float(lesion[is_seen].mean()))
