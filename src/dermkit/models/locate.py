"""Folders that somebody names as a run or a model: refused in one way where they are not there, or only hold runs."""

from pathlib import Path

from dermkit.errors import DataError
from dermkit.models.checksums import SUMS

LISTED = 5
RUN_FILES = ("run.json", "metrics.json", "summary.json")
CHECK_THE_PATH = "check the path"


def check_folder(folder: Path) -> None:
    """Raise `DataError` for a path that is no folder."""
    if folder.is_dir():
        return
    what = "is a file, not a folder" if folder.exists() else "there is no such folder"
    raise DataError(f"{folder}: {what}", kept="nothing was written", remedy=CHECK_THE_PATH)


def check_model_folder(folder: Path) -> None:
    """Raise `DataError` for a path that is no folder, or that holds runs but no model."""
    check_folder(folder)
    if any((place / SUMS).is_file() for place in (folder, folder / "model")):
        return
    if runs_in(folder):
        raise DataError(
            f"{folder}: holds runs, and is neither a run nor a model",
            kept="nothing was written",
            remedy=which_run(folder, CHECK_THE_PATH),
        )


def runs_in(folder: Path) -> list[str]:
    """Return the names of the runs, or folders of repeats, that lie in a folder."""
    try:
        inside = sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:  # a folder that may not be listed: the refusal stands without names
        return []
    return [path.name for path in inside if any((path / name).is_file() for name in RUN_FILES)]


def which_run(folder: Path, otherwise: str) -> str:
    """Return the remedy for a folder that is no run: the runs in it by name, `otherwise` where it holds none."""
    runs = runs_in(folder)
    if not runs:
        return otherwise
    more = f" or one of {len(runs) - LISTED} more" if len(runs) > LISTED else ""
    return f"name a run in it: {', '.join(str(folder / name) for name in runs[:LISTED])}{more}"
