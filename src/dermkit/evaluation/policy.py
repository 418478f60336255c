"""What stands in a split's body of metrics.json beside its figures: what was settled, groups of people, other rules."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from dermkit.errors import DataError
from dermkit.evaluation.options import NOTHING, Asked
from dermkit.metrics.classification.scored_set import Scored
from dermkit.metrics.classification.summary import summarise
from dermkit.metrics.decisions.operating_points import PREVALENCES
from dermkit.metrics.decisions.policy import Decision, calibrated, decide, judged, point_dict, points_for
from dermkit.metrics.decisions.thresholds import Threshold

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


# Parts of the people ----------------------------------------------------------------------------------------------
