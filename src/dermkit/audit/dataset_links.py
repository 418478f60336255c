"""Two data sets side by side: which images of the second are, or show, what the first shows already."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.audit.checks.finding import PAIR_COLUMNS
from dermkit.audit.split_view import read_sides
from dermkit.data.identify import contradict
from dermkit.data.manifest import Dataset
from dermkit.files import lock
from dermkit.progress import Watch

Flags = NDArray[np.bool_]

NearLook = Callable[[Dataset, Dataset, Watch], pd.DataFrame]
"""Opens the images of both sets; returns near copies: row `a` of the first, row `b` of the second, distance, kind.

`attrs["unseen"]` says of which images nothing could be seen ("" or absent = of none).
"""

SAME_IMAGE = ("exact", "file", "near", "id")
SAME_LESION = ("lesion",)
SAME_PATIENT = ("patient",)
WAYS = (*SAME_IMAGE, *SAME_LESION, *SAME_PATIENT)
"""How an image of one set can belong to one of the other, strongest first; `near` stands for every near kind."""

COLUMNS: Mapping[str, str] = {
    "exact": "pixel_sha256", "file": "file_sha256", "id": "isic_id", "lesion": "lesion_id", "patient": "patient_id",
}  # fmt: skip

_COUNTED = re.compile(r"(?i)(lesion|patient|subject|case|pat|les|id|l|p)?[\s_.-]*\d{1,6}")
"""Ids that every set numbers anew: a number of few digits, alone or behind a common word."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Meeting:
    """The links between data sets a and b.

    links: row `a` of the first manifest, row `b` of the second, distance (NaN where only an id is shared), kind;
    for every image of b and kind, one image of a per label. frames: both manifests with `split`.
    searched: ways that were searched. blind: way -> why it could not be searched, or not everywhere.
    homonyms: ids of lesions and patients that are the same text in both sets without being taken for the same.
    """

    a: Dataset
    b: Dataset
    frame_a: pd.DataFrame
    frame_b: pd.DataFrame
    links: pd.DataFrame
    searched: tuple[str, ...]
    blind: Mapping[str, str]
    homonyms: Mapping[str, int]

    def found(self, ways: tuple[str, ...]) -> Flags:
        """Say which images of b are linked to one of a in one of these ways."""
        flags = np.zeros(len(self.frame_b), dtype=bool)
        flags[self.links.loc[self.way.isin(ways), "b"].to_numpy(dtype=np.int64)] = True
        return flags

    @property
    def way(self) -> "pd.Series[Any]":
        """The way of each link: its kind, or `near` for every near kind."""
        return self.links["kind"].where(self.links["kind"].isin(WAYS), "near")

    @property
    def contradictions(self) -> pd.DataFrame:
        """The links of one image or one lesion whose two labels cannot both be right."""
        classes = [{item.name: item for item in dataset.classes} for dataset in (self.a, self.b)]
        links = self.links[self.way.isin((*SAME_IMAGE, *SAME_LESION))]
        labels_a = self.frame_a["label"].to_numpy()[links["a"].to_numpy(dtype=np.int64)]
        labels_b = self.frame_b["label"].to_numpy()[links["b"].to_numpy(dtype=np.int64)]
        wrong = {
            (x, y): contradict(classes[0][x], classes[1][y]) for x, y in set(zip(labels_a, labels_b, strict=True))
        }
        flags = [wrong[pair] for pair in zip(labels_a, labels_b, strict=True)]
        return links[np.array(flags, dtype=bool)]

    def pairs(self, links: pd.DataFrame | None = None) -> pd.DataFrame:
        """Return links as rows of a CSV of pairs: image_a of the first set, image_b of the second; strongest first.

        Two images that are linked in several ways stand once, with the strongest.
        """
        links = self.links if links is None else links
        strength = links["kind"].where(links["kind"].isin(WAYS), "near").map(WAYS.index)
        ordered = links.assign(strength=strength).sort_values(["strength", "distance", "b", "a"], kind="stable")
        ordered = ordered.drop_duplicates(["a", "b"])
        columns: dict[str, Any] = {}
        for name, source in (("image", "image_id"), ("label", "label"), ("split", "split")):
            for side, frame in (("a", self.frame_a), ("b", self.frame_b)):
                columns[f"{name}_{side}"] = frame[source].to_numpy()[ordered[side].to_numpy(dtype=np.int64)]
        distance = ordered["distance"].astype(object).where(ordered["distance"].notna(), "")
        columns |= {"distance": distance.to_numpy(), "kind": ordered["kind"].to_numpy()}
        return pd.DataFrame(columns)[list(PAIR_COLUMNS)]


def meet(a: Dataset, b: Dataset, *, look: NearLook | None, watch: Watch) -> Meeting:
    """Link the images of two data sets by pixels, files, ids, lesions and patients, and with `look` near copies."""
    frame_a, frame_b = _with_split(a), _with_split(b)
    parts = [_shared(frame_a, frame_b, way) for way in ("exact", "file", "id")]
    blind = {way: reason for way in ("id", *SAME_LESION, *SAME_PATIENT) if (reason := _blindness(a, b, way))}
    if look is None:
        blind["near"] = "near copies were not searched"
    else:
        with lock(b.folder):  # what is seen of b is kept in b's own audit folder; a's is locked by the caller
            near = look(a, b, watch)
            parts.append(_nearest(near, frame_a["label"]))
        if unseen := near.attrs.get("unseen", ""):
            blind["near"] = unseen
    images = pd.concat(parts, ignore_index=True)
    homonyms = {}
    for way in (*SAME_LESION, *SAME_PATIENT):
        shared = _shared(frame_a, frame_b, way)
        sure = _meant(shared, images, frame_b[COLUMNS[way]])
        homonyms[way] = int(frame_b.loc[shared.loc[~sure, "b"].unique(), COLUMNS[way]].nunique())
        parts.append(shared[sure])
    links = pd.concat(parts, ignore_index=True)
    searched = tuple(way for way in WAYS if not (way == "near" and look is None))
    return Meeting(
        a=a, b=b, frame_a=frame_a, frame_b=frame_b, links=links, searched=searched, blind=blind,
        homonyms={way: n for way, n in homonyms.items() if n},
    )  # fmt: skip


def _with_split(dataset: Dataset) -> pd.DataFrame:
    frame = dataset.manifest.reset_index(drop=True)
    return frame.assign(split=read_sides(dataset, None).of(frame))


def _shared(frame_a: pd.DataFrame, frame_b: pd.DataFrame, way: str) -> pd.DataFrame:
    """Link every image of b to one image of a per label that has the same known value."""
    column = COLUMNS[way]
    keys_a = frame_a[[column, "label"]].assign(a=np.arange(len(frame_a)))
    keys_a = keys_a[keys_a[column] != ""].drop_duplicates([column, "label"])
    keys_b = frame_b[[column]].assign(b=np.arange(len(frame_b)))
    keys_b = keys_b[keys_b[column] != ""]
    both = keys_a.merge(keys_b, on=column)[["a", "b"]]
    # Identical pixels are at distance 0; an id says nothing of what the pictures look like.
    return both.assign(distance=0.0 if way in ("exact", "file") else np.nan, kind=way)


def _nearest(near: pd.DataFrame, labels_a: "pd.Series[Any]") -> pd.DataFrame:
    """Keep, of the near copies of an image of b, the nearest one per label."""
    labels = labels_a.to_numpy()[near["a"].to_numpy(dtype=np.int64)]
    ordered = near.assign(label=labels).sort_values(["distance", "a"], kind="stable")
    kept = ordered.drop_duplicates(["b", "label"])[["a", "b", "distance", "kind"]]
    return kept[kept["kind"] != "exact"]


def _meant(shared: pd.DataFrame, images: pd.DataFrame, ids: "pd.Series[Any]") -> Flags:
    """Say which links by lesion or patient are meant: not those by ids that every set numbers anew.

    Such ids count once one of them is borne out: two pictures with the same id are one image by another way.
    """
    if shared.empty:
        return np.zeros(0, dtype=bool)
    counted = ids.iloc[shared["b"]].str.fullmatch(_COUNTED.pattern, flags=re.IGNORECASE).to_numpy(dtype=bool)
    known = set(zip(images["a"], images["b"], strict=True))
    borne_out = any(pair in known for pair in zip(shared["a"], shared["b"], strict=True))
    return ~counted | borne_out


def _blindness(a: Dataset, b: Dataset, way: str) -> str:
    """Say how many images have no id of this kind to be found by, "" where all have one."""
    names = {"id": "ISIC id", "lesion": "lesion id", "patient": "patient id"}
    missing = [(dataset, int((dataset.manifest[COLUMNS[way]] == "").sum())) for dataset in (a, b)]
    parts = [
        f"no image of {dataset.name} has one"
        if n == len(dataset.manifest)
        else f"{n:,} of {len(dataset.manifest):,} images of {dataset.name} have none"
        for dataset, n in missing
        if n
    ]
    return f"by {names[way]}: {', '.join(parts)}" if parts else ""
