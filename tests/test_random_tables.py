"""240 random tables of predictions, extreme ones included: every figure against scikit-learn, SciPy or its definition.

A table is written as CSV, read as `dermkit evaluate --predictions` reads it, and evaluated. The references work on the
integers behind the table where it has some (votes, printed decimals), so that their ties are exact.
"""

import io
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.optimize import brentq
from scipy.special import expit
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression

from dermkit.data.manifest import LesionClass
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.classification.summary import evaluate_split
from dermkit.metrics.decisions.operating_point_metrics import evaluate_threshold
from dermkit.metrics.stats.arrays import Bools, Floats, Ints
from dermkit.runs.predictions import check_predictions, to_scored_set
from test_references import of_2024, of_scorer

KINDS = (
    "votes of ten", "votes of seven", "three decimals", "full precision", "nearly certain", "hard answers", "perfect",
    "inverted", "constant", "one class", "few images", "one rare", "twelve classes", "lesions", "patients",
)  # fmt: skip
TABLES_PER_KIND = 16


@dataclass(frozen=True)
class Table:
    """units: the integers whose share of `total` the probabilities are, None for floats. groups: None for none."""

    kind: str
    true: Ints
    p: Floats
    units: Ints | None
    total: int
    malignant: Bools
    groups: Ints | None

    def score(self, mask: Bools) -> Floats:
        """Return the summed probability of some classes, without float rounding."""
        if self.units is not None:
            return np.array([float(Fraction(int(row[mask].sum()), self.total)) for row in self.units])
        if mask.sum() == 1:
            return self.p[:, mask][:, 0]
        return np.array([float(f"{min(math.fsum(row), 1.0):.9e}") for row in self.p[:, mask].tolist()])


def make_table(kind: str, seed: int) -> Table:
    rng = np.random.default_rng([KINDS.index(kind), seed])
    k = 12 if kind == "twelve classes" else int(rng.choice([2, 3, 4, 7]))
    n = int(rng.integers(1, 4)) if kind == "few images" else int(rng.integers(40, 300))
    true = rng.integers(0, k, n)
    if kind == "one class":
        true[:] = true[0]
    if kind == "one rare":
        true = np.where(np.arange(n) == 0, 0, rng.integers(1, k, n))
    groups = {"lesions": np.unique(5 * true + rng.integers(0, 40, n) * 100, return_inverse=True)[1],
              "patients": np.unique(rng.integers(0, 45, n), return_inverse=True)[1]}.get(kind)  # fmt: skip
    p = (0.6 * np.eye(k)[true] + 0.4 * rng.dirichlet(np.ones(k), n)) if rng.random() < 0.5 else rng.dirichlet(
        np.full(k, 0.02 if kind == "nearly certain" else 0.6), n
    )  # fmt: skip
    p = p / p.sum(axis=1, keepdims=True)
    units, total = None, {"votes of ten": 10, "votes of seven": 7, "three decimals": 1000}.get(kind, 1)
    if total > 1:
        units = np.array([rng.multinomial(total, row) for row in p])
    if kind in ("hard answers", "perfect", "inverted"):
        called = {"perfect": true, "inverted": (true + 1) % k}.get(
            kind, np.where(rng.random(n) < 0.8, true, rng.integers(0, k, n))
        )
        units = np.eye(k, dtype=np.int64)[called]
    if kind == "constant":
        units, total = np.tile(rng.multinomial(10, np.full(k, 1 / k)), (n, 1)), 10
    return Table(kind, true, p if units is None else units / total, units, total,
                 np.asarray(rng.random(k) < 0.4, dtype=bool), groups)  # fmt: skip


def read_table(table: Table) -> ScoredSet:
    names = [f"c{i:02}" for i in range(table.p.shape[1])]
    frame = pd.DataFrame({"image_id": [f"i{i:04}" for i in range(len(table.true))], "path": "", "split": "test",
                          "label": [names[c] for c in table.true], "fold": "", "seed": "",
                          "predicted": [names[c] for c in table.p.argmax(axis=1)]})  # fmt: skip
    for name, column in zip(names, table.p.T, strict=True):
        frame[f"p_{name}"] = column
    text = frame.to_csv(index=False)
    read = check_predictions(pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False), names)
    classes = [
        LesionClass(name, name, "malignant" if ill else "benign")
        for name, ill in zip(names, table.malignant, strict=True)
    ]
    groups = None if table.groups is None else dict(zip(frame["image_id"], table.groups.tolist(), strict=True))
    return to_scored_set(read, classes, groups)


def same(estimate: dict[str, Any], expected: float | None, what: str, tolerance: float = 1e-9) -> None:
    if expected is None:
        assert estimate["value"] is None and estimate["ci95"] is None and estimate["reason"], what
    else:
        assert estimate["value"] == pytest.approx(expected, abs=tolerance, rel=tolerance), what


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")  # the references', of undefined cases
@pytest.mark.parametrize("kind", KINDS)
def test_every_figure_of_a_random_table_is_that_of_independent_references(kind: str) -> None:
    for seed in range(TABLES_PER_KIND):
        table = make_table(kind, seed)
        scored = read_table(table)
        assert (scored.y_true == table.true).all() and (scored.probabilities == table.p).all()
        body = evaluate_split(scored, seed=0, resamples=20)
        what = f"{kind} {seed}"
        check_views(table, scored, body, what)
        check_all_classes(table, scored, body["metrics"], what)
        both = bool(table.malignant.any() and not table.malignant.all())
        ill = table.malignant[table.true]
        if both and ill.any() and not ill.all():
            check_malignancy(table, scored, body["metrics"], ill, what)
            check_calibration_line(table, scored, body["metrics"], ill, what)


# One against the rest ---------------------------------------------------------------------------------------------


def views(own: Bools, called: Bools, score: Floats) -> dict[str, float | None]:
    some, rest = bool(own.any()), not own.all()
    return {
        "recall": float(sk.recall_score(own, called)) if some else None,
        "precision": float(sk.precision_score(own, called)) if some and called.any() else None,
        "f1": float(sk.f1_score(own, called)) if some else None,
        "specificity": float(sk.recall_score(~own, ~called)) if rest else None,
        "npv": float(sk.precision_score(~own, ~called)) if rest and not called.all() else None,
        "mcc": float(sk.matthews_corrcoef(own, called)) if len({*own}) == len({*called}) == 2 else None,
        "auroc": float(sk.roc_auc_score(own, score)) if some and rest else None,
        "average_precision": float(sk.average_precision_score(own, score)) if some and rest else None,
    }


def check_views(table: Table, scored: ScoredSet, body: dict[str, Any], what: str) -> None:
    k, groups = len(scored.classes), np.arange(len(table.true)) if table.groups is None else table.groups
    per_view: dict[str, list[float | None]] = {}
    for c, name in enumerate(scored.classes):
        own, called = table.true == c, scored.y_pred == c
        expected = views(own, called, table.score(np.arange(k) == c))
        for view, value in expected.items():
            same(body["per_class"][name][view], value, f"{what} {name} {view}")
            per_view.setdefault(view, []).append(value)
        check_proportion(body["per_class"][name]["recall"], called[own], groups[own], f"{what} {name} recall")
        check_proportion(body["per_class"][name]["npv"], ~own[~called], groups[~called], f"{what} {name} npv")
        check_auroc_interval(table, body["per_class"][name]["auroc"], table.p[:, c], own, f"{what} {name}")
    for view, values in per_view.items():
        defined = [value for value in values if value is not None]
        mean = float(np.mean(defined)) if defined else None
        same(body["metrics"][f"{view}_macro_present"], mean, f"{what} {view}")
        same(body["metrics"][f"{view}_macro"], mean if len(defined) == k else None, f"{what} {view}")
    if table.malignant.any() and not table.malignant.all():
        ill, called = table.malignant[table.true], table.malignant[scored.y_pred]
        for view, value in views(ill, called, table.score(table.malignant)).items():
            same(body["metrics"][view], value, f"{what} malignant {view}")
    else:
        assert body["metrics"]["auroc"]["value"] is None


def check_proportion(estimate: dict[str, Any], success: Bools, groups: Ints, what: str) -> None:
    """Wilson's or Clopper and Pearson's interval by SciPy, for as many images as Kish's design effect leaves."""
    if estimate["ci95"] is None:
        assert estimate["value"] is None or len({*groups}) == 1, what
        return
    n, rate, units = len(success), success.mean(), len({*groups})
    if units == n:
        test = stats.binomtest(int(success.sum()), n)
        expected = test.proportion_ci(method="exact") if n < 30 else test.proportion_ci(method="wilson")
        assert estimate["ci95"] == pytest.approx([expected.low, expected.high], abs=1e-9), what
        return
    sums = [(success[groups == g] - rate).sum() for g in {*groups.tolist()}]
    effect = (
        sum(s * s for s in sums) / n**2 * units / (units - 1) / (rate * (1 - rate) / n)
        if 0 < rate < 1
        else n / units
    )
    images = n / max(1.0, effect)
    if images < 30:
        hits = rate * images
        low = stats.beta.ppf(0.025, hits, images - hits + 1) if hits else 0.0
        high = stats.beta.ppf(0.975, hits + 1, images - hits) if rate < 1 else 1.0
    else:
        z = stats.norm.ppf(0.975)
        ends = [brentq(lambda t, sign=sign: (rate - t) - sign * z * math.sqrt(t * (1 - t) / images), *bracket)
                if rate not in (0.0, 1.0) else rate
                for sign, bracket in ((1, (0.0, rate)), (-1, (rate, 1.0)))]  # fmt: skip
        low, high = (ends[0], ends[1])
        if rate in (0.0, 1.0):
            low, high = (0.0, z * z / (images + z * z)) if rate == 0 else (images / (images + z * z), 1.0)
    assert estimate["ci95"] == pytest.approx([low, high], abs=1e-8), what


def check_auroc_interval(table: Table, estimate: dict[str, Any], score: Floats, own: Bools, what: str) -> None:
    """DeLong's variance from all pairs, on the logit with Student's t (Welch); the floor for few is not tried."""
    value = estimate["value"]
    if table.groups is not None or value is None or value in (0.0, 1.0) or min(own.sum(), (~own).sum()) < 2:
        return
    pairs = (score[own][:, None] > score[~own]) + 0.5 * (score[own][:, None] == score[~own])
    parts = [pairs.mean(axis=1).var(ddof=1) / own.sum(), pairs.mean(axis=0).var(ddof=1) / (~own).sum()]
    q1, q2, m, n = value / (2 - value), 2 * value**2 / (1 + value), own.sum(), (~own).sum()
    plain = (value * (1 - value) + (m - 1) * (q1 - value**2) + (n - 1) * (q2 - value**2)) / (m * n)
    if sum(parts) < 0.4 * plain:
        return
    df = sum(parts) ** 2 / (parts[0] ** 2 / (m - 1) + parts[1] ** 2 / (n - 1))
    half = stats.t.isf(0.025, df) * math.sqrt(sum(parts)) / (value * (1 - value))
    logit = math.log(value / (1 - value))
    assert estimate["ci95"] == pytest.approx([expit(logit - half), expit(logit + half)], abs=1e-8), what


# All classes ------------------------------------------------------------------------------------------------------


def gap_in_bins(p: Floats, hit: Bools) -> float:
    bins = np.clip(np.ceil(p * 15 - 1e-12).astype(int) - 1, 0, 14)
    return float(sum(abs((p[bins == b] - hit[bins == b]).sum()) for b in range(15))) / len(p)


def best_first(row: Floats, called: int) -> list[int]:
    """Return the classes of an image by probability; of equals the predicted one is first, then their order."""
    return sorted(range(len(row)), key=lambda c: (-row[c], c != called, c))


def check_all_classes(table: Table, scored: ScoredSet, found: dict[str, Any], what: str) -> None:
    true, p, called, k = table.true, table.p, scored.y_pred, table.p.shape[1]
    same(found["accuracy"], float(sk.accuracy_score(true, called)), what)
    everyone = len({*true}) == k
    same(found["balanced_accuracy"], float(sk.balanced_accuracy_score(true, called)) if everyone else None, what)
    matrix = sk.confusion_matrix(true, called, labels=range(k))
    several = len({*true}) > 1 and len({*called}) > 1
    same(found["mcc_multiclass"], float(sk.matthews_corrcoef(true, called)) if several else None, what)
    agreed = len({*true} | {*called}) == 1
    same(found["kappa"], None if agreed else float(sk.cohen_kappa_score(true, called, labels=range(k))), what)
    p_true = p[np.arange(len(true)), true]
    loss = None if p_true.min() == 0 else -math.fsum(math.log(value) for value in p_true) / len(true)
    same(found["loss"], loss, f"{what} loss")
    if loss is not None and p_true.min() > 1e-15 and k > 1:
        assert loss == pytest.approx(sk.log_loss(true, p, labels=range(k)), rel=1e-9), what
    same(found["brier"], float(((p - np.eye(k)[true]) ** 2).sum(axis=1).mean()), what)
    same(found["ece"], gap_in_bins(p.max(axis=1), true == called), f"{what} ece")
    classwise = np.mean([gap_in_bins(p[:, c], true == c) for c in range(k)])
    same(found["ece_classwise"], float(classwise), f"{what} ece_classwise")
    for first in (2, 3):
        if first < k:
            hits = np.mean([true[i] in best_first(p[i], int(called[i]))[:first] for i in range(len(true))])
            same(found[f"top_{first}_accuracy"], float(hits), f"{what} top {first}")
    assert (matrix.diagonal().sum() / len(true)) == pytest.approx(found["accuracy"]["value"])


# Malignant against the rest ---------------------------------------------------------------------------------------


def check_malignancy(table: Table, scored: ScoredSet, found: dict[str, Any], ill: Bools, what: str) -> None:
    score = table.score(table.malignant)
    ranks = stats.rankdata(score, method="dense") / len(score)  # the references subtract scores from 1
    same(found["pauc_above_tpr80"], of_2024(ranks, ill, 0.8), f"{what} pauc")
    same(found["auc_sens_80"], of_scorer(ranks, ill, 0.8), f"{what} auc_sens_80")
    pairs = [((score[ill] >= t).mean(), (score[~ill] < t).mean()) for t in [*np.unique(score), np.inf]]
    for rate in (0.9, 0.95):
        best = max(sens for sens, spec in pairs if spec >= rate - 1e-12)
        same(found[f"sensitivity_at_specificity_{round(100 * rate)}"], float(best), what)
        best = max(spec for sens, spec in pairs if sens >= rate - 1e-12)
        same(found[f"specificity_at_sensitivity_{round(100 * rate)}"], float(best), what)
    same(found["brier_malignant"], float(sk.brier_score_loss(ill, score)), what)
    for t in (0.05, 0.1, 0.2):
        called = score >= t
        benefit = ((called & ill).sum() - (called & ~ill).sum() * t / (1 - t)) / len(ill)
        same(found[f"net_benefit_{round(100 * t)}"], float(benefit), f"{what} net benefit {t}")
    for i in np.linspace(0, len(ill) - 1, 6).astype(
        int
    ):  # thresholds on an image's score: all of its tie, or none
        result = evaluate_threshold(scored, float(scored.p_malignant[i]), prevalences=(0.1,))
        sens, spec = (score[ill] >= score[i]).mean(), (score[~ill] < score[i]).mean()
        assert result.sensitivity.value == pytest.approx(sens) and result.specificity.value == pytest.approx(spec)
        if (chance := 0.1 * sens + 0.9 * (1 - spec)) > 0:
            assert result.per_prevalence[0].ppv.value == pytest.approx(0.1 * sens / chance), what


def sandwich(design: Floats, residual: Floats, p: Floats, groups: Ints) -> Floats:
    bread = np.linalg.inv(design.T @ (design * (p * (1 - p))[:, None]))
    meat = np.zeros_like(bread)
    for g in {*groups.tolist()}:
        sums = (design[groups == g] * residual[groups == g][:, None]).sum(axis=0)
        meat += np.outer(sums, sums)
    units = len({*groups.tolist()})
    return np.asarray(bread @ meat @ bread * units / (units - 1), dtype=np.float64)


def check_calibration_line(table: Table, scored: ScoredSet, found: dict[str, Any], ill: Bools, what: str) -> None:
    score, slope, intercept = (
        table.score(table.malignant),
        found["calibration_slope"],
        found["calibration_intercept"],
    )
    sure = (score <= 0) | (score >= 1)
    if (sure & ((score >= 1) != ill)).any() and table.units is not None:
        assert slope["value"] is None and intercept["value"] is None and "infinite" in slope["reason"], what
        return
    if table.units is None and (sure.any() or score.max() > 1 - 1e-6 or score.min() < 1e-12):
        return  # next to 1 the other classes say how near, which this score does not know
    groups, odds, y = (np.arange(len(ill)) if table.groups is None else table.groups), score[~sure], ill[~sure]
    odds, groups = np.log(odds / (1 - odds)), groups[~sure]
    if not y.any() or y.all():
        assert slope["value"] is None and intercept["value"] is None, what
        return
    shift = brentq(lambda a: float(expit(odds + a).sum() - y.sum()), -80, 80, xtol=1e-13)
    same(intercept, shift, f"{what} intercept", 1e-6)
    p = expit(odds + shift)
    if not sure.any():
        spread = 1.959963985 * math.sqrt(sandwich(np.ones((len(y), 1)), y - p, p, groups)[0, 0])
        assert intercept["ci95"] == pytest.approx([shift - spread, shift + spread], abs=1e-6), what
    if odds[y].min() >= odds[~y].max() or odds[y].max() <= odds[~y].min():
        assert slope["value"] is None, what
    elif not sure.any():
        model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-12, max_iter=10_000)
        model.fit(odds[:, None], y)
        same(slope, float(model.coef_[0, 0]), f"{what} slope", 1e-5)
        design = np.column_stack([np.ones(len(y)), odds])
        p = model.predict_proba(odds[:, None])[:, 1]
        spread = 1.959963985 * math.sqrt(sandwich(design, y - p, p, groups)[1, 1])
        assert slope["ci95"] == pytest.approx([slope["value"] - spread, slope["value"] + spread], abs=1e-4), what
