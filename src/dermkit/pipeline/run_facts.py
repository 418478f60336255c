"""What run.json, environment.json and model.json record: data, split, weights, machine, and how training ended."""

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dermkit.audit.status import audit_state
from dermkit.data.split import check_split
from dermkit.lint.rules import lint_rows
from dermkit.lint.training import BatchNormState, TrainingFacts, lint_training
from dermkit.pipeline.metadata_input import metadata_notes
from dermkit.pipeline.plan import Continuation, RunPlan, RunSettings
from dermkit.recipes.schema import Recipe, load_recipe, recipe_to_dict
from dermkit.runs.layout import (
    ENVIRONMENT,
    RECIPE_FILE,
    UNSTABLE_TRAINING,
)

if TYPE_CHECKING:
    from dermkit.images.preprocess import Preprocessing
    from dermkit.models.net import Net
    from dermkit.models.weights import BackboneWeights
    from dermkit.prediction.model_folder import ModelMetadata
    from dermkit.training.checkpoint import TrainingProgress


@dataclass(frozen=True)
class FinishedTraining:
    """How a training ended. seconds: since this process began to prepare it; lint: as `training_lint` returns it."""

    progress: "TrainingProgress"
    seconds: float
    lint: list[dict[str, Any]]


def describe_run(plan: RunPlan, training: FinishedTraining | None = None) -> dict[str, Any]:
    """Return run.json: the recipe, data set, split, seed and weights of a run, and once it is trained, the outcome."""
    run_json = _describe_plan(plan)
    if training is None:
        return run_json
    training_minutes = sum(row["seconds"] for row in training.progress.log_rows) / 60
    return {
        **run_json,
        "warnings": [*run_json["warnings"], *_training_warnings(plan, training.progress)],
        **_training_outcome(plan, training.progress),
        # After a resume this process saw only the end; the log's epochs were all trained.
        "minutes": max(training.seconds / 60, training_minutes),
        "minutes_training": training_minutes,
        "lint": training.lint,
    }


def _describe_plan(plan: RunPlan) -> dict[str, Any]:
    split = plan.split
    warnings = [*split.notes]
    if plan.weights.origin == "none" and not _trains_backbone(plan.recipe):
        warnings.append("A frozen net of random weights: its features mean little, and so do these figures.")
    manifest = plan.dataset.manifest
    if not ((manifest["lesion_id"] != "") | (manifest["patient_id"] != "")).any():
        warnings.append(
            "No lesion or patient ids: intervals take every picture for an independent one, and may be too narrow."
        )
    absent_classes = [name for name, count in _train_counts(plan).items() if not count]
    if absent_classes:
        warnings.append(f"Never seen in training, so never to be predicted: {', '.join(absent_classes)}.")
    warnings += _smote_notes(plan)
    warnings += metadata_notes(plan.recipe.model.metadata, plan.dataset, plan.split_table)
    warnings += [overlap.sentence() for overlap in plan.partial_overlaps]
    if plan.continued and plan.continued.note:
        warnings.append(plan.continued.note)
    if plan.teacher is not None:
        warnings.append(_describe_teacher(plan)["teacher"]["note"])
    if plan.weights.note:
        warnings.append(f"Weights: {plan.weights.note}")
    return {
        "recipe": plan.recipe.name,
        "system": plan.recipe.system,
        "about": plan.recipe.about,
        "dataset": _describe_dataset(plan),
        "split": {
            "name": split.name,
            "scheme": split.spec.scheme if split.spec else "file",
            "counts": {
                split_name: int((plan.split_table["split"] == split_name).sum())
                for split_name in ("train", "validation", "test")
            },
            "train_counts": _train_counts(plan),
            "excluded": len(split.excluded),
            "leaks": check_split(plan.dataset.manifest, split, allow_leaks=True),
            **({"leaves_test_to_ensemble": True} if plan.leaves_test_to_ensemble else {}),
        },
        "seed": plan.seed,
        "fold": None if plan.fold < 0 else plan.fold,
        "weights": _describe_weights(plan.weights),
        "warnings": warnings,
        **_describe_teacher(plan),
        **({"continued_from": _describe_continuation(plan.continued)} if plan.continued else {}),
    }


def _smote_notes(plan: RunPlan) -> list[str]:
    """Return which classes are too small for the recipe's SMOTE; copies by `grow` are neighbours too."""
    from dermkit.training.smote import small_class_notes

    if plan.recipe.smote is None or plan.recipe.grow is not None:
        return []
    return small_class_notes(_train_counts(plan), plan.recipe.smote)


def _describe_teacher(plan: RunPlan) -> dict[str, Any]:
    if plan.teacher is None:
        return {}
    ids = plan.split_table.loc[plan.split_table["split"] == "train", "image_id"].tolist()
    return {"teacher": plan.teacher.describe(plan.dataset, ids)}


def _describe_continuation(continued: Continuation) -> dict[str, Any]:
    return {
        "run": continued.folder.name,
        "epochs": continued.n_epochs,
        "is_exact": continued.is_exact,
        "key": continued.key,
        "note": continued.note,
    }


def _training_outcome(plan: RunPlan, training_progress: "TrainingProgress") -> dict[str, Any]:
    """Return how training ended: which epoch was best, and why it stopped."""
    value, monitor = training_progress.best_value, plan.recipe.monitor
    if value is not None:
        value = None if np.isnan(value) else (-value if monitor == "val_loss" else value)
    n_planned = sum(phase.epochs for phase in plan.recipe.phases)
    n_trained, last_epoch = len(training_progress.log_rows), int(training_progress.log_rows[-1]["epoch"])
    return {
        "seed": plan.seed,
        "fold": None if plan.fold < 0 else plan.fold,
        "best": {"epoch": training_progress.best_epoch, "monitor": monitor, "value": value},
        "stopped": {
            "epoch": last_epoch,
            "epochs_trained": n_trained,
            "reason": "all epochs done" if n_trained == n_planned else "early stopping",
        },
        "keep": plan.recipe.keep,
    }


def _training_warnings(plan: RunPlan, training_progress: "TrainingProgress") -> list[str]:
    """Return what happened in training that a reader of the metrics should know."""
    warnings = []
    if training_progress.nan_recoveries:
        setback_texts = [
            f"{setback['what']} in epoch {setback['epoch']}, batch {setback['batch']}"
            for setback in training_progress.nan_recoveries
        ]
        warnings.append(
            f"{UNSTABLE_TRAINING}: something was not a number {len(training_progress.nan_recoveries)} "
            f"times ({'; '.join(setback_texts)}). Each time "
            f"the epoch was begun again at half the learning rates; they end at "
            f"{training_progress.lr_scale:g} of the recipe's."
        )
    micro_batch, batch = training_progress.micro_batch_size, plan.recipe.optim.batch_size
    if micro_batch and micro_batch < batch:
        warnings.append(
            f"Memory held {micro_batch} images at a time: each batch of {batch} was added up from several passes, and "
            "batch norm, where it learnt, saw the smaller ones."
        )
    return warnings


def describe_model(plan: RunPlan, run_json: Mapping[str, Any]) -> "ModelMetadata":
    """Return what model.json says of the training. run_json: of the finished training."""
    from dermkit.prediction.model_folder import ModelMetadata

    used_rows = plan.split_table[plan.split_table["split"].isin(["train", "validation"])]
    manifest_rows = plan.dataset.manifest.set_index("image_id").loc[used_rows["image_id"]]
    return ModelMetadata(
        recipe=recipe_to_dict(load_recipe(plan.folder / RECIPE_FILE)),
        dataset=run_json["dataset"],
        weights=run_json["weights"],
        training={
            name: run_json[name]
            for name in ("seed", "fold", "best", "stopped", "keep", "teacher")
            if name in run_json
        },
        training_images=sorted(
            zip(manifest_rows["pixel_sha256"], manifest_rows["isic_id"], used_rows["split"], strict=True)
        ),
    )


def _trains_backbone(recipe: Recipe) -> bool:
    return any(phase.train_backbone != "none" for phase in recipe.phases)


def _train_counts(plan: RunPlan) -> dict[str, int]:
    """Return training images per class, for the baselines that never see an image."""
    ids = plan.split_table.loc[plan.split_table["split"] == "train", "image_id"]
    labels = plan.dataset.manifest.set_index("image_id").loc[ids, "label"]
    return {name: int((labels == name).sum()) for name in plan.dataset.class_names}


def training_lint(plan: RunPlan, net: "Net", preprocessing: "Preprocessing") -> list[dict[str, Any]]:
    """Return what the lint finds in a training before it starts, as rows for files and reports."""
    from dermkit.models.net import count_batch_norms

    is_pretrained = plan.weights.origin != "none"
    split_of_image = dict(zip(plan.split_table["image_id"], plan.split_table["split"], strict=True))
    manifest = plan.dataset.manifest
    images = manifest[manifest["image_id"].isin(split_of_image)]
    training = TrainingFacts(
        recipe=plan.recipe,
        mean=preprocessing.mean,
        std=preprocessing.std,
        weights_mean=plan.weights.mean if is_pretrained else None,
        weights_std=plan.weights.std if is_pretrained else None,
        batch_norm=[BatchNormState(*count_batch_norms(net, phase)) for phase in plan.recipe.phases],
        images=images.assign(split=images["image_id"].map(split_of_image)),
    )
    return lint_rows(lint_training(training))


def _describe_dataset(plan: RunPlan) -> dict[str, Any]:
    dataset = plan.dataset
    licences = sorted(set(dataset.manifest["licence"]) - {""})
    return {
        "name": dataset.name,
        "classes": [asdict(lesion_class) for lesion_class in dataset.classes],
        "n": len(dataset.manifest),
        "manifest_sha256": dataset.manifest_sha256,
        "licences": ", ".join(licences),
        "audit": audit_state(dataset, plan.split.frame),
        "notes": dict(dataset.notes),
    }


def _describe_weights(weights: "BackboneWeights") -> dict[str, Any]:
    return {"origin": weights.origin, "sha256": weights.sha256, "licence": weights.licence, "note": weights.note}


def record_environment(folder: Path, settings: RunSettings) -> str:
    """Write environment.json; returns how it differs from that of a run begun elsewhere, "" where it does not."""
    before, now = ENVIRONMENT.read_optional(folder), _describe_environment(settings)
    ENVIRONMENT.write(folder, now)
    changes = [f"{key} {before.get(key)} -> {now[key]}" for key in now if before.get(key) != now[key]]
    if not before or not changes:
        return ""
    return f"resumed elsewhere than started, so the last bits may differ: {'; '.join(changes)}"


def _describe_environment(settings: RunSettings) -> dict[str, Any]:
    """Return what can change the last bits of a result: versions, processor, threads."""
    import torch

    from dermkit.models.inference import torch_versions

    return {
        "versions": torch_versions(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": settings.device,
        "devices": settings.devices * settings.nodes,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
    }
