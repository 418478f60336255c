"""Which images of a run get heat maps: the mistakes that cost most, and the best hits. Without torch.

Shapes: N rows of predictions.csv, K classes.
"""

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dermkit.runs.predictions import ScoredImage, class_indices, probabilities_of

MAX_MISTAKES, MAX_HITS = 6, 3
"""Images with a heat map in a report. Chosen: one row of a page, and a few seconds of a processor for a small net."""


@dataclass(frozen=True)
class RunImage(ScoredImage):
    """A row of predictions.csv whose answer gets a heat map.

    is_mistake: else the answer is right. is_missed: a malignant lesion that was called something else. seed, fold:
    which net scored it, "" where the table does not say.
    """

    is_missed: bool
    seed: str
    fold: str

    @property
    def is_mistake(self) -> bool:
        """Whether the answer is wrong."""
        return self.label != self.predicted


def choose_run_images(
    rows: pd.DataFrame, class_names: Sequence[str], malignant: Collection[str], groups: Mapping[str, int] | None
) -> list[RunImage]:
    """Return the images of one split that get heat maps, mistakes first; at most one of each group (lesion, patient).

    rows: of predictions.csv, N. Mistakes: malignant lesions called something else first, then the surest. Hits: the
    surest of each class before a second one of any, malignant classes first. malignant: names of classes. groups:
    image_id -> group, None = every image is its own.
    """
    images = [_run_image(row, malignant) for row in _with_probabilities(rows, class_names).to_dict("records")]
    mistakes = [image for image in images if image.is_mistake]
    mistakes.sort(key=lambda one: (not one.is_missed, -one.p_predicted, one.p_label, one.image_id))
    hits = [image for image in images if not image.is_mistake]
    hits.sort(key=lambda one: (-one.p_predicted, one.image_id))
    mistakes_of_groups = _one_of_a_group(mistakes, groups, MAX_MISTAKES)
    hits = _one_of_a_group([*mistakes_of_groups, *hits], groups, len(images))[len(mistakes_of_groups) :]
    ranks = _ranks_in_class(hits)
    hits.sort(key=lambda one: (ranks[one.image_id], one.label not in malignant))
    return [*mistakes_of_groups, *hits[:MAX_HITS]]


def _with_probabilities(rows: pd.DataFrame, class_names: Sequence[str]) -> pd.DataFrame:
    p, numbers = probabilities_of(rows, class_names), np.arange(len(rows))
    return rows[["image_id", "path", "label", "predicted", "seed", "fold"]].assign(
        p_predicted=p[numbers, class_indices(rows["predicted"], class_names)],
        p_label=p[numbers, class_indices(rows["label"], class_names)],
    )


def _run_image(row: Mapping[Hashable, Any], malignant: Collection[str]) -> RunImage:
    fields = {name: str(row[name]) for name in ("image_id", "path", "label", "predicted", "seed", "fold")}
    return RunImage(
        **fields, p_predicted=float(row["p_predicted"]), p_label=float(row["p_label"]),
        is_missed=row["label"] in malignant and row["predicted"] not in malignant,
    )  # fmt: skip


def _one_of_a_group(images: Sequence[RunImage], groups: Mapping[str, int] | None, limit: int) -> list[RunImage]:
    """Return the first image of each group: two photographs of a lesion say the same."""
    first_of_group: dict[object, RunImage] = {}
    for image in images:
        first_of_group.setdefault((groups or {}).get(image.image_id, image.image_id), image)
    return list(first_of_group.values())[:limit]


def _ranks_in_class(images: Sequence[RunImage]) -> dict[str, int]:
    """Return how many images of its class stand before each image."""
    counts: dict[str, int] = {}
    ranks = {}
    for image in images:
        ranks[image.image_id] = counts.get(image.label, 0)
        counts[image.label] = ranks[image.image_id] + 1
    return ranks
