"""Figures by age, sex and the like."""

from dataclasses import replace

import numpy as np
import pytest

from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.classification.subgroups import (
    age_band,
    independent_difference,
    select_images,
    subgroup_gaps,
    subgroup_metrics,
)
from dermkit.metrics.classification.summary import evaluate_split
from dermkit.metrics.stats.arrays import Floats
from dermkit.metrics.stats.estimate import reliability
from dermkit.metrics.stats.intervals import proportion_estimate, wilson_interval


def split(seed: int, n: int, skill: Floats) -> ScoredSet:
    generator = np.random.default_rng(seed)
    true = generator.integers(0, 2, n)
    logits = generator.normal(0, 1, (n, 2)) + skill[:, None] * np.eye(2)[true]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return ScoredSet(["benign", "malignant"], np.array([False, True]), true, p.argmax(axis=1), p, np.arange(n))


def test_a_group_that_is_served_worse_is_named_with_its_gap() -> None:
    worse = np.arange(1200) % 3 == 0
    scored = split(0, 1200, np.where(worse, 0.3, 2.5))
    labels = ["IV to VI" if flag else "I to III" for flag in worse]
    found = subgroup_metrics(scored, labels, evaluate_split=evaluate_split)
    assert [item.name for item in found] == ["I to III", "IV to VI"]
    assert sum(item.n for item in found) == 1200
    rows = np.flatnonzero(worse & scored.is_malignant)
    sensitivity = found[1].metrics["sensitivity"]
    assert sensitivity == proportion_estimate(scored.y_pred[rows] == 1, rows)
    gap = {item.metric: item for item in subgroup_gaps(found)}["sensitivity"]
    assert (gap.worst_group, gap.best_group) == ("IV to VI", "I to III")
    assert gap.difference.ci95 is not None and gap.difference.ci95[0] > 0.1


def test_few_malignant_images_are_shown_without_a_conclusion() -> None:
    scored = split(1, 300, np.full(300, 2.0))
    labels = ["unknown" if i < 10 else "female" if i < 60 else "male" for i in range(300)]
    found = subgroup_metrics(scored, labels, evaluate_split=evaluate_split)
    assert [item.name for item in found] == ["female", "male", "unknown"]
    assert "too few to conclude" in found[0].too_few_reason and "malignant" in found[0].too_few_reason
    assert found[1].too_few_reason == ""
    assert subgroup_gaps(found) == [], "one group alone has no gap"


def test_a_part_is_what_a_split_of_these_images_alone_would_be() -> None:
    scored = split(2, 100, np.full(100, 1.0))
    rows = np.arange(0, 100, 3)
    part = select_images(scored, rows)
    assert part.n_groups == len(rows)
    np.testing.assert_array_equal(part.probabilities, scored.probabilities[rows])


@pytest.mark.parametrize(
    ("text", "band"),
    [("0", "0 to 29"), ("29.5", "0 to 29"), ("30", "30 to 44"), ("85", "75+"), ("", "unknown"), ("-1", "unknown"),
     ("nan", "unknown"), ("200", "unknown"), ("young", "unknown")],
)  # fmt: skip
def test_bands_of_age(text: str, band: str) -> None:
    assert age_band(text) == band


def test_the_gap_of_two_proportions_holds_the_truth_as_often_as_it_says() -> None:
    generator, held = np.random.default_rng(3), 0
    for _ in range(2000):
        a, b = generator.random(80) < 0.9, generator.random(60) < 0.75
        both = [proportion_estimate(x, np.arange(len(x))) for x in (a, b)]
        low, high = independent_difference(*both).ci95 or (0.0, 0.0)
        held += low <= 0.15 <= high
    assert 0.935 <= held / 2000 <= 0.965
    assert both[0].ci95 == wilson_interval(int(a.sum()), 80)


def test_photographs_of_one_lesion_are_not_many_lesions() -> None:
    scored = split(4, 400, np.full(400, 2.0))
    four_each = replace(scored, y_true=np.repeat(scored.y_true[:100], 4), groups=np.arange(400) // 4)
    (alone,) = subgroup_metrics(scored, ["female"] * 400, evaluate_split=evaluate_split)
    (repeated,) = subgroup_metrics(four_each, ["female"] * 400, evaluate_split=evaluate_split)
    malignant = int(scored.y_true[:100].sum())
    few = [f"{n} {side} lesions" for side, n in (("malignant", malignant), ("other", 100 - malignant)) if n < 50]
    assert alone.too_few_reason == "" and repeated.n_malignant > 50 and repeated.n_other > 50
    assert few and repeated.too_few_reason == f"too few to conclude: {' and '.join(few)}, 50 needed"
    (some,) = subgroup_metrics(select_images(scored, np.arange(60)), ["male"] * 60, evaluate_split=evaluate_split)
    assert some.too_few_reason.startswith("too few to conclude: ") and " malignant images" in some.too_few_reason


def test_a_gap_from_a_doubtful_figure_is_doubtful() -> None:
    near = proportion_estimate(np.arange(90) > 0, np.arange(90))
    few = proportion_estimate(np.arange(20) > 7, np.arange(20))
    sound = proportion_estimate(np.arange(90) > 40, np.arange(90))
    noted = replace(sound, reason="mean over 2 of 3 classes")
    assert near.reason and few.reason and not sound.reason
    gap = independent_difference(near, few, group_names=("female", "male"))
    assert gap.reason == (
        "interval unreliable: female: 1 of 90 units on one side, so near to 0 or 1; "
        "interval unreliable: male: 20 units, 30 needed"
    )
    assert reliability(gap.as_dict()) == "doubtful"
    assert (
        independent_difference(near, sound, group_names=("a name that is much too long to stand here", "b")).reason
        == near.reason
    )
    assert independent_difference(sound, noted, group_names=("a", "b")).reason == ""


def test_the_gaps_of_a_table_keep_the_mark() -> None:
    scored = split(5, 400, np.where(np.arange(400) < 200, 2.0, 1.0))
    sure = np.eye(2)[scored.y_true[:200]] * 0.8 + 0.1  # the first group is always right
    p = np.concatenate([sure, scored.probabilities[200:]])
    found = subgroup_metrics(
        replace(scored, probabilities=p, y_pred=p.argmax(axis=1)), ["young"] * 200 + ["old"] * 200,
        evaluate_split=evaluate_split,
    )  # fmt: skip
    gap = {item.metric: item for item in subgroup_gaps(found)}["sensitivity"]
    assert gap.best_group == "young" and gap.difference.reason.startswith("interval unreliable: young: 0 of ")


def three_classes(seed: int, n: int, absent: dict[str, str]) -> tuple[ScoredSet, list[str]]:
    """Return two groups of images, "a" and "b"; a group has no image of the class that `absent` names for it."""
    generator, classes = np.random.default_rng(seed), ["benign", "d", "malignant"]
    labels = np.where(np.arange(n) % 2 == 0, "a", "b")
    true = generator.integers(0, 3, n)
    for group, name in absent.items():
        others = [k for k in range(3) if classes[k] != name]
        rows = (labels == group) & (true == classes.index(name))
        true[rows] = generator.choice(others, rows.sum())
    logits = generator.normal(0, 1, (n, 3)) + 2.0 * np.eye(3)[true]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    malignant = np.array([False, False, True])
    return ScoredSet(classes, malignant, true, p.argmax(axis=1), p, np.arange(n)), labels.tolist()


def test_a_group_without_a_class_has_no_balanced_accuracy() -> None:
    scored, labels = three_classes(0, 900, {"a": "d"})
    first, second = subgroup_metrics(scored, labels, evaluate_split=evaluate_split)
    assert (first.classes_present, second.classes_present) == (
        ("benign", "malignant"),
        ("benign", "d", "malignant"),
    )
    assert first.metrics["balanced_accuracy"].value is None
    assert first.metrics["balanced_accuracy"].reason == (
        "recall is undefined for: d; recall_macro_present leaves them out"
    )
    assert first.metrics["recall_macro_present"].value is not None
    assert second.metrics["balanced_accuracy"].value == second.metrics["recall_macro_present"].value
    assert not first.too_few_reason and not second.too_few_reason
    metrics = {gap.metric for gap in subgroup_gaps([first, second])}
    assert metrics >= {"accuracy", "sensitivity", "auroc"}
    assert not metrics & {"balanced_accuracy", "recall_macro_present"}, "means over different classes have no gap"


def test_means_over_the_same_classes_are_compared() -> None:
    scored, labels = three_classes(1, 900, {"a": "d", "b": "d"})
    alike = {
        gap.metric: gap for gap in subgroup_gaps(subgroup_metrics(scored, labels, evaluate_split=evaluate_split))
    }
    assert "balanced_accuracy" not in alike and "recall_macro_present" in alike
    scored, labels = three_classes(1, 900, {})
    groups = subgroup_metrics(scored, labels, evaluate_split=evaluate_split)
    full = {gap.metric: gap for gap in subgroup_gaps(groups)}
    assert "balanced_accuracy" in full and "recall_macro_present" not in full, "the same gap is not told twice"
    values = sorted(group.metrics["balanced_accuracy"].value or 0.0 for group in groups)
    assert full["balanced_accuracy"].difference.value == values[1] - values[0]
