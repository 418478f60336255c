"""Several files of a data set folder that change together: all of them or none, also where the process is killed.

New files are first written into a hidden folder beside the old ones, then commit.json lists them, then they are moved.
A process that is killed before that list leaves the old files; one that is killed after it leaves a list that whoever
opens the folder next carries out. Needed because a manifest beside the dataset.json of another one is a wrong data set,
not a broken one.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dermkit.errors import DataError
from dermkit.files import JsonFile, lock, make_folder, output_errors, sha256_file, sync_folder

STAGING_FOLDER = ".changes"
"""Hidden, so that no import takes it for images."""
_NEW_FILES = "files"
_COMMIT = JsonFile("commit.json", 1)
_LOCK_SECONDS = 60.0
"""The longest wait for a process that is moving files: a few renames."""


@dataclass
class StagedChanges:
    """Changes of a folder that are not made yet. removed: relative paths of files that will go."""

    folder: Path
    removed: list[str] = field(default_factory=list)

    @property
    def new_files(self) -> Path:
        """The folder to write the new files into, under the relative paths that they will have."""
        return self.folder / STAGING_FOLDER / _NEW_FILES

    def changed_paths(self) -> list[str]:
        """Return the relative paths of new files that differ from those in place, and of those that will go."""
        staged_paths = sorted(path for path in self.new_files.rglob("*") if path.is_file())
        names = [path.relative_to(self.new_files).as_posix() for path in staged_paths]
        return [name for name in names if not _is_same_file(self.new_files / name, self.folder / name)] + [
            name for name in self.removed if (self.folder / name).exists()
        ]

    def commit(self) -> None:
        """Make the changes; files that are the same stay untouched. Raises `OutputError`."""
        changed = self.changed_paths()
        removed = [name for name in changed if name in self.removed]
        moved = [name for name in changed if name not in self.removed]
        if changed:
            _COMMIT.write(self.folder / STAGING_FOLDER, {"move": moved, "remove": removed})
            finish_changes(self.folder)


def _is_same_file(first: Path, second: Path) -> bool:
    return (
        second.is_file()
        and first.stat().st_size == second.stat().st_size
        and sha256_file(first) == sha256_file(second)
    )


@contextmanager
def staged_changes(folder: Path) -> Iterator[StagedChanges]:
    """Yield the changes of a locked folder to be filled and committed; without a commit the folder stays as it was."""
    finish_changes(folder)
    changes = StagedChanges(folder)
    with output_errors(folder):
        shutil.rmtree(folder / STAGING_FOLDER, ignore_errors=True)
    make_folder(changes.new_files)
    try:
        yield changes
    finally:
        if not has_unfinished_changes(folder):  # else moving failed half-way, and the next command goes on
            shutil.rmtree(folder / STAGING_FOLDER, ignore_errors=True)


def has_unfinished_changes(folder: Path) -> bool:
    """Return whether files of a folder are being moved, or a process was killed while it moved them."""
    return _COMMIT.exists(folder / STAGING_FOLDER)


def finish_changes(folder: Path) -> None:
    """Make the changes of a locked folder that were listed and not made, and remove what else a killed process left."""
    staging = folder / STAGING_FOLDER
    if has_unfinished_changes(folder):
        content = _COMMIT.read(staging)
        with output_errors(folder):
            _move_files(folder, _checked_names(content.get("move"), staging))
            for name in _checked_names(content.get("remove"), staging):
                (folder / name).unlink(missing_ok=True)
            (staging / _COMMIT.name).unlink()
    shutil.rmtree(staging, ignore_errors=True)


def _move_files(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        staged_path, path = folder / STAGING_FOLDER / _NEW_FILES / name, folder / name
        if staged_path.is_file():  # else an earlier process had moved it
            path.parent.mkdir(parents=True, exist_ok=True)
            staged_path.replace(path)
            sync_folder(path.parent)


def _checked_names(names: object, staging: Path) -> list[str]:
    """Return relative paths as they were written; raises `DataError` for anything else, as a path that leads out."""
    if isinstance(names, list) and all(
        isinstance(name, str)
        and name.isprintable()
        and name.strip("./")
        and name[0] != "/"
        and ".." not in Path(name).parts
        for name in names
    ):
        return names
    raise DataError(
        f"{staging / _COMMIT.name}: is not a list of files as dermkit writes it",
        outcome="the files as they are",
        remedy=f"delete {staging}, then import the data set again",
    )


def finish_killed_changes(folder: Path) -> None:
    """Before a data set is read: make the changes that a killed process had listed, or wait for one that makes them."""
    if has_unfinished_changes(folder):
        with lock(folder, timeout=_LOCK_SECONDS):
            finish_changes(folder)
