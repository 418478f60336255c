"""The notes of a data set by the keys of format 1, as dataset.json and run.json of dermkit 6429fce hold them."""

from collections.abc import Mapping
from typing import Any

_TODAYS_KEYS = {"accepted_against": "accepted_external", "cleaned": "cleanings"}


def migrate_notes(notes: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a dataset.json of format 1 says, by today's keys; run.json 1 holds a copy of it."""
    migrated = {_TODAYS_KEYS.get(key, key): entry for key, entry in notes.items()}
    if isinstance(acceptances := migrated.get("accepted"), Mapping):
        migrated["accepted"] = {
            code: {"split_sha256" if key == "division" else key: entry for key, entry in record.items()}
            for code, record in acceptances.items()
            if isinstance(record, Mapping)
        }
    return migrated
