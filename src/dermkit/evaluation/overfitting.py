"""Overfitting, named: from which epoch, by which rule, how large the gap."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dermkit.errors import DataError
from dermkit.metrics.stats.arrays import Floats

MARGIN = 0.02
"""Validation loss must end this share above its minimum; a smaller rise is the noise of a few images."""

FEWEST_AFTER = 2
"""Epochs that must follow the minimum: one worse epoch is chance."""

RULE = (
    f"overfitting starts with the first epoch from which the validation loss stays above its minimum to the end, "
    f"if at least {FEWEST_AFTER} epochs follow the minimum, the mean validation loss of the last "
    f"{FEWEST_AFTER} epochs is more than {MARGIN:.0%} above the minimum, and the training loss ends below "
    f"its value at the minimum"
)

COLUMNS = ("epoch", "train_loss", "val_loss", "train_accuracy", "val_accuracy")


def diagnose_overfitting(log: Mapping[str, ArrayLike] | Any) -> dict[str, Any]:
    """Say whether, and from which epoch, a run overfits, by `RULE`.

    log: the columns of log.csv (a table or a mapping). Result: `overfitting` (None = cannot be told), `epoch` (the
    first of overfitting, or None), `rule`, `gap_loss` (validation - training) and `gap_accuracy` (training -
    validation) at the last epoch, `sentence`. Training figures are those the log holds: with augmentation and
    dropout on, they understate the gap. Raises `DataError` for a missing or textual column.
    """
    missing = [name for name in COLUMNS if name not in log]
    if missing:
        raise DataError(f"log.csv: no column {', '.join(missing)}", remedy="train again, or restore the file")
    values = {name: _numbers(log[name], name) for name in COLUMNS}
    val = values["val_loss"]
    if len(val) < 1 + FEWEST_AFTER or not all(np.isfinite(column).all() for column in values.values()):
        few = f"{len(val)} epochs" if len(val) < 1 + FEWEST_AFTER else "epochs without a finite figure"
        return _verdict(None, None, values, f"Overfitting cannot be told from {few}.")
    # The last of equal minima: from the next epoch on, every value is above it.
    best = len(val) - 1 - int(np.argmin(val[::-1]))
    if not _overfits(values["train_loss"], val, best):
        return _verdict(False, None, values, "No overfitting by the rule." + _gap_sentence(values))
    first = int(values["epoch"][best + 1])
    rise = (
        f"Overfitting from epoch {first}: validation loss {val[best]:.3f} at epoch "
        f"{int(values['epoch'][best])}, {val[-1]:.3f} at the end, while training loss fell from "
        f"{values['train_loss'][best]:.3f} to {values['train_loss'][-1]:.3f}."
    )
    return _verdict(True, first, values, rise + _gap_sentence(values))


def _numbers(column: ArrayLike, name: str) -> Floats:
    try:
        return np.asarray(column, dtype=np.float64)
    except ValueError as error:
        raise DataError(f"log.csv: column {name} is not numeric: {error}", remedy="restore the file") from error


def _overfits(train: Floats, val: Floats, best: int) -> bool:
    followed = len(val) - 1 - best >= FEWEST_AFTER
    risen = float(val[-FEWEST_AFTER:].mean()) > val[best] * (1 + MARGIN)
    return bool(followed and risen and train[-1] < train[best])


def _gap_sentence(values: Mapping[str, Floats]) -> str:
    train, val = values["train_accuracy"][-1], values["val_accuracy"][-1]
    return f" Accuracy at the end: {train:.3f} in training, {val:.3f} in validation (gap {train - val:.3f})."


def _verdict(
    overfitting: bool | None, epoch: int | None, values: Mapping[str, Floats], sentence: str
) -> dict[str, Any]:
    return {
        "overfitting": overfitting,
        "epoch": epoch,
        "rule": RULE,
        "gap_loss": _last_gap(values["val_loss"], values["train_loss"]),
        "gap_accuracy": _last_gap(values["train_accuracy"], values["val_accuracy"]),
        "sentence": sentence,
    }


def _last_gap(above: Floats, below: Floats) -> float | None:
    if not len(above) or not np.isfinite(above[-1] - below[-1]):
        return None
    return float(above[-1] - below[-1])
