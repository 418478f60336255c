"""`audit.html`: the findings with their pictures side by side, worst first, as one offline file."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd
from jinja2 import Environment

from dermkit.audit.checks.finding import IMAGE_COLUMNS
from dermkit.audit.output import Audit, Reported, versions
from dermkit.errors import DermkitError
from dermkit.files import write_text
from dermkit.images.decode import open_image
from dermkit.render.html import templates
from dermkit.render.sheets import data_uri

MAX_BYTES = 5_000_000
"""The file must travel by mail: it shows fewer pictures before it grows past this."""

SHOWN = (24, 12, 6, 2, 0)
"""Pairs or images shown of each finding; the first number that keeps the file under MAX_BYTES is taken."""

SIDE = 144
"""Pixels of a thumbnail's longer side: about 6 kB, and the eye can tell two photographs of one lesion from copies."""

MOST_FACTS = 6
"""What was measured on an image, below its picture; the CSV has all."""

MOST_ROWS = 24
"""Lines of a table on the page; the CSV has all."""

UNKNOWN = "\N{EN DASH}"


@dataclass(frozen=True)
class ImageView:
    """An image as the page shows it. uri: "" where it is not at hand. facts: what its check measured on it."""

    uri: str
    name: str
    path: str
    label: str
    malignancy: str
    split: str
    facts: list[tuple[str, str]]


@dataclass(frozen=True)
class PairView:
    """Two images side by side."""

    a: ImageView
    b: ImageView
    kind: str
    distance: str


@dataclass(frozen=True, eq=False)
class FindingView:
    """A finding as the page shows it. varied: whether its pairs are at several distances.

    classes: (name, malignancy, images concerned, images of the class).
    """

    item: Reported
    varied: bool
    classes: list[tuple[str, str, int, int]]
    pairs: list[PairView]
    images: list[ImageView]
    columns: list[str]
    table: list[list[str]]


def write_page(path: Path, audit: Audit) -> Path:
    """Write the page; it holds fewer pictures where there would be too many bytes. Returns its path."""
    template, drawer = _templates().get_template("audit.html.j2"), _Drawer(audit)
    for shown in SHOWN:
        html = template.render(**_context(audit, [drawer.finding(item, shown) for item in audit.findings]))
        if len(html.encode()) < MAX_BYTES:
            break
    write_text(path, html)
    return path


def _templates() -> Environment:
    environment = templates()
    environment.filters["percent"] = lambda value: f"{value:.0%}".replace("%", "\N{NO-BREAK SPACE}%")
    environment.filters["images"] = lambda n: f"{n:,} image{'s' * (n != 1)}"
    return environment


def _context(audit: Audit, views: list[FindingView]) -> dict[str, Any]:
    subject, codes = audit.subject, {view.item.card.code for view in views}
    sides = subject.frame.loc[subject.frame["split"] != "", "split"].value_counts().sort_index()
    return {
        "title": f"Audit of {subject.dataset.name}",
        "dataset": subject.dataset,
        "notes": subject.dataset.notes,
        "audit": audit,
        "counts": audit.counts,
        "views": views,
        "sides": [(str(name), int(n)) for name, n in sides.items()],
        "unused": len(subject.frame) - int(sides.sum()),
        "versions": versions(),
        "stale": [(code, record) for code, record in audit.records.items() if code not in codes],
    }


class _Drawer:
    """Turns findings into what the template shows; every image is opened once."""

    def __init__(self, audit: Audit) -> None:
        self.dataset, frame = audit.subject.dataset, audit.subject.frame
        self.malignancy = {item.name: str(item.malignancy) for item in self.dataset.classes}
        self.paths = dict(zip(frame["image_id"], frame["path"], strict=True))
        self.totals = {str(name): int(n) for name, n in frame["label"].value_counts().items()}
        self.thumbnails: dict[str, str] = {}

    def finding(self, item: Reported, shown: int) -> FindingView:
        """Return a finding with at most `shown` pairs or images."""
        found = item.finding
        classes = [
            (name, malignancy, int(found.per_class[name]), self.totals.get(name, 0))
            for name, malignancy in self.malignancy.items()
            if found.per_class.get(name)
        ]
        pairs, images, columns, table = [], [], [], []
        if found.kind == "pairs":
            pairs = [self._pair(row) for row in _records(_chosen(found.rows, shown))]
        elif found.kind == "images":
            rows = _records(found.rows.head(shown))
            pairs = [self._with_copy(row) for row in rows if "copy_image_id" in row]
            images = [] if pairs else [self._image(row) for row in rows]
        else:
            columns = [_words(name) for name in found.rows.columns]
            table = [[_text(cell) for cell in row] for row in found.rows.head(MOST_ROWS).to_numpy(object).tolist()]
        varied = found.kind == "pairs" and found.rows["distance"].nunique() > 1
        return FindingView(item, varied, classes, pairs, images, columns, table)

    def _pair(self, row: dict[str, Any]) -> PairView:
        a, b = (
            self._view(str(row[f"image_{end}"]), "", str(row[f"label_{end}"]), str(row[f"split_{end}"]), [])
            for end in ("a", "b")
        )
        return PairView(a, b, _kind(str(row["kind"])), _distance(row["distance"]))

    def _with_copy(self, row: dict[str, Any]) -> PairView:
        """Return an image whose table names its copy in the columns `copy_...`, side by side with that."""
        a, b = (
            self._image({name: row.get(f"{which}{name}", "") for name in IMAGE_COLUMNS}) for which in ("", "copy_")
        )
        return PairView(a, b, _kind(str(row.get("kind", "copy"))), _distance(row.get("distance", "")))

    def _image(self, row: dict[str, Any]) -> ImageView:
        image_id, path, label, split = (str(row.get(name, "")) for name in IMAGE_COLUMNS)
        facts = [(_words(name), _text(cell)) for name, cell in row.items() if name not in IMAGE_COLUMNS]
        return self._view(image_id, path, label, split, facts[:MOST_FACTS])

    def _view(self, image_id: str, path: str, label: str, split: str, facts: list[tuple[str, str]]) -> ImageView:
        path = path or self.paths.get(image_id, image_id)
        uri = self._thumbnail(image_id)
        return ImageView(uri, PurePosixPath(path).name, path, label, self.malignancy.get(label, ""), split, facts)

    def _thumbnail(self, image_id: str) -> str:
        """Return a small copy made of pixels, "" where the image is not at hand: refused at import, or gone since."""
        if image_id not in self.thumbnails:
            try:
                pixels = open_image(self.dataset.path_of(image_id), name=image_id).pixels
                self.thumbnails[image_id] = data_uri(pixels, SIDE)
            except DermkitError:
                self.thumbnails[image_id] = ""
        return self.thumbnails[image_id]


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): cell for name, cell in row.items()} for row in table.to_dict("records")]


def _chosen(pairs: pd.DataFrame, most: int) -> pd.DataFrame:
    """Return at most `most` pairs: of each kind in turn the first and the last, so that the doubtful are seen too."""
    if len(pairs) <= most:
        return pairs
    order = (list(_ends(part.index.tolist())) for _, part in pairs.groupby("kind", sort=False))
    taken = [row for row in chain.from_iterable(zip_longest(*order)) if row is not None][:most]
    return pairs.loc[sorted(taken)]


def _ends(rows: Sequence[int]) -> Iterator[int]:
    """Yield first, last, second, last but one, ..."""
    for number in range((len(rows) + 1) // 2):
        yield rows[number]
        if number != len(rows) - 1 - number:
            yield rows[len(rows) - 1 - number]


def _kind(kind: str) -> str:
    return {"exact": "identical pixels", "reencoded": "saved again"}.get(kind, _words(kind))


def _distance(value: object) -> str:
    """Return a distance for people; only identical pixels have none at all."""
    if not isinstance(value, float | int) or value != value:
        return ""
    return "distance 0" if value == 0 else f"distance {value:.4f}" if value >= 0.0001 else "distance under 0.0001"


def _words(name: object) -> str:
    return str(name).replace("_", " ")


def _text(value: object) -> str:
    """Return a cell for people: at most four digits, unknown as a dash."""
    if isinstance(value, float):
        return UNKNOWN if value != value else f"{value:.4g}"
    return str(value) if value not in ("", None) else UNKNOWN
