"""The charts of a comparison: places on a forest plot, and which metrics are shown at once."""

import numpy as np
import pytest

from dermkit.render.curves import render_roc_overlay
from dermkit.render.forest import forest_rows
from dermkit.reporting.comparison_charts import difference_forest, unfolded_metrics


def test_a_forest_row_is_placed_on_its_scale() -> None:
    (row,) = forest_rows([("net", {"value": 0.5, "ci95": [0.25, 0.75], "n": 8})], low=0.0, high=1.0)
    assert (row["dot"], row["left"], row["width"], row["n"]) == (50.0, 25.0, 50.0, 8)


def test_beyond_the_scale_it_is_drawn_at_the_end_and_without_an_interval_as_a_dot() -> None:
    rows = forest_rows(
        [("a", {"value": 2.0, "ci95": None}), ("b", {"value": None, "ci95": None})], low=0.0, high=1.0
    )
    assert [(row["name"], row["dot"], row["left"]) for row in rows] == [("a", 100.0, None)]


@pytest.mark.parametrize(
    ("value", "ci95", "reach"), [(0.01, [-0.02, 0.04], 0.05), (0.1, [-0.1, 0.3], 0.5), (0.2, None, 0.2)]
)
def test_zero_is_in_the_middle_of_a_difference(value: float, ci95: list[float] | None, reach: float) -> None:
    pair = {
        "first": "a",
        "second": "b",
        "split": "test",
        "metrics": {"auroc": {"value": value, "ci95": ci95, "n": 9}},
    }
    item = difference_forest([pair], "test")["auroc"]
    assert item["reach"] == reach and item["rows"][0]["dot"] == pytest.approx(50 + 50 * value / reach)
    assert difference_forest([pair], "validation") == {}


def test_accuracy_stands_in_where_balanced_accuracy_is_not_defined_for_all() -> None:
    forests = {"balanced_accuracy": [1], "accuracy": [1, 2], "auroc": [1, 2]}
    assert unfolded_metrics(forests, 2) == ["accuracy", "auroc"]
    assert unfolded_metrics({**forests, "balanced_accuracy": [1, 2]}, 2) == ["balanced_accuracy", "auroc"]


def test_the_overlay_names_every_curve() -> None:
    steps = np.array([0.0, 0.5, 1.0])
    one = render_roc_overlay({"net a": (steps, steps, 0.5)})
    assert one.startswith(b"\x89PNG") and one != render_roc_overlay({"net b": (steps, steps, 0.5)})
