"""The record of a registry: one line a step, each with the hash of the line before. What serves follows from it alone.

The file is replaced as a whole by a rename, so a kill leaves the old record or the new one. Steps are only appended.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dermkit.errors import UntrustedError
from dermkit.files import canonical_json, read_regular, sha256_bytes, write_text

RECORD_FILE = "record.jsonl"
RECORD_FORMAT = 1
REGISTER, BEGIN, PROMOTE, REFUSE, ROLL_BACK = "register", "begin", "promote", "refuse", "roll back"
STEP_KINDS = (REGISTER, BEGIN, PROMOTE, REFUSE, ROLL_BACK)
SERVING_KINDS = (REGISTER, PROMOTE, ROLL_BACK)
"""Steps after which their version serves."""
ADDING_KINDS = (REGISTER, PROMOTE, REFUSE)
"""Steps that add their version."""

_VERSION_NAME = re.compile(r"v[1-9][0-9]{0,8}")
_UPDATE_KEY = re.compile(r"[0-9A-Za-z]{0,64}")


@dataclass(frozen=True)
class RegistryStep:
    """A step of a registry. number: from 1. date: ISO, UTC. kind: of `STEP_KINDS`. version: that it is about, "" for a
    beginning. update: key of the update that it belongs to, "" without. details: what a reader needs to know of it.
    """

    number: int
    date: str
    kind: str
    version: str
    update: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


def read_record(folder: Path) -> list[RegistryStep]:
    """Return the steps of a registry; raises `UntrustedError` where a line is missing, changed or not a step."""
    path = folder / RECORD_FILE
    try:
        lines = read_regular(path).decode("utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise _damaged(path, f"cannot be read: {error}") from error
    steps: list[RegistryStep] = []
    previous = ""
    for number, line in enumerate(lines, start=1):
        step = _parse_step(path, number, line, previous)
        is_known = any(earlier.version == step.version for earlier in steps)
        if (step.kind in ADDING_KINDS and is_known) or (step.kind == ROLL_BACK and not is_known):
            raise _damaged(path, f"line {number} adds a version that is there, or rolls back to one that is not")
        steps.append(step)
        previous = sha256_bytes(line.encode())
    if not steps or steps[0].kind != REGISTER:
        raise _damaged(path, "does not begin with the registration of a model")
    return steps


def _parse_step(path: Path, number: int, line: str, previous: str) -> RegistryStep:
    try:
        content = json.loads(line)
        is_chained = content.pop("previous") == previous and content.pop("format") == RECORD_FORMAT
        step = RegistryStep(**content)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"line {number} is not a step: {error!r}") from error
    if not is_chained or step.number != number or step.kind not in STEP_KINDS:
        raise _damaged(path, f"line {number} does not follow from the line before: a line was changed or removed")
    if not _is_complete(step):
        raise _damaged(
            path, f"line {number} is not a step: a field is missing or is not what dermkit writes there"
        )
    return step


def _is_complete(step: RegistryStep) -> bool:
    """Return whether each field of a step is one that dermkit writes: names of versions and updates become paths."""
    if not all(isinstance(value, str) for value in (step.date, step.version, step.update)):
        return False
    is_named = step.version == "" if step.kind == BEGIN else bool(_VERSION_NAME.fullmatch(step.version))
    has_key = isinstance(step.details, dict) and (
        step.kind not in ADDING_KINDS or isinstance(step.details.get("model_key"), str)
    )
    return is_named and has_key and bool(_UPDATE_KEY.fullmatch(step.update))


def append_step(
    folder: Path, kind: str, version: str, *, update: str = "", details: Mapping[str, Any] | None = None
) -> RegistryStep:
    """Append a step to the record of a locked registry, which it may begin; returns the step."""
    steps = read_record(folder) if (folder / RECORD_FILE).exists() else []
    date = datetime.now(UTC).isoformat(timespec="seconds")
    step = RegistryStep(len(steps) + 1, date, kind, version, update, details or {})
    write_text(folder / RECORD_FILE, "".join(line + "\n" for line in _lines([*steps, step])))
    return step


def _lines(steps: Sequence[RegistryStep]) -> list[str]:
    lines: list[str] = []
    for step in steps:
        previous = sha256_bytes(lines[-1].encode()) if lines else ""
        lines.append(canonical_json({"format": RECORD_FORMAT, **asdict(step), "previous": previous}))
    return lines


def _damaged(path: Path, problem: str) -> UntrustedError:
    return UntrustedError(
        f"{path}: {problem}", outcome="nothing was changed", remedy="restore the registry from a copy"
    )
