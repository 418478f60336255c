"""The targets that a person saved in a model, while that model is written anew: a killed command loses none of them."""

from pathlib import Path

from dermkit.errors import DataError, UsageError
from dermkit.evaluation.options import EvaluationOptions, Target
from dermkit.files import output_errors
from dermkit.models.card import MODEL_JSON, extra_targets, is_ensemble, read_card
from dermkit.runs.layout import MODEL_FOLDER, SAVED_TARGETS


def keep_saved_targets(folder: Path) -> None:
    """Write down the targets saved in the ensemble of a folder, before it is written anew."""
    model = folder / MODEL_FOLDER
    if MODEL_JSON.exists(model) and is_ensemble(read_card(model)) and (targets := saved_targets(folder)):
        SAVED_TARGETS.write(folder, {"targets": targets})


def saved_targets(folder: Path) -> tuple[Target, ...]:
    """Return the targets of a folder's model, and those that wait for it; raises `DataError` for a broken list."""
    model = folder / MODEL_FOLDER
    model_targets = extra_targets(model) if model.is_dir() else ()
    return tuple(dict.fromkeys((*_read_waiting(folder), *model_targets)))


def _read_waiting(folder: Path) -> tuple[Target, ...]:
    try:
        entries = SAVED_TARGETS.read_optional(folder).get("targets", [])
        targets = tuple((str(rate), float(value)) for rate, value in entries)
        return EvaluationOptions(targets=tuple(dict.fromkeys(targets))).targets
    except (TypeError, ValueError, UsageError) as error:
        raise DataError(
            f"{folder / SAVED_TARGETS.name}: is not a list of targets: {error}",
            outcome="the model and its evaluation as they are",
            remedy="delete the file; dermkit evaluate RUN --target sensitivity=.97 --save-targets saves a target again",
        ) from error


def drop_saved_targets(folder: Path) -> None:
    """Remove the list, once the model holds the targets."""
    path = folder / SAVED_TARGETS.name
    with output_errors(path):
        path.unlink(missing_ok=True)
