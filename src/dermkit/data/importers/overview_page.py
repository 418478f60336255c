"""`overview.html`: one offline page that shows a person what a data set holds, before anything is trained on it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import floor

import numpy as np
import pandas as pd

from dermkit import __version__
from dermkit.data.importers.walk import Refused
from dermkit.data.manifest import GIVEN_SPLITS, MALIGNANCIES, Dataset, LesionClass
from dermkit.errors import ImageRefused
from dermkit.images.decode import open_image
from dermkit.render.html import templates
from dermkit.render.sheets import data_uri

MOST_PICTURES = 240
"""Thumbnails on a page, about 4 KB each: the page stays near 1 MB, whatever the number of classes."""

PICTURES_PER_CLASS = 16  # two rows of eight
SIDE = 112  # pixels; shown at this size

_MOST_REFUSED = 100
_MOST_BARS = 24
_MOST_SIZES = 8
_AGE_STEP = 10  # years


@dataclass(frozen=True)
class Picture:
    """A re-encoded thumbnail and the path it comes from."""

    uri: str
    path: str


@dataclass(frozen=True)
class ClassView:
    """A class as the page shows it. share: of all images, 0..1. splits: given split -> images."""

    item: LesionClass
    n: int
    lesions: int
    share: float
    splits: dict[str, int]
    pictures: list[Picture]


@dataclass(frozen=True)
class Bar:
    """A row of a bar chart. parts: (malignancy, width in percent of the longest bar)."""

    label: str
    n: int
    parts: list[tuple[str, float]]


@dataclass(frozen=True)
class Chart:
    """Counts of one metadata field. missing: images where it is not given."""

    title: str
    bars: list[Bar]
    missing: int


def render_overview(dataset: Dataset, refused: Sequence[Refused]) -> str:
    """Return the page as HTML: no script, no link to load, every picture re-encoded from pixels."""
    environment = templates()
    frame = dataset.manifest
    splits = [name for name in GIVEN_SPLITS if name and (frame["given_split"] == name).any()]
    classes = list(_class_views(dataset, splits))
    sizes = Counter(zip(frame["width"].tolist(), frame["height"].tolist(), strict=True))
    return environment.get_template("overview.html.j2").render(
        dataset=dataset,
        notes=dataset.notes,
        version=__version__,
        n=len(frame),
        splits=splits,
        classes=classes,
        most=max(view.n for view in classes),
        sides=_by_malignancy(dataset),
        lesions=_distinct(frame["lesion_id"]),
        patients=_distinct(frame["patient_id"]),
        photographs=_photographs(frame),
        charts=list(_charts(dataset)),
        sizes=sorted(sizes.items(), key=lambda item: (-item[1], item[0]))[:_MOST_SIZES],
        more_sizes=max(0, len(sizes) - _MOST_SIZES),
        refused=refused[:_MOST_REFUSED],
        refused_n=len(refused),
        reasons=sorted(Counter(item.reason for item in refused).items()),
    )


def _class_views(dataset: Dataset, splits: Sequence[str]) -> Iterator[ClassView]:
    frame = dataset.manifest
    each = min(PICTURES_PER_CLASS, max(1, MOST_PICTURES // len(dataset.classes)))
    for number, item in enumerate(dataset.classes):
        rows = frame[frame["label"] == item.name]
        counts = rows["given_split"].value_counts()
        yield ClassView(
            item=item,
            n=len(rows),
            lesions=_distinct(rows["lesion_id"]),
            share=len(rows) / len(frame),
            splits={name: int(counts.get(name, 0)) for name in splits},
            pictures=list(_pictures(dataset, item.name, rows["path"].tolist(), each))
            if number < MOST_PICTURES
            else [],
        )


def _pictures(dataset: Dataset, name: str, paths: list[str], each: int) -> Iterator[Picture]:
    """Draw pictures of a class at random; the seed is its name, so the same class shows the same pictures."""
    seed = int.from_bytes(sha256(name.encode()).digest()[:8], "big")
    drawn = np.random.default_rng(seed).permutation(len(paths))[:each]
    for index in sorted(drawn.tolist()):
        try:
            image = open_image(dataset.images / paths[index], name=paths[index])
        except ImageRefused:
            continue  # removed since it was imported
        yield Picture(data_uri(image.pixels, SIDE), paths[index])


def _by_malignancy(dataset: Dataset) -> list[tuple[str, int]]:
    words = dataset.manifest["label"].map({item.name: item.malignancy for item in dataset.classes})
    return [(word, int((words == word).sum())) for word in MALIGNANCIES]


def _distinct(ids: "pd.Series[str]") -> int:
    return int(ids[ids != ""].nunique())


def _photographs(frame: pd.DataFrame) -> list[tuple[int, int]]:
    """Return (photographs of a lesion, number of such lesions)."""
    known = frame.loc[frame["lesion_id"] != "", "lesion_id"]
    return sorted(Counter(known.value_counts().tolist()).items())


def _charts(dataset: Dataset) -> Iterator[Chart]:
    frame = dataset.manifest
    words = frame["label"].map({item.name: item.malignancy for item in dataset.classes})
    ages = frame["age"].map({value: _decade(value) for value in frame["age"].unique()})
    for title, values, by_size in (
        ("Age (years)", ages, False), ("Sex", frame["sex"], True), ("Site", frame["site"], True),
        ("Skin type", frame["skin_type"], False),
    ):  # fmt: skip
        table = pd.crosstab(values[values != ""], words)
        if not table.empty:
            yield Chart(title, _bars(table, by_size), int((values == "").sum()))


def _decade(age: str) -> str:
    if age == "":
        return ""
    low = floor(float(age) / _AGE_STEP) * _AGE_STEP
    return f"{low:>3} to {low + _AGE_STEP - 1}"


def _bars(table: pd.DataFrame, by_size: bool) -> list[Bar]:
    """Return a bar per row of value x malignancy counts: by value, or the largest first."""
    totals = table.sum(axis=1)
    order = totals.sort_values(ascending=False, kind="stable").index if by_size else sorted(table.index)
    words = [word for word in MALIGNANCIES if word in table.columns]
    widths = 100 * table / int(totals.max())
    return [
        Bar(
            str(value).strip(),
            int(totals[value]),
            [(word, float(widths.loc[value, word])) for word in words],
        )
        for value in list(order)[:_MOST_BARS]
    ]
