"""What a split's body of metrics.json holds beside its figures: groups of people."""

from typing import Any

import pandas as pd

from dermkit.metrics.scored import Scored
from dermkit.metrics.subgroups import UNKNOWN, age_band, gaps, subgroups
from dermkit.metrics.summary import summarise
from dermkit.predictions import ATTRIBUTES


def subgroups_of(scored: Scored, part: pd.DataFrame, attributes: pd.DataFrame) -> dict[str, Any]:
    """Return the figures by each attribute of which something is known, with the gaps between groups."""
    ids = part.sort_values(["image_id", "fold", "seed"], kind="stable")["image_id"]
    known = attributes.reindex(ids).fillna("")
    found: dict[str, Any] = {}
    for name in ATTRIBUTES:
        values = known[name].tolist()
        labels = [age_band(value) if name == "age" else value or UNKNOWN for value in values]
        if set(labels) <= {UNKNOWN}:
            continue
        parts = subgroups(scored, labels, summarise=summarise)
        found[name] = {
            "groups": [
                {
                    "name": item.name, "n": item.n, "n_groups": item.n_groups, "malignant": item.positives,
                    "too_few": item.too_few,
                    "metrics": {figure: value.as_dict() for figure, value in item.metrics.items()},
                }
                for item in parts
            ],
            "gaps": [
                {"figure": gap.figure, "worst": gap.worst, "best": gap.best, **gap.difference.as_dict()}
                for gap in gaps(parts)
            ],
        }  # fmt: skip
    return found
