"""The value of the selected trial of a search, corrected for having been chosen, from the trials' predictions.

Shapes: B resamples, G groups, T trials.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dermkit.errors import DataError
from dermkit.metrics.classification.resampled_metrics import MetricValues, ResampledMetrics
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.stats.arrays import Floats
from dermkit.metrics.stats.intervals import N_RESAMPLES, resample_weights
from dermkit.metrics.stats.selection import SelectedValue, correct_selection
from dermkit.runs.folder import RunFolder
from dermkit.runs.predictions import to_scored_set

_METHOD = "bootstrap bias correction (BBC-CV) over groups"

_MACRO_METRICS = {"balanced_accuracy": "recall", "auroc_macro": "auroc"}
"""Metric -> the figure of each class whose mean over the classes present it is."""


def selected_value(
    trials: Sequence[Sequence[Path]], metric: str, *, seed: int = 0, resamples: int = N_RESAMPLES
) -> SelectedValue:
    """Return the best of some trials by a validation metric, with its value corrected for having been chosen.

    trials: the run folders of each trial, one a fold, all with the same validation images; a trial's value is the mean
    over its folds. metric: loss, accuracy, balanced_accuracy or auroc_macro. Groups of images (lesion, patient, copies)
    are resampled, within each fold. Raises `DataError` where the trials validated on different images.
    """
    folds = [[_validation_set(run) for run in fold_runs] for fold_runs in zip(*trials, strict=True)]
    return selected_among(folds, metric, seed=seed, resamples=resamples)


def selected_among(
    folds: Sequence[Sequence[ScoredSet]], metric: str, *, seed: int = 0, resamples: int = N_RESAMPLES
) -> SelectedValue:
    """Return the best of some classifiers, as `selected_value` does. folds: of each fold, its images as each of them
    scored these; one fold where out-of-fold predictions are pooled.
    """
    with_ranking = metric == "auroc_macro"
    draws = [
        _Draws([ResampledMetrics(scored_set, with_ranking=with_ranking) for scored_set in fold], metric)
        for fold in folds
    ]
    in_bag, out_of_bag = zip(
        *(draw.resample(seed + fold, resamples) for fold, draw in enumerate(draws)), strict=True
    )
    n_units = sum(fold[0].n_groups for fold in folds)
    return correct_selection(
        _mean_over_folds([draw.values for draw in draws]),
        _mean_over_folds(in_bag),
        _mean_over_folds(out_of_bag),
        higher_is_better=metric != "loss",
        n=sum(len(fold[0].y_true) for fold in folds),
        n_units=n_units,
        method=f"{_METHOD}, {resamples} resamples, seed {seed}",
    )


def _metric_values(metrics: MetricValues, metric: str) -> Floats:
    """Return one metric of B resamples, (B,); a macro mean over the classes that have it, NaN if none has."""
    if metric not in _MACRO_METRICS:
        return metrics.multiclass[metric]
    per_class = metrics.one_vs_rest[_MACRO_METRICS[metric]][:, :-1]
    return _mean_of_finite(per_class, axis=1)


class _Draws:
    """The trials' values of one fold and of its resamples."""

    def __init__(self, trials: Sequence[ResampledMetrics], metric: str) -> None:
        first, *others = [trial.scored_set for trial in trials]
        if any(not _is_same_images(first, other) for other in others):
            raise DataError(
                "the trials of this study were validated on different images",
                outcome="the trials",
                remedy="give --out another folder, so that the study begins anew",
            )
        self.trials, self.metric, self.n_groups = trials, metric, first.n_groups
        self.values = np.array([_metric_values(trial.point_estimates, metric)[0] for trial in trials])

    def resample(self, seed: int, resamples: int) -> tuple[Floats, Floats]:
        """Return the values of the groups drawn and of those not drawn, (B, T) each."""
        chunks = list(self._chunks(seed, resamples))
        in_bag, out_of_bag = (np.concatenate(blocks) for blocks in zip(*chunks, strict=True))
        return in_bag, out_of_bag

    def _chunks(self, seed: int, resamples: int) -> Iterator[tuple[Floats, Floats]]:
        for weights in resample_weights(np.arange(self.n_groups), seed=seed, resamples=resamples):
            yield self._values_under(weights), self._values_under((weights == 0).astype(np.float64))

    def _values_under(self, weights: Floats) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):  # no unit is left out of a resample of all
            columns = [_metric_values(trial.bootstrap(weights), self.metric) for trial in self.trials]
        return np.column_stack(columns)


def _validation_set(run: Path) -> ScoredSet:
    folder = RunFolder(run)
    rows: pd.DataFrame = folder.predictions
    return to_scored_set(rows[rows["split"] == "validation"], folder.classes, folder.groups())


def _is_same_images(first: ScoredSet, second: ScoredSet) -> bool:
    return np.array_equal(first.y_true, second.y_true) and np.array_equal(first.groups, second.groups)


def _mean_over_folds(values: Sequence[Floats]) -> Floats:
    return _mean_of_finite(np.stack(values), axis=0)


def _mean_of_finite(values: Floats, *, axis: int) -> Floats:
    """Return the mean over the finite values of an axis, NaN where there are none."""
    is_finite = np.isfinite(values)
    counts = is_finite.sum(axis=axis)
    totals = np.where(is_finite, values, 0.0).sum(axis=axis)
    return np.asarray(np.divide(totals, counts, out=np.full(counts.shape, np.nan), where=counts > 0))
