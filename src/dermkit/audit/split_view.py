"""The split that is audited: the published one, or a split of the data set, which may leak."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from dermkit.audit.status import split_sha256
from dermkit.data.manifest import Dataset
from dermkit.data.split_file import read_split_rows
from dermkit.errors import UsageError

PUBLISHED_SPLIT = "given_split"
"""The name of the published split, which is a column of the manifest."""


@dataclass(frozen=True, eq=False)
class AuditedSplit:
    """A split's name ("" = none) and its rows: image_id, split, fold (-1 outside k folds)."""

    name: str
    frame: pd.DataFrame

    @property
    def sha256(self) -> str:
        """The hash of which image is in which split; it does not depend on the name."""
        return split_sha256(self.frame)

    def names_for(self, manifest: pd.DataFrame) -> "pd.Series[str]":
        """Return each manifest row's split: "" = none, else train, validation, test or `fold 0` ..."""
        fold = self.frame["fold"].astype(str)
        split_names = self.frame["split"].where(self.frame["split"] != "fold", "fold " + fold)
        name_by_id = dict(zip(self.frame["image_id"], split_names, strict=True))
        return pd.Series([name_by_id.get(name, "") for name in manifest["image_id"]], dtype=str)

    def restricted_to(self, manifest: pd.DataFrame) -> "AuditedSplit":
        """Return the split with the images of a manifest alone."""
        return AuditedSplit(self.name, self.frame[self.frame["image_id"].isin(manifest["image_id"])])


def read_audited_split(dataset: Dataset, split: str | Path | None) -> AuditedSplit:
    """Return the split of that name or file; without one the published split.

    Leaks and empty splits are accepted here: finding them is the audit's task. Raises `UsageError` if there is no such
    split, `DataError` if it does not fit the manifest.
    """
    if split is None:
        manifest = dataset.manifest
        published_rows = manifest[manifest["given_split"] != ""]
        frame = pd.DataFrame(
            {"image_id": published_rows["image_id"], "split": published_rows["given_split"], "fold": np.int64(-1)}
        )
        return AuditedSplit(PUBLISHED_SPLIT if len(published_rows) else "", frame.reset_index(drop=True))
    folder = dataset.folder / "splits"
    path = Path(split) if str(split).endswith(".csv") else folder / f"{split}.csv"
    if not path.is_file():
        available = sorted(
            split_file.stem for split_file in folder.glob("*.csv") if not split_file.stem.endswith(".excluded")
        )
        raise UsageError(
            f"{path}: there is no such split",
            remedy=f"splits there: {', '.join(available) or 'none'}; without --split the published one is audited",
        )
    return AuditedSplit(path.stem, read_split_rows(path, dataset.manifest, require_all_splits=False)[0])
