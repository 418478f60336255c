"""Data sets for the checks of the audit, made by hand: a table, no image."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermkit.audit.checks.finding import AuditInput, PlannedUse
from dermkit.data.groups import id_groups
from dermkit.data.manifest import MANIFEST_COLUMNS, Dataset, LesionClass, Malignancy

MALIGNANCY: Mapping[str, Malignancy] = {"mel": "malignant", "bcc": "malignant", "akiec": "indeterminate"}


def make_subject(
    label: Sequence[str],
    *,
    manifest: Mapping[str, Any] | None = None,
    split: Sequence[str] | None = None,
    measures: Mapping[str, Any] | None = None,
    pairs: Sequence[tuple[int, int, float]] = (),
    classes: Sequence[str] = (),
    use: PlannedUse = "research",
    notes: Mapping[str, Any] | None = None,
) -> AuditInput:
    """Return an audit input of len(label) images named 0000, 0001, ...; every column that is not given is unknown.

    mel and bcc are malignant, akiec is indeterminate, any other class is benign.
    """
    n = len(label)
    names = [f"{number:04d}" for number in range(n)]
    blank: dict[str, Any] = dict.fromkeys(MANIFEST_COLUMNS, "")
    pixels = [f"{number:064x}" for number in range(n)]
    own = {
        "image_id": names,
        "path": [f"{name}.jpg" for name in names],
        "label": list(label),
        "pixel_sha256": pixels,
    }
    frame = pd.DataFrame({**blank, "width": 600, "height": 450, **own, **(manifest or {})}, index=range(n))
    kinds = tuple(
        LesionClass(name, "", MALIGNANCY.get(name, "benign")) for name in classes or sorted(dict.fromkeys(label))
    )
    dataset = Dataset(Path("data"), Path("images"), "made", kinds, frame, "folder", dict(notes or {}))
    table = pd.DataFrame(list(pairs), columns=["a", "b", "distance"]).assign(kind="exact")
    return AuditInput(
        dataset=dataset,
        frame=frame.assign(split=list(split) if split is not None else ""),
        measures=pd.DataFrame(dict(measures or {}), index=range(n)),
        pairs=table.astype({"a": np.int64, "b": np.int64, "distance": np.float64}),
        group_ids=id_groups(frame),
        use=use,
    )
