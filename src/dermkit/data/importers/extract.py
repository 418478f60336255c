"""Writes the bytes of a member of a .zip, completely or not at all."""

import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from dermkit.files import TEMP_PREFIX, make_folder, output_errors

BLOCK_BYTES = 1 << 20
"""Read and written at once."""


def inflate(zip_file: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
    """Extract a member completely or not at all, never more bytes than it states; raises what `zipfile` raises."""

    def copy(out: IO[bytes]) -> None:
        written = 0
        with zip_file.open(info) as stream:
            while block := stream.read(BLOCK_BYTES):
                written += len(block)
                if written > info.file_size:
                    raise zipfile.BadZipFile("it inflates to more than it claims")
                with output_errors(target):
                    out.write(block)
        if written != info.file_size:
            raise zipfile.BadZipFile(f"{written} bytes where {info.file_size} are claimed")

    write_unsynced(target, copy)


def write_unsynced(target: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file completely or not at all, but without flushing it to disk as `files.write_atomically` does.

    Ten thousand flushes take longer than the extraction. A repeated run compares every file with its source, and the
    manifest holds the hash of each.
    """
    make_folder(target.parent)
    with output_errors(target):
        handle, name = tempfile.mkstemp(prefix=TEMP_PREFIX, dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as out:
            write(out)
            with output_errors(target):
                out.flush()
        with output_errors(target):
            Path(name).chmod(0o644)
            Path(name).replace(target)
    finally:
        Path(name).unlink(missing_ok=True)
