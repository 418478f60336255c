"""The training features of a net that was just trained: what its training images look like to it.

Shapes: N rows of the pixel array, C features of the net.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.metrics.stats.arrays import Ints
from dermkit.models.training_features import (
    MAX_VALIDATION_IMAGES,
    ReferenceFeatures,
    fit_training_features,
    select_training_rows,
)
from dermkit.progress import Progress

if TYPE_CHECKING:
    from dermkit.models.net import Net
    from dermkit.training.state import TrainingJob


def fit_on_job(job: "TrainingJob", net: "Net", manifest: pd.DataFrame, progress: Progress) -> ReferenceFeatures:
    """Return the training features of a trained net, with the threshold that validation images set.

    Validation images of a lesion or patient that is in training have no part in it.
    manifest: of the data set, in the order of the job's rows; its pixel hashes tell training images again.
    """
    groups = np.arange(len(job.image_ids)) if job.groups is None else job.groups
    train = job.train_rows[select_training_rows(job.labels[job.train_rows], groups[job.train_rows])]
    # A published split may leak: the lesions of both sides lie too near, and would set the threshold too low.
    unlearned = job.validation_rows[~np.isin(groups[job.validation_rows], groups[job.train_rows])]
    validation = np.random.default_rng(0).permutation(unlearned)[:MAX_VALIDATION_IMAGES]
    rows = np.concatenate([train, validation])
    features = _features(job, net, rows, progress)
    return fit_training_features(
        features[: len(train)],
        features[len(train) :],
        labels=job.labels[train],
        groups=groups[train],
        validation_groups=groups[validation],
        pixel_keys=short_pixel_keys(manifest["pixel_sha256"].iloc[train]),
        image_ids=[job.image_ids[row] for row in train],
    )


def short_pixel_keys(pixel_sha256: "pd.Series[str]") -> NDArray[np.uint64]:
    """Return the first 8 bytes of pixel hashes as numbers, (N,)."""
    return np.array([int(text[:16] or "0", 16) for text in pixel_sha256], dtype=np.uint64)


def _features(job: "TrainingJob", net: "Net", rows: Ints, progress: Progress) -> NDArray[np.float32]:
    """Return the features (N, C) of unaugmented images, computed as a prediction computes them."""
    from dermkit.models.inference import InferenceEngine, eval_batches, n_parallel_batches, parallel_batches

    engine = InferenceEngine(net.eval(), job.preprocessing, progress.say)

    def compute(batch: Ints) -> NDArray[np.float32]:
        _, features = engine.score(np.asarray(job.pixels[batch]))
        if features is None:
            raise TypeError("the net has no features of its own")
        return features

    batches = eval_batches(rows, engine.device)
    parts, n_done = [], 0
    for part in parallel_batches(compute, batches, workers=n_parallel_batches(engine.device)):
        parts.append(part)
        n_done += len(part)
        progress.step("features of training images", n_done, len(rows))
    return np.concatenate(parts)
