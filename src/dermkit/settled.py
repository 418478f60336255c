"""What stands in a split's body of metrics.json beside its figures: what was settled, groups of people, other rules."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dermkit.asked import NOTHING, Asked
from dermkit.errors import DataError
from dermkit.metrics.counts import Bools
from dermkit.metrics.decision import Decision, calibrated, covered, decide, judged, point_dict, points_for
from dermkit.metrics.intervals import proportion_estimate
from dermkit.metrics.official import official_dict
from dermkit.metrics.operating import PREVALENCES
from dermkit.metrics.scored import Scored
from dermkit.metrics.subgroups import UNKNOWN, age_band, gaps, subgroups
from dermkit.metrics.summary import summarise
from dermkit.metrics.thresholds import Threshold
from dermkit.predictions import ATTRIBUTES

SETTLES = "validation"
"""The side that calibration, operating points and sets are settled on."""

Points = tuple[tuple[str, Threshold], ...]


@dataclass(frozen=True, eq=False)
class Settled:
    """A model's decision, and operating points beside it that a person asked for; of these the model knows nothing."""

    decision: Decision
    asked: Points = ()

    def as_dict(self) -> dict[str, Any]:
        """Return what decision.json holds; the model folder takes over all but `asked_points`."""
        return {**self.decision.as_dict(), "asked_points": [point_dict(*point) for point in self.asked]}

    def applied(self, scored: Scored) -> Scored:
        """Return the images with calibrated probabilities."""
        return calibrated(scored, self.decision.calibration)


def settle_on(validation: Scored, asked: Asked) -> Settled:
    """Settle everything on validation images; raises `DataError` for a wish that these cannot settle."""
    return with_wishes(decide(validation), validation, asked)


def with_wishes(decision: Decision, validation: Scored, asked: Asked) -> Settled:
    """Return a decision with operating points for what is asked, but for those that it has; raises `DataError`."""
    known = {(rate, point.wish) for rate, point in decision.points}
    wishes = [wish for wish in asked.wishes if wish not in known]
    points = points_for(calibrated(validation, decision.calibration), wishes)
    if len(points) < len(wishes) or (asked.of_decision and not decision.points and not points):
        raise _unsettled(validation, "the last evaluation")
    return Settled(decision, points)


def _missing_side(validation: Scored) -> str:
    if not validation.has_binary_view:
        return "the class table has not two sides, malignant and other"
    side = "malignant" if not validation.is_malignant.any() else "other than malignant"
    return f"no validation image is {side}"


def check_wishes(validation: Scored, asked: Asked, *, kept: str) -> None:
    """Raise `DataError` for a wish that validation images cannot settle, before anything is settled or written."""
    sides = {"sensitivity": validation.is_malignant.any(), "specificity": (~validation.is_malignant).any()}
    both = validation.has_binary_view
    if asked.of_decision and not (both and all(sides[rate] for rate, _ in asked.wishes)):
        raise _unsettled(validation, kept)


def _unsettled(validation: Scored, kept: str) -> DataError:
    return DataError(
        f"an operating point cannot be settled: {_missing_side(validation)}",
        kept=kept, remedy="evaluate without --wish and --prevalence",
    )  # fmt: skip


def check_asked(
    asked: Asked, splits: Collection[str], given: Settled | None = None, *, kept: str = "the last evaluation"
) -> None:
    """Refuse what no validation image is there to settle, or no other image to show; raises `DataError`.

    given: what a model settled before; it serves every prevalence, but no new wish. kept: what the error says of it.
    """
    shown = set(splits) - {"train", SETTLES}
    if given is not None:
        known = {(rate, point.wish) for rate, point in (*given.decision.points, *given.asked)}
        settles = set(asked.wishes) <= known and bool(known)
    else:
        settles = SETTLES in splits and bool(shown)
    if asked.of_decision and not settles:
        raise DataError(
            "operating points are settled on validation images and shown on others; these predictions are of "
            f"{', '.join(sorted(splits))} alone",
            kept=kept,
            remedy="a model on other data: dermkit evaluate RUN --on DATASET --wish ...; a table: a column `split`",
        )


def judged_on(settled: Settled, scored: Scored, *, seed: int, asked: Asked = NOTHING) -> dict[str, Any]:
    """Return how it does on images that had no part in it, at the usual prevalences and those asked for."""
    prevalences = tuple(sorted({*PREVALENCES, *asked.prevalences}))
    return judged(
        settled.decision, scored, summarise=summarise, seed=seed, prevalences=prevalences, asked=settled.asked
    )


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


# Parts of the people ----------------------------------------------------------------------------------------------


def subgroups_of(
    scored: Scored, part: pd.DataFrame, attributes: pd.DataFrame, settled: Settled | None = None
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
