"""A registry of model versions: a folder with a record of steps, and one run folder a version. One version serves.

    REGISTRY/record.jsonl      every step; the last promotion, roll-back or registration says which version serves
    REGISTRY/versions/v1/      a run folder without its checkpoints; its model/ is an ordinary model folder
    REGISTRY/updates/KEY/      what an update worked with, and its decision

A version is copied beside its place and renamed, then recorded: a folder that no step names is the rest of a killed
process, and the next one replaces it.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dermkit.errors import UntrustedError, UsageError, did_you_mean
from dermkit.files import TEMP_PREFIX, lock, make_folder, output_errors, sync_folder
from dermkit.runs.layout import CHECKPOINTS_FOLDER, MODEL_FOLDER
from dermkit.runs.model_key import folder_model_key
from dermkit.runs.registry_record import (
    ADDING_KINDS,
    PROMOTE,
    RECORD_FILE,
    REFUSE,
    REGISTER,
    ROLL_BACK,
    SERVING_KINDS,
    RegistryStep,
    append_step,
    read_record,
)

VERSIONS_FOLDER = "versions"
UPDATES_FOLDER = "updates"
_FIRST = "v1"
_LOCK_SECONDS = 30.0
"""Longest wait for another process that adds a version."""


@dataclass(frozen=True)
class RegistryVersion:
    """A version. state: serving, earlier (it served before) or refused. model_key: of its model when it was added."""

    name: str
    date: str
    state: str
    update: str
    model_key: str


@dataclass(frozen=True)
class Registry:
    """A registry as its record says. steps: all, oldest first."""

    folder: Path
    steps: tuple[RegistryStep, ...]

    @property
    def current(self) -> str:
        """The version that serves."""
        return next(step.version for step in reversed(self.steps) if step.kind in SERVING_KINDS)

    @property
    def versions(self) -> list[RegistryVersion]:
        """Every version, oldest first."""
        return [
            RegistryVersion(
                step.version, step.date, self._state(step), step.update, str(step.details["model_key"])
            )
            for step in self.steps
            if step.kind in ADDING_KINDS
        ]

    def _state(self, step: RegistryStep) -> str:
        return "refused" if step.kind == REFUSE else "serving" if step.version == self.current else "earlier"

    def version(self, name: str) -> RegistryVersion:
        """Return a version by its name; raises `UsageError` for one that is not there."""
        for version in self.versions:
            if version.name == name:
                return version
        names = [version.name for version in self.versions]
        raise UsageError(
            f"{self.folder}: has no version {name!r}", outcome="nothing was changed",
            remedy=f"versions there: {', '.join(names)}{did_you_mean(name, names)}",
        )  # fmt: skip

    def version_folder(self, name: str) -> Path:
        """Return the run folder of a version."""
        return self.folder / VERSIONS_FOLDER / name

    def model_folder(self, name: str) -> Path:
        """Return the model folder of a version; raises `UntrustedError` where it is not the model that was added."""
        model = self.version_folder(name) / MODEL_FOLDER
        if folder_model_key(model) != self.version(name).model_key:
            raise UntrustedError(
                f"{model}: is not the model that was added as {name}: files are missing or were changed",
                outcome="nothing was changed",
                remedy="restore the folder from a copy, or roll back to another version",
            )
        return model


def is_registry(folder: Path) -> bool:
    """Return whether a folder is a registry."""
    return (folder / RECORD_FILE).is_file()


def check_registry_place(folder: Path) -> None:
    """Raise `UsageError` for a folder of other files: a registry is one, or a folder that is absent or empty.

    So is what a process left that was killed while it copied the first version.
    """
    if is_registry(folder) or not folder.is_dir():
        return
    names = sorted(child.name for child in folder.iterdir() if not child.name.startswith("."))
    versions = folder / VERSIONS_FOLDER
    copies = {child.name for child in versions.iterdir()} if versions.is_dir() else {""}
    is_killed_copy = names == [VERSIONS_FOLDER] and copies <= {_FIRST, f"{TEMP_PREFIX}{_FIRST}"}
    if names and not is_killed_copy:
        raise UsageError(
            f"{folder}: is not empty and is not a registry (it holds {', '.join(names[:3])})",
            outcome="everything there",
            remedy="name a new folder with --registry",
        )


def read_registry(folder: Path) -> Registry:
    """Return a registry; raises `UsageError` for a folder that is none, `UntrustedError` for a damaged record."""
    if not is_registry(folder):
        raise UsageError(
            f"{folder}: is not a registry: there is no {RECORD_FILE}",
            outcome="nothing was changed",
            remedy="name the folder that `dermkit update --registry` wrote",
        )
    return Registry(folder, tuple(read_record(folder)))


def serving_model(folder: Path) -> Path:
    """Return the model folder of the version that serves; any folder that is no registry as it is."""
    if not is_registry(folder):
        return folder
    registry = read_registry(folder)
    return registry.model_folder(registry.current)


# Steps --------------------------------------------------------------------------------------------------------------


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with lock(folder, timeout=_LOCK_SECONDS):
        yield


def register_first(folder: Path, run: Path, *, details: Mapping[str, Any]) -> Registry:
    """Begin a registry with a run as version v1, which serves; an existing one is returned as it is."""
    with _locked(folder):
        if not is_registry(folder):
            _copy_run(folder, run, _FIRST)
            append_step(folder, REGISTER, _FIRST, details=_with_key(folder, _FIRST, details))
    return read_registry(folder)


def record_decision(
    folder: Path, run: Path, *, champion: str, update: str, is_promoted: bool, details: Mapping[str, Any]
) -> RegistryVersion:
    """Add the challenger of an update as a new version, promoted or refused; a decision that is recorded stays.

    champion: the version that it was compared with. Raises `UsageError` where another one serves by now.
    """
    with _locked(folder):
        registry = read_registry(folder)
        for version in registry.versions:
            if version.update == update:
                return version
        check_champion(registry, champion)
        name = f"v{len(registry.versions) + 1}"
        _copy_run(folder, run, name)
        kind = PROMOTE if is_promoted else REFUSE
        append_step(folder, kind, name, update=update, details=_with_key(folder, name, details))
    return read_registry(folder).version(name)


def record_step(folder: Path, kind: str, *, update: str, details: Mapping[str, Any]) -> None:
    """Append a step of an update that adds no version, unless it is there with the same details."""
    with _locked(folder):
        steps = read_registry(folder).steps
        if not any((step.kind, step.update, step.details) == (kind, update, dict(details)) for step in steps):
            append_step(folder, kind, "", update=update, details=details)


def roll_back(folder: Path, name: str, *, reason: str = "") -> Registry:
    """Let an earlier version serve again; raises `UsageError` for a version that was refused or that serves."""
    with _locked(folder):
        registry = read_registry(folder)
        version = registry.version(name)
        if version.state != "earlier":
            why = "was refused" if version.state == "refused" else "serves already"
            raise UsageError(
                f"{folder}: version {name} {why}", outcome=f"{registry.current} serves",
                remedy="name a version that `dermkit registry list` calls earlier",
            )  # fmt: skip
        registry.model_folder(name)  # a damaged one is not rolled back to
        append_step(folder, ROLL_BACK, name, details={"from": registry.current, "reason": reason})
    return read_registry(folder)


def check_champion(registry: Registry, champion: str) -> None:
    """Raise `UsageError` where a version other than `champion` serves."""
    if registry.current != champion:
        raise UsageError(
            f"{registry.folder}: {registry.current} serves now, and the challenger was compared with {champion}",
            outcome="the challenger's run; the registry is as it was",
            remedy="give the same command again: it compares with the version that serves",
        )


def _with_key(folder: Path, name: str, details: Mapping[str, Any]) -> dict[str, Any]:
    return {**details, "model_key": folder_model_key(folder / VERSIONS_FOLDER / name / MODEL_FOLDER)}


def _copy_run(folder: Path, run: Path, name: str) -> None:
    """Copy a run folder without its checkpoints to versions/NAME; a rest of a killed process there is replaced."""
    versions = make_folder(folder / VERSIONS_FOLDER)
    target, temporary = versions / name, versions / f"{TEMP_PREFIX}{name}"
    with output_errors(target):
        for rest in (target, temporary):
            _remove(rest)
        shutil.copytree(run, temporary, ignore=_left_out(run), copy_function=_copy_file)
        temporary.rename(target)
        sync_folder(versions)


def _copy_file(source: str, target: str) -> str:
    """Copy a file and flush it to disk: the record that names it may survive a power cut that it does not."""
    shutil.copyfile(source, target)
    with Path(target).open("r+b") as stream:
        os.fsync(stream.fileno())
    return target


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _left_out(run: Path) -> Callable[[str, Sequence[str]], set[str]]:
    def ignored(folder: str, names: Sequence[str]) -> set[str]:
        hidden = {name for name in names if name.startswith((".lock", TEMP_PREFIX))}
        return hidden | ({CHECKPOINTS_FOLDER} if Path(folder) == run else set())

    return ignored
