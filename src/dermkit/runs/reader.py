"""What an evaluation reads from a run folder: its classes, what its model settled, its training counts, its lint."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dermkit.data.manifest import Dataset, LesionClass
from dermkit.errors import DataError
from dermkit.files import read_json
from dermkit.metrics.decisions.policy import Decision, from_dict
from dermkit.runs.predictions import ATTRIBUTES, read_attributes, read_predictions, read_table

RUN_FORMAT = 1
KEPT_SEAL = "seal.json"
KEPT_SEAL_FORMAT = 1
SEAL_FACTS = ("name", "date", "n", "opening", "openings")


def read_about(run: Path) -> dict[str, Any]:
    """Read run.json; raises `DataError` where it is missing or broken."""
    return read_json(run / "run.json", format=RUN_FORMAT, error=DataError)


def attributes_of(run: Path, dataset: Dataset | None) -> pd.DataFrame | None:
    """Return what is known of the people, by image_id, from the run's own table or else the data set."""
    found = read_attributes(run)
    if found is not None or dataset is None:
        return found
    return dataset.manifest.set_index("image_id")[list(ATTRIBUTES)]


def isic_ids_of(dataset: Dataset) -> dict[str, str]:
    """Return image_id -> id in the ISIC Archive, of those that have one."""
    named = dataset.manifest[dataset.manifest["isic_id"] != ""]
    return dict(zip(named["image_id"], named["isic_id"], strict=True))


def decision_of(about: Mapping[str, Any], run: Path) -> Decision | None:
    """Return what the model settled on its own validation images, where run.json says it: a test on other data."""
    if not about.get("decision"):
        return None
    try:
        return from_dict(about["decision"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{run / 'run.json'}: has a broken decision: {error}", remedy="evaluate again") from error


def colour_of(run: Path, classes: Sequence[str]) -> pd.DataFrame | None:
    """Return the predictions of the rule that sees colour alone, where the run has them."""
    path = run / "colour_rule.csv"
    return read_predictions(path, classes) if path.exists() else None


def classes_of(about: Mapping[str, Any], run: Path) -> tuple[LesionClass, ...]:
    """Return the class table of run.json; raises `DataError` where it has none."""
    try:
        return tuple(LesionClass(**item) for item in about["dataset"]["classes"])
    except (KeyError, TypeError) as error:
        raise DataError(f"{run / 'run.json'}: has no class table", remedy="train again, or restore it") from error


def train_counts(
    run: Path, about: Mapping[str, Any], predictions: pd.DataFrame, dataset: Dataset | None
) -> dict[str, int] | None:
    """Return images per class in training: of run.json (`about`: its `split`), the data set or the predictions."""
    if "train_counts" in about:
        return dict(about["train_counts"])
    labels = predictions.loc[predictions["split"] == "train", "label"]
    if dataset is not None and (run / "split.csv").exists():
        split = read_table(run / "split.csv", "image_id", "split")
        trained = split.loc[split["split"] == "train", "image_id"]
        labels = dataset.manifest.loc[dataset.manifest["image_id"].isin(trained), "label"]
    return {str(name): int(n) for name, n in labels.value_counts().items()} if len(labels) else None


def leak_warnings(leaks: Mapping[str, Any]) -> list[str]:
    """Return a line per side whose images share a lesion or their pixels with images that were learned from."""
    sides = (("test", leaks), ("validation", leaks.get("validation", {})))
    return [
        f"the split leaks: {counts['total']} of {counts.get('n', '?')} {side} images share a lesion or their exact "
        f"pixels with images learned from; the {side} figures are not those of unseen lesions"
        for side, counts in sides
        if counts.get("total", 0)
    ]


def kept_seal(run: Path) -> dict[str, Any]:
    """Return the run's own copy of a seal, {} for a run whose test side is not sealed."""
    path = run / KEPT_SEAL
    return read_json(path, format=KEPT_SEAL_FORMAT, error=DataError) if path.exists() else {}


def seal_of(run: Path) -> dict[str, Any]:
    """Return what metrics.json says of a sealed test side, {} where it is not; opening: None = not scored."""
    kept = kept_seal(run)
    return {key: len(kept[key]) if key == "openings" else kept[key] for key in SEAL_FACTS} if kept else {}
