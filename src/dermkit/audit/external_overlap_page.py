"""What holding two data sets against each other leaves on disk: against.json, pairs.csv, against.html."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from dermkit.audit.checks.finding import IMAGE_PAIR_COLUMNS
from dermkit.audit.checks.text import proportion_json
from dermkit.audit.dataset_links import SAME_IMAGE, DatasetLinks
from dermkit.audit.output import ReportedFinding, audit_versions
from dermkit.data.manifest import Dataset
from dermkit.errors import DermkitError
from dermkit.files import make_folder, write_json, write_rows, write_text
from dermkit.images.decode import open_image
from dermkit.render.html import template_environment
from dermkit.render.sheets import data_uri

AGAINST_FORMAT = 1
_MAX_PAIRS = 24
"""Pairs drawn of each finding: about 12 kB each, so that the page stays under 1 MB."""

_THUMBNAIL_SIDE = 144


@dataclass(frozen=True)
class PairImage:
    """An image of a pair as the page shows it; uri is "" where it is not at hand."""

    uri: str
    name: str
    label: str
    malignancy: str
    split: str


def write_external_check(
    folder: Path,
    dataset_links: DatasetLinks,
    findings: Sequence[ReportedFinding],
    verdict: str,
    *,
    is_external: bool,
) -> None:
    """Write the files; CSVs of an earlier comparison that have nothing to say now are removed."""
    make_folder(folder)
    write_rows(folder / "pairs.csv", IMAGE_PAIR_COLUMNS, dataset_links.pairs().to_numpy(dtype=object).tolist())
    contradictions = dataset_links.pairs(dataset_links.contradictions)
    if len(contradictions):
        write_rows(folder / "DA081.csv", IMAGE_PAIR_COLUMNS, contradictions.to_numpy(dtype=object).tolist())
    else:
        (folder / "DA081.csv").unlink(missing_ok=True)
    against_json = {
        "a": _dataset_json(dataset_links.reference),
        "b": _dataset_json(dataset_links.external),
        "verdict": verdict,
        "external": is_external,
        "not_new": proportion_json(
            int(dataset_links.is_linked(SAME_IMAGE).sum()), len(dataset_links.external_rows)
        ),
        "ways": {
            link_type: int(dataset_links.is_linked((link_type,)).sum())
            for link_type in dataset_links.searched_types
        },
        "blind": dict(dataset_links.limitations),
        "homonyms": dict(dataset_links.ambiguous_ids),
        "findings": [_finding_json(reported) for reported in findings],
        "versions": audit_versions(),
    }
    write_json(folder / "against.json", against_json, format=AGAINST_FORMAT)
    write_text(folder / "against.html", _render_page(dataset_links, findings, verdict, against_json))


def _dataset_json(dataset: Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "images": len(dataset.manifest),
        "manifest_sha256": dataset.manifest_sha256,
        "title": str(dataset.notes.get("title", "")),
    }


def _finding_json(reported: ReportedFinding) -> dict[str, Any]:
    file_name = {"DA080": "pairs.csv", "DA081": "DA081.csv"}.get(reported.card.code)
    return {
        "code": reported.card.code,
        "title": reported.card.title,
        "severity": str(reported.finding.severity),
        "n": reported.finding.n,
        "threshold": reported.card.threshold,
        "files": [file_name] if file_name else [],
        "sentence": reported.finding.sentence,
        "effect": reported.card.effect,
        "per_class": dict(reported.finding.per_class),
        "figures": dict(reported.finding.figures),
        "accepted": dict(reported.acceptance) if reported.acceptance else None,
        "acceptance_void": reported.invalid_reason,
    }


def _render_page(
    dataset_links: DatasetLinks, findings: Sequence[ReportedFinding], verdict: str, against_json: dict[str, Any]
) -> str:
    environment = template_environment()
    environment.filters["percent"] = lambda value: f"{value:.1%}".replace("%", "\N{NO-BREAK SPACE}%")
    drawer = _PairDrawer(dataset_links)
    return environment.get_template("against.html.j2").render(
        title=f"{dataset_links.external.name} against {dataset_links.reference.name}",
        verdict=verdict,
        body=against_json,
        findings=[
            (reported, drawer.pairs(reported.finding.rows) if reported.finding.kind == "pairs" else [])
            for reported in findings
        ],
    )


class _PairDrawer:
    """Pairs as pictures; every image is opened once."""

    def __init__(self, dataset_links: DatasetLinks) -> None:
        self.datasets = {"a": dataset_links.reference, "b": dataset_links.external}
        self.malignancies = {
            dataset_key: {lesion_class.name: str(lesion_class.malignancy) for lesion_class in dataset.classes}
            for dataset_key, dataset in self.datasets.items()
        }
        self.uris: dict[tuple[str, str], str] = {}

    def pairs(self, rows: pd.DataFrame) -> list[tuple[PairImage, PairImage, str, object]]:
        """Return at most `_MAX_PAIRS` pairs, of each kind as many, each kind's first ones."""
        n_per_kind = max(_MAX_PAIRS // max(rows["kind"].nunique(), 1), 1)
        sampled_pairs = rows.groupby("kind", sort=False).head(n_per_kind).head(_MAX_PAIRS)
        return [
            (self._image(row, "a"), self._image(row, "b"), str(row["kind"]), row["distance"])
            for row in sampled_pairs.to_dict("records")
        ]

    def _image(self, row: dict[Any, Any], dataset_key: str) -> PairImage:
        image_id, label = str(row[f"image_{dataset_key}"]), str(row[f"label_{dataset_key}"])
        return PairImage(
            self._uri(dataset_key, image_id),
            PurePosixPath(image_id).name,
            label,
            self.malignancies[dataset_key].get(label, ""),
            str(row[f"split_{dataset_key}"]),
        )

    def _uri(self, dataset_key: str, image_id: str) -> str:
        if (dataset_key, image_id) not in self.uris:
            try:
                pixels = open_image(self.datasets[dataset_key].image_path(image_id), name=image_id).pixels
                self.uris[dataset_key, image_id] = data_uri(pixels, _THUMBNAIL_SIDE)
            except DermkitError:
                self.uris[dataset_key, image_id] = ""
        return self.uris[dataset_key, image_id]
