"""Folders that somebody names as a run or a model: refused in one way where they are not there, or only hold runs."""

from pathlib import Path

from dermkit.errors import DataError
from dermkit.models.checksums import CHECKSUM_FILE

_MAX_LISTED = 5
_RUN_MARKERS = ("run.json", "metrics.json", "summary.json")
_PATH_REMEDY = "check the path"


def check_folder(folder: Path) -> None:
    """Raise `DataError` for a path that is no folder."""
    if folder.is_dir():
        return
    problem = "is a file, not a folder" if folder.exists() else "there is no such folder"
    raise DataError(f"{folder}: {problem}", outcome="nothing was written", remedy=_PATH_REMEDY)


def check_model_folder(folder: Path) -> None:
    """Raise `DataError` for a path that is no folder, or that holds runs but no model."""
    check_folder(folder)
    if any((candidate / CHECKSUM_FILE).is_file() for candidate in (folder, folder / "model")):
        return
    if find_runs(folder):
        raise DataError(
            f"{folder}: holds runs, and is neither a run nor a model",
            outcome="nothing was written",
            remedy=suggest_run(folder, _PATH_REMEDY),
        )


def find_runs(folder: Path) -> list[str]:
    """Return the names of the runs, or folders of repeats, that lie in a folder."""
    try:
        subfolders = sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:  # a folder that may not be listed: the refusal stands without names
        return []
    return [path.name for path in subfolders if any((path / name).is_file() for name in _RUN_MARKERS)]


def suggest_run(folder: Path, default: str) -> str:
    """Return the remedy for a folder that is no run: the runs in it by name, `default` where it holds none."""
    runs = find_runs(folder)
    if not runs:
        return default
    omitted_text = f" or one of {len(runs) - _MAX_LISTED} more" if len(runs) > _MAX_LISTED else ""
    return f"name a run in it: {', '.join(str(folder / name) for name in runs[:_MAX_LISTED])}{omitted_text}"
