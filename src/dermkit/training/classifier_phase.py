"""The one epoch in which a classifier of scikit-learn is fitted on cached features: fitted, validated and saved.

Rank 0 alone fits, and the others load its checkpoint: last bits may differ between machines.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax

from dermkit.errors import RunInterrupt
from dermkit.models.heads import ClassifierHead
from dermkit.models.inference import check_finite, eval_batches, n_parallel_batches, parallel_batches
from dermkit.recipes.schema import ClassifierSpec
from dermkit.training.checkpoint import BEST_CHECKPOINT
from dermkit.training.classifiers import ClassifierFit, TrainingFeatures, fit_classifier, weights_by_class
from dermkit.training.validation import validation_metrics

if TYPE_CHECKING:
    from dermkit.training.features import FeatureSource
    from dermkit.training.state import TrainingState


def fit_classifier_epoch(state: "TrainingState", head: ClassifierHead, source: "FeatureSource") -> None:
    """Fit the classifier on rank 0, which saves it; raises `RunInterrupt` where a stop was asked for before."""
    if state.process_group.any(state.hooks.should_stop()):
        raise RunInterrupt(
            "interrupted before the classifier was fitted",
            outcome=f"{state.job.cache_folder}, the features of all images",
            remedy="run the same command with --resume",
        )
    if state.process_group.is_first:
        row = _fit_and_validate(state, head, source)
        state.progress.finish_epoch(row, state.job.recipe.monitor)
        state.save(BEST_CHECKPOINT)
        state.save()


def _fit_and_validate(state: "TrainingState", head: ClassifierHead, source: "FeatureSource") -> dict[str, float]:
    """Return the epoch's row of log.csv, in the order of its columns."""
    job, recipe, progress = state.job, state.job.recipe, state.hooks.progress
    spec = _classifier_spec(state)
    start_time = time.perf_counter()
    state.net.eval()
    data = _training_features(state, source)
    progress.say(f"fits {spec.kind} on {len(data.labels):,} feature vectors of training images")
    for note in fit_classifier(
        head, data, ClassifierFit(spec, recipe.optim, recipe.smote, job.n_classes, job.seed)
    ):
        progress.say(f"warning: {note}")
    seconds = time.perf_counter() - start_time
    return {
        "epoch": 1, "phase": 0, "lr": float("nan"), "seconds": seconds, "train_seconds": seconds,
        "images_per_second": len(data.labels) / seconds, **_train_metrics(state, head, data),
        **validation_metrics(_validation_logits(state, source), job.labels[job.validation_rows]),
    }  # fmt: skip


def _classifier_spec(state: "TrainingState") -> ClassifierSpec:
    spec = state.job.recipe.model.classifier
    if spec is None:
        raise ValueError("the recipe has no classifier")
    return spec


def _training_features(state: "TrainingState", source: "FeatureSource") -> TrainingFeatures:
    """Return the features of every view of every training sample, view by view."""
    job, samples, n_views = state.job, source.samples, len(source.views)
    groups = job.groups if job.groups is not None else np.arange(len(job.labels))
    features = [
        source.inputs(np.arange(len(samples)), epoch=view, seed=job.seed)[0].cpu().numpy()
        for view in range(1, n_views + 1)
    ]
    return TrainingFeatures(
        features=np.concatenate(features),
        labels=np.tile(samples.labels, n_views),
        groups=np.tile(groups[samples.rows], n_views),
        views=np.repeat(np.arange(1, n_views + 1), len(samples)),
    )


def _logits(state: "TrainingState", head: ClassifierHead, features: NDArray[np.float32]) -> NDArray[np.float64]:
    def score(rows: NDArray[np.int64]) -> torch.Tensor:
        logits: torch.Tensor = head(torch.from_numpy(features[rows]).to(state.fabric.device))
        return logits

    return _in_batches(state, score, len(features))


def _validation_logits(state: "TrainingState", source: "FeatureSource") -> NDArray[np.float64]:
    def score(rows: NDArray[np.int64]) -> torch.Tensor:
        return source.validation_logits(state.net, rows)

    return _in_batches(state, score, len(source.validation_features))


def _in_batches(
    state: "TrainingState", score: Callable[[NDArray[np.int64]], torch.Tensor], n: int
) -> NDArray[np.float64]:
    """Return the logits of n rows. score: the logits of some of them."""
    device = state.fabric.device

    def batch_logits(rows: NDArray[np.int64]) -> torch.Tensor:
        with torch.inference_mode():
            return score(rows).cpu().double()

    batches = eval_batches(np.arange(n), device)
    logits = torch.cat(list(parallel_batches(batch_logits, batches, workers=n_parallel_batches(device))))
    check_finite(logits, "the fitted classifier")
    return np.asarray(logits.numpy(), dtype=np.float64)


def _train_metrics(state: "TrainingState", head: ClassifierHead, data: TrainingFeatures) -> dict[str, float]:
    """Return the loss and accuracy of the training images, weighted as they were fitted.

    Not a number for nearest neighbours: each training image is its own neighbour, so that both would say nothing.
    """
    job = state.job
    if _classifier_spec(state).kind == "k_nearest":
        return {"train_loss": float("nan"), "train_accuracy": float("nan")}
    logits = _logits(state, head, data.features)
    weights = weights_by_class(data.labels, job.n_classes, job.recipe.optim)[data.labels]
    losses = -log_softmax(logits, axis=1)[np.arange(len(data.labels)), data.labels]
    return {
        "train_loss": float((weights * losses).sum() / weights.sum()),
        "train_accuracy": float((logits.argmax(1) == data.labels).mean()),
    }
