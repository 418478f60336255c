"""The folder of an export: checked before the work, built beside its place, and put there as a whole at the end."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dermkit.errors import OutputError, UsageError, first_of
from dermkit.files import TEMP_PREFIX, check_writable, lock, make_folder, output_errors, sync_folder
from dermkit.models.checksums import CHECKSUM_FILE, expected_hashes
from dermkit.models.exported_folder import EXPORT
from dermkit.progress import Progress

_SCRATCH_PREFIX = f"{TEMP_PREFIX}export-"
_NEW, _EARLIER = "new", "earlier"
"""Folders of a scratch folder: the export that is built, and the one that it replaces; each holds it by its name."""
_MOUNTS = Path("/proc/self/mountinfo")


def export_place(out: Path) -> Path:
    """Return the folder that a path names, absolute and without links or `..`: it is checked, and it is replaced.

    Raises `UsageError` where the path itself is a link, and as `check_export_folder` does.
    """
    with output_errors(out):
        place = out if out.is_symlink() else Path(os.path.realpath(out))
    check_export_folder(place)
    return place


def check_export_folder(out: Path) -> None:
    """Raise `UsageError` unless `out` is new, empty or an earlier export alone, and can be replaced as a whole."""
    with output_errors(out):
        problem = _reason_it_stays(out)
    if problem:
        raise UsageError(
            f"{out}: {problem}, and an export puts a new folder in its place",
            outcome="nothing was written",
            remedy=f"name a new folder with --out, such as {out / 'exported' if out.is_dir() else 'exported'}",
        )
    with output_errors(out):
        names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if not EXPORT.exists(out):
        if names:  # hidden ones too: with the folder they would go
            raise UsageError(
                f"{out}: is not empty and is not an exported model (it holds {first_of(sorted(names), 3)})",
                outcome="everything there",
                remedy="name a new folder with --out",
            )
        return
    hashes = expected_hashes(out) if (out / CHECKSUM_FILE).is_file() else {}
    foreign_names = sorted(names - {CHECKSUM_FILE, *hashes})
    if foreign_names:
        raise UsageError(
            f"{out}: holds {first_of(foreign_names, 3)} beside an earlier export, which a new one would "
            "replace as a whole",
            outcome="everything there",
            remedy="name a new folder with --out, or move these files",
        )


def _reason_it_stays(out: Path) -> str:
    """Return why a path cannot be renamed or must not be replaced, "" where it can."""
    if out.is_symlink():
        return "is a link"
    if not out.exists():
        return ""
    if not out.is_dir():
        return "is a file"
    if Path.cwd().is_relative_to(out.resolve()):
        return "is the folder that you are in, or holds it"
    return "is a mount point" if _is_mount(out) else ""


def _is_mount(folder: Path) -> bool:
    """Return whether something is mounted on a folder; a part of the same disk, as in containers, is listed alone."""
    if os.path.ismount(folder):
        return True
    try:
        lines = _MOUNTS.read_bytes().splitlines()
    except OSError:
        return False
    escaped = os.fsencode(folder.resolve()).replace(b"\\", b"\\134")
    for character in b" \t\n":
        escaped = escaped.replace(bytes([character]), b"\\%03o" % character)
    return any(line.split(b" ")[4:5] == [escaped] for line in lines)


@contextmanager
def scratch_folder(out: Path, progress: Progress) -> Iterator[Path]:
    """Yield a new folder on the file system of `out`, which is gone after the block, as are parents made for it.

    out: a path that `export_place` returned. `move_into_place` puts the new folder there. What killed exports have left
    beside it is removed, and said. Raises `OutputError` where nothing can be written there.
    """
    parent = out.parent
    absent = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    try:
        check_writable(parent)
        _sweep(parent, progress)
        with output_errors(parent):
            scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH_PREFIX, dir=parent))
        try:
            with lock(scratch):
                # A folder inside: mkdtemp's own is closed to others, and this one gets the mode of new folders here.
                yield make_folder(scratch / _NEW / out.name)
        finally:
            _remove(scratch)
    finally:
        for folder in absent:
            with suppress(OSError):  # it holds the export
                folder.rmdir()


def move_into_place(scratch: Path, out: Path) -> None:
    """Put a finished folder of `scratch_folder` in the place of `out`, which is an earlier export, empty or absent.

    Raises as `check_export_folder` does: others may have written into `out` since it was checked.
    """
    check_export_folder(out)
    earlier = scratch.parents[1] / _EARLIER / out.name
    with output_errors(out):
        if out.is_dir():
            earlier.parent.mkdir()
            out.rename(earlier)
        scratch.rename(out)  # where this fails, `scratch_folder` puts the earlier one back
        sync_folder(out.parent)


def _remove(scratch: Path) -> list[Path]:
    """Remove a scratch folder, and return the earlier exports in it that went back: no new one is in their place."""
    restored = []
    with suppress(OSError):  # it stays, and nothing is lost
        for earlier in (scratch / _EARLIER).glob("*"):
            place = scratch.parent / earlier.name
            if not place.exists():
                earlier.rename(place)
                restored.append(place)
            elif not EXPORT.exists(place):
                return restored
        shutil.rmtree(scratch, ignore_errors=True)
    return restored


def _sweep(parent: Path, progress: Progress) -> None:
    """Remove what killed exports left in a folder."""
    for scratch in sorted(parent.glob(f"{_SCRATCH_PREFIX}*")):
        try:
            if not (scratch / ".lock").is_file():  # begun at this moment
                continue
            with lock(scratch):
                pass
        except (OutputError, OSError):  # an export is at work there, or it is another user's
            continue
        for place in _remove(scratch):
            progress.say(f"{place}: put back as it was before an export that was killed")
        state = "holds an earlier export, moved there" if scratch.exists() else "removed, left"
        progress.say(f"{scratch}: {state} by an export that was killed")
