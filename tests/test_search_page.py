"""tune.html: the expected value first, and what to do next as the study's values say."""

from pathlib import Path
from typing import Any

import pytest

from dermkit.files import write_rows, write_text
from dermkit.reporting.search_page import search_remedies, verdict_of_search, write_search_page
from dermkit.runs.layout import HISTORY_TABLE, IMPORTANCE_TABLE, STUDY, TUNE_TABLE

RATES = {"low": 1e-4, "high": 1e-2, "log": True}


def study_of(*, final: str = "", n_folds: int = 1, rate: float = 1e-3, **corrected: Any) -> dict[str, Any]:
    """Return study.json of ten trials, the best of which has a rate."""
    return {
        "study": "s", "recipe": "quick", "dataset": "lesions", "monitor": "val_accuracy", "n_folds": n_folds,
        "space": {"phases.0.head_lr": RATES, "augment": ["none", "light"]},
        "counts": {"COMPLETE": 8, "PRUNED": 2, "FAIL": 1, "RUNNING": 0, "WAITING": 0}, "n_values": 8,
        "best": {"trial": 4, "recipe": "quick-b", "values": {"phases.0.head_lr": rate, "augment": "light"},
                 "runs": [], "value": 0.82},
        "corrected": {"value": 0.78, "ci95": [0.7, 0.85], "n": 400, "method": "BBC-CV", **corrected},
        "optimism": 0.04, "final": final,
    }  # fmt: skip


def page_of(folder: Path, study: dict[str, Any], *, weights: dict[str, float] | None = None) -> str:
    """Write the page of a study; returns it."""
    STUDY.write(folder, study)
    write_rows(folder / HISTORY_TABLE, ("trial", "value", "best_so_far"), [(0, 0.7, 0.7), (4, 0.82, 0.82)])
    write_rows(folder / IMPORTANCE_TABLE, ("field", "importance"), (weights or {}).items())
    header = ("trial", "state", "val_accuracy", "is_best", "recipe", "seconds", "same_as", "repeats", "reason", "runs",
              "phases.0.head_lr", "augment")  # fmt: skip
    rows = [
        (4, "complete", 0.82, True, "b", 3.25, "", "", "", "", 1e-3, "light"),
        (5, "pruned", "", False, "c", "", "", "", "below the median", "", 1e-2, "none"),
    ]
    write_rows(folder / TUNE_TABLE, header, rows)
    return write_search_page(folder).read_text(encoding="utf-8")


def test_the_first_screen_says_what_to_expect(tmp_path: Path) -> None:
    page = page_of(tmp_path, study_of(), weights={"phases.0.head_lr": 0.9, "augment": 0.1})
    assert "Research use only. Not a medical device." in page
    assert "10 settings of the recipe quick were tried (8 trained to the end, 2 ended early, 1 interrupted" in page
    assert "Expect 0.780" in page and "0.700 to 0.850" in page and "best of 8, as measured" in page
    assert "about 0.040 too good because it is the best of many" in page
    assert page.index("Expect 0.780") < page.index("Every trial") and "below the median" in page
    assert "0.0001 to 0.01, log scale" in page and "0.90" in page


def test_what_cannot_be_corrected_is_not_expected(tmp_path: Path) -> None:
    study = study_of(value=None, ci95=None, reason="one group only", method="none")
    page = page_of(tmp_path, {**study, "optimism": None})
    assert "Not known" in page and "Expect" not in page
    assert "The weight of each field is not known: too few trials" in page
    doubtful = study_of(reason="interval unreliable: 9 units, 30 needed")
    assert "too few images to tell" in verdict_of_search(doubtful)
    assert "--folds 5" in " ".join(search_remedies(doubtful, {}))


def test_the_report_of_the_selected_recipe_is_linked_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "a run").mkdir()
    write_text(tmp_path / "a run" / "report.html", "report")
    page = page_of(tmp_path / "study", study_of(final=str(tmp_path / "a run")))
    assert 'href="../a%20run/report.html"' in page and "--no-final" not in page
    assert "Read the report" not in page_of(tmp_path / "study", study_of(final=str(tmp_path / "gone")))


@pytest.mark.parametrize(
    ("rate", "weight", "is_told"), [(9.9e-3, 0.9, True), (9.9e-3, 0.0, False), (1e-3, 0.9, False)]
)
def test_a_wider_range_is_asked_for_where_a_field_that_weighs_lies_at_an_end(
    rate: float, weight: float, is_told: bool
) -> None:
    text = " ".join(search_remedies(study_of(rate=rate), {"phases.0.head_lr": weight}))
    assert ("phases.0.head_lr = 0.0099 of 0.0001 to 0.01" in text) == is_told
    assert ("beyond what was tried" in text) == is_told


def test_folds_choose_by_all_images_and_a_recipe_that_was_not_trained_is_to_be_trained() -> None:
    text = " ".join(search_remedies(study_of(n_folds=5), {}))
    assert "took no part in choosing" in text and "without `--no-final`" in text
    assert "without `--no-final`" not in " ".join(search_remedies(study_of(final="runs/a"), {}))
