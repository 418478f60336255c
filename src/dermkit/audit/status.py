"""The state of a data set's audit, as reports tell it: never done, outdated, or done."""

from typing import Any

import pandas as pd

from dermkit.data.manifest import Dataset
from dermkit.errors import DermkitError
from dermkit.files import JsonFile, sha256_bytes

AUDIT = JsonFile("audit.json", 2, {1: lambda audit_json: {**audit_json, "format": 2}})
"""Format 2 renamed keys that nothing reads back."""

_SUMMARY_KEYS = ("code", "title", "n", "effect")


def audit_state(dataset: Dataset, split_frame: pd.DataFrame | None) -> dict[str, Any]:
    """Return state (never, outdated, done), reason, date, split, errors, warnings and accepted of the last audit.

    split_frame: image_id, split, fold of the split in use; None if there is no split. Outdated: the manifest has
    changed since, or another split was audited. An audit.json that cannot be read counts as none.
    """
    empty_status: dict[str, Any] = {"date": "", "split": "", "errors": [], "warnings": [], "accepted": []}
    folder = dataset.work_folder / "audit"
    if not AUDIT.exists(folder):
        return {"state": "never", "reason": "", **empty_status}
    try:
        audit_json = AUDIT.read(folder)
        reason = _outdated_reason(audit_json, dataset, split_frame)
        findings = audit_json["findings"]
        return {
            "state": "outdated" if reason else "done",
            "reason": reason,
            "date": audit_json["date"],
            "split": audit_json["split"]["name"],
            "errors": [
                _summary(finding)
                for finding in findings
                if finding["severity"] == "error" and not finding["accepted"]
            ],
            "warnings": [
                _summary(finding)
                for finding in findings
                if finding["severity"] == "warning" and not finding["accepted"]
            ],
            "accepted": [
                {**_summary(finding), "date": finding["accepted"]["date"]}
                for finding in findings
                if finding["accepted"]
            ],
        }
    except (DermkitError, KeyError, TypeError) as error:
        return {"state": "never", "reason": f"audit.json cannot be used: {error!r}"[:200], **empty_status}


def split_sha256(frame: pd.DataFrame) -> str:
    """Return the hash of a split (image_id, split, fold); the order of its rows does not matter."""
    rows = frame[["image_id", "split", "fold"]].sort_values("image_id")
    return sha256_bytes(rows.to_csv(index=False, lineterminator="\n").encode())


def _outdated_reason(audit_json: dict[str, Any], dataset: Dataset, split_frame: pd.DataFrame | None) -> str:
    if audit_json["manifest_sha256"] != dataset.manifest_sha256:
        return "manifest"
    if split_frame is not None and audit_json["split"]["sha256"] != split_sha256(split_frame):
        return "split"
    return ""


def _summary(finding: dict[str, Any]) -> dict[str, Any]:
    return {key: finding[key] for key in _SUMMARY_KEYS}
