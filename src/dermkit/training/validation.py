"""What training looks at between epochs: quick figures without intervals, for choosing a checkpoint, never reported."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from dermkit.metrics.classification.confusion import (
    accuracy,
    balanced_accuracy_present,
    confusion_matrix,
    macro_mean,
)
from dermkit.metrics.classification.roc import auroc


def validation_metrics(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> dict[str, float]:
    """Return loss, accuracy, balanced accuracy and macro AUROC of validation logits (N, K) and labels (N,).

    The loss is the plain cross-entropy, unweighted, from the logits, so no probability is clipped. Both means over
    classes are over the classes that have validation images, so that a recipe can be monitored without all of them.
    """
    log_probabilities = log_softmax(logits, axis=1)
    confusion = confusion_matrix(labels, logits.argmax(axis=1), logits.shape[1])
    return {
        "val_loss": float(-log_probabilities[np.arange(len(labels)), labels].mean()),
        "val_accuracy": float(accuracy(confusion)),
        "val_balanced_accuracy": balanced_accuracy_present(confusion),
        "val_auroc_macro": _macro_auroc(labels, np.exp(log_probabilities)),
    }


def _macro_auroc(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """Return the mean one-vs-rest AUROC over the classes that are there (nan: one class)."""
    values = [auroc(probabilities[:, class_index], labels == class_index) for class_index in np.unique(labels)]
    return float(macro_mean(np.array(values), present_only=True))
