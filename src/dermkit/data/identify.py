"""Which known data set is this? Told by what is in it, never by a folder's name."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.data.diagnoses import (
    BINARY,
    DIAGNOSES,
    MALIGNANCY_SOURCE,
    Diagnosis,
    canonical,
    classify,
    contradict,
    find_diagnosis,
    is_known,
    malignancy_source,
    plain_name,
)
from dermkit.data.known_datasets import ARCHIVE, KNOWN, Counts, Known
from dermkit.files import sha256_bytes

__all__ = [
    "ARCHIVE",
    "BINARY",
    "DIAGNOSES",
    "KNOWN",
    "MALIGNANCY_SOURCE",
    "Diagnosis",
    "Identity",
    "Known",
    "canonical",
    "claimed",
    "classify",
    "content_sha256",
    "contradict",
    "find_diagnosis",
    "find_known",
    "held",
    "identify",
    "is_known",
    "malignancy_source",
    "members",
    "plain_name",
    "recognise",
]

NEARLY = 0.02
"""Share of a published set that may be missing or added until it is called a part of it, or another set."""

NAMED = 0.95
"""Share of the images whose names or ids must fit; the rest may have been renamed."""

Relation = Literal["copy", "whole", "relabelled", "divided", "nearly", "part", "holds"]
_RANKS: Mapping[Relation, int] = {
    "copy": 0, "whole": 1, "relabelled": 2, "divided": 3, "nearly": 4, "part": 5, "holds": 6,
}  # fmt: skip

_ISIC = re.compile(r"(?i)(?<![a-z0-9])ISIC_(\d{7})(?!\d)")

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Identity:
    """How a data set and a known one belong together.

    relation: copy (the very files that the table's figures were measured on), whole (as published), relabelled (the
    very files under other labels), divided (all of it, in other sides), nearly, part, holds (it holds some of it).
    images: how many of our images are of the known set; missing: images of the known set that are not here; extra:
    our images that are not of it.
    """

    known: Known
    relation: Relation
    images: int
    missing: int
    extra: int

    @property
    def words(self) -> str:
        """The identity in words: "HAM10000 with 12 images missing"."""
        title, published = self.known.title, self.known.images
        if self.relation in ("copy", "whole"):
            return f"{title}, whole: {published:,} images"
        if self.relation == "relabelled":
            return f"{title}, whole ({published:,} images), under other labels than published"
        if self.relation == "divided":
            return f"{title}, whole ({published:,} images), divided into sides otherwise than published"
        if self.relation == "nearly":
            return f"{title} with {' and '.join(self._changes())}"
        added = f", and {_images(self.extra)} not of it" if self.extra else ""
        return f"a part of {title}: {published - self.missing:,} of its {published:,} images{added}"

    def _changes(self) -> list[str]:
        missing = [f"{_images(self.missing)} missing"] if self.missing else []
        return missing + ([f"{_images(self.extra)} more than published"] if self.extra else [])


def _images(n: int) -> str:
    return f"{n:,} image{'' if n == 1 else 's'}"


def find_known(key: str) -> Known | None:
    """Return the known set of a key, or None."""
    return next((item for item in KNOWN if item.key == key), None)


def recognise(frame: pd.DataFrame) -> Known | None:
    """Return the known data set that all of these rows belong to; None if there is none.

    frame: manifest columns label, given_split, path, lesion_id; further ones help.
    """
    found = identify(frame)
    return found.known if found and not found.extra else None


def identify(frame: pd.DataFrame) -> Identity | None:
    """Return the known set that the rows are, whole, nearly or in part, by counts, ids and hashes of the files.

    Classes are compared by their canonical names. Part: nearly all rows carry ids of the set (`members`).
    """
    content = _Content(frame)
    found = [item for known in KNOWN if (item := content.compare(known)) is not None]
    return min(
        found,
        key=lambda item: (
            _RANKS[item.relation],
            not (len(found) == 1 or content.names.fits(item.known)),
            item.missing + item.extra,
        ),
        default=None,
    )


def held(frame: pd.DataFrame) -> list[Identity]:
    """Return the known sets that some rows carry ids of, most images first; sets that only repeat another are left out.

    ISIC 2018 holds HAM10000: an image of HAM10000 is named as such, and not as one of ISIC 2018 too.
    """
    found, names = [], _Names(frame)
    taken = np.zeros(len(frame), dtype=bool)
    for known in sorted(KNOWN, key=lambda item: item.images):
        ours = names.members(known) & ~taken
        if ours.any():
            found.append(names.part(known, ours, "holds"))
            taken |= ours
    return sorted(found, key=lambda item: -item.images)


def members(frame: pd.DataFrame, known: Known) -> Flags:
    """Say which rows are proven to be of a known set, by ISIC id, lesion id or file name; all False where it has none.

    frame: manifest column path; isic_id and lesion_id where there are any.
    """
    return _Names(frame).members(known)


def claimed(names: Iterable[str]) -> list[Known]:
    """Return the known sets that names of a data set or its folders claim: "HAM-10000 (copy)" claims HAM10000."""
    plain = [re.sub(r"[\W_]+", "", name.casefold()) for name in names]
    return [known for known in KNOWN if any(re.search(known.names, name) for name in plain)]


def content_sha256(frame: pd.DataFrame) -> str:
    """Return a hash of the files of a set, whatever their names, order and labels; "" where files have no hashes."""
    hashes = frame["file_sha256"] if "file_sha256" in frame else pd.Series([""], dtype=str)
    if not len(hashes) or (hashes == "").any() or hashes.isna().any():
        return ""
    return sha256_bytes("\n".join(sorted(hashes)).encode())


class _Names:
    """The names and ids of the images, read once: a million of them take seconds."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame
        # Files' names without folder and ending.
        names = [path.rpartition("/")[2] for path in frame["path"].tolist()]
        self.stems = [name.rpartition(".")[0] or name for name in names]
        ids = frame["isic_id"].tolist() if "isic_id" in frame else [""] * len(names)
        found = [_ISIC.search(one or stem) for one, stem in zip(ids, self.stems, strict=True)]
        self.isic = np.array([int(match[1]) if match else -1 for match in found], dtype=np.int64)

    def share(self, values: Iterable[str], pattern: str) -> float:
        """Return the share of the known values that are of a pattern; of none at all it is 1."""
        fits = [re.fullmatch(pattern, value) is not None for value in values if value]
        return sum(fits) / len(fits) if fits else 1.0

    def fits(self, known: Known) -> bool:
        """Say whether files, lesions and patients are named as those of the known set."""
        pairs = (("lesion_id", known.lesion_id), ("patient_id", known.patient_id))
        return self.share(self.stems, known.file_name) >= NAMED and all(
            self.share(self.frame[column].tolist(), pattern) >= NAMED
            for column, pattern in pairs
            if pattern and column in self.frame
        )

    def members(self, known: Known) -> Flags:
        """Say which images are proven to be of a known set."""
        ours = np.zeros(len(self.frame), dtype=bool)
        for first, last in known.isic:
            ours |= (self.isic >= first) & (self.isic <= last)
        if known.proof_by_lesion and "lesion_id" in self.frame:
            ours |= self._are(self.frame["lesion_id"].tolist(), known.lesion_id)
        return ours | self._are(self.stems, known.file_name) if known.proof else ours

    def _are(self, values: list[str], pattern: str) -> Flags:
        one = re.compile(pattern)
        return np.array([bool(value) and one.fullmatch(value) is not None for value in values], dtype=bool)

    def part(self, known: Known, ours: Flags, relation: Relation) -> Identity:
        """Count one image of the known set once, though it may stand here several times."""
        numbers = self.isic[ours]
        named = {self.stems[row] for row in np.flatnonzero(ours)[numbers < 0]}
        different = len(np.unique(numbers[numbers >= 0])) + len(named)
        n = int(ours.sum())
        return Identity(known, relation, n, max(known.images - different, 0), len(self.frame) - n)


class _Content:
    """What is compared of a data set, computed once."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame
        names = {str(label): canonical(str(label)) for label in frame["label"].unique()}
        table = frame.groupby(["given_split", "label"]).size().reset_index(name="n")
        self.counts: dict[str, dict[str, int]] = {}
        for side, label, n in table.to_numpy(dtype=object).tolist():
            classes = self.counts.setdefault(side, {})
            classes[names[label]] = classes.get(names[label], 0) + n
        self.sides = {side: sum(classes.values()) for side, classes in self.counts.items()}
        self.totals: dict[str, int] = {}
        for classes in self.counts.values():
            for name, n in classes.items():
                self.totals[name] = self.totals.get(name, 0) + n
        self.names = _Names(frame)
        self.files = content_sha256(frame)

    def compare(self, known: Known) -> Identity | None:
        """Return how the rows and a known set belong together, None where nothing speaks for it."""
        n, wanted = len(self.frame), [_canonical_counts(item) for item in (known.totals, *known.also)]
        if known.files_sha256 and known.files_sha256 == self.files:
            return Identity(known, "copy" if self.totals in wanted else "relabelled", n, 0, 0)
        if known.sides:
            # The classes of each side are not published; those of all sides may not be either.
            right = self.sides == dict(known.sides) and set(self.totals) <= set(wanted[0])
            return Identity(known, "whole", n, 0, 0) if right else None
        if self.counts == {side: _canonical_counts(classes) for side, classes in known.counts.items()}:
            return Identity(known, "whole", n, 0, 0)
        if self.totals in wanted:
            unsplit = len(known.counts) == 1 and len(self.counts) == 1
            return Identity(known, "whole" if unsplit else "divided", n, 0, 0)
        return self._near(known, wanted) or self._part(known)

    def _near(self, known: Known, wanted: list[dict[str, int]]) -> Identity | None:
        """Counts that differ a little prove nothing by themselves: names and ids must fit too."""
        for counts in wanted:
            names = set(counts) | set(self.totals)
            gaps = [counts.get(name, 0) - self.totals.get(name, 0) for name in names]
            missing, extra = sum(gap for gap in gaps if gap > 0), -sum(gap for gap in gaps if gap < 0)
            if missing + extra <= NEARLY * known.images and self.names.fits(known):
                return Identity(known, "nearly", len(self.frame) - extra, missing, extra)
        return None

    def _part(self, known: Known) -> Identity | None:
        ours = self.names.members(known)
        if not len(ours) or ours.mean() < NAMED:
            return None
        found = self.names.part(known, ours, "part")
        few = found.missing + found.extra <= NEARLY * known.images
        return Identity(known, "nearly", found.images, found.missing, found.extra) if few else found


def _canonical_counts(counts: Counts) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, n in counts.items():
        found[canonical(name)] = found.get(canonical(name), 0) + n
    return found
