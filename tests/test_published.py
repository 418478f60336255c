"""Printed figures: what lies behind them, and whether they can be true together."""

import numpy as np
import pytest

from dermkit.comparison.published import (
    READINGS,
    BinaryMatrix,
    are_consistent,
    compatible_counts,
    compatible_matrices,
    count_and_interval,
    parse_figure,
    read_as,
)
from dermkit.metrics.stats.intervals import wilson_interval

S3 = [
    parse_figure("accuracy", ".74"),
    parse_figure("precision", ".76"),
    parse_figure("recall", ".71"),
    parse_figure("specificity", ".75"),
]


def test_a_share_of_118_images_is_55_of_them() -> None:
    for text in ("0.4661", "46.61%", ".4661"):
        counts, (low, high), method = count_and_interval(parse_figure("accuracy", text), 118, READINGS)
        assert (counts, method) == ((55,), "wilson")
        assert (round(low, 3), round(high, 3)) == (0.379, 0.556)
    assert list(compatible_counts(parse_figure("accuracy", ".47"), 118)) == [55, 56]
    with pytest.raises(ValueError, match="no count of 118"):
        count_and_interval(parse_figure("accuracy", "0.4700"), 118, READINGS)
    counts, (low, high), _ = count_and_interval(parse_figure("accuracy", ".47"), 100, READINGS)
    assert counts == (47,), "both 0.465 and 0.475 are no hundredths, nor is 0.48 cut off"
    counts, bounds, _ = count_and_interval(parse_figure("accuracy", ".47"), 1000, READINGS)
    assert counts == tuple(range(465, 480)), "465 to 475 if rounded, 470 to 479 if cut off"
    assert bounds == (wilson_interval(465, 1000)[0], wilson_interval(479, 1000)[1])


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [("accuracy", "1.2", "0 to 1"), ("accuracy", "x", "no number"), ("auroc", ".9", "not a figure"),
     ("accuracy", "nan", "0 to 1"), ("accuracy", "-0.1", "0 to 1"), ("accuracy", "120%", "0 to 1")],
)  # fmt: skip
def test_what_is_no_figure_is_refused(name: str, text: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        parse_figure(name, text)


@pytest.mark.parametrize("averaged", [False, True])
def test_four_published_figures_fit_no_matrix(averaged: bool) -> None:
    assert not are_consistent(S3, macro=averaged)
    assert not are_consistent(read_as(S3, "cut off"), macro=averaged)
    for n in (88, 176, 584):
        assert not compatible_matrices(S3, positives=n, negatives=n, macro=averaged)


@pytest.mark.parametrize("averaged", [False, True])
def test_figures_of_a_real_matrix_always_fit(averaged: bool) -> None:
    generator = np.random.default_rng(0)
    for _ in range(60):
        p, n = (int(x) for x in generator.integers(2, 90, 2))
        tp, tn = int(generator.integers(1, p + 1)), int(generator.integers(1, n + 1))
        figures = [
            parse_figure(name, f"{value:.2f}") for name, value in of(tp, p - tp, n - tn, tn, averaged).items()
        ]
        chosen = [figures[i] for i in generator.permutation(len(figures))[: int(generator.integers(1, 8))]]
        assert are_consistent(chosen, macro=averaged)
        assert BinaryMatrix(tp, p - tp, n - tn, tn) in compatible_matrices(
            chosen, positives=p, negatives=n, macro=averaged
        )


@pytest.mark.parametrize("averaged", [False, True])
def test_figures_of_a_real_matrix_that_were_cut_off_always_fit(averaged: bool) -> None:
    """Papers that truncate are no liars: 86 of 120 such matrices were called impossible."""
    generator, refused_if_rounded = np.random.default_rng(2), 0
    for _ in range(60):
        p, n = (int(x) for x in generator.integers(2, 90, 2))
        tp, tn = int(generator.integers(1, p + 1)), int(generator.integers(1, n + 1))
        exact = of(tp, p - tp, n - tn, tn, averaged)
        # Whole hundredths stay what they are: floats may hold .29 for 28.999.
        figures = [parse_figure(name, f"{int(100 * value + 1e-9) / 100:.2f}") for name, value in exact.items()]
        cut = read_as(figures, "cut off")
        assert are_consistent(cut, macro=averaged) is not False  # at an end of what is printed, undecided
        assert BinaryMatrix(tp, p - tp, n - tn, tn) in compatible_matrices(
            cut, positives=p, negatives=n, macro=averaged
        )
        refused_if_rounded += not compatible_matrices(figures, positives=p, negatives=n, macro=averaged)
    assert refused_if_rounded > 30


def of(tp: int, fn: int, fp: int, tn: int, averaged: bool) -> dict[str, float]:
    """Return the figures by their definitions."""
    sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
    precision, npv = tp / (tp + fp), tn / (tn + fn)
    f1, other = 2 * tp / (2 * tp + fp + fn), 2 * tn / (2 * tn + fp + fn)
    found = {
        "accuracy": (tp + tn) / (tp + fn + fp + tn), "balanced_accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity, "specificity": specificity, "npv": npv,
        "precision": precision, "recall": sensitivity, "f1": f1,
    }  # fmt: skip
    if averaged:
        found |= {
            "precision": (precision + npv) / 2,
            "recall": (sensitivity + specificity) / 2,
            "f1": (f1 + other) / 2,
        }
    return found


def test_what_is_said_not_to_fit_is_not_found_by_trying() -> None:
    """Every matrix of up to 60 images against random claims: a claim that one of them meets is never refused."""
    generator = np.random.default_rng(1)
    made = []
    for p in range(1, 31, 3):
        for n in range(1, 31, 3):
            made += [of(tp, p - tp, n - tn, tn, False) for tp in range(1, p + 1) for tn in range(1, n + 1)]
    refused = 0
    for _ in range(150):
        names = ["accuracy", "precision", "recall", "specificity"]
        claim = {name: round(float(generator.uniform(0.5, 0.9)), 2) for name in names}
        met = any(all(abs(m[name] - claim[name]) <= 0.005 for name in names) for m in made)
        fits = are_consistent([parse_figure(name, f"{value:.2f}") for name, value in claim.items()])
        refused += not fits
        assert fits or not met
    assert 20 < refused < 150, "a check that never refuses, or always, checks nothing"


def test_rates_that_contradict_themselves() -> None:
    assert not are_consistent([parse_figure("sensitivity", ".80"), parse_figure("recall", ".70")])
    assert are_consistent([parse_figure("sensitivity", ".80"), parse_figure("recall", ".70")], macro=True)
    assert not are_consistent(
        [
            parse_figure("balanced_accuracy", ".90"),
            parse_figure("sensitivity", ".70"),
            parse_figure("specificity", ".9"),
        ]
    )


@pytest.mark.parametrize(
    ("figures", "averaged", "possible"),
    [
        ({"f1": ".90", "precision": ".10", "recall": ".10"}, False, False),
        ({"f1": ".10", "precision": ".90", "recall": ".90"}, False, False),
        ({"f1": ".90", "precision": ".90", "recall": ".50"}, False, False),
        ({"f1": ".64", "precision": ".90", "recall": ".50"}, False, True),
        ({"f1": ".90", "precision": ".90", "recall": ".50"}, True, False),
        ({"f1": ".55", "precision": ".60", "recall": ".70"}, True, True),
    ],
)
def test_f1_is_tied_to_precision_and_recall_however_few_are_positive(
    figures: dict[str, str], averaged: bool, possible: bool
) -> None:
    """With hardly a positive image precision is anything, but F1 is still what the two make of it."""
    found = [parse_figure(name, text) for name, text in figures.items()]
    assert are_consistent(found, macro=averaged) is possible
    if possible:
        sizes = [(a, n - a) for n in (40, 100, 400) for a in range(1, n)]
        assert any(compatible_matrices(found, positives=a, negatives=b, macro=averaged) for a, b in sizes), (
            "what is called possible has a matrix"
        )
