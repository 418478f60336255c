"""Every newer figure against an implementation that is not ours, on random cases with ties and missing classes."""

import itertools
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import brentq
from scipy.special import expit
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression

from dermkit.metrics.classification import calibration, confusion, isic_scorer
from dermkit.metrics.classification import roc as classification_roc
from dermkit.metrics.stats import delong, fold_auroc, intervals
from dermkit.metrics.stats.arrays import Bools, Floats, Ints

CASES = 500


def cases(seed: int) -> Iterator[tuple[Ints, Ints, Floats]]:
    """Yield true classes, predicted ones and probabilities: few and many, tied, a class missing, perfect, inverted."""
    generator = np.random.default_rng(seed)
    for number in range(CASES):
        k = int(generator.choice([2, 2, 3, 7]))
        n = 1 if number % 50 == 0 else int(generator.integers(2, 150))
        true = generator.integers(0, max(1, k - number % 3 // 2), n)  # now and then the last class is missing
        p = generator.dirichlet(np.full(k, 0.6), n)
        if number % 5 == 1:
            p = np.round(p, 1)  # ties, and sums beside 1: ranking alone cares
        if number % 25 == 2:
            p = np.eye(k)[true]
        if number % 25 == 3:
            p = (1 - np.eye(k)[true]) / (k - 1)
        yield true, p.argmax(axis=1), p


def binary_cases(seed: int) -> Iterator[tuple[Floats, Bools]]:
    for true, _, p in cases(seed):
        positive = true == 0
        if positive.any() and not positive.all():
            yield p[:, 0], positive


def curve(score: Floats, positive: Bools) -> classification_roc.RocCurveBatch:
    """Return the one ROC curve of some scores."""
    return classification_roc.roc_curve_batch(
        classification_roc.cumulative_counts(
            classification_roc.sort_scores(score, positive), np.ones((1, len(score)))
        )
    )


def close(ours: object, theirs: object, tolerance: float = 1e-9) -> bool:
    return bool(np.allclose(np.asarray(ours, float), np.asarray(theirs, float), rtol=0, atol=tolerance))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")  # the reference's, of undefined cases
def test_correlation_and_kappa_agree_and_are_undefined_where_the_reference_makes_a_number_up() -> None:
    undefined = 0
    for true, predicted, p in cases(1):
        k = p.shape[1]
        matrix = confusion.confusion_matrix(true, predicted, k)
        correlation, agreement = float(confusion.mcc(matrix)), float(confusion.kappa(matrix))
        if math.isnan(correlation):  # all of one class, or all called one: 0 / 0, of which scikit-learn makes 0
            assert len(set(true)) == 1 or len(set(predicted)) == 1
            undefined += 1
        else:
            assert close(correlation, sk.matthews_corrcoef(true, predicted))
        if math.isnan(agreement):  # chance alone agrees always: 0 / 0, NaN there
            assert len(set(true) | set(predicted)) == 1
        else:
            assert close(agreement, sk.cohen_kappa_score(true, predicted))
    assert undefined > 10


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_negative_predictive_value_and_correlation_of_every_class() -> None:
    for true, predicted, p in cases(2):
        tally = confusion.one_vs_rest_counts(confusion.confusion_matrix(true, predicted, p.shape[1]))
        clear, correlation = confusion.npv(tally), confusion.binary_mcc(tally)
        for name in range(p.shape[1]):
            own, called = true == name, predicted == name
            if math.isnan(clear[name]):  # none called negative, or no negative there: the reference says 0
                assert called.all() or own.all()
            else:
                assert close(clear[name], sk.precision_score(~own, ~called))
            if math.isnan(correlation[name]):
                assert len(set(own)) == 1 or len(set(called)) == 1
            else:
                assert close(correlation[name], sk.matthews_corrcoef(own, called))


# Parts of the ROC curve -------------------------------------------------------------------------------------------


def of_2024(score: Floats, positive: Bools, sensitivity: float) -> float:
    """Return the 2024 challenge's figure by its published rule: the partial area of the flipped problem, unscaled."""
    most = 1 - sensitivity
    scaled = float(sk.roc_auc_score(~positive, 1 - score, max_fpr=most))
    least = 0.5 * most**2
    return least + (most - least) / 0.5 * (scaled - 0.5)


def of_scorer(score: Floats, positive: Bools, sensitivity: float) -> float:
    """Return `auc_sens_80` by the official scorer's rule: cut the curve at the sensitivity, area of the rest."""
    fpr, tpr, _ = sk.roc_curve(positive, score, drop_intermediate=False)
    at = int(np.searchsorted(tpr, sensitivity, side="left"))
    cut = np.interp(sensitivity, tpr[at - 1 : at + 1], fpr[at - 1 : at + 1])
    return float(sk.auc(np.append(cut, fpr[at:]), np.append(sensitivity, tpr[at:])))


def test_both_partial_areas() -> None:
    for score, positive in binary_cases(3):
        roc = curve(score, positive)
        for sensitivity in (0.8, 0.5, 0.95):
            assert close(
                classification_roc.partial_auroc_2024(roc, sensitivity), of_2024(score, positive, sensitivity)
            )
            assert close(
                classification_roc.partial_auroc_isic(roc, sensitivity), of_scorer(score, positive, sensitivity)
            )


def test_a_guess_and_a_perfect_score_have_the_areas_that_tell_the_definitions_apart() -> None:
    positive = np.arange(400) % 4 == 0
    guess, perfect = curve(np.zeros(400), positive), curve(positive.astype(float), positive)
    assert close(classification_roc.partial_auroc_2024(guess), 0.02) and close(
        classification_roc.partial_auroc_2024(perfect), 0.2
    )
    assert close(classification_roc.partial_auroc_isic(guess), 0.18) and close(
        classification_roc.partial_auroc_isic(perfect), 1.0
    )
    scores = np.random.default_rng(0).random((40, 20_000))
    half = np.arange(20_000) % 2 == 0
    curves = [curve(score, half) for score in scores]
    assert np.mean([classification_roc.partial_auroc_2024(roc)[0] for roc in curves]) == pytest.approx(
        0.02, abs=5e-4
    )
    assert np.mean([classification_roc.partial_auroc_isic(roc)[0] for roc in curves]) == pytest.approx(
        0.18, abs=2e-3
    )


def test_fixed_points_are_the_best_thresholds_that_keep_their_promise() -> None:
    for score, positive in binary_cases(4):
        roc = curve(score, positive)
        thresholds = np.append(np.unique(score), np.inf)
        pairs = [((score[positive] >= t).mean(), (score[~positive] < t).mean()) for t in thresholds]
        for kept in (0.5, 0.9, 0.95, 1.0):
            best = max(sensitivity for sensitivity, specificity in pairs if specificity >= kept - 1e-12)
            assert close(classification_roc.sensitivity_at_specificity(roc, kept), best)
            best = max(specificity for sensitivity, specificity in pairs if sensitivity >= kept - 1e-12)
            assert close(classification_roc.specificity_at_sensitivity(roc, kept), best)


def test_resampled_curves_are_those_of_the_copied_images() -> None:
    generator = np.random.default_rng(5)
    score, positive = np.round(generator.random(60), 1), generator.random(60) < 0.4
    weights = generator.multinomial(60, np.full(60, 1 / 60), size=50).astype(float)
    weights[7] *= positive
    roc = classification_roc.roc_curve_batch(
        classification_roc.cumulative_counts(classification_roc.sort_scores(score, positive), weights)
    )
    for row, times in enumerate(weights.astype(int)):
        drawn_score, drawn = np.repeat(score, times), np.repeat(positive, times)
        if drawn.all() or not drawn.any():
            assert np.isnan(classification_roc.partial_auroc_2024(roc)[row]) and np.isnan(
                classification_roc.partial_auroc_isic(roc)[row]
            )
            assert np.isnan(classification_roc.sensitivity_at_specificity(roc, 0.9)[row]) and np.isnan(
                classification_roc.specificity_at_sensitivity(roc, 0.9)[row]
            )
            continue
        own = curve(drawn_score, drawn)
        for figure in (classification_roc.partial_auroc_2024, classification_roc.partial_auroc_isic):
            assert close(figure(roc)[row], figure(own))
        assert close(
            classification_roc.sensitivity_at_specificity(roc, 0.9)[row],
            classification_roc.sensitivity_at_specificity(own, 0.9),
        )
    assert np.isnan(classification_roc.partial_auroc_2024(roc)[7])


def test_the_official_scorer_by_its_published_rules() -> None:
    seen = 0
    for true, _, p in cases(6):
        k = p.shape[1]
        weight = np.random.default_rng(len(true)).integers(0, 2, len(true)).astype(float)
        kept = weight > 0
        if len(set(true[kept])) < max(k, 2):
            with pytest.raises(ValueError, match="no image"):
                isic_scorer.official_score(true, p, weight)
            continue
        seen += 1
        found = isic_scorer.official_score(true, p, weight)
        top = p[kept].max(axis=1, keepdims=True)
        called = np.where(
            (p[kept] == top).sum(axis=1) > 1, k, p[kept].argmax(axis=1)
        )  # ties: a class of their own
        recalls = [float((called[true[kept] == c] == c).mean()) for c in range(k)]
        assert close(found.balanced_accuracy, np.mean(recalls))
        for c in range(k):
            own, says = true[kept] == c, p[kept, c] > 0.5
            tp, fp, fn, tn = (own & says).sum(), (~own & says).sum(), (own & ~says).sum(), (~own & ~says).sum()
            assert close(found.per_class["ppv"][c], tp / (tp + fp) if tp + fp else 1.0)
            assert close(found.per_class["npv"][c], tn / (tn + fn) if tn + fn else 1.0)
            assert close(found.per_class["dice"][c], 2 * tp / (2 * tp + fp + fn))
            assert close(found.per_class["auc"][c], sk.roc_auc_score(own, p[kept, c]))
            assert close(found.per_class["ap"][c], sk.average_precision_score(own, p[kept, c]))
            assert close(found.per_class["auc_sens_80"][c], of_scorer(p[kept, c], own, 0.8))
    assert seen > 100


# Probabilities ----------------------------------------------------------------------------------------------------


def test_the_parts_of_the_brier_score_add_up_and_are_the_textbook_ones() -> None:
    for score, positive in binary_cases(7):
        bins = np.clip(np.ceil(score * 15).astype(int) - 1, 0, 14)
        y = positive.astype(float)
        n, stated, seen = (
            np.bincount(bins, weights=part, minlength=15).astype(float) for part in (np.ones(len(y)), score, y)
        )
        parts = calibration.decompose_brier(n, stated, seen, np.asarray(((score - y) ** 2).sum()))
        assert close(parts.score, sk.brier_score_loss(positive, score))
        groups = [(score[bins == b], y[bins == b]) for b in set(bins.tolist())]
        assert close(parts.reliability, sum(len(s) * (s.mean() - t.mean()) ** 2 for s, t in groups) / len(y))
        assert close(parts.resolution, sum(len(s) * (t.mean() - y.mean()) ** 2 for s, t in groups) / len(y))
        assert close(parts.score, parts.reliability - parts.resolution + parts.uncertainty + parts.within_bins)
        width = sum(((s - s.mean()) ** 2 - 2 * (s - s.mean()) * (t - t.mean())).sum() for s, t in groups) / len(y)
        assert close(parts.within_bins, width)


def test_slope_and_intercept_are_those_of_a_logistic_regression() -> None:
    fitted = 0
    for score, positive in binary_cases(8):
        with np.errstate(divide="ignore"):
            odds = np.log(score) - np.log(1 - score)
        found = calibration.calibration_slope_intercept(score, positive, np.arange(len(score)))

        def excess(shift: float, odds: Floats = odds, positive: Bools = positive) -> float:
            return float(expit(odds + shift).sum() - positive.sum())

        unsure = np.isfinite(odds)
        refuted = bool((~unsure & ((odds > 0) != positive)).any())
        sides = set(positive[unsure].tolist())
        if math.isnan(
            found.intercept
        ):  # no shift moves odds that are infinite, or one that shifts ever on is best
            assert refuted or len(sides) < 2 or np.abs(score - positive).max() <= 1e-9
        else:
            assert close(found.intercept, brentq(excess, -80, 80, xtol=1e-12), 1e-5) and not refuted
        if math.isnan(found.slope):
            one_side = (
                odds[positive].min() >= odds[~positive].max() or odds[positive].max() <= odds[~positive].min()
            )
            assert one_side or not unsure.all(), "undefined only where one threshold parts the sides"
            continue
        if not unsure.all():
            continue  # the reference's solver does not take infinite odds
        fitted += 1
        model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-12, max_iter=10_000)
        model.fit(odds[:, None], positive)
        assert close(found.slope, model.coef_[0, 0], 1e-5)
    assert fitted > 50


def test_variances_of_slope_and_intercept_are_those_that_simulation_shows() -> None:
    generator = np.random.default_rng(9)
    slopes, shifts, stated = [], [], []
    for _ in range(400):
        odds = np.repeat(generator.normal(0, 1.5, 150), 2)
        event = np.repeat(generator.random(150), 2) < 1 / (1 + np.exp(-0.7 * odds - 0.2))
        p = 1 / (1 + np.exp(-odds))
        found = calibration.calibration_slope_intercept(p, event, np.repeat(np.arange(150), 2))
        slopes.append(found.slope)
        shifts.append(found.intercept)
        stated.append((found.slope_variance, found.intercept_variance))
    of_slope, of_shift = np.mean(stated, axis=0)
    assert np.mean(slopes) == pytest.approx(0.7, abs=0.05)
    assert of_slope == pytest.approx(np.var(slopes), rel=0.25)
    assert of_shift == pytest.approx(np.var(shifts), rel=0.25)


def test_net_benefit_is_its_definition() -> None:
    thresholds = np.array([0.0, 0.02, 0.1, 0.5, 0.9])
    for score, positive in binary_cases(10):
        found = calibration.net_benefit(score, positive, thresholds)
        for t, value in zip(thresholds, found, strict=True):
            called = score >= t
            tp, fp = (called & positive).sum(), (called & ~positive).sum()
            assert close(value, (tp - fp * t / (1 - t)) / len(score))
        everyone = calibration.net_benefit_call_all(float(positive.mean()), thresholds)
        assert close(found[0], everyone[0]), "at a threshold of 0 every image is called positive"
    with pytest.raises(ValueError, match="below 1"):
        calibration.net_benefit(np.array([0.5]), np.array([True]), np.array([1.0]))


def test_class_by_class_calibration_error() -> None:
    generator = np.random.default_rng(11)
    p = generator.dirichlet(np.ones(3), 200)
    true = generator.integers(0, 3, 200)
    gaps = np.zeros((3, 15))
    for c in range(3):
        bins = np.clip(np.ceil(p[:, c] * 15).astype(int) - 1, 0, 14)
        gaps[c] = np.bincount(bins, weights=p[:, c] - (true == c), minlength=15)
    each = []
    for c in range(3):
        edges = np.linspace(0, 1, 16)
        inside = [(p[:, c] > low) & (p[:, c] <= high) for low, high in itertools.pairwise(edges)]
        each.append(
            sum(rows.sum() * abs((true[rows] == c).mean() - p[rows, c].mean()) for rows in inside if rows.any())
        )
    assert close(calibration.classwise_ece_from_bins(gaps, np.asarray(200.0)), np.mean(each) / 200)


# Intervals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 7, 30, 118, 1000])
def test_intervals_of_proportions(n: int) -> None:
    for successes in sorted({0, 1, n // 2, n - 1, n}):
        test = stats.binomtest(successes, n)
        exact, score = test.proportion_ci(method="exact"), test.proportion_ci(method="wilson")
        assert close(intervals.clopper_pearson_interval(successes, n), (exact.low, exact.high))
        assert close(intervals.wilson_interval(successes, n), (score.low, score.high))
        name = intervals.proportion_interval(successes, n)[1]
        assert name == (intervals.CLOPPER_PEARSON if n < 30 else intervals.WILSON)


def test_the_corrected_bootstrap_is_scipys_on_the_same_resamples() -> None:
    generator = np.random.default_rng(12)
    for _ in range(40):
        data = generator.lognormal(0, 1, int(generator.integers(10, 60)))
        drawn = np.array([generator.choice(data, len(data)).mean() for _ in range(999)])
        left_out = (data.sum() - data) / (len(data) - 1)
        before: Any = SimpleNamespace(bootstrap_distribution=drawn)
        theirs = stats.bootstrap((data,), np.mean, n_resamples=0, bootstrap_result=before, method="BCa", axis=0)
        ours = intervals.bca_interval(float(data.mean()), drawn, left_out).ci95
        assert ours is not None
        assert close(ours, theirs.confidence_interval)


def test_copies_of_one_image_are_worth_one() -> None:
    generator = np.random.default_rng(13)
    hit = generator.random(100) < 0.8
    once, name = intervals.clustered_proportion_interval(hit, np.arange(100))
    assert name == intervals.GROUPED_WILSON
    five, name = intervals.clustered_proportion_interval(np.repeat(hit, 5), np.repeat(np.arange(100), 5))
    assert close(once, five, 0.005)
    assert name == intervals.GROUPED_WILSON
    sure, _ = intervals.clustered_proportion_interval(np.ones(500, dtype=bool), np.repeat(np.arange(100), 5))
    assert close(sure, intervals.wilson_interval(100, 100))


def test_one_lesion_alone_has_no_interval_however_many_photographs_there_are_of_it() -> None:
    found = intervals.proportion_estimate(np.arange(60) < 45, np.zeros(60, dtype=np.int64))
    assert (found.value, found.ci95, found.n, found.reason) == (0.75, None, 60, intervals.ONE_GROUP_REASON)


def test_a_mean_of_one_proportion_has_its_interval() -> None:
    bounds = intervals.wilson_interval(40, 50)
    assert close(intervals.mean_of_proportions_interval(np.array([0.8]), [bounds]), bounds)
    two = intervals.mean_of_proportions_interval(np.array([0.8, 0.8]), [bounds, bounds])
    assert bounds[0] < two[0] < 0.8 < two[1] < bounds[1]


# Areas that are compared ------------------------------------------------------------------------------------------


def kernel(score: Floats, positive: Bools) -> Floats:
    yes, no = score[positive][:, None], score[~positive][None, :]
    return np.asarray((yes > no) + 0.5 * (yes == no), dtype=float)


def test_covariances_of_areas_pair_by_pair() -> None:
    generator = np.random.default_rng(14)
    for score, positive in list(binary_cases(15))[:200]:
        if positive.sum() < 2 or (~positive).sum() < 2:
            continue
        scores = np.stack([score, np.round(score + generator.normal(0, 0.3, len(score)), 1)])
        found = delong.auroc_covariance(scores, positive, np.arange(len(score)))
        tables = [kernel(row, positive) for row in scores]
        above = np.stack([table.mean(axis=1) for table in tables])
        below = np.stack([table.mean(axis=0) for table in tables])
        expected = np.cov(above) / positive.sum() + np.cov(below) / (~positive).sum()
        assert close(found.values, [sk.roc_auc_score(positive, row) for row in scores])
        assert close(found.covariance, expected)


def test_units_with_both_sides_vary_together() -> None:
    """Obuchowski's sums, written out unit by unit."""
    generator = np.random.default_rng(16)
    units = generator.integers(0, 25, 120)
    positive, score = generator.random(120) < 0.4, generator.random(120)
    found = delong.auroc_covariance(score[None], positive, units)
    table = kernel(score, positive)
    value, (n, m) = table.mean(), table.shape
    first, second = table.mean(axis=1) - value, table.mean(axis=0) - value
    names = sorted(set(units.tolist()))
    a = np.array([first[units[positive] == u].sum() / n for u in names])
    b = np.array([second[units[~positive] == u].sum() / m for u in names])
    i10, i01, i = len(set(units[positive])), len(set(units[~positive])), len(names)
    expected = i10 / (i10 - 1) * (a**2).sum() + i01 / (i01 - 1) * (b**2).sum() + 2 * i / (i - 1) * (a * b).sum()
    assert close(found.covariance[0, 0], expected)


def test_one_score_twice_does_not_differ_from_itself() -> None:
    score, positive = np.random.default_rng(17).random(50), np.arange(50) % 3 == 0
    found = delong.auroc_covariance(np.stack([score, score, -score]), positive, np.arange(50))
    assert delong.delong_test(found, 0, 1) == (0.0, 0.0, 1.0)
    gap, error, p = delong.delong_test(found, 0, 2)
    assert close(gap, 2 * found.values[0] - 1) and error > 0 and 0 < p <= 1


# The interval of one AUROC ----------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.booleans())
def test_an_auroc_interval_holds_its_value(seed: int, grouped: bool) -> None:
    generator = np.random.default_rng(seed)
    positive = np.arange(60) < generator.integers(5, 55)
    score = np.round(generator.normal(0, 1, 60) + positive, 1)
    units = generator.integers(0, 25, 60) if grouped else np.arange(60)
    found = delong.auroc_interval(score, positive, units)
    value = delong.auroc_covariance(score[None], positive, units).values[0]
    if found is None:
        assert value in (0.0, 1.0)
        return
    assert 0 < found[0] < value < found[1] < 1
    assert delong.auroc_interval(np.exp(score), positive, units) == found, "only the order counts"
    assert delong.auroc_interval(score, positive, units + 7) == found, "only who belongs together counts"


def test_an_auroc_interval_by_hand() -> None:
    """Many images far from 1: the logit interval of DeLong's variance, Welch's degrees of freedom."""
    generator = np.random.default_rng(4)
    positive = np.arange(300) < 120
    score = generator.normal(0, 1, 300) + 0.8 * positive
    wins = (score[:120, None] > score[None, 120:]).astype(np.float64)
    parts = np.array([wins.mean(axis=1).var(ddof=1) / 120, wins.mean(axis=0).var(ddof=1) / 180])
    value, df = wins.mean(), parts.sum() ** 2 / (parts[0] ** 2 / 119 + parts[1] ** 2 / 179)
    half = stats.t.ppf(0.975, df) * np.sqrt(parts.sum()) / (value * (1 - value))
    expected = 1 / (1 + np.exp(-(np.log(value / (1 - value)) + np.array([-half, half]))))
    assert delong.auroc_interval(score, positive, np.arange(300)) == pytest.approx(tuple(expected), rel=1e-9)
    twice = delong.auroc_interval(np.tile(score, 2), np.tile(positive, 2), np.tile(np.arange(300), 2))
    assert twice == pytest.approx(tuple(expected), rel=1e-9), "a second photograph of each lesion adds nothing"


def test_a_variance_that_came_out_too_small_is_not_believed() -> None:
    """One pair in the wrong order among 40 and 40: DeLong's own variance would promise a width of 0.004."""
    score = np.arange(80.0)
    positive = score >= 40
    score[39] += 1.5
    own = delong.auroc_covariance(score[None], positive, np.arange(80)).covariance[0, 0] ** 0.5
    found = delong.auroc_interval(score, positive, np.arange(80))
    assert found is not None and found[1] - found[0] > 2 * own * 3.92
    assert delong.auroc_interval(np.arange(80.0), positive, np.arange(80)) is None
    assert fold_auroc.hanley_mcneil_variance(0.8, 50, 80) == pytest.approx(
        (0.16 + 49 * 0.08 / 3 + 79 * 0.64 / 9) / 4000
    )
