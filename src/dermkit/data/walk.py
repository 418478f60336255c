"""Walks a folder of images safely: no link is followed out, no loop entered, nothing opened, nothing lost unsaid."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from dermkit.data.images import IMAGE_SUFFIXES
from dermkit.data.manifest import COLUMNS, INTEGER_COLUMNS
from dermkit.errors import DataError, Refusal

IGNORED_NAMES = frozenset({"__macosx", "thumbs.db", "desktop.ini"})
"""Left by operating systems, in lower case; hidden names are ignored too."""

# Why a file never reached the gate; beside the reasons of `errors.Refusal`.
MISPLACED = "misplaced"
LINK = "link_not_followed"
BAD_NAME = "bad_name"
NO_METADATA = "no_metadata"

_ISIC_ID = re.compile(r"(?<![A-Za-z0-9])ISIC_\d{7}(?!\d)", re.IGNORECASE)


class Refused(NamedTuple):
    """A file or row that did not become an image of the data set: relative path, reason code, detail."""

    path: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Note:
    """Something a person should know, that stopped nothing; `n` is how many images, files or rows it is about."""

    code: str
    text: str
    n: int


@dataclass(frozen=True, eq=False)
class Rows:
    """What a reader found. frame: the manifest columns without hashes and sizes, sorted by path.

    images: the root that `path` is relative to.
    """

    frame: pd.DataFrame
    images: Path
    refused: list[Refused] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)


@dataclass
class Walk:
    """A folder being read: what was found in it, refused and noticed."""

    root: Path
    refused: list[Refused] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    other_files: Counter[str] = field(default_factory=Counter)

    def entries(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """Return the sorted subfolders and candidate images of a folder; refuses what is neither safe nor named well.

        Linked folders are never entered, so that no loop can form.
        """
        folders, files = [], []
        for path in listed(folder):
            if not is_utf8(path.name) or "\r" in path.name:
                self.refuse(path, BAD_NAME, "the name is not UTF-8 or holds a carriage return; rename it")
            elif path.is_symlink() and path.is_dir():
                self.refuse(path, LINK, "a linked folder is not entered; copy the images there instead")
            elif path.is_dir():
                folders.append(path)
            elif path.suffix.lower() not in IMAGE_SUFFIXES:
                self.other_files[path.suffix.lower() or "no ending"] += 1
            elif self._is_safe(path):
                files.append(path)
        return folders, files

    def _is_safe(self, path: Path) -> bool:
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(self.root):
            self.refuse(path, LINK, "the link leads outside the source; copy the image there instead")
        elif path.exists() and not path.is_file():
            self.refuse(path, Refusal.UNREADABLE.value, "not a regular file")
        else:
            return True  # a broken link too: the gate says what is missing
        return False

    def refuse(self, path: Path, reason: str, detail: str) -> None:
        name = path.relative_to(self.root).as_posix().replace("\r", "\\r")
        self.refused.append(Refused(name.encode("utf-8", "backslashreplace").decode(), reason, detail))

    def refuse_below(self, folders: Iterable[Path], detail: str) -> int:
        """Refuse every candidate in these folders and below; returns how many."""
        count = 0
        for folder in folders:
            below, files = self.entries(folder)
            for path in files:
                self.refuse(path, MISPLACED, detail)
            count += len(files) + self.refuse_below(below, detail)
        return count

    def all_images(self, folder: Path) -> Iterator[Path]:
        """Yield every candidate image at any depth, sorted."""
        below, files = self.entries(folder)
        yield from files
        for item in below:
            yield from self.all_images(item)

    def finish(self) -> None:
        if self.other_files:
            kinds = ", ".join(f"{ending} {n}" for ending, n in sorted(self.other_files.items()))
            total = self.other_files.total()
            self.notes.append(Note("other_files", f"Files that are no images by their ending: {kinds}.", total))


def listed(folder: Path) -> list[Path]:
    """Return a folder's visible entries, sorted by name, without data set folders that dermkit wrote.

    Raises `DataError` where it cannot be listed.
    """
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be listed: {error.strerror or error}", remedy="check the path and its permissions"
        ) from error
    return [
        path
        for path in paths
        if path.name[0] != "." and path.name.lower() not in IGNORED_NAMES and not (path / "dataset.json").is_file()
    ]


def is_utf8(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def make_frame(**columns: Sequence[str]) -> pd.DataFrame:
    """Return rows with every manifest column but hashes and sizes, sorted by path; columns not given are "".

    `path` gives image_id and isic_id where these are not given.
    """
    paths = list(columns["path"])
    known = {"image_id": image_ids(paths), "isic_id": [isic_id(path) for path in paths], **columns}
    names = [name for name in COLUMNS if name not in INTEGER_COLUMNS and not name.endswith("_sha256")]
    frame = pd.DataFrame({name: pd.Series(known.get(name, [""] * len(paths)), dtype="str") for name in names})
    return frame.sort_values("path", kind="stable").reset_index(drop=True)


def image_ids(paths: Sequence[str]) -> list[str]:
    """Return each path without its ending; where that is not unique, with it."""
    ids = {path: path[: -len(Path(path).suffix)] if Path(path).suffix else path for path in paths}
    while True:
        counts = Counter(ids.values())
        clashing = [path for path in paths if counts[ids[path]] > 1 and ids[path] != path]
        if not clashing:
            return [ids[path] for path in paths]
        ids.update({path: path for path in clashing})


def isic_id(path: str) -> str:
    """Return the ISIC id in a file's name ("ISIC_0000000", also before "_downsampled"), or ""."""
    found = _ISIC_ID.search(path.rpartition("/")[2])
    return found.group().upper() if found else ""
