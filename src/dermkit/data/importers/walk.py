"""Walks a folder of images safely.

Links out of the folder and loops are not followed, no file is opened, and every file that is left out is reported.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dermkit.data.importers.csv_tables import is_table_text
from dermkit.data.importers.records import Note, Rejected
from dermkit.errors import DataError, RejectionReason, check_fault_of_path, first_of
from dermkit.files import walk_files
from dermkit.images.formats import IMAGE_SUFFIXES
from dermkit.images.recognise import TABLE_SUFFIXES, has_image_bytes, is_ignored, is_image, suffix_of

# Reasons beside those of `errors.RejectionReason`: the file was not opened.
REASON_MISPLACED = "misplaced"
REASON_LINK = "link_not_followed"
REASON_BAD_NAME = "bad_name"


ARCHIVE_SUFFIXES = frozenset({".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz"})
UNNAMED_TABLE_SUFFIXES = frozenset({"", ".txt", ".dat"})
"""Endings of files that may hold a table without being called one."""
_MAX_NAMED = 5


@dataclass
class FolderWalk:
    """A walk through a folder of images, and what it has met so far.

    Paths are strings relative to the root, with `/`; a million of them take a third of the memory of `Path` objects.
    other_files: suffix -> number of files that are no images. tables: paths of tables. unnamed_tables: paths of files
    that hold a table by their text, not by their name, such as `HAM10000_metadata`. archives: paths of archives.
    """

    root: Path
    rejected: list[Rejected] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    other_files: Counter[str] = field(default_factory=Counter)
    tables: list[str] = field(default_factory=list)
    unnamed_tables: list[str] = field(default_factory=list)
    archives: list[str] = field(default_factory=list)

    def entries(self, folder: str = "") -> tuple[list[str], list[str]]:
        """Return the sorted subfolders and candidate images of a folder; rejects unsafe links and invalid names.

        Linked folders are never entered, so that no loop can form. Tables are listed, not opened.
        """
        folders, files = [], []
        try:
            entries = visible_entries(self.root / folder)
        except DataError as error:
            if not folder:
                raise
            self.reject(folder, RejectionReason.UNREADABLE.value, error.message.rpartition(": ")[2])
            return [], []
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            suffix = suffix_of(entry.name)
            if not is_utf8(entry.name) or "\r" in entry.name:
                self.reject(path, REASON_BAD_NAME, "the name is not UTF-8 or holds a carriage return; rename it")
            elif entry.is_symlink() and _is_folder(entry):
                self.reject(path, REASON_LINK, "a linked folder is not entered; copy the images there instead")
            elif _is_folder(entry):
                folders.append(path)
            elif suffix not in IMAGE_SUFFIXES and (suffix in TABLE_SUFFIXES or not self._has_image_bytes(entry)):
                self._add_other_file(entry, path, suffix)
            elif self._is_safe(entry, path):
                files.append(path)
        return folders, files

    def _has_image_bytes(self, entry: "os.DirEntry[str]") -> bool:
        return self._stays_inside(entry) and not _is_special(entry) and has_image_bytes(entry.path)

    def _add_other_file(self, entry: "os.DirEntry[str]", path: str, suffix: str) -> None:
        self.other_files[suffix or "no ending"] += 1
        if not self._stays_inside(entry) or _is_special(entry):
            return  # not a pipe: reading it would wait forever
        if suffix in TABLE_SUFFIXES:
            self.tables.append(path)
        elif suffix in ARCHIVE_SUFFIXES:
            self.archives.append(path)
        elif suffix in UNNAMED_TABLE_SUFFIXES and is_table_text(Path(entry.path)):
            self.unnamed_tables.append(path)

    def _stays_inside(self, entry: "os.DirEntry[str]") -> bool:
        return not entry.is_symlink() or Path(os.path.realpath(entry.path)).is_relative_to(self.root)

    def _is_safe(self, entry: "os.DirEntry[str]", path: str) -> bool:
        if not self._stays_inside(entry):
            self.reject(path, REASON_LINK, "the link leads outside the source; copy the image there instead")
        elif _is_special(entry):
            self.reject(path, RejectionReason.UNREADABLE.value, "not a regular file")
        else:
            return True  # a broken link too: opening it reports that the file is missing
        return False

    def reject(self, path: str, reason: str, detail: str) -> None:
        """List a file as rejected; characters that are not UTF-8 are escaped."""
        name = path.replace("\r", "\\r")
        self.rejected.append(Rejected(name.encode("utf-8", "backslashreplace").decode(), reason, detail))

    def reject_below(self, folders: Iterable[str], detail: str) -> int:
        """Reject every candidate image in and below these folders; returns how many."""
        n_rejected, pending = 0, [*folders][::-1]
        while pending:
            subfolders, files = self.entries(pending.pop())
            for path in files:
                self.reject(path, REASON_MISPLACED, detail)
            n_rejected += len(files)
            pending += subfolders[::-1]
        return n_rejected

    def all_images(self, folder: str = "") -> Iterator[str]:
        """Yield every candidate image at any depth, in a fixed order."""
        pending = [folder]
        while pending:
            subfolders, files = self.entries(pending.pop())
            yield from files
            pending += subfolders[::-1]

    def note_other_files(self) -> None:
        """Add a note about the files that are no images."""
        if self.other_files:
            counts_text = ", ".join(f"{ending} {n}" for ending, n in sorted(self.other_files.items()))
            total = self.other_files.total()
            self.notes.append(
                Note(
                    "other_files",
                    f"Files that are not images, by their ending and first bytes: {counts_text}.",
                    total,
                )
            )
        if self.archives:
            text = (
                f"Archives in the folder are not opened: {first_of(self.archives, _MAX_NAMED)}; unpack them there."
            )
            self.notes.append(Note("archives", text, len(self.archives)))


def resolve_source(source: Path) -> Path:
    """Return the absolute path of a source folder; raises `DataError` if it is not a folder."""
    if not source.is_dir():
        problem = "is not a folder" if source.exists() else "does not exist"
        raise DataError(f"{source}: {problem}", remedy="give the folder with the images, or a .zip of it")
    return source.resolve()


def visible_entries(folder: Path) -> list["os.DirEntry[str]"]:
    """Return a folder's visible entries, sorted by name, without data set folders that dermkit wrote.

    Raises `DataError` if it cannot be listed.
    """
    try:
        with os.scandir(folder) as iterator:
            entries = sorted(iterator, key=lambda entry: entry.name)
    except OSError as error:
        check_fault_of_path(error, folder)
        raise DataError(
            f"{folder}: cannot be listed: {error.strerror or error}", remedy="check the path and its permissions"
        ) from error
    return [
        entry
        for entry in entries
        if not is_ignored(entry.name) and not (_is_folder(entry) and Path(entry.path, "dataset.json").is_file())
    ]


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_special(entry: "os.DirEntry[str]") -> bool:
    """Return whether an entry is a pipe, a socket or a device; a broken link is not."""
    try:
        return not entry.is_file() and Path(entry.path).exists()
    except OSError:
        return False


def visible_paths(folder: Path) -> list[Path]:
    """Return a folder's visible entries as paths; see `visible_entries`."""
    return [Path(entry.path) for entry in visible_entries(folder)]


def may_be_image(path: Path) -> bool:
    """Return whether a path is a file that is an image by its name or its bytes."""
    return not path.is_dir() and is_image(path, path.name)


def single_image_folder(root: Path) -> Path | None:
    """Return the only subfolder with images, if there are no images beside it; otherwise None."""
    paths = visible_paths(root)
    folders = [path for path in paths if path.is_dir() and not path.is_symlink() and _holds_images(path)]
    return folders[0] if len(folders) == 1 and not any(map(may_be_image, paths)) else None


def single_subfolder(root: Path) -> Path:
    """Descend while a folder holds a single subfolder and no images or tables, as unpacked archives often do."""
    while True:
        folders = [entry for entry in visible_entries(root) if entry.is_dir(follow_symlinks=False)]
        files = [entry for entry in visible_entries(root) if not _is_folder(entry)]
        if len(folders) != 1 or any(_is_image_or_table(entry) for entry in files):
            return root
        root = Path(folders[0].path)


def _holds_images(folder: Path) -> bool:
    return any(map(may_be_image, walk_files(folder)))


def _is_image_or_table(entry: "os.DirEntry[str]") -> bool:
    suffix = suffix_of(entry.name)
    return (
        suffix in TABLE_SUFFIXES
        or is_image(entry.path, entry.name)
        or (suffix in UNNAMED_TABLE_SUFFIXES and not _is_special(entry) and is_table_text(Path(entry.path)))
    )


def is_utf8(name: str) -> bool:
    """Return whether a name can be written as UTF-8; names of other encodings contain surrogates."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
