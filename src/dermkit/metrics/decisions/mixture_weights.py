"""Weights of models whose calibrated probabilities are averaged, fitted on images that none of them learned from.

The weights minimise the log loss of the mean, a convex problem that expectation-maximisation solves without a step
size. One image a model counts for equal weights (a Dirichlet prior): without it 40 images give weights whose loss on
new ones is .02 worse than that of equal weights where the models are equally good, with it .003; greedy selection with
replacement (Caruana 2004) is as bad as no prior (benchmarks/ensembles.md).

Shapes: N images, K classes, S models, F nets of a model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.classification.summary import evaluate_split
from dermkit.metrics.decisions.policy import CALIBRATION_FITS, CALIBRATION_FOLDS
from dermkit.metrics.decisions.recalibration import ProbabilityCalibration
from dermkit.metrics.stats.arrays import Bools, Floats, Ints
from dermkit.metrics.stats.estimate import Estimate

PRIOR_IMAGES = 1.0
"""Images that count for equal weights, a model."""

SMALLEST_WEIGHT = 0.01
"""A model of less is left out: it moves no probability by more, and costs its passes an image."""

_MAX_STEPS = 2000
_SMALLEST_P = 1e-300
FITTED, EQUAL, BEST = "fitted", "equal", "best single"


@dataclass(frozen=True, eq=False)
class ModelScores:
    """What a model gave to images that the nets which scored them had not learned from.

    probabilities: (N, K), before calibration. nets: (N,) which net scored each image, 0 to F - 1. calibrations: F, the
    nets' own.
    """

    probabilities: Floats
    nets: Ints
    calibrations: Sequence[ProbabilityCalibration]

    def calibrated(self) -> Floats:
        """Return the probabilities after each net's own calibration, (N, K)."""
        return self._apply(self.calibrations)

    def calibrated_on(self, y_true: Ints, is_fitted: Bools) -> Floats:
        """Return the same with calibrations of the same kinds, fitted on some of the images alone."""
        calibrations = []
        for net, own in enumerate(self.calibrations):
            rows = is_fitted & (self.nets == net)
            is_refitted = own.kind in CALIBRATION_FITS and rows.any()
            fit = CALIBRATION_FITS[own.kind] if is_refitted else None
            calibrations.append(own if fit is None else fit(y_true[rows], self.probabilities[rows]))
        return self._apply(calibrations)

    def _apply(self, calibrations: Sequence[ProbabilityCalibration]) -> Floats:
        p = np.empty_like(self.probabilities)
        for net, calibration in enumerate(calibrations):
            rows = self.nets == net
            p[rows] = calibration.apply(self.probabilities[rows])
        return p


@dataclass(frozen=True)
class SchemeFigures:
    """How good one way to weigh the models is. in_sample: metric -> value on the images that chose the weights.

    cross_validated: metric -> estimate on images that had no part in the choice. Metrics: loss, balanced_accuracy.
    """

    in_sample: Mapping[str, float | None]
    cross_validated: Mapping[str, Estimate]


@dataclass(frozen=True, eq=False)
class WeightChoice:
    """The weights of S models and what they rest on.

    weights: (S,), sum 1. scheme: fitted or equal. figures: scheme -> its figures; empty where there are too few groups
    for a cross-validation. best: the index of the single model with the lowest loss. reason: why this scheme.
    """

    weights: Floats
    scheme: str
    figures: Mapping[str, SchemeFigures]
    best: int
    reason: str


def fit_mixture_weights(p_true: Floats, *, prior: float = PRIOR_IMAGES) -> Floats:
    """Return the weights (S,) that minimise the mean of -log(p_true @ weights), with `prior` images for equal ones.

    p_true: (N, S), each model's probability of the true class.
    """
    n, n_models = p_true.shape
    p, weights = np.maximum(p_true, _SMALLEST_P), np.full(n_models, 1 / n_models)
    for _ in range(_MAX_STEPS):
        shares = p * weights
        shares /= shares.sum(axis=1, keepdims=True)
        new_weights = (shares.sum(axis=0) + prior) / (n + n_models * prior)
        is_done = float(np.abs(new_weights - weights).max()) < 1e-10
        weights = new_weights
        if is_done:
            break
    return np.asarray(weights, dtype=np.float64)


def choose_weights(scored_set: ScoredSet, models: Sequence[ModelScores], *, seed: int = 0) -> WeightChoice:
    """Return the fitted weights where they beat equal ones in a cross-validation by groups, else equal ones.

    scored_set: labels and groups of the images; its probabilities are not read. In each fold calibrations, weights and
    the best single model are chosen on the other groups.
    """
    y_true, equal = scored_set.y_true, np.full(len(models), 1 / len(models))
    calibrated = np.stack([model.calibrated() for model in models])
    fitted, best = _fit(calibrated, y_true), _best(calibrated, y_true)
    if scored_set.n_groups < 2 * CALIBRATION_FOLDS:
        reason = f"{scored_set.n_groups} independent groups of images are too few to try weights on"
        return WeightChoice(equal, EQUAL, {}, best, reason)
    in_sample = _mixtures(calibrated, fitted, best)
    held_out = _cross_validated(scored_set, models, seed)
    figures = {
        scheme: SchemeFigures(
            _values(_metrics(scored_set, in_sample[scheme], seed, 0)), _metrics(scored_set, held_out[scheme], seed)
        )
        for scheme in (FITTED, EQUAL, BEST)
    }
    losses = {scheme: figures[scheme].cross_validated["loss"].value or 0.0 for scheme in figures}
    is_better = losses[FITTED] < losses[EQUAL]
    reason = (
        f"fitted weights have a cross-validated log loss of {losses[FITTED]:.4f}, equal ones {losses[EQUAL]:.4f}, the "
        f"best single model {losses[BEST]:.4f}"
    )
    weights = _without_small(fitted) if is_better else equal
    return WeightChoice(weights, FITTED if is_better else EQUAL, figures, best, reason)


def _without_small(weights: Floats) -> Floats:
    kept = np.where(weights < SMALLEST_WEIGHT, 0.0, weights)
    return np.asarray(kept / kept.sum(), dtype=np.float64)


def _p_true(calibrated: Floats, y_true: Ints) -> Floats:
    """Return (N, S) of (S, N, K)."""
    return np.ascontiguousarray(calibrated[:, np.arange(len(y_true)), y_true].T)


def _fit(calibrated: Floats, y_true: Ints) -> Floats:
    return fit_mixture_weights(_p_true(calibrated, y_true))


def _best(calibrated: Floats, y_true: Ints) -> int:
    return int(np.log(np.maximum(_p_true(calibrated, y_true), _SMALLEST_P)).mean(axis=0).argmax())


def _mixtures(calibrated: Floats, weights: Floats, best: int) -> dict[str, Floats]:
    """Return scheme -> probabilities (N, K)."""
    return {
        FITTED: np.tensordot(_without_small(weights), calibrated, axes=1),
        EQUAL: calibrated.mean(axis=0),
        BEST: calibrated[best],
    }


def _cross_validated(scored_set: ScoredSet, models: Sequence[ModelScores], seed: int) -> dict[str, Floats]:
    """Return scheme -> probabilities (N, K), of each image by what was chosen without its group."""
    y_true = scored_set.y_true
    order = np.random.default_rng(seed).permutation(scored_set.n_groups)
    fold_of_image = order[scored_set.groups] % CALIBRATION_FOLDS
    p = {scheme: np.empty((len(y_true), len(scored_set.classes))) for scheme in (FITTED, EQUAL, BEST)}
    for fold in range(CALIBRATION_FOLDS):
        is_held_out = fold_of_image == fold
        calibrated = np.stack([model.calibrated_on(y_true, ~is_held_out) for model in models])
        fit_part, fit_labels = calibrated[:, ~is_held_out], y_true[~is_held_out]
        mixtures = _mixtures(calibrated, _fit(fit_part, fit_labels), _best(fit_part, fit_labels))
        for scheme, mixture in mixtures.items():
            p[scheme][is_held_out] = mixture[is_held_out]
    return p


def _metrics(
    scored_set: ScoredSet, probabilities: Floats, seed: int, resamples: int = 1000
) -> dict[str, Estimate]:
    """Return log loss and balanced accuracy, over the classes present where one is absent."""
    scored = replace(scored_set, probabilities=probabilities, y_pred=probabilities.argmax(axis=1), nets=None)
    metrics = evaluate_split(scored, seed=seed, with_ranking=False, resamples=resamples)["metrics"]
    name = "balanced_accuracy" if metrics["balanced_accuracy"]["value"] is not None else "recall_macro_present"
    return {
        "loss": Estimate.from_dict(metrics["loss"]),
        "balanced_accuracy": Estimate.from_dict(metrics[name]),
    }


def _values(metrics: Mapping[str, Estimate]) -> dict[str, float | None]:
    return {name: estimate.value for name, estimate in metrics.items()}
