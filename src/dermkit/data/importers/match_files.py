"""Finds the image file that a row of a table names: by path, file name, or name without suffix."""

import filecmp
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

DOWNSAMPLED_SUFFIX = "_downsampled"
"""Added by ISIC 2019 to the names of downsampled images; tables and copies may lack it."""


@dataclass(frozen=True, eq=False)
class FileMatches:
    """The files that n values name.

    positions: (n,) index in `paths` of each value's file; -1 = none. ambiguous_values: index of a value -> the
    different files that it could mean. duplicate_files: indices in `paths` of files that are left out because another
    file of the same name has the same bytes.
    """

    positions: NDArray[np.int64]
    ambiguous_values: dict[int, list[str]]
    duplicate_files: frozenset[int]


def match_files(values: Sequence[str], paths: Sequence[str], root: Path, endings: frozenset[str]) -> FileMatches:
    """Find the file that each value names.

    paths: of all images, relative to `root`. endings: suffixes of images, with dot. Compared are, in turn, the path,
    the file name, the name without suffix, and that without regard to Unicode form, case and `_downsampled`. Values
    are only compared with `paths`, so none can lead out of the root.
    """
    names = pd.Series(list(values), dtype="str")
    files = pd.Series(list(paths), dtype="str")
    positions = np.full(len(names), -1, np.int64)
    in_folder = names.str.contains(r"[/\\\\]").to_numpy(dtype=bool)
    ambiguous_values: dict[int, list[str]] = {}
    duplicate_files: set[int] = set()
    for key in _KEYS:
        unmatched = np.flatnonzero(positions < 0)
        unmatched = unmatched[~np.isin(unmatched, list(ambiguous_values))] if ambiguous_values else unmatched
        if not len(unmatched):
            break
        matches, candidates_of = _match_by_key(names.iloc[unmatched], files, partial(key, endings=endings))
        # Do not match train/a.jpg to test/a.jpg if another row already names test/a.jpg.
        matches[in_folder[unmatched] & np.isin(matches, positions[in_folder])] = -1
        positions[unmatched] = matches
        for index, candidates in candidates_of.items():
            value_index = int(unmatched[index])
            choice = _choose(names.iloc[value_index], [int(candidate) for candidate in candidates], paths, root)
            if choice is None:
                ambiguous_values[value_index] = [paths[candidate] for candidate in candidates]
            else:
                positions[value_index] = choice
                duplicate_files |= set(candidates) - {choice}
    return FileMatches(positions, ambiguous_values, frozenset(duplicate_files - set(positions.tolist())))


def _match_by_key(
    values: "pd.Series[str]", files: "pd.Series[str]", key: Callable[[str], str]
) -> tuple[NDArray[np.int64], dict[int, list[int]]]:
    """Return the position of each value's file, -1 for none or several; and value -> positions for several."""
    file_keys = pd.Index(files.map(key), dtype="object")
    value_keys = values.map(key).astype("object")
    is_repeated = file_keys.duplicated(keep=False)
    unique_positions = np.flatnonzero(~is_repeated)
    indices = file_keys[unique_positions].get_indexer(pd.Index(value_keys))
    positions = np.where(indices >= 0, unique_positions[indices] if len(unique_positions) else -1, -1).astype(
        np.int64
    )
    if not is_repeated.any():
        return positions, {}
    repeated_positions = np.flatnonzero(is_repeated)
    groups = pd.Series(repeated_positions).groupby(file_keys[repeated_positions].to_numpy()).agg(list)
    return positions, {
        index: groups[value_key] for index, value_key in enumerate(value_keys) if value_key in groups.index
    }


def _choose(value: str, candidates: Sequence[int], paths: Sequence[str], root: Path) -> int | None:
    """Return the candidate that shares the most parent folders with the value; None if that does not decide.

    If several do and are identical files, the first is returned.
    """
    components = _with_slashes(value).split("/")
    n_common = [_n_common_folders(components, paths[candidate].split("/")) for candidate in candidates]
    best = [candidate for candidate, length in zip(candidates, n_common, strict=True) if length == max(n_common)]
    if len(best) == 1:
        return best[0]
    first_file, *other_files = (root / paths[candidate] for candidate in best)
    is_same = first_file.is_file() and all(
        other_file.is_file() and filecmp.cmp(first_file, other_file, shallow=False) for other_file in other_files
    )
    return best[0] if is_same else None


def _n_common_folders(first: Sequence[str], second: Sequence[str]) -> int:
    """Return how many parent folders are equal, counted from the file upwards."""
    n = 0
    for first_name, second_name in zip(first[-2::-1], second[-2::-1], strict=False):
        if first_name != second_name:
            break
        n += 1
    return n


def _with_slashes(value: str) -> str:
    return value.replace("\\", "/")


def _path_key(value: str, endings: frozenset[str]) -> str:  # noqa: ARG001  all keys have this signature
    text = _with_slashes(value)
    return text[2:] if text.startswith("./") else text


def _name_key(value: str, endings: frozenset[str]) -> str:  # noqa: ARG001
    return _with_slashes(value).rpartition("/")[2]


def _stem_key(value: str, endings: frozenset[str]) -> str:
    """Return a file's name without folders and without the suffix of an image."""
    name = _name_key(value, endings)
    head, dot, ending = name.rpartition(".")
    return head if dot and head and f".{ending.lower()}" in endings else name


def normalised_stem(value: str, endings: frozenset[str]) -> str:
    """Return a file's name without folders, suffix and `_downsampled`, in one Unicode form and lower case."""
    return unicodedata.normalize("NFC", _stem_key(value, endings)).casefold().removesuffix(DOWNSAMPLED_SUFFIX)


_KEYS = (_path_key, _name_key, _stem_key, normalised_stem)
