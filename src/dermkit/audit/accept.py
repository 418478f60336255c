"""Findings that a person accepts by code: recorded in dataset.json, and void once there is more than was accepted."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from operator import and_
from typing import Any

from dermkit.data.manifest import FORMAT, Dataset
from dermkit.errors import DataError, UsageError
from dermkit.files import read_json, write_json

Records = Mapping[str, Mapping[str, Any]]
"""Code -> {date, manifest_sha256, n, split}: when, for which manifest, how many images, on which split."""


def check_codes(wanted: Iterable[str], known: Sequence[str]) -> tuple[str, ...]:
    """Return the codes in capitals; raises `UsageError` for one that no check has, naming the closest."""
    codes = tuple(dict.fromkeys(code.strip().upper() for code in wanted))
    for code in codes:
        if code not in known:
            close = difflib.get_close_matches(code, known, n=9, cutoff=0.5)
            meant = f"; did you mean {max(close, key=lambda it: _alike(code, it))}?" if close else ""
            raise UsageError(
                f"--accept {code}: no check has this code{meant}",
                kept="nothing was accepted",
                remedy="`dermkit audit --codes` lists them",
            )
    return codes


def _alike(code: str, other: str) -> tuple[float, int]:
    """Rank likeness; of equals the one with the same beginning."""
    return difflib.SequenceMatcher(None, code, other).ratio(), sum(accumulate(map(str.__eq__, code, other), and_))


def records_of(dataset: Dataset) -> Records:
    """Return what dataset.json says was accepted."""
    found = dataset.notes.get("accepted", {})
    return found if isinstance(found, Mapping) else {}


def void(record: Mapping[str, Any], *, manifest_sha256: str, n: int) -> str:
    """Return why an acceptance no longer stands, "" while it does. n: images that the finding concerns now."""
    if record.get("manifest_sha256") != manifest_sha256:
        return "the manifest has changed since"
    if n > int(record.get("n", 0)):
        return f"{record.get('n', 0)} images then, {n} now"
    return ""


def with_accepted(
    records: Records, codes: Iterable[str], found: Mapping[str, int], *, dataset: Dataset, date: str, split: str
) -> Records:
    """Return the records with `codes` accepted as they are now. found: code -> images; others are left out."""
    new = {
        code: {"date": date, "manifest_sha256": dataset.manifest_sha256, "n": found[code], "split": split}
        for code in codes
        if code in found
    }
    return dict(sorted({**records, **new}.items()))


def carried(records: Records, before: Dataset, after: Dataset) -> Records:
    """Return the records after a cleaning: what stood for the manifest before it stands for the one after it."""
    return {
        code: {**record, "manifest_sha256": after.manifest_sha256}
        if record.get("manifest_sha256") == before.manifest_sha256
        else record
        for code, record in records.items()
    }


def save_records(dataset: Dataset, records: Records) -> Dataset:
    """Write the records into dataset.json, all else as it is there; returns the data set that says so too."""
    if records == records_of(dataset):
        return dataset
    path = dataset.folder / "dataset.json"
    body = read_json(path, format=FORMAT, error=DataError)
    write_json(path, {**body, "accepted": records}, format=FORMAT)
    return replace(dataset, notes={**dataset.notes, "accepted": records})
