"""What training looks at between epochs: quick figures without intervals, for choosing a checkpoint, never reported."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from dermkit.metrics.classification.roc import auroc


def validation_metrics(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> dict[str, float]:
    """Return loss, accuracy, balanced accuracy and macro AUROC of validation logits (N, classes).

    The loss is the plain cross-entropy, unweighted.
    """
    log_probabilities = log_softmax(logits, axis=1)
    predicted = logits.argmax(axis=1)
    return {
        "val_loss": float(-log_probabilities[np.arange(len(labels)), labels].mean()),
        "val_accuracy": float((predicted == labels).mean()),
        "val_balanced_accuracy": _balanced_accuracy(labels, predicted),
        "val_auroc_macro": _macro_auroc(labels, np.exp(log_probabilities)),
    }


def _balanced_accuracy(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    """Return the mean recall over the classes that are there."""
    return float(
        np.mean([(predicted[labels == class_index] == class_index).mean() for class_index in np.unique(labels)])
    )


def _macro_auroc(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """Return the mean one-vs-rest AUROC over the classes that are there (nan: one class)."""
    values = [auroc(probabilities[:, class_index], labels == class_index) for class_index in np.unique(labels)]
    return float(np.mean(values)) if values else float("nan")
