"""Recognises published data sets by their content (counts, ids, file names, hashes), never by a folder's name.

Masks have one entry per row of a manifest, (n,) bool.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.data.diagnoses import canonical_name
from dermkit.data.known_datasets import KNOWN_DATASETS, ImageCounts, KnownDataset, sum_counts
from dermkit.files import sha256_bytes

MAX_CHANGED_FRACTION = 0.02
"""The largest fraction of images missing or added at which a set still counts as (nearly) the published one."""

MIN_NAMED_FRACTION = 0.95
"""Fraction of the images whose names or ids must fit the published set; the others may have been renamed."""

IdentityRelation = Literal["copy", "whole", "relabelled", "divided", "nearly", "part", "holds"]
_RELATION_RANKS: Mapping[IdentityRelation, int] = {
    "copy": 0, "whole": 1, "relabelled": 2, "divided": 3, "nearly": 4, "part": 5, "holds": 6,
}  # fmt: skip

_ISIC_ID = re.compile(r"(?i)(?<![a-z0-9])ISIC_(\d{7})(?!\d)")

_Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class DatasetIdentity:
    """How a data set is related to a published one.

    relation: copy (the very files that the table's numbers were measured on), whole (as published), relabelled (the
    same files with other labels), divided (complete, with other splits), nearly (few images missing or added), part
    (nearly all images are of the published set), holds (some are). n_images: images here that are of the published
    set; n_missing: images of the published set that are not here; n_extra: images here that are not of it.
    """

    known_dataset: KnownDataset
    relation: IdentityRelation
    n_images: int
    n_missing: int
    n_extra: int

    @property
    def description(self) -> str:
        """The relation as a text, such as "HAM10000 with 12 images missing"."""
        title, n_published = self.known_dataset.title, self.known_dataset.n_images
        if self.relation in ("copy", "whole"):
            return f"{title}, whole: {n_published:,} images"
        if self.relation == "relabelled":
            return f"{title}, whole ({n_published:,} images), under other labels than published"
        if self.relation == "divided":
            return f"{title}, whole ({n_published:,} images), divided into sides otherwise than published"
        if self.relation == "nearly":
            return f"{title} with {' and '.join(self._changes())}"
        extra_text = f", and {_images_text(self.n_extra)} not of it" if self.n_extra else ""
        return f"a part of {title}: {n_published - self.n_missing:,} of its {n_published:,} images{extra_text}"

    def _changes(self) -> list[str]:
        missing = [f"{_images_text(self.n_missing)} missing"] if self.n_missing else []
        return missing + ([f"{_images_text(self.n_extra)} more than published"] if self.n_extra else [])


def _images_text(n: int) -> str:
    return f"{n:,} image{'' if n == 1 else 's'}"


def recognise(frame: pd.DataFrame) -> KnownDataset | None:
    """Return the published data set that all of these rows belong to, else None.

    frame: manifest columns label, given_split, path, lesion_id; others are used if there are any.
    """
    identity = identify(frame)
    return identity.known_dataset if identity and not identity.n_extra else None


def identify(frame: pd.DataFrame) -> DatasetIdentity | None:
    """Return how the rows are related to the published set they come from, else None.

    Compared are the numbers of images per class (by canonical name) and split, the hashes of all files, and ids. frame:
    as for `recognise`.
    """
    content = _DatasetContent(frame)
    identities = [
        identity for known_dataset in KNOWN_DATASETS if (identity := content.compare(known_dataset)) is not None
    ]
    return min(
        identities,
        key=lambda identity: (
            _RELATION_RANKS[identity.relation],
            not (len(identities) == 1 or content.image_names.is_named_like(identity.known_dataset)),
            identity.n_missing + identity.n_extra,
        ),
        default=None,
    )


def find_contained(frame: pd.DataFrame) -> list[DatasetIdentity]:
    """Return the published sets that some images belong to by id, largest first.

    An image counts for the smallest set that contains it: one of HAM10000 does not count for ISIC 2018 too.
    """
    identities, names = [], _ImageNames(frame)
    is_assigned = np.zeros(len(frame), dtype=bool)
    for known_dataset in sorted(KNOWN_DATASETS, key=lambda identity: identity.n_images):
        is_member = names.member_mask(known_dataset) & ~is_assigned
        if is_member.any():
            identities.append(names.partial_identity(known_dataset, is_member, "holds"))
            is_assigned |= is_member
    return sorted(identities, key=lambda identity: -identity.n_images)


def member_mask(frame: pd.DataFrame, known_dataset: KnownDataset) -> _Bools:
    """Return (n,) bool: whether ISIC id, lesion id or file name proves that a row is of a published set.

    frame: manifest column path; isic_id and lesion_id if there are any.
    """
    return _ImageNames(frame).member_mask(known_dataset)


def find_claimed(names: Iterable[str]) -> list[KnownDataset]:
    """Return the published sets that names of a data set or folders suggest: HAM10000 for "HAM-10000 (copy)"."""
    plain_names = [re.sub(r"[\W_]+", "", name.casefold()) for name in names]
    return [
        known_dataset
        for known_dataset in KNOWN_DATASETS
        if any(re.search(known_dataset.name_pattern, name) for name in plain_names)
    ]


def content_sha256(frame: pd.DataFrame) -> str:
    """Return a hash of all files, independent of names, order and labels; "" if a file has no hash."""
    hashes = frame["file_sha256"] if "file_sha256" in frame else pd.Series([""], dtype=str)
    if not len(hashes) or (hashes == "").any() or hashes.isna().any():
        return ""
    return sha256_bytes("\n".join(sorted(hashes)).encode())


class _ImageNames:
    """The file names and ids of the images, parsed once, since a million of them take seconds."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame
        # File names without folder and suffix.
        names = [path.rpartition("/")[2] for path in frame["path"].tolist()]
        self.stems = [name.rpartition(".")[0] or name for name in names]
        ids = frame["isic_id"].tolist() if "isic_id" in frame else [""] * len(names)
        matches = [_ISIC_ID.search(isic_id or stem) for isic_id, stem in zip(ids, self.stems, strict=True)]
        self.isic_numbers = np.array([int(match[1]) if match else -1 for match in matches], dtype=np.int64)

    def matching_fraction(self, values: Iterable[str], pattern: str) -> float:
        """Return the fraction of the values that match a pattern, without empty ones; 1 if all are empty."""
        is_match = [re.fullmatch(pattern, value) is not None for value in values if value]
        return sum(is_match) / len(is_match) if is_match else 1.0

    def is_named_like(self, known_dataset: KnownDataset) -> bool:
        """Return whether files, lesions and patients are named as in the published set."""
        pairs = (("lesion_id", known_dataset.lesion_id_pattern), ("patient_id", known_dataset.patient_id_pattern))
        return self.matching_fraction(self.stems, known_dataset.file_pattern) >= MIN_NAMED_FRACTION and all(
            self.matching_fraction(self.frame[column].tolist(), pattern) >= MIN_NAMED_FRACTION
            for column, pattern in pairs
            if pattern and column in self.frame
        )

    def member_mask(self, known_dataset: KnownDataset) -> _Bools:
        """Return (n,) bool: which images are proven to be of a published set."""
        is_member = np.zeros(len(self.frame), dtype=bool)
        for first, last in known_dataset.isic_ranges:
            is_member |= (self.isic_numbers >= first) & (self.isic_numbers <= last)
        if known_dataset.lesion_id_is_proof and "lesion_id" in self.frame:
            is_member |= self._matches_pattern(self.frame["lesion_id"].tolist(), known_dataset.lesion_id_pattern)
        return (
            is_member | self._matches_pattern(self.stems, known_dataset.file_pattern)
            if known_dataset.file_name_is_proof
            else is_member
        )

    def _matches_pattern(self, values: list[str], pattern: str) -> _Bools:
        regex = re.compile(pattern)
        return np.array([bool(value) and regex.fullmatch(value) is not None for value in values], dtype=bool)

    def partial_identity(
        self, known_dataset: KnownDataset, is_member: _Bools, relation: IdentityRelation
    ) -> DatasetIdentity:
        """Return the relation by ids; an image that occurs several times counts once for `n_missing`."""
        isic_numbers = self.isic_numbers[is_member]
        stems_without_id = {self.stems[row] for row in np.flatnonzero(is_member)[isic_numbers < 0]}
        n_distinct = len(np.unique(isic_numbers[isic_numbers >= 0])) + len(stems_without_id)
        n_images = int(is_member.sum())
        return DatasetIdentity(
            known_dataset,
            relation,
            n_images,
            max(known_dataset.n_images - n_distinct, 0),
            len(self.frame) - n_images,
        )


class _DatasetContent:
    """The properties of a data set that are compared with published ones, computed once."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame
        canonical_of = {str(label): canonical_name(str(label)) for label in frame["label"].unique()}
        table = frame.groupby(["given_split", "label"]).size().reset_index(name="n")
        self.counts: dict[str, dict[str, int]] = {}
        for split_name, label, n in table.to_numpy(dtype=object).tolist():
            classes = self.counts.setdefault(split_name, {})
            classes[canonical_of[label]] = classes.get(canonical_of[label], 0) + n
        self.split_sizes = {split_name: sum(classes.values()) for split_name, classes in self.counts.items()}
        self.totals = sum_counts(count for classes in self.counts.values() for count in classes.items())
        self.image_names = _ImageNames(frame)
        self.files_sha256 = content_sha256(frame)

    def compare(self, known_dataset: KnownDataset) -> DatasetIdentity | None:
        """Return how the rows are related to a published set, None if they do not match it."""
        n = len(self.frame)
        published_counts = [
            _canonical_counts(counts) for counts in (known_dataset.class_counts, *known_dataset.other_counts)
        ]
        if known_dataset.files_sha256 and known_dataset.files_sha256 == self.files_sha256:
            return DatasetIdentity(
                known_dataset, "copy" if self.totals in published_counts else "relabelled", n, 0, 0
            )
        if known_dataset.split_sizes:
            # Numbers per class are not published for each split, and perhaps not for all splits together.
            is_match = self.split_sizes == dict(known_dataset.split_sizes) and set(self.totals) <= set(
                published_counts[0]
            )
            return DatasetIdentity(known_dataset, "whole", n, 0, 0) if is_match else None
        if self.counts == {
            split_name: _canonical_counts(classes) for split_name, classes in known_dataset.counts.items()
        }:
            return DatasetIdentity(known_dataset, "whole", n, 0, 0)
        if self.totals in published_counts:
            is_unsplit = len(known_dataset.counts) == 1 and len(self.counts) == 1
            return DatasetIdentity(known_dataset, "whole" if is_unsplit else "divided", n, 0, 0)
        return self._near_identity(known_dataset, published_counts) or self._partial_identity(known_dataset)

    def _near_identity(
        self, known_dataset: KnownDataset, published_counts: list[dict[str, int]]
    ) -> DatasetIdentity | None:
        """Return "nearly" if counts differ by few images and names and ids fit too, else None."""
        for counts in published_counts:
            names = set(counts) | set(self.totals)
            gaps = [counts.get(name, 0) - self.totals.get(name, 0) for name in names]
            n_missing, n_extra = sum(gap for gap in gaps if gap > 0), -sum(gap for gap in gaps if gap < 0)
            if (
                n_missing + n_extra <= MAX_CHANGED_FRACTION * known_dataset.n_images
                and self.image_names.is_named_like(known_dataset)
            ):
                return DatasetIdentity(known_dataset, "nearly", len(self.frame) - n_extra, n_missing, n_extra)
        return None

    def _partial_identity(self, known_dataset: KnownDataset) -> DatasetIdentity | None:
        is_member = self.image_names.member_mask(known_dataset)
        if not len(is_member) or is_member.mean() < MIN_NAMED_FRACTION:
            return None
        identity = self.image_names.partial_identity(known_dataset, is_member, "part")
        is_near_complete = identity.n_missing + identity.n_extra <= MAX_CHANGED_FRACTION * known_dataset.n_images
        return (
            DatasetIdentity(known_dataset, "nearly", identity.n_images, identity.n_missing, identity.n_extra)
            if is_near_complete
            else identity
        )


def _canonical_counts(counts: ImageCounts) -> dict[str, int]:
    return sum_counts((canonical_name(name), n) for name, n in counts.items())
