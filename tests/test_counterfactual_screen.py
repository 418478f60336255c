"""The first screen of counterfactuals.html: the word holds for all artefacts and strengths at once."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from scipy.stats import binomtest

from dermkit.perturbation.artefacts import ARTEFACTS
from dermkit.perturbation.changes import VariantAnswers, decision_bounds, measure_changes
from dermkit.perturbation.first_screen import answer_fields, remedies
from dermkit.perturbation.plan import STRENGTHS, Variant
from dermkit.perturbation.results import ArtefactResult, CounterfactualResult
from dermkit.perturbation.sentences import Wording
from dermkit.render.titles import lower_first


def screened(n: int, flips: list[tuple[int, int, int]], groups: np.ndarray | None = None) -> CounterfactualResult:
    """Return a result on n images. flips: for each artefact the decisions that change at each strength."""
    variants = [Variant("original", "original", 0.0)]
    is_positive = [np.zeros(n, bool)]
    for artefact, counts in zip(ARTEFACTS, flips, strict=False):
        for strength, count in zip(STRENGTHS, counts, strict=True):
            variants.append(Variant("artefact", artefact.name, strength))
            is_positive.append(np.arange(n) < count)
    positive = np.stack(is_positive, axis=1)
    sides = np.arange(n) % 2 == 0
    units = np.arange(n) if groups is None else groups
    answers = VariantAnswers(0.4 + 0.2 * positive, positive.astype(np.int64), positive, sides, sides.astype(np.int64),
                             units)  # fmt: skip
    changes = measure_changes(answers, tested=range(1, len(variants)))[1:]
    artefacts = tuple(
        ArtefactResult(artefact, tuple(changes[3 * number : 3 * number + 3]), "")
        for number, artefact in enumerate(ARTEFACTS[: len(flips)])
    )
    wording = Wording("P(malignant)", n, len(np.unique(units)), True, "sensitivity .95")
    fields: dict[str, Any] = {"artefacts": artefacts, "hidden": (), "variants": tuple(variants), "answers": answers,
                              "wording": wording, "mask_counts": {}}  # fmt: skip
    return cast("CounterfactualResult", SimpleNamespace(**fields))


def test_a_change_at_a_low_strength_alone_is_no_silence() -> None:
    result = screened(60, [(0, 0, 0), (20, 0, 0)])
    answer = answer_fields(result)
    assert answer["word"] == "20 of 60 decisions change" and answer["kind"] == "bad"
    assert "at strength 0.33" in answer["about"] and "at strength 0.33" in answer["sentences"][0]
    assert answer["rows"][0]["value"] == pytest.approx(1 / 3)
    assert ARTEFACTS[1].title.lower() in " ".join(remedies(result)).lower()


@pytest.mark.parametrize(("n", "kind"), [(20, "care"), (500, "good")])
def test_no_change_has_an_upper_bound_in_the_word(n: int, kind: str) -> None:
    answer = answer_fields(screened(n, [(0, 0, 0)] * 2))
    high = binomtest(0, n).proportion_ci(1 - 0.05 / 6).high
    assert answer["word"] == f"No decisions change: at most {100 * high:.1f} % would" and answer["kind"] == kind


def test_the_box_is_red_where_the_bound_holds_for_all_artefacts_at_once() -> None:
    counts = (0, 0, 8)
    assert binomtest(8, 60).proportion_ci().low > 0.05, "red by its own interval"
    alone, of_many = (answer_fields(screened(60, [counts, *[(0, 0, 0)] * more])) for more in (0, 13))
    assert of_many["kind"] == "care" and "for all artefacts and strengths at once" in of_many["about"]
    assert answer_fields(screened(60, [(0, 0, 20), *[(0, 0, 0)] * 13]))["kind"] == "bad"
    assert alone["word"] == of_many["word"] == "8 of 60 decisions change"


def test_bounds_are_exact_over_all_variants_and_wider_for_grouped_images() -> None:
    result = screened(60, [(0, 3, 9)])
    bounds = decision_bounds(result.answers, [1, 2, 3])
    for number, count in ((1, 0), (2, 3), (3, 9)):
        exact = binomtest(count, 60).proportion_ci(1 - 0.05 / 3)
        assert bounds[number] == pytest.approx((exact.low, exact.high))
    grouped = decision_bounds(screened(60, [(0, 3, 9)], np.arange(60) // 3).answers, [1, 2, 3])
    assert all(grouped[number][1] > bounds[number][1] for number in bounds)
    one_lesion = screened(60, [(0, 3, 9)], np.zeros(60, np.int64))
    assert decision_bounds(one_lesion.answers, [1])[1] == (0.0, 1.0)


@pytest.mark.parametrize(
    ("title", "text"),
    [("Hairs", "hairs"), ("JPEG quality", "JPEG quality"), ("AUROC, nevus", "AUROC, nevus"), ("", "")],
)
def test_a_title_inside_a_sentence_keeps_its_abbreviation(title: str, text: str) -> None:
    assert lower_first(title) == text
