"""Two recipes that were trained several times: how far they lie apart, and what of it trainings and images explain.

On the same images: a t test whose variance is that of new trainings and of new images. Over folds, or any divisions
that both were trained and tested on: the corrected resampled t, since the training sides share images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import t

from dermkit.comparison import variance
from dermkit.comparison.variance import Apart, Sources
from dermkit.comparison.verdict import FIGURES, Repeated
from dermkit.metrics.classification.scored_set import Scored
from dermkit.metrics.classification.vectorised import Plan, figures_compared, images_behind, units_behind
from dermkit.metrics.stats import intervals, paired_tests
from dermkit.metrics.stats.arrays import Floats
from dermkit.metrics.stats.estimate import Estimate, doubted, undefined

TRAININGS = "t over trainings and images"
FOLDS = "corrected resampled t"
NO_SPREAD = "no interval: no spread to judge by"
UNBOUNDED = ("loss",)
WIDE = ("mcc_multiclass", "brier")
"""Figures whose difference lies between -2 and 2, not between -1 and 1."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """One training's figures, and on resamples of the images: name -> value, name -> (B,)."""

    scored: Scored
    point: dict[str, float]
    samples: dict[str, Floats]


def draw(scored: Scored, *, seed: int, resamples: int = intervals.RESAMPLES) -> Drawn:
    """Return a training's figures on resamples that are the same for all trainings on the same images."""
    plan = Plan(scored)
    weights = intervals.resample_weights(
        np.arange(scored.units), seed=seed, resamples=resamples if scored.units > 1 else 1
    )
    made = [figures_compared(plan.resampled(rows)) for rows in weights]
    samples = {name: np.concatenate([part[name] for part in made]) for name in FIGURES}
    point = figures_compared(plan.point)
    return Drawn(scored, {name: float(point[name][0]) for name in FIGURES}, samples)


def figures_of(scored: Scored) -> dict[str, float]:
    """Return what is compared of one training, NaN = undefined."""
    point = figures_compared(Plan(scored).point)
    return {name: float(point[name][0]) for name in FIGURES}


def moved_by(runs: Sequence[Drawn]) -> dict[str, Sources]:
    """Return figure -> what moves it, for every figure that all these trainings on the same images define."""
    found = {name: _rows([runs], name) for name in FIGURES}
    return {
        name: replace(variance.sources(*rows[0]), units=_units(runs[0].scored, name))
        for name, rows in found.items()
        if rows is not None
    }


def differences_of_trainings(first: Sequence[Drawn], second: Sequence[Drawn]) -> list[Repeated]:
    """Compare two recipes by all their trainings, which scored the same images and were drawn alike."""
    return [_of_trainings(name, first, second) for name in FIGURES]


def _of_trainings(name: str, first: Sequence[Drawn], second: Sequence[Drawn]) -> Repeated:
    scored, counts = first[0].scored, (len(first), len(second))
    n, units = images_behind(scored, name), _units(scored, name)
    rows = _rows([first, second], name)
    if rows is None:
        missing = undefined(n, "the figure is undefined for these images or one of the trainings")
        return Repeated(name, missing, "none", None, trainings=counts)
    one, other = (variance.sources(*item) for item in rows)
    found = variance.apart((one, rows[0][1]), (other, rows[1][1]), units=units)
    if found is None:
        silent = Estimate(one.mean - other.mean, None, n, "none", "no interval: the images are one unit")
        return Repeated(name, silent, "none", None, first=one, second=other, trainings=counts)
    lost = 1 - rows[0][1].shape[1] / len(first[0].samples[name])
    estimate = doubted(_estimated(name, found, n, lost), intervals.few(units_behind(scored, name)))
    return Repeated(
        name, estimate, TRAININGS, found.p, needed=variance.images_needed(found, n),
        first=one, second=other, trainings=counts, seeds=found.seeds, images=found.images, borrowed=found.borrowed,
        needs_trainings=variance.needs_trainings(found),
    )  # fmt: skip


def _rows(groups: Sequence[Sequence[Drawn]], name: str) -> list[tuple[Floats, Floats]] | None:
    """Return each group's (S,) values and (S, B) resampled ones, resamples without the figure in any run dropped."""
    values = [np.array([run.point[name] for run in group]) for group in groups]
    if not all(np.isfinite(item).all() for item in values):
        return None
    drawn = [np.stack([run.samples[name] for run in group]) for group in groups]
    kept = np.logical_and.reduce([np.isfinite(item).all(axis=0) for item in drawn])
    return [(value, item[:, kept]) for value, item in zip(values, drawn, strict=True)]


def _estimated(name: str, found: Apart, n: int, lost: float) -> Estimate:
    """Return the difference as an estimate. lost: share of resamples in which a training lacks the figure."""
    bounds = None if found.interval is None else _within(name, *found.interval)
    unsure = "" if found.error else NO_SPREAD
    if found.error and lost > intervals.UNDEFINED_SHARE:
        unsure = f"interval unreliable: undefined in {lost:.0%} of the resamples, which were dropped"
    of = ", of the trainings" if found.parts else ""
    return Estimate(found.value, bounds, n, f"{TRAININGS}, {found.df:.3g} degrees of freedom{of}", unsure)


def _within(name: str, low: float, high: float) -> tuple[float, float]:
    """Return the bounds without what no difference of this figure can be."""
    limit = float("inf") if name in UNBOUNDED else 2.0 if name in WIDE else 1.0
    return max(-limit, low), min(limit, high)


def differences_over_folds(
    first: Sequence[Sequence[Mapping[str, float]]],
    second: Sequence[Sequence[Mapping[str, float]]],
    *,
    like: Scored,
    n_train: int,
    n_test: int,
) -> list[Repeated]:
    """Compare two recipes fold by fold: of each fold the figures of its trainings, the same folds in the same order.

    like: all folds' images, for their number. n_train, n_test: images of a fold, on average. Raises `ValueError` for
    fewer than two folds.
    """
    return [_over_folds(name, first, second, images_behind(like, name), n_train, n_test) for name in FIGURES]


def _over_folds(
    name: str,
    first: Sequence[Sequence[Mapping[str, float]]],
    second: Sequence[Sequence[Mapping[str, float]]],
    n: int,
    n_train: int,
    n_test: int,
) -> Repeated:
    counts = sum(map(len, first)), sum(map(len, second))
    one, other = _of_folds(first, name), _of_folds(second, name)
    if one is None or other is None:
        missing = undefined(n, "the figure is undefined in a fold of one of the two")
        return Repeated(name, missing, "none", None, trainings=counts)
    gaps = [a - b for a, b in zip(one.values, other.values, strict=True)]
    found = paired_tests.corrected_resampled_t(gaps, n_train=n_train, n_test=n_test)
    method = f"{FOLDS}, {len(gaps) - 1} degrees of freedom, {n_train} training and {n_test} test images in a fold"
    half = float(t.isf((1 - intervals.LEVEL) / 2, found.df)) * found.error
    bounds = _within(name, found.value - half, found.value + half) if found.error else None
    estimate = Estimate(found.value, bounds, n, method, "" if found.error else NO_SPREAD)
    p = found.p if found.error else 1.0 if abs(found.value) <= variance.ROUNDING else None
    return Repeated(name, estimate, FOLDS, p, first=one, second=other, folds=len(gaps), trainings=counts)


def moved_over_folds(folds: Sequence[Sequence[Mapping[str, float]]]) -> dict[str, Sources]:
    """Return figure -> what moves it, for every figure that all trainings of all folds define."""
    found = {name: _of_folds(folds, name) for name in FIGURES}
    return {name: item for name, item in found.items() if item is not None}


def _of_folds(folds: Sequence[Sequence[Mapping[str, float]]], name: str) -> Sources | None:
    """Return means of folds, their deviation, and that of trainings within a fold."""
    values = [np.array([run[name] for run in fold]) for fold in folds]
    if not all(np.isfinite(fold).all() for fold in values):
        return None
    means = np.array([fold.mean() for fold in values])
    spare = sum(len(fold) - 1 for fold in values)
    within = sum(float(((fold - fold.mean()) ** 2).sum()) for fold in values)
    return Sources(
        tuple(means.tolist()), float(means.std(ddof=1)), (within / spare) ** 0.5 if spare else None, None
    )


def _units(scored: Scored, name: str) -> int:
    """Return how many independent observations carry a figure's variance; each class carries its part of a mean."""
    return scored.units if name in ("balanced_accuracy", "f1_macro") else units_behind(scored, name)
