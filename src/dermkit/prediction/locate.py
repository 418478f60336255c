"""Checks of a path that is named as a run or a model, with one wording of the errors."""

from pathlib import Path

from dermkit.errors import DataError, UntrustedError
from dermkit.models.checksums import CHECKSUM_FILE
from dermkit.runs.folder import RunFolder
from dermkit.runs.layout import METRICS, MODEL_FOLDER, RUN, SUMMARY

_MAX_LISTED = 5
_RUN_MARKERS = (RUN, METRICS, SUMMARY)
_PATH_REMEDY = "check the path"


def check_folder(folder: Path) -> None:
    """Raise `DataError` where a path is not a folder."""
    if folder.is_dir():
        return
    problem = "is a file, not a folder" if folder.exists() else "there is no such folder"
    raise DataError(f"{folder}: {problem}", outcome="nothing was written", remedy=_PATH_REMEDY)


def check_model_folder(folder: Path) -> None:
    """Raise `DataError` where a path is not a folder, or holds runs but is itself neither a run nor a model."""
    check_folder(folder)
    check_no_rung(folder)
    if any((candidate / CHECKSUM_FILE).is_file() for candidate in (folder, folder / MODEL_FOLDER)):
        return
    if find_runs(folder):
        raise DataError(
            f"{folder}: holds runs, and is neither a run nor a model",
            outcome="nothing was written",
            remedy=suggest_run(folder, _PATH_REMEDY),
        )


def check_no_rung(folder: Path) -> None:
    """Raise `UntrustedError` for a run of a leak ladder, or its model: some were trained on what they are tested on."""
    for run in (folder, folder.resolve().parent):
        if RunFolder(run).rung_warnings:
            raise UntrustedError(
                f"{run}: is a rung of a leak ladder, which measures splits and keeps no model",
                outcome="nothing was written",
                remedy="train the recipe on a split by patient and lesion: dermkit train RECIPE DATASET",
            )


def find_runs(folder: Path) -> list[str]:
    """Return the names of the runs and folders of repeats directly below a folder."""
    try:
        subfolders = sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:  # no permission to list it: the error is raised without names
        return []
    return [path.name for path in subfolders if any(file.exists(path) for file in _RUN_MARKERS)]


def suggest_run(folder: Path, default: str) -> str:
    """Return the remedy for a folder that is not a run: it names the runs in it; `default` where there are none."""
    runs = find_runs(folder)
    if not runs:
        return default
    omitted_text = f" or one of {len(runs) - _MAX_LISTED} more" if len(runs) > _MAX_LISTED else ""
    return f"name a run in it: {', '.join(str(folder / name) for name in runs[:_MAX_LISTED])}{omitted_text}"
