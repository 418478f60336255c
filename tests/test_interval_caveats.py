"""Intervals that the coverage map does not vouch for are marked in metrics.json, and no others."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dermkit.data.manifest import LesionClass
from dermkit.evaluation.evaluate import EvaluationInput, evaluate_predictions
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.classification.summary import evaluate_split
from dermkit.metrics.stats import intervals
from dermkit.metrics.stats.estimate import Estimate, humanise, reliability, with_caveats
from dermkit.runs.predictions import prediction_columns

MARK = "interval unreliable"
CLASSES = (LesionClass("nevus", "nevus", "benign"), LesionClass("melanoma", "melanoma", "malignant"))
SIDES = {
    "accuracy": (), "sensitivity": ("melanoma",), "specificity": ("nevus",), "auroc": ("melanoma", "nevus"),
    "balanced_accuracy": ("melanoma", "nevus"), "average_precision": ("melanoma", "nevus"),
    "calibration_slope": ("melanoma", "nevus"), "auc_sens_80": ("melanoma", "nevus"),
}  # fmt: skip
"""Whose units a figure rests on, beside all together."""


def predictions(units: dict[str, int], *, per_unit: int = 1) -> tuple[pd.DataFrame, dict[str, int] | None]:
    """Return a made test side of so many lesions per class, three of four images right, and its groups."""
    rows: list[tuple[object, ...]] = []
    groups: dict[str, int] = {}
    generator = np.random.default_rng(0)
    for label, count in units.items():
        other = next(name for name in units if name != label)
        for unit in range(count):
            for image in range(per_unit):
                name = f"{label}-{unit}-{image}"
                sure = float(generator.uniform(0.55, 0.95))
                own = sure if (unit * per_unit + image) % 4 else 1 - sure
                rows.append((name, name, label, "test", "", "", label if own > 0.5 else other,
                             *(own if c.name == label else 1 - own for c in CLASSES)))  # fmt: skip
                groups[name] = len(groups) if per_unit == 1 else unit + 1000 * (label == "nevus")
    columns = prediction_columns([c.name for c in CLASSES])
    return pd.DataFrame(rows, columns=columns), groups if per_unit > 1 else None


def marked(units: dict[str, int], *, per_unit: int = 1) -> dict[str, bool]:
    frame, groups = predictions(units, per_unit=per_unit)
    figures = evaluate_predictions(EvaluationInput(frame, classes=CLASSES, groups=groups))["splits"]["test"][
        "metrics"
    ]
    assert all(figures[name]["ci95"] for name in SIDES)
    return {name: MARK in figures[name].get("reason", "") for name in SIDES}


@pytest.mark.parametrize("per_unit", [1, 3])
@pytest.mark.parametrize(("nevi", "melanomas"), [(60, 30), (60, 29), (29, 60), (20, 8), (200, 12)])
def test_few_units_of_a_class_mark_what_rests_on_them(nevi: int, melanomas: int, per_unit: int) -> None:
    """Photographs are no units: 8 lesions with three each are 8."""
    units = {"nevus": nevi, "melanoma": melanomas}
    found = marked(units, per_unit=per_unit)
    for name, sides in SIDES.items():
        few = [side for side in sides if units[side] < intervals.MIN_GROUPS]
        assert found[name] == bool(few or nevi + melanomas < intervals.MIN_GROUPS), name


def test_what_a_sample_makes_too_good_or_too_bad_is_marked_however_many_there_are() -> None:
    frame, _ = predictions({"nevus": 200, "melanoma": 200})
    body = evaluate_predictions(EvaluationInput(frame, classes=CLASSES, groups=None))["splits"]["test"]["metrics"]
    assert (
        "too large by chance" in body["ece"]["reason"] and "too large by chance" in body["ece_classwise"]["reason"]
    )
    assert "chosen on these images" in body["specificity_at_sensitivity_90"]["reason"]
    assert not body["brier"].get("reason") and not body["sensitivity"].get("reason")


def drawn_with(units: int, *, wrong: int, per_unit: int = 1, ill: float = 0.5) -> dict[str, dict[str, object]]:
    """Return the figures of so many lesions, the first `wrong` of which are called the other class."""
    unit = np.repeat(np.arange(units), per_unit)
    true = (unit % 100 >= 100 * (1 - ill)).astype(np.int64)
    p_right = np.where(unit < wrong, 0.3, 0.7) + np.random.default_rng(0).uniform(-0.15, 0.15, len(unit))
    p = np.where(true == 1, p_right, 1 - p_right)
    called = (p > 0.5).astype(np.int64)
    scored = ScoredSet(["a", "b"], np.array([False, True]), true, called, np.column_stack([1 - p, p]), unit)
    found: dict[str, dict[str, object]] = evaluate_split(scored, seed=0, resamples=200)["metrics"]
    return found


RESAMPLED = ("loss", "brier", "kappa", "mcc_multiclass", "f1", "mcc", "f1_macro", "average_precision", "net_benefit_10",
             "auc_sens_80", "calibration_slope", "calibration_intercept")  # fmt: skip


@pytest.mark.parametrize("per_unit", [1, 2])
@pytest.mark.parametrize(("units", "wrong", "said"), [
    (100, 10, ""), (100, 9, "9 wrongly called units, 10 needed"), (100, 91, "9 rightly called units, 10 needed"),
    (100, 90, ""), (49, 20, "49 units, 50 needed"), (50, 20, ""),
])  # fmt: skip
def test_bootstraps_of_few_errors_or_few_units_are_marked(
    units: int, wrong: int, per_unit: int, said: str
) -> None:
    found = drawn_with(units, wrong=wrong, per_unit=per_unit, ill=0.5 if units == 100 else 1 - 0.01 * (units // 2))
    for name in RESAMPLED:
        reason = str(found[name].get("reason", ""))
        assert (f"{MARK}: {said}" in reason) if said else (" units, 10 needed" not in reason + "50 needed"), name
    assert not found["accuracy"].get("reason"), "a proportion has a formula"


@pytest.mark.parametrize(("melanomas", "is_marked"), [(199, True), (200, False)])
def test_the_end_of_the_curve_wants_many_of_the_class(melanomas: int, is_marked: bool) -> None:
    frame, _ = predictions({"nevus": 60, "melanoma": melanomas})
    body = evaluate_predictions(EvaluationInput(frame, classes=CLASSES, groups=None))["splits"]["test"]["metrics"]
    assert (f"{MARK}: {melanomas} units, 200 needed" in body["pauc_above_tpr80"].get("reason", "")) == is_marked
    assert not body["auroc"].get("reason") and not body["auc_sens_80"].get("reason")


def test_so_good_that_hardly_a_unit_is_misplaced() -> None:
    """At an AUROC of 0.98 with 56 of each the map has 98 %; a mean of recalls is no surer than these are."""
    generator = np.random.default_rng(0)
    for units, apart, near in ((60, 0.98, True), (60, 0.9, False), (300, 0.98, False)):
        true = np.repeat([0, 1], units)
        rank = np.where(true == 1, 1.0, 0.0) + 1e-3 * generator.random(2 * units)
        swapped = round((1 - apart) * units)
        rank[true == 1] = np.where(np.arange(units) < swapped, -1.0, rank[true == 1])
        p = np.where(rank > 0.5, 0.9, 0.1) + 0.05 * rank
        called = (p > 0.5).astype(np.int64)
        scored = ScoredSet(["a", "b"], np.array([False, True]), true, called, np.column_stack([1 - p, p]),
                        np.arange(2 * units))  # fmt: skip
        found = evaluate_split(scored, seed=0, resamples=0)["metrics"]
        assert abs(found["auroc"]["value"] - apart) < 0.01
        assert ("so near to 0 or 1" in found["auroc"].get("reason", "")) == near
        assert found["balanced_accuracy"]["reason"].startswith(f"{MARK}: ")  # no benign image is called malignant
        assert ("2 of 2 recalls" in found["balanced_accuracy"]["reason"]) == near


def test_the_mark_says_how_many_there_are() -> None:
    frame, _ = predictions({"nevus": 60, "melanoma": 12})
    body = evaluate_predictions(EvaluationInput(frame, classes=CLASSES, groups=None))["splits"]["test"]
    assert body["metrics"]["auroc"]["reason"] == f"{MARK}: 12 units, 30 needed"
    assert body["per_class"]["nevus"]["auroc"]["reason"] == f"{MARK}: 12 other units, 30 needed"
    assert body["metrics"]["balanced_accuracy"]["reason"] == f"{MARK}: 1 of 2 classes have fewer than 30 units"
    told = humanise(
        f"mean over 2 of 3 classes, without: a; {MARK}: 12 units, 30 needed; {MARK}: 9 other units, 30 needed"
    )
    few = "12 independent images, 30 needed; 9 other independent images, 30 needed"
    assert told == f"mean over 2 of 3 classes, without: a; {few}"
    assert humanise(f"{MARK}: 12 units, 30 needed") == "unreliable: 12 independent images, 30 needed"


@given(st.integers(30, 400), st.data())
def test_so_near_to_the_end_that_the_truth_may_lie_beyond(n: int, data: st.DataObject) -> None:
    """With one miss of n, Wilson's upper bound leaves out truths that are nearer to 1 than that."""
    hits = data.draw(st.integers(0, n))
    found = intervals.proportion_estimate(np.arange(n) < hits, np.arange(n))
    assert (MARK in found.reason) == (min(hits, n - hits) < 2)


def test_a_marked_interval_is_shown_and_a_misleading_one_is_not() -> None:
    sound = Estimate(0.8, (0.7, 0.9), 40, "wilson")
    assert reliability(sound.as_dict()) == ""
    assert reliability(with_caveats(sound, intervals.too_few(12)).as_dict()) == "doubtful"
    assert (
        reliability(
            with_caveats(sound, [f"{MARK}: the bootstrap is biased and does not hold the value"]).as_dict()
        )
        == "none"
    )
    without = Estimate(0.8, None, 40, "none", "no interval: one group only")
    assert with_caveats(without, intervals.too_few(12)) is without


def test_a_perfect_order_of_many_photographs_is_that_of_few_lesions() -> None:
    """35 and 35 lesions of 20 photographs each, all in order: the interval is that of 70 images."""

    def auroc(per_unit: int) -> dict[str, object]:
        lesion = np.repeat(np.arange(70), per_unit)
        true = (lesion >= 35).astype(np.int64)
        p = 0.1 + 0.8 * true
        scored = ScoredSet(["a", "b"], np.array([False, True]), true, true, np.column_stack([1 - p, p]), lesion)
        found: dict[str, object] = evaluate_split(scored, seed=0, resamples=0)["metrics"]["auroc"]
        return found

    assert auroc(20)["ci95"] == pytest.approx(auroc(1)["ci95"])
    assert auroc(20)["value"] == 1.0


def test_one_group_has_no_interval_of_its_auroc() -> None:
    generator = np.random.default_rng(0)
    true = generator.integers(0, 2, 80)
    p = generator.random(80)
    scored = ScoredSet(["a", "b"], np.array([False, True]), true, (p > 0.5).astype(np.int64),
                    np.column_stack([1 - p, p]), np.zeros(80, dtype=np.int64))  # fmt: skip
    found = evaluate_split(scored, seed=0, resamples=50)["metrics"]["auroc"]
    assert found["ci95"] is None and found["reason"] == "no interval: one group only"


def test_one_rare_patient_is_one_however_many_photographs() -> None:
    patient = np.repeat(np.arange(60), 10)
    assert MARK in intervals.proportion_estimate(patient != 3, patient).reason
    assert intervals.proportion_estimate((patient != 3) & (patient != 7), patient).reason == ""


def test_patients_of_very_different_size_are_worth_fewer() -> None:
    """Kish: (sum of sizes) squared over the sum of their squares; 40 patients, one of whom has half of the images."""
    sizes = np.where(np.arange(40) == 0, 39, 1)
    patient = np.repeat(np.arange(40), sizes)
    effective = 78**2 / (39**2 + 39)
    assert intervals.effective_group_count(patient) == pytest.approx(effective)
    found = intervals.proportion_estimate(np.arange(78) % 3 > 0, patient).reason
    assert found == f"{MARK}: 40 units of uneven size are worth {effective:.0f}, 24 needed"
    even = np.repeat(np.arange(40), np.arange(40) % 5 + 1)
    assert intervals.proportion_estimate(np.arange(len(even)) % 3 > 0, even).reason == ""
