"""Published figures on the command line: read, counted, checked, refused."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from dermkit.comparison.against_published import compare_with_published
from dermkit.comparison.claims import check_claim, check_claims, parse_claim
from dermkit.comparison.variance import VarianceComponents
from dermkit.errors import UsageError
from dermkit.metrics.stats.intervals import wilson_interval


def test_the_two_that_everybody_quotes() -> None:
    small, four = check_claims(
        ["S2: accuracy=.4661,n=118", "S3: accuracy=.74,precision=.76,recall=.71,specificity=.75"]
    )
    assert small.sentences() == ["S2: accuracy 0.4661 is 55 of 118 images, 95 % interval 37.9 to 55.6 % (wilson)."]
    assert small.is_consistent and not four.is_consistent
    (said,) = four.sentences()
    assert said.startswith("S3: no single confusion matrix gives accuracy 0.74, precision 0.76")
    assert four.as_dict()["fits_by_average"] == {"binary": False, "averaged": False}


def test_a_figure_without_its_images_says_what_is_missing() -> None:
    (bare,) = check_claims(["S2: accuracy=.4661"])
    assert bare.sentences() == [
        "S2: without n, the number of images, there is no count and no interval; give n=... with the figures."
    ]
    assert bare.is_consistent
    half = check_claim(parse_claim("x: sensitivity=.9,accuracy=.82,n=200")).sentences()
    assert "without positives there is no count and no interval of sensitivity; give positives=..." in half[1]
    assert not any("without" in said for said in check_claim(parse_claim("accuracy=.5,n=10")).sentences())


def test_sides_have_intervals_where_their_images_are_known() -> None:
    found = check_claim(parse_claim("x: sensitivity=.9,specificity=.8,accuracy=.82,n=200,positives=40"))
    assert {item.metric: (item.successes, item.n) for item in found.counted_figures} == {
        "sensitivity": (36, 40), "specificity": (128, 160), "accuracy": (164, 200)
    }  # fmt: skip
    assert found.is_consistent
    assert "can be true at once" in found.sentences()[-1]


def test_where_several_counts_or_matrices_fit_it_is_said_how_many() -> None:
    found = check_claim(parse_claim("x: sensitivity=.9,specificity=.8,accuracy=.82,n=200,positives=40"))
    said = found.sentences()
    counts = {item.metric: item.counts for item in found.counted_figures}
    assert counts["sensitivity"] == tuple(range(34, 40)), (
        ".85 to .95 round to .9, and .9 to .975 are cut off to it"
    )
    assert said[0].startswith("x: sensitivity 0.9 is any of 6 counts of 40 images, 34 to 39: 95 % interval")
    matrices = [
        (tp, tn)
        for tp in range(41)
        for tn in range(161)
        if abs(tp / 40 - 0.9) < 0.05001
        and abs(tn / 160 - 0.8) < 0.05001
        and abs((tp + tn) / 200 - 0.82) < 0.005001
    ]
    assert f"can be true at once ({len(matrices)} confusion matrices)" in said[-1]
    assert found.as_dict()["intervals"]["sensitivity"]["successes"] is None
    assert found.as_dict()["intervals"]["sensitivity"]["counts"] == [34, 39]
    one = check_claim(parse_claim("sensitivity=.9,specificity=.8,accuracy=.82,n=50,positives=10")).sentences()
    assert "one confusion matrix, 9 true and 8 false positives, 32 true and 1 false negatives" in one[-1]


def test_figures_that_were_cut_off_are_not_called_impossible() -> None:
    """Of 19 and 23 images 13 and 20: .6842 and .8695 are printed as .68 and .86, and .785 as .78."""
    cut = check_claim(parse_claim("x: sensitivity=.68,specificity=.86,accuracy=.78,n=42,positives=19"))
    assert cut.is_consistent
    assert "only if digits are cut off, not rounded" in cut.sentences()[-1]
    assert {item.metric: item.counts for item in cut.counted_figures}["specificity"] == (20,)
    assert [fit["fits"] for fit in cut.as_dict()["readings"]] == [False, False, True, True]
    mixed = check_claim(parse_claim("x: sensitivity=.68,specificity=.87,accuracy=.78,n=42,positives=19"))
    assert not mixed.is_consistent
    assert "or some figures are rounded and others cut off" in mixed.sentences()[-1]


def test_a_matrix_of_any_size_may_do_what_none_of_this_size_can() -> None:
    loose = check_claim(parse_claim("sensitivity=.900,specificity=.800,accuracy=.850"))
    fixed = check_claim(parse_claim("sensitivity=.900,specificity=.800,accuracy=.850,n=200,positives=40"))
    assert loose.is_consistent and not fixed.is_consistent


def test_a_share_that_no_count_gives_is_a_problem() -> None:
    found = check_claim(parse_claim("accuracy=.4700,n=118"))
    assert not found.is_consistent
    assert "no count of 118 images" in found.sentences()[0]


def test_claims_of_one_name_are_told_apart() -> None:
    assert [item.claim.name for item in check_claims(["accuracy=.5,n=10", "accuracy=.6,n=10"])] == [
        "published 1", "published 2"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "what"),
    [("S2:", "KEY=VALUE"), ("S2: n=118", "no figure"), ("accuracy=.5,accuracy=.6", "twice"), ("auc=.9", "not a figure"),
     ("accuracy=.5,n=0", "number of images"), ("accuracy=.5,n=1e3", "number of images"), ("accuracy=2", "0 to 1"),
     ("accuracy=.5,positives=3", "fewer than n"), ("accuracy=.5,n=3,positives=3", "fewer than n")],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_its_part(text: str, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        parse_claim(text)


CLAIM = check_claims(["S2: accuracy=.4661,n=118"])

# Beside runs ------------------------------------------------------------------------------------------------------


def row(name: str, value: float, n: int, *, split: str = "test") -> dict[str, object]:
    low, high = wilson_interval(round(value * n), n)
    return {"run": name, "split": split, "metric": "accuracy", "value": value, "low": low, "high": high, "n": n,
            "method": "wilson", "reason": ""}  # fmt: skip


def test_a_run_is_set_beside_a_published_share_without_pairs() -> None:
    table = pd.DataFrame([row("close", 57 / 118, 118), row("far", 90 / 118, 118), row("member", 0.5, 118),
                          row("close", 0.9, 443, split="validation")])  # fmt: skip
    claims = check_claims(["S2: accuracy=.4661,n=118", "other: precision=.9"])
    found = compare_with_published(table, ["close", "far"], {}, claims)
    close, far = found["S2"]
    assert found["other"] == [], "nobody knows of how many images"
    assert (close.name, close.split, close.n_trainings) == ("close", "test", 1)
    # Newcombe's method 10 for 57 of 118 and 55 of 118, by his formula
    (l1, u1), (l2, u2) = wilson_interval(57, 118), wilson_interval(55, 118)
    gap = 57 / 118 - 55 / 118
    low = gap - math.hypot(57 / 118 - l1, u2 - 55 / 118)
    high = gap + math.hypot(u1 - 57 / 118, 55 / 118 - l2)
    assert close.difference.ci95 == pytest.approx((low, high), abs=1e-9)
    assert (
        not close.is_significant and "not distinguishable" in close.sentence() and "unpaired" in close.sentence()
    )
    assert far.is_significant and "higher" in far.sentence()
    assert close.as_dict()["sentence"] == close.sentence()


def test_a_recipe_has_an_interval_for_new_trainings_and_new_images() -> None:
    table = pd.DataFrame([row("recipe", 0.38, 118)])
    sources = VarianceComponents((0.36, 0.38, 0.40), sd=0.02, sd_seed=0.01, sd_images=0.045)
    (found,) = compare_with_published(table, ["recipe"], {"recipe": {"test": {"accuracy": sources}}},
                            check_claims(["S2: accuracy=.4661,n=118"]))["S2"]  # fmt: skip
    # Student's quantiles at 117 and at 2 degrees of freedom: the spread on these images in full, known from three
    half = math.sqrt((1.980448 * 0.045) ** 2 + (4.302653 * 0.02) ** 2 / 3)
    assert found.run_estimate.ci95 == pytest.approx((0.38 - half, 0.38 + half), abs=1e-6)
    assert "mean of 3 trainings" in found.sentence()
    grouped = replace(sources, n_groups=20)
    (found,) = compare_with_published(table, ["recipe"], {"recipe": {"test": {"accuracy": grouped}}},
                            check_claims(["S2: accuracy=.4661,n=118"]))["S2"]  # fmt: skip
    half = math.sqrt((2.093024 * 0.045) ** 2 + (4.302653 * 0.02) ** 2 / 3)
    assert found.run_estimate.ci95 == pytest.approx((0.38 - half, 0.38 + half), abs=1e-6)
    assert "(unreliable: 20 independent images, 30 needed)" in found.sentence()
    folds = VarianceComponents((0.36, 0.40), sd=0.02, sd_seed=None, sd_images=None)
    claims = check_claims(["S2: accuracy=.4661,n=118"])
    assert compare_with_published(table, ["recipe"], {"recipe": {"test": {"accuracy": folds}}}, claims)["S2"] == []


@pytest.mark.parametrize("runs", [2, 3])
def test_few_trainings_of_a_wild_recipe_are_covered(runs: int) -> None:
    """Seeds stray by four times what images do: with the normal quantile 81 and 88 % of the intervals held."""
    of, held = np.random.default_rng(runs), 0
    for _ in range(1000):
        values = 0.5 + of.normal(0, 0.01) + of.normal(0, 0.04, runs)
        between = float(values.std(ddof=1))
        sources = VarianceComponents(tuple(values.tolist()), sd=between, sd_seed=between, sd_images=0.01)
        (found,) = compare_with_published(
            pd.DataFrame([row("recipe", 0.5, 118)]), ["recipe"], {"recipe": {"test": {"accuracy": sources}}}, CLAIM
        )["S2"]
        low, high = found.run_estimate.ci95 or (1.0, 0.0)
        held += low <= 0.5 <= high
    assert held >= 940


def test_a_doubtful_interval_is_marked_and_a_worthless_one_not_used() -> None:
    few = {**row("few", 0.6, 20), "reason": "interval unreliable: 20 units, 30 needed"}
    flat = {**row("flat", 0.6, 118), "reason": "interval unreliable: every resample gave the same value"}
    (found,) = compare_with_published(pd.DataFrame([few, flat]), ["few", "flat"], {}, CLAIM)["S2"]
    assert found.name == "few" and found.run_estimate.reason == few["reason"]
    assert "(unreliable: 20 independent images, 30 needed), unpaired" in found.sentence()
    assert found.as_dict()["run"]["reason"] == few["reason"]
