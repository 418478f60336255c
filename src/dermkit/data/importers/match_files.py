"""Which image file a row of a table names: by path, by file name, or by name without ending."""

import filecmp
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

DOWNSAMPLED = "_downsampled"
"""ISIC 2019 adds this to the names of images that it made smaller; tables and copies may lack it."""


@dataclass(frozen=True, eq=False)
class Match:
    """positions: (values,) the place in `paths` of the file that each value names; -1 = none.

    ambiguous: place of a value -> the different files that it could mean. copies: places in `paths` of files left
    out, since another one of the same name holds the same bytes.
    """

    positions: NDArray[np.int64]
    ambiguous: dict[int, list[str]]
    copies: frozenset[int]


def match(values: Sequence[str], paths: Sequence[str], root: Path, endings: frozenset[str]) -> Match:
    """Find the file that each value names. paths: of all images, relative to `root`; endings: of images, with dot.

    Tried in turn: the path, the file name, the name without its ending, and that with another Unicode form, case
    or ISIC's `_downsampled`. A path is only ever looked up, so that none leads out of the root.
    """
    asked = pd.Series(list(values), dtype="str")
    files = pd.Series(list(paths), dtype="str")
    positions = np.full(len(asked), -1, np.int64)
    in_folder = asked.str.contains(r"[/\\\\]").to_numpy(dtype=bool)
    ambiguous: dict[int, list[str]] = {}
    copies: set[int] = set()
    for key in _KEYS:
        open_ = np.flatnonzero(positions < 0)
        open_ = open_[~np.isin(open_, list(ambiguous))] if ambiguous else open_
        if not len(open_):
            break
        found, several = _look_up(asked.iloc[open_], files, partial(key, endings=endings))
        # train/a.jpg is missing where test/a.jpg is there and has a row of its own.
        found[in_folder[open_] & np.isin(found, positions[in_folder])] = -1
        positions[open_] = found
        for at, candidates in several.items():
            place = int(open_[at])
            chosen = _choose(asked.iloc[place], [int(item) for item in candidates], paths, root)
            if chosen is None:
                ambiguous[place] = [paths[item] for item in candidates]
            else:
                positions[place] = chosen
                copies |= set(candidates) - {chosen}
    return Match(positions, ambiguous, frozenset(copies - set(positions.tolist())))


def _look_up(
    asked: "pd.Series[str]", files: "pd.Series[str]", key: Callable[[str], str]
) -> tuple[NDArray[np.int64], dict[int, list[int]]]:
    """Return the place of each asked file, -1 for none or several; and the places of several."""
    names = pd.Index(files.map(key), dtype="object")
    wanted = asked.map(key).astype("object")
    repeated = names.duplicated(keep=False)
    once = np.flatnonzero(~repeated)
    at = names[once].get_indexer(pd.Index(wanted))
    found = np.where(at >= 0, once[at] if len(once) else -1, -1).astype(np.int64)
    if not repeated.any():
        return found, {}
    twice = np.flatnonzero(repeated)
    groups = pd.Series(twice).groupby(names[twice].to_numpy()).agg(list)
    return found, {place: groups[name] for place, name in enumerate(wanted) if name in groups.index}


def _choose(value: str, candidates: Sequence[int], paths: Sequence[str], root: Path) -> int | None:
    """Return the candidate that ends like the value, or the first of candidates with the same bytes; else None."""
    parts = _slashed(value).split("/")
    ends = [_common_end(parts, paths[item].split("/")) for item in candidates]
    best = [item for item, end in zip(candidates, ends, strict=True) if end == max(ends)]
    if len(best) == 1:
        return best[0]
    first, *others = (root / paths[item] for item in best)
    same = first.is_file() and all(
        other.is_file() and filecmp.cmp(first, other, shallow=False) for other in others
    )
    return best[0] if same else None


def _common_end(one: Sequence[str], other: Sequence[str]) -> int:
    """Return how many folders above the file are the same, from the file up."""
    n = 0
    for left, right in zip(one[-2::-1], other[-2::-1], strict=False):
        if left != right:
            break
        n += 1
    return n


def _slashed(value: str) -> str:
    return value.replace("\\", "/")


def _path(value: str, endings: frozenset[str]) -> str:  # noqa: ARG001  one of four keys
    text = _slashed(value)
    return text[2:] if text.startswith("./") else text


def _name(value: str, endings: frozenset[str]) -> str:  # noqa: ARG001
    return _slashed(value).rpartition("/")[2]


def stem(value: str, endings: frozenset[str]) -> str:
    """Return a file's name without folders and without the ending of an image."""
    name = _name(value, endings)
    head, dot, ending = name.rpartition(".")
    return head if dot and head and f".{ending.lower()}" in endings else name


def folded_stem(value: str, endings: frozenset[str]) -> str:
    """Return the same, in one Unicode form and case, without `_downsampled`."""
    return unicodedata.normalize("NFC", stem(value, endings)).casefold().removesuffix(DOWNSAMPLED)


_KEYS = (_path, _name, stem, folded_stem)
