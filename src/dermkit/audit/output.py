"""The result of an audit, and its files audit.json and one CSV per finding."""

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import PIL
import scipy

from dermkit import __version__
from dermkit.audit.acceptance import AcceptanceRecords, SplitId, why_invalid_for_split
from dermkit.audit.checks.finding import AuditInput, CheckCard, Finding, NotApplicable, Outcome, Severity
from dermkit.audit.split_view import AuditedSplit
from dermkit.audit.status import AUDIT
from dermkit.data.manifest import manifest_counts
from dermkit.files import make_folder, write_rows
from dermkit.progress import Progress
from dermkit.render.cells import defused

SEVERITY_ORDER = (Severity.ERROR, Severity.WARNING, Severity.NOTE)
FALSE_WARNING_TEXT = (
    "at least one false warning, over all statistical checks together, on a data set without a fault"
)


class CheckResult(NamedTuple):
    """A check's card and its outcome."""

    card: CheckCard
    outcome: Outcome


@dataclass(frozen=True, eq=False)
class ReportedFinding:
    """A finding with its acceptance, None without a valid one. invalid_reason: why an earlier one is invalid, or ""."""

    card: CheckCard
    finding: Finding
    acceptance: Mapping[str, Any] | None
    invalid_reason: str

    @property
    def is_open_error(self) -> bool:
        """Whether it is an error without a valid acceptance."""
        return self.finding.severity is Severity.ERROR and self.acceptance is None

    @property
    def file_name(self) -> str:
        """The name of its CSV, "" if it has no rows."""
        return f"{self.card.code}.csv" if len(self.finding.rows) else ""


def open_errors(findings: Iterable[ReportedFinding]) -> list[ReportedFinding]:
    """Return the errors without a valid acceptance."""
    return [reported for reported in findings if reported.is_open_error]


def report_unused_codes(codes: Iterable[str], findings: Iterable[ReportedFinding], progress: Progress) -> None:
    """Report codes that were to be accepted but have no finding."""
    finding_codes = {reported.card.code for reported in findings}
    for code in codes:
        if code not in finding_codes:
            progress.say(f"{code} finds nothing, so nothing was accepted for it")


@dataclass(frozen=True, kw_only=True, eq=False)
class Audit:
    """A finished audit. acceptance_records: all of the data set. alpha: family-wise error rate of the tests, 0..1."""

    audit_input: AuditInput
    split: AuditedSplit
    check_results: Sequence[CheckResult]
    acceptance_records: AcceptanceRecords
    alpha: float
    date: str
    seconds: float

    @cached_property
    def findings(self) -> list[ReportedFinding]:
        """The findings: by severity, those not accepted first, then by number of images."""
        reported_findings = [
            self._report_finding(result.card, result.outcome)
            for result in self.check_results
            if isinstance(result.outcome, Finding)
        ]
        return sorted(
            reported_findings,
            key=lambda reported: (
                SEVERITY_ORDER.index(reported.finding.severity),
                reported.acceptance is not None,
                -reported.finding.n,
                reported.card.code,
            ),
        )

    @cached_property
    def split_id(self) -> SplitId:
        """The split, as acceptances record it."""
        return SplitId(self.split.name, self.split.sha256)

    def _report_finding(self, card: CheckCard, finding: Finding) -> ReportedFinding:
        record = self.acceptance_records.get(card.code)
        if record is None:
            return ReportedFinding(card, finding, None, "")
        manifest = self.audit_input.dataset.manifest_sha256
        reason = why_invalid_for_split(
            card.code, record, finding, manifest_sha256=manifest, split_id=self.split_id
        )
        return ReportedFinding(card, finding, None if reason else record, reason)

    @property
    def clear_checks(self) -> list[CheckCard]:
        """The checks that passed: applicable, without a finding."""
        return [result.card for result in self.check_results if result.outcome is None]

    @property
    def not_applicable(self) -> list[tuple[CheckCard, str]]:
        """The checks that were not applicable, each with the reason."""
        return [
            (result.card, result.outcome.reason)
            for result in self.check_results
            if isinstance(result.outcome, NotApplicable)
        ]

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of findings that are not accepted, per severity, and of those accepted."""
        open_severities = [reported.finding.severity for reported in self.findings if reported.acceptance is None]
        return {
            **{
                f"{severity}s": sum(open_severity is severity for open_severity in open_severities)
                for severity in SEVERITY_ORDER
            },
            "accepted": len(self.findings) - len(open_severities),
        }

    @property
    def verdict(self) -> str:
        """What the findings mean for accuracies published on this data set, in one or two sentences."""
        n_accepted_warnings = sum(
            reported.finding.severity is Severity.WARNING and reported.acceptance is not None
            for reported in self.findings
        )
        accepted_text = (
            f" {_count_text(n_accepted_warnings, 'warning was', 'warnings were')} accepted and not repaired."
            if n_accepted_warnings
            else ""
        )
        return self._open_verdict + accepted_text

    @property
    def _open_verdict(self) -> str:
        """The verdict without the count of accepted warnings."""
        counts, accepted_findings = self.counts, [reported for reported in self.findings if reported.acceptance]
        has_accepted_error = any(reported.finding.severity is Severity.ERROR for reported in accepted_findings)
        if n := counts["errors"]:
            errors = _count_text(n, "error", "errors")
            return f"{errors}: do not trust accuracies published on this data set as they are."
        if has_accepted_error:
            return "No open error, but errors were accepted and not repaired: they affect every accuracy on these data."
        if n := counts["warnings"]:
            warnings = _count_text(n, "warning says", "warnings say")
            return (
                f"No leak and no contradiction was found; {warnings} what can distort an accuracy on these data."
            )
        if any(reported.finding.severity is Severity.WARNING for reported in accepted_findings):
            return "No leak and no contradiction was found, and no warning is open."
        return "Nothing was found that makes an accuracy on this set wrong; the notes say what limits its meaning."


def _count_text(n: int, singular: str, plural_noun: str) -> str:
    return f"{n} {singular if n == 1 else plural_noun}"


def write_audit_tables(folder: Path, audit: Audit) -> Path:
    """Write audit.json and the CSVs into `folder`, and remove CSVs of an earlier audit; returns audit.json's path."""
    make_folder(folder)
    findings_by_file = {reported.file_name: reported for reported in audit.findings if reported.file_name}
    for old_file in folder.glob("DA[0-9][0-9][0-9].csv"):
        if old_file.name not in findings_by_file:
            old_file.unlink()
    for name, reported in findings_by_file.items():
        write_rows(
            folder / name,
            [str(column) for column in reported.finding.rows.columns],
            map(defused, _csv_rows(reported.finding.rows)),
        )
    return AUDIT.write(folder, audit_as_dict(audit))


def audit_as_dict(audit: Audit) -> dict[str, Any]:
    """Return the body of audit.json."""
    audit_input = audit.audit_input
    dataset = audit_input.dataset
    split_counts = audit_input.frame.loc[audit_input.frame["split"] != "", "split"].value_counts().sort_index()
    audit_json = {
        "dataset": dataset.name,
        "manifest_sha256": dataset.manifest_sha256,
        "images": len(audit_input.frame),
        "split": {
            "name": audit.split.name,
            "sha256": audit.split.sha256,
            "counts": {str(name): int(n) for name, n in split_counts.items()},
        },
        "use": audit_input.use,
        "date": audit.date,
        "seconds": round(audit.seconds, 2),
        "versions": audit_versions(),
        "family_wise_rate": {"rate": audit.alpha, "meaning": FALSE_WARNING_TEXT},
        "verdict": audit.verdict,
        "counts": audit.counts,
        "data": manifest_counts(dataset.manifest, dataset.class_names),
        "findings": [finding_json(reported, reported.file_name) for reported in audit.findings],
        "checks_passed": [
            {"code": card.code, "title": card.title, "threshold": card.threshold} for card in audit.clear_checks
        ],
        "checks_not_applicable": [
            {"code": card.code, "title": card.title, "reason": reason} for card, reason in audit.not_applicable
        ],
        "accepted": {code: dict(record) for code, record in audit.acceptance_records.items()},
    }
    json_body: dict[str, Any] = _to_json(audit_json)
    return json_body


def codes_table(cards: Iterable[CheckCard]) -> str:
    """Return the checks as the Markdown table of docs/audit.md and `dermkit audit --codes`."""
    rows = [("code", "what", "threshold", "severity", "what it does to a published accuracy")]
    rows += [(card.code, card.title, card.threshold, card.severity, card.effect) for card in cards]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * 5, *lines[1:]])


def finding_json(reported: ReportedFinding, file_name: str) -> dict[str, Any]:
    """Return a finding as audit.json and external.json hold it. file_name: of its table, "" for none."""
    return {
        "code": reported.card.code,
        "title": reported.card.title,
        "severity": str(reported.finding.severity),
        "n": reported.finding.n,
        "threshold": reported.card.threshold,
        "files": [file_name] if file_name else [],
        "sentence": reported.finding.sentence,
        "effect": reported.card.effect,
        "kind": reported.finding.kind,
        "per_class": dict(reported.finding.per_class),
        "figures": dict(reported.finding.figures),
        "accepted": dict(reported.acceptance) if reported.acceptance else None,
        "why_acceptance_invalid": reported.invalid_reason,
    }


def audit_versions() -> dict[str, str]:
    """Return the versions of the libraries that an audit's numbers depend on."""
    return {
        "dermkit": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "pandas": pd.__version__,
        "pillow": PIL.__version__,
    }


def _to_json(value: Any) -> Any:
    """Return a value for JSON: NumPy scalars as Python numbers, NaN and infinity as None."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _to_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_to_json(entry) for entry in value]
    return value


def _csv_rows(table: pd.DataFrame) -> list[tuple[object, ...]]:
    """Return the rows as tuples, with missing values as ""."""
    columns = [
        [
            "" if is_unknown else cell
            for cell, is_unknown in zip(table[name].tolist(), table[name].isna(), strict=True)
        ]
        for name in table.columns
    ]
    return list(zip(*columns, strict=True))
