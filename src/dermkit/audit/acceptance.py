"""Findings that a person accepts by code: recorded in dataset.json, and void once there is more than was accepted."""

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from operator import and_
from typing import Any, NamedTuple

from dermkit.audit.checks.finding import Finding, Severity
from dermkit.data.manifest import FORMAT, Dataset
from dermkit.errors import DataError, UsageError
from dermkit.files import read_json, write_json

Records = Mapping[str, Mapping[str, Any]]
"""Code -> {date, manifest_sha256, n, severity, split, division}: when, for which manifest, how many images, how bad,
on which split. division: its hash, for a split may be made again under its name."""

PARTING = frozenset({"DA012", "DA015", "DA020", "DA021", "DA024", "DA033"})
"""The checks whose findings are other ones on another split: as many images there are other images."""

_WORST_FIRST = [str(severity) for severity in Severity]


class Division(NamedTuple):
    """A split as an acceptance knows it: its name ("" = none), and the hash of which image is on which side."""

    name: str
    sha256: str


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


def void_here(
    code: str, record: Mapping[str, Any], finding: Finding, *, manifest_sha256: str, division: Division
) -> str:
    """Return why an acceptance does not stand for this split and what its check finds on it, "" while it does."""
    then = str(record.get("severity", ""))
    if record.get("manifest_sha256") == manifest_sha256:
        if code in PARTING and record.get("division") != division.sha256:
            return f"accepted for {_split_words(str(record.get('split', '')), division.name)}"
        if then not in _WORST_FIRST[: _WORST_FIRST.index(finding.severity) + 1]:
            return f"was {_severity_words(then)} then, is {_severity_words(finding.severity)} now"
    return void(record, manifest_sha256=manifest_sha256, n=finding.n)


def _split_words(then: str, now: str) -> str:
    named = "the published split" if then == "given_split" else f"the split {then}" if then else "no split"
    return f"{named} as it was then" if then == now else named


def _severity_words(severity: str) -> str:
    return {"error": "an error", "warning": "a warning", "note": "a note"}.get(severity, "of unknown severity")


def with_accepted(
    records: Records,
    codes: Iterable[str],
    found: Mapping[str, Finding],
    *,
    dataset: Dataset,
    date: str,
    division: Division,
) -> Records:
    """Return the records with `codes` accepted as they are found now; those that find nothing are left out."""
    new = {
        code: {
            "date": date, "manifest_sha256": dataset.manifest_sha256, "n": found[code].n,
            "severity": str(found[code].severity), "split": division.name, "division": division.sha256,
        }
        for code in codes
        if code in found
    }  # fmt: skip
    return dict(sorted({**records, **new}.items()))


def carried(
    records: Records,
    standing: Collection[str],
    found: Mapping[str, Finding],
    *,
    dataset: Dataset,
    division: Division,
) -> Records:
    """Return the records after a cleaning: what stood before it stands for what is left of it, and for no more.

    standing: the codes whose acceptance stood. dataset, division, found: those after the cleaning. An acceptance of
    what the cleaning repaired is forgotten: it must not hide what a later audit finds.
    """
    kept = {code: record for code, record in records.items() if code not in standing}
    left = {
        code: {
            **records[code], "manifest_sha256": dataset.manifest_sha256, "division": division.sha256,
            "n": min(int(records[code]["n"]), found[code].n),
        }
        for code in standing
        if code in found
    }  # fmt: skip
    return dict(sorted({**kept, **left}.items()))


def save_records(dataset: Dataset, records: Records) -> Dataset:
    """Write the records into dataset.json, all else as it is there; returns the data set that says so too."""
    if records == records_of(dataset):
        return dataset
    path = dataset.folder / "dataset.json"
    body = read_json(path, format=FORMAT, error=DataError)
    write_json(path, {**body, "accepted": records}, format=FORMAT)
    return replace(dataset, notes={**dataset.notes, "accepted": records})
