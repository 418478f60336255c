"""SHA256SUMS of a folder: written last, checked before any file of it is used.

Two files cannot be replaced atomically, so their new hashes are first appended as `# next` comments, which
`sha256sum -c` skips; during the update either hash is valid. An interrupted update leaves a folder that verifies.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from dermkit.errors import UntrustedError
from dermkit.files import read_regular, sha256_bytes, sha256_file, write_text

CHECKSUM_FILE = "SHA256SUMS"
_PENDING_PREFIX = "# next "
_MAX_CHECKSUM_BYTES = 2**20
MAX_FOLDER_BYTES = 2**33
"""Of all files of a folder together, since all are held in memory: two nets of a billion weights."""
_COPY_REMEDY = "copy the model folder anew from where it was trained"


def write_checksums(folder: Path) -> None:
    """Write SHA256SUMS over every other file of a folder (`sha256sum -c SHA256SUMS` checks it)."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != CHECKSUM_FILE)
    write_text(folder / CHECKSUM_FILE, _checksum_text({name: sha256_file(folder / name) for name in names}))


def _checksum_text(hashes: Mapping[str, str]) -> str:
    """Return the lines of SHA256SUMS. hashes: file name -> SHA-256."""
    return "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))


def update_files(folder: Path, texts: Mapping[str, str]) -> None:
    """Replace text files of a folder and its checksums; the folder verifies wherever this is interrupted."""
    lines = (
        _read_inside(folder, CHECKSUM_FILE, _MAX_CHECKSUM_BYTES)
        .decode("utf-8", "replace")
        .splitlines(keepends=True)
    )
    pending_lines = [f"{_PENDING_PREFIX}{sha256_bytes(text.encode())}  {name}\n" for name, text in texts.items()]
    write_text(folder / CHECKSUM_FILE, "".join([*lines, *pending_lines]))
    for name, text in texts.items():
        write_text(folder / name, text)
    write_checksums(folder)


def is_update_pending(folder: Path) -> bool:
    """Return whether an update of files was interrupted."""
    if not (folder / CHECKSUM_FILE).is_file():
        return False
    text = _read_inside(folder, CHECKSUM_FILE, _MAX_CHECKSUM_BYTES).decode("utf-8", "replace")
    return any(line.startswith(_PENDING_PREFIX) for line in text.splitlines())


def expected_hashes(folder: Path) -> dict[str, tuple[str, ...]]:
    """Return file name -> its valid hashes: one, or two for a file that is being replaced.

    Raises `UntrustedError` without SHA256SUMS, or where it names a file outside the folder.
    """
    sums_path = folder / CHECKSUM_FILE
    if not sums_path.is_file():
        raise UntrustedError(
            f"{folder}: not a model folder: {CHECKSUM_FILE} is missing",
            remedy="name the run folder or its model/ folder, or copy the model anew",
        )
    hashes: dict[str, tuple[str, ...]] = {}
    # A byte that is not UTF-8 becomes a character that no file name or hash here holds, so that it cannot match.
    for line in _read_inside(folder, CHECKSUM_FILE, _MAX_CHECKSUM_BYTES).decode("utf-8", "replace").splitlines():
        sha256, _, name = line.removeprefix(_PENDING_PREFIX).partition("  ")
        if "/" in name or "\\" in name or name in ("", ".", ".."):
            raise UntrustedError(
                f"{sums_path}: names a file outside the folder: {name!r}", remedy="copy the model anew"
            )
        hashes[name] = (*hashes.get(name, ()), sha256)
    return hashes


class VerifiedFiles(dict[str, bytes]):
    """File name -> bytes of every listed file.

    sha256: names these bytes, whatever the folder holds later; the hash of SHA256SUMS as `write_checksums` writes it.
    hashes: file name -> SHA-256 of its bytes.
    """

    sha256 = ""
    hashes: Mapping[str, str] = MappingProxyType({})


def read_verified(folder: Path) -> VerifiedFiles:
    """Return file name -> bytes of every listed file, so that the bytes that were hashed are those that are used.

    Raises `UntrustedError` where a file is missing or changed, is no regular file, or is a link out of the folder, and
    where they are larger than `MAX_FOLDER_BYTES` together: nothing of a file that is too large is read.
    """
    content, sums = VerifiedFiles(), {}
    n_free = MAX_FOLDER_BYTES
    for name, hashes in expected_hashes(folder).items():
        # Read once, hashed and used: a file that is exchanged in between cannot slip through.
        content[name] = _read_inside(folder, name, n_free)
        n_free -= len(content[name])
        sums[name] = sha256_bytes(content[name])
        if sums[name] not in hashes:
            raise _changed_file_error(folder / name, "nothing was predicted")
    content.hashes = sums
    content.sha256 = sha256_bytes(_checksum_text(sums).encode())
    return content


def _read_inside(folder: Path, name: str, max_bytes: int) -> bytes:
    """Return the bytes of a file of a model folder; a link may lead to another file of the same folder alone."""
    try:
        _check_inside(folder, name)
        return read_regular(folder / name, max_bytes=max_bytes)
    except (OSError, ValueError, RuntimeError) as error:  # a NUL in the name; a link to itself
        raise UntrustedError(f"{folder / name}: cannot be read: {error}", remedy="copy it anew") from error


def check_hashes(folder: Path, *, preserved: str) -> None:
    """Raise `UntrustedError` where a listed file is missing or changed; files are read in blocks.

    preserved: for the error message, what is still intact.
    """
    for name, hashes in expected_hashes(folder).items():
        _check_inside(folder, name)
        if not (folder / name).is_file() or sha256_file(folder / name) not in hashes:
            raise _changed_file_error(folder / name, preserved)


def _check_inside(folder: Path, name: str) -> None:
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise UntrustedError(
            f"{folder / name}: is a link that leads out of the model folder",
            outcome="nothing was used of it",
            remedy="copy the file itself into the folder",
        )


def _changed_file_error(path: Path, preserved: str) -> UntrustedError:
    return UntrustedError(
        f"{path}: its bytes are not those that were saved (SHA-256 differs)",
        outcome=preserved,
        remedy=_COPY_REMEDY,
    )
