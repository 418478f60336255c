"""Unpacks a .zip that nobody vouches for: every name and size is judged before anything is written, and while it is."""

import os
import re
import shutil
import stat
import struct
import tempfile
import unicodedata
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import IO

from dermkit.data.importers.csv_tables import TABLE_SUFFIXES
from dermkit.data.importers.records import Note, Refused
from dermkit.data.importers.walk import BAD_NAME, IGNORED_NAMES, LINK, suffix_of
from dermkit.errors import DataError, OutputError, Refusal, UsageError
from dermkit.files import TEMP_PREFIX, make_folder, output_errors, read_json, sha256_file, write_json
from dermkit.images.headers import IMAGE_SUFFIXES, MAX_FILE_BYTES

MARK = ".dermkit-source.json"
"""Lies beside unpacked images and says by hash which file they come from; a walk does not see it."""
FORMAT = 1

ENCRYPTED = "encrypted"
DUPLICATE = "duplicate_name"
# Beside the reasons of `errors.Refusal` and of a walk.

MAX_MEMBERS = 2_000_000
"""Four times the largest public set of skin images; a million entries take half a gigabyte of memory."""
MAX_DIRECTORY_BYTES = 512 * 1024**2
MAX_TABLE_BYTES = 4 * 1024**3
MAX_RATIO = 200
"""Inflated to packed. Photographs reach 1.1 and tables 30; deflate ends at 1,032, where bombs are."""
FREE_BYTES = 16 * 1024**2
"""A member below this may have any ratio: a flat bitmap is no bomb."""
FREE_TOTAL = 1024**3
"""The same for all members together."""
MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 1024

_BLOCK = 1 << 20
_TAIL = 65_557  # the longest end record with its comment
# OSError: a place in the file that cannot be; what cannot be written is an OutputError by then.
_BROKEN = (
    OSError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    struct.error,
    NotImplementedError,
    RuntimeError,
    ValueError,
)
_KINDS = {stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


@dataclass
class Unpacked:
    """What came of unpacking: the members that were refused, and notes."""

    refused: list[Refused] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)


@dataclass(frozen=True)
class _Member:
    info: zipfile.ZipInfo
    path: str


def is_archive(source: Path) -> bool:
    """Say whether a source is a file to unpack, by its name or its first bytes."""
    if not source.is_file() or source.suffix.lower() == ".npz":
        return False
    try:
        with source.open("rb") as stream:
            return source.suffix.lower() == ".zip" or stream.read(4) == b"PK\x03\x04"
    except OSError:
        return source.suffix.lower() == ".zip"


def unpack(archive: Path, folder: Path, *, on_progress: Callable[[int, int], None] | None = None) -> Unpacked:
    """Unpack images and tables into a folder, and write nothing anywhere else.

    A member that is a link, a device, encrypted, broken, too large, or whose name leads out or repeats, is refused and
    listed; the rest goes on. What lies there already with the right bytes stays, so a stopped run can be repeated.
    on_progress: called with (members done, members in all). Raises `DataError` where the archive itself is cut,
    is a bomb, or holds overlapping members.
    """
    done = Unpacked()
    with open_archive(archive) as packed:
        members = _members(packed.infolist(), done, IMAGE_SUFFIXES | TABLE_SUFFIXES)
        check_total(archive, [member.info for member in members], folder)
        root = make_folder(folder).resolve()
        for number, member in enumerate(members, start=1):
            refused = _unpack_one(packed, member, root)
            if refused:
                done.refused.append(refused)
            if on_progress:
                on_progress(number, len(members))
    return done


def unpack_only(archive: Path, suffix: str, target: Path) -> str:
    """Unpack the only member with this ending to `target`; returns its name. Raises `DataError`."""
    with open_archive(archive) as packed:
        found = [
            (path, info)
            for info in packed.infolist()
            for path, problem in [safe_path(info)]
            if suffix_of(path.rpartition("/")[2]) == suffix and not problem and not _is_ignored(path)
        ]
        if len(found) != 1 or _wrong_kind(found[0][1]) or found[0][1].flag_bits & 0x2041:
            names = ", ".join(path for path, _ in found) or "none"
            raise _refused(archive, f"one plain {suffix} is needed in it, found: {names}")
        path, info = found[0]
        check_total(archive, [info], target.parent)
        try:
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise zipfile.BadZipFile(f"packed by method {info.compress_type}")
            inflate(packed, info, target)
        except _BROKEN as error:
            raise _refused(archive, f"{path} is broken: {error}") from error
    return path.rpartition("/")[2]


def open_archive(archive: Path) -> zipfile.ZipFile:
    """Open a zip after a look at its directory; raises `DataError` where it is cut, too large or overlaps."""
    try:
        _check_directory(archive)
        packed = zipfile.ZipFile(archive)
    except OSError as error:
        raise _refused(archive, f"cannot be read: {error.strerror or error}") from error
    except _BROKEN as error:
        raise _refused(archive, f"is no complete zip archive: {error}") from error
    infos = packed.infolist()
    if len(infos) > MAX_MEMBERS:
        packed.close()
        raise _refused(archive, f"holds {len(infos)} members; at most {MAX_MEMBERS:,}")
    ends = sorted((info.header_offset, info.header_offset + 30 + info.compress_size) for info in infos)
    for (_, end), (start, _) in pairwise(ends):
        if end > start:
            packed.close()
            raise _refused(archive, "its members overlap each other: a bomb")
    return packed


def _refused(archive: Path, what: str) -> DataError:
    return DataError(f"{archive}: {what}", kept="nothing was written", remedy="download the archive again")


def _check_directory(archive: Path) -> None:
    """Refuse a directory that would fill the memory, before it is read."""
    with archive.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - _TAIL))
        tail = stream.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) < at + 22:
        raise zipfile.BadZipFile("its end is missing, so it was cut, or it is no zip at all")
    directory = int(struct.unpack_from("<I", tail, at + 12)[0])
    wide = tail.rfind(b"PK\x06\x06", 0, at)
    if directory == 0xFFFFFFFF and 0 <= wide <= len(tail) - 56:
        directory = int(struct.unpack_from("<Q", tail, wide + 40)[0])
    if directory > min(size, MAX_DIRECTORY_BYTES):
        raise zipfile.BadZipFile(f"its directory claims {directory:,} bytes")


def check_total(archive: Path, infos: Sequence[zipfile.ZipInfo], folder: Path) -> None:
    """Refuse an archive that is a bomb as a whole, or does not fit; raises `DataError` and `OutputError`."""
    total = sum(info.file_size for info in infos)
    packed = archive.stat().st_size
    if total > FREE_TOTAL and total > MAX_RATIO * packed:
        raise _refused(archive, f"would inflate from {packed:,} to {total:,} bytes: a bomb")
    place = next(path for path in (folder, *folder.parents) if path.exists())
    with output_errors(folder):
        free = shutil.disk_usage(place).free
    if total > free:
        raise OutputError(
            f"{folder}: {free / 1e6:.0f} MB free, {total / 1e6:.0f} MB needed for the images of {archive.name}",
            remedy="free space or choose another --out",
        )


# Names, kinds and claims of members -------------------------------------------------------------------------------


def _members(infos: Iterable[zipfile.ZipInfo], done: Unpacked, wanted: frozenset[str]) -> list[_Member]:
    """Return the members to write; the others are refused, counted as other files, or ignored as on a disk."""
    members, others = [], Counter[str]()
    for info in infos:
        path, problem = safe_path(info)
        if problem:
            done.refused.append(Refused(_shown(info.orig_filename), BAD_NAME, problem))
        elif info.is_dir() or path.endswith("/") or _is_ignored(path):
            continue
        elif reason := _wrong_kind(info):
            done.refused.append(Refused(_shown(path), *reason))
        elif suffix_of(path.rpartition("/")[2]) not in wanted:
            others[suffix_of(path.rpartition("/")[2]) or "no ending"] += 1
        elif reason := _wrong_claim(info, path):
            done.refused.append(Refused(_shown(path), *reason))
        else:
            members.append(_Member(info, path))
    if others:
        kinds = ", ".join(f"{ending} {n}" for ending, n in sorted(others.items()))
        text = f"Files of the archive that are neither images nor tables were not unpacked: {kinds}."
        done.notes.append(Note("other_files", text, others.total()))
    return _without_duplicates(members, done)


def safe_path(info: zipfile.ZipInfo) -> tuple[str, str]:
    """Return a member's relative path with `/`, and what is wrong with it ("" = nothing)."""
    name = info.orig_filename
    if not info.flag_bits & 0x800 and not name.isascii():
        with suppress(UnicodeError):  # many programs write UTF-8 without saying so
            name = name.encode("cp437").decode("utf-8")
    path = name.replace("\\", "/")
    parts = path.rstrip("/").split("/")
    if any(unicodedata.category(sign) in ("Cc", "Cs") for sign in path):
        return path, "a control character in the name"
    if path.startswith("/") or re.match(r"[A-Za-z]:", path):
        return path, "an absolute path"
    if any(part in ("", ".", "..") or part.strip(" .") == "" for part in parts):
        return path, "a path that leads out, or with an empty part"
    if max(len(part.encode()) for part in parts) > MAX_NAME_BYTES or len(path.encode()) > MAX_PATH_BYTES:
        return path, "a name too long to be written"
    return path, ""


def _shown(name: str) -> str:
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in name)


def _is_ignored(path: str) -> bool:
    return any(part[0] == "." or part.lower() in IGNORED_NAMES for part in path.split("/"))


def _wrong_kind(info: zipfile.ZipInfo) -> tuple[str, str] | None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return LINK, "a link; links in archives are not followed"
    if kind in _KINDS:
        return Refusal.UNREADABLE.value, f"not a file but {_KINDS[kind]}"
    return None


def _wrong_claim(info: zipfile.ZipInfo, path: str) -> tuple[str, str] | None:
    """Return why a member is refused for what the directory says of it."""
    if info.flag_bits & 0x2041:
        return ENCRYPTED, "encrypted; unpack it with its password and give the folder"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return Refusal.UNREADABLE.value, f"packed by method {info.compress_type}; stored and deflated are read"
    most = MAX_TABLE_BYTES if suffix_of(path) in TABLE_SUFFIXES else MAX_FILE_BYTES
    if info.file_size > most:
        return Refusal.TOO_LARGE.value, f"{info.file_size:,} bytes; at most {most:,}"
    if info.file_size > FREE_BYTES and info.file_size > MAX_RATIO * max(1, info.compress_size):
        return Refusal.TOO_LARGE.value, f"inflates from {info.compress_size:,} to {info.file_size:,} bytes: a bomb"
    return None


def _without_duplicates(members: Sequence[_Member], done: Unpacked) -> list[_Member]:
    """Refuse all members of one name: by case or Unicode form too, and a file that is a folder of another."""
    same: dict[str, list[_Member]] = defaultdict(list)
    for member in members:
        same[_key(member.path)].append(member)
    folders = {_key(member.path).rsplit("/", depth)[0] for member in members for depth in _depths(member.path)}
    kept = []
    for key, group in same.items():
        if len(group) == 1 and key not in folders:
            kept += group
            continue
        why = (
            f"{len(group)} members of this name, up to case and Unicode form"
            if len(group) > 1
            else "also a folder"
        )
        done.refused += [Refused(_shown(member.path), DUPLICATE, why) for member in group]
    return kept


def _key(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _depths(path: str) -> range:
    return range(1, path.count("/") + 1)


# Bytes ------------------------------------------------------------------------------------------------------------


def _unpack_one(packed: zipfile.ZipFile, member: _Member, root: Path) -> Refused | None:
    target = root / member.path
    make_folder(target.parent)
    if not target.parent.resolve().is_relative_to(root):
        return Refused(_shown(member.path), LINK, "its folder is a link that leads out of the data set")
    try:
        if not _is_there(target, member.info):
            inflate(packed, member.info, target)
    except _BROKEN as error:
        return Refused(_shown(member.path), Refusal.BROKEN.value, f"{type(error).__name__}: {error}"[:200])
    return None


def _is_there(target: Path, info: zipfile.ZipInfo) -> bool:
    if target.is_symlink() or not target.is_file() or target.stat().st_size != info.file_size:
        return False
    crc = 0
    with target.open("rb") as stream:
        while block := stream.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    return crc == info.CRC


def inflate(packed: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
    """Write a member whole or not at all; never more bytes than it claims. Raises one of zipfile's errors."""

    def copy(out: IO[bytes]) -> None:
        written = 0
        with packed.open(info) as stream:
            while block := stream.read(_BLOCK):
                written += len(block)
                if written > info.file_size:
                    raise zipfile.BadZipFile("it inflates to more than it claims")
                with output_errors(target):
                    out.write(block)
        if written != info.file_size:
            raise zipfile.BadZipFile(f"{written} bytes where {info.file_size} are claimed")

    put(target, copy)


def put(target: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file whole or not at all, without the flush to disk of `files.write_with`.

    Ten thousand flushes cost more than the unpacking. A repeated run compares every file with its source, and the
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


# Whose images lie here --------------------------------------------------------------------------------------------


def mark(folder: Path, source: Path) -> None:
    """Say beside unpacked images which file they come from."""
    write_json(folder / MARK, {"name": source.name, "sha256": sha256_file(source)}, format=FORMAT)


def is_marked(folder: Path) -> bool:
    """Say whether a folder holds images that were unpacked here."""
    return (folder / MARK).is_file()


def check_mark(folder: Path, source: Path) -> None:
    """Refuse to mix the images of two sources; raises `UsageError`."""
    if folder.is_symlink() or (folder.exists() and not is_marked(folder)):
        raise UsageError(
            f"{folder}: is there already and was not unpacked by dermkit",
            kept="everything there",
            remedy="name a new folder with --out",
        )
    if is_marked(folder):
        before = read_json(folder / MARK, format=FORMAT, error=DataError)
        if before.get("sha256") != sha256_file(source):
            raise UsageError(
                f"{folder.parent}: holds the images of another file, {before.get('name')}",
                kept="those images, that data set and its splits",
                remedy="name a new folder with --out",
            )
