"""`overview.html`: an offline page that shows what a data set contains, to be read before training on it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import floor

import numpy as np
import pandas as pd

from dermkit import __version__
from dermkit.data.importers.records import Rejected
from dermkit.data.manifest import GIVEN_SPLITS, MALIGNANCIES, Dataset, LesionClass
from dermkit.data.rejection_texts import count_reasons
from dermkit.errors import ImageRejected
from dermkit.images.decode import open_image
from dermkit.render.html import template_environment
from dermkit.render.sheets import data_uri

MAX_THUMBNAILS = 240
"""At about 4 KB each, the page stays near 1 MB for any number of classes."""

THUMBNAILS_PER_CLASS = 16  # two rows of eight
_THUMBNAIL_SIDE = 112  # pixels, the size in the page

_MAX_REJECTED = 100
_MAX_BARS = 24
_MAX_SIZES = 8
_AGE_STEP = 10  # years


@dataclass(frozen=True)
class Thumbnail:
    """A thumbnail as a data URI, and the path of its image."""

    uri: str
    path: str


@dataclass(frozen=True)
class ClassView:
    """A class as the page shows it. fraction: of all images, 0..1. splits: given split -> number of images."""

    lesion_class: LesionClass
    n: int
    n_lesions: int
    fraction: float
    splits: dict[str, int]
    thumbnails: list[Thumbnail]


@dataclass(frozen=True)
class Bar:
    """A row of a bar chart. segments: (malignancy, width in percent of the longest bar)."""

    label: str
    n: int
    segments: list[tuple[str, float]]


@dataclass(frozen=True)
class Chart:
    """Counts of the values of a metadata column. n_missing: images without a value."""

    title: str
    bars: list[Bar]
    n_missing: int


def render_overview(dataset: Dataset, rejected: Sequence[Rejected]) -> str:
    """Return the page as HTML, without scripts or links; every image is encoded anew from its pixels."""
    environment = template_environment()
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
        max_n=max(view.n for view in classes),
        malignancy_counts=_count_by_malignancy(dataset),
        n_lesions=_count_distinct(frame["lesion_id"]),
        n_patients=_count_distinct(frame["patient_id"]),
        photographs_per_lesion=_photographs_per_lesion(frame),
        charts=list(_charts(dataset)),
        sizes=sorted(sizes.items(), key=lambda entry: (-entry[1], entry[0]))[:_MAX_SIZES],
        n_more_sizes=max(0, len(sizes) - _MAX_SIZES),
        rejected=rejected[:_MAX_REJECTED],
        n_rejected=len(rejected),
        reason_counts=count_reasons(entry.reason for entry in rejected),
    )


def _class_views(dataset: Dataset, splits: Sequence[str]) -> Iterator[ClassView]:
    frame = dataset.manifest
    n_per_class = min(THUMBNAILS_PER_CLASS, max(1, MAX_THUMBNAILS // len(dataset.classes)))
    for index, lesion_class in enumerate(dataset.classes):
        rows = frame[frame["label"] == lesion_class.name]
        counts = rows["given_split"].value_counts()
        yield ClassView(
            lesion_class=lesion_class,
            n=len(rows),
            n_lesions=_count_distinct(rows["lesion_id"]),
            fraction=len(rows) / len(frame),
            splits={name: int(counts.get(name, 0)) for name in splits},
            thumbnails=list(_thumbnails(dataset, lesion_class.name, rows["path"].tolist(), n_per_class))
            if index < MAX_THUMBNAILS
            else [],
        )


def _thumbnails(dataset: Dataset, name: str, paths: list[str], limit: int) -> Iterator[Thumbnail]:
    """Yield random images of a class. The seed is its name, so a class always shows the same images."""
    seed = int.from_bytes(sha256(name.encode()).digest()[:8], "big")
    sample = np.random.default_rng(seed).permutation(len(paths))[:limit]
    for index in sorted(sample.tolist()):
        try:
            image = open_image(dataset.image_root / paths[index], name=paths[index])
        except ImageRejected:
            continue  # removed since it was imported
        yield Thumbnail(data_uri(image.pixels, _THUMBNAIL_SIDE), paths[index])


def _malignancies(dataset: Dataset) -> "pd.Series[str]":
    """Return the malignancy of each image."""
    return dataset.manifest["label"].map(
        {lesion_class.name: lesion_class.malignancy for lesion_class in dataset.classes}
    )


def _count_by_malignancy(dataset: Dataset) -> list[tuple[str, int]]:
    malignancies = _malignancies(dataset)
    return [(malignancy, int((malignancies == malignancy).sum())) for malignancy in MALIGNANCIES]


def _count_distinct(ids: "pd.Series[str]") -> int:
    return int(ids[ids != ""].nunique())


def _photographs_per_lesion(frame: pd.DataFrame) -> list[tuple[int, int]]:
    """Return (number of photographs, number of lesions with so many), sorted."""
    lesion_ids = frame.loc[frame["lesion_id"] != "", "lesion_id"]
    return sorted(Counter(lesion_ids.value_counts().tolist()).items())


def _charts(dataset: Dataset) -> Iterator[Chart]:
    frame, malignancies = dataset.manifest, _malignancies(dataset)
    ages = frame["age"].map({value: _decade(value) for value in frame["age"].unique()})
    for title, values, by_size in (
        ("Age (years)", ages, False), ("Sex", frame["sex"], True), ("Site", frame["site"], True),
        ("Skin type", frame["skin_type"], False),
    ):  # fmt: skip
        table = pd.crosstab(values[values != ""], malignancies)
        if not table.empty:
            yield Chart(title, _bars(table, by_size), int((values == "").sum()))


def _decade(age: str) -> str:
    if age == "":
        return ""
    low = floor(float(age) / _AGE_STEP) * _AGE_STEP
    return f"{low:>3} to {low + _AGE_STEP - 1}"


def _bars(table: pd.DataFrame, by_size: bool) -> list[Bar]:
    """Return a bar per row of a table value x malignancy; by_size: the largest first, else sorted by value."""
    totals = table.sum(axis=1)
    order = totals.sort_values(ascending=False, kind="stable").index if by_size else sorted(table.index)
    malignancies = [malignancy for malignancy in MALIGNANCIES if malignancy in table.columns]
    widths = 100 * table / int(totals.max())
    return [
        Bar(
            str(value).strip(),
            int(totals[value]),
            [(malignancy, float(widths.loc[value, malignancy])) for malignancy in malignancies],
        )
        for value in list(order)[:_MAX_BARS]
    ]
