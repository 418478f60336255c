"""Acceptances of findings by code: recorded in dataset.json, no longer valid once a finding has more images."""

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import accumulate
from operator import and_
from typing import Any, NamedTuple

from dermkit.audit.checks.finding import Finding, Severity
from dermkit.data.manifest import Dataset, update_notes
from dermkit.errors import UsageError

AcceptanceRecords = Mapping[str, Mapping[str, Any]]
"""Code -> {date, manifest_sha256, n, severity, split, split_sha256}: when, for which manifest, how many images, how
severe, on which split. split_sha256: a split may be made again under its name."""

SPLIT_DEPENDENT_CHECKS = frozenset({"DA012", "DA015", "DA020", "DA021", "DA024", "DA033"})
"""Checks that depend on the split: on another split the same number of images can be other images."""

_SEVERITIES_WORST_FIRST = [str(severity) for severity in Severity]


class SplitId(NamedTuple):
    """A split as an acceptance records it: its name ("" = none), and the hash of which image is in which split."""

    name: str
    sha256: str


def check_codes(requested_codes: Iterable[str], known_codes: Sequence[str]) -> tuple[str, ...]:
    """Return the codes in capitals; raises `UsageError` for one that no check has, naming the closest."""
    codes = tuple(dict.fromkeys(code.strip().upper() for code in requested_codes))
    for code in codes:
        if code not in known_codes:
            similar_codes = difflib.get_close_matches(code, known_codes, n=9, cutoff=0.5)
            suggestion = (
                f"; did you mean {max(similar_codes, key=lambda candidate: _similarity(code, candidate))}?"
                if similar_codes
                else ""
            )
            raise UsageError(
                f"--accept {code}: no check has this code{suggestion}",
                outcome="nothing was accepted",
                remedy="`dermkit audit --codes` lists them",
            )
    return codes


def _similarity(code: str, known_code: str) -> tuple[float, int]:
    """Return a sort key for similarity; ties go to the code that shares the longer beginning."""
    return difflib.SequenceMatcher(None, code, known_code).ratio(), sum(
        accumulate(map(str.__eq__, code, known_code), and_)
    )


def acceptances_of(dataset: Dataset) -> AcceptanceRecords:
    """Return the acceptances in dataset.json."""
    acceptances = dataset.notes.get("accepted", {})
    return acceptances if isinstance(acceptances, Mapping) else {}


def why_invalid(record: Mapping[str, Any], *, manifest_sha256: str, n: int) -> str:
    """Return why a recorded acceptance is no longer valid, "" if it still is. n: images that the finding has now."""
    if record.get("manifest_sha256") != manifest_sha256:
        return "the manifest has changed since"
    if n > int(record.get("n", 0)):
        return f"{record.get('n', 0)} images then, {n} now"
    return ""


def why_invalid_for_split(
    code: str, record: Mapping[str, Any], finding: Finding, *, manifest_sha256: str, split_id: SplitId
) -> str:
    """Return why an acceptance is not valid for this split and the finding on it, "" if it is."""
    accepted_severity = str(record.get("severity", ""))
    if record.get("manifest_sha256") == manifest_sha256:
        if code in SPLIT_DEPENDENT_CHECKS and record.get("split_sha256") != split_id.sha256:
            return f"accepted for {_accepted_split_text(str(record.get('split', '')), split_id.name)}"
        if accepted_severity not in _SEVERITIES_WORST_FIRST[: _SEVERITIES_WORST_FIRST.index(finding.severity) + 1]:
            return f"was {_severity_text(accepted_severity)} then, is {_severity_text(finding.severity)} now"
    return why_invalid(record, manifest_sha256=manifest_sha256, n=finding.n)


def _accepted_split_text(accepted_split: str, current_split: str) -> str:
    split_text = (
        "the published split"
        if accepted_split == "given_split"
        else f"the split {accepted_split}"
        if accepted_split
        else "no split"
    )
    return f"{split_text} as it was then" if accepted_split == current_split else split_text


def _severity_text(severity: str) -> str:
    return {"error": "an error", "warning": "a warning", "note": "a note"}.get(severity, "of unknown severity")


def add_acceptances(
    records: AcceptanceRecords,
    codes: Iterable[str],
    findings: Mapping[str, Finding],
    *,
    dataset: Dataset,
    date: str,
    split_id: SplitId,
) -> AcceptanceRecords:
    """Return the records plus one for each of `codes` that has a finding now; codes without a finding are skipped."""
    new_records = {
        code: {
            "date": date, "manifest_sha256": dataset.manifest_sha256, "n": findings[code].n,
            "severity": str(findings[code].severity), "split": split_id.name, "split_sha256": split_id.sha256,
        }
        for code in codes
        if code in findings
    }  # fmt: skip
    return dict(sorted({**records, **new_records}.items()))


def carry_over(
    records: AcceptanceRecords,
    valid_codes: Collection[str],
    findings: Mapping[str, Finding],
    *,
    dataset: Dataset,
    split_id: SplitId,
) -> AcceptanceRecords:
    """Return the records after a cleaning: an acceptance that was valid now covers only what its finding still has.

    valid_codes: codes with a valid acceptance before. findings, dataset, split_id: those after the cleaning. The
    acceptance of a finding that the cleaning repaired is removed: it must not hide what a later audit finds.
    """
    untouched_records = {code: record for code, record in records.items() if code not in valid_codes}
    updated_records = {
        code: {
            **records[code], "manifest_sha256": dataset.manifest_sha256, "split_sha256": split_id.sha256,
            "n": min(int(records[code]["n"]), findings[code].n),
        }
        for code in valid_codes
        if code in findings
    }  # fmt: skip
    return dict(sorted({**untouched_records, **updated_records}.items()))


def save_records(dataset: Dataset, records: AcceptanceRecords) -> Dataset:
    """Write the records into dataset.json; returns the data set with them."""
    if records == acceptances_of(dataset):
        return dataset
    return update_notes(dataset, accepted=records)
