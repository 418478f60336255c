"""audit.html: what to do, then each cause once with its images, worst first, as one offline file."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment

from dermkit.audit.advice import next_steps
from dermkit.audit.causes import Cause, join_by_cause
from dermkit.audit.checks.finding import IMAGE_COLUMNS, Severity
from dermkit.audit.image_views import ImageView, ImageViewer, PairView
from dermkit.audit.output import Audit, ReportedFinding, audit_versions
from dermkit.files import write_text
from dermkit.render.html import template_environment

MAX_PAGE_BYTES = 5_000_000
"""Largest page, so that it can be sent by e-mail; it shows fewer images to stay below."""

DISPLAY_LIMITS = (24, 12, 6, 2, 0)
"""Pairs or images shown of each finding: the first number that keeps the page under `MAX_PAGE_BYTES`."""

MAX_MEASURES = 6
"""Measures shown under an image; the CSV has all."""

MAX_TABLE_ROWS = 24
"""Rows of a table on the page; the CSV has all."""

_UNKNOWN_CELL = "\N{EN DASH}"

_END_OF_SENTENCE = re.compile(r"\.\s(?=[A-Z])")
"""A full stop before a capital letter."""


@dataclass(frozen=True, eq=False)
class FindingView:
    """A finding as the page shows it. is_varied: whether its pairs have several distances.

    classes: (name, malignancy, images concerned, images of the class).
    """

    reported: ReportedFinding
    is_varied: bool
    classes: list[tuple[str, str, int, int]]
    pairs: list[PairView]
    images: list[ImageView]
    columns: list[str]
    table: list[list[str]]


@dataclass(frozen=True, eq=False)
class CauseView:
    """A cause as the page shows it: its story, one pair of pictures or none, and its findings, folded away.

    pair: at most two images. pair_text: what the two are.
    """

    cause: Cause
    story: str
    pair: list[ImageView]
    pair_text: str
    findings: list[FindingView]


def write_audit_page(path: Path, audit: Audit) -> Path:
    """Write the page, with fewer images if it would be too large; returns its path."""
    template, drawer = _templates().get_template("audit.html.j2"), _FindingDrawer(audit)
    causes = join_by_cause(audit.findings)
    for limit in DISPLAY_LIMITS:
        html = template.render(**_context(audit, [drawer.cause(cause, limit) for cause in causes]))
        if len(html.encode()) < MAX_PAGE_BYTES:
            break
    write_text(path, html)
    return path


def _templates() -> Environment:
    environment = template_environment()
    environment.filters["percent"] = lambda value: f"{value:.0%}".replace("%", "\N{NO-BREAK SPACE}%")
    environment.filters["images"] = lambda n: f"{n:,} image{'s' * (n != 1)}"
    return environment


def _context(audit: Audit, views: list[CauseView]) -> dict[str, Any]:
    audit_input, codes = audit.audit_input, {reported.card.code for reported in audit.findings}
    split_counts = audit_input.frame.loc[audit_input.frame["split"] != "", "split"].value_counts().sort_index()
    return {
        "title": f"Audit of {audit_input.dataset.name}",
        "dataset": audit_input.dataset,
        "notes": audit_input.dataset.notes,
        "audit": audit,
        "counts": audit.counts,
        "views": [view for view in views if view.cause.severity is not Severity.NOTE],
        "notes_views": [view for view in views if view.cause.severity is Severity.NOTE],
        "steps": next_steps(audit),
        "folder_name": audit_input.dataset.folder.resolve().name,
        "split_counts": [(str(name), int(n)) for name, n in split_counts.items()],
        "n_outside_split": len(audit_input.frame) - int(split_counts.sum()),
        "versions": audit_versions(),
        "resolved_acceptances": [
            (code, record) for code, record in audit.acceptance_records.items() if code not in codes
        ],
    }


class _FindingDrawer:
    """Turns findings into what the template shows."""

    def __init__(self, audit: Audit) -> None:
        frame = audit.audit_input.frame
        self.viewer = ImageViewer(audit.audit_input.dataset)
        self.paths = dict(zip(frame["image_id"], frame["path"], strict=True))
        self.totals = {str(name): int(n) for name, n in frame["label"].value_counts().items()}

    def finding(self, reported: ReportedFinding, limit: int) -> FindingView:
        """Return a finding with at most `limit` pairs or images."""
        finding = reported.finding
        classes = [
            (name, malignancy, int(finding.per_class[name]), self.totals.get(name, 0))
            for name, malignancy in self.viewer.malignancies.items()
            if finding.per_class.get(name)
        ]
        pairs, images, columns, table = [], [], [], []
        if finding.kind == "pairs":
            pairs = [self._pair(row) for row in _records(_sample_pairs(finding.rows, limit))]
        elif finding.kind == "images":
            rows = _records(finding.rows.head(limit))
            pairs = [self._with_duplicate(row) for row in rows if "duplicate_image_id" in row]
            images = [] if pairs else [self._image(row) for row in rows]
        else:
            columns = [_column_text(name) for name in finding.rows.columns]
            table = [
                [_cell_text(cell) for cell in row]
                for row in finding.rows.head(MAX_TABLE_ROWS).to_numpy(object).tolist()
            ]
        is_varied = finding.kind == "pairs" and finding.rows["distance"].nunique() > 1
        return FindingView(reported, is_varied, classes, pairs, images, columns, table)

    def cause(self, cause: Cause, limit: int) -> CauseView:
        """Return a cause with at most `limit` pairs or images of each finding; a note shows no pictures unfolded."""
        views = [self.finding(reported, limit) for reported in cause.findings]
        pair: list[ImageView] = []
        text = ""
        if cause.severity is not Severity.NOTE:
            pair, text = _first_pictures(views)
        return CauseView(cause, first_sentence(cause.lead.finding.sentence), pair, text, views)

    def _pair(self, row: dict[str, Any]) -> PairView:
        first, second = (
            self._image({name: row.get(f"{name.removesuffix('_id')}_{suffix}", "") for name in IMAGE_COLUMNS})
            for suffix in ("a", "b")
        )
        return PairView(first, second, _kind_text(str(row["kind"])), _distance_text(row["distance"]))

    def _with_duplicate(self, row: dict[str, Any]) -> PairView:
        """Return an image beside its duplicate, which the columns of its row that begin with `duplicate_` name."""
        first, second = (
            self._image({name: row.get(f"{prefix}{name}", "") for name in IMAGE_COLUMNS})
            for prefix in ("", "duplicate_")
        )
        return PairView(
            first, second, _kind_text(str(row.get("kind", "copy"))), _distance_text(row.get("distance", ""))
        )

    def _image(self, row: dict[str, Any]) -> ImageView:
        image_id, path, label, split = (str(row.get(name, "")) for name in IMAGE_COLUMNS)
        measures = [
            (_column_text(name), _cell_text(cell)) for name, cell in row.items() if name not in IMAGE_COLUMNS
        ]
        path = path or self.paths.get(image_id, image_id)
        return self.viewer.view(image_id, path, label, split, measures[:MAX_MEASURES])


def _first_pictures(views: Sequence[FindingView]) -> tuple[list[ImageView], str]:
    """Return the first pair of the findings, else the first two images, and what they are; fewer pictures, none."""
    for view in views:
        if view.pairs:
            return [view.pairs[0].first, view.pairs[0].second], f"One of the pairs: {view.pairs[0].kind}"
    for view in views:
        if len(view.images) > 1:
            other = next((image for image in view.images if image.label != view.images[0].label), view.images[1])
            return [view.images[0], other], "Two of the images"
    return [], ""


def first_sentence(text: str) -> str:
    """Return the first sentence of a finding; the rest are details."""
    end = _END_OF_SENTENCE.search(text)
    return text[: end.start() + 1] if end else text


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): cell for name, cell in row.items()} for row in table.to_dict("records")]


def _sample_pairs(pairs: pd.DataFrame, limit: int) -> pd.DataFrame:
    """Return at most `limit` pairs: of each kind in turn the first and the last, so also the least certain."""
    if len(pairs) <= limit:
        return pairs
    order = (
        list(_alternate_ends(kind_pairs.index.tolist())) for _, kind_pairs in pairs.groupby("kind", sort=False)
    )
    shown_rows = [row for row in chain.from_iterable(zip_longest(*order)) if row is not None][:limit]
    return pairs.loc[sorted(shown_rows)]


def _alternate_ends(rows: Sequence[int]) -> Iterator[int]:
    """Yield first, last, second, last but one, ..."""
    for index in range((len(rows) + 1) // 2):
        yield rows[index]
        if index != len(rows) - 1 - index:
            yield rows[len(rows) - 1 - index]


def _kind_text(kind: str) -> str:
    return {"exact": "identical pixels", "reencoded": "saved again"}.get(kind, _column_text(kind))


def _distance_text(value: object) -> str:
    """Return a distance as text; only identical pixels have distance 0."""
    if not isinstance(value, float | int) or value != value:
        return ""
    return "distance 0" if value == 0 else f"distance {value:.4f}" if value >= 0.0001 else "distance under 0.0001"


def _column_text(name: object) -> str:
    return str(name).replace("_", " ")


def _cell_text(value: object) -> str:
    """Return a cell as text: at most four digits, unknown as a dash."""
    if isinstance(value, float):
        return _UNKNOWN_CELL if value != value else f"{value:.4g}"
    return str(value) if value not in ("", None) else _UNKNOWN_CELL
