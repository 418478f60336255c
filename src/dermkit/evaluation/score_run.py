"""A run's own images scored: predictions.csv, and the tables beside it, of one side of its split or of several."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.data.manifest import Dataset
from dermkit.data.split import split_groups
from dermkit.evaluation.colour_baseline import colour_rule
from dermkit.progress import Watch
from dermkit.runs.predictions import columns_of, read_table, write_attributes, write_groups, write_predictions

if TYPE_CHECKING:
    from dermkit.data.cache.pixels import PixelCache
    from dermkit.prediction.predictor import Predictor

Cells = tuple[object, ...]


def score_sides(
    folder: Path,
    dataset: Dataset,
    sides: pd.DataFrame,
    wanted: Sequence[str],
    *,
    predictor: "Predictor",
    pixels: "PixelCache",
    seed: int,
    fold: int,
    watch: Watch,
    keep: Sequence[str] = (),
) -> None:
    """Score the images of the `wanted` sides, from the saved model, in float32, and by the rule of colour.

    sides: image_id, split of the whole run, training images too: the rule of colour learns from these. fold: -1 for
    none. keep: sides whose rows in the folder's tables stay as they are.
    """
    chosen = sides[sides["split"].isin(list(wanted))]
    rows = [pixels.index[name] for name in chosen["image_id"]]
    names = predictor.class_names
    probabilities = predictor.score_pixels(
        pixels.pixels, rows, on_progress=lambda done, total: watch.step("scoring", done, total)
    )
    manifest = dataset.manifest.set_index("image_id")
    labels = pd.Index(names).get_indexer(pd.Index(manifest.loc[list(pixels.index), "label"])).astype(np.int64)
    train = [pixels.index[name] for name in sides.loc[sides["split"] == "train", "image_id"]]
    dumb = colour_rule(
        pixels.pixels, labels, train=np.array(train, dtype=np.int64), score=np.array(rows, dtype=np.int64),
        n_classes=len(names),
    )  # fmt: skip
    about = manifest.loc[chosen["image_id"]]
    origin: list[Cells] = [
        (image_id, path, label, side, "" if fold < 0 else fold, seed)
        for image_id, path, label, side in zip(
            chosen["image_id"], about["path"], about["label"], chosen["split"], strict=True
        )
    ]
    _write(folder / "predictions.csv", names, origin, probabilities, keep)
    _write(folder / "colour_rule.csv", names, origin, dumb, keep)
    ids = sides.loc[sides["split"].isin([*wanted, *keep]), "image_id"]
    write_groups(folder / "groups.csv", dataset.manifest["image_id"], split_groups(dataset.manifest), ids)
    write_attributes(folder / "attributes.csv", dataset.manifest, ids)


def _write(
    path: Path, names: Sequence[str], origin: Sequence[Cells], p: NDArray[np.float64], keep: Sequence[str]
) -> None:
    """Write a predictions.csv in the order of image_id, with the rows of the sides that are kept."""
    rows = [
        (*cells, names[int(row.argmax())], *map(float, row)) for cells, row in zip(origin, p, strict=True)
    ] + _kept(path, names, keep)
    write_predictions(path, names, sorted(rows, key=lambda row: str(row[0])) if keep else rows)


def _kept(path: Path, names: Sequence[str], keep: Sequence[str]) -> list[Cells]:
    if not keep:
        return []
    columns = columns_of(names)
    frame = read_table(path, *columns)
    kept = frame.loc[frame["split"].isin(list(keep)), columns]
    return [tuple(row) for row in kept.itertuples(index=False, name=None)]
