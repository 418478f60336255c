"""A small data set with planted faults, and stand-ins for the scan and the checks, for the tests of the outputs.

The checks here count what is planted, straight from the manifest and the planting list, so that what the outputs say
can be compared with it; the real checks have tests of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from dermkit.audit.checks.finding import (
    AuditInput,
    Finding,
    NotApplicable,
    Outcome,
    Severity,
    image_table,
    images_per_class,
    pair_table,
)
from dermkit.audit.run import ImageScanner, ScanResult
from dermkit.data.diagnoses import classify_label
from dermkit.data.manifest import MANIFEST_COLUMNS, Dataset, load_dataset, save_dataset
from dermkit.images.decode import open_image
from dermkit.progress import Progress

HOSTILE = '"><img src=x onerror=alert(1)>'
"""A file name that would be an element, were it not escaped."""


@dataclass(frozen=True)
class Near:
    """A planted near copy: two paths without ending, and how the second was made from the first."""

    first: str
    second: str
    kind: str = "resized"


def picture(seed: int, size: int = 40) -> Image.Image:
    """Return a made picture of blobs; another seed gives another picture."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(60, 220, (5, 5, 3), dtype=np.uint8))
    return small.resize((size, size), Image.Resampling.BICUBIC)


def draw(root: Path, files: dict[str, int]) -> Path:
    """Write a picture per path and seed; equal seeds give equal pixels."""
    for name, seed in files.items():
        path = root / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(path)
    return root


def make(folder: Path, files: dict[str, int], **columns: dict[str, str]) -> Dataset:
    """Write pictures (SPLIT/CLASS/NAME -> seed) and their manifest. columns: column -> path without ending -> value."""
    draw(folder / "images", files)
    rows = []
    for name in sorted(files):
        image = open_image(folder / "images" / f"{name}.png")
        side, label, _ = name.split("/")
        facts = {
            "image_id": name, "path": f"{name}.png", "label": label, "given_split": side.strip("-"),
            "pixel_sha256": image.pixel_sha256, "file_sha256": image.file_sha256, "width": image.pixels.shape[1],
            "height": image.pixels.shape[0],
        }  # fmt: skip
        rows.append(
            dict.fromkeys(MANIFEST_COLUMNS, "") | facts | {key: of.get(name, "") for key, of in columns.items()}
        )
    frame = pd.DataFrame(rows)[list(MANIFEST_COLUMNS)]
    classes = tuple(classify_label(label) for label in sorted(set(frame["label"])))
    save_dataset(Dataset(folder / "data", folder / "images", "planted", classes, frame, "folder"))
    return load_dataset(folder / "data")


def looking(near: Sequence[Near] = ()) -> ImageScanner:
    """Return a scan that knows the identical pixels from the manifest and the near copies from the list."""

    def look(dataset: Dataset, _watch: Progress) -> ScanResult:
        frame = dataset.manifest
        row = {name: number for number, name in enumerate(frame["image_id"])}
        pairs = []
        for rows in frame.groupby("pixel_sha256").indices.values():
            pairs += [(int(a), int(b), 0.0, "exact") for a, b in pairwise(rows)]
        for number, item in enumerate(near):
            if item.first in row and item.second in row:
                a, b = sorted((row[item.first], row[item.second]))
                pairs.append((a, b, 0.01 + number / 1000, item.kind))
        measures = pd.DataFrame({"brightness": np.linspace(1, 200, len(frame))})
        return ScanResult(measures, pd.DataFrame(pairs, columns=["a", "b", "distance", "kind"]))

    return look


def _pairs(audit_input: AuditInput, which: "pd.Series[bool]", severity: Severity, what: str) -> Outcome:
    pairs = audit_input.pairs[which]
    if pairs.empty:
        return None
    rows = np.unique(pairs[["a", "b"]].to_numpy())
    return Finding(
        severity=severity, n=len(rows), sentence=f"{len(rows)} of {len(audit_input.frame)} images are {what}.",
        rows=pair_table(audit_input, pairs), kind="pairs", per_class=images_per_class(audit_input, rows),
        figures={"pairs": len(pairs), "share": np.float64(len(rows) / len(audit_input.frame)), "odd": float("nan")},
    )  # fmt: skip


def _ends(audit_input: AuditInput, column: str) -> "pd.Series[bool]":
    """Say of each pair whether its ends differ in a column, both known."""
    values = audit_input.frame[column].to_numpy()
    a, b = values[audit_input.pairs["a"].to_numpy(int)], values[audit_input.pairs["b"].to_numpy(int)]
    return pd.Series((a != b) & (a != "") & (b != ""), index=audit_input.pairs.index)


def da011_contradictory_copies(audit_input: AuditInput) -> Outcome:
    """Exact copies with contradictory labels

    Threshold: identical decoded pixels under two labels.

    Severity: error.

    Effect: no model can be right on both.
    """
    exact = audit_input.pairs["kind"] == "exact"
    return _pairs(audit_input, exact & _ends(audit_input, "label"), Severity.ERROR, "contradicted")


def da012_copies_across(audit_input: AuditInput) -> Outcome:
    """Exact copies across splits

    Threshold: identical decoded pixels in two splits.

    Severity: error.

    Effect: the test figure counts pictures that were learned by heart.
    """
    if not audit_input.has_split:
        return NotApplicable("no image is on a side of a split")
    exact = audit_input.pairs["kind"] == "exact"
    return _pairs(audit_input, exact & _ends(audit_input, "split"), Severity.ERROR, "on two sides")


def da014_near_contradictory(audit_input: AuditInput) -> Outcome:
    """Near copies with contradictory labels

    Threshold: a distance below 0.1 and two labels.

    Severity: error.

    Effect: as DA011.
    """
    near = audit_input.pairs["kind"] != "exact"
    return _pairs(audit_input, near & _ends(audit_input, "label"), Severity.ERROR, "near copies, contradicted")


def da015_near_across(audit_input: AuditInput) -> Outcome:
    """Near copies across splits

    Threshold: a distance below 0.1, on two sides.

    Severity: error.

    Effect: as DA012.
    """
    if not audit_input.has_split:
        return NotApplicable("no image is on a side of a split")
    near = audit_input.pairs["kind"] != "exact"
    return _pairs(audit_input, near & _ends(audit_input, "split"), Severity.ERROR, "near copies on two sides")


def da020_lesions_across(audit_input: AuditInput) -> Outcome:
    """Lesions across splits

    Threshold: one lesion on two sides.

    Severity: error.

    Effect: the test figure is that of lesions seen before.
    """
    frame = audit_input.frame[(audit_input.frame["lesion_id"] != "") & (audit_input.frame["split"] != "")]
    across = frame.groupby("lesion_id")["split"].transform("nunique") > 1
    rows = frame.index[across].to_numpy()
    if not len(rows):
        return None
    return Finding(
        severity=Severity.ERROR, n=len(rows), sentence=f"{len(rows)} images.", rows=image_table(audit_input, rows)
    )


def da022_lesion_labels(audit_input: AuditInput) -> Outcome:
    """Labels inconsistent within a lesion

    Threshold: one lesion, two labels.

    Severity: error.

    Effect: one of the labels is wrong.
    """
    known = audit_input.frame[audit_input.frame["lesion_id"] != ""]
    rows = known.index[known.groupby("lesion_id")["label"].transform("nunique") > 1].to_numpy()
    if not len(rows):
        return None
    return Finding(
        severity=Severity.ERROR, n=len(rows), sentence=f"{len(rows)} images.", rows=image_table(audit_input, rows)
    )


def da004_dark(audit_input: AuditInput) -> Outcome:
    """Dark images

    Threshold: mean brightness below 20.

    Severity: warning.

    Effect: what cannot be seen cannot be judged.
    """
    dark = audit_input.measures["brightness"].to_numpy() < 20
    if not dark.any():
        return None
    return Finding(
        severity=Severity.WARNING, n=int(dark.sum()), sentence=f"{dark.sum()} images are dark.",
        rows=image_table(audit_input, dark, brightness=audit_input.measures.loc[dark, "brightness"].to_numpy()),
        per_class=images_per_class(audit_input, dark),
    )  # fmt: skip


def da030_small_classes(audit_input: AuditInput) -> Outcome:
    """Small classes

    Threshold: fewer than 30 images.

    Severity: note.

    Effect: its interval is wide.
    """
    counts = audit_input.frame["label"].value_counts().sort_index()
    table = pd.DataFrame({"class": counts.index, "images": counts.to_numpy(), "width": [np.nan] * len(counts)})
    return Finding(
        severity=Severity.NOTE, n=int(counts.sum()), sentence="Classes are small.", rows=table, kind="table"
    )


def da040_file_size(_subject: AuditInput) -> Outcome:
    """File size predicts the class

    Threshold: AUROC above 0.60.

    Severity: note.

    Effect: a model may read the file size.
    """
    return NotApplicable("file sizes were not measured")


CHECKS = (
    da004_dark, da011_contradictory_copies, da012_copies_across, da014_near_contradictory, da015_near_across,
    da020_lesions_across, da022_lesion_labels, da030_small_classes, da040_file_size,
)  # fmt: skip
