"""What a report may say about the audit of the data that it rests on: never done, outdated, or done."""

from typing import Any

import pandas as pd

from dermkit.data.manifest import Dataset
from dermkit.errors import DermkitError
from dermkit.files import read_json, sha256_bytes

FORMAT = 1
"""Of audit.json."""

_KEPT = ("code", "title", "n", "effect")


def audit_state(dataset: Dataset, division: pd.DataFrame | None) -> dict[str, Any]:
    """Return state (never, outdated, done), reason, date, split, errors, warnings and accepted of the last audit.

    division: image_id, split, fold of the split in use; None where all images stand on one side, so that no split
    matters. Outdated: the manifest has changed since, or another division was audited. An audit.json that cannot
    be read counts as none.
    """
    nothing: dict[str, Any] = {"date": "", "split": "", "errors": [], "warnings": [], "accepted": []}
    path = dataset.folder / "audit" / "audit.json"
    if not path.is_file():
        return {"state": "never", "reason": "", **nothing}
    try:
        body = read_json(path, format=FORMAT)
        reason = _outdated(body, dataset, division)
        found = body["findings"]
        return {
            "state": "outdated" if reason else "done",
            "reason": reason,
            "date": body["date"],
            "split": body["split"]["name"],
            "errors": [_short(item) for item in found if item["severity"] == "error" and not item["accepted"]],
            "warnings": [_short(item) for item in found if item["severity"] == "warning" and not item["accepted"]],
            "accepted": [{**_short(item), "date": item["accepted"]["date"]} for item in found if item["accepted"]],
        }
    except (DermkitError, KeyError, TypeError) as error:
        return {"state": "never", "reason": f"audit.json cannot be used: {error!r}"[:200], **nothing}


def division_sha256(frame: pd.DataFrame) -> str:
    """Return the hash of a division (image_id, split, fold), whatever the order of its rows."""
    rows = frame[["image_id", "split", "fold"]].sort_values("image_id")
    return sha256_bytes(rows.to_csv(index=False, lineterminator="\n").encode())


def _outdated(body: dict[str, Any], dataset: Dataset, division: pd.DataFrame | None) -> str:
    if body["manifest_sha256"] != dataset.manifest_sha256:
        return "manifest"
    if division is not None and body["split"]["sha256"] != division_sha256(division):
        return "split"
    return ""


def _short(item: dict[str, Any]) -> dict[str, Any]:
    return {key: item[key] for key in _KEPT}
