"""Links between a reference and an external data set: shared images, lesions and patients."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dermkit.audit.checks.finding import image_pair_table
from dermkit.audit.split_view import read_audited_split
from dermkit.data.diagnoses import contradict
from dermkit.data.manifest import Dataset
from dermkit.files import lock
from dermkit.metrics.stats.arrays import Bools
from dermkit.progress import Progress

NearDuplicateSearch = Callable[[Dataset, Dataset, Progress], pd.DataFrame]
"""Searches the images of both sets for near copies: a table of row `a` of the first, row `b` of the second, distance,
kind. Its `attrs["unseen"]` names images that could not be opened ("" or absent = none).
"""

SAME_IMAGE = ("exact", "file", "near", "id")
SAME_LESION = ("lesion",)
SAME_PATIENT = ("patient",)
LINK_TYPES = (*SAME_IMAGE, *SAME_LESION, *SAME_PATIENT)
"""How images of the two sets can be linked, strongest first; `near` stands for every kind of near copy."""

LINK_COLUMNS: Mapping[str, str] = {
    "exact": "pixel_sha256", "file": "file_sha256", "id": "isic_id", "lesion": "lesion_id", "patient": "patient_id",
}  # fmt: skip

_NUMBERED_ID = re.compile(r"(?i)(lesion|patient|audit_input|case|pat|les|id|l|p)?[\s_.-]*\d{1,6}")
"""Ids that are numbered within each data set: a number of few digits, alone or after a common word."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DatasetLinks:
    """The links between a reference (a) and an external data set (b).

    reference_rows, external_rows: both manifests with `split`. links: row `a` of the first, row `b` of the second,
    distance (NaN if only an id is shared), kind; for each external image and kind, one reference image per label.
    searched_types: of `LINK_TYPES`. limitations: link type -> why it was not, or not fully, searched. ambiguous_ids:
    `lesion` and `patient` -> number of ids in both sets that are too generic ("12") to prove a link.
    """

    reference: Dataset
    external: Dataset
    reference_rows: pd.DataFrame
    external_rows: pd.DataFrame
    links: pd.DataFrame
    searched_types: tuple[str, ...]
    limitations: Mapping[str, str]
    ambiguous_ids: Mapping[str, int]

    def is_linked(self, link_types: tuple[str, ...]) -> Bools:
        """Return (N,) flags of the external images that have a link of one of these types."""
        flags = np.zeros(len(self.external_rows), dtype=bool)
        flags[self.links.loc[self.link_types.isin(link_types), "b"].to_numpy(dtype=np.int64)] = True
        return flags

    @property
    def link_types(self) -> "pd.Series[Any]":
        """The type of each link: its kind, or `near` for every kind of near copy."""
        return self.links["kind"].where(self.links["kind"].isin(LINK_TYPES), "near")

    @property
    def contradictions(self) -> pd.DataFrame:
        """The links of one image or one lesion whose two labels cannot both be correct."""
        classes = [
            {lesion_class.name: lesion_class for lesion_class in dataset.classes}
            for dataset in (self.reference, self.external)
        ]
        links = self.links[self.link_types.isin((*SAME_IMAGE, *SAME_LESION))]
        reference_labels = self.reference_rows["label"].to_numpy()[links["a"].to_numpy(dtype=np.int64)]
        external_labels = self.external_rows["label"].to_numpy()[links["b"].to_numpy(dtype=np.int64)]
        is_contradiction = {
            (x, y): contradict(classes[0][x], classes[1][y])
            for x, y in set(zip(reference_labels, external_labels, strict=True))
        }
        flags = [is_contradiction[pair] for pair in zip(reference_labels, external_labels, strict=True)]
        return links[np.array(flags, dtype=bool)]

    def pairs(self, links: pd.DataFrame | None = None) -> pd.DataFrame:
        """Return links (default: all) as `IMAGE_PAIR_COLUMNS`, image_a of the reference, strongest type first.

        Two images with several links occur once, with the strongest.
        """
        links = self.links if links is None else links
        strength = links["kind"].where(links["kind"].isin(LINK_TYPES), "near").map(LINK_TYPES.index)
        sorted_links = links.assign(strength=strength).sort_values(
            ["strength", "distance", "b", "a"], kind="stable"
        )
        sorted_links = sorted_links.drop_duplicates(["a", "b"])
        distance = sorted_links["distance"].astype(object).where(sorted_links["distance"].notna(), "")
        return image_pair_table(sorted_links.assign(distance=distance), self.reference_rows, self.external_rows)


def link_datasets(
    reference: Dataset, external: Dataset, *, near_duplicate_search: NearDuplicateSearch | None, progress: Progress
) -> DatasetLinks:
    """Link the images of two data sets by pixels, files, ids, lesions, patients and, with a search, near copies."""
    reference_rows, external_rows = _with_split(reference), _with_split(external)
    link_tables = [
        _links_by_value(reference_rows, external_rows, link_type) for link_type in ("exact", "file", "id")
    ]
    limitations = {
        link_type: reason
        for link_type in ("id", *SAME_LESION, *SAME_PATIENT)
        if (reason := _missing_id_text(reference, external, link_type))
    }
    if near_duplicate_search is None:
        limitations["near"] = "near copies were not searched"
    else:
        # The scan of the external set is stored in its own audit folder; the caller has locked the reference's.
        with lock(external.work_folder):
            near_pairs = near_duplicate_search(reference, external, progress)
            link_tables.append(_nearest_per_label(near_pairs, reference_rows["label"]))
        if unseen_text := near_pairs.attrs.get("unseen", ""):
            limitations["near"] = unseen_text
    image_links = pd.concat(link_tables, ignore_index=True)
    ambiguous_ids = {}
    for link_type in (*SAME_LESION, *SAME_PATIENT):
        id_links = _links_by_value(reference_rows, external_rows, link_type)
        is_same = _is_same_identity(id_links, image_links, external_rows[LINK_COLUMNS[link_type]])
        ambiguous_ids[link_type] = int(
            external_rows.loc[id_links.loc[~is_same, "b"].unique(), LINK_COLUMNS[link_type]].nunique()
        )
        link_tables.append(id_links[is_same])
    links = pd.concat(link_tables, ignore_index=True)
    searched_types = tuple(
        link_type for link_type in LINK_TYPES if not (link_type == "near" and near_duplicate_search is None)
    )
    return DatasetLinks(
        reference=reference,
        external=external,
        reference_rows=reference_rows,
        external_rows=external_rows,
        links=links,
        searched_types=searched_types,
        limitations=limitations,
        ambiguous_ids={link_type: n for link_type, n in ambiguous_ids.items() if n},
    )


def _with_split(dataset: Dataset) -> pd.DataFrame:
    frame = dataset.manifest.reset_index(drop=True)
    return frame.assign(split=read_audited_split(dataset, None).names_for(frame))


def _links_by_value(reference_rows: pd.DataFrame, external_rows: pd.DataFrame, link_type: str) -> pd.DataFrame:
    """Link every external image to one reference image per label with the same known value."""
    column = LINK_COLUMNS[link_type]
    reference_keys = reference_rows[[column, "label"]].assign(a=np.arange(len(reference_rows)))
    reference_keys = reference_keys[reference_keys[column] != ""].drop_duplicates([column, "label"])
    external_keys = external_rows[[column]].assign(b=np.arange(len(external_rows)))
    external_keys = external_keys[external_keys[column] != ""]
    links = reference_keys.merge(external_keys, on=column)[["a", "b"]]
    # Identical pixels have distance 0; an id says nothing about the pixels.
    return links.assign(distance=0.0 if link_type in ("exact", "file") else np.nan, kind=link_type)


def _nearest_per_label(near_pairs: pd.DataFrame, reference_labels: "pd.Series[Any]") -> pd.DataFrame:
    """Return the nearest near copy of each external image per label."""
    labels = reference_labels.to_numpy()[near_pairs["a"].to_numpy(dtype=np.int64)]
    sorted_pairs = near_pairs.assign(label=labels).sort_values(["distance", "a"], kind="stable")
    nearest_pairs = sorted_pairs.drop_duplicates(["b", "label"])[["a", "b", "distance", "kind"]]
    return nearest_pairs[nearest_pairs["kind"] != "exact"]


def _is_same_identity(id_links: pd.DataFrame, image_links: pd.DataFrame, ids: "pd.Series[Any]") -> Bools:
    """Return flags of the links by lesion or patient id that can be trusted.

    An id that each set numbers on its own counts only if one of them is confirmed: two images with the same id also
    have a link by pixels, file or ISIC id.
    """
    if id_links.empty:
        return np.zeros(0, dtype=bool)
    is_numbered = (
        ids.iloc[id_links["b"]].str.fullmatch(_NUMBERED_ID.pattern, flags=re.IGNORECASE).to_numpy(dtype=bool)
    )
    image_pairs = set(zip(image_links["a"], image_links["b"], strict=True))
    is_confirmed = any(pair in image_pairs for pair in zip(id_links["a"], id_links["b"], strict=True))
    return ~is_numbered | is_confirmed


def _missing_id_text(reference: Dataset, external: Dataset, link_type: str) -> str:
    """Return how many images have no id of this type, as text, "" if all have one."""
    names = {"id": "ISIC id", "lesion": "lesion id", "patient": "patient id"}
    missing_counts = [
        (dataset, int((dataset.manifest[LINK_COLUMNS[link_type]] == "").sum()))
        for dataset in (reference, external)
    ]
    clauses = [
        f"no image of {dataset.name} has one"
        if n == len(dataset.manifest)
        else f"{n:,} of {len(dataset.manifest):,} images of {dataset.name} have none"
        for dataset, n in missing_counts
        if n
    ]
    return f"by {names[link_type]}: {', '.join(clauses)}" if clauses else ""
