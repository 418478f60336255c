"""What is known of a data set before anything is trained on it: sizes, classes, groups, audit, metadata.

Test images that were published apart are counted, and nothing else about them is looked at.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dermkit.audit.status import audit_state
from dermkit.data.groups import leakage_groups
from dermkit.data.manifest import Dataset
from dermkit.data.unknown import known_ids

_METADATA_COLUMNS = ("age", "sex", "site", "skin_type")


@dataclass(frozen=True)
class DatasetProfile:
    """A data set in figures. Those of classes, groups, sizes and metadata are of the images outside a published test.

    n_training, n_test: images outside and inside the published test split. groups_per_class: groups of lesion,
    patient and copies. median_side: pixels of the shorter side. known_metadata: column -> fraction of images with a
    value. audit: state (never, outdated, done) and the codes of errors and warnings that nobody accepted.
    """

    name: str
    n_training: int
    n_test: int
    class_counts: Mapping[str, int]
    groups_per_class: Mapping[str, int]
    n_groups: int
    n_with_lesion_or_patient: int
    n_copies: int
    median_side: int
    known_metadata: Mapping[str, float]
    malignant_classes: tuple[str, ...]
    audit: Mapping[str, Any]

    @property
    def smallest_class(self) -> str:
        """The class with the fewest groups, the first of equals."""
        return min(self.groups_per_class, key=lambda name: self.groups_per_class[name])

    @property
    def imbalance(self) -> float:
        """Images of the largest class for each of the smallest."""
        return max(self.class_counts.values()) / max(min(self.class_counts.values()), 1)

    @property
    def has_published_test(self) -> bool:
        """Whether some images were published as test images."""
        return self.n_test > 0


def profile_dataset(dataset: Dataset) -> DatasetProfile:
    """Return the figures of a data set; reads its manifest and its audit, and no image."""
    manifest = dataset.manifest
    is_test = manifest["given_split"] == "test"
    rows = manifest[~is_test].reset_index(drop=True)
    groups = leakage_groups(rows)
    sides = np.minimum(rows["width"].to_numpy(), rows["height"].to_numpy())
    is_known = (known_ids(rows["lesion_id"]) != "") | (known_ids(rows["patient_id"]) != "")
    return DatasetProfile(
        name=dataset.name,
        n_training=len(rows),
        n_test=int(is_test.sum()),
        class_counts={name: int((rows["label"] == name).sum()) for name in dataset.class_names},
        groups_per_class={
            name: len(np.unique(groups[(rows["label"] == name).to_numpy()])) for name in dataset.class_names
        },
        n_groups=len(np.unique(groups)),
        n_with_lesion_or_patient=int(is_known.sum()),
        n_copies=int(rows["pixel_sha256"].duplicated().sum()),
        median_side=int(np.median(sides)) if len(sides) else 0,
        known_metadata=_known_metadata(rows),
        malignant_classes=dataset.malignant_classes,
        audit=_audit_summary(dataset),
    )


def _known_metadata(rows: pd.DataFrame) -> dict[str, float]:
    fractions = {column: float((rows[column] != "").mean()) for column in _METADATA_COLUMNS if len(rows)}
    return {column: fraction for column, fraction in fractions.items() if fraction > 0.0}


def _audit_summary(dataset: Dataset) -> dict[str, Any]:
    state = audit_state(dataset, None)
    return {
        "state": state["state"],
        "errors": [finding["code"] for finding in state["errors"]],
        "warnings": [finding["code"] for finding in state["warnings"]],
    }
