"""The files of an external check: external.json, pairs.csv, DA081.csv and external.html."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dermkit.audit.checks.finding import IMAGE_PAIR_COLUMNS
from dermkit.audit.checks.text import proportion_json
from dermkit.audit.dataset_links import SAME_IMAGE, DatasetLinks
from dermkit.audit.image_views import ImageView, ImageViewer, PairView
from dermkit.audit.output import ReportedFinding, audit_versions, finding_json
from dermkit.data.manifest import Dataset
from dermkit.files import make_folder, write_json, write_rows, write_text
from dermkit.render.html import template_environment

EXTERNAL_FORMAT = 1
EXTERNAL_PAGE = "external.html"
_TABLES = {"DA080": "pairs.csv", "DA081": "DA081.csv"}
_MAX_PAIRS = 24
"""Pairs shown of each finding: about 12 kB each, so that the page stays under 1 MB."""


def write_external_check(
    folder: Path,
    dataset_links: DatasetLinks,
    findings: Sequence[ReportedFinding],
    verdict: str,
    *,
    is_external: bool,
) -> None:
    """Write the files; DA081.csv of an earlier check is removed where there are no contradictions now."""
    make_folder(folder)
    write_rows(folder / "pairs.csv", IMAGE_PAIR_COLUMNS, dataset_links.pairs().to_numpy(dtype=object).tolist())
    contradictions = dataset_links.pairs(dataset_links.contradictions)
    if len(contradictions):
        write_rows(folder / "DA081.csv", IMAGE_PAIR_COLUMNS, contradictions.to_numpy(dtype=object).tolist())
    else:
        (folder / "DA081.csv").unlink(missing_ok=True)
    external_json = {
        "reference": _dataset_json(dataset_links.reference),
        "external_set": _dataset_json(dataset_links.external),
        "verdict": verdict,
        "is_external": is_external,
        "shared_images": proportion_json(
            int(dataset_links.is_linked(SAME_IMAGE).sum()), len(dataset_links.external_rows)
        ),
        "links_by_type": {
            link_type: int(dataset_links.is_linked((link_type,)).sum())
            for link_type in dataset_links.searched_types
        },
        "limitations": dict(dataset_links.limitations),
        "ambiguous_ids": dict(dataset_links.ambiguous_ids),
        "findings": [finding_json(reported, _TABLES.get(reported.card.code, "")) for reported in findings],
        "versions": audit_versions(),
    }
    write_json(folder / "external.json", external_json, format=EXTERNAL_FORMAT)
    write_text(folder / EXTERNAL_PAGE, _render_page(dataset_links, findings, verdict, external_json))


def _dataset_json(dataset: Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "images": len(dataset.manifest),
        "manifest_sha256": dataset.manifest_sha256,
        "title": str(dataset.notes.get("title", "")),
    }


def _render_page(
    dataset_links: DatasetLinks, findings: Sequence[ReportedFinding], verdict: str, external_json: dict[str, Any]
) -> str:
    environment = template_environment()
    environment.filters["percent"] = lambda value: f"{value:.1%}".replace("%", "\N{NO-BREAK SPACE}%")
    viewers = {"a": ImageViewer(dataset_links.reference), "b": ImageViewer(dataset_links.external)}
    return environment.get_template("external.html.j2").render(
        title=f"{dataset_links.external.name} against {dataset_links.reference.name}",
        verdict=verdict,
        body=external_json,
        findings=[
            (reported, _pair_views(viewers, reported.finding.rows) if reported.finding.kind == "pairs" else [])
            for reported in findings
        ],
    )


def _pair_views(viewers: dict[str, ImageViewer], rows: pd.DataFrame) -> list[PairView]:
    """Return at most `_MAX_PAIRS` pairs, as many of each kind, each kind's first ones."""
    n_per_kind = max(_MAX_PAIRS // max(rows["kind"].nunique(), 1), 1)
    sampled_pairs = rows.groupby("kind", sort=False).head(n_per_kind).head(_MAX_PAIRS)
    return [
        PairView(
            _image_view(viewers, row, "a"),
            _image_view(viewers, row, "b"),
            str(row["kind"]).replace("_", " "),
            "" if row["distance"] == "" else f"distance {row['distance']:.3g}",
        )
        for row in sampled_pairs.to_dict("records")
    ]


def _image_view(viewers: dict[str, ImageViewer], row: dict[Any, Any], suffix: str) -> ImageView:
    image_id, label, split = (str(row[f"{name}_{suffix}"]) for name in ("image", "label", "split"))
    return viewers[suffix].view(image_id, image_id, label, split)
