"""Diagnose overfitting from the training log: from which epoch, by which rule, and how large the gap is."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dermkit.errors import DataError
from dermkit.metrics.stats.arrays import Floats

RISE_MARGIN = 0.02
"""Validation loss must end this fraction above its minimum; a smaller rise may be noise of a small validation set."""

MIN_EPOCHS_AFTER = 2
"""Epochs that must follow the minimum: a single worse epoch may be noise."""

OVERFITTING_RULE = (
    f"overfitting starts with the first epoch from which the validation loss stays above its minimum to the end, "
    f"if at least {MIN_EPOCHS_AFTER} epochs follow the minimum, the mean validation loss of the last "
    f"{MIN_EPOCHS_AFTER} epochs is more than {RISE_MARGIN:.0%} above the minimum, and the training loss ends below "
    f"its value at the minimum"
)

REQUIRED_LOG_COLUMNS = ("epoch", "train_loss", "val_loss", "train_accuracy", "val_accuracy")


def diagnose_overfitting(log: Mapping[str, ArrayLike] | Any) -> dict[str, Any]:
    """Return whether, and from which epoch, a run overfits by `OVERFITTING_RULE`.

    log: the columns of log.csv (a table or a mapping), one value per epoch. Result: `overfitting` (None = too few
    epochs), `epoch` (the first one that overfits, or None), `rule`, `gap_loss` (validation - training) and
    `gap_accuracy` (training - validation) at the last epoch, `sentence`. The log's training metrics are measured with
    augmentation and dropout on, so they understate the gap. Raises `DataError` for a missing or textual column.
    """
    missing_columns = [name for name in REQUIRED_LOG_COLUMNS if name not in log]
    if missing_columns:
        raise DataError(
            f"log.csv: no column {', '.join(missing_columns)}", remedy="train again, or restore the file"
        )
    values = {name: _to_numbers(log[name], name) for name in REQUIRED_LOG_COLUMNS}
    val_loss = values["val_loss"]
    if len(val_loss) < 1 + MIN_EPOCHS_AFTER or not all(np.isfinite(column).all() for column in values.values()):
        epochs_text = (
            f"{len(val_loss)} epochs" if len(val_loss) < 1 + MIN_EPOCHS_AFTER else "epochs without a finite figure"
        )
        return _diagnosis(None, None, values, f"Overfitting cannot be told from {epochs_text}.")
    # The last of equal minima: from the next epoch on, every value is above it.
    best_row = len(val_loss) - 1 - int(np.argmin(val_loss[::-1]))
    if not _is_overfitting(values["train_loss"], val_loss, best_row):
        return _diagnosis(False, None, values, "No overfitting by the rule." + _gap_sentence(values))
    first_epoch = int(values["epoch"][best_row + 1])
    sentence = (
        f"Overfitting from epoch {first_epoch}: validation loss {val_loss[best_row]:.3f} at epoch "
        f"{int(values['epoch'][best_row])}, {val_loss[-1]:.3f} at the end, while training loss fell from "
        f"{values['train_loss'][best_row]:.3f} to {values['train_loss'][-1]:.3f}."
    )
    return _diagnosis(True, first_epoch, values, sentence + _gap_sentence(values))


def _to_numbers(column: ArrayLike, name: str) -> Floats:
    try:
        return np.asarray(column, dtype=np.float64)
    except ValueError as error:
        raise DataError(f"log.csv: column {name} is not numeric: {error}", remedy="restore the file") from error


def _is_overfitting(train_loss: Floats, val_loss: Floats, best_row: int) -> bool:
    has_enough_epochs = len(val_loss) - 1 - best_row >= MIN_EPOCHS_AFTER
    has_risen = float(val_loss[-MIN_EPOCHS_AFTER:].mean()) > val_loss[best_row] * (1 + RISE_MARGIN)
    return bool(has_enough_epochs and has_risen and train_loss[-1] < train_loss[best_row])


def _gap_sentence(values: Mapping[str, Floats]) -> str:
    train, val = values["train_accuracy"][-1], values["val_accuracy"][-1]
    return f" Accuracy at the end: {train:.3f} in training, {val:.3f} in validation (gap {train - val:.3f})."


def _diagnosis(
    overfitting: bool | None, epoch: int | None, values: Mapping[str, Floats], sentence: str
) -> dict[str, Any]:
    return {
        "overfitting": overfitting,
        "epoch": epoch,
        "rule": OVERFITTING_RULE,
        "gap_loss": _last_gap(values["val_loss"], values["train_loss"]),
        "gap_accuracy": _last_gap(values["train_accuracy"], values["val_accuracy"]),
        "sentence": sentence,
    }


def _last_gap(upper: Floats, lower: Floats) -> float | None:
    if not len(upper) or not np.isfinite(upper[-1] - lower[-1]):
        return None
    return float(upper[-1] - lower[-1])
