"""What stands beside the figures of a split: groups of people, and the official scorer."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dermkit.metrics.classification.isic_scorer import official_dict
from dermkit.metrics.classification.scored_set import Scored
from dermkit.metrics.classification.subgroups import UNKNOWN, age_band, gaps, subgroups
from dermkit.metrics.classification.summary import summarise
from dermkit.metrics.decisions.policy import covered
from dermkit.metrics.stats.arrays import Bools
from dermkit.metrics.stats.intervals import proportion_estimate
from dermkit.runs.predictions import ATTRIBUTES

if TYPE_CHECKING:
    from dermkit.evaluation.policy import Settled


def in_order(part: pd.DataFrame) -> pd.DataFrame:
    """Return one split's rows in the order of `scored_of`."""
    return part.sort_values(["image_id", "fold", "seed"], kind="stable")


def official_of(scored: Scored, part: pd.DataFrame, isic_ids: Mapping[str, str] | None) -> dict[str, Any]:
    """Return the figures by the official scorer's rules. isic_ids: by image_id; else names and paths may hold them."""
    rows, known = in_order(part), isic_ids or {}
    names = [
        f"{known.get(name, '')} {name} {path}" for name, path in zip(rows["image_id"], rows["path"], strict=True)
    ]
    return official_dict(scored.classes, scored.true, scored.probabilities, names)


def subgroups_of(
    scored: Scored, part: pd.DataFrame, attributes: pd.DataFrame, settled: "Settled | None" = None
) -> dict[str, Any]:
    """Return the figures by each attribute of which something is known, with the gaps between groups.

    settled: what gives each image its set of classes; each group then says how often these hold the truth.
    """
    known = attributes.reindex(in_order(part)["image_id"]).fillna("")
    held = None if settled is None else covered(settled.decision.rule, settled.applied(scored))
    found: dict[str, Any] = {}
    for name in ATTRIBUTES:
        values = known[name].tolist()
        labels = [age_band(value) if name == "age" else value or UNKNOWN for value in values]
        if set(labels) - {UNKNOWN}:
            found[name] = _by(scored, labels, held)
    return found


def _by(scored: Scored, labels: list[str], held: Bools | None) -> dict[str, Any]:
    parts, of = subgroups(scored, labels, summarise=summarise), np.array(labels, dtype=object)
    groups: list[dict[str, Any]] = [
        {
            "name": item.name, "n": item.n, "n_groups": item.n_groups, "malignant": item.positives,
            "too_few": item.too_few,
            "metrics": {figure: value.as_dict() for figure, value in item.metrics.items()},
        }
        for item in parts
    ]  # fmt: skip
    if held is not None:
        for group in groups:
            rows = np.asarray(of == group["name"], dtype=bool)
            group["coverage"] = proportion_estimate(held[rows], scored.groups[rows]).as_dict()
    between = [
        {"figure": gap.figure, "worst": gap.worst, "best": gap.best, **gap.difference.as_dict()}
        for gap in gaps(parts)
    ]
    return {"groups": groups, "gaps": between}
