"""The files of a repository on the Hugging Face hub: from its cache, fetched once, or from a local copy."""

import contextlib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dermkit.errors import UntrustedError
from dermkit.files import read_regular
from dermkit.models.hub_names import HubName

CONFIG_FILE, WEIGHTS_FILE_NAME, CARD_FILE = "config.json", "model.safetensors", "README.md"
HUB_SECONDS = 5.0
"""Seconds that the hub has to answer. Its client's own retries take 23 s (measured) to report a missing network."""

_MAX_CARD_BYTES = 2**20
_CONVERT = (
    "convert it once where you trust it (timm.create_model(NAME, pretrained=True), then timm.models.save_for_hf with "
    "safe_serialization=True) and pass --weights FOLDER"
)


@dataclass(frozen=True)
class HubFiles:
    """config.json and weights of a repository. revision: the commit, "" of a local copy. licence: as its card says."""

    config: Path
    weights: Path
    revision: str
    licence: str


def local_files(backbone: str, path: Path) -> HubFiles:
    """Return the files of a local copy: a folder with config.json and model.safetensors, or the weights file in it."""
    folder, weights = (path, path / WEIGHTS_FILE_NAME) if path.is_dir() else (path.parent, path)
    if not weights.is_file():
        raise _no_weights_error(f"{backbone}: {weights} is not there{_pickles_in(folder)}")
    if not (folder / CONFIG_FILE).is_file():
        raise UntrustedError(
            f"{weights}: has no {CONFIG_FILE} beside it, so nothing says which net and scaling it is for",
            outcome="nothing was trained",
            remedy=f"copy {CONFIG_FILE} of the repository too",
        )
    return HubFiles(folder / CONFIG_FILE, weights, "", _licence(folder / CARD_FILE))


def _pickles_in(folder: Path) -> str:
    names = sorted(path.name for path in folder.glob("*") if path.suffix in (".bin", ".pth", ".pt"))[:3]
    return f" ({', '.join(names)} may be a pickle, which runs code of whoever made it)" if names else ""


def _no_weights_error(problem: str) -> UntrustedError:
    return UntrustedError(
        f"{problem}; dermkit opens weights as safetensors alone", outcome="nothing was trained", remedy=_CONVERT
    )


def fetch_hub_files(name: HubName) -> HubFiles:
    """Return the files of a repository from the hub's cache, fetched before where they are not there.

    The client's own login is used, if there is one. Raises `UntrustedError` where a file cannot be had.
    """
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        raise _hub_error(
            name, "huggingface_hub is not installed", "pip install huggingface_hub, or pass --weights FOLDER"
        ) from error
    config, was_fetched = _find_or_fetch(name, CONFIG_FILE)
    pinned = HubName(name.repository, config.parent.name)
    weights, more_was_fetched = _find_or_fetch(pinned, WEIGHTS_FILE_NAME)
    licence = ""
    with contextlib.suppress(UntrustedError):  # a repository without a card states no licence
        can_fetch = was_fetched or more_was_fetched  # not asked again where everything else lies in the cache
        licence = _licence((_find_or_fetch if can_fetch else _find)(pinned, CARD_FILE)[0])
    return HubFiles(config, weights, pinned.revision, licence)


def _find(name: HubName, file_name: str) -> tuple[Path, bool]:
    """Return a file from the hub's cache; raises `UntrustedError` where it is not there."""
    import huggingface_hub as hub

    try:
        path = hub.hf_hub_download(
            name.repository, file_name, revision=name.revision or None, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise _hub_error(name, f"{file_name} is not in the cache", "connect to the network once") from error
    return _in_snapshot(Path(path), name), False


def _find_or_fetch(name: HubName, file_name: str) -> tuple[Path, bool]:
    """Return a file and whether it was fetched now; fails within seconds where there is no network."""
    import huggingface_hub as hub

    with contextlib.suppress(UntrustedError):
        return _find(name, file_name)
    revision = name.revision or None
    try:
        with muted_logger("huggingface_hub"):
            # One request without retries first, because the download itself retries for long.
            url = hub.hf_hub_url(name.repository, file_name, revision=revision)
            hub.get_hf_file_metadata(url, timeout=HUB_SECONDS)
            path = Path(hub.hf_hub_download(name.repository, file_name, revision=revision))
    except Exception as error:  # the HTTP library and its exceptions depend on the hub client's version
        raise _fetch_error(name, file_name, error) from error
    return _in_snapshot(path, name), True


def _in_snapshot(path: Path, name: HubName) -> Path:
    """Return a file of the cache, whose folder is named by its commit; raises `UntrustedError` for another place."""
    if not re.fullmatch(r"[0-9a-f]{40}", path.parent.name):
        raise _hub_error(name, f"{path} does not lie in a folder of its commit", "empty the hub's cache")
    return path


def _fetch_error(name: HubName, file_name: str, error: Exception) -> UntrustedError:
    """Return what kept a file from being fetched, and what to do."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    status = _status(error)
    local = f"or pass a copy with --weights FOLDER ({CONFIG_FILE} and {WEIGHTS_FILE_NAME})"
    if "GatedRepoError" in kinds or status == 403:
        return _hub_error(
            name, "its owner gives it only to people whom they admitted",
            f"accept its terms on its page, log in (`hf auth login`), {local}",
        )  # fmt: skip
    if "RevisionNotFoundError" in kinds:
        return _hub_error(name, f"has no revision {name.revision}", "correct or leave out what follows @")
    if "RepositoryNotFoundError" in kinds or status == 401:
        return _hub_error(
            name,
            "there is no such repository, or it is private",
            f"correct the name, log in (`hf auth login`), {local}",
        )
    if "EntryNotFoundError" in kinds and "LocalEntryNotFoundError" not in kinds:
        if file_name == WEIGHTS_FILE_NAME:
            return _no_weights_error(f"{name}: has no {WEIGHTS_FILE_NAME}")
        return _hub_error(name, f"has no {file_name}, so this is no model of timm", "name another repository")
    reason = (str(error).strip().splitlines() or [""])[0][:200]
    return _hub_error(
        name, f"{file_name} is not in the cache, and the hub did not give it ({type(error).__name__}: {reason})",
        f"connect to the network once, and it is fetched and kept, {local}",
    )  # fmt: skip


def _status(error: Exception) -> int | None:
    response: Any = getattr(error, "response", None)
    return getattr(response, "status_code", None)


def _hub_error(name: HubName, problem: str, remedy: str) -> UntrustedError:
    return UntrustedError(f"{name}: {problem}", outcome="nothing was trained", remedy=remedy)


@contextlib.contextmanager
def muted_logger(name: str) -> Iterator[None]:
    """Silence a library's logger within a block."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _licence(card: Path) -> str:
    """Return the licence that a repository's card states in its front matter, "" without."""
    try:
        text = read_regular(card, max_bytes=_MAX_CARD_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
    lines = text.splitlines()
    if not lines or lines[0].strip() != "---":
        return ""
    fields: dict[str, str] = {}
    for line in lines[1:200]:
        if line.strip() == "---":
            break
        field, colon, value = line.partition(":")
        if colon and field in ("license", "license_name"):
            fields[field] = value.strip().strip("'\"")[:100]
    named = fields.get("license_name", "")
    return named if named and fields.get("license", "other") == "other" else fields.get("license", "")
