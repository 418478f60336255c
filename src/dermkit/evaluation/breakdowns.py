"""Further metrics of a split: by age, sex, site and skin type, and by the rules of the official ISIC scorer."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from dermkit.metrics.classification.isic_scorer import official_dict
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.classification.subgroups import UNKNOWN_GROUP, age_band, subgroup_gaps, subgroup_metrics
from dermkit.metrics.classification.summary import evaluate_split
from dermkit.metrics.stats.arrays import Bools
from dermkit.metrics.stats.intervals import proportion_estimate
from dermkit.runs.predictions import ATTRIBUTES


def sort_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one split's rows in the order of `runs.predictions.to_scored_set`."""
    return rows.sort_values(["image_id", "fold", "seed"], kind="stable")


def official_metrics(
    scored_set: ScoredSet, rows: pd.DataFrame, isic_ids: Mapping[str, str] | None
) -> dict[str, Any]:
    """Return the metrics by the official scorer's rules. isic_ids: by image_id; None: looked for in names and paths."""
    sorted_rows, isic_id_of = sort_rows(rows), isic_ids or {}
    names = [
        f"{isic_id_of.get(name, '')} {name} {path}"
        for name, path in zip(sorted_rows["image_id"], sorted_rows["path"], strict=True)
    ]
    return official_dict(scored_set.classes, scored_set.y_true, scored_set.probabilities, names)


def subgroups_by_attribute(
    scored_set: ScoredSet, rows: pd.DataFrame, attributes: pd.DataFrame, is_covered: Bools | None = None
) -> dict[str, Any]:
    """Return the metrics of the subgroups of each attribute that is known of some image, with the gaps between them.

    is_covered: (N,) if given, each group also gets the coverage of the prediction sets.
    """
    row_attributes = attributes.reindex(sort_rows(rows)["image_id"]).fillna("")
    metrics_by_attribute: dict[str, Any] = {}
    for attribute in ATTRIBUTES:
        values = row_attributes[attribute].tolist()
        labels = [age_band(value) if attribute == "age" else value or UNKNOWN_GROUP for value in values]
        if set(labels) - {UNKNOWN_GROUP}:
            metrics_by_attribute[attribute] = _attribute_metrics(scored_set, labels, is_covered)
    return metrics_by_attribute


def _attribute_metrics(scored_set: ScoredSet, labels: list[str], is_covered: Bools | None) -> dict[str, Any]:
    subgroup_list, label_array = (
        subgroup_metrics(scored_set, labels, evaluate_split=evaluate_split),
        np.array(labels, dtype=object),
    )
    groups: list[dict[str, Any]] = [
        {
            "name": subgroup.name, "n": subgroup.n, "n_groups": subgroup.n_groups, "n_malignant": subgroup.n_malignant,
            "too_few": subgroup.too_few_reason,
            "metrics": {metric: estimate.as_dict() for metric, estimate in subgroup.metrics.items()},
        }
        for subgroup in subgroup_list
    ]  # fmt: skip
    if is_covered is not None:
        for group in groups:
            in_group = np.asarray(label_array == group["name"], dtype=bool)
            group["coverage"] = proportion_estimate(is_covered[in_group], scored_set.groups[in_group]).as_dict()
    gap_rows = [
        {"metric": gap.metric, "worst": gap.worst_group, "best": gap.best_group, **gap.difference.as_dict()}
        for gap in subgroup_gaps(subgroup_list)
    ]
    return {"groups": groups, "gaps": gap_rows}
