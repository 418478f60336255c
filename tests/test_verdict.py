"""The verdict is no kinder than the figures: each way of being no better than a rule that sees no lesion, by itself."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dermkit.data.manifest import LesionClass
from dermkit.evaluation.evaluate import EvaluationInput, evaluate_predictions
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.decisions.conformal import fit_conformal
from dermkit.metrics.decisions.guarantees import BrokenGuarantee, find_broken_guarantees
from dermkit.metrics.decisions.policy import DecisionPolicy, evaluate_policy, fit_operating_points
from dermkit.metrics.decisions.recalibration import identity
from dermkit.metrics.stats.intervals import proportion_interval
from dermkit.runs.predictions import prediction_columns
from dermkit.runs.sentences import Figure, plain_text
from dermkit.runs.verdict import RunVerdict, guarantee_fragments, judge_metrics

CLASSES = (
    LesionClass("Naevus", "nevus", "benign"), LesionClass("Melanoma", "melanoma", "malignant"),
    LesionClass("Keratosis", "seborrheic_keratosis", "benign"),
)  # fmt: skip
NAMES = [entry.name for entry in CLASSES]

Counts = Sequence[Sequence[int]]
"""Rows by label, columns by answer, in the order of CLASSES."""

GOOD: Counts = ((700, 50, 50), (8, 90, 2), (10, 10, 80))
"""870 of 1,000 right; 90 of 100 melanomas, 842 of 900 others not called melanoma."""


def predictions(counts: Counts, split: str = "test", sure: float = 0.7) -> pd.DataFrame:
    """Return a row for each image of a confusion matrix; the answer has the probability `sure`."""
    rows = []
    for label, answers in enumerate(counts):
        for answer, n in enumerate(answers):
            p = [(1 - sure) / (len(NAMES) - 1)] * len(NAMES)
            p[answer] = sure
            for number in range(n):
                image = (
                    f"{split}-{label}-{sum(answers[:answer]) + number}"  # the same images, whatever the answers
                )
                rows.append([image, f"{image}.jpg", NAMES[label], split, "", "", NAMES[answer], *p])
    return pd.DataFrame(rows, columns=prediction_columns(NAMES))


def judged(counts: Counts, *, colour: Counts | None = None, groups: int = 0, **more: Any) -> RunVerdict:
    """Return the verdict on made answers. groups: so many lesions of equal size, 0 = each image its own."""
    return judge_metrics(evaluated(counts, colour=colour, groups=groups, **more), "test")


def evaluated(
    counts: Counts, *, colour: Counts | None = None, groups: int = 0, sure: float = 0.7
) -> dict[str, Any]:
    frame = predictions(counts, sure=sure)
    by_image: Mapping[str, int] | None = None
    if groups:
        by_image = {image: number % groups for number, image in enumerate(frame["image_id"])}
    return evaluate_predictions(
        EvaluationInput(
            frame,
            classes=CLASSES,
            groups=by_image,
            train_counts={"Naevus": 800, "Melanoma": 100, "Keratosis": 100},
            rule_predictions={} if colour is None else {"mean_colour": predictions(colour)},
        )
    )


WEAK_COLOUR: Counts = ((600, 100, 100), (60, 30, 10), (60, 10, 30))


def test_a_good_model_is_called_better() -> None:
    verdict = judged(GOOD, colour=WEAK_COLOUR)
    assert (verdict.outcome, verdict.metric) == ("above", "balanced_accuracy")
    assert verdict.text == (
        "Better than always answering “Naevus” without looking: the whole interval of balanced accuracy lies above "
        "that rule's 33.3 %. It finds 90.0 % of the malignant images (mean colour alone 30.0 %) and clears 93.3 % of "
        "the others (mean colour alone 87.8 %)."
    )


def test_good_models_stay_green_without_baselines_and_when_nearly_all_is_right() -> None:
    assert judged(GOOD).outcome == "above"
    nearly_perfect: Counts = ((799, 1, 0), (2, 98, 0), (0, 0, 100))
    assert "so near to 0 or 1" in str(evaluated(nearly_perfect)["splits"]["test"]["metrics"]["balanced_accuracy"])
    assert judged(nearly_perfect, colour=WEAK_COLOUR).outcome == "above"
    screening: Counts = ((560, 200, 40), (3, 96, 1), (10, 30, 60))  # many false alarms, nearly every melanoma
    verdict = judged(((700, 80, 20), *screening[1:]), colour=WEAK_COLOUR)
    assert verdict.outcome == "above", "fewer cleared than by mean colour, but far more found"


def test_an_accuracy_below_that_of_the_majority_is_said() -> None:
    counts: Counts = (
        (420, 190, 190),
        (8, 90, 2),
        (10, 10, 80),
    )  # balanced .74 against .33, accuracy .59 against .80
    verdict = judged(counts)
    assert verdict.outcome == "unclear"
    assert "its accuracy, 59.0 %, lies wholly below that of always answering “Naevus”, 80.0 %" in verdict.text
    assert not verdict.text.startswith("Better")


@pytest.mark.parametrize("found", [28, 52])
def test_few_malignant_images_found_is_said(found: int) -> None:
    counts: Counts = ((790, 5, 5), (100 - found, found, 0), (10, 0, 90))
    colour: Counts = ((700, 50, 50), (100 - found, found, 0), (60, 10, 30))
    verdict = judged(counts, colour=colour)
    assert verdict.outcome == "unclear"
    assert f"it finds {found}.0 % (" in verdict.text
    assert (
        "of the malignant images, which is not shown to be more than the half that a coin gets (mean colour alone "
        f"{found}.0 %)" in verdict.text
    )


def test_malignancy_that_mean_colour_tells_as_well_is_said() -> None:
    colour: Counts = ((700, 80, 20), (10, 88, 2), (60, 10, 30))
    counts: Counts = ((700, 80, 20), (10, 88, 2), (0, 10, 90))
    verdict = judged(counts, colour=colour)
    assert verdict.outcome == "unclear"
    assert "mean colour alone does as well: sensitivity 88.0 % against 88.0 %, specificity 90.0 %" in verdict.text


def test_balanced_accuracy_of_mean_colour_is_a_rule_to_beat() -> None:
    verdict = judged(GOOD, colour=GOOD)
    assert verdict.outcome == "unclear"
    assert (
        "its balanced accuracy, 85.8 %, is not shown to be above that of mean colour alone, 85.8 %" in verdict.text
    )


def test_probabilities_worse_than_the_prior_are_said() -> None:
    verdict = judged(GOOD, sure=1 - 1e-9)
    assert "its probabilities are worse than stating how common each class is: loss 2." in verdict.text
    assert (verdict.outcome, judged(GOOD, sure=0.9).outcome) == ("unclear", "above")


def test_an_unreliable_interval_decides_nothing() -> None:
    few: Counts = ((16, 2, 2), (1, 18, 1), (1, 2, 17))  # 20 lesions a class, 30 needed
    verdict = judged(few)
    assert verdict.outcome == "unknown"
    assert "cannot be told" in verdict.text
    assert judged(tuple(tuple(10 * n for n in row) for row in few)).outcome == "above", (
        "ten times as many can tell"
    )
    assert judged(tuple(tuple(10 * n for n in row) for row in few), groups=12).outcome == "unknown", (
        "12 lesions cannot"
    )


def test_few_malignant_lesions_decide_nothing_of_malignancy() -> None:
    counts: Counts = ((700, 50, 50), (1, 19, 0), (10, 10, 180))
    verdict = judged(counts)
    assert verdict.outcome == "unknown"
    assert "the interval of malignant sensitivity is unreliable (20 independent images, 30 needed)" in verdict.text
    assert "balanced accuracy is unreliable" not in verdict.text, "accuracy tells that it is better than the rule"


def test_a_split_without_malignant_images_is_no_proof() -> None:
    frame = predictions(((700, 50, 50), (0, 0, 0), (10, 10, 180)))
    metrics = evaluate_predictions(
        EvaluationInput(frame, classes=CLASSES, groups=None, train_counts={"Keratosis": 800, "Naevus": 10})
    )
    verdict = judge_metrics(metrics, "test")
    assert (verdict.outcome, verdict.metric) == ("unknown", "accuracy")
    assert "there is no malignant test image" in verdict.text


def test_every_number_of_a_sentence_names_its_place() -> None:
    metrics = evaluated(((790, 5, 5), (72, 28, 0), (10, 0, 90)), colour=WEAK_COLOUR)
    verdict = judge_metrics(metrics, "test")
    figures = [piece for piece in verdict.fragments if isinstance(piece, Figure)]
    assert len(figures) >= 4
    for figure in figures:
        split, *path = figure.key.split(".")
        node = metrics["splits"][split] if path[0] == "baselines" else metrics["splits"][split]["metrics"]
        for name in path:
            node = node[int(name)] if isinstance(node, list) else node[name]
        assert node == figure.value, figure.key


# Broken guarantees ------------------------------------------------------------------------------------------------


def _split(
    value: float, ci95: tuple[float, float], *, guaranteed: bool = True, reason: str = ""
) -> dict[str, Any]:
    """Return a split on which an operating point of sensitivity 0.9 reached `value`."""
    estimate = {"value": value, "ci95": list(ci95), "n": 64, "method": "wilson", "reason": reason}
    point = {
        "name": "sensitivity 0.9", "rate": "sensitivity", "target": 0.9, "confidence": 0.95, "guaranteed": guaranteed,
        "n": 200, "threshold": 0.2, "sensitivity": estimate, "specificity": estimate,
    }  # fmt: skip
    return {"policy": {"operating_points": [point], "conformal": {"coverage_target": 0.9, "per_class": {}}}}


def test_a_guarantee_that_the_interval_excludes_is_broken() -> None:
    (broken,) = find_broken_guarantees(_split(0.812, (0.681, 0.898)))
    assert (broken.name, broken.value, broken.ci95, broken.n) == ("sensitivity 0.9", 0.812, (0.681, 0.898), 64)
    assert plain_text(guarantee_fragments(broken)) == (
        "Broken guarantee: a sensitivity of 90 % was guaranteed on validation images, and the test images show 81.2 % "
        "(95 % interval 68.1 % to 89.8 %, n = 64). Do not rely on it."
    )
    assert BrokenGuarantee.from_dict(broken.as_dict()).as_dict() == broken.as_dict()


@pytest.mark.parametrize(
    "split",
    [
        _split(0.87, (0.76, 0.93)), _split(0.96, (0.91, 0.99)), _split(0.812, (0.681, 0.898), guaranteed=False),
        _split(0.5, (0.5, 0.5)), {}, {"policy": None},
    ],
)  # fmt: skip
def test_a_guarantee_that_the_interval_holds_is_not_broken(split: dict[str, Any]) -> None:
    assert find_broken_guarantees(split) == ()


@pytest.mark.parametrize(
    ("covered", "calibration", "is_broken"),
    [(0.75, 500, True), (0.86, 500, False), (0.75, 12, False), (0.95, 500, False)],
)
def test_prediction_sets_that_cover_too_little_break_their_guarantee(
    covered: float, calibration: int, is_broken: bool
) -> None:
    """With 12 calibration lesions a valid rule covers 3 of 4 by chance; with 500 it does not."""
    n = 200
    bounds, _ = proportion_interval(round(covered * n), n)
    per_class = {
        "Melanoma": {
            "value": covered,
            "ci95": list(bounds),
            "n": n,
            "method": "wilson",
            "expected": [0.85, 0.95],
            "n_groups": n,
            "n_calibration_images": calibration,
            "n_calibration_groups": calibration,
        }
    }
    split = {"policy": {"operating_points": [], "conformal": {"coverage_target": 0.9, "per_class": per_class}}}
    assert [broken.name for broken in find_broken_guarantees(split)] == ["coverage 0.9 of Melanoma"] * is_broken


def _draw(rng: np.random.Generator, n: int) -> ScoredSet:
    y = rng.integers(0, 2, n)
    malignant = 1 / (1 + np.exp(-(2.5 * y - 1.2 + rng.normal(0, 1, n))))
    p = np.stack([1 - malignant, malignant], axis=1)
    return ScoredSet(("a", "b"), np.array([False, True]), y, p.argmax(axis=1), p, np.arange(n))


def _fitted(validation: ScoredSet) -> DecisionPolicy:
    rule = fit_conformal(validation.y_true, validation.probabilities, alpha=0.1, groups=validation.groups)
    points = fit_operating_points(validation, (("sensitivity", 0.9), ("specificity", 0.9)))
    return DecisionPolicy(identity(2), {}, points, rule, len(validation.y_true))


def _broken_in_draws(n_draws: int, shift: float = 0.0) -> int:
    """Return in how many draws test images break what validation images gave. shift: of malignant probabilities."""
    n_broken = 0
    for seed in range(n_draws):
        rng = np.random.default_rng(seed)
        policy, test = _fitted(_draw(rng, 300)), _draw(rng, 200)
        p = np.clip(test.probabilities[:, 1] - shift * test.y_true, 0, 1)
        test = replace(test, probabilities=np.stack([1 - p, p], axis=1))
        result = evaluate_policy(policy, test, evaluate_split=lambda *_args, **_more: {"metrics": {}}, seed=0)
        n_broken += bool(find_broken_guarantees({"policy": result}))
    return n_broken


def test_what_holds_is_seldom_called_broken_and_what_does_not_is() -> None:
    assert _broken_in_draws(60) <= 2, "1 % of sound sets, and far fewer sound thresholds, are called broken"
    assert _broken_in_draws(10, shift=0.25) == 10
