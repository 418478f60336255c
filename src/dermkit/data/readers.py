"""Who is reading a data set: a training or evaluation says so, and nothing replaces its manifest meanwhile.

Each reader holds a lock of its own inside a hidden folder, so that the mark of a killed one counts for nothing.
"""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from dermkit.data.manifest import Dataset, dataset_files_sha256, work_folder_of
from dermkit.errors import DataError, OutputError
from dermkit.files import lock

READERS_FOLDER = ".readers"
_GATE_SECONDS = 60.0
"""The longest wait for another process to enter its mark, or to move the files of a data set."""


@contextmanager
def reading(dataset: Dataset, command: str) -> Iterator[None]:
    """Hold the mark of a reader of a data set: until the end no import or cleaning replaces its manifest.

    command: what reads it, for the message of whoever wants to. A folder that takes no file gets no mark. Raises
    `DataError` if it was replaced since it was loaded.
    """
    folder = dataset.folder
    if not folder.is_dir() or work_folder_of(folder) != folder:
        yield
        return
    readers = folder / READERS_FOLDER
    mark = readers / f"{command}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    with ExitStack() as mark_lock:
        with lock(readers, timeout=_GATE_SECONDS):
            mark_lock.enter_context(lock(mark))
        try:
            _check_unchanged(dataset)
            yield
        finally:
            mark_lock.close()
            shutil.rmtree(mark, ignore_errors=True)


def _check_unchanged(dataset: Dataset) -> None:
    """Raise `DataError` if the files that a data set was loaded from were replaced before its mark was there."""
    if dataset.files_sha256 and dataset_files_sha256(dataset.folder) != dataset.files_sha256:
        raise DataError(
            f"{dataset.folder}: was imported or cleaned anew while this command read it",
            outcome="the data set as it is now; this command did nothing",
            remedy="run the same command again",
        )


@contextmanager
def no_readers(folder: Path, change: str) -> Iterator[None]:
    """Hold back new readers of a data set while its files are moved; raises `OutputError` if somebody reads it now.

    change: what was to be done, such as "the import".
    """
    readers = folder / READERS_FOLDER
    with lock(readers, timeout=_GATE_SECONDS):
        for mark in sorted(path for path in readers.iterdir() if path.is_dir()):
            if reader := _reader_text(mark):
                raise OutputError(
                    f"{folder}: is being read by {reader}, and {change} would replace its manifest",
                    outcome="the data set as it was",
                    remedy="wait for it to end, or import into another folder with --out",
                )
        yield


def _reader_text(mark: Path) -> str:
    """Describe the process that holds a mark, "" for the mark of a process that has ended, which is removed."""
    try:
        with lock(mark):
            pass
    except OutputError as error:
        _, _, holder = error.message.partition("is in use by ")
        return f"dermkit {mark.name.split('-')[0]} ({holder or 'another process'})"
    with suppress(OSError):
        shutil.rmtree(mark)
    return ""
