"""The result of reading a source: rows, the folder of their images, rejected files and notes for the user."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from dermkit.files import open_regular
from dermkit.render.cells import undefused


class Rejected(NamedTuple):
    """A file or row that did not become an image of the data set: relative path, reason code, detail.

    Codes are those of `RejectionReason` and the `REASON_*` of the importers. The fields are the header of refused.csv.
    """

    path: str
    reason: str
    detail: str


def read_rejected(folder: Path) -> list[Rejected] | None:
    """Return the rows of refused.csv of a data set folder, None without the file."""
    path = folder / "refused.csv"
    if not path.is_file():
        return None
    with io.TextIOWrapper(open_regular(path), encoding="utf-8", errors="replace", newline="") as stream:
        rows = [[undefused(cell) for cell in row] for row in csv.reader(stream)]
    return [Rejected(*row) for row in rows[1:] if len(row) == len(Rejected._fields)]


@dataclass(frozen=True)
class Note:
    """A warning for the user, stored in dataset.json. n: how many images, files or rows it is about."""

    code: str
    text: str
    n: int


@dataclass(frozen=True, eq=False)
class Records:
    """The images of a source.

    frame: the manifest columns without hashes and sizes, sorted by path. image_root: the folder that `path` is relative
    to. columns: the names of all columns of the tables that were read; columns_used: those whose values are in the
    frame. The audit checks both for columns that reveal the label. malignancy_of_path: what the table says of each
    image beside its label; images of unknown malignancy are left out.
    """

    frame: pd.DataFrame
    image_root: Path
    rejected: list[Rejected] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    columns: tuple[str, ...] = ()
    columns_used: tuple[str, ...] = ()
    malignancy_of_path: Mapping[str, str] = field(default_factory=dict)
