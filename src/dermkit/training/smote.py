"""SMOTE: new feature vectors of small classes, between neighbours of a class; only training samples are given to it.

Shapes: N samples, S new ones, C features, K classes.
"""

from dataclasses import dataclass

import numpy as np
from imblearn.over_sampling import SMOTE
from numpy.typing import NDArray

from dermkit.recipes.training_specs import SmoteSpec


@dataclass(frozen=True)
class NewSamples:
    """Samples that were made: features (S, C) float32 and labels (S,) int64, class by class."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]


def n_new_samples(labels: NDArray[np.int64], spec: SmoteSpec) -> NDArray[np.int64]:
    """Return how many samples each class gets, (classes up to the highest label,); 0 for one without samples."""
    counts = np.bincount(labels)
    target = round(spec.target_fraction * int(counts.max(initial=0)))
    return np.where(counts > 0, np.maximum(target - counts, 0), 0)


def make_samples(
    features: NDArray[np.float32], labels: NDArray[np.int64], spec: SmoteSpec, *, seed: int, view: int
) -> NewSamples:
    """Return new samples of the smaller classes, from (seed, view, class) and that class's samples alone.

    A class has at most one neighbour fewer than samples, and the one sample of a class is repeated.
    """
    new_features, new_labels = [features[:0]], [labels[:0]]
    for label, n_new in enumerate(n_new_samples(labels, spec)):
        if n_new:
            class_features = features[labels == label]
            new_features.append(_of_class(class_features, int(n_new), spec, [seed, view, label]))
            new_labels.append(np.full(n_new, label, dtype=np.int64))
    return NewSamples(np.concatenate(new_features), np.concatenate(new_labels))


def _of_class(features: NDArray[np.float32], n_new: int, spec: SmoteSpec, seed: list[int]) -> NDArray[np.float32]:
    """Return (n_new, C) new vectors of one class."""
    n = len(features)
    if n == 1:
        return np.repeat(features, n_new, axis=0)
    # imbalanced-learn wants two classes. One sample stands for the others, and no new vector lies towards it.
    with_other = np.concatenate([features, features[:1]])
    is_other = np.arange(n + 1) == n
    smote = SMOTE(
        sampling_strategy={0: n + n_new},
        k_neighbors=min(spec.neighbours, n - 1),
        random_state=int(np.random.SeedSequence(seed).generate_state(1)[0]),
    )
    resampled, _ = smote.fit_resample(with_other, is_other.astype(np.int64))
    return np.asarray(resampled[n + 1 :], dtype=np.float32)


def small_class_notes(counts: dict[str, int], spec: SmoteSpec) -> list[str]:
    """Return a sentence for each class that SMOTE cannot treat as the recipe says. counts: training images by class."""
    target = round(spec.target_fraction * max(counts.values(), default=0))
    notes = []
    for name, count in counts.items():
        if not 0 < count < target or count > spec.neighbours:
            continue
        if count == 1:
            notes.append(
                f"SMOTE: {name} has one training image, whose features are repeated {target - 1} times: there is no "
                "neighbour to interpolate with."
            )
        else:
            notes.append(
                f"SMOTE: {name} has {count} training images, so the neighbours of each are {count - 1} in place of "
                f"{spec.neighbours}."
            )
    return notes
