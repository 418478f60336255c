"""The bands of the small curves: known answers, several nets, one kind of image to a net."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from dermkit.evaluation.curve_bands import band_tables
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.stats.arrays import Floats, Ints


def scored(p: Floats, ill: Ints, nets: Ints | None = None) -> ScoredSet:
    """Return images that are groups of their own; the second class is malignant."""
    is_called, n = (p > 0.5).astype(np.int64), len(p)
    probabilities = np.column_stack([1 - p, p])
    return ScoredSet(
        ["nevus", "melanoma"], np.array([False, True]), ill, is_called, probabilities, np.arange(n), nets
    )


def values(rows: list[list[object]]) -> Floats:
    return np.array(rows, dtype=np.float64)


def test_the_curve_of_nets_of_uneven_size_is_their_mean_by_pairs_as_the_auroc_is() -> None:
    """A net of 4 images that ranks them all wrongly counts for 4 pairs of thousands, not for half of the curve."""
    rng = np.random.default_rng(0)
    nets = np.repeat([0, 1], [200, 4])
    ill = np.append((np.arange(200) < 80).astype(np.int64), [1, 1, 0, 0])
    p = np.append(1 / (1 + np.exp(-rng.normal(3.0 * ill[:200] - 1.5, 1.0))), [0.1, 0.2, 0.8, 0.9])
    tables = band_tables(scored(p, ill, nets), None)
    roc = values(tables["roc_band_*.csv"])
    expected = np.zeros(len(roc))
    for net, pairs in ((0, 80 * 120), (1, 4)):
        fpr, tpr, _ = roc_curve(ill[nets == net], p[nets == net], drop_intermediate=False)
        expected += np.interp(roc[:, 0], fpr, tpr) * pairs / (80 * 120 + 4)
    assert roc[:, 1] == pytest.approx(expected, abs=1e-12)
    area = np.trapezoid(roc[:, 1], roc[:, 0])
    assert area == pytest.approx(roc_auc_score(ill[:200], p[:200]), abs=0.01)
    assert (roc[:, 2] <= roc[:, 1]).all() and (roc[:, 1] <= roc[:, 3]).all()


def test_nets_with_images_of_one_kind_each_have_no_ranking_and_the_other_tables() -> None:
    """As those of a cross-validation that leaves out one patient at a time."""
    p, ill = np.linspace(0.05, 0.95, 12), (np.arange(12) >= 6).astype(np.int64)
    tables = band_tables(scored(p, ill, np.arange(12)), None)
    assert tables["roc_band_*.csv"] == tables["precision_recall_*.csv"] == []
    assert tables["calibration_malignant_*.csv"] and len(tables["decision_curve_*.csv"]) == 50
