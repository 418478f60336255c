"""All figures of a split as functions of sums over units, so that a resample is one product of matrices.

A unit is what is drawn together: a lesion, a patient, or an image alone. Whatever is a sum of terms per image is
summed per unit once; what depends on the order of scores is a sum per distinct score.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import csr_matrix

from dermkit.metrics.classification import calibration, probabilistic
from dermkit.metrics.classification import confusion as classification_confusion
from dermkit.metrics.classification import roc as classification_roc
from dermkit.metrics.classification.confusion import Counts, Cumulated
from dermkit.metrics.classification.scored_set import Scored
from dermkit.metrics.stats.arrays import Bools, Floats, Ints

VIEWS = ("precision", "recall", "f1", "specificity", "npv", "mcc", "auroc", "average_precision")
"""Of every class against the rest, and of the malignant classes."""

RANKED = ("auroc", "average_precision")
FIXED = (0.9, 0.95)
"""Sensitivities and specificities that are held while the other is measured."""

BENEFIT_AT = (0.05, 0.1, 0.2)
"""Threshold probabilities of the net benefit: 19, 9 and 4 needless biopsies weigh as much as one missed lesion."""

TOP = (2, 3)
EXACT = 20_000
"""Images up to which resampled rankings keep every distinct score; beyond, scores are grouped."""

STEPS = 2048
"""Groups of equal size that scores are put in where they are too many."""


@dataclass(frozen=True, eq=False)
class Figures:
    """Figures of B resamples: `overall` and `binary` name -> (B,), `views` name -> (B, K + 1), and their counts.

    Column K of a view, and all of `binary`, are of the malignant classes against the rest.
    """

    overall: dict[str, Floats]
    views: dict[str, Floats]
    binary: dict[str, Floats]
    counts: Counts


def figures_compared(figures: Figures) -> dict[str, Floats]:
    """Return what is compared, name -> (B,): averages over the classes, and the malignant classes against the rest."""
    views = figures.views
    names = {"sensitivity": "recall", "specificity": "specificity", "auroc": "auroc", "average_precision": ""}
    binary = {name: views[view or name][:, -1] for name, view in names.items()}
    macro = {
        "balanced_accuracy": views["recall"][:, :-1].mean(axis=1),
        "f1_macro": views["f1"][:, :-1].mean(axis=1),
    }
    return {**figures.overall, **macro, **binary}


def images_behind(scored: Scored, name: str) -> int:
    """Return how many images one of these figures rests on."""
    positives = int(scored.is_malignant.sum())
    return {"sensitivity": positives, "specificity": len(scored.true) - positives}.get(name, len(scored.true))


def units_behind(scored: Scored, name: str) -> int:
    """Return how many independent units one of these figures rests on: of what asks several classes, of the rarest."""
    positive, every = scored.is_malignant, np.ones(len(scored.true), dtype=bool)
    classes = [scored.true == k for k in range(len(scored.classes))]
    sides = {
        "sensitivity": [positive], "specificity": [~positive],
        "auroc": [positive, ~positive], "average_precision": [positive, ~positive],
        "balanced_accuracy": classes, "f1_macro": classes,
    }.get(name, [every])  # fmt: skip
    return min(scored.units_in(rows) for rows in sides)


# Order ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Ordered:
    """How many positives and negatives each unit has at each step of falling scores: (G, 2 T), positives first."""

    cells: csr_matrix
    steps: int

    @classmethod
    def of(cls, score: Floats, positive: Bools, units: Ints, *, coarse: bool) -> "_Ordered":
        """Take every distinct score as a step, or with `coarse` at most `STEPS` groups of about equal size."""
        step = np.unique(-score, return_inverse=True)[1]
        steps = int(step.max()) + 1
        if coarse and steps > STEPS:
            heads = np.cumsum(np.bincount(step, minlength=steps)) - 1
            step, steps = (heads * STEPS // len(score))[step], STEPS
        columns = np.where(positive, step, step + steps)
        shape = (int(units.max()) + 1, 2 * steps)
        return cls(csr_matrix((np.ones(len(score)), (units, columns)), shape=shape), steps)

    def cumulated(self, sums: Floats) -> Cumulated:
        """Return hits and false alarms at every step from sums of cells, (B, 2 T)."""
        return Cumulated(np.cumsum(sums[:, : self.steps], axis=1), np.cumsum(sums[:, self.steps :], axis=1))


# Everything -------------------------------------------------------------------------------------------------------


class Plan:
    """What is computed once for all resamples of a split. ranked: False leaves out what needs an order of scores."""

    def __init__(self, scored: Scored, *, ranked: bool = True) -> None:
        self.scored = scored
        self._names, self._terms = _terms_of(scored)
        views = self._views() if ranked else []
        fine = [_Ordered.of(*view, scored.groups, coarse=False) for view in views]
        self._coarse = [_Ordered.of(*view, scored.groups, coarse=True) for view in views]
        self._fine = fine if len(scored.true) <= EXACT else []
        self.point = self._of_all(fine)

    def _views(self) -> list[tuple[Floats, Bools]]:
        """Return score and truth of every class, and of the malignant ones together."""
        own = [(p, self.scored.true == name) for name, p in enumerate(self.scored.probabilities.T)]
        return [*own, (self.scored.p_malignant, self.scored.is_malignant)]

    def _of_all(self, orders: Sequence[_Ordered]) -> Figures:
        """Return the figures of the sample itself, (1, ...)."""
        return self._weighted(np.ones((1, self.scored.units)), orders)

    def _weighted(self, weights: Floats, orders: Sequence[_Ordered]) -> Figures:
        sums = (_times(weights, item.cells) for item in orders)
        return self._figures(_times(weights, self._terms), sums, orders)

    def resampled(self, weights: Floats) -> Figures:
        """Return all figures for each row of multiplicities of units, (B, G).

        Where scores are grouped, figures of order are moved by what grouping changes in the sample itself.
        """
        orders = self._fine or self._coarse
        found = self._weighted(weights, orders)
        return found if self._fine or not orders else self._moved(found)

    def without_each(self, rows: Ints) -> Figures:
        """Return all figures without one unit at a time, (len(rows), ...): for the acceleration of intervals."""
        orders = self._coarse
        total = np.asarray(self._terms.sum(axis=0))
        sums = (np.asarray(item.cells.sum(axis=0)) - item.cells[rows].toarray() for item in orders)
        return self._figures(total - self._terms[rows].toarray(), sums, orders)

    @cached_property
    def _rough(self) -> Figures:
        """The figures of the sample itself with grouped scores."""
        return self._of_all(self._coarse)

    def _moved(self, found: Figures) -> Figures:
        for name in RANKED:
            found.views[name][...] += self.point.views[name] - self._rough.views[name]
        for name in found.binary:
            found.binary[name][...] += self.point.binary[name] - self._rough.binary[name]
        return found

    def _figures(self, sums: Floats, ordered: Iterator[Floats], orders: Sequence[_Ordered]) -> Figures:
        part = {name: sums[:, where] for name, where in self._names.items()}
        k = len(self.scored.classes)
        confusion = part["cells"].reshape(-1, k, k)
        tally = _with_binary(confusion, self.scored.malignant)
        views = {
            "precision": classification_confusion.precision(tally),
            "recall": classification_confusion.recall(tally),
            "f1": classification_confusion.f1(tally),
            "specificity": classification_confusion.specificity(tally),
            "npv": classification_confusion.npv(tally),
            "mcc": classification_confusion.mcc_of(tally),
        }
        binary = _probabilities_of_malignant(part) if self.scored.has_binary_view else {}
        if orders:
            steps = [order.cumulated(found) for order, found in zip(orders, ordered, strict=True)]
            areas = [classification_roc.areas_of(item) for item in steps]
            views["auroc"] = np.column_stack([item.auroc for item in areas])
            views["average_precision"] = np.column_stack([item.average_precision for item in areas])
            binary |= _ends_of_curve(steps[-1])
        return Figures(_overall(part, confusion), views, binary, tally)


def _times(weights: Floats, matrix: csr_matrix) -> Floats:
    return np.asarray((matrix.T @ weights.T).T, dtype=np.float64)


def _terms_of(scored: Scored) -> tuple[dict[str, slice], csr_matrix]:
    """Return where each family of terms lies, and the terms summed per unit, (G, C), mostly zeros."""
    n, k, p = len(scored.true), len(scored.classes), scored.probabilities
    bins = probabilistic.BINS
    top, gaps = probabilistic.bin_of(scored.confidence), p - (scored.true[:, None] == np.arange(k))
    own, is_it = probabilistic.bin_of(scored.p_malignant), scored.is_malignant.astype(np.float64)
    called = scored.p_malignant[:, None] >= np.array(BENEFIT_AT)
    blocks: list[tuple[str, int, list[tuple[Ints, Floats]]]] = [
        ("cells", k * k, [(scored.true * k + scored.predicted, np.ones(n))]),
        ("n", 1, [(np.zeros(n, dtype=np.int64), np.ones(n))]),
        ("loss", 1, [(np.zeros(n, dtype=np.int64), probabilistic.log_loss_terms(scored.true, p))]),
        ("brier", 1, [(np.zeros(n, dtype=np.int64), probabilistic.brier_terms(scored.true, p))]),
        ("bins", 3 * bins, [
            (top, np.ones(n)), (top + bins, scored.confidence),
            (top + 2 * bins, (scored.true == scored.predicted).astype(np.float64)),
        ]),
        ("gaps", k * bins, [(probabilistic.bin_of(p[:, c]) + c * bins, gaps[:, c]) for c in range(k)]),
        ("top", len(TOP), [
            (np.full(n, i), (scored.place_of_true < most).astype(np.float64)) for i, most in enumerate(TOP)
        ]),
        ("own", 3 * bins, [(own, np.ones(n)), (own + bins, scored.p_malignant), (own + 2 * bins, is_it)]),
        ("squares", 1, [(np.zeros(n, dtype=np.int64), (scored.p_malignant - is_it) ** 2)]),
        ("hits", len(BENEFIT_AT), [(np.full(n, i), called[:, i] * is_it) for i in range(len(BENEFIT_AT))]),
        ("alarms", len(BENEFIT_AT), [(np.full(n, i), called[:, i] * (1 - is_it)) for i in range(len(BENEFIT_AT))]),
    ]  # fmt: skip
    names, start, columns, values = {}, 0, [], []
    for name, width, parts in blocks:
        names[name] = slice(start, start + width)
        columns += [where + start for where, _ in parts]
        values += [value for _, value in parts]
        start += width
    units = np.tile(scored.groups, len(columns))
    made = csr_matrix((np.concatenate(values), (units, np.concatenate(columns))), shape=(scored.units, start))
    return names, made


def _overall(part: dict[str, Floats], confusion: Floats) -> dict[str, Floats]:
    total = part["n"][:, 0]
    k = confusion.shape[-1]
    gaps = part["gaps"].reshape(len(total), k, -1)
    tops = {f"top_{most}_accuracy": part["top"][:, i] / total for i, most in enumerate(TOP) if most < k}
    return {
        "accuracy": classification_confusion.accuracy(confusion),
        **tops,
        "mcc_multiclass": classification_confusion.mcc(confusion),
        "kappa": classification_confusion.kappa(confusion),
        "loss": part["loss"][:, 0] / total,
        "brier": part["brier"][:, 0] / total,
        "ece": probabilistic.ece_of_bins(probabilistic.CalibrationBins(*np.split(part["bins"], 3, axis=1))),
        "ece_classwise": calibration.classwise_ece_of_bins(gaps, total),
    }


def _probabilities_of_malignant(part: dict[str, Floats]) -> dict[str, Floats]:
    n, stated, seen = np.split(part["own"], 3, axis=1)
    parts = calibration.brier_parts(n, stated, seen, part["squares"][:, 0])
    total = part["n"][:, 0]
    benefit = {
        f"net_benefit_{round(100 * at)}": (part["hits"][:, i] - part["alarms"][:, i] * at / (1 - at)) / total
        for i, at in enumerate(BENEFIT_AT)
    }
    return {
        "brier_malignant": parts.score, "brier_reliability": parts.reliability,
        "brier_resolution": parts.resolution, "brier_uncertainty": parts.uncertainty, **benefit,
    }  # fmt: skip


def _ends_of_curve(steps: Cumulated) -> dict[str, Floats]:
    roc = classification_roc.curves_of(steps)
    held = {
        f"sensitivity_at_specificity_{round(100 * at)}": classification_roc.sensitivity_at(roc, at) for at in FIXED
    }
    held |= {
        f"specificity_at_sensitivity_{round(100 * at)}": classification_roc.specificity_at(roc, at) for at in FIXED
    }
    return {
        "pauc_above_tpr80": classification_roc.pauc_above(roc),
        "auc_sens_80": classification_roc.auc_above(roc),
        **held,
    }


def _with_binary(confusion: Floats, malignant: Bools) -> Counts:
    classes = classification_confusion.one_vs_rest(confusion)
    binary = classification_confusion.malignant_vs_rest(confusion, malignant)

    def joined(left: Floats, right: Floats) -> Floats:
        return np.concatenate([left, right[..., None]], axis=-1)

    return Counts(
        joined(classes.tp, binary.tp), joined(classes.fp, binary.fp),
        joined(classes.fn, binary.fn), joined(classes.tn, binary.tn),
    )  # fmt: skip
