"""Evaluate a model on another data set: classes are mapped by name, overlap with its training images is counted."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dermkit.audit.status import audit_state
from dermkit.data.groups import leakage_groups, unknown_ids_warnings
from dermkit.data.manifest import Dataset, write_run_location
from dermkit.data.readers import reading
from dermkit.errors import DataError
from dermkit.evaluation.class_mapping import (
    ClassMapping,
    MappedPredictions,
    default_mapping,
    load_mapping,
    remap_predictions,
)
from dermkit.evaluation.evaluate import EvaluationInput, evaluate_run
from dermkit.evaluation.openings import log_openings, openings_of_images
from dermkit.evaluation.options import DEFAULT_OPTIONS, EvaluationOptions
from dermkit.evaluation.out_of_distribution import write_distances
from dermkit.evaluation.requested_targets import POLICY_SPLIT, add_targets, check_options
from dermkit.files import check_output, check_writable, fingerprint, write_json, write_rows
from dermkit.metrics.decisions.policy import DecisionPolicy, policy_from_dict
from dermkit.models.card import card_policy
from dermkit.models.members import input_notes
from dermkit.prediction.out_of_distribution import Distances
from dermkit.progress import Progress
from dermkit.recipes.formats import format_of_recipe
from dermkit.runs.folder import SEEN_SPLIT, RunFolder
from dermkit.runs.layout import (
    ATTRIBUTES_FILE,
    EXTERNAL_FOLDER,
    GROUPS_FILE,
    PREDICTIONS_FILE,
    RECIPE_FILE,
    RUN,
    UNMAPPED_FILE,
    run_of_model,
)
from dermkit.runs.predictions import (
    prediction_columns,
    write_attributes,
    write_groups,
    write_predictions,
)

if TYPE_CHECKING:
    from dermkit.prediction.predictor import Predictor

EXTERNAL_SPLIT = "test"
"""Images of the other data set are test images, but those that training looked at (`SEEN_SPLIT`)."""


def evaluate_external(
    model_path: Path,
    dataset: Dataset,
    *,
    mapping_path: Path | None,
    out: Path | None,
    progress: Progress,
    options: EvaluationOptions = DEFAULT_OPTIONS,
    open_test: bool = False,
) -> Path:
    """Score every image of `dataset` with the model of `model_path`, evaluate in common classes; returns the folder.

    Images that the model's training looked at, and others of their lesions and patients, are a split of their own.
    Writes a folder like a run's: predictions.csv (in the target classes), unmapped.csv, metrics.json (no report).
    open_test: sealed test images of the data set may be scored; that is logged in their seal.
    """
    from dermkit.prediction.load import load_model

    predictor = load_model(model_path)
    class_mapping = (
        load_mapping(mapping_path, predictor.classes, dataset.classes)
        if mapping_path
        else default_mapping(predictor.classes, dataset.classes)
    )
    folder = out or _default_out(model_path, dataset, class_mapping)
    policy = _policy_with_targets(predictor, class_mapping, options)
    check_output(folder, marker=UNMAPPED_FILE, description="an evaluation on other data")
    check_writable(folder)
    openings = openings_of_images(
        dataset, dataset.manifest["image_id"], is_allowed=open_test, model=predictor.folder, opened_by="--on",
        recipe=str(predictor.card["recipe"].get("name", "")), run=run_of_model(predictor.folder).name,
    )  # fmt: skip
    with reading(dataset, "evaluate"), log_openings(openings) as opening_texts:
        overlap = find_training_overlap(predictor, dataset)
        scores, distances = _score_dataset(predictor, dataset, progress)
        scores.loc[scores["image_id"].isin(overlap.image_ids), "split"] = SEEN_SPLIT
        mapped = remap_predictions(scores, class_mapping)
        run_json = _run_json(predictor, dataset, class_mapping, mapped, overlap)
        run_json["warnings"] += opening_texts
        _write_folder(folder, mapped, run_json, predictor, dataset)
        _write_distances(folder, mapped, scores["image_id"], distances, predictor, dataset)
    evaluate_run(folder, dataset, options=options, policy=policy)
    return folder


def _write_folder(
    folder: Path, mapped: MappedPredictions, run_json: Mapping[str, Any], predictor: "Predictor", dataset: Dataset
) -> None:
    """Write the predictions in the target classes, and all else that an evaluation of them reads."""
    names = [lesion_class["name"] for lesion_class in run_json["dataset"]["classes"]]
    mapped_rows, columns = mapped.predictions, prediction_columns(names)
    write_predictions(folder / PREDICTIONS_FILE, names, mapped_rows[columns].to_numpy(dtype=object).tolist())
    write_groups(
        folder / GROUPS_FILE,
        dataset.manifest["image_id"],
        leakage_groups(dataset.manifest),
        mapped_rows["image_id"],
    )
    write_attributes(folder / ATTRIBUTES_FILE, dataset.manifest, mapped_rows["image_id"])
    write_rows(folder / UNMAPPED_FILE, ("image_id", "path", "label"), mapped.unmapped_images.to_numpy().tolist())
    RUN.write(folder, run_json)
    write_run_location(folder, dataset)
    recipe_json = predictor.card["recipe"]
    write_json(folder / RECIPE_FILE, recipe_json, format=format_of_recipe(recipe_json))


def _write_distances(
    folder: Path,
    mapped: MappedPredictions,
    image_ids: "pd.Series[str]",
    distances: Distances | None,
    predictor: "Predictor",
    dataset: Dataset,
) -> None:
    """Write how far the images that count lie from the training images. image_ids: of N distances."""
    rows = mapped.predictions[["image_id", "split"]]
    if distances is not None:
        numbers = pd.Index(image_ids).get_indexer(pd.Index(rows["image_id"]))
        distances = Distances(distances.distance[numbers], distances.p_value[numbers])
    write_distances(
        folder, predictor.outlier_test, rows, distances, leakage_groups(dataset.manifest),
        dataset.manifest["image_id"],
    )  # fmt: skip


def _default_out(model_path: Path, dataset: Dataset, class_mapping: ClassMapping) -> Path:
    run = run_of_model(model_path)
    mapping_hash = fingerprint(dataset.manifest_sha256, asdict(class_mapping))
    return run / EXTERNAL_FOLDER / f"{dataset.name}-{mapping_hash}"


def _score_dataset(
    predictor: "Predictor", dataset: Dataset, progress: Progress
) -> tuple[pd.DataFrame, Distances | None]:
    """Return predictions in the classes of the model, with the labels of the data set, and the images' distances."""
    from dermkit.data.cache.pixels import dataset_pixels

    manifest = dataset.manifest.sort_values("image_id").reset_index(drop=True)
    ids = manifest["image_id"].tolist()
    pixels = [dataset_pixels(dataset, ids, preprocessing, progress) for preprocessing in predictor.resizings]
    p, distances = predictor.score_with_distances(
        [cache.pixels for cache in pixels],
        range(len(ids)),
        on_progress=lambda count, total: progress.step("scoring", count, total),
        metadata=manifest,
    )
    frame = manifest[["image_id", "path", "label"]].assign(split=EXTERNAL_SPLIT, fold="", seed="")
    frame["predicted"] = np.array(predictor.class_names, dtype=object)[p.argmax(axis=1)]
    columns = {f"p_{name}": p[:, class_number] for class_number, name in enumerate(predictor.class_names)}
    return frame.assign(**columns), distances


@dataclass(frozen=True)
class TrainingOverlap:
    """What a data set shares with the images of a model's training and validation.

    image_ids: of the images that count in no test figure. same_pixels, same_isic_id: how many of them are training
    images, by either sign; same_group: how many more show the lesion or patient of one.
    """

    image_ids: frozenset[str]
    same_pixels: int
    same_isic_id: int
    same_group: int
    n_training_images: int
    n_training_images_with_id: int

    def as_dict(self) -> dict[str, int]:
        """Return the counts, as run.json and metrics.json hold them."""
        return {
            "seen_images": len(self.image_ids),
            "same_pixels": self.same_pixels,
            "same_isic_id": self.same_isic_id,
            "same_group": self.same_group,
            "training_images_with_isic_id": self.n_training_images_with_id,
            "training_images": self.n_training_images,
        }


def find_training_overlap(predictor: "Predictor", dataset: Dataset) -> TrainingOverlap:
    """Find images of the data set that the model was trained on, by identical pixels or ISIC id, and their siblings."""
    training_images = pd.DataFrame(
        predictor.training_images, columns=["pixel_sha256", "isic_id", "split"], dtype=str
    )
    training_isic_ids = set(training_images["isic_id"]) - {""}
    manifest = dataset.manifest
    has_same_pixels = manifest["pixel_sha256"].isin(set(training_images["pixel_sha256"])).to_numpy()
    has_same_id = manifest["isic_id"].isin(training_isic_ids).to_numpy()
    is_training_image, groups = has_same_pixels | has_same_id, leakage_groups(manifest)
    is_seen = np.isin(groups, groups[is_training_image])
    return TrainingOverlap(
        frozenset(manifest["image_id"][is_seen]),
        int(has_same_pixels.sum()),
        int(has_same_id.sum()),
        int((is_seen & ~is_training_image).sum()),
        len(training_images),
        int((training_images["isic_id"] != "").sum()),
    )


def _run_json(
    predictor: "Predictor",
    dataset: Dataset,
    class_mapping: ClassMapping,
    mapped: MappedPredictions,
    overlap: TrainingOverlap,
) -> dict[str, Any]:
    card, unmapped_counts = predictor.card, mapped.unmapped_counts
    return {
        "recipe": card["recipe"].get("name", ""),
        "system": card["recipe"].get("system", ""),
        "about": f"The model of {card['recipe'].get('name', '?')} (trained on {card['dataset'].get('name', '?')}) "
        f"tested on {dataset.name}. Classes matched by {class_mapping.rule}.",
        "dataset": {
            "name": dataset.name,
            "classes": [asdict(lesion_class) for lesion_class in class_mapping.targets],
            "n": len(dataset.manifest),
            "manifest_sha256": dataset.manifest_sha256,
            "licences": ", ".join(sorted(set(dataset.manifest["licence"]) - {""})),
            "audit": audit_state(dataset, None),
            "notes": dict(dataset.notes),
        },
        "split": {
            "name": "external",
            "scheme": "external",
            "counts": {str(name): int(n) for name, n in mapped.predictions["split"].value_counts().items()},
            "excluded": sum(unmapped_counts.values()),
        },
        "training_dataset": {"name": card["dataset"].get("name", ""), "audit": card["dataset"].get("audit", {})},
        "mapping": asdict(class_mapping),
        "unmapped": dict(unmapped_counts),
        "overlap": overlap.as_dict(),
        "seed": card["training"].get("seed"),
        "fold": None,
        "weights": card["weights"],
        "policy": _recorded_policy(predictor, class_mapping),
        "warnings": _warnings(predictor, dataset, unmapped_counts, overlap),
    }


def _recorded_policy(predictor: "Predictor", class_mapping: ClassMapping) -> dict[str, Any] | None:
    """Return the model's policy if classes map one to one; it was not fitted for merged classes."""
    return card_policy(predictor.card) if class_mapping.rule == "identity" else None


def _policy_with_targets(
    predictor: "Predictor", class_mapping: ClassMapping, options: EvaluationOptions
) -> DecisionPolicy | None:
    """Return the model's policy, with targets fitted on the validation images of the run that holds the model."""
    recorded_policy = _recorded_policy(predictor, class_mapping)
    if recorded_policy is None or not options.targets:
        if recorded_policy is None and options.needs_policy:
            raise DataError(
                "operating points need a fitted policy in the model's own classes; here classes "
                f"are matched by {class_mapping.rule}",
                outcome="nothing was written", remedy="evaluate without --target and --prevalence",
            )  # fmt: skip
        return None if recorded_policy is None else policy_from_dict(recorded_policy)
    run = RunFolder(predictor.folder.parent)
    validation_rows = run.predictions[run.predictions["split"] == POLICY_SPLIT]
    check_options(options, {*run.predictions["split"].unique(), EXTERNAL_SPLIT})
    validation = EvaluationInput(
        validation_rows, classes=run.classes, groups=run.groups(), fit_without_test=True,
        is_shared_policy=bool(run.ensemble),
    ).policy_images  # fmt: skip
    return add_targets(policy_from_dict(recorded_policy), validation, options)


def _warnings(
    predictor: "Predictor", dataset: Dataset, unmapped_counts: Mapping[str, int], overlap: TrainingOverlap
) -> list[str]:
    warnings = [*_overlap_warnings(overlap, dataset), *_unknown_overlap_warnings(predictor, dataset, overlap)]
    if unmapped_counts:
        label_counts = ", ".join(f"{label} {n}" for label, n in sorted(unmapped_counts.items()))
        warnings.append(
            f"{sum(unmapped_counts.values())} images are not scored: their labels map to no class ({label_counts})."
        )
    warnings += input_notes(predictor.members, dataset.manifest)
    return [*warnings, *unknown_ids_warnings(dataset.manifest)]


def _overlap_warnings(overlap: TrainingOverlap, dataset: Dataset) -> list[str]:
    """Return what is said of images that training looked at."""
    n_seen, n_images = len(overlap.image_ids), len(dataset.manifest)
    if not n_seen:
        return []
    siblings = (
        f", and {overlap.same_group} show the lesion or patient of one of them" if overlap.same_group else ""
    )
    consequence = (
        "There is no figure of images that are new to the model."
        if n_seen == n_images
        else f"They count in no test figure and stand beside as `{SEEN_SPLIT}`."
    )
    return [
        f"Not external: {n_seen - overlap.same_group} of {n_images} images were looked at in training "
        f"({overlap.same_pixels} by identical pixels, {overlap.same_isic_id} by ISIC id){siblings}. {consequence}"
    ]


def _unknown_overlap_warnings(predictor: "Predictor", dataset: Dataset, overlap: TrainingOverlap) -> list[str]:
    """Return why further overlap cannot be ruled out: images without an ISIC id, or of one archive."""
    training_dataset = predictor.card["dataset"].get("name", "the training data")
    n_without_id = {
        f"training images of {training_dataset}": overlap.n_training_images - overlap.n_training_images_with_id,
        f"images of {dataset.name}": int((dataset.manifest["isic_id"] == "").sum()),
    }
    counts = " and ".join(f"{n} {noun}" for noun, n in n_without_id.items() if n)
    archive = _common_archive(predictor, dataset)
    further = "Further overlap" if overlap.image_ids else "Overlap"
    if counts:
        origin = f" Both data sets draw from the {archive}, so copies are likely." if archive else ""
        return [
            f"{further} cannot be ruled out: {counts} carry no ISIC id, so copies of other size or compression are not "
            f"found.{origin}"
        ]
    if archive:
        return [
            f"Both data sets draw from the {archive}. All images carry its ids, so each image in both was found; "
            "clinics and cameras are shared all the same, so this is no test on images of strangers."
        ]
    return []


def _common_archive(predictor: "Predictor", dataset: Dataset) -> str:
    """Return the archive that both data sets draw from, "" where none is known."""
    training_archive = str(predictor.card["dataset"].get("notes", {}).get("archive", ""))
    return training_archive if training_archive == dataset.notes.get("archive", "") else ""
