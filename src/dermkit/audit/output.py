"""What an audit leaves on disk: audit.json, one CSV per finding, audit.html."""

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
from dermkit.audit.acceptance import Division, Records, void_here
from dermkit.audit.checks.finding import Card, Finding, NotApplicable, Outcome, Severity, Subject
from dermkit.audit.split_view import Sides
from dermkit.audit.status import FORMAT
from dermkit.data.manifest import count
from dermkit.files import make_folder, write_json, write_rows
from dermkit.progress import Watch

ORDER = (Severity.ERROR, Severity.WARNING, Severity.NOTE)
FAMILY = "at least one false warning, over all statistical checks together, on a data set without a fault"


class Checked(NamedTuple):
    """A check's card, and what it said."""

    card: Card
    outcome: Outcome


@dataclass(frozen=True, eq=False)
class Reported:
    """A finding as it is reported. accepted: the acceptance that stands for it. void: why an earlier one does not."""

    card: Card
    finding: Finding
    accepted: Mapping[str, Any] | None
    void: str

    @property
    def is_open_error(self) -> bool:
        """Whether it is an error that nobody accepted."""
        return self.finding.severity is Severity.ERROR and self.accepted is None

    @property
    def file(self) -> str:
        """The name of its CSV, "" where it has no rows."""
        return f"{self.card.code}.csv" if len(self.finding.rows) else ""


def open_errors(findings: Iterable[Reported]) -> list[Reported]:
    """Return the errors that nobody accepted."""
    return [item for item in findings if item.is_open_error]


def say_unfound(codes: Iterable[str], findings: Iterable[Reported], watch: Watch) -> None:
    """Say which codes were to be accepted though their check finds nothing."""
    found = {item.card.code for item in findings}
    for code in codes:
        if code not in found:
            watch.say(f"{code} finds nothing, so nothing was accepted for it")


@dataclass(frozen=True, kw_only=True, eq=False)
class Audit:
    """An audit that is done. records: all acceptances of the data set. alpha: the family-wise rate, 0..1."""

    subject: Subject
    sides: Sides
    checked: Sequence[Checked]
    records: Records
    alpha: float
    date: str
    seconds: float

    @cached_property
    def findings(self) -> list[Reported]:
        """The findings, worst first: by severity, the accepted behind the others, then by images concerned."""
        found = [
            self._report(item.card, item.outcome) for item in self.checked if isinstance(item.outcome, Finding)
        ]
        return sorted(
            found,
            key=lambda it: (
                ORDER.index(it.finding.severity),
                it.accepted is not None,
                -it.finding.n,
                it.card.code,
            ),
        )

    @cached_property
    def division(self) -> Division:
        """The split, as acceptances know it."""
        return Division(self.sides.name, self.sides.sha256)

    def _report(self, card: Card, finding: Finding) -> Reported:
        record = self.records.get(card.code)
        if record is None:
            return Reported(card, finding, None, "")
        manifest = self.subject.dataset.manifest_sha256
        reason = void_here(card.code, record, finding, manifest_sha256=manifest, division=self.division)
        return Reported(card, finding, None if reason else record, reason)

    @property
    def clear(self) -> list[Card]:
        """The checks that looked and found nothing."""
        return [item.card for item in self.checked if item.outcome is None]

    @property
    def not_applicable(self) -> list[tuple[Card, str]]:
        """The checks that could not look, each with the reason."""
        return [
            (item.card, item.outcome.reason) for item in self.checked if isinstance(item.outcome, NotApplicable)
        ]

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of findings: errors and warnings that are open, notes, and those accepted of any severity."""
        open_ = [item.finding.severity for item in self.findings if item.accepted is None]
        return {
            **{f"{severity}s": sum(found is severity for found in open_) for severity in ORDER},
            "accepted": len(self.findings) - len(open_),
        }

    @property
    def verdict(self) -> str:
        """What the findings mean for accuracies that were published on this set, in a sentence or two."""
        accepted = sum(it.finding.severity is Severity.WARNING and it.accepted is not None for it in self.findings)
        carried = f" {_n(accepted, 'warning was', 'warnings were')} accepted and not repaired." if accepted else ""
        return self._of_the_open + carried

    @property
    def _of_the_open(self) -> str:
        """The verdict but for accepted warnings."""
        counts, accepted = self.counts, [item for item in self.findings if item.accepted]
        carried = any(item.finding.severity is Severity.ERROR for item in accepted)
        if n := counts["errors"]:
            errors = _n(n, "error", "errors")
            return f"{errors}: published accuracies on this set are not to be believed as they are."
        if carried:
            return "No open error, but errors were accepted and not repaired: every accuracy on this set carries them."
        if n := counts["warnings"]:
            warnings = _n(n, "warning says", "warnings say")
            return f"No leak and no contradiction was found; {warnings} what may distort an accuracy on this set."
        if any(item.finding.severity is Severity.WARNING for item in accepted):
            return "No leak and no contradiction was found, and no warning is open."
        return "Nothing was found that makes an accuracy on this set wrong; the notes say how much it can mean."


def _n(n: int, one: str, several: str) -> str:
    return f"{n} {one if n == 1 else several}"


def write_tables(folder: Path, audit: Audit) -> Path:
    """Write the CSVs and audit.json into `folder`, remove an earlier audit's CSVs; returns the path of audit.json."""
    make_folder(folder)
    wanted = {item.file: item for item in audit.findings if item.file}
    for old in folder.glob("DA[0-9][0-9][0-9].csv"):
        if old.name not in wanted:
            old.unlink()
    for name, item in wanted.items():
        write_rows(folder / name, [str(column) for column in item.finding.rows.columns], _cells(item.finding.rows))
    path = folder / "audit.json"
    write_json(path, as_dict(audit), format=FORMAT)
    return path


def as_dict(audit: Audit) -> dict[str, Any]:
    """Return the body of audit.json."""
    subject = audit.subject
    dataset = subject.dataset
    sides = subject.frame.loc[subject.frame["split"] != "", "split"].value_counts().sort_index()
    body = {
        "dataset": dataset.name,
        "manifest_sha256": dataset.manifest_sha256,
        "images": len(subject.frame),
        "split": {
            "name": audit.sides.name,
            "sha256": audit.sides.sha256,
            "counts": {str(name): int(n) for name, n in sides.items()},
        },
        "use": subject.use,
        "date": audit.date,
        "seconds": round(audit.seconds, 2),
        "versions": versions(),
        "family_wise_rate": {"rate": audit.alpha, "of": FAMILY},
        "verdict": audit.verdict,
        "counts": audit.counts,
        "data": count(dataset.manifest, dataset.class_names),
        "findings": [_finding(item) for item in audit.findings],
        "clear": [{"code": card.code, "title": card.title, "threshold": card.threshold} for card in audit.clear],
        "not_applicable": [
            {"code": card.code, "title": card.title, "reason": reason} for card, reason in audit.not_applicable
        ],
        "accepted": {code: dict(record) for code, record in audit.records.items()},
    }
    plain: dict[str, Any] = _plain(body)
    return plain


def codes_table(cards: Iterable[Card]) -> str:
    """Return the checks as a Markdown table: what docs/audit.md and `dermkit audit --codes` show."""
    rows = [("code", "what", "threshold", "severity", "what it does to a published accuracy")]
    rows += [(card.code, card.title, card.threshold, card.severity, card.effect) for card in cards]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * 5, *lines[1:]])


def _finding(item: Reported) -> dict[str, Any]:
    return {
        "code": item.card.code,
        "title": item.card.title,
        "severity": str(item.finding.severity),
        "n": item.finding.n,
        "threshold": item.card.threshold,
        "files": [item.file] if item.file else [],
        "sentence": item.finding.sentence,
        "effect": item.card.effect,
        "kind": item.finding.kind,
        "per_class": dict(item.finding.per_class),
        "figures": dict(item.finding.figures),
        "accepted": dict(item.accepted) if item.accepted else None,
        "acceptance_void": item.void,
    }


def versions() -> dict[str, str]:
    """Return the versions that can change a figure of an audit."""
    return {
        "dermkit": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "pandas": pd.__version__,
        "pillow": PIL.__version__,
    }


def _plain(value: Any) -> Any:
    """Return a value as JSON knows it: NumPy's numbers as Python's, what is no number as null."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    return value


def _cells(table: pd.DataFrame) -> list[tuple[object, ...]]:
    """Return the rows with plain cells, unknown ones empty."""
    columns = [
        ["" if unknown else cell for cell, unknown in zip(table[name].tolist(), table[name].isna(), strict=True)]
        for name in table.columns
    ]
    return list(zip(*columns, strict=True))
