"""A model tested on a data set that it was not made for: classes mapped by name, overlap counted, nothing dropped."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dermkit.audit.status import audit_state
from dermkit.data.manifest import Dataset
from dermkit.data.split import split_groups
from dermkit.errors import DataError
from dermkit.evaluation.class_mapping import ClassMapping, default_mapping, load_mapping, remap_predictions
from dermkit.evaluation.evaluate import evaluate_run
from dermkit.evaluation.options import NOTHING, Asked
from dermkit.evaluation.policy import SETTLES, Settled, check_asked, with_wishes
from dermkit.evaluation.seal_log import Logged, end_openings, log_looks, looks_in_words
from dermkit.files import check_output, check_writable, fingerprint, write_json, write_rows
from dermkit.metrics.decisions.policy import from_dict
from dermkit.models.card import settled
from dermkit.progress import Watch
from dermkit.recipes.schema import FORMAT as RECIPE_FORMAT
from dermkit.runs.predictions import (
    columns_of,
    groups_of,
    read_predictions,
    scored_of,
    write_attributes,
    write_groups,
    write_predictions,
)
from dermkit.runs.reader import classes_of, read_about

if TYPE_CHECKING:
    from dermkit.prediction.predictor import Predictor

SPLIT = "test"
"""All images of the other data set are test images."""


def evaluate_on(
    target: Path,
    dataset: Dataset,
    *,
    mapping: Path | None,
    out: Path | None,
    watch: Watch,
    asked: Asked = NOTHING,
    open_test: bool = False,
) -> Path:
    """Score every image of `dataset` with the model of `target`, evaluate in common classes; returns the folder.

    Writes a folder like a run's: predictions.csv (in the target classes), unmapped.csv, metrics.json (no report).
    open_test: sealed test images of the data set may be scored; that is logged in their seal.
    """
    from dermkit.prediction.predictor import load_model

    predictor = load_model(target)
    classes = (
        load_mapping(mapping, predictor.classes, dataset.classes)
        if mapping
        else default_mapping(predictor.classes, dataset.classes)
    )
    folder = out or _default_out(target, dataset, classes)
    settled = _settled(predictor, classes, asked)
    check_output(folder, marker="unmapped.csv", what="an evaluation on other data")
    check_writable(folder)
    opened = _log_looks(predictor, dataset, open_test)
    scored = _score(predictor, dataset, watch)
    end_openings(dataset, opened)
    remapped = remap_predictions(scored, classes)
    kept = remapped.predictions
    names = [item.name for item in classes.targets]
    _write_scored(folder, kept, names, dataset)
    write_rows(
        folder / "unmapped.csv", ("image_id", "path", "label"), remapped.unmapped_images.to_numpy().tolist()
    )
    facts = _facts(predictor, dataset, classes, remapped.unmapped, len(kept))
    facts["warnings"] += looks_in_words(dataset, opened)
    for warning in facts["warnings"]:
        watch.say(f"warning: {warning}")
    write_json(folder / "run.json", facts, format=1)
    write_json(folder / "location.json", {"images": str(dataset.images.resolve())}, format=1)
    own = predictor.card["recipe"]
    write_json(folder / "recipe.json", own, format=RECIPE_FORMAT if "compute" in own else 1)
    evaluate_run(folder, dataset, asked=asked, settled=settled)
    return folder


def _write_scored(folder: Path, kept: pd.DataFrame, names: Sequence[str], dataset: Dataset) -> None:
    """Write the predictions in the target classes, and what is known of their images."""
    columns = columns_of(names)
    write_predictions(folder / "predictions.csv", names, kept[columns].to_numpy(dtype=object).tolist())
    write_groups(
        folder / "groups.csv", dataset.manifest["image_id"], split_groups(dataset.manifest), kept["image_id"]
    )
    write_attributes(folder / "attributes.csv", dataset.manifest, kept["image_id"])


def _run_of(target: Path) -> Path:
    return target.parent if target.name == "model" else target


def _default_out(target: Path, dataset: Dataset, classes: ClassMapping) -> Path:
    run = _run_of(target)
    mark = fingerprint(dataset.manifest_sha256, asdict(classes))
    return run / "external" / f"{dataset.name}-{mark}"


def _log_looks(predictor: "Predictor", dataset: Dataset, allowed: bool) -> list[Logged]:
    return log_looks(
        dataset, dataset.manifest["image_id"], allowed=allowed, model=predictor.folder, how="--on",
        recipe=str(predictor.card["recipe"].get("name", "")), run=_run_of(predictor.folder).name,
    )  # fmt: skip


def _score(predictor: "Predictor", dataset: Dataset, watch: Watch) -> pd.DataFrame:
    """Return predictions in the model's own classes, label as the data set has it."""
    from dermkit.data.cache.pixels import pixel_cache

    manifest = dataset.manifest.sort_values("image_id").reset_index(drop=True)
    ids = manifest["image_id"].tolist()
    pixels = pixel_cache(
        dataset, ids, predictor.preprocessing, folder=dataset.folder / "cache",
        on_progress=lambda done, total: watch.step("images", done, total),
    )  # fmt: skip
    p = predictor.score_pixels(
        pixels.pixels, range(len(ids)), on_progress=lambda done, total: watch.step("scoring", done, total)
    )
    frame = manifest[["image_id", "path", "label"]].assign(split=SPLIT, fold="", seed="")
    frame["predicted"] = np.array(predictor.class_names, dtype=object)[p.argmax(axis=1)]
    return frame.assign(**{f"p_{name}": p[:, k] for k, name in enumerate(predictor.class_names)})


def overlap(predictor: "Predictor", dataset: Dataset) -> dict[str, int]:
    """Count images of the data set that the model's training looked at: by identical pixels, and by ISIC id."""
    path = predictor.folder / "seen.csv"
    if not path.is_file():
        return {}
    seen = pd.read_csv(path, dtype=str, keep_default_na=False)
    ids = set(seen["isic_id"]) - {""}
    return {
        "same_pixels": int(dataset.manifest["pixel_sha256"].isin(set(seen["pixel_sha256"])).sum()),
        "same_isic_id": int(dataset.manifest["isic_id"].isin(ids).sum()),
        "training_images_with_isic_id": int((seen["isic_id"] != "").sum()),
        "training_images": len(seen),
    }


def _facts(
    predictor: "Predictor", dataset: Dataset, classes: ClassMapping, unmapped: Mapping[str, int], n: int
) -> dict[str, Any]:
    card = predictor.card
    shared = overlap(predictor, dataset)
    return {
        "recipe": card["recipe"].get("name", ""),
        "system": card["recipe"].get("system", ""),
        "about": f"The model of {card['recipe'].get('name', '?')} (trained on {card['dataset'].get('name', '?')}) "
        f"tested on {dataset.name}. Classes matched by {classes.rule}.",
        "dataset": {
            "name": dataset.name,
            "classes": [asdict(item) for item in classes.targets],
            "n": len(dataset.manifest),
            "manifest_sha256": dataset.manifest_sha256,
            "licences": ", ".join(sorted(set(dataset.manifest["licence"]) - {""})),
            "audit": audit_state(dataset, None),
            "notes": dict(dataset.notes),
        },
        "split": {
            "name": "external",
            "scheme": "external",
            "counts": {"test": n},
            "excluded": sum(unmapped.values()),
        },
        "trained_on": {"name": card["dataset"].get("name", ""), "audit": card["dataset"].get("audit", {})},
        "mapping": asdict(classes),
        "unmapped": dict(unmapped),
        "overlap": shared,
        "seed": card["training"].get("seed"),
        "fold": None,
        "weights": card["weights"],
        "decision": _decision(predictor, classes),
        "warnings": _warnings(predictor, dataset, unmapped, shared),
    }


def _decision(predictor: "Predictor", classes: ClassMapping) -> dict[str, Any] | None:
    """Return what the model settled, where its classes stay what they are; summed classes were never calibrated."""
    return settled(predictor.card) if classes.rule == "identity" else None


def _settled(predictor: "Predictor", classes: ClassMapping, asked: Asked) -> Settled | None:
    """Return what the model settled, with wishes settled on the validation images of the run that holds it."""
    own = _decision(predictor, classes)
    if own is None or not asked.wishes:
        if own is None and asked.of_decision:
            raise DataError(
                "operating points need a model that settled something, in the data set's own classes; here the classes "
                f"are matched by {classes.rule}",
                kept="nothing was written", remedy="evaluate without --wish and --prevalence",
            )  # fmt: skip
        return None if own is None else Settled(from_dict(own))
    run = predictor.folder.parent
    about = read_about(run)
    table = classes_of(about, run)
    frame = read_predictions(run / "predictions.csv", [item.name for item in table])
    part = frame[frame["split"] == SETTLES]
    check_asked(asked, {*frame["split"].unique(), SPLIT})
    return with_wishes(from_dict(own), scored_of(part, table, groups_of(run, None)), asked)


def _warnings(
    predictor: "Predictor", dataset: Dataset, unmapped: Mapping[str, int], shared: Mapping[str, int]
) -> list[str]:
    trained_on = predictor.card["dataset"].get("name", "the training data")
    found = max(shared.get("same_pixels", 0), shared.get("same_isic_id", 0))
    warnings = []
    if found:
        warnings.append(
            f"Not external: {found} of {len(dataset.manifest)} images were looked at in training "
            f"({shared['same_pixels']} by identical pixels, {shared['same_isic_id']} by ISIC id)."
        )
    unnamed = shared.get("training_images", 0) - shared.get("training_images_with_isic_id", 0)
    nameless = int((dataset.manifest["isic_id"] == "").sum())
    archive = _common_archive(predictor, dataset)
    if unnamed or nameless or not shared or archive:
        warnings.append(
            f"Overlap cannot be ruled out: {unnamed} training images of {trained_on} and {nameless} images of "
            f"{dataset.name} carry no ISIC id, so copies of other size or compression are not counted.{archive}"
        )
    if unmapped:
        listed = ", ".join(f"{label} {n}" for label, n in sorted(unmapped.items()))
        warnings.append(
            f"{sum(unmapped.values())} images are not scored: their labels map to no class ({listed})."
        )
    return warnings


def _common_archive(predictor: "Predictor", dataset: Dataset) -> str:
    mine = predictor.card["dataset"].get("notes", {}).get("archive", "")
    other = dataset.notes.get("archive", "")
    if mine and mine == other:
        return f" Both data sets draw from the {mine}: their images overlap, so this is not an independent test."
    return ""
