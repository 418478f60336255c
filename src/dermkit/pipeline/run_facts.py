"""What a run's files say about it: its data, split, weights, machine, how training ended, and the next commands."""

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dermkit.audit.status import audit_state
from dermkit.data.split import check_split
from dermkit.files import read_json, write_text
from dermkit.lint.rules import as_rows
from dermkit.lint.training import BatchNorm, Training, lint_training
from dermkit.pipeline.plan import Plan, Where
from dermkit.recipes.schema import Recipe, as_dict, load
from dermkit.reporting.warnings import UNSTABLE

if TYPE_CHECKING:
    from dermkit.images.preprocess import Preprocessing
    from dermkit.models.net import Net, Weights
    from dermkit.prediction.predictor import ModelFacts
    from dermkit.training.checkpoint import Progress


def training_facts(plan: Plan, progress: "Progress") -> dict[str, Any]:
    """Return how training ended: which epoch was best, and why it stopped."""
    value, monitor = progress.best_value, plan.recipe.monitor
    if value is not None:
        value = None if np.isnan(value) else (-value if monitor == "val_loss" else value)
    planned = sum(phase.epochs for phase in plan.recipe.phases)
    done, last = len(progress.rows), int(progress.rows[-1]["epoch"])
    return {
        "seed": plan.seed,
        "fold": None if plan.fold < 0 else plan.fold,
        "best": {"epoch": progress.best_epoch, "monitor": monitor, "value": value},
        "stopped": {
            "epoch": last,
            "epochs_trained": done,
            "reason": "all epochs done" if done == planned else "early stopping",
        },
        "kept": plan.recipe.keep,
    }


def training_warnings(plan: Plan, progress: "Progress") -> list[str]:
    """Return what happened on the way that a reader of the figures should know."""
    warnings = []
    if progress.setbacks:
        places = [f"{item['what']} in epoch {item['epoch']}, batch {item['batch']}" for item in progress.setbacks]
        warnings.append(
            f"{UNSTABLE}: something was not a number {len(progress.setbacks)} times ({'; '.join(places)}). Each time "
            f"the epoch was begun again at half the learning rates; they end at {progress.lr_scale:g} of the recipe's."
        )
    micro, batch = progress.micro, plan.recipe.optim.batch_size
    if micro and micro < batch:
        warnings.append(
            f"Memory held {micro} images at a time: each batch of {batch} was added up from several passes, and "
            "batch norm, where it learnt, saw the smaller ones."
        )
    return warnings


def model_facts(plan: Plan, training: Mapping[str, Any]) -> "ModelFacts":
    from dermkit.prediction.predictor import ModelFacts

    used = plan.sides[plan.sides["split"].isin(["train", "validation"])]
    rows = plan.dataset.manifest.set_index("image_id").loc[used["image_id"]]
    return ModelFacts(
        recipe=as_dict(load(plan.folder / "recipe.json")),
        dataset=dataset_facts(plan),
        weights=weights_facts(plan.weights),
        training=training,
        seen=sorted(zip(rows["pixel_sha256"], rows["isic_id"], used["split"], strict=True)),
    )


def run_facts(plan: Plan) -> dict[str, Any]:
    split = plan.split
    warnings = [*split.notes]
    if plan.weights.origin == "none" and not _trains_backbone(plan.recipe):
        warnings.append("A frozen net of random weights: its features mean little, and so do these figures.")
    manifest = plan.dataset.manifest
    if not ((manifest["lesion_id"] != "") | (manifest["patient_id"] != "")).any():
        warnings.append(
            "No lesion or patient ids: intervals take every picture for an independent one, and may be too narrow."
        )
    absent = [name for name, count in _train_counts(plan).items() if not count]
    if absent:
        warnings.append(f"Never seen in training, so never to be predicted: {', '.join(absent)}.")
    warnings += [meeting.sentence() for meeting in plan.meetings]
    if plan.weights.note:
        warnings.append(f"Weights: {plan.weights.note}")
    return {
        "recipe": plan.recipe.name,
        "system": plan.recipe.system,
        "about": plan.recipe.about,
        "dataset": dataset_facts(plan),
        "split": {
            "name": split.name,
            "scheme": split.spec.scheme if split.spec else "file",
            "counts": {side: int((plan.sides["split"] == side).sum()) for side in ("train", "validation", "test")},
            "train_counts": _train_counts(plan),
            "excluded": len(split.excluded),
            "leaks": check_split(plan.dataset.manifest, split, allow_leaks=True),
        },
        "seed": plan.seed,
        "fold": None if plan.fold < 0 else plan.fold,
        "weights": weights_facts(plan.weights),
        "warnings": warnings,
    }


def _trains_backbone(recipe: Recipe) -> bool:
    return any(phase.train_backbone != "none" for phase in recipe.phases)


def _train_counts(plan: Plan) -> dict[str, int]:
    """Return training images per class: what a rule without eyes would know."""
    ids = plan.sides.loc[plan.sides["split"] == "train", "image_id"]
    labels = plan.dataset.manifest.set_index("image_id").loc[ids, "label"]
    return {name: int((labels == name).sum()) for name in plan.dataset.class_names}


def training_lint(plan: Plan, net: "Net", preprocessing: "Preprocessing") -> list[dict[str, Any]]:
    """Return what the lint finds in a training before it starts, as rows for files and reports."""
    from dermkit.models.net import batch_norm_state

    pretrained = plan.weights.origin != "none"
    side = dict(zip(plan.sides["image_id"], plan.sides["split"], strict=True))
    manifest = plan.dataset.manifest
    images = manifest[manifest["image_id"].isin(side)]
    training = Training(
        recipe=plan.recipe,
        mean=preprocessing.mean,
        std=preprocessing.std,
        weights_mean=plan.weights.mean if pretrained else None,
        weights_std=plan.weights.std if pretrained else None,
        batch_norm=[BatchNorm(*batch_norm_state(net, phase)) for phase in plan.recipe.phases],
        images=images.assign(split=images["image_id"].map(side)),
    )
    return as_rows(lint_training(training))


def dataset_facts(plan: Plan) -> dict[str, Any]:
    dataset = plan.dataset
    licences = sorted(set(dataset.manifest["licence"]) - {""})
    return {
        "name": dataset.name,
        "classes": [asdict(item) for item in dataset.classes],
        "n": len(dataset.manifest),
        "manifest_sha256": dataset.manifest_sha256,
        "licences": ", ".join(licences),
        "audit": audit_state(dataset, plan.split.frame),
        "notes": dict(dataset.notes),
    }


def weights_facts(weights: "Weights") -> dict[str, Any]:
    return {"origin": weights.origin, "sha256": weights.sha256, "licence": weights.licence, "note": weights.note}


def other_environment(folder: Path, where: Where) -> list[str]:
    """Return how this machine differs from the one that a run was started on: its last bits may then differ."""
    path = folder / "environment.json"
    if not path.is_file():
        return []
    before, now = read_json(path, format=1), environment(where)
    changed = [f"{key} {before.get(key)} -> {now[key]}" for key in now if before.get(key) != now[key]]
    return (
        [f"resumed elsewhere than started, so the last bits may differ: {'; '.join(changed)}"] if changed else []
    )


def environment(where: Where) -> dict[str, Any]:
    """Return what can change the last bits of a result: versions, processor, threads."""
    import torch

    from dermkit.prediction.predictor import versions

    return {
        "versions": versions(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": where.device,
        "devices": where.devices * where.nodes,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
    }


OPENING = "Open the sealed test side"


def drop_opening_step(folder: Path) -> None:
    """Take the opening of the sealed test side out of NEXT_STEPS.txt: this run has opened it, and again would count."""
    path = folder / "NEXT_STEPS.txt"
    if path.is_file():
        parts = path.read_text(encoding="utf-8").split("\n\n")
        write_text(path, "\n\n".join(part for part in parts if not part.startswith(OPENING)))


def write_next_steps(folder: Path, dataset: Path, weights: Path | None, *, sealed: bool = False) -> None:
    """Write the exact next commands. sealed: the test side was not scored, and this is how it is opened."""
    option = f" --weights {weights}" if weights else ""
    opening = f"""
{OPENING}: once, when recipe, model and thresholds are decided; every opening is counted:
  dermkit evaluate {folder} --open-test {dataset}
"""
    text = f"""Research use only. Not a medical device.

Predict new images (files, folders, patterns):
  dermkit predict {folder / "model"} IMAGE... --out predictions

Test on another data set:
  dermkit evaluate {folder} --on OTHER_DATASET [--map CLASSES.json]

Evaluate and report again from predictions.csv:
  dermkit evaluate {folder}
  dermkit report {folder}
{opening if sealed else ""}
Repeat this run exactly (data set: {dataset.name}):
  dermkit train {folder / "recipe.json"} DATASET --split {folder / "split.csv"}{option} --out again
"""
    write_text(folder / "NEXT_STEPS.txt", text)
