"""Unpacks an untrusted .zip: names and sizes are checked before and during extraction."""

import os
import re
import shutil
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from dermkit import files
from dermkit.data.importers.csv_tables import SAMPLE_BYTES, is_table_sample
from dermkit.data.importers.extract import BLOCK_BYTES, inflate
from dermkit.data.importers.records import Note, Rejected
from dermkit.data.importers.walk import REASON_BAD_NAME, REASON_LINK
from dermkit.errors import DataError, OutputError, RejectionReason
from dermkit.files import TEMP_PREFIX, make_folder, output_errors
from dermkit.images.formats import IMAGE_SUFFIXES, image_kind
from dermkit.images.image_header import MAX_FILE_BYTES
from dermkit.images.recognise import HEAD_BYTES, TABLE_SUFFIXES, is_ignored, suffix_of

REASON_ENCRYPTED = "encrypted"
REASON_DUPLICATE_NAME = "duplicate_name"
# Reasons beside those of `errors.RejectionReason` and of walk.py.

MAX_MEMBERS = 2_000_000
"""Four times the largest public set of skin images; a million entries take half a gigabyte of memory."""
MAX_DIRECTORY_BYTES = 512 * 1024**2
"""Of the archive's table of contents: about 256 bytes for each of `MAX_MEMBERS`."""
MAX_TABLE_BYTES = 4 * 1024**3
"""A million rows of 100 columns with 10 characters each take 1.1 GB."""
MAX_INNER_ARCHIVE_BYTES = 64 * 1024**3
"""The images of HAM10000 are two archives of 1.3 GB inside one."""
MAX_RATIO = 200
"""Unpacked to packed size. Photographs reach 1.1 and tables 30; zip bombs come near deflate's maximum of 1,032."""
UNCHECKED_MEMBER_BYTES = 16 * 1024**2
"""A member below this size may have any ratio, as a uniform bitmap has."""
UNCHECKED_TOTAL_BYTES = 1024**3
"""The same for all members together."""
MAX_NAME_BYTES = 255
"""The limit of Linux file systems; macOS and Windows allow 255 characters."""
MAX_PATH_BYTES = 1024
"""The limit of macOS; Linux allows 4,096."""
READ_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
ENCRYPTION_FLAGS = 0x2041
"""Bits 0, 6 and 13 of a member's flags (PKWARE APPNOTE 4.4.4): encrypted, strongly, or with a masked header."""

_INNER_SUFFIX = ".zip"
_FOLDER_ICON = "icon\r"  # of macOS
_TAIL_BYTES = 65_557  # the end record takes 22 bytes and a comment of up to 65,535
# OSError: a seek to an impossible position. Failed writes are OutputErrors before they get here.
_ARCHIVE_ERRORS = (
    OSError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    struct.error,
    NotImplementedError,
    RuntimeError,
    ValueError,
)
_SPECIAL_FILE_KINDS = {
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


@dataclass
class UnpackResult:
    """The members that were rejected, and notes."""

    rejected: list[Rejected] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)


@dataclass(frozen=True)
class _Member:
    info: zipfile.ZipInfo
    path: str


def is_archive(source: Path) -> bool:
    """Return whether a source is a .zip, by its suffix or its first bytes. A .npz does not count."""
    if not source.is_file() or source.suffix.lower() == ".npz":
        return False
    try:
        with source.open("rb") as stream:
            return source.suffix.lower() == ".zip" or stream.read(4) == b"PK\x03\x04"
    except OSError:
        return source.suffix.lower() == ".zip"


def unpack(archive: Path, folder: Path, *, on_progress: Callable[[int, int], None] | None = None) -> UnpackResult:
    """Unpack the images and tables of an archive into a folder, and write nothing outside it.

    A .zip inside it is unpacked too, into a folder of its name; archives inside that one are rejected.
    A member that is a link, a device, encrypted, broken, too large, or whose name is unsafe or duplicated is listed as
    rejected; other members are extracted. Files that already have the right content are left alone, so an interrupted
    run can be repeated. on_progress: called with (members done, all members). Raises `DataError` for an archive that is
    incomplete, a bomb, or has overlapping members, and `OutputError`.
    """
    result = UnpackResult()
    with open_archive(archive) as zip_file:
        members = _members(zip_file, result)
        infos = [member.info for member in members]
        check_total(archive, infos, folder)
        root = make_folder(folder).resolve()
        paths = [_key(member.path) for member in members if not _is_inner_archive(member.path)]
        for number, member in enumerate(members, start=1):
            if _is_inner_archive(member.path):
                name = member.path[: -len(_INNER_SUFFIX)]
                is_taken = any(path.startswith(f"{_key(name)}/") for path in paths)
                inner_folder = root / (member.path if is_taken else name)
                _unpack_inner(archive, zip_file, member, root, inner_folder, infos, result)
            elif rejection := _unpack_member(zip_file, member, root):
                result.rejected.append(rejection)
            if on_progress:
                on_progress(number, len(members))
    return result


def _unpack_inner(
    archive: Path,
    zip_file: zipfile.ZipFile,
    member: _Member,
    root: Path,
    folder: Path,
    infos: list[zipfile.ZipInfo],
    result: UnpackResult,
) -> None:
    """Unpack an archive that is a member of another into a folder below `root`; adds its members to `infos`.

    All members of all archives together must not be a bomb. A broken inner archive is rejected as a whole.
    """
    inner_path = root.parent / f"{TEMP_PREFIX}inner.zip"  # beside the images: no walk sees it
    inner_result = UnpackResult()
    try:
        if not make_folder(folder).resolve().is_relative_to(root):
            raise zipfile.BadZipFile("its folder is a link")
        inflate(zip_file, member.info, inner_path)
        with _open_inner(inner_path) as inner_file:
            members = _members(inner_file, inner_result)
            infos += [inner.info for inner in members]
            check_total(archive, infos, folder)
            for inner in members:
                if _is_inner_archive(inner.path):
                    detail = "an archive inside an archive inside an archive; unpack it and import the folder"
                    inner_result.rejected.append(
                        Rejected(_printable(inner.path), RejectionReason.UNREADABLE.value, detail)
                    )
                elif rejection := _unpack_member(inner_file, inner, folder.resolve()):
                    inner_result.rejected.append(rejection)
    except _ARCHIVE_ERRORS as error:
        result.rejected.append(Rejected(_printable(member.path), RejectionReason.BROKEN.value, str(error)[:200]))
    finally:
        inner_path.unlink(missing_ok=True)
    result.rejected += [
        item._replace(path=f"{_printable(member.path)}/{item.path}") for item in inner_result.rejected
    ]
    result.notes += inner_result.notes


def _open_inner(path: Path) -> zipfile.ZipFile:
    try:
        return open_archive(path)
    except DataError as error:
        raise zipfile.BadZipFile(error.message.removeprefix(f"{path}: ")) from error


def _is_inner_archive(path: str) -> bool:
    return path.lower().endswith(_INNER_SUFFIX)


def unpack_single(archive: Path, suffix: str, target: Path) -> str:
    """Unpack the only member with this suffix to `target`; returns its file name. Raises `DataError`."""
    with open_archive(archive) as zip_file:
        candidates = [
            (path, info)
            for info in zip_file.infolist()
            for path, problem in [safe_path(info)]
            if suffix_of(path.rpartition("/")[2]) == suffix and not problem and not _is_ignored(path)
        ]
        if (
            len(candidates) != 1
            or _kind_problem(candidates[0][1])
            or candidates[0][1].flag_bits & ENCRYPTION_FLAGS
        ):
            names = ", ".join(path for path, _ in candidates) or "none"
            raise _archive_error(archive, f"one plain {suffix} is needed in it, found: {names}")
        path, info = candidates[0]
        check_total(archive, [info], target.parent)
        try:
            if info.compress_type not in READ_METHODS:
                raise zipfile.BadZipFile(f"packed by method {info.compress_type}")
            inflate(zip_file, info, target)
        except _ARCHIVE_ERRORS as error:
            raise _archive_error(archive, f"{path} is broken: {error}") from error
    return path.rpartition("/")[2]


def open_archive(archive: Path) -> zipfile.ZipFile:
    """Open a .zip after checking its directory; raises `DataError` if it is incomplete, too large or overlapping."""
    try:
        _check_directory(archive)
        zip_file = zipfile.ZipFile(archive)
    except OSError as error:
        raise _archive_error(archive, f"cannot be read: {error.strerror or error}") from error
    except _ARCHIVE_ERRORS as error:
        raise _archive_error(archive, f"is no complete zip archive: {error}") from error
    infos = zip_file.infolist()
    if len(infos) > MAX_MEMBERS:
        zip_file.close()
        raise _archive_error(archive, f"holds {len(infos)} members; at most {MAX_MEMBERS:,}")
    extents = sorted((info.header_offset, info.header_offset + 30 + info.compress_size) for info in infos)
    for (_, end), (start, _) in pairwise(extents):
        if end > start:
            zip_file.close()
            raise _archive_error(archive, "its members overlap each other: a bomb")
    return zip_file


def _archive_error(archive: Path, problem: str) -> DataError:
    return DataError(f"{archive}: {problem}", outcome="nothing was written", remedy="download the archive again")


def _check_directory(archive: Path) -> None:
    """Raise `BadZipFile` for a directory that would fill the memory, before it is read."""
    with archive.open("rb") as stream:
        archive_bytes = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, archive_bytes - _TAIL_BYTES))
        tail = stream.read()
    end_record = tail.rfind(b"PK\x05\x06")
    if end_record < 0 or len(tail) < end_record + 22:
        raise zipfile.BadZipFile("its end is missing, so it was cut, or it is no zip at all")
    directory_bytes = int(struct.unpack_from("<I", tail, end_record + 12)[0])
    zip64_record = tail.rfind(b"PK\x06\x06", 0, end_record)
    if directory_bytes == 0xFFFFFFFF and 0 <= zip64_record <= len(tail) - 56:
        directory_bytes = int(struct.unpack_from("<Q", tail, zip64_record + 40)[0])
    if directory_bytes > min(archive_bytes, MAX_DIRECTORY_BYTES):
        raise zipfile.BadZipFile(f"its directory claims {directory_bytes:,} bytes")


def check_total(archive: Path, infos: Sequence[zipfile.ZipInfo], folder: Path) -> None:
    """Raise `DataError` if the members together are a bomb, and `OutputError` if they do not fit on the disk."""
    total_bytes = sum(info.file_size for info in infos)
    packed_bytes = archive.stat().st_size
    if total_bytes > UNCHECKED_TOTAL_BYTES and total_bytes > MAX_RATIO * packed_bytes:
        raise _archive_error(archive, f"would inflate from {packed_bytes:,} to {total_bytes:,} bytes: a bomb")
    existing_folder = next(path for path in (folder, *folder.parents) if path.exists())
    with output_errors(folder):
        free_bytes = shutil.disk_usage(existing_folder).free
    if total_bytes > free_bytes:
        raise OutputError(
            f"{folder}: {free_bytes / 1e6:.0f} MB free, {total_bytes / 1e6:.0f} MB needed for the "
            f"images of {archive.name}",
            remedy="free space or choose another --out",
        )


# Names, types and stated sizes of members -------------------------------------------------------------------------


def _members(zip_file: zipfile.ZipFile, result: UnpackResult) -> list[_Member]:
    """Return the members to extract; others are rejected, counted as other files, or ignored as in a folder."""
    members, other_suffixes = [], Counter[str]()
    for info in zip_file.infolist():
        path, problem = safe_path(info)
        if path.rpartition("/")[2].lower() == _FOLDER_ICON:
            continue
        if problem:
            result.rejected.append(Rejected(_printable(info.orig_filename), REASON_BAD_NAME, problem))
        elif info.is_dir() or path.endswith("/") or _is_ignored(path):
            continue
        elif reason := _kind_problem(info):
            result.rejected.append(Rejected(_printable(path), *reason))
        elif not _is_wanted(zip_file, info, suffix_of(path.rpartition("/")[2])):
            other_suffixes[suffix_of(path.rpartition("/")[2]) or "no ending"] += 1
        elif reason := _claim_problem(info, path):
            result.rejected.append(Rejected(_printable(path), *reason))
        else:
            members.append(_Member(info, path))
    if other_suffixes:
        counts_text = ", ".join(f"{ending} {n}" for ending, n in sorted(other_suffixes.items()))
        text = f"Files of the archive that are neither images nor tables were not unpacked: {counts_text}."
        result.notes.append(Note("other_files", text, other_suffixes.total()))
    return _reject_duplicates(members, result)


def _is_wanted(zip_file: zipfile.ZipFile, info: zipfile.ZipInfo, suffix: str) -> bool:
    """Return whether a member is an image, a table or an archive, by its name or its first bytes."""
    if suffix in IMAGE_SUFFIXES or suffix in TABLE_SUFFIXES or suffix == _INNER_SUFFIX:
        return True
    if info.flag_bits & ENCRYPTION_FLAGS or info.compress_type not in READ_METHODS:
        return False
    try:
        with zip_file.open(info) as stream:
            head = stream.read(SAMPLE_BYTES if not suffix else HEAD_BYTES)
    except _ARCHIVE_ERRORS:
        return False
    return bool(image_kind(head)) or (not suffix and is_table_sample(head))


def safe_path(info: zipfile.ZipInfo) -> tuple[str, str]:
    """Return a member's relative path with `/`, and why it is unsafe ("" = it is safe)."""
    name = info.orig_filename
    if not info.flag_bits & 0x800 and not name.isascii():
        with suppress(UnicodeError):  # many programs write UTF-8 without setting the flag for it
            name = name.encode("cp437").decode("utf-8")
    path = name.replace("\\", "/")
    components = path.rstrip("/").split("/")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in path):
        return path, "a control character in the name"
    if path.startswith("/") or re.match(r"[A-Za-z]:", path):
        return path, "an absolute path"
    if any(component in ("", ".", "..") or component.strip(" .") == "" for component in components):
        return path, "a path that leads out, or with an empty part"
    if files.ON_WINDOWS and (problem := files.windows_path_problem(path)):
        return path, problem
    if (
        max(len(component.encode()) for component in components) > MAX_NAME_BYTES
        or len(path.encode()) > MAX_PATH_BYTES
    ):
        return path, "a name too long to be written"
    return path, ""


def _printable(name: str) -> str:
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in name)


def _is_ignored(path: str) -> bool:
    return any(map(is_ignored, path.split("/")))


def _kind_problem(info: zipfile.ZipInfo) -> tuple[str, str] | None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return REASON_LINK, "a link; links in archives are not followed"
    if kind in _SPECIAL_FILE_KINDS:
        return RejectionReason.UNREADABLE.value, f"not a file but {_SPECIAL_FILE_KINDS[kind]}"
    return None


def _claim_problem(info: zipfile.ZipInfo, path: str) -> tuple[str, str] | None:
    """Return reason and detail if a member is rejected for what the directory states about it."""
    if info.flag_bits & ENCRYPTION_FLAGS:
        return REASON_ENCRYPTED, "encrypted; unpack it with its password and give the folder"
    if info.compress_type not in READ_METHODS:
        return (
            RejectionReason.UNREADABLE.value,
            f"packed by method {info.compress_type}; stored and deflated are read",
        )
    limit = MAX_FILE_BYTES
    if suffix_of(path) in (*TABLE_SUFFIXES, ""):
        limit = MAX_TABLE_BYTES
    elif _is_inner_archive(path):
        limit = MAX_INNER_ARCHIVE_BYTES
    if info.file_size > limit:
        return RejectionReason.TOO_LARGE.value, f"{info.file_size:,} bytes; at most {limit:,}"
    if info.file_size > UNCHECKED_MEMBER_BYTES and info.file_size > MAX_RATIO * max(1, info.compress_size):
        return (
            RejectionReason.TOO_LARGE.value,
            f"inflates from {info.compress_size:,} to {info.file_size:,} bytes: a bomb",
        )
    return None


def _reject_duplicates(members: Sequence[_Member], result: UnpackResult) -> list[_Member]:
    """Reject members whose names are equal up to case and Unicode form, and files with the name of a folder."""
    members_by_key: dict[str, list[_Member]] = defaultdict(list)
    for member in members:
        members_by_key[_key(member.path)].append(member)
    folders = {_key(member.path).rsplit("/", depth)[0] for member in members for depth in _depths(member.path)}
    unique_members = []
    for key, group in members_by_key.items():
        if len(group) == 1 and key not in folders:
            unique_members += group
            continue
        detail = (
            f"{len(group)} members of this name, up to case and Unicode form"
            if len(group) > 1
            else "also a folder"
        )
        result.rejected += [Rejected(_printable(member.path), REASON_DUPLICATE_NAME, detail) for member in group]
    return unique_members


def _key(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _depths(path: str) -> range:
    return range(1, path.count("/") + 1)


# Bytes ------------------------------------------------------------------------------------------------------------


def _unpack_member(zip_file: zipfile.ZipFile, member: _Member, root: Path) -> Rejected | None:
    target = root / member.path
    make_folder(target.parent)
    if not target.parent.resolve().is_relative_to(root):
        return Rejected(
            _printable(member.path), REASON_LINK, "its folder is a link that leads out of the data set"
        )
    try:
        if not _is_unpacked(target, member.info):
            inflate(zip_file, member.info, target)
    except _ARCHIVE_ERRORS as error:
        return Rejected(
            _printable(member.path), RejectionReason.BROKEN.value, f"{type(error).__name__}: {error}"[:200]
        )
    return None


def _is_unpacked(target: Path, info: zipfile.ZipInfo) -> bool:
    if target.is_symlink() or not target.is_file() or target.stat().st_size != info.file_size:
        return False
    crc = 0
    with target.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            crc = zlib.crc32(block, crc)
    return crc == info.CRC
