"""What a run's files say about it: its data, split, weights, machine, how training ended, and the next commands."""

import os
import platform
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dermkit.audit.status import audit_state
from dermkit.data.split import check_split
from dermkit.files import ON_WINDOWS, write_text
from dermkit.lint.rules import lint_rows
from dermkit.lint.training import BatchNormState, TrainingFacts, lint_training
from dermkit.pipeline.plan import RunPlan, RunSettings
from dermkit.recipes.schema import Recipe, load_recipe, recipe_to_dict
from dermkit.runs.layout import (
    ENVIRONMENT,
    MODEL_FOLDER,
    NEXT_STEPS_FILE,
    RECIPE_FILE,
    SPLIT_FILE,
    UNSTABLE_TRAINING,
)

if TYPE_CHECKING:
    from dermkit.images.preprocess import Preprocessing
    from dermkit.models.net import Net
    from dermkit.models.weights import BackboneWeights
    from dermkit.prediction.predictor import ModelMetadata
    from dermkit.training.checkpoint import TrainingProgress


def training_outcome(plan: RunPlan, training_progress: "TrainingProgress") -> dict[str, Any]:
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


def training_warnings(plan: RunPlan, training_progress: "TrainingProgress") -> list[str]:
    """Return what happened on the way that a reader of the figures should know."""
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


def describe_model(plan: RunPlan, training: Mapping[str, Any]) -> "ModelMetadata":
    from dermkit.prediction.predictor import ModelMetadata

    used_rows = plan.split_table[plan.split_table["split"].isin(["train", "validation"])]
    manifest_rows = plan.dataset.manifest.set_index("image_id").loc[used_rows["image_id"]]
    return ModelMetadata(
        recipe=recipe_to_dict(load_recipe(plan.folder / RECIPE_FILE)),
        dataset=describe_dataset(plan),
        weights=describe_weights(plan.weights),
        training=training,
        training_images=sorted(
            zip(manifest_rows["pixel_sha256"], manifest_rows["isic_id"], used_rows["split"], strict=True)
        ),
    )


def describe_run(plan: RunPlan) -> dict[str, Any]:
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
    warnings += [overlap.sentence() for overlap in plan.partial_overlaps]
    if plan.weights.note:
        warnings.append(f"Weights: {plan.weights.note}")
    return {
        "recipe": plan.recipe.name,
        "system": plan.recipe.system,
        "about": plan.recipe.about,
        "dataset": describe_dataset(plan),
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
        },
        "seed": plan.seed,
        "fold": None if plan.fold < 0 else plan.fold,
        "weights": describe_weights(plan.weights),
        "warnings": warnings,
    }


def _trains_backbone(recipe: Recipe) -> bool:
    return any(phase.train_backbone != "none" for phase in recipe.phases)


def _train_counts(plan: RunPlan) -> dict[str, int]:
    """Return training images per class: what a rule without eyes would know."""
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


def describe_dataset(plan: RunPlan) -> dict[str, Any]:
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


def describe_weights(weights: "BackboneWeights") -> dict[str, Any]:
    return {"origin": weights.origin, "sha256": weights.sha256, "licence": weights.licence, "note": weights.note}


def environment_changes(folder: Path, settings: RunSettings) -> list[str]:
    """Return how this machine differs from the one that a run was started on: its last bits may then differ."""
    if not ENVIRONMENT.exists(folder):
        return []
    recorded_environment, current_environment = ENVIRONMENT.read(folder), describe_environment(settings)
    changes = [
        f"{key} {recorded_environment.get(key)} -> {current_environment[key]}"
        for key in current_environment
        if recorded_environment.get(key) != current_environment[key]
    ]
    return (
        [f"resumed elsewhere than started, so the last bits may differ: {'; '.join(changes)}"] if changes else []
    )


def describe_environment(settings: RunSettings) -> dict[str, Any]:
    """Return what can change the last bits of a result: versions, processor, threads."""
    import torch

    from dermkit.prediction.predictor import runtime_versions

    return {
        "versions": runtime_versions(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": settings.device,
        "devices": settings.devices * settings.nodes,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
    }


OPENING_STEP = "Open the sealed test side"


def remove_opening_step(folder: Path) -> None:
    """Take the opening of the sealed test side out of NEXT_STEPS.txt: this run has opened it, and again would count."""
    path = folder / NEXT_STEPS_FILE
    if path.is_file():
        blocks = path.read_text(encoding="utf-8").split("\n\n")
        write_text(path, "\n\n".join(block for block in blocks if not block.startswith(OPENING_STEP)))


def write_next_steps(folder: Path, dataset: Path, weights: Path | None, *, is_sealed: bool = False) -> None:
    """Write the exact next commands. is_sealed: the test images were not scored; a command that opens them is added."""
    run, model = _quote(folder), _quote(folder / MODEL_FOLDER)
    recipe, split = _quote(folder / RECIPE_FILE), _quote(folder / SPLIT_FILE)
    weights_option = f" --weights {_quote(weights)}" if weights else ""
    opening = f"""
{OPENING_STEP}: once, when recipe, model and thresholds are decided; every opening is counted:
  dermkit evaluate {run} --open-test {_quote(dataset)}
"""
    text = f"""Research use only. Not a medical device.

Predict new images (files, folders, patterns):
  dermkit predict {model} IMAGE... --out predictions

Test on another data set:
  dermkit evaluate {run} --on OTHER_DATASET [--map CLASSES.json]

Evaluate and report again from predictions.csv:
  dermkit evaluate {run}
  dermkit report {run}
{opening if is_sealed else ""}
Repeat this run exactly (data set: {dataset.name}):
  dermkit train {recipe} DATASET --split {split}{weights_option} --out again
"""
    write_text(folder / NEXT_STEPS_FILE, text)


def _quote(path: Path) -> str:
    """Return a path as it is typed in a shell, so that a space does not divide it."""
    return f'"{path}"' if ON_WINDOWS else shlex.quote(str(path))
