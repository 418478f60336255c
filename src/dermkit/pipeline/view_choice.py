"""`test_views: choose`: the set of views with the lowest log loss on a run's validation images becomes the model's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dermkit.models.views import ALL_VIEWS, VIEW_SETS
from dermkit.progress import Progress

if TYPE_CHECKING:
    from dermkit.prediction.predictor import Predictor
    from dermkit.training.state import TrainingJob

CHOICE_TITLE = "Test-time views"
"""How the sentence begins among the warnings of a run."""


@dataclass(frozen=True)
class ViewChoice:
    """Which set of views was chosen. log_loss: set -> mean over the n validation images, in nats.

    n_nets: 1, or the nets of all folds and seeds that share the choice; then n is their out-of-fold predictions.
    """

    name: str
    log_loss: dict[str, float]
    n: int
    n_nets: int = 1

    @property
    def views(self) -> tuple[str, ...]:
        """Return the views of the chosen set."""
        return VIEW_SETS[self.name]

    def sentence(self) -> str:
        """Return the choice, what it rests on, and what it does to the validation figures."""
        losses = ", ".join(f"{name} {loss:.4g}" for name, loss in self.log_loss.items())
        images = f"the {self.n} validation images"
        if self.n_nets > 1:
            images = f"all {self.n} out-of-fold predictions of {self.n_nets} nets, which all take it"
        return (
            f"{CHOICE_TITLE}: {self.name}, the set with the lowest log loss on {images} "
            f"({losses}). These images chose it, so their figures and the calibration fitted on them are slightly too "
            "good; test images had no part in it."
        )


def choose_views(view_probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> ViewChoice:
    """Return the set of views with the lowest log loss, the one of fewer views where two are equal.

    view_probabilities: (views, N, K) of `ALL_VIEWS`. labels: (N,) int64.
    """
    log_loss = {
        name: _log_loss(view_probabilities[[ALL_VIEWS.index(view) for view in views]].mean(axis=0), labels)
        for name, views in VIEW_SETS.items()
    }
    return ViewChoice(min(log_loss, key=lambda name: log_loss[name]), log_loss, len(labels))


def pool_choices(choices: Sequence[ViewChoice]) -> ViewChoice:
    """Return the set with the lowest log loss over the validation images of all runs, each weighing as one image."""
    n = sum(choice.n for choice in choices)
    log_loss = {name: math.fsum(choice.n * choice.log_loss[name] for choice in choices) / n for name in VIEW_SETS}
    return ViewChoice(min(log_loss, key=lambda name: log_loss[name]), log_loss, n, len(choices))


def choose_on_validation(predictor: "Predictor", job: "TrainingJob", progress: Progress) -> ViewChoice:
    """Score every view of a run's validation images by its saved net, in float32, and choose a set."""
    from dermkit.models.inference import InferenceEngine, eval_batches, n_parallel_batches, parallel_batches

    engine = InferenceEngine(predictor.nets[0], predictor.preprocessing, progress.say, views=ALL_VIEWS)
    rows = job.validation_rows

    def score(batch: NDArray[np.int64]) -> NDArray[np.float64]:
        metadata = None if job.metadata is None else job.metadata.vectors[batch]
        return engine.view_probabilities(np.asarray(job.pixels[batch]), metadata=metadata)

    batches = eval_batches(rows, engine.device)
    scored: Sequence[NDArray[np.float64]] = list(
        parallel_batches(score, batches, workers=n_parallel_batches(engine.device))
    )
    return choose_views(np.concatenate(scored, axis=1), job.labels[rows])


def _log_loss(p: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    smallest = np.finfo(np.float64).tiny
    return float(-np.log(np.maximum(p[np.arange(len(labels)), labels], smallest)).mean())
