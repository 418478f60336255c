"""What holding two data sets against each other leaves on disk: against.json, pairs.csv, against.html."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from dermkit.audit.checks.finding import PAIR_COLUMNS
from dermkit.audit.checks.text import share_figures
from dermkit.audit.dataset_links import SAME_IMAGE, Meeting
from dermkit.audit.output import Reported, versions
from dermkit.data.manifest import Dataset
from dermkit.errors import DermkitError
from dermkit.files import make_folder, write_json, write_rows, write_text
from dermkit.images.decode import open_image
from dermkit.render.html import templates
from dermkit.render.sheets import data_uri

FORMAT = 1
SHOWN = 24
"""Pairs drawn of each finding: about 12 kB each, so that the page stays under 1 MB."""

SIDE = 144


@dataclass(frozen=True)
class Shown:
    """An image of a pair as the page shows it; uri is "" where it is not at hand."""

    uri: str
    name: str
    label: str
    malignancy: str
    split: str


def write_against(
    folder: Path, meeting: Meeting, findings: Sequence[Reported], verdict: str, *, is_external: bool
) -> None:
    """Write the files; CSVs of an earlier comparison that have nothing to say now are removed."""
    make_folder(folder)
    write_rows(folder / "pairs.csv", PAIR_COLUMNS, meeting.pairs().to_numpy(dtype=object).tolist())
    contradictions = meeting.pairs(meeting.contradictions)
    if len(contradictions):
        write_rows(folder / "DA081.csv", PAIR_COLUMNS, contradictions.to_numpy(dtype=object).tolist())
    else:
        (folder / "DA081.csv").unlink(missing_ok=True)
    body = {
        "a": _facts(meeting.a),
        "b": _facts(meeting.b),
        "verdict": verdict,
        "external": is_external,
        "not_new": share_figures(int(meeting.found(SAME_IMAGE).sum()), len(meeting.frame_b)),
        "ways": {way: int(meeting.found((way,)).sum()) for way in meeting.searched},
        "blind": dict(meeting.blind),
        "homonyms": dict(meeting.homonyms),
        "findings": [_finding(item) for item in findings],
        "versions": versions(),
    }
    write_json(folder / "against.json", body, format=FORMAT)
    write_text(folder / "against.html", _page(meeting, findings, verdict, body))


def _facts(dataset: Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "images": len(dataset.manifest),
        "manifest_sha256": dataset.manifest_sha256,
        "title": str(dataset.notes.get("title", "")),
    }


def _finding(item: Reported) -> dict[str, Any]:
    file = {"DA080": "pairs.csv", "DA081": "DA081.csv"}.get(item.card.code)
    return {
        "code": item.card.code, "title": item.card.title, "severity": str(item.finding.severity), "n": item.finding.n,
        "threshold": item.card.threshold, "files": [file] if file else [], "sentence": item.finding.sentence,
        "effect": item.card.effect, "per_class": dict(item.finding.per_class), "figures": dict(item.finding.figures),
        "accepted": dict(item.accepted) if item.accepted else None, "acceptance_void": item.void,
    }  # fmt: skip


def _page(meeting: Meeting, findings: Sequence[Reported], verdict: str, body: dict[str, Any]) -> str:
    environment = templates()
    environment.filters["percent"] = lambda value: f"{value:.1%}".replace("%", "\N{NO-BREAK SPACE}%")
    drawn = _Drawn(meeting)
    return environment.get_template("against.html.j2").render(
        title=f"{meeting.b.name} against {meeting.a.name}",
        verdict=verdict,
        body=body,
        findings=[
            (item, drawn.pairs(item.finding.rows) if item.finding.kind == "pairs" else []) for item in findings
        ],
    )


class _Drawn:
    """Pairs as pictures; every image is opened once."""

    def __init__(self, meeting: Meeting) -> None:
        self.datasets = {"a": meeting.a, "b": meeting.b}
        self.classes = {
            side: {item.name: str(item.malignancy) for item in dataset.classes}
            for side, dataset in self.datasets.items()
        }
        self.uris: dict[tuple[str, str], str] = {}

    def pairs(self, rows: pd.DataFrame) -> list[tuple[Shown, Shown, str, object]]:
        """Return at most `SHOWN` pairs, of each kind as many, each kind's first ones."""
        each = max(SHOWN // max(rows["kind"].nunique(), 1), 1)
        chosen = rows.groupby("kind", sort=False).head(each).head(SHOWN)
        return [
            (self._image(row, "a"), self._image(row, "b"), str(row["kind"]), row["distance"])
            for row in chosen.to_dict("records")
        ]

    def _image(self, row: dict[Any, Any], side: str) -> Shown:
        image_id, label = str(row[f"image_{side}"]), str(row[f"label_{side}"])
        return Shown(
            self._uri(side, image_id), PurePosixPath(image_id).name, label, self.classes[side].get(label, ""),
            str(row[f"split_{side}"]),
        )  # fmt: skip

    def _uri(self, side: str, image_id: str) -> str:
        if (side, image_id) not in self.uris:
            try:
                pixels = open_image(self.datasets[side].path_of(image_id), name=image_id).pixels
                self.uris[side, image_id] = data_uri(pixels, SIDE)
            except DermkitError:
                self.uris[side, image_id] = ""
        return self.uris[side, image_id]
