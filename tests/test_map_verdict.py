"""The first screen of explain.html: a word on the maps, figures with intervals, and what to do next."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from dermkit.explanation.deletion import CurveSet, summarise_curves
from dermkit.explanation.map_verdict import judge_maps, map_remedies
from dermkit.explanation.random_net_check import RandomNetCheck
from dermkit.explanation.records import ImageExplanation
from dermkit.images.lesion_masks import LesionShare
from dermkit.metrics.stats.intervals import mean_estimate
from dermkit.prediction.inputs import ImageRef
from dermkit.render.html import template_environment
from dermkit.runs.model_verdict import ModelVerdict


def explanation(
    *, gain: float = 0.2, insertion: float | None = None, correlation: float = 0.1, inside: float | None = None
) -> ImageExplanation:
    """Return one whose map lowers the area under the probability by `gain`, beyond a random order.

    insertion: by how much showing raises it, None = as much.
    """
    flat, lower = np.full(3, 0.8), np.full(3, 0.8 - gain)
    curves = CurveSet(lower, flat + (gain if insertion is None else insertion), flat[None], flat[None])
    share = None if inside is None else LesionShare(inside, 0.3)
    return ImageExplanation(
        ImageRef("a", "a.png", "a.png"), "melanoma", "melanoma", None, 0.8, None, "HiResCAM", "norm", "0001-a", 1.0,
        True,
        random_net_correlation=correlation, curves=curves, share=share,
    )  # fmt: skip


PASSED, PARTIAL, FAILED = (
    RandomNetCheck(correlation, p, 2, 3) for correlation, p in ((0.0, 0.6), (0.3, 0.01), (0.8, 0.01))
)


def images(
    deletion: tuple[float, float] = (0.1, 0.3), insertion: tuple[float, float] = (0.1, 0.3), n: int = 10
) -> list[ImageExplanation]:
    """Return n images whose gains are spread evenly between two numbers."""
    gains = zip(np.linspace(*deletion, n).tolist(), np.linspace(*insertion, n).tolist(), strict=True)
    return [explanation(gain=gain, insertion=shown) for gain, shown in gains]


PASSES, IN_PART, FAILS = "The maps pass their checks", "The maps pass in part", "Do not rely on the maps"


@pytest.mark.parametrize(
    ("check", "explanations", "word", "kind"),
    [
        (PASSED, images(), PASSES, "good"),
        (PARTIAL, images(), IN_PART, "care"),
        (FAILED, images(), FAILS, "bad"),
        (PASSED, images(deletion=(-0.3, -0.1)), FAILS, "bad"),
        (PASSED, images(deletion=(-0.3, 0.2)), IN_PART, "care"),  # below 0, but not beyond chance
        (PASSED, images(deletion=(-0.2, 0.3)), IN_PART, "care"),
        (PASSED, images(insertion=(-0.2, 0.3)), IN_PART, "care"),  # above 0, but not beyond chance
        (PASSED, images(insertion=(-0.3, -0.1)), IN_PART, "care"),
        (RandomNetCheck(None, None, 0, 0), images(), IN_PART, "care"),
        (PASSED, images(n=9), "Too few images", "care"),
        (PASSED, images(deletion=(-0.3, -0.1), n=9), "Too few images", "care"),
        (FAILED, images(n=2), "Too few images", "care"),
        (None, [], "Not checked", "care"),
    ],
)
def test_the_word_is_that_of_the_worst_check_where_the_interval_says_so(
    check: RandomNetCheck | None, explanations: list[ImageExplanation], word: str, kind: str
) -> None:
    verdict = judge_maps(explanations, check)
    assert (verdict.word, verdict.kind) == (word, kind), verdict.about


def test_too_few_maps_that_are_the_same_without_training_are_said_to_be() -> None:
    assert "much the same without training" in judge_maps(images(n=2), FAILED).about
    assert judge_maps(images(n=2), PASSED).about == "2 of the 10 that the checks need"


@pytest.mark.parametrize(
    ("explanations", "mark"),
    [
        (images(), '<li class="passed">'),
        (images(insertion=(-0.2, 0.3)), '<li class="">'),
        (images(deletion=(-0.3, 0.2)), '<li class="">'),
        (images(deletion=(-0.3, -0.1)), '<li class="serious">'),
        (images(deletion=(-0.3, -0.1), n=2), '<li class="">'),
    ],
)
def test_the_page_marks_curves_by_what_they_show(explanations: list[ImageExplanation], mark: str) -> None:
    summary = summarise_curves([one.curves for one in explanations if one.curves])
    html = template_environment().get_template("explain.html.j2").render(
        title="t", lead="l", verdict=None, reasons=(), second_input="", check=None, mask_sentence="",
        curve_uris=[], summary=summary, map_verdict=judge_maps(explanations, None), remedies=[],
        open_images=[], more_images=[], n_images=0, gradient="#fff", rejected=[],
    )  # fmt: skip
    assert f"{mark}<b>Deletion and insertion</b>" in html
    assert ("The maps do not name what the prediction rests on" in html) == ("serious" in mark)


def test_the_figures_are_means_over_images_with_their_intervals() -> None:
    explanations = [explanation(gain=gain, correlation=0.0, inside=0.5) for gain in (0.1, 0.2, 0.3)]
    summary = summarise_curves([one.curves for one in explanations if one.curves])
    verdict = judge_maps(explanations, PASSED)
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
    verdict = judge_maps(explanations, check)
    return " ".join(map_remedies(explanations, verdict, model))


def test_what_to_do_next_follows_from_what_the_checks_say() -> None:
    few = remedies_of(explanation())
    assert "Explain more images" in few and "--masks FOLDER" in few and "Mend the model" not in few
    many = remedies_of(*[explanation(inside=0.9)] * 10)
    assert "Explain more images" not in many and "--masks" not in many
    assert "Look at the 1 image whose map" in remedies_of(explanation(inside=0.1), explanation(inside=0.9))
    assert "--method occlusion" in remedies_of(*images(), check=FAILED)
    assert "without `--no-checks`" in remedies_of(replace(explanation(), curves=None), check=None)
    assert "Mend the model first" in remedies_of(explanation(), word="do not believe")
