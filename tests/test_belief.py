"""The word on a run's figures: planted faults are named, and a sound run is believed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dermkit.data.manifest import LesionClass
from dermkit.evaluation.evaluate import EvaluationInput, evaluate_predictions
from dermkit.reporting.first_screen import key_figures, rule_legend
from dermkit.reporting.report import write_report
from dermkit.runs.belief import Belief, judge_belief
from dermkit.runs.doubts import (
    Doubt,
    audit_doubts,
    calibration_doubts,
    group_doubts,
    independence_doubts,
    leak_doubts,
    lint_doubts,
    size_doubts,
)
from dermkit.runs.folder import RunFolder
from dermkit.runs.image_blind import RULE_TITLES
from dermkit.runs.layout import METRICS, RUN
from dermkit.runs.predictions import prediction_columns
from dermkit.runs.verdict import judge_run

CLASSES = (LesionClass("melanoma", "melanoma", "malignant"), LesionClass("nevus", "nevus", "benign"))
NAMES = [one.name for one in CLASSES]
N = 400


def scores(signal: float, seed: int, *, prevalence: float = 0.5, sure: float = 1.0) -> pd.DataFrame:
    """Return test predictions whose probabilities are calibrated for one normal feature, times `sure` in logits."""
    rng = np.random.default_rng(seed)
    is_malignant = np.arange(N) < prevalence * N
    feature = rng.normal(np.where(is_malignant, signal, -signal) / 2, 1.0)
    p = 1 / (1 + np.exp(-sure * signal * feature))
    rows = [
        [f"i{number}", f"i{number}.jpg", NAMES[int(not ill)], "test", "", "", NAMES[int(one < 0.5)], one, 1 - one]
        for number, (ill, one) in enumerate(zip(is_malignant, p, strict=True))
    ]
    return pd.DataFrame(rows, columns=prediction_columns(NAMES))


def judge_folder(run: RunFolder, lint: list[dict[str, Any]] | None = None) -> Belief:
    """Judge a run as its report does."""
    return judge_belief(run, judge_run(run), lint or [])


def judged(folder: Path, net: pd.DataFrame, rules: Mapping[str, pd.DataFrame], **facts: Any) -> Belief:
    """Write the metrics of a made run and judge it."""
    lint = facts.pop("lint", [])
    metrics = evaluate_predictions(
        EvaluationInput(
            net, classes=CLASSES, groups=None, train_counts=dict.fromkeys(NAMES, 500), rule_predictions=dict(rules)
        )
    )
    METRICS.write(folder, {**metrics, **facts.pop("metrics", {})})
    RUN.write(folder, {"split": {"scheme": "given"}, **facts})
    return judge_folder(RunFolder(folder), lint)


WEAK: Mapping[str, pd.DataFrame] = {"file": scores(0.1, 1), "colour_histogram": scores(0.5, 2)}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    judged(folder, scores(2.5, 3), WEAK)
    return folder


def test_a_sound_run_is_believed(sound: Path) -> None:
    belief = judge_folder(RunFolder(sound))
    assert (belief.word, belief.doubts) == ("believe", ())
    assert belief.as_dict() == {"split": "test", "verdict": "believe", "doubts": []}


def test_a_rule_that_does_as_well_is_a_reason_not_to_believe(tmp_path: Path) -> None:
    belief = judged(tmp_path, scores(2.0, 3), {**WEAK, "source": scores(2.2, 4)})
    assert belief.word == "do not believe"
    assert (
        belief.reasons[0].code == "image_blind" and "the archive that the image is from" in belief.reasons[0].text
    )


def test_a_strong_rule_that_the_net_beats_is_named(tmp_path: Path) -> None:
    belief = judged(tmp_path, scores(3.5, 3), {**WEAK, "border": scores(1.6, 4)})
    assert belief.word == "believe with care"
    assert [doubt.code for doubt in belief.doubts] == ["strong_rule"]
    assert "the border of the image" in belief.doubts[0].text


@pytest.mark.parametrize(("total", "word"), [(40, "do not believe"), (3, "believe with care"), (0, "believe")])
def test_leaks_weigh_by_their_share(sound: Path, total: int, word: str) -> None:
    run = RunFolder(sound)
    metrics = {**run.metrics, "leaks": {"n": N, "total": total}}
    run.__dict__["metrics"] = metrics
    belief = judge_folder(run)
    assert belief.word == word
    assert [doubt.evidence for doubt in belief.doubts] == ["data"] * bool(total)


@pytest.mark.parametrize(
    ("audit", "word", "code"),
    [
        ({"errors": [("DA015", 60)]}, "do not believe", "leak"),
        ({"errors": [("DA015", 4)]}, "believe with care", "leak"),
        ({"accepted": [("DA014", 9)]}, "believe with care", "audit"),
        ({"warnings": [("DA051", 80)]}, "believe with care", "shortcut"),
        ({"warnings": [("DA030", 80)]}, "believe", ""),
    ],
)  # fmt: skip
def test_the_audit_counts(sound: Path, audit: dict[str, list[tuple[str, int]]], word: str, code: str) -> None:
    rows = {
        kind: [{"code": one, "title": "Rulers go with a class", "n": n, "effect": ""} for one, n in found]
        for kind, found in audit.items()
    }
    run = RunFolder(sound)
    run.__dict__["run_json"] = {"dataset": {"audit": rows}}
    belief = judge_folder(run)
    assert (belief.word, [doubt.code for doubt in belief.doubts]) == (word, [code] if code else [])


def test_lint_errors_refuse_and_most_warnings_do_not() -> None:
    rows = [{"code": code, "severity": severity, "sentence": "x", "remedy": "do y"}
            for code, severity in (("LN006", "error"), ("LN005", "warning"), ("LN003", "warning"))]  # fmt: skip
    assert [(doubt.weight, doubt.remedy) for doubt in lint_doubts(rows)] == [
        ("refuse", "Do y."),
        ("care", "Do y."),
    ]
    assert list(lint_doubts(None)) == []


def test_probabilities_that_are_too_sure_or_too_high_are_named(tmp_path: Path) -> None:
    too_sure = judged(tmp_path / "sure", scores(2.5, 3, sure=3.0), WEAK)
    assert [doubt.code for doubt in too_sure.doubts if doubt.code == "calibration"] == ["calibration"]
    assert "too sure" in next(doubt.text for doubt in too_sure.doubts if doubt.code == "calibration")
    rare = judged(tmp_path / "rare", scores(2.5, 3, prevalence=0.15), {})
    assert any("too high" in doubt.text for doubt in rare.doubts)


def test_calibration_of_an_interval_that_reaches_the_limit_is_left_alone() -> None:
    def split(low: float, high: float) -> dict[str, Any]:
        estimate = {"value": (low + high) / 2, "ci95": [low, high], "n": 99, "method": "x"}
        return {"metrics": {"calibration_slope": estimate}}

    assert list(calibration_doubts(split(0.5, 0.81), "test")) == []
    assert len(list(calibration_doubts(split(0.5, 0.79), "test"))) == 1


def _groups(rates: Mapping[str, tuple[float, int]]) -> dict[str, Any]:
    """Return a split whose groups have these sensitivities on so many images; specificity is the same for all."""

    def estimate(value: float, n: int) -> dict[str, Any]:
        half = 1.96 * (value * (1 - value) / n) ** 0.5
        return {"value": value, "ci95": [value - half, value + half], "n": n, "method": "wilson"}

    n = sum(count for _, count in rates.values())
    mean = sum(value * count for value, count in rates.values()) / n
    groups = [
        {"name": name, "metrics": {"sensitivity": estimate(value, count), "specificity": estimate(0.8, count)}}
        for name, (value, count) in rates.items()
    ]
    return {"metrics": {"sensitivity": estimate(mean, n), "specificity": estimate(0.8, n)},
            "subgroups": {"skin_type": {"groups": groups}}}  # fmt: skip


@pytest.mark.parametrize(
    ("worst", "n", "is_named"), [(0.5, 60, True), (0.8, 60, False), (0.5, 12, False), (0.86, 2000, False)]
)
def test_a_group_is_named_where_it_is_clearly_served_worse(worst: float, n: int, is_named: bool) -> None:
    found = list(group_doubts(_groups({"I": (0.9, 300), "III": (0.9, 300), "VI": (worst, n)}), "test"))
    assert len(found) == is_named
    if is_named:
        assert found[0].text.startswith("It fails a group: for skin type VI it finds 50.0 %")


def test_equal_groups_are_seldom_named() -> None:
    """Of 300 draws of ten equal groups at most six are named: the chance is 1 % for all comparisons together."""
    rng, named = np.random.default_rng(0), 0
    for _ in range(300):
        rates = {str(number): (rng.binomial(60, 0.8) / 60, 60) for number in range(10)}
        named += bool(list(group_doubts(_groups(rates), "test")))
    assert named <= 6


def test_validation_is_no_test(tmp_path: Path) -> None:
    belief = judged(tmp_path, scores(2.5, 3).assign(split="validation"), {})
    assert belief.word == "believe with care"
    assert [doubt.code for doubt in belief.doubts] == ["no_test"]


@pytest.mark.parametrize(("n", "n_groups", "is_few"), [(14, 42, True), (30, 90, False), (30, 50, True)])
@pytest.mark.parametrize("positive", [[], ["a", "b", "c"]])
def test_few_images_are_a_doubt_where_all_classes_are_of_one_kind_too(
    n: int, n_groups: int, is_few: bool, positive: list[str]
) -> None:
    per_class = {name: {"n": n} for name in "abc"}
    metrics = {
        "positive": positive, "splits": {"test": {"n": 3 * n, "n_groups": n_groups, "per_class": per_class}}
    }  # fmt: skip
    found = list(size_doubts(metrics, "test"))
    assert [doubt.code for doubt in found] == ["few_images"] * is_few
    if is_few:
        assert found[0].text.startswith(f"Too few test images to be sure: {3 * n}")


@pytest.mark.parametrize(
    ("seal", "is_test_kept", "first"),
    [({}, False, "There is no test"), ({"openings": [], "opening_number": None}, False, "The test images are sealed"),
     ({}, True, "The test images were not scored")],
)  # fmt: skip
def test_a_test_that_was_not_scored_is_not_called_missing(
    seal: dict[str, Any], is_test_kept: bool, first: str
) -> None:
    found = list(independence_doubts("validation", seal, seen_split="seen", is_test_kept=is_test_kept))
    assert len(found) == 1 and found[0].text.startswith(first)


@pytest.mark.parametrize(
    ("runs", "is_doubted"), [(["net-s0", "net-s1"], False), (["net-s0", "other-s0"], True), (["net-s0"], False)]
)
def test_openings_are_doubted_unless_they_are_seeds_of_one_recipe(runs: list[str], is_doubted: bool) -> None:
    openings = [{"recipe": "net", "run": run} for run in runs]
    seal = {"openings": openings, "opening_number": len(runs)}
    found = list(independence_doubts("test", seal, seen_split="seen"))
    assert [doubt.code for doubt in found] == ["opened"] * is_doubted


def test_only_the_leaks_of_the_judged_split_refuse() -> None:
    leaks = {"n": 100, "total": 40, "validation": {"n": 100, "total": 30}}
    weights = {
        split: {doubt.code: doubt.weight for doubt in leak_doubts(leaks, split)}
        for split in ("test", "validation")
    }
    assert weights["test"] == {"leak": "refuse", "leak_validation": "care"}
    assert weights["validation"] == {"leak": "care", "leak_validation": "refuse"}


def test_copies_on_two_sides_of_a_data_set_are_no_leak_of_an_external_test() -> None:
    finding = {"code": "DA012", "title": "Exact copies in two splits", "n": 90, "effect": ""}
    dataset = {"audit": {"errors": [finding]}}
    assert [doubt.weight for doubt in audit_doubts({"dataset": dataset}, 100)] == ["refuse"]
    external = {"dataset": dataset, "training_dataset": dataset, "mapping": {"rule": "identity"}}
    assert list(audit_doubts(external, 100)) == []


def test_few_images_are_a_doubt_and_three_reasons_are_of_different_kinds(sound: Path) -> None:
    audit = {
        "warnings": [{"code": code, "title": code, "n": 9, "effect": ""} for code in ("DA040", "DA041", "DA042")]
    }
    run = RunFolder(sound)
    run.__dict__["run_json"] = {"dataset": {"audit": audit}}
    metrics = dict(run.metrics, leaks={"n": N, "total": 2})
    metrics["splits"] = {"test": dict(metrics["splits"]["test"], n_groups=50)}
    run.__dict__["metrics"] = metrics
    belief = judge_folder(run)
    assert [doubt.code for doubt in belief.doubts] == ["leak", "shortcut", "shortcut", "shortcut", "few_images"]
    assert [doubt.code for doubt in belief.reasons] == ["leak", "shortcut", "few_images"]


def test_the_doubt_that_refuses_is_a_reason_though_one_of_its_kind_comes_last() -> None:
    kinds = [("leak", "refuse"), ("contradictions", "care"), ("strong_rule", "care"), ("group", "care"),
             ("leak", "care")]  # fmt: skip
    doubts = tuple(Doubt(code, weight, (f"{code} {weight}",), "data", "x") for code, weight in kinds)  # type: ignore[arg-type]
    reasons = Belief("do not believe", "test", doubts).reasons
    assert [doubt.text for doubt in reasons] == ["leak refuse", "contradictions care", "strong_rule care"]


def test_the_legend_names_the_best_rule_of_each_figure_with_its_own_value(tmp_path: Path) -> None:
    by_rank = scores(1.0, 7)  # a good order, whose labels are all of one class
    by_rank["predicted"] = "nevus"
    judged(tmp_path, scores(2.5, 3), {"file": scores(0.6, 1), "source": by_rank})
    run = RunFolder(tmp_path)
    rows = key_figures(run, judge_run(run))
    best = {entry.title.split(": ")[1]: entry.figures for entry in rule_legend(rows) if entry.kind == "best"}
    rules = run.metrics["splits"]["test"]["image_blind"]
    assert [(title, [name for name, _, _ in figures]) for title, figures in best.items()] == [
        (RULE_TITLES[rules["best"]["balanced_accuracy"]], ["balanced accuracy"]),
        (RULE_TITLES[rules["best"]["auroc"]], ["AUROC"]),
    ]
    assert rules["best"]["balanced_accuracy"] != rules["best"]["auroc"]
    write_report(tmp_path)
    head = (tmp_path / "report.html").read_text().split("</caption>")[0]
    assert all(title in head for title in best)
