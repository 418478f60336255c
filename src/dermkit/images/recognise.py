"""Which files of a folder are images: one rule for imports, archives and predictions, by the bytes of a file.

A file is an image if it begins like one, whatever it is called, or if it is called like one, so that a broken or unread
image is refused with its reason and never passed over.
"""

from pathlib import Path

from dermkit.files import open_regular
from dermkit.images.formats import IMAGE_SUFFIXES, image_kind

TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".tab"})
HEAD_BYTES = 132
"""As many bytes as tell the format of an image: DICOM's mark ends there."""
IGNORED_NAMES = frozenset(
    {
        "__macosx", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r", "@eadir", "#recycle",
        "$recycle.bin", "system volume information", "lost+found",
    }
)  # fmt: skip
"""Files and folders of operating systems and network drives, in lower case. Hidden files are ignored too."""


def is_ignored(name: str) -> bool:
    """Return whether a file or folder is hidden, or of the operating system."""
    return name.startswith(".") or name.lower() in IGNORED_NAMES


def suffix_of(name: str) -> str:
    """Return the suffix of a file name in lower case with its dot, or ""."""
    base, dot, ending = name.rpartition(".")
    return f".{ending.lower()}" if dot and base and ending else ""


def is_image(path: str | Path, name: str) -> bool:
    """Return whether a regular file is an image, by its name or its first bytes; one that cannot be read is none.

    A file that is called a table is one, so that a broken table is told and not taken for a photograph.
    """
    suffix = suffix_of(name)
    return suffix in IMAGE_SUFFIXES or (suffix not in TABLE_SUFFIXES and has_image_bytes(path))


def has_image_bytes(path: str | Path) -> bool:
    """Return whether a regular file begins like an image; nothing but a regular file is opened."""
    try:
        with open_regular(Path(path)) as stream:
            return bool(image_kind(stream.read(HEAD_BYTES)))
    except (OSError, ValueError):
        return False
