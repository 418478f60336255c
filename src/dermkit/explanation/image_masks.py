"""Which lesion masks belong to the images that are explained: a folder that was given, or those of the data set."""

from dataclasses import dataclass
from pathlib import Path

from dermkit.errors import DataError
from dermkit.explanation.nearest_cases import images_root
from dermkit.images.lesion_masks import LesionMasks, Mask
from dermkit.prediction.inputs import ImageRef
from dermkit.progress import Progress
from dermkit.runs.dataset_masks import masks_of_run
from dermkit.runs.layout import run_of_model


@dataclass(frozen=True)
class ImageMasks:
    """The masks of images. images: the folder of a data set's images, None for masks that go by image name."""

    masks: LesionMasks | None
    images: Path | None = None

    def mask(self, image: ImageRef, shape: tuple[int, int]) -> Mask | None:
        """Return the mask of an image of (H, W) pixels, None without; raises `DataError` as `LesionMasks`."""
        name = self._name(image)
        return None if self.masks is None or name is None else self.masks.mask(name, shape)

    def _name(self, image: ImageRef) -> str | None:
        if self.images is None:
            return image.name
        path, root = Path(image.path), self.images
        # As it was named first: an image below the folder may be a link that leads out of it.
        places = ((path.absolute(), root.absolute()), (path.parent.resolve() / path.name, root.resolve()))
        for place, top in (*places, (path.resolve(), root.resolve())):
            if place.is_relative_to(top) and ".." not in (name := place.relative_to(top)).parts:
                return name.as_posix()
        return None

    def check_used(self, n_masks: int, example: str) -> None:
        """Raise `DataError` where a folder was given and none of its masks is of an image. example: an image's id."""
        if self.masks is not None and self.images is None and not n_masks:
            raise DataError(
                f"{self.masks.folder}: holds no mask of these images",
                outcome="nothing was explained",
                remedy=f"name each mask as its image, such as {example}.png",
            )


def find_image_masks(folder: Path | None, model: Path, progress: Progress) -> ImageMasks:
    """Return the masks of a folder, else those of the data set that a model's run was trained on, else none."""
    if folder is not None:
        return ImageMasks(LesionMasks(folder))
    images = images_root(model)
    return ImageMasks(None) if images is None else ImageMasks(masks_of_run(run_of_model(model), progress), images)
