"""The list of images to predict, from files, folders and patterns: in order, each once, under unique names."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

from dermkit.errors import UsageError
from dermkit.images.recognise import is_ignored, is_image

_Image = TypeVar("_Image")


class ImageRef(NamedTuple):
    """One image of the list.

    name: its path below the argument that matched it, made unique as in `x.jpg#2`. image_id: the name without its
    suffix, where no other image has the same without. path: as given, relative or absolute; a string, which takes less
    memory than a `Path`.
    """

    name: str
    image_id: str
    path: str


def find_images(arguments: Sequence[str], *, exclude: Sequence[Path] = ()) -> list[ImageRef]:
    """Return the images that files, folders and patterns mean, in the order of the arguments.

    A folder is searched recursively, also one that a pattern matches, as where the shell expands the pattern. Linked
    folders and folders without read permission are listed themselves and refused later, when they are opened. Files in
    a folder that are no images are skipped, by the rule of imports (`images.recognise`); a named file is always opened.
    exclude: folders that are not searched, because the prediction writes into them. Raises `UsageError` for an
    argument that matches nothing.
    """
    excluded = frozenset(str(folder.absolute()) for folder in exclude)
    files: list[tuple[str, str]] = []
    for argument in arguments:
        n_before = len(files)
        files.extend(_expand(argument, excluded))
        if len(files) == n_before:
            raise UsageError(
                f"{argument}: no images there",
                outcome="nothing was predicted",
                remedy="name image files, a folder that holds some, or a pattern in quotes",
            )
    return unique_names(files)


def unique_names(files: Sequence[tuple[str, str]]) -> list[ImageRef]:
    """Return each file once, given as (name, path), under a name and an id that no other has.

    Two folders may each hold an `x.jpg`: the second is named `x.jpg#2`.
    """
    working_folder, seen_paths = f"{Path.cwd()}/", set[str]()
    given_names, counts = {name for name, _ in files}, Counter[str]()
    unique_files: list[tuple[str, str]] = []
    for name, path in files:
        absolute_path = path if path.startswith("/") else working_folder + path
        if absolute_path not in seen_paths:
            seen_paths.add(absolute_path)
            unique_files.append((_number_name(name, counts, given_names), path))
    names = {name for name, _ in unique_files}
    n_with_stem = Counter(_stem(name) for name, _ in unique_files)

    def image_id(name: str) -> str:
        stem = _stem(name)
        is_free = n_with_stem[stem] == 1 and (stem == name or stem not in names)
        return stem if is_free else name

    return [ImageRef(name, image_id(name), path) for name, path in unique_files]


def _number_name(name: str, counts: Counter[str], given_names: set[str]) -> str:
    """Return the name at its first use, then name#2, name#3, ..., without those that are names of files."""
    counts[name] += 1
    while counts[name] > 1 and f"{name}#{counts[name]}" in given_names:
        counts[name] += 1
    return name if counts[name] == 1 else f"{name}#{counts[name]}"


def _stem(name: str) -> str:
    return name.removesuffix(_suffix(name))


def _suffix(name: str) -> str:
    """Return what `Path(name).suffix` gives, without building a `Path` for each of a million names."""
    dot = name.rfind(".")
    return name[dot:] if name.rfind("/") + 1 < dot < len(name) - 1 else ""


def utf8_safe(text: str) -> str:
    """Return text that can be written as UTF-8: bytes of a file name that are not UTF-8 become `\\udcXX`."""
    return text.encode("utf-8", "backslashreplace").decode()


def image_batches(images: Iterable[_Image], size: int) -> Iterator[tuple[int, list[_Image]]]:
    """Yield (position of its first image, images) of each batch."""
    iterator = iter(images)
    start = 0
    while batch := list(islice(iterator, size)):
        yield start, batch
        start += len(batch)


# Walking folders ---------------------------------------------------------------------------------------------------


def _expand(argument: str, excluded: frozenset[str]) -> Iterator[tuple[str, str]]:
    """Yield (name, path) of the files that an argument means; an existing file may look like a pattern."""
    if Path(argument).exists() or not glob.has_magic(argument):
        yield from _images_below(Path(argument), excluded)
        return
    for match in sorted(_matches(argument, excluded)):
        yield from _images_below(Path(match), excluded)


def _matches(pattern: str, excluded: frozenset[str]) -> set[str]:
    """Return what a pattern means; `**` enters no linked folder, for one that leads upwards would have no end."""
    head, star, tail = f"/{pattern}".partition("/**")
    if not star or not (tail == "" or tail.startswith("/")):
        return set(glob.glob(pattern))  # noqa: PTH207 - Path.glob takes no absolute pattern
    bases = glob.glob(head[1:] or "/") if head else [""]  # noqa: PTH207
    folders = [
        folder for base in bases if base == "" or Path(base).is_dir() for folder in _folders(base, excluded)
    ]
    if not tail.strip("/"):
        return {base or "." for base in bases}  # what lies below is walked later
    patterns = [glob.escape(f"{folder}/" if folder else "") + tail[1:] for folder in folders]
    return {match for entry in patterns for match in _matches(entry, excluded)}


def _folders(base: str, excluded: frozenset[str]) -> Iterator[str]:
    """Yield a folder and all below it that are neither hidden nor linked nor closed."""
    pending = [base]
    while pending:
        folder = pending.pop()
        yield folder
        with suppress(OSError):
            names = _entries(f"{folder}/" if folder else "", excluded)[0]
            pending += [f"{folder}/{name}" if folder else name for name in sorted(names, reverse=True)]


def _images_below(path: Path, excluded: frozenset[str]) -> Iterator[tuple[str, str]]:
    if not path.is_dir():
        yield path.name, path.as_posix()
        return
    root = path.as_posix()
    base = "" if root == "." else root if root.endswith("/") else root + "/"
    for name in _walk(base, "", excluded):
        yield name, base + name


def _walk(base: str, prefix: str, excluded: frozenset[str]) -> Iterator[str]:
    """Yield the image candidates below a folder, ordered by path components; hidden files and folders are skipped.

    A loop, because folders may be nested deeper than functions may call themselves.
    """
    pending = [(prefix, True)]
    while pending:
        name, is_folder = pending.pop()
        if not is_folder:
            yield name
            continue
        try:
            folders, files = _entries(base + name, excluded)
        except OSError:
            if name == prefix:
                raise
            yield name.rstrip(
                "/"
            )  # closed, or too deep: listed as an image, so that opening it reports the reason
            continue
        entries = [*((entry, True) for entry in folders), *((entry, False) for entry in files)]
        pending += [(f"{name}{entry}{'/' * is_dir}", is_dir) for entry, is_dir in sorted(entries, reverse=True)]


def _entries(folder: str, excluded: frozenset[str]) -> tuple[list[str], list[str]]:
    """Return (names of sub-folders to search, names of images) of one folder; what is no image is skipped."""
    folders, files = [], []
    with os.scandir(folder or ".") as entries:
        for entry in entries:
            if is_ignored(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                if str(Path(entry.path).absolute()) not in excluded:
                    folders.append(entry.name)
            elif _is_candidate(entry):
                files.append(entry.name)
    return folders, files


def _is_candidate(entry: os.DirEntry[str]) -> bool:
    """Return whether a file is an image; a link to a folder, to nothing or to itself is listed, and refused later."""
    try:
        return is_image(entry.path, entry.name) if entry.is_file() else entry.is_symlink()
    except OSError:  # a link to itself
        return entry.is_symlink()
