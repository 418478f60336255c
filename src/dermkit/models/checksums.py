"""SHA256SUMS of a folder: written last, checked before any file of it is used.

Two files cannot be replaced atomically, so their new hashes are first appended as `# next` comments, which
`sha256sum -c` skips; during the update either hash is valid. An interrupted update leaves a folder that verifies.
"""

from collections.abc import Mapping
from pathlib import Path

from dermkit.errors import UntrustedError
from dermkit.files import sha256_bytes, sha256_file, write_text

CHECKSUM_FILE = "SHA256SUMS"
_PENDING_PREFIX = "# next "
_COPY_REMEDY = "copy the model folder anew from where it was trained"


def write_checksums(folder: Path) -> None:
    """Write SHA256SUMS over every other file of a folder (`sha256sum -c SHA256SUMS` checks it)."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != CHECKSUM_FILE)
    lines = [f"{sha256_file(folder / name)}  {name}\n" for name in names]
    write_text(folder / CHECKSUM_FILE, "".join(lines))


def update_files(folder: Path, texts: Mapping[str, str]) -> None:
    """Replace text files of a folder and its checksums; the folder verifies wherever this is interrupted."""
    lines = (folder / CHECKSUM_FILE).read_text(encoding="utf-8").splitlines(keepends=True)
    pending_lines = [f"{_PENDING_PREFIX}{sha256_bytes(text.encode())}  {name}\n" for name, text in texts.items()]
    write_text(folder / CHECKSUM_FILE, "".join([*lines, *pending_lines]))
    for name, text in texts.items():
        write_text(folder / name, text)
    write_checksums(folder)


def is_update_pending(folder: Path) -> bool:
    """Return whether an update of files was interrupted."""
    path = folder / CHECKSUM_FILE
    return path.is_file() and any(
        line.startswith(_PENDING_PREFIX) for line in path.read_text(encoding="utf-8").splitlines()
    )


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
    for line in sums_path.read_bytes().decode("utf-8", "replace").splitlines():
        sha256, _, name = line.removeprefix(_PENDING_PREFIX).partition("  ")
        if "/" in name or "\\" in name or name in ("", ".", ".."):
            raise UntrustedError(
                f"{sums_path}: names a file outside the folder: {name!r}", remedy="copy the model anew"
            )
        hashes[name] = (*hashes.get(name, ()), sha256)
    return hashes


def read_verified(folder: Path) -> dict[str, bytes]:
    """Return file name -> bytes of every listed file, so that the bytes that were hashed are those that are used.

    Raises `UntrustedError` where a file is missing or changed.
    """
    content: dict[str, bytes] = {}
    for name, hashes in expected_hashes(folder).items():
        try:
            # Read once, hashed and used: a file that is exchanged in between cannot slip through.
            content[name] = (folder / name).read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            raise UntrustedError(f"{folder / name}: cannot be read: {error}", remedy="copy it anew") from error
        if sha256_bytes(content[name]) not in hashes:
            raise _changed_file_error(folder / name, "nothing was predicted")
    return content


def check_hashes(folder: Path, *, preserved: str) -> None:
    """Raise `UntrustedError` where a listed file is missing or changed; files are read in blocks.

    preserved: for the error message, what is still intact.
    """
    for name, hashes in expected_hashes(folder).items():
        if not (folder / name).is_file() or sha256_file(folder / name) not in hashes:
            raise _changed_file_error(folder / name, preserved)


def _changed_file_error(path: Path, preserved: str) -> UntrustedError:
    return UntrustedError(
        f"{path}: its bytes are not those that were saved (SHA-256 differs)",
        outcome=preserved,
        remedy=_COPY_REMEDY,
    )
