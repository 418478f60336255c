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
from dermkit.files import write_parts

_NOT_PICTURES = frozenset(
    (".csv", ".tsv", ".json", ".txt", ".md", ".html", ".xml", ".yaml", ".yml", ".ini", ".db", ".py")
)
"""What lies beside photographs in a folder and is left alone; all else is opened, and listed where it is no image."""


class Found(NamedTuple):
    """One image. name: below its argument, numbered where it repeats. image_id: the name without its ending."""

    name: str
    image_id: str
    path: str


def check_arguments(arguments: Sequence[str], *, leave_out: Sequence[Path] = ()) -> None:
    """Raise `UsageError` for an argument that matches nothing."""
    for argument in arguments:
        if next(_expand(argument, _absolutes(leave_out)), None) is None:
            raise UsageError(
                f"{argument}: no images there",
                kept="nothing was predicted",
                remedy="name image files, a folder that holds some, or a pattern in quotes",
            )


def write_list(file: Path, arguments: Sequence[str], *, leave_out: Sequence[Path] = ()) -> int:
    """Write the list of images, one JSON line each, crash-safely; returns how many.

    A name never holds a parent folder of the argument. A folder that a pattern matches is searched through, as where
    the shell expands the pattern. A linked or closed folder is an item of the list itself, which the gate refuses.
    leave_out: folders that are not searched, because the prediction itself writes into them.
    """
    raw, named = file.with_suffix(".found"), file.with_suffix(".named")
    skip = _absolutes(leave_out)
    write_parts(raw, (_line(pair) for argument in arguments for pair in _expand(argument, skip)))
    write_parts(named, (_line(pair) for pair in _numbered(raw)))
    names, bare = _marks(named, lambda pair: pair[0]), _marks(named, lambda pair: _bare(pair[0]))
    twice = _repeated(bare)
    write_parts(file, (_line((name, _image_id(name, names, twice), path)) for name, path in _lines(named)))
    raw.unlink()
    named.unlink()
    return len(names)


def read_list(file: Path, start: int = 0, stop: int | None = None) -> Iterator[Found]:
    """Yield the images at positions start to stop of a list."""
    for name, image_id, path in islice(_lines(file), start, stop):
        yield Found(name, image_id, path)


def shown(text: str) -> str:
    """Return text that can be written as UTF-8: bytes of a file name that are none are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def file_stat(path: Path) -> str:
    """Return what tells a file that was written anew: its size and its time of change; "" where there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return ""
    return f"{found.st_size}:{found.st_mtime_ns}"


# The walk --------------------------------------------------------------------------------------------------------


def _absolutes(folders: Sequence[Path]) -> frozenset[str]:
    return frozenset(str(folder.absolute()) for folder in folders)


def _expand(argument: str, skip: frozenset[str]) -> Iterator[tuple[str, str]]:
    """Yield (name, path) of what an argument means."""
    if Path(argument).exists() or not glob.has_magic(argument):
        yield from _below(Path(argument), skip)
        return
    for item in sorted(glob.glob(argument, recursive=True)):  # noqa: PTH207 - Path.glob takes no absolute pattern
        yield from _below(Path(item), skip)


def _below(path: Path, skip: frozenset[str]) -> Iterator[tuple[str, str]]:
    if not path.is_dir():
        yield path.name, path.as_posix()
        return
    root = path.as_posix()
    base = "" if root == "." else root if root.endswith("/") else root + "/"
    for name in _walk(base, "", skip):
        yield name, base + name


def _walk(base: str, prefix: str, skip: frozenset[str]) -> Iterator[str]:
    """Yield the candidates below a folder in the order of their paths' parts; hidden names are left alone."""
    folders, files = _entries(base + prefix, skip)
    inside = set(folders)
    for name in sorted(folders + files):
        if name not in inside:
            yield prefix + name
            continue
        try:
            yield from _walk(base, f"{prefix}{name}/", skip)
        except PermissionError:
            yield prefix + name  # a closed folder: the gate says that it cannot be read


def _entries(folder: str, skip: frozenset[str]) -> tuple[list[str], list[str]]:
    folders, files = [], []
    with os.scandir(folder or ".") as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                if str(Path(entry.path).absolute()) not in skip:
                    folders.append(entry.name)
            elif _ending(entry.name).lower() not in _NOT_PICTURES and (entry.is_file() or entry.is_symlink()):
                files.append(entry.name)
    return folders, files


# Names -----------------------------------------------------------------------------------------------------------


def _numbered(raw: Path) -> Iterator[tuple[str, str]]:
    """Yield each path once, with a name that no other has (`x.jpg`, `x.jpg#2`): two folders may hold one name each."""
    here = Path.cwd()
    names = _marks(raw, lambda pair: pair[0])
    paths = _marks(raw, lambda pair: str(here / pair[1]))
    same_name, same_path, taken = _repeated(names), _repeated(paths), np.unique(names)
    seen: set[str] = set()
    counts: dict[str, int] = {}
    for name, path in _lines(raw):
        absolute = str(here / path)
        if _has(same_path, absolute):
            if absolute in seen:
                continue
            seen.add(absolute)
        yield (_number(name, counts, taken) if _has(same_name, name) else name), path


def _number(name: str, counts: dict[str, int], taken: NDArray[np.uint64]) -> str:
    counts[name] = counts.get(name, 0) + 1
    while counts[name] > 1 and _has(taken, f"{name}#{counts[name]}"):
        counts[name] += 1
    return name if counts[name] == 1 else f"{name}#{counts[name]}"


def _bare(name: str) -> str:
    return name.removesuffix(_ending(name))


def _ending(name: str) -> str:
    """Return what `Path.suffix` gives: paths of a million names would take longer than their images' hashes."""
    at = name.rfind(".")
    return name[at:] if name.rfind("/") + 1 < at < len(name) - 1 else ""


def _image_id(name: str, names: NDArray[np.uint64], twice: NDArray[np.uint64]) -> str:
    """Return the name without its ending, as in a manifest; it stays where another image has the same without."""
    bare = _bare(name)
    free = bare == name or not _has(names, bare)
    return bare if free and not _has(twice, bare) else name


def _marks(file: Path, of: Callable[[Sequence[str]], str]) -> NDArray[np.uint64]:
    """Return the sorted marks of one text per line."""
    marks = array("Q", (_mark(of(pair)) for pair in _lines(file)))
    return np.sort(np.frombuffer(marks, np.uint64)) if marks else np.empty(0, np.uint64)


def _mark(text: str) -> int:
    """Return 8 bytes that stand for a text: of a million texts, two are mixed up once in forty million lists."""
    return int.from_bytes(hashlib.blake2b(os.fsencode(text), digest_size=8).digest(), "little")


def _repeated(marks: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return np.unique(marks[1:][marks[1:] == marks[:-1]])


def _has(marks: NDArray[np.uint64], text: str) -> bool:
    """Tell whether a text's mark is among sorted marks."""
    if not len(marks):
        return False
    mark = np.uint64(_mark(text))
    at = int(np.searchsorted(marks, mark))
    return at < len(marks) and bool(marks[at] == mark)


# Lines -----------------------------------------------------------------------------------------------------------


def _line(texts: Iterable[str]) -> str:
    """Return a JSON line; ASCII, so that a file name which is no UTF-8 comes back as it was."""
    return json.dumps(list(texts)) + "\n"


def _lines(file: Path) -> Iterator[list[str]]:
    with file.open(encoding="ascii") as stream:
        for line in stream:
            yield json.loads(line)
