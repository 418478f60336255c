"""Validation metrics between epochs, without intervals: they choose the best epoch, and are no results of a run."""

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
    """Return loss, accuracy, balanced accuracy and macro AUROC of V validation images and K classes.

    logits: (V, K) float64; labels: (V,) int64. The loss is the unweighted cross-entropy in nats, from the logits, so
    that no probability is clipped. Both means over classes are over those with validation images: a data set in which a
    class has none can still be monitored. AUROC is nan where one class alone is there.
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
    """Return the mean one-vs-rest AUROC over the classes that have images; nan where there is one class."""
    values = [auroc(probabilities[:, class_index], labels == class_index) for class_index in np.unique(labels)]
    return float(macro_mean(np.array(values), present_only=True))
