"""Which images a prediction is about: files, folders and patterns, in order, each once, with names that nobody shares.

The list lies on disk. What is held in memory is eight bytes for each image and each of its names, and the names of
one folder at a time.
"""

import glob
import hashlib
import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dermkit.errors import UsageError
from dermkit.files import write_chunks

_NON_IMAGE_SUFFIXES = frozenset(
    (".csv", ".tsv", ".json", ".txt", ".md", ".html", ".xml", ".yaml", ".yml", ".ini", ".db", ".py")
)
"""What lies beside photographs in a folder and is left alone; all else is opened, and listed where it is no image."""


class ImageRef(NamedTuple):
    """One image. name: below its argument, numbered where it repeats. image_id: the name without its ending."""

    name: str
    image_id: str
    path: str


def check_arguments(arguments: Sequence[str], *, exclude: Sequence[Path] = ()) -> None:
    """Raise `UsageError` for an argument that matches nothing."""
    for argument in arguments:
        if next(_expand(argument, _absolute_paths(exclude)), None) is None:
            raise UsageError(
                f"{argument}: no images there",
                outcome="nothing was predicted",
                remedy="name image files, a folder that holds some, or a pattern in quotes",
            )


def write_list(file: Path, arguments: Sequence[str], *, exclude: Sequence[Path] = ()) -> int:
    """Write the list of images, one JSON line each, crash-safely; returns how many.

    A name never holds a parent folder of the argument. A folder that a pattern matches is searched through, as where
    the shell expands the pattern. A linked or closed folder is an item of the list itself, which the gate refuses.
    leave_out: folders that are not searched, because the prediction itself writes into them.
    """
    raw_path, named_path = file.with_suffix(".found"), file.with_suffix(".named")
    excluded = _absolute_paths(exclude)
    write_chunks(raw_path, (_line(pair) for argument in arguments for pair in _expand(argument, excluded)))
    write_chunks(named_path, (_line(pair) for pair in _unique_names(raw_path)))
    name_hashes, stem_hashes = (
        _name_hashes(named_path, lambda pair: pair[0]),
        _name_hashes(named_path, lambda pair: _stem(pair[0])),
    )
    repeated_stems = _repeated_values(stem_hashes)
    write_chunks(
        file,
        (_line((name, _image_id(name, name_hashes, repeated_stems), path)) for name, path in _lines(named_path)),
    )
    raw_path.unlink()
    named_path.unlink()
    return len(name_hashes)


def read_list(file: Path, start: int = 0, stop: int | None = None) -> Iterator[ImageRef]:
    """Yield the images at positions start to stop of a list."""
    for name, image_id, path in islice(_lines(file), start, stop):
        yield ImageRef(name, image_id, path)


def utf8_safe(text: str) -> str:
    """Return text that can be written as UTF-8: bytes of a file name that are none are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def file_stat(path: Path) -> str:
    """Return what tells a file that was written anew: its size and its time of change; "" where there is none."""
    try:
        stat_result = path.stat()
    except (OSError, ValueError):
        return ""
    return f"{stat_result.st_size}:{stat_result.st_mtime_ns}"


# The walk --------------------------------------------------------------------------------------------------------


def _absolute_paths(folders: Sequence[Path]) -> frozenset[str]:
    return frozenset(str(folder.absolute()) for folder in folders)


def _expand(argument: str, excluded: frozenset[str]) -> Iterator[tuple[str, str]]:
    """Yield (name, path) of what an argument means."""
    if Path(argument).exists() or not glob.has_magic(argument):
        yield from _images_below(Path(argument), excluded)
        return
    for match in sorted(glob.glob(argument, recursive=True)):  # noqa: PTH207 - Path.glob takes no absolute pattern
        yield from _images_below(Path(match), excluded)


def _images_below(path: Path, excluded: frozenset[str]) -> Iterator[tuple[str, str]]:
    if not path.is_dir():
        yield path.name, path.as_posix()
        return
    root = path.as_posix()
    base = "" if root == "." else root if root.endswith("/") else root + "/"
    for name in _walk(base, "", excluded):
        yield name, base + name


def _walk(base: str, prefix: str, excluded: frozenset[str]) -> Iterator[str]:
    """Yield the candidates below a folder in the order of their paths' parts; hidden names are left alone."""
    folders, files = _entries(base + prefix, excluded)
    folder_names = set(folders)
    for name in sorted(folders + files):
        if name not in folder_names:
            yield prefix + name
            continue
        try:
            yield from _walk(base, f"{prefix}{name}/", excluded)
        except PermissionError:
            yield prefix + name  # a closed folder: the gate says that it cannot be read


def _entries(folder: str, excluded: frozenset[str]) -> tuple[list[str], list[str]]:
    folders, files = [], []
    with os.scandir(folder or ".") as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                if str(Path(entry.path).absolute()) not in excluded:
                    folders.append(entry.name)
            elif _suffix(entry.name).lower() not in _NON_IMAGE_SUFFIXES and (
                entry.is_file() or entry.is_symlink()
            ):
                files.append(entry.name)
    return folders, files


# Names -----------------------------------------------------------------------------------------------------------


def _unique_names(raw_path: Path) -> Iterator[tuple[str, str]]:
    """Yield each path once, with a name that no other has (`x.jpg`, `x.jpg#2`): two folders may hold one name each."""
    working_folder = Path.cwd()
    name_hashes = _name_hashes(raw_path, lambda pair: pair[0])
    path_hashes = _name_hashes(raw_path, lambda pair: str(working_folder / pair[1]))
    repeated_names, repeated_paths, used_names = (
        _repeated_values(name_hashes),
        _repeated_values(path_hashes),
        np.unique(name_hashes),
    )
    listed_paths: set[str] = set()
    counts: dict[str, int] = {}
    for name, path in _lines(raw_path):
        absolute = str(working_folder / path)
        if _contains(repeated_paths, absolute):
            if absolute in listed_paths:
                continue
            listed_paths.add(absolute)
        yield (_number_name(name, counts, used_names) if _contains(repeated_names, name) else name), path


def _number_name(name: str, counts: dict[str, int], used_names: NDArray[np.uint64]) -> str:
    counts[name] = counts.get(name, 0) + 1
    while counts[name] > 1 and _contains(used_names, f"{name}#{counts[name]}"):
        counts[name] += 1
    return name if counts[name] == 1 else f"{name}#{counts[name]}"


def _stem(name: str) -> str:
    return name.removesuffix(_suffix(name))


def _suffix(name: str) -> str:
    """Return what `Path.suffix` gives: paths of a million names would take longer than their images' hashes."""
    dot = name.rfind(".")
    return name[dot:] if name.rfind("/") + 1 < dot < len(name) - 1 else ""


def _image_id(name: str, name_hashes: NDArray[np.uint64], repeated_stems: NDArray[np.uint64]) -> str:
    """Return the name without its ending, as in a manifest; it stays where another image has the same without."""
    stem = _stem(name)
    is_free = stem == name or not _contains(name_hashes, stem)
    return stem if is_free and not _contains(repeated_stems, stem) else name


def _name_hashes(file: Path, text_of: Callable[[Sequence[str]], str]) -> NDArray[np.uint64]:
    """Return the sorted marks of one text per line."""
    hashes = array("Q", (_name_hash(text_of(pair)) for pair in _lines(file)))
    return np.sort(np.frombuffer(hashes, np.uint64)) if hashes else np.empty(0, np.uint64)


def _name_hash(text: str) -> int:
    """Return 8 bytes that stand for a text: of a million texts, two are mixed up once in forty million lists."""
    return int.from_bytes(hashlib.blake2b(os.fsencode(text), digest_size=8).digest(), "little")


def _repeated_values(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return np.unique(hashes[1:][hashes[1:] == hashes[:-1]])


def _contains(hashes: NDArray[np.uint64], text: str) -> bool:
    """Tell whether a text's mark is among sorted marks."""
    if not len(hashes):
        return False
    text_hash = np.uint64(_name_hash(text))
    position = int(np.searchsorted(hashes, text_hash))
    return position < len(hashes) and bool(hashes[position] == text_hash)


# Lines -----------------------------------------------------------------------------------------------------------


def _line(texts: Iterable[str]) -> str:
    """Return a JSON line; ASCII, so that a file name which is no UTF-8 comes back as it was."""
    return json.dumps(list(texts)) + "\n"


def _lines(file: Path) -> Iterator[list[str]]:
    with file.open(encoding="ascii") as stream:
        for line in stream:
            yield json.loads(line)
