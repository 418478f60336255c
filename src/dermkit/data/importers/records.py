"""What a reader hands over: rows, where their images lie, what was refused and what a person should know."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pandas as pd


class Rejected(NamedTuple):
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
class Records:
    """What a reader found. frame: the manifest columns without hashes and sizes, sorted by path.

    images: the root that `path` is relative to. columns: the names of all columns of the tables that were read, and
    columns_used: those whose values are in the frame; an audit looks for names that give the label away.
    """

    frame: pd.DataFrame
    image_root: Path
    rejected: list[Rejected] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    columns: tuple[str, ...] = ()
    columns_used: tuple[str, ...] = ()
