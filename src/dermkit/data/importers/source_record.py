"""Which archive or .npz the unpacked images of a data set folder come from."""

import shutil
from pathlib import Path

from dermkit.errors import DataError, UsageError
from dermkit.files import TEMP_PREFIX, read_json, sha256_file, write_json

SOURCE_FILE = ".dermkit-source.json"
"""Lies beside unpacked images and names the archive that they come from, with its hash; hidden, so no walk sees it."""
SOURCE_FORMAT = 1


def record_source(folder: Path, source: Path) -> None:
    """Write `SOURCE_FILE`: the name and hash of the file that the images of a folder come from."""
    write_json(folder / SOURCE_FILE, {"name": source.name, "sha256": sha256_file(source)}, format=SOURCE_FORMAT)


def has_source_record(folder: Path) -> bool:
    """Return whether a folder holds images that dermkit unpacked."""
    return (folder / SOURCE_FILE).is_file()


def is_unpacked_by_us(folder: Path) -> bool:
    """Return whether a folder holds images that dermkit unpacked, or nothing yet because it was killed before."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    return has_source_record(folder) or all(path.name.startswith(TEMP_PREFIX) for path in folder.iterdir())


def remove_unpacked(folder: Path) -> None:
    """Remove unpacked images, the record of their source last: until then, a repeated import knows whose they are."""
    for path in folder.iterdir() if is_unpacked_by_us(folder) else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != SOURCE_FILE:
            path.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def check_source(folder: Path, source: Path) -> None:
    """Raise `UsageError` if a folder holds other files or the images of another source."""
    if folder.is_symlink() or (folder.exists() and not is_unpacked_by_us(folder)):
        raise UsageError(
            f"{folder}: is there already and was not unpacked by dermkit",
            outcome="everything there",
            remedy="name a new folder with --out",
        )
    if has_source_record(folder):
        record = read_json(folder / SOURCE_FILE, format=SOURCE_FORMAT, error=DataError)
        if record.get("sha256") != sha256_file(source):
            raise UsageError(
                f"{folder.parent}: holds the images of another file, {record.get('name')}",
                outcome="those images, that data set and its splits",
                remedy="name a new folder with --out",
            )
