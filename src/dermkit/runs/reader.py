"""Readers of a run folder's files: classes, recorded policy, training counts, seal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dermkit.data.manifest import Dataset, LesionClass
from dermkit.errors import DataError
from dermkit.metrics.decisions.policy import DecisionPolicy, policy_from_dict
from dermkit.runs.documents import check_run_json, saved_content
from dermkit.runs.layout import COLOUR_FILE, OLD_COLOUR_FILE, RUN, RUN_SEAL, SPLIT_FILE
from dermkit.runs.predictions import ATTRIBUTES, read_attributes, read_predictions, read_run_csv


def read_run_json(run: Path) -> dict[str, Any]:
    """Read run.json; raises `DataError` where it is missing or broken."""
    with saved_content(run):
        run_json = RUN.read(run)
    check_run_json(run_json, run / RUN.name)
    return run_json


def attributes_for(run: Path, dataset: Dataset | None) -> pd.DataFrame | None:
    """Return what is known of the people, by image_id, from the run's own table or else the data set."""
    attributes = read_attributes(run)
    if attributes is not None or dataset is None:
        return attributes
    return dataset.manifest.set_index("image_id")[list(ATTRIBUTES)]


def isic_ids_for(dataset: Dataset) -> dict[str, str]:
    """Return image_id -> id in the ISIC Archive, of those that have one."""
    rows_with_id = dataset.manifest[dataset.manifest["isic_id"] != ""]
    return dict(zip(rows_with_id["image_id"], rows_with_id["isic_id"], strict=True))


def policy_of(run_json: Mapping[str, Any], run: Path) -> DecisionPolicy | None:
    """Return the policy that run.json records, None where it has none: only evaluations on other data do."""
    if not run_json.get("policy"):
        return None
    try:
        return policy_from_dict(run_json["policy"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{run / 'run.json'}: has a broken policy: {error}", remedy="evaluate again") from error


def read_colour_predictions(run: Path, classes: Sequence[str]) -> pd.DataFrame | None:
    """Return the predictions of the colour baseline, None where the run has none."""
    path = run / COLOUR_FILE
    path = path if path.exists() else run / OLD_COLOUR_FILE
    return read_predictions(path, classes) if path.exists() else None


def class_table(run_json: Mapping[str, Any], run: Path) -> tuple[LesionClass, ...]:
    """Return the class table of run.json; raises `DataError` where it has none."""
    try:
        classes = tuple(LesionClass(**fields) for fields in run_json["dataset"]["classes"])
        if not all(isinstance(text, str) for entry in classes for text in vars(entry).values()):
            raise TypeError("a name is no text")
        return classes
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{run / 'run.json'}: has no class table", remedy="train again, or restore it") from error


def count_train_images(
    run: Path, split_json: Mapping[str, Any], predictions: pd.DataFrame, dataset: Dataset | None
) -> dict[str, int] | None:
    """Return images per class in training: of run.json (`split_json`: its `split`), the data set or the predictions."""
    if "train_counts" in split_json:
        return dict(split_json["train_counts"])
    labels = predictions.loc[predictions["split"] == "train", "label"]
    if dataset is not None and (run / SPLIT_FILE).exists():
        split = read_run_csv(run / SPLIT_FILE, "image_id", "split")
        train_ids = split.loc[split["split"] == "train", "image_id"]
        labels = dataset.manifest.loc[dataset.manifest["image_id"].isin(train_ids), "label"]
    return {str(name): int(n) for name, n in labels.value_counts().items()} if len(labels) else None


def leak_warnings(leaks: Mapping[str, Any]) -> list[str]:
    """Return a line per side whose images share a lesion or their pixels with images that were learned from."""
    leaks_by_split = (("test", leaks), ("validation", leaks.get("validation", {})))
    return [
        f"the split leaks: {counts['total']} of {counts.get('n', '?')} {split_name} images share a "
        f"lesion or their exact "
        f"pixels with images learned from; the {split_name} figures are not those of unseen lesions"
        for split_name, counts in leaks_by_split
        if counts.get("total", 0)
    ]


def read_run_seal(run: Path) -> dict[str, Any]:
    """Return the run's own copy of a seal, {} for a run whose test side is not sealed."""
    return RUN_SEAL.read_optional(run)


def seal_summary(run: Path) -> dict[str, Any]:
    """Return what metrics.json says of a sealed test side, {} where it is not; opening_number: None = not scored."""
    seal = read_run_seal(run)
    if not seal:
        return {}
    summary = {key: seal[key] for key in ("name", "date", "n", "opening_number")}
    return {**summary, "n_openings": len(seal["openings"])}
