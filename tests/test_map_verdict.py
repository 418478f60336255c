"""The first screen of explain.html: a word on the maps, figures with intervals, and what to do next."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from dermkit.explanation.deletion import CurveSet, CurveSummary, summarise_curves
from dermkit.explanation.map_verdict import judge_maps, map_remedies
from dermkit.explanation.random_net_check import RandomNetCheck
from dermkit.explanation.records import ImageExplanation
from dermkit.images.lesion_masks import LesionShare
from dermkit.metrics.stats.intervals import mean_estimate
from dermkit.prediction.inputs import ImageRef
from dermkit.runs.model_verdict import ModelVerdict


def explanation(*, gain: float = 0.2, correlation: float = 0.1, inside: float | None = None) -> ImageExplanation:
    """Return one whose map lowers the area under the probability by `gain`, beyond a random order."""
    flat, lower = np.full(3, 0.8), np.full(3, 0.8 - gain)
    curves = CurveSet(lower, flat + gain, flat[None], flat[None])
    share = None if inside is None else LesionShare(inside, 0.3)
    return ImageExplanation(
        ImageRef("a", "a.png", "a.png"), "melanoma", "melanoma", None, 0.8, None, "HiResCAM", "norm", "0001-a", 1.0,
        True,
        random_net_correlation=correlation, curves=curves, share=share,
    )  # fmt: skip


PASSED, PARTIAL, FAILED = (
    RandomNetCheck(correlation, p, 2, 3) for correlation, p in ((0.0, 0.6), (0.3, 0.01), (0.8, 0.01))
)
UP, DOWN = CurveSummary(2, 0.1, 0.1, 2, 2), CurveSummary(2, -0.1, 0.1, 0, 2)


@pytest.mark.parametrize(
    ("check", "summary", "word", "kind"),
    [
        (PASSED, UP, "The maps pass in part", "care"),
        (PARTIAL, UP, "The maps pass in part", "care"),
        (PASSED, CurveSummary(2, 0.1, -0.1, 2, 0), "The maps pass in part", "care"),
        (FAILED, UP, "Do not rely on the maps", "bad"),
        (PASSED, DOWN, "Do not rely on the maps", "bad"),
        (None, None, "Not checked", "care"),
        (RandomNetCheck(None, None, 0, 0), UP, "The maps pass in part", "care"),
    ],
)
def test_the_word_is_that_of_the_worst_check(
    check: RandomNetCheck | None, summary: CurveSummary | None, word: str, kind: str
) -> None:
    verdict = judge_maps([], check, summary)
    assert (verdict.word, verdict.kind, verdict.rows) == (word, kind, ())


def test_maps_pass_where_what_they_mark_counts_beyond_chance() -> None:
    for gains, word in (
        ((0.1, 0.2, 0.3, 0.2), "The maps pass their checks"),
        ((0.5, -0.4), "The maps pass in part"),
    ):
        verdict = judge_maps([explanation(gain=gain) for gain in gains], PASSED, UP)
        assert verdict.word == word, verdict.about


def test_the_figures_are_means_over_images_with_their_intervals() -> None:
    explanations = [explanation(gain=gain, correlation=0.0, inside=0.5) for gain in (0.1, 0.2, 0.3)]
    summary = summarise_curves([one.curves for one in explanations if one.curves])
    verdict = judge_maps(explanations, PASSED, summary)
    deletion, insertion, likeness, inside = verdict.rows
    assert summary is not None and deletion["value"] == pytest.approx(summary.deletion_gain)
    low, high = ttest_1samp([0.1, 0.2, 0.3], 0).confidence_interval(0.95)
    assert deletion["ci95"] == pytest.approx([low, high]) == insertion["ci95"]
    assert (deletion["n"], deletion["mark"], verdict.reach) == (3, "*", 0.5)
    assert likeness["value"] == 0 and likeness["ci95"] is None, "an interval without width is none"
    assert inside["value"] == pytest.approx(0.2)


def test_the_mean_of_one_image_has_no_interval_and_of_thirty_no_mark() -> None:
    assert mean_estimate(np.array([0.4])).ci95 is None
    assert mean_estimate(np.linspace(0, 1, 30)).reason == ""
    with pytest.raises(ValueError, match="a mean needs a value"):
        mean_estimate(np.array([]))


def remedies_of(*explanations: ImageExplanation, check: RandomNetCheck | None = PASSED, word: str = "") -> str:
    model = ModelVerdict(word, "test", ()) if word else None
    verdict = judge_maps(explanations, check, UP if check else None)
    return " ".join(map_remedies(explanations, verdict, model))


def test_what_to_do_next_follows_from_what_the_checks_say() -> None:
    few = remedies_of(explanation())
    assert "Explain more images" in few and "--masks FOLDER" in few and "Mend the model" not in few
    many = remedies_of(*[explanation(inside=0.9)] * 10)
    assert "Explain more images" not in many and "--masks" not in many
    assert "Look at the 1 image whose map" in remedies_of(explanation(inside=0.1), explanation(inside=0.9))
    assert "--method occlusion" in remedies_of(explanation(), check=FAILED)
    assert "without `--no-checks`" in remedies_of(replace(explanation(), curves=None), check=None)
    assert "Mend the model first" in remedies_of(explanation(), word="do not believe")
