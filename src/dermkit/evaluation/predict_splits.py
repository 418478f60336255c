"""Score a run's own images: predictions.csv and the tables beside it, for one or more splits."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.data.groups import leakage_groups
from dermkit.data.manifest import Dataset
from dermkit.evaluation.out_of_distribution import write_distances
from dermkit.progress import Progress
from dermkit.runs.folder import RunFolder, read_table
from dermkit.runs.layout import (
    ATTRIBUTES_FILE,
    GROUPS_FILE,
    IMAGE_BLIND,
    IMAGE_BLIND_FILE,
    OLD_COLOUR_FILES,
    PREDICTIONS_FILE,
)
from dermkit.runs.predictions import (
    prediction_columns,
    write_attributes,
    write_groups,
    write_predictions,
    write_rule_predictions,
)

if TYPE_CHECKING:
    from dermkit.data.cache.pixels import PixelCache
    from dermkit.evaluation.blind_rules import BlindRules
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
    with_rules: bool = True,
) -> None:
    """Write predictions of the saved model (float32) and of the image-blind rules for the given splits.

    split_table: image_id, split of all splits: the rules are fitted on the training rows. other_pixels: the
    same images in the other sizes that the model's nets take (`Predictor.resizings`). fold: -1 for none.
    retained_splits: their rows in existing tables are kept. with_rules: False writes no rules.
    """
    from dermkit.evaluation.repeated_rules import rules_of_repeats

    scored_rows = split_table[split_table["split"].isin(list(split_names))]
    manifest = dataset.manifest.set_index("image_id")
    pixel_rows = [pixels.index[row_id] for row_id in scored_rows["image_id"]]
    class_names = predictor.class_names
    probabilities, distances = predictor.score_with_distances(
        [cache.pixels for cache in (pixels, *other_pixels)],
        pixel_rows,
        on_progress=lambda count, total: progress.step("scoring", count, total),
        metadata=manifest.loc[scored_rows["image_id"]],
    )
    row_starts = _row_starts(scored_rows, manifest, fold, seed)
    if with_rules:
        progress.say("fitting the image-blind rules on the training images")
        rules = rules_of_repeats(
            dataset, pixels, class_names=class_names, score_ids=scored_rows["image_id"].tolist(),
            train_ids=split_table.loc[split_table["split"] == "train", "image_id"].tolist(),
        )  # fmt: skip
        _write_rules(folder, class_names, row_starts, rules, retained_splits)
    _write_predictions(folder / PREDICTIONS_FILE, class_names, row_starts, probabilities, retained_splits)
    write_distances(
        folder, predictor.outlier_test, scored_rows, distances, leakage_groups(dataset.manifest),
        dataset.manifest["image_id"], retained_splits=retained_splits,
    )  # fmt: skip
    ids = split_table.loc[split_table["split"].isin([*split_names, *retained_splits]), "image_id"]
    write_groups(folder / GROUPS_FILE, dataset.manifest["image_id"], leakage_groups(dataset.manifest), ids)
    write_attributes(folder / ATTRIBUTES_FILE, dataset.manifest, ids)


def _row_starts(scored_rows: pd.DataFrame, manifest: pd.DataFrame, fold: int, seed: int) -> list[RowValues]:
    """Return the columns of predictions.csv before `predicted` for each row. manifest: indexed by image_id."""
    manifest_rows = manifest.loc[scored_rows["image_id"]]
    columns = (scored_rows["image_id"], manifest_rows["path"], manifest_rows["label"], scored_rows["split"])
    return [(*values, "" if fold < 0 else fold, seed) for values in zip(*columns, strict=True)]


def _write_rules(
    folder: Path,
    class_names: Sequence[str],
    row_starts: Sequence[RowValues],
    rules: "BlindRules",
    retained_splits: Sequence[str],
) -> None:
    """Write the predictions of the rules and how they were fitted; the rows of retained splits are kept."""
    columns, earlier = prediction_columns(class_names), {}
    if retained_splits:
        earlier = RunFolder(folder).rule_predictions()
    frames = {
        name: pd.DataFrame(_table_rows(class_names, row_starts, p), columns=columns)
        for name, p in rules.probabilities.items()
    }
    for name, frame in earlier.items():
        rows = frame[frame["split"].isin(list(retained_splits))]
        frames[name] = pd.concat([rows, frames[name]] if name in frames else [rows]).sort_values(
            "image_id", kind="stable"
        )
    write_rule_predictions(folder / IMAGE_BLIND_FILE, class_names, frames)
    IMAGE_BLIND.write(folder, rules.as_dict())
    for old_name in OLD_COLOUR_FILES:
        (folder / old_name).unlink(missing_ok=True)


def _table_rows(
    class_names: Sequence[str], row_starts: Sequence[RowValues], p: NDArray[np.float64]
) -> list[RowValues]:
    return [
        (*cells, class_names[int(row.argmax())], *map(float, row))
        for cells, row in zip(row_starts, p, strict=True)
    ]


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
    rows = _table_rows(class_names, row_starts, p) + _retained_rows(path, class_names, retained_splits)
    write_predictions(path, class_names, sorted(rows, key=lambda row: str(row[0])) if retained_splits else rows)


def _retained_rows(path: Path, class_names: Sequence[str], retained_splits: Sequence[str]) -> list[RowValues]:
    if not retained_splits:
        return []
    columns = prediction_columns(class_names)
    frame = read_table(path, *columns)
    rows = frame.loc[frame["split"].isin(list(retained_splits)), columns]
    return [tuple(row) for row in rows.itertuples(index=False, name=None)]
