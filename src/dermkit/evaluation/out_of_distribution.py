"""Distances of a run's images from its training images, and the rate of false alarms among its test images.

Shapes: N images.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermkit.files import write_rows
from dermkit.metrics.decisions.outlier_test import MAX_FALSE_ALARM_RATE
from dermkit.metrics.stats.arrays import Ints
from dermkit.metrics.stats.intervals import proportion_estimate
from dermkit.prediction.out_of_distribution import OUTLIER_METHOD, Distances, OutlierTest, is_outside
from dermkit.runs.folder import read_table
from dermkit.runs.layout import DISTANCES_FILE, OUT_OF_DISTRIBUTION

_COLUMNS = ("image_id", "split", "group", "distance", "p_value")


def write_distances(
    folder: Path,
    test: OutlierTest,
    rows: pd.DataFrame,
    distances: Distances | None,
    groups: Ints,
    image_ids: "pd.Series[str]",
    *,
    retained_splits: Sequence[str] = (),
) -> None:
    """Write out_of_distribution.csv and .json of scored images; rows of retained splits stay.

    rows: image_id and split of N images. groups, image_ids: lesion or patient of each image of the data set.
    """
    if distances is None:
        (folder / DISTANCES_FILE).unlink(missing_ok=True)
        OUT_OF_DISTRIBUTION.write(folder, {"reason": test.reason, "splits": {}})
        return
    group_of = dict(zip(image_ids, groups.tolist(), strict=True))
    table = rows[["image_id", "split"]].assign(
        group=[group_of[one] for one in rows["image_id"]], distance=distances.distance, p_value=distances.p_value
    )
    if retained_splits and (folder / DISTANCES_FILE).is_file():
        earlier = read_distances(folder)
        table = pd.concat([earlier[earlier["split"].isin(list(retained_splits))], table])
    write_table(folder, test.n_validation_groups, table.sort_values("image_id", kind="stable"))


def pool_distances(parent: Path, runs: Sequence[Path]) -> None:
    """Write the distances of folds into their parent folder: of each image by the net that had not learned from it.

    Where a fold has none, the parent says why; folds of older versions say nothing, and neither does it.
    """
    if not all(OUT_OF_DISTRIBUTION.exists(run) for run in runs):
        return
    bodies = [OUT_OF_DISTRIBUTION.read(run) for run in runs]
    if reasons := [body["reason"] for body in bodies if body["reason"]]:
        OUT_OF_DISTRIBUTION.write(parent, {"reason": reasons[0], "splits": {}})
        return
    table = pd.concat([read_distances(run) for run in runs]).sort_values("image_id", kind="stable")
    write_table(parent, min(body["n_validation_groups"] for body in bodies), table)


def read_distances(folder: Path) -> pd.DataFrame:
    """Return the table of distances of a run, whose columns are numbers but for image_id and split."""
    table = read_table(folder / DISTANCES_FILE, *_COLUMNS)
    return table.astype({"group": np.int64, "distance": np.float64, "p_value": np.float64})


def write_table(folder: Path, n_validation_groups: int, table: pd.DataFrame) -> None:
    """Write a table of distances, and the rate of false alarms among the test images in it."""
    write_rows(folder / DISTANCES_FILE, _COLUMNS, table[list(_COLUMNS)].itertuples(index=False, name=None))
    fields = {
        "reason": "",
        "method": OUTLIER_METHOD,
        "max_false_alarm_rate": MAX_FALSE_ALARM_RATE,
        "n_validation_groups": n_validation_groups,
        "splits": {"test": _false_alarms(table[table["split"] == "test"])}
        if "test" in set(table["split"])
        else {},
    }
    OUT_OF_DISTRIBUTION.write(folder, fields)


def _false_alarms(table: pd.DataFrame) -> dict[str, Any]:
    """Return how many test images are marked: false alarms, since they are of the kind that the model is for."""
    is_marked = np.asarray(is_outside(table["p_value"].to_numpy()), dtype=bool)
    return {
        "n": len(table),
        "n_outside": int(is_marked.sum()),
        "false_alarm_rate": proportion_estimate(is_marked, table["group"].to_numpy()).as_dict(),
    }
