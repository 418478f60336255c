"""Findings joined by cause: what one repair mends is told once, however many checks see it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dermkit.audit.checks.finding import Finding, Severity
from dermkit.audit.output import SEVERITY_ORDER, ReportedFinding

CONTRADICTION = "contradiction"

CAUSES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (CONTRADICTION, "The same lesion has two different labels", ("DA011", "DA014", "DA022", "DA033")),
    ("leak", "Test images are also in training", ("DA012", "DA015", "DA020", "DA021", "DA024")),
    ("copies", "Images are in the data set more than once", ("DA010", "DA013")),
    ("colour", "Colour alone predicts the class", ("DA043", "DA044")),
    ("file", "The way the files were saved predicts the class", ("DA040", "DA041", "DA042")),
    ("source", "Images come from different sources, or from another data set", ("DA045", "DA072")),
    ("metadata", "Metadata predict the class", ("DA046", "DA060")),
    ("artefacts", "Hair, rulers, ink or dark corners predict the class", ("DA047", "DA050", "DA051", "DA052", "DA053")),
    ("size", "There are too few images for firm conclusions", ("DA030", "DA031", "DA032")),
    ("ids", "It is unknown which images show the same lesion or patient", ("DA023",)),
    ("files", "Some image files are damaged or hard to use", ("DA001", "DA002", "DA003", "DA004", "DA005", "DA006")),
    ("licence", "Licences limit the use", ("DA061",)),
    ("identity", "What this data set is", ("DA070", "DA071")),
)  # fmt: skip
"""(name, title, codes of its checks), in the order in which they are told within one severity."""

CONTRADICTION_TOO = frozenset({"DA012", "DA015", "DA024"})
"""Checks whose finding is told with the contradictions where it is of the same images: copies under two labels are also
copies in two splits, and share their ISIC id."""

MIN_SHARED = 0.95
"""Fraction of a finding's images that are among the contradictions, from which both have one cause: near copies beside
the exact ones may add an image or two."""


@dataclass(frozen=True, eq=False)
class Cause:
    """Findings with one cause, the worst first. n: images concerned by any of them."""

    name: str
    title: str
    findings: Sequence[ReportedFinding]
    n: int

    @property
    def lead(self) -> ReportedFinding:
        """The finding that tells the story."""
        return self.findings[0]

    @property
    def severity(self) -> Severity:
        """That of the worst finding."""
        return self.lead.finding.severity

    @property
    def is_accepted(self) -> bool:
        """Whether every finding was accepted."""
        return all(reported.acceptance is not None for reported in self.findings)


def join_by_cause(findings: Sequence[ReportedFinding]) -> list[Cause]:
    """Return each finding in exactly one cause: by severity, those not accepted first, then in the order of `CAUSES`.

    A check of no cause in the table is one by itself.
    """
    contradictory_ids = {
        image_id
        for reported in findings
        if _cause_name(reported.card.code) == CONTRADICTION
        for image_id in finding_image_ids(reported.finding)
    }
    members: dict[str, list[ReportedFinding]] = {}
    for reported in findings:
        name = _cause_name(reported.card.code)
        if reported.card.code in CONTRADICTION_TOO and _is_within(reported.finding, contradictory_ids):
            name = CONTRADICTION
        members.setdefault(name, []).append(reported)
    order = {name: number for number, (name, _, _) in enumerate(CAUSES)}
    causes = [_cause(name, joined) for name, joined in members.items()]
    return sorted(
        causes,
        key=lambda cause: (
            SEVERITY_ORDER.index(cause.severity), cause.is_accepted, order.get(cause.name, len(order)), -cause.n,
        ),
    )  # fmt: skip


def finding_image_ids(finding: Finding) -> set[str]:
    """Return the ids of the images in a finding's rows; none of a table of classes or settings."""
    return {str(image_id) for column in _id_columns(finding) for image_id in finding.rows[column]} - {""}


def _id_columns(finding: Finding) -> Iterator[str]:
    yield from (name for name in ("image_id", "image_a", "image_b") if name in finding.rows.columns)


def _is_within(finding: Finding, ids: set[str]) -> bool:
    own_ids = finding_image_ids(finding)
    return bool(own_ids) and len(own_ids & ids) >= MIN_SHARED * len(own_ids)


def _cause_name(code: str) -> str:
    return next((name for name, _, codes in CAUSES if code in codes), code)


def _cause(name: str, findings: list[ReportedFinding]) -> Cause:
    """Return the cause; the finding of most images leads within one severity, as `Audit.findings` sorts them."""
    title = next((text for key, text, _ in CAUSES if key == name), findings[0].card.title)
    ids = {image_id for reported in findings for image_id in finding_image_ids(reported.finding)}
    if all(finding_image_ids(reported.finding) for reported in findings):
        n = len(ids)
    else:
        n = max(reported.finding.n for reported in findings)
    order = next((codes for key, _, codes in CAUSES if key == name), ())
    ranked = sorted(
        findings,
        key=lambda reported: (
            SEVERITY_ORDER.index(reported.finding.severity), reported.acceptance is not None,
            reported.card.code not in order, -reported.finding.n,
        ),
    )  # fmt: skip
    return Cause(name, title, ranked, n)
