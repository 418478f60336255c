"""auto.html: the chosen recipe and its figure first, and what to do next as the data set says."""

from pathlib import Path
from typing import Any

import pytest

from dermkit.files import write_rows
from dermkit.reporting.auto_page import RACE_METRICS, race_lead, race_remedies, write_auto_page
from dermkit.runs.layout import AUTO, LEADERBOARD_TABLE

COLUMNS = [f"{metric}{end}" for metric in RACE_METRICS for end in ("", "_low", "_high")]


def row_of(name: str, value: float | None, *, unreliable: str = "") -> dict[Any, str]:
    """Return a row of leaderboard.csv; value: None for a recipe that was not finished."""
    state, figures = ("out of time", [""] * len(COLUMNS)) if value is None else ("complete", [])
    if value is not None:
        figures = [f"{number}" for _ in RACE_METRICS for number in (value, value - 0.1, value + 0.1)]
    return {
        "name": name, "state": state, "is_chosen": str(name == "second"), **dict(zip(COLUMNS, figures, strict=True)),
        "n": "" if value is None else "200", "seconds": "3", "unreliable": unreliable,
    }  # fmt: skip


def race_of(
    *, audit: str = "done", n_with_ids: int = 250, n_recipes: int = 3, corrected: float | None = 0.75
) -> Any:
    """Return auto.json of a race in which `second` was chosen."""
    estimate = {"value": 0.8, "ci95": [0.7, 0.9], "n": 200, "method": "m"}
    reason = {} if corrected else {"reason": "one group only"}
    interval = [0.65, 0.85] if corrected else None
    return {
        "dataset": "lesions", "seconds": 1800, "seed": 0, "states": {}, "seconds_of_runs": {}, "planning_seconds": 1,
        "profile": {
            "name": "lesions", "n_training": 250, "n_test": 0, "class_counts": {"a": 100, "b": 150}, "n_groups": 90,
            "n_with_lesion_or_patient": n_with_ids, "median_side": 600, "known_metadata": {"age": 0.5},
            "audit": {"state": audit, "errors": [], "warnings": []},
        },
        "plan": {"n_folds": 5, "n_trained_folds": 5, "choices": [
            {"name": "folds", "value": "5", "reason": "every image is scored", "evidence": "90 groups",
             "would_change": "more time"}]},
        "chosen": {
            "name": "second", "folder": "trials/second/x", "estimate": estimate, "value": 0.8, "n_recipes": n_recipes,
            "corrected": {"value": corrected, "ci95": interval, "n": 200, "method": "m", **reason},
        },
    }  # fmt: skip


ROWS = [row_of("second", 0.8), row_of("ensemble", 0.79, unreliable="balanced_accuracy"), row_of("first", None)]


def page_of(folder: Path, race: Any, rows: list[dict[Any, str]] = ROWS) -> str:
    AUTO.write(folder, race)
    write_rows(folder / LEADERBOARD_TABLE, list(rows[0]), [list(row.values()) for row in rows])
    return write_auto_page(folder).read_text(encoding="utf-8")


def test_the_first_screen_has_every_recipe_and_the_corrected_figure(tmp_path: Path) -> None:
    page = page_of(tmp_path, race_of())
    assert "Research use only. Not a medical device." in page
    assert "Chosen: second" in page and "second, corrected for choosing" in page
    assert "As the best of 3 it looks better than it is (0.800): expect 0.750" in page
    assert "0.690 to 0.890*" in page and "An interval that cannot be relied on" in page
    assert "Without a figure: first (out of time)." in page
    assert "Every image is scored." in page and "Read the report of the model" not in page
    (tmp_path / "trials" / "second" / "x").mkdir(parents=True)
    (tmp_path / "trials" / "second" / "x" / "report.html").touch()
    assert 'href="trials/second/x/report.html"' in page_of(tmp_path, race_of())


@pytest.mark.parametrize(("corrected", "text"), [(0.75, "expect 0.750"), (None, "is not known")])
def test_what_choosing_does_is_said_as_far_as_it_is_known(
    tmp_path: Path, corrected: float | None, text: str
) -> None:
    assert text in page_of(tmp_path, race_of(corrected=corrected))


def test_the_only_recipe_was_not_chosen_among_others(tmp_path: Path) -> None:
    page = page_of(tmp_path, race_of(n_recipes=1), [row_of("second", 0.8)])
    assert "nothing was chosen among others" in page and "corrected for choosing" not in page
    assert race_lead(race_of(n_recipes=1), [row_of("second", 0.8)]).startswith("One recipe was trained on 5 folds")
    assert race_lead(race_of(), ROWS).startswith(
        "1 of 2 recipes were trained on 5 folds, and scored on 200 images"
    )


def test_what_to_do_next_follows_from_the_data_set_and_the_time() -> None:
    sound = " ".join(race_remedies(race_of(), ROWS[:2]))
    assert "--open-test" in sound and "audit" not in sound and "patient ids" not in sound and "--time" not in sound
    poor = " ".join(race_remedies(race_of(audit="never", n_with_ids=0), ROWS))
    assert "dermkit audit DATASET --clean" in poor and "patient ids" in poor
    assert "Give more time (`--time`): first has no figure." in poor
