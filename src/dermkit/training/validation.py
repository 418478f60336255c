"""What training looks at between epochs: quick figures without intervals, for choosing a checkpoint, never reported."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from dermkit.metrics.classification.roc import auroc


def validation_guides(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> dict[str, float]:
    """Return loss, accuracy, balanced accuracy and macro AUROC of validation logits (N, classes).

    The loss is the plain cross-entropy, unweighted.
    """
    logs = log_softmax(logits, axis=1)
    predicted = logits.argmax(axis=1)
    return {
        "val_loss": float(-logs[np.arange(len(labels)), labels].mean()),
        "val_accuracy": float((predicted == labels).mean()),
        "val_balanced_accuracy": balanced_accuracy_present(labels, predicted),
        "val_auroc_macro": auroc_macro_present(labels, np.exp(logs)),
    }


def balanced_accuracy_present(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    """Return the mean recall over the classes that are there."""
    return float(np.mean([(predicted[labels == item] == item).mean() for item in np.unique(labels)]))


def auroc_macro_present(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """Return the mean one-vs-rest AUROC over the classes that are there (nan: one class)."""
    values = [auroc(probabilities[:, item], labels == item) for item in np.unique(labels)]
    return float(np.mean(values)) if values else float("nan")
