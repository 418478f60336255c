"""Decode and resize a data set's images once, as training does before its first epoch: `--images` is its folder."""

from asked import answer, asked

from dermkit.data.cache.pixels import pixel_cache
from dermkit.data.manifest import load_dataset
from dermkit.images.preprocess import Preprocessing


def main() -> None:
    given = asked()
    dataset = load_dataset(given.images)
    preprocessing = Preprocessing(
        size=given.size,
        resize="squash",
        interpolation="bilinear",
        divide_by=255.0,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
    )
    made = pixel_cache(dataset, dataset.manifest["image_id"].tolist(), preprocessing, folder=given.out)
    answer(n=len(made.index))


if __name__ == "__main__":
    main()
