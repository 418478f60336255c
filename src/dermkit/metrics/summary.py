"""All figures of one split at once, each with its interval: what metrics.json holds per split.

Classes against rest are columns 0 to K - 1 of one array; the malignant classes together against the rest are
column K, so that the binary figures and the per-class ones are the same code.

`NAME_macro` is the mean over all classes and undefined as soon as one class is; `NAME_macro_present` is the mean
over the classes for which the figure is defined and names the others. `balanced_accuracy` is `recall_macro`.
Without a suffix, precision (ppv), recall (sensitivity), f1, specificity, auroc and average_precision are those of
the malignant classes: their summed probability is the score, and an image is called positive if its predicted
class is malignant.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dermkit.metrics import counts, intervals, probability, ranking
from dermkit.metrics.counts import Bools, Counts, Floats, Ints
from dermkit.metrics.estimate import Estimate, undefined

VIEWS = ("precision", "recall", "f1", "specificity", "auroc", "average_precision")
RANKED = ("auroc", "average_precision")
OVERALL = ("accuracy", "loss", "brier", "ece")
SYNONYMS = {"sensitivity": "recall", "ppv": "precision"}
ONE_GROUP = "no interval: one group only"


@dataclass(frozen=True, eq=False)
class Scored:
    """The scored images of one split.

    classes: K names. malignant: (K,). true, predicted: (N,) class indices. probabilities: (N, K), rows sum to 1.
    groups: (N,) labels 0 to G - 1 of what must be drawn together, each label used. Raises `ValueError` where
    shapes or labels do not fit, or without images.
    """

    classes: Sequence[str]
    malignant: Bools
    true: Ints
    predicted: Ints
    probabilities: Floats
    groups: Ints

    def __post_init__(self) -> None:
        n, k = len(self.true), len(self.classes)
        if n < 1 or k < 2:
            raise ValueError(f"figures need an image and two classes, not {n} and {k}")
        shapes = (self.predicted.shape, self.probabilities.shape, self.groups.shape, self.malignant.shape)
        if shapes != ((n,), (n, k), (n,), (k,)):
            raise ValueError(f"shapes do not fit {n} images of {k} classes: {shapes}")
        if min(self.true.min(), self.predicted.min()) < 0 or max(self.true.max(), self.predicted.max()) >= k:
            raise ValueError(f"class indices must be 0 to {k - 1}")
        if self.groups.min() != 0 or len(np.unique(self.groups)) != self.groups.max() + 1:
            raise ValueError("groups must be labelled 0 to G - 1, each used")

    @property
    def has_binary_view(self) -> bool:
        """Whether some classes are malignant and some are not."""
        return bool(self.malignant.any() and not self.malignant.all())

    @cached_property
    def confidence(self) -> Floats:
        """The predicted class's probability, (N,)."""
        return self.probabilities[np.arange(len(self.true)), self.predicted]

    @cached_property
    def independent(self) -> bool:
        """Whether every group has one image."""
        return int(self.groups.max()) + 1 == len(self.groups)


@dataclass(frozen=True, eq=False)
class Figures:
    """Figures of B resamples: `overall` name -> (B,), `views` name -> (B, K + 1), and the counts behind them."""

    overall: dict[str, Floats]
    views: dict[str, Floats]
    counts: Counts


class _Plan:
    """What is computed once for all resamples: sorted scores, and per image the terms that figures add up."""

    def __init__(self, scored: Scored, *, ranked: bool) -> None:
        k, p = len(scored.classes), scored.probabilities
        self.scored = scored
        self.rankings: list[ranking.Ranking] = []
        if ranked:
            scores = np.column_stack([p, p[:, scored.malignant].sum(axis=1)])
            truth = np.column_stack([scored.true[:, None] == np.arange(k), scored.malignant[scored.true]])
            self.rankings = [ranking.rank(scores[:, i], truth[:, i]) for i in range(k + 1)]
        bins = np.eye(probability.BINS)[probability.bin_of(scored.confidence)]
        correct = (scored.true == scored.predicted).astype(np.float64)
        cells = np.zeros((len(p), k * k))
        cells[np.arange(len(p)), scored.true * k + scored.predicted] = 1.0
        losses = probability.log_loss_terms(scored.true, p), probability.brier_terms(scored.true, p)
        self.terms = np.column_stack(
            [cells, *losses, bins, bins * scored.confidence[:, None], bins * correct[:, None]]
        )

    def figures(self, weights: Floats) -> Figures:
        """Return all figures for each row of multiplicities (B, N)."""
        k, sums = len(self.scored.classes), weights @ self.terms
        confusion = sums[:, : k * k].reshape(-1, k, k)
        loss, brier, rest = sums[:, k * k], sums[:, k * k + 1], sums[:, k * k + 2 :]
        total = weights.sum(axis=1)
        overall = {
            "accuracy": counts.accuracy(confusion),
            "loss": loss / total,
            "brier": brier / total,
            "ece": probability.ece_of_bins(probability.CalibrationBins(*np.split(rest, 3, axis=1))),
        }
        tally = _with_binary(confusion, self.scored.malignant)
        views = {
            "precision": counts.precision(tally),
            "recall": counts.recall(tally),
            "f1": counts.f1(tally),
            "specificity": counts.specificity(tally),
        }
        if self.rankings:
            ranked = [ranking.ranking_figures(order, weights) for order in self.rankings]
            views["auroc"] = np.column_stack([item.auroc for item in ranked])
            views["average_precision"] = np.column_stack([item.average_precision for item in ranked])
        return Figures(overall, views, tally)


def _with_binary(confusion: Floats, malignant: Bools) -> Counts:
    classes = counts.one_vs_rest(confusion)
    binary = counts.malignant_vs_rest(confusion, malignant)

    def joined(left: Floats, right: Floats) -> Floats:
        return np.concatenate([left, right[..., None]], axis=-1)

    return Counts(
        joined(classes.tp, binary.tp), joined(classes.fp, binary.fp),
        joined(classes.fn, binary.fn), joined(classes.tn, binary.tn),
    )  # fmt: skip


def summarise(
    scored: Scored, *, seed: int, ranked: bool = True, resamples: int = intervals.RESAMPLES
) -> dict[str, Any]:
    """Return one split's body of metrics.json: n, n_groups, metrics, per_class, confusion_matrix.

    ranked: False leaves AUROC and average precision out. The same seed and images give the same intervals.
    """
    return _Summary(scored, seed=seed, ranked=ranked, resamples=resamples).body()


class _Summary:
    """The point figures, the resampled ones, and the rules that make estimates of them."""

    def __init__(self, scored: Scored, *, seed: int, ranked: bool, resamples: int) -> None:
        self.scored = scored
        plan = _Plan(scored, ranked=ranked)
        self.point = plan.figures(np.ones((1, len(scored.true))))
        self.groups = int(scored.groups.max()) + 1
        self.method = intervals.BOOTSTRAP_IMAGES if scored.independent else intervals.BOOTSTRAP_GROUPS
        self.method += f", {resamples} resamples, seed {seed}"
        # With one group every resample is the sample itself: there is nothing to learn from it.
        drawn = intervals.resample_weights(scored.groups, seed=seed, resamples=resamples if self.groups > 1 else 0)
        parts = [_arrays(plan.figures(weights)) for weights in drawn]
        first = _arrays(self.point)
        self.samples = {name: np.concatenate([part[name] for part in parts]) for name in first} if parts else {}

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
            "n_groups": self.groups,
            "metrics": {name: estimate.as_dict() for name, estimate in metrics.items()},
            "per_class": per_class,
            "confusion_matrix": counts.confusion_matrix(self.scored.true, self.scored.predicted, k).tolist(),
        }

    def _overall(self) -> Iterator[tuple[str, Estimate]]:
        n = len(self.scored.true)
        for name in OVERALL:
            value = float(self.point.overall[name][0])
            if name == "accuracy" and self.scored.independent:
                yield name, _wilson(round(value * n), n)
            else:
                yield name, self._bootstrap(value, self.samples.get(name), n)

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
        samples = self.samples.get(view)
        mean = None if samples is None else samples[:, :k][:, defined].mean(axis=1)
        estimate = self._bootstrap(float(self.point.views[view][0, :k][defined].mean()), mean, n)
        note = f"mean over {int(defined.sum())} of {k} classes, without: {named}" if absent else ""
        reason = "; ".join(part for part in (note, estimate.reason) if part)
        return Estimate(estimate.value, estimate.ci95, n, estimate.method, reason)

    def _binary(self) -> Iterator[tuple[str, Estimate]]:
        binary = {view: self._view(view, len(self.scored.classes)) for view in self.point.views}
        yield from (binary | {name: binary[view] for name, view in SYNONYMS.items()}).items()

    def _view(self, view: str, column: int) -> Estimate:
        """Return one figure of one class against the rest, or of the malignant classes (column K)."""
        tally = self.point.counts
        tp, fp, fn, tn = (int(part[0, column]) for part in (tally.tp, tally.fp, tally.fn, tally.tn))
        part, whole = {
            "precision": (tp, tp + fp),
            "recall": (tp, tp + fn),
            "f1": (2 * tp, tp + fp + fn),
            "specificity": (tn, tn + fp),
        }.get(view, (0, len(self.scored.true)))
        if column == len(self.scored.classes) and not self.scored.has_binary_view:
            count = "every" if self.scored.malignant.any() else "no"
            return undefined(whole, f"{count} class is malignant in the class table, so there are not two sides")
        value = float(self.point.views[view][0, column])
        if np.isnan(value):
            return undefined(whole, self._why(view, column, positives=tp + fn))
        if self.scored.independent and view in ("precision", "recall", "specificity"):
            return _wilson(part, whole)
        samples = self.samples.get(view)
        return self._bootstrap(value, None if samples is None else samples[:, column], whole)

    def _why(self, view: str, column: int, *, positives: int) -> str:
        names = self.scored.classes
        what = names[column] if column < len(names) else "a malignant class"
        if positives == 0:
            return f"no image of {what}"
        return f"no image was predicted as {what}" if view == "precision" else f"every image is of {what}"

    def _bootstrap(self, value: float, samples: NDArray[np.float64] | None, n: int) -> Estimate:
        if samples is None:
            return Estimate(value, None, n, self.method, ONE_GROUP)
        interval = intervals.percentile_interval(value, samples)
        return Estimate(value, interval.ci95, n, self.method, interval.reason)


def _arrays(figures: Figures) -> dict[str, Floats]:
    return figures.overall | figures.views


def _wilson(part: int, whole: int) -> Estimate:
    return Estimate(part / whole, intervals.wilson(part, whole), whole, intervals.WILSON)
