"""Score a run's own images: predictions.csv and the tables beside it, for one or more splits."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.data.groups import leakage_groups
from dermkit.data.manifest import Dataset
from dermkit.evaluation.colour_baseline import predict_by_colour
from dermkit.progress import Progress
from dermkit.runs.folder import read_table
from dermkit.runs.layout import ATTRIBUTES_FILE, COLOUR_FILE, GROUPS_FILE, OLD_COLOUR_FILE, PREDICTIONS_FILE
from dermkit.runs.predictions import (
    prediction_columns,
    write_attributes,
    write_groups,
    write_predictions,
)

if TYPE_CHECKING:
    from dermkit.data.cache.pixels import PixelCache
    from dermkit.prediction.predictor import Predictor

RowValues = tuple[object, ...]


def predict_splits(
    folder: Path,
    dataset: Dataset,
    split_table: pd.DataFrame,
    split_names: Sequence[str],
    *,
    predictor: "Predictor",
    pixels: "PixelCache",
    other_pixels: Sequence["PixelCache"] = (),
    seed: int,
    fold: int,
    progress: Progress,
    retained_splits: Sequence[str] = (),
) -> None:
    """Write predictions of the saved model (float32) and of the colour baseline for the given splits.

    split_table: image_id, split of all splits: the colour baseline is fitted on the training rows. other_pixels: the
    same images in the other sizes that the model's nets take (`Predictor.resizings`). fold: -1 for none.
    retained_splits: their rows in existing tables are kept.
    """
    scored_rows = split_table[split_table["split"].isin(list(split_names))]
    manifest = dataset.manifest.set_index("image_id")
    pixel_rows = [pixels.index[row_id] for row_id in scored_rows["image_id"]]
    class_names = predictor.class_names
    probabilities = predictor.score_pixels(
        [cache.pixels for cache in (pixels, *other_pixels)],
        pixel_rows,
        on_progress=lambda count, total: progress.step("scoring", count, total),
        metadata=manifest.loc[scored_rows["image_id"]],
    )
    labels = (
        pd.Index(class_names).get_indexer(pd.Index(manifest.loc[list(pixels.index), "label"])).astype(np.int64)
    )
    train_rows = [pixels.index[row_id] for row_id in split_table.loc[split_table["split"] == "train", "image_id"]]
    colour_probabilities = predict_by_colour(
        pixels.pixels,
        labels,
        train_rows=np.array(train_rows, dtype=np.int64),
        score_rows=np.array(pixel_rows, dtype=np.int64),
        n_classes=len(class_names),
    )
    row_starts = _row_starts(scored_rows, manifest, fold, seed)
    _write_predictions(folder / PREDICTIONS_FILE, class_names, row_starts, probabilities, retained_splits)
    _write_predictions(folder / COLOUR_FILE, class_names, row_starts, colour_probabilities, retained_splits)
    (folder / OLD_COLOUR_FILE).unlink(missing_ok=True)
    ids = split_table.loc[split_table["split"].isin([*split_names, *retained_splits]), "image_id"]
    write_groups(folder / GROUPS_FILE, dataset.manifest["image_id"], leakage_groups(dataset.manifest), ids)
    write_attributes(folder / ATTRIBUTES_FILE, dataset.manifest, ids)


def _row_starts(scored_rows: pd.DataFrame, manifest: pd.DataFrame, fold: int, seed: int) -> list[RowValues]:
    """Return the columns of predictions.csv before `predicted` for each row. manifest: indexed by image_id."""
    manifest_rows = manifest.loc[scored_rows["image_id"]]
    columns = (scored_rows["image_id"], manifest_rows["path"], manifest_rows["label"], scored_rows["split"])
    return [(*values, "" if fold < 0 else fold, seed) for values in zip(*columns, strict=True)]


def _write_predictions(
    path: Path,
    class_names: Sequence[str],
    row_starts: Sequence[RowValues],
    p: NDArray[np.float64],
    retained_splits: Sequence[str],
) -> None:
    """Write a table of predictions; with retained splits, their rows are kept and all are sorted by image_id.

    p: (N, K) probabilities of the N new rows.
    """
    rows = [
        (*cells, class_names[int(row.argmax())], *map(float, row))
        for cells, row in zip(row_starts, p, strict=True)
    ] + _retained_rows(path, class_names, retained_splits)
    write_predictions(path, class_names, sorted(rows, key=lambda row: str(row[0])) if retained_splits else rows)


def _retained_rows(path: Path, class_names: Sequence[str], retained_splits: Sequence[str]) -> list[RowValues]:
    if not retained_splits:
        return []
    columns = prediction_columns(class_names)
    old_path = path.with_name(OLD_COLOUR_FILE)
    is_renamed = path.name == COLOUR_FILE and not path.exists() and old_path.exists()
    frame = read_table(old_path if is_renamed else path, *columns)
    rows = frame.loc[frame["split"].isin(list(retained_splits)), columns]
    return [tuple(row) for row in rows.itertuples(index=False, name=None)]
