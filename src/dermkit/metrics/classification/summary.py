"""All figures of one split at once, each with its interval and how that was made: what metrics.json holds per split.

Classes against rest are columns 0 to K - 1 of one array; the malignant classes together against the rest are
column K, so that the binary figures and the per-class ones are the same code.

`NAME_macro` is the mean over all classes and undefined as soon as one class is; `NAME_macro_present` is the mean
over the classes for which the figure is defined and names the others. `balanced_accuracy` is `recall_macro`.
Without a suffix, precision (ppv), recall (sensitivity), f1, specificity, npv, mcc, auroc and average_precision are
those of the malignant classes: their summed probability is the score, and an image is called positive if its
predicted class is malignant. `mcc_multiclass` and `kappa` are of all classes at once.

Intervals: proportions by Wilson or Clopper-Pearson, of grouped images as of so many independent ones; means of class
recalls from the intervals of each; AUROC by DeLong's variance on the logit; slope and intercept of
calibration by Wald on a sandwich variance; everything else by bootstrap over groups, bias-corrected and accelerated.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dermkit.metrics.classification import confusion
from dermkit.metrics.classification.calibration import recalibration
from dermkit.metrics.classification.scored_set import Scored
from dermkit.metrics.classification.vectorised import TOP, Figures, Plan
from dermkit.metrics.stats import delong, intervals
from dermkit.metrics.stats.arrays import Bools, Floats
from dermkit.metrics.stats.bootstrap import Resampled
from dermkit.metrics.stats.estimate import UNRELIABLE, Estimate, doubted, undefined
from dermkit.metrics.stats.fold_auroc import placed

SYNONYMS = {"sensitivity": "recall", "ppv": "precision"}
HOPEFUL = (
    ("ece", "bins make it too large by chance"),
    ("sensitivity_at_", "the threshold was chosen on these images"),
    ("specificity_at_", "the threshold was chosen on these images"),
)
"""Figures, by how their names begin, that are off in a sample by more than the bootstrap sees; and why."""

FEW_RESAMPLED, FEW_WRONG, FEW_AT_THE_END = 50, 10, 200
"""Units that an interval by bootstrap needs: in all, of those called wrong (or right), and of a class for the end of
its ROC curve. With fewer it held the truth of some figures in 85 to 94 % of test sets (benchmarks/coverage.md)."""

PROPORTIONS = ("precision", "recall", "specificity", "npv")
AUROC_METHOD = "DeLong on the logit, t"
PERFECT_METHOD = "score interval, Hanley and McNeil's variance"
MEAN_METHOD = "mean of independent proportions"
WALD = "maximum likelihood, Wald"


def summarise(
    scored: Scored, *, seed: int, ranked: bool = True, resamples: int = intervals.RESAMPLES
) -> dict[str, Any]:
    """Return one split's body of metrics.json: n, n_groups, metrics, per_class, confusion_matrix.

    ranked: False leaves out what needs an order of scores. The same seed and images give the same intervals.
    resamples: 0 leaves figures without interval that have none but by bootstrap.
    """
    return _Summary(scored, seed=seed, ranked=ranked, resamples=resamples).body()


def _arrays(figures: Figures) -> dict[str, Floats]:
    return figures.overall | figures.binary | {f"view {name}": values for name, values in figures.views.items()}


class _Summary:
    """The point figures, the resampled ones, and the rules that make estimates of them."""

    def __init__(self, scored: Scored, *, seed: int, ranked: bool, resamples: int) -> None:
        self.scored = scored
        plan = Plan(scored, ranked=ranked)
        self.point = plan.point
        self._views: dict[tuple[str, int], Estimate] = {}
        self._drawn_doubts: dict[int | None, list[str]] = {}
        self.drawn = Resampled(
            scored.units, figures=lambda weights: _arrays(plan.resampled(weights)),
            without_each=lambda rows: _arrays(plan.without_each(rows)),
            name=f"bootstrap by {'image' if scored.independent else 'group'}", seed=seed, resamples=resamples,
        )  # fmt: skip

    def body(self) -> dict[str, Any]:
        k = len(self.scored.classes)
        metrics = dict(self._overall()) | dict(self._macro()) | dict(self._binary())
        per_class = {
            name: {"n": int((self.scored.true == i).sum())}
            | {view: self._view(view, i).as_dict() for view in self.point.views}
            for i, name in enumerate(self.scored.classes)
        }
        return {
            "n": len(self.scored.true),
            "n_groups": self.scored.units,
            "metrics": {name: estimate.as_dict() for name, estimate in metrics.items()},
            "per_class": per_class,
            "confusion_matrix": confusion.confusion_matrix(self.scored.true, self.scored.predicted, k).tolist(),
        }

    # Of all classes at once

    def _overall(self) -> Iterator[tuple[str, Estimate]]:
        n = len(self.scored.true)
        hits = {"accuracy": self.scored.predicted == self.scored.true} | self._tops()
        for name, values in self.point.overall.items():
            value = float(values[0])
            if name in hits:
                yield name, self._proportion(hits[name], np.ones(n, dtype=bool))
            elif np.isnan(value):
                yield name, undefined(n, "all images are of one class, or all were called one")
            else:
                yield name, doubted(self._bootstrap(name, value, n), self._few_drawn())

    def _tops(self) -> dict[str, Bools]:
        return {f"top_{most}_accuracy": self.scored.place_of_true < most for most in TOP}

    def _macro(self) -> Iterator[tuple[str, Estimate]]:
        for view, values in self.point.views.items():
            per_class = values[0, :-1]
            absent = [name for name, gone in zip(self.scored.classes, np.isnan(per_class), strict=True) if gone]
            strict, present = (
                self._mean_over(view, absent, strict=True),
                self._mean_over(view, absent, strict=False),
            )
            yield f"{view}_macro", strict
            yield f"{view}_macro_present", present
            if view == "recall":
                yield "balanced_accuracy", strict

    def _mean_over(self, view: str, absent: list[str], *, strict: bool) -> Estimate:
        n, k = len(self.scored.true), len(self.scored.classes)
        named = ", ".join(absent)
        if strict and absent:
            return undefined(n, f"{view} is undefined for: {named}; {view}_macro_present leaves them out")
        defined = ~np.isnan(self.point.views[view][0, :k])
        if not defined.any():
            return undefined(n, f"{view} is undefined for every class")
        estimate = self._mean(view, np.flatnonzero(defined))
        note = f"mean over {int(defined.sum())} of {k} classes, without: {named}" if absent else ""
        reason = "; ".join(part for part in (note, estimate.reason) if part)
        made = Estimate(estimate.value, estimate.ci95, n, estimate.method, reason)
        drawn = [] if view == "recall" else self._few_drawn()
        return doubted(made, [*self._rare_classes(np.flatnonzero(defined)), *drawn])

    def _rare_classes(self, columns: NDArray[np.intp]) -> list[str]:
        """Return why an interval of a mean over classes is not relied on: some have too few independent units."""
        rare = int(self._is_rare[columns].sum())
        told = f"{UNRELIABLE}: {rare} of {len(columns)} classes have fewer than {intervals.FEW} units"
        return [told] if rare else []

    @cached_property
    def _is_rare(self) -> Bools:
        """Which classes have too few independent units, (K,)."""
        true, k = self.scored.true, len(self.scored.classes)
        return np.array([self.scored.units_in(true == name) < intervals.FEW for name in range(k)], dtype=bool)

    def _mean(self, view: str, columns: NDArray[np.intp]) -> Estimate:
        n, values = len(self.scored.true), self.point.views[view][0, columns]
        if view == "recall":  # the classes' images are others, so their recalls are independent
            parts = [self._view(view, int(column)) for column in columns]
            bounds = [part.ci95 for part in parts if part.ci95 is not None]
            if len(bounds) < len(parts):
                return Estimate(float(values.mean()), None, n, "none", "no interval: a class has one group only")
            ci95 = intervals.mean_of_proportions(values, bounds)
            near = sum(intervals.NEAR_THE_END in part.reason for part in parts)
            told = f"{UNRELIABLE}: {near} of {len(parts)} recalls are {intervals.NEAR_THE_END}"
            return doubted(Estimate(float(values.mean()), ci95, n, MEAN_METHOD), [told] if near else [])
        return self.drawn.estimate(
            float(values.mean()), n, *(_mean_of(found, f"view {view}", columns) for found in self._found())
        )

    def _found(self) -> tuple[dict[str, Floats], dict[str, Floats]]:
        return self.drawn.samples, self.drawn.left_out

    # Of one class, or of the malignant ones, against the rest

    def _binary(self) -> Iterator[tuple[str, Estimate]]:
        k = len(self.scored.classes)
        binary = {view: self._view(view, k) for view in self.point.views}
        yield from (binary | {name: binary[view] for name, view in SYNONYMS.items()}).items()
        n, positives = len(self.scored.true), int(self.scored.is_malignant.sum())
        sides, end = self._few_sides(k), self._few_sides(k, needed=FEW_AT_THE_END)
        for name, values in self.point.binary.items():
            value = float(values[0])
            missing = self._not_two_sides() or self._why_one_side(positives)
            made = undefined(n, missing) if np.isnan(value) else self._bootstrap(name, value, n)
            yield name, doubted(made, [*(end if name.startswith("pauc_") else sides), *self._few_drawn(k)])
        few = [*sides, *self._few_drawn(k)]
        yield from ((name, doubted(made, few)) for name, made in self._calibration(positives))

    def _calibration(self, positives: int) -> Iterator[tuple[str, Estimate]]:
        n, missing = len(self.scored.true), self._not_two_sides() or self._why_one_side(positives)
        if missing:
            yield from ((name, undefined(n, missing)) for name in ("calibration_slope", "calibration_intercept"))
            return
        found = recalibration(self.scored.p_malignant, self.scored.is_malignant, self.scored.groups)
        yield (
            "calibration_slope",
            _wald(
                found.slope,
                found.slope_variance,
                n,
                "a threshold parts the sides, or all odds are equal: the best slope is no number",
            ),
        )
        yield (
            "calibration_intercept",
            _wald(found.intercept, found.intercept_variance, n, "all probabilities are 0 or 1, and right"),
        )

    def _view(self, view: str, column: int) -> Estimate:
        """Return one figure of one class against the rest, or of the malignant classes (column K)."""
        if (view, column) not in self._views:
            self._views[view, column] = self._made(view, column)
        return self._views[view, column]

    def _made(self, view: str, column: int) -> Estimate:
        of_it, called = self._sides(column)
        rows, hit = {
            "precision": (called, of_it), "recall": (of_it, called),
            "specificity": (~of_it, ~called), "npv": (~called, ~of_it),
        }.get(view, (np.ones(len(of_it), dtype=bool), of_it))  # fmt: skip
        n = int((of_it | called).sum() if view == "f1" else rows.sum())
        value = float(self.point.views[view][0, column])
        if column == len(self.scored.classes) and self._not_two_sides():
            return undefined(n, self._not_two_sides())
        if np.isnan(value):
            return undefined(n, self._why(view, column, positives=int(of_it.sum())))
        if view in PROPORTIONS:
            return self._proportion(hit, rows)
        if view == "auroc":
            return doubted(
                self._auroc(value, column, of_it), self._few_sides(column) or self._near_the_end(value, of_it)
            )
        samples, left_out = (_column(found, f"view {view}", column) for found in self._found())
        few = [*self._few_sides(column), *self._few_drawn(column)]
        return doubted(self.drawn.estimate(value, n, samples, left_out), few)

    def _few_sides(self, column: int, *, needed: int = intervals.FEW) -> list[str]:
        """Return why an interval of a figure of both sides is not relied on: too few units of a class, or beside it.

        needed: of the class; beside it the usual number is enough.
        """
        of_it = self._sides(column)[0]
        return [
            *intervals.few(self.scored.units_in(of_it), needed=needed),
            *intervals.few(self.scored.units_in(~of_it), "other "),
        ]

    def _few_drawn(self, column: int | None = None) -> list[str]:
        """Return why a bootstrap is not relied on: too few units in all, or called wrongly, or rightly.

        column: of that class, or malignant, against the rest; without one, of all classes at once.
        """
        if column not in self._drawn_doubts:
            of_it, called = (self.scored.true, self.scored.predicted) if column is None else self._sides(column)
            right = np.asarray(of_it == called, dtype=bool)
            self._drawn_doubts[column] = (
                intervals.few(self.scored.units, needed=FEW_RESAMPLED)
                or intervals.few(self.scored.units_in(~right), "wrongly called ", needed=FEW_WRONG)
                or intervals.few(self.scored.units_in(right), "rightly called ", needed=FEW_WRONG)
            )
        return self._drawn_doubts[column]

    def _near_the_end(self, value: float, of_it: Bools) -> list[str]:
        """Return why the interval of an AUROC is not relied on: hardly a unit's worth is misplaced."""
        rarer = min(self.scored.units_in(of_it), self.scored.units_in(~of_it))
        near = min(value, 1 - value) * rarer < intervals.SELDOM
        return [f"{UNRELIABLE}: of {rarer} units, {intervals.NEAR_THE_END}"] if near else []

    def _sides(self, column: int) -> tuple[Bools, Bools]:
        """Return which images are of the class, or malignant, and which were called it."""
        true, predicted = self.scored.true, self.scored.predicted
        if column < len(self.scored.classes):
            return true == column, predicted == column
        return self.scored.is_malignant, self.scored.malignant[predicted]

    def _auroc(self, value: float, column: int, of_it: Bools) -> Estimate:
        last = column == len(self.scored.classes)
        score = self.scored.p_malignant if last else self.scored.probabilities[:, column]
        n, units = len(score), self.scored.groups
        if self.scored.units == 1:
            return Estimate(value, None, n, "none", intervals.ONE_GROUP)
        ci95 = delong.auroc_interval(score, of_it, units)
        if ci95 is not None:
            return Estimate(value, ci95, n, AUROC_METHOD)
        # Where no image is out of order, further images of a unit say nothing: one of each unit and side counts.
        once = np.unique(np.column_stack([units, of_it]), axis=0, return_index=True)[1]
        alone, everywhere = np.arange(len(once)), np.zeros(len(once), dtype=np.int64)
        perfect = placed(score[once], of_it[once], units=alone, fold=everywhere)
        return Estimate(value, perfect.interval(), n, PERFECT_METHOD)

    def _not_two_sides(self) -> str:
        if self.scored.has_binary_view:
            return ""
        count = "every" if self.scored.malignant.any() else "no"
        return f"{count} class is malignant in the class table, so there are not two sides"

    def _why_one_side(self, positives: int) -> str:
        if 0 < positives < len(self.scored.true):
            return ""
        return "no image of a malignant class" if positives == 0 else "every image is of a malignant class"

    def _why(self, view: str, column: int, *, positives: int) -> str:
        names = self.scored.classes
        what = names[column] if column < len(names) else "a malignant class"
        if positives == 0:
            return f"no image of {what}"
        if positives == len(self.scored.true) and view != "precision":
            return f"every image is of {what}"
        called = self._sides(column)[1]
        return f"{'every' if called.all() else 'no'} image was predicted as {what}"

    # Intervals

    def _proportion(self, hit: Bools, rows: Bools) -> Estimate:
        return intervals.proportion_estimate(hit[rows], self.scored.groups[rows])

    def _bootstrap(self, name: str, value: float, n: int) -> Estimate:
        samples, left_out = self._found()
        made = self.drawn.estimate(value, n, samples.get(name), left_out.get(name))
        return doubted(made, [f"{UNRELIABLE}: {why}" for start, why in HOPEFUL if name.startswith(start)])


def _column(found: dict[str, Floats], name: str, column: int) -> Floats | None:
    return found[name][:, column] if name in found else None


def _mean_of(found: dict[str, Floats], name: str, columns: NDArray[np.intp]) -> Floats | None:
    return found[name][:, columns].mean(axis=1) if name in found else None


def _wald(value: float, variance: float, n: int, why: str) -> Estimate:
    if not np.isfinite(value) or not np.isfinite(variance):
        return undefined(n, why)
    half = intervals.Z * float(np.sqrt(variance))
    return Estimate(value, (value - half, value + half), n, WALD)
