"""The report repeats metrics.json to the digit, survives what is missing, and lets nothing in or out."""

import base64
import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dermkit.errors import DataError
from dermkit.evaluation.evaluate import evaluate_run
from dermkit.evaluation.options import DEFAULT_OPTIONS, EvaluationOptions
from dermkit.files import write_json, write_rows, write_text
from dermkit.metrics.classification.reader_studies import READER_STUDIES
from dermkit.metrics.stats.estimate import humanise, reliability
from dermkit.recipes.augmentation import AugmentSpec
from dermkit.recipes.schema import ImageSpec, ModelSpec, Recipe, SplitSpec, save_recipe
from dermkit.recipes.training_specs import ComputeSpec, OptimSpec, Phase
from dermkit.reporting import facts as reporting_facts
from dermkit.reporting import figures as reporting_figures
from dermkit.reporting import mistakes, report, warnings
from dermkit.reporting.labels import METRIC_TITLES
from dermkit.reporting.paper_table import latex_text
from dermkit.reporting.recipe_rows import recipe_rows
from dermkit.reporting.report import write_report, write_summary_report
from dermkit.runs.folder import RunFolder
from dermkit.runs.layout import ENVIRONMENT, METRICS, RUN, SUMMARY, UNSTABLE_TRAINING
from dermkit.runs.predictions import prediction_columns
from dermkit.runs.verdict import judge_run

HOSTILE = '<script>alert("1")</script>'
NINE = (
    "actinic keratosis", "basal cell carcinoma", "dermatofibroma", "melanoma", "nevus",
    "pigmented benign keratosis", "seborrheic keratosis", "squamous cell carcinoma", "vascular lesion",
)  # fmt: skip
MALIGNANT = ("basal cell carcinoma", "melanoma", "squamous cell carcinoma", "malignant", HOSTILE)

RECIPE = Recipe(
    name="s2-published", system="S2", about="A frozen backbone and a head of its own.",
    image=ImageSpec(size=128, resize="squash", interpolation="bilinear", normalise="zero_one"),
    split=SplitSpec(scheme="given", seed=0, validation=0.2, test=0.0, folds=0, per_class=0, draw_from=""),
    model=ModelSpec(
        backbone="resnet50", backbone_args={}, weights="imagenet", skip_blocks=(), hidden=(512,), dropout=0.2,
        drop_path=0.0, classifier=None, metadata=None,
    ),
    augment=AugmentSpec(
        horizontal_flip=True, vertical_flip=False, transpose=False, p_geometric=1.0, rotate=20.0, shift=0.1, zoom=0.0,
        fill="reflect", distort=None, p_colour=1.0, brightness=0.0, contrast=0.0, saturation=0.0, hsv=None,
        blur_noise=None, clahe=None, cutout=None,
    ),
    grow=None,
    phases=(Phase(epochs=6, train_backbone="none", head_lr=1e-3, backbone_lr=0.0, views=2, freeze_batch_norm=True,
                  patience=0,
                  layer_decay=1.0, image_size=0,
              ),),
    optim=OptimSpec(optimizer="adam", momentum=0.9, weight_decay=0.0, class_weights="none", label_smoothing=0.0,
                    batch_size=32, schedule="constant", sampling="shuffled",
                    focal_gamma=0.0, logit_adjustment=0.0, warmup_epochs=0.0, ema_decay=0.0, batch_norm_images=0,
                ),
    mix=None, compute=ComputeSpec(precision="float32", compile=False),
    monitor="val_loss", keep="best", seed=0, repeats=1, derived_from=None,
    smote=None, distil=None, test_views="identity",
)  # fmt: skip


FROM_METRICS = ("head", "performance", "results", "classes", "malignant", "decisions", "groups", "official")
"""The parts of the page whose every figure stands in metrics.json: the header, and sections by id."""

BARE = re.compile(r"[0-9]*\.[0-9]+|[0-9]\s?%")
CONSTANTS = re.compile(
    "|".join(map(re.escape, sorted([*METRIC_TITLES.values(), "95\N{NO-BREAK SPACE}%", "95 %"], key=len)[::-1]))
)
"""Names of figures and the level of intervals: numbers that no data change."""


class Page(HTMLParser):
    """What a browser would see: tags, the elements that show a number, and the numbers that stand in none."""

    def __init__(self, path: Path | str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.numbers: list[tuple[str, str, str, str]] = []  # class of the row, place, full value, shown text
        self.text = ""
        self.counted: list[tuple[str, str]] = []  # figure of the rule that never looks, full value
        self.quoted: dict[str, str] = {}  # file -> what the page quotes of it
        self.reasons: list[tuple[str, str, str]] = []  # class of the row, place, shown text
        self.bare: list[str] = []
        self._row = self._section = ""
        self._open: list[tuple[str, str]] = []
        self._inside: list[tuple[str, dict[str, str]]] = []
        self.feed(path if isinstance(path, str) else path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append((tag, found))
        if tag not in ("img", "br", "meta"):
            self._inside.append((tag, found))
        self._section = "head" if tag == "header" else found.get("aria-labelledby", self._section)
        if tag == "tr":
            self._row = found.get("data-class", "")
        if "data-counted" in found:
            self.counted.append((found["data-counted"], found["data-value"]))
        if "data-metric" in found:
            self._open.append((found["data-metric"], found["data-value"]))

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        self.text += data
        held = {name: value for _, found in self._inside for name, value in found.items()}
        if "data-file" in held:
            self.quoted[held["data-file"]] = data
        elif "data-reason" in held:
            self.reasons.append((self._row, held["data-reason"], held["title"] if data == "†" else data))
        elif self._section in FROM_METRICS and not held.keys() & {"data-metric", "data-counted"}:
            self.bare += BARE.findall(CONSTANTS.sub("", data))
        if self._open and data.strip():
            self.numbers.append((self._row, *self._open.pop(), data.strip()))


def make_run(
    folder: Path,
    classes: Sequence[str] = NINE,
    *,
    n: int = 90,
    absent: str = "",
    asked: EvaluationOptions = DEFAULT_OPTIONS,
    **run_facts: Any,
) -> Path:
    """Write a run folder as training leaves it, with made probabilities, and evaluate it."""
    rng = np.random.default_rng(3)
    k = len(classes)
    true = np.arange(n) % k
    if absent:
        true[true == classes.index(absent)] = (classes.index(absent) + 1) % k
    p = rng.dirichlet(np.full(k, 0.4), n) * 0.85
    p[np.arange(n), true] += 0.15
    rows = [
        (f"test/{i:03}", f"test/{i:03}.jpg", classes[true[i]], "validation" if (i // k) % 3 == 0 else "test", "", 0,
         classes[int(p[i].argmax())], *map(float, p[i]))
        for i in range(n)
    ]  # fmt: skip
    write_rows(folder / "predictions.csv", prediction_columns(classes), rows)
    write_rows(folder / "groups.csv", ("image_id", "group"), [(row[0], i // 2) for i, row in enumerate(rows)])
    log = [
        (
            e,
            1 if e < 5 else 2,
            1e-3,
            2.0,
            2.0 / e,
            0.3 + 0.08 * e,
            1.4 + 0.1 * abs(e - 3),
            0.3 + 0.02 * e,
            0.3,
            0.6,
        )
        for e in range(1, 9)
    ]
    write_rows(
        folder / "log.csv",
        ("epoch", "phase", "lr", "seconds", "train_loss", "train_accuracy", "val_loss", "val_accuracy",
         "val_balanced_accuracy", "val_auroc_macro"), log)  # fmt: skip
    write_rows(
        folder / "excluded.csv",
        ("image_id", "reason"),
        [(f"train/{i}", f"same pixels as test image test/{i:03}") for i in range(7)] + [("train/x", "not drawn")],
    )
    save_recipe(RECIPE, folder / "recipe.json")
    ENVIRONMENT.write(folder, {"versions": {"numpy": "2"}, "threads": 2, "cuda": None})
    write_text(folder / "NEXT_STEPS.txt", "dermkit predict runs/a/model IMAGE... --out predictions\n")
    RUN.write(folder, _facts(classes) | run_facts)
    evaluate_run(folder, options=asked)
    return folder


def _facts(classes: Sequence[str]) -> dict[str, Any]:
    table = [
        {"name": name, "diagnosis": name, "malignancy": "malignant" if name in MALIGNANT else
         "indeterminate" if name == "actinic keratosis" else "benign"}
        for name in classes
    ]  # fmt: skip
    return {
        "recipe": "s2-published",
        "dataset": {"name": "isic9", "classes": table, "n": 2357, "manifest_sha256": "0" * 64,
                    "licences": "CC-0", "notes": {}},
        "split": {"name": "given", "scheme": "given", "counts": {"train": 1790, "validation": 30, "test": 60},
                  "train_counts": {name: 10 + i for i, name in enumerate(classes)},
                  "excluded": 8, "leaks": {"n": 60, "total": 0, "contradictions": 0}},
        "seed": 0, "fold": None, "minutes": 3.2, "stopped": {"epoch": 8, "reason": "all epochs done"},
        "best": {"epoch": 3, "monitor": "val_loss", "value": 1.4},
        "weights": {"origin": "resnet50.safetensors", "sha256": "1" * 64, "licence": "apache-2.0", "note": ""},
        "warnings": [],
    }  # fmt: skip


@pytest.fixture(scope="module")
def nine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("nine"))
    write_report(run)
    return run


DOTTED = "nevus v. b"


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with everything that a page can show: people, wishes, the official rules, a class with a dot."""
    run = tmp_path_factory.mktemp("full")
    people = [
        (
            f"test/{i:03}",
            str(20 + 13 * (i % 5)) if i % 11 else "",
            ("male", "female")[i % 4 == 0],
            "back" * (i < 9),
            "",
        )
        for i in range(1500)
    ]
    write_rows(run / "attributes.csv", ("image_id", "age", "sex", "site", "skin_type"), people)
    asked = EvaluationOptions(
        official=True, targets=(("sensitivity", 0.975), ("specificity", 0.8)), prevalences=(0.0025, 0.03)
    )
    make_run(run, ("benign", "melanoma", DOTTED), n=1500, asked=asked)
    write_report(run)
    return run


def _stored(metrics: dict[str, Any], row: str, place: str) -> Any:
    """Return what metrics.json holds at the place that an element names; `*` stands for the row's class."""
    split, *rest = place.split(".")
    if place.startswith(":"):
        value, rest = metrics, place[1:].split(".")
        for part in rest:
            value = value[part]
        return value
    rest = [row if part == "*" else part for part in rest]
    value = metrics["splits"][split]
    if rest[0] == "per_class":
        value, rest = value["per_class"][row], rest[1:]
    elif rest[0] not in ("baselines", "policy", "subgroups", "official", "image_blind"):
        value = value["metrics"]
    for part in rest:
        value = value[int(part)] if isinstance(value, list) else value[part]
    return value


def _wrong(page: Page, metrics: dict[str, Any]) -> list[str]:
    """Return the places of elements that do not show, or do not hold, what metrics.json says there."""
    wrong = []
    for row, place, whole, shown in page.numbers:
        stored = _stored(metrics, row, place)
        if json.loads(whole) != stored or not _shows(place, stored, shown):
            wrong.append(place)
    for row, place, text in page.reasons:
        whole = humanise(_stored(metrics, row, place))
        if text not in (whole, whole.removeprefix("unreliable: ")):  # a sentence has said so before the bracket
            wrong.append(place)
    return wrong


def _shows(place: str, stored: Any, shown: str) -> bool:
    if stored is None:
        return shown.startswith("not defined: ")
    if isinstance(stored, int):
        return shown == str(stored)
    if place.split(".")[-1] in ("prevalence", "target", "coverage_target"):
        return shown == f"{100 * stored:.6g}\N{NO-BREAK SPACE}%"
    percent = f"{stored:.1%}".replace("%", "\N{NO-BREAK SPACE}%")
    people = (f"{stored:.1f}" if stored < 100 else f"{stored:.0f}",) if ".per_prevalence." in place else ()
    return shown in (f"{stored:.3f}", percent, *people)


@pytest.mark.parametrize("kind", ["nine", "full"])
def test_every_number_is_that_of_metrics_json(kind: str, request: pytest.FixtureRequest) -> None:
    run: Path = request.getfixturevalue(kind)
    page, metrics = Page(run / "report.html"), json.loads((run / "metrics.json").read_text())
    assert len(page.numbers) > 300
    assert _wrong(page, metrics) == []
    assert page.bare == [], "a figure that names no place in metrics.json"
    assert all({"data-metric", "data-counted"} & found.keys() for _, found in page.tags if "data-value" in found)
    for file, text in page.quoted.items():
        assert text.strip() == humanise((run / file).read_text()).strip()
    assert page.reasons or kind == "full"


def test_every_block_of_a_full_run_is_walked(full: Path) -> None:
    places = {place for _, place, _, _ in Page(full / "report.html").numbers}
    for part in ("policy.calibrated.metrics.loss.value", "policy.operating_points.0.threshold",
                 "policy.operating_points.4.target", "policy.operating_points.0.per_prevalence.0.prevalence",
                 "policy.operating_points.0.per_prevalence.0.true_positives.ci95.1",
                 "policy.conformal.per_class.*.value",
                 "policy.conformal.per_class.*.expected.0", "policy.conformal.set_sizes.1",
                 "policy.referral.error_by_coverage.*.min_confidence", "subgroups.age.groups.0.metrics.auroc.value",
                 "subgroups.sex.gaps.0.value", "subgroups.sex.groups.1.coverage.ci95.0", "official.balanced_accuracy",
                 "official.per_category.*.auc_sens_80", "official.macro_average.dice"):  # fmt: skip
        assert f"test.{part}" in places, part


@pytest.mark.parametrize("section", FROM_METRICS)
@pytest.mark.parametrize("number", ["0.731", "73.1\N{NO-BREAK SPACE}%", ".5", "73 %"])
def test_a_planted_bare_number_is_found(full: Path, section: str, number: str) -> None:
    html = (full / "report.html").read_text()
    start = "<header>" if section == "head" else f'<section aria-labelledby="{section}">'
    assert html.count(start) == 1
    planted = Page(html.replace(start, f"{start}<p>said so: {number}</p>"))
    assert planted.bare == BARE.findall(number)


def test_a_planted_wrong_number_is_found(full: Path) -> None:
    metrics = json.loads((full / "metrics.json").read_text())
    html = (full / "report.html").read_text()
    point = metrics["splits"]["test"]["policy"]["operating_points"][0]["threshold"]
    assert _wrong(Page(html.replace(f">{point:.3f}<", ">0.001<")), metrics)
    gap = metrics["splits"]["test"]["subgroups"]["sex"]["gaps"][0]
    gap["value"] += 1e-9
    assert _wrong(Page(html), metrics) == ["test.subgroups.sex.gaps.0.value"]


def test_the_rule_that_never_looks_is_counted_where_it_is_not_stored(tmp_path: Path) -> None:
    facts = _facts(("benign", "malignant"))
    del facts["split"]["train_counts"]
    run = make_run(tmp_path, ("benign", "malignant"), split=facts["split"])
    page = Page(write_report(run))
    totals = [
        sum(row) for row in json.loads((run / "metrics.json").read_text())["splits"]["test"]["confusion_matrix"]
    ]
    counted = {"accuracy": max(totals) / sum(totals), "balanced_accuracy": 0.5}
    assert page.counted
    assert all(json.loads(value) == counted[name] for name, value in page.counted)
    assert page.bare == []


def test_the_worst_served_group_is_named_with_its_gap(full: Path) -> None:
    found = json.loads((full / "metrics.json").read_text())["splits"]["test"]["subgroups"]
    text = " ".join(Page(full / "report.html").text.replace("\N{NO-BREAK SPACE}", " ").split())
    gap = next(item for item in found["sex"]["gaps"] if item["metric"] == "sensitivity")
    item = next(group for group in found["sex"]["groups"] if group["name"] == gap["worst"])["metrics"][
        "sensitivity"
    ]
    rate, low, high = (f"{number:.1%}".replace("%", " %") for number in (item["value"], *item["ci95"]))
    less, least, most = (f"{number:.1%}".replace("%", " %") for number in (gap["value"], *gap["ci95"]))
    assert (
        f"Sensitivity is lowest for {gap['worst']}: {rate} ({low} to {high}) on {item['n']} "
        f"malignant images, {less} ({least} to {most}) below {gap['best']}"
    ) in text
    assert "Site: too few to conclude" in text, "nine images with a site"
    assert text.index("Sensitivity is lowest") < text.index("Test, by age")


def test_coverage_of_a_group_is_that_of_its_images(full: Path) -> None:
    body = json.loads((full / "metrics.json").read_text())["splits"]["test"]
    for found in body["subgroups"].values():
        covered = sum(group["coverage"]["value"] * group["n"] for group in found["groups"])
        per_class = body["policy"]["conformal"]["per_class"].values()
        assert covered == pytest.approx(sum(item["value"] * item["n"] for item in per_class))
        assert sum(group["coverage"]["n"] for group in found["groups"]) == body["n"]


def test_people_stand_beside_the_malignant_curve_and_are_no_test(full: Path, tmp_path: Path) -> None:
    text = " ".join(Page(full / "report.html").text.split())
    assert "Those had other images and another prevalence" in text
    for anchor in READER_STUDIES:
        assert anchor.source in text
        assert f"{anchor.source}, {anchor.year}." in text
    anchors = RunFolder(full).figures_table("reader_studies.csv")
    assert anchors is not None
    assert anchors["sensitivity"].astype(float).tolist() == [item.sensitivity for item in READER_STUDIES]
    run = make_run(tmp_path, ("a", "b", "c"))
    page = Page(write_report(run))
    assert "never a test" not in page.text, "no class is malignant, so there are not two sides"
    assert not (run / "figures" / "reader_studies.csv").exists()
    assert not list((run / "figures").glob("net_benefit*"))


def test_every_figure_worth_a_row_is_shown_for_both_splits(nine: Path) -> None:
    shown = {place for _, place, _, _ in Page(nine / "report.html").numbers}
    names = reporting_figures.metric_names(RunFolder(nine))
    assert {"accuracy", "balanced_accuracy", "precision_macro", "f1_macro", "sensitivity", "specificity", "loss",
            "auroc_macro", "average_precision_macro", "brier", "ece"} <= set(names)  # fmt: skip
    assert {f"{split}.{name}.value" for split in ("validation", "test") for name in names} <= shown
    assert "recall_macro" not in names, "balanced accuracy is the same figure"


def test_a_changed_number_in_metrics_json_changes_the_report(tmp_path: Path) -> None:
    run = make_run(tmp_path, ("benign", "malignant"))
    body = json.loads((run / "metrics.json").read_text())
    body["splits"]["test"]["metrics"]["accuracy"]["value"] = 0.123456
    (run / "metrics.json").write_text(json.dumps(body))
    found = [full for _, place, full, _ in Page(write_report(run)).numbers if place == "test.accuracy.value"]
    assert found
    assert set(found) == {"0.123456"}


@pytest.mark.parametrize(
    "classes", [("benign", "malignant"), ("a", "b", "melanoma"), NINE, [f"c{i}" for i in range(14)]]
)
def test_any_number_of_classes(tmp_path: Path, classes: Sequence[str]) -> None:
    text = Page(write_report(make_run(tmp_path, classes))).text
    assert all(name in text for name in classes)
    assert "Research use only. Not a medical device." in text


def test_nothing_is_loaded_from_elsewhere(nine: Path) -> None:
    page = Page(nine / "report.html")
    loads = [found[name] for _, found in page.tags for name in ("src", "href", "action", "data") if name in found]
    assert loads
    assert all(item.startswith(("#", "data:image/")) for item in loads)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object", "base", "form")]
    html = (nine / "report.html").read_text()
    assert "@import" not in html
    assert not re.search(r"url\(", html)
    assert "default-src 'none'" in html


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    run = make_run(tmp_path, ("nevus", HOSTILE, '" onload="x', "$x$ & _y"))
    facts = json.loads((run / "run.json").read_text())
    facts["dataset"]["name"] = facts["warnings"] = HOSTILE
    facts["warnings"] = [HOSTILE]
    (run / "run.json").write_text(json.dumps(facts))
    write_text(run / "NEXT_STEPS.txt", f"</pre>{HOSTILE}")
    page = Page(write_report(run))
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert not [found for _, found in page.tags if any(name.startswith("on") for name in found)]
    assert page.text.count(HOSTILE) > 3


def test_an_absent_class_gives_reasons_and_never_a_zero(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path, ("benign", "melanoma", "nevus"), absent="nevus")))
    shown = {place: text for _, place, _, text in page.numbers}
    assert shown["test.balanced_accuracy.value"].startswith("not defined: recall is undefined for: nevus")
    assert "test.recall_macro_present.value" in shown, "the mean over the classes that are there stands in"
    head = " ".join(page.text.split()).split("Details")[0]
    assert "No test image of nevus: nothing is known of it." in head
    assert "without: nevus" not in head
    assert "Recall, mean over the classes present" in head
    assert "undefined for: nevus; the mean over the classes present leaves them out" in page.text
    assert not re.search(r"\w_(macro|present)", page.text)
    assert "No test images of nevus" in page.text
    assert "not defined: no test image of this class" in page.text


@pytest.mark.parametrize(
    ("name", "row"),
    [("recall", "present"), ("average_precision", "present"), ("precision", "where it is defined")],
)
def test_reasons_name_the_row_and_not_the_key(name: str, row: str) -> None:
    told = humanise(f"{name} is undefined for: a_b; {name}_macro_present leaves them out")
    shown = name.replace("_", " ")
    assert told == f"{shown} is undefined for: a_b; the mean over the classes {row} leaves them out"


def test_a_hand_written_null_shows_its_reason(tmp_path: Path) -> None:
    body = _tiny_metrics()
    page = Page(_written(tmp_path, body))
    shown = {place: text for _, place, _, text in page.numbers}
    assert shown["test.auroc.value"] == "not defined: one side has no images"
    for said in ("log.csv is not in this folder", "recipe.json is missing", "NEXT_STEPS.txt is not in this folder",
                 "environment.json is not in this folder", "roc_test.csv is missing"):  # fmt: skip
        assert said in page.text
    assert (
        "only identical pixels were looked for; near duplicates, contradictory labels and shortcuts were not"
        in page.text
    )


def _tiny_metrics(low: float = 0.4, high: float = 0.8) -> dict[str, Any]:
    estimate = {"value": 0.6, "ci95": [low, high], "n": 10, "method": "wilson"}
    undefined = {"value": None, "ci95": None, "n": 10, "method": "none", "reason": "one side has no images"}
    body = {
        "n": 10, "n_groups": 10, "metrics": {"balanced_accuracy": estimate, "accuracy": estimate, "auroc": undefined},
        "per_class": {"a": {"n": 5, "recall": estimate}, "b": {"n": 5, "recall": undefined}},
        "confusion_matrix": [[3, 2], [2, 3]],
    }  # fmt: skip
    return {"classes": ["a", "b"], "positive": [], "splits": {"test": body}, "warnings": []}


def _written(folder: Path, metrics: dict[str, Any], **facts: Any) -> Path:
    METRICS.write(folder, metrics)
    if facts:
        RUN.write(folder, facts)
    return write_report(folder)


@pytest.mark.parametrize(
    ("low", "high", "side", "said"),
    [
        (0.51, 0.8, "above", "Better than always answering"),
        (0.5, 0.8, "unclear", "Not distinguishable from always"),
        (0.2, 0.49, "below", "Worse than always answering"),
    ],
)
def test_the_verdict_says_whether_the_dumb_rule_is_beaten(
    tmp_path: Path, low: float, high: float, side: str, said: str
) -> None:
    text = Page(_written(tmp_path, _tiny_metrics(low, high))).text
    verdict = judge_run(RunFolder(tmp_path), "test")
    assert (verdict.outcome, verdict.metric, verdict.majority_metrics["balanced_accuracy"]) == (
        side,
        "balanced_accuracy",
        0.5,
    )
    assert said in " ".join(text.split())


SAME = "interval unreliable: every resample gave the same value"
LOST = "interval unreliable: undefined in 9% of the resamples, which were dropped"
BESIDE = "interval unreliable: the bootstrap is biased and does not hold the value"


@pytest.mark.parametrize(
    ("bounds", "reason", "worth"),
    [
        ([0.6, 0.8], "", ""), ([0.6, 0.8], "mean over 1 of 2 classes, without: b", ""), ([0.6, 0.8], LOST, "doubtful"),
        ([0.6, 0.8], f"mean over 1 of 2 classes, without: b; {LOST}", "doubtful"), ([0.6, 0.8], SAME, "none"),
        ([0.6, 0.8], f"{LOST}; {SAME}", "none"), ([0.6, 0.8], BESIDE, "none"), ([1.0, 1.0], "", "none"),
        (None, "", "none"),
    ],
)  # fmt: skip
def test_an_interval_is_worth_what_its_reason_says(bounds: list[float] | None, reason: str, worth: str) -> None:
    assert reliability({"ci95": bounds, "reason": reason}) == worth


@pytest.mark.parametrize(
    ("low", "high", "reason", "side", "said"),
    [
        (1.0, 1.0, SAME, "unknown", "no interval†"),
        (1.0, 1.0, "", "unknown", "no interval"),
        (0.7, 0.8, BESIDE, "unknown", "no interval†"),
        (0.51, 0.8, LOST, "unknown", "51.0\N{NO-BREAK SPACE}% to 80.0\N{NO-BREAK SPACE}%†"),
    ],
)
def test_the_headline_does_not_lean_on_an_unreliable_interval(
    tmp_path: Path, low: float, high: float, reason: str, side: str, said: str
) -> None:
    body = _tiny_metrics(low, high)
    body["splits"]["test"]["metrics"]["accuracy"]["reason"] = reason
    head = " ".join(re.split(r"[ \n]+", Page(_written(tmp_path, body)).text)).split("Performance on")[0]
    assert judge_run(RunFolder(tmp_path), "test").outcome == side
    assert head.count(said) == 2, "balanced accuracy and accuracy"
    assert ("cannot be told: the interval of balanced accuracy is unreliable" in head) == (side == "unknown")
    assert ("100.0" in head) is False
    lead = head.split("Research use only")[1]
    assert not re.search(r"\([^()]*\(", lead), "a bracket in a bracket"


def test_what_lies_beyond_colour_may_be_traces_too(tmp_path: Path) -> None:
    body = _tiny_metrics()
    figures = body["splits"]["test"]["metrics"]
    body["splits"]["test"]["baselines"] = {"mean_colour": {"accuracy": figures["accuracy"]}}
    text = " ".join(Page(_written(tmp_path, body)).text.split())
    assert "from lesions, or from rulers, hair, borders and traces of files, which the audit looks for." in text


@pytest.mark.parametrize(
    ("malignant", "other", "groups", "said"),
    [(14, 45, 59, "14 malignant and 45 other test images: with"), (45, 29, 74, "45 malignant and 29 other"),
     (40, 40, 50, "40 malignant and 40 other test images, in 50 groups (images of one lesion or patient)"),
     (30, 30, 60, ""), (0, 20, 20, "")],
)  # fmt: skip
def test_few_images_on_a_side_are_one_note(
    tmp_path: Path, malignant: int, other: int, groups: int, said: str
) -> None:
    body = _tiny_metrics() | {"positive": ["a"]}
    part = body["splits"]["test"]
    part |= {"n": malignant + other, "n_groups": groups}
    part["per_class"]["a"]["n"], part["per_class"]["b"]["n"] = malignant, other
    _written(tmp_path, body)
    found = [
        w for w in warnings.report_warnings(RunFolder(tmp_path)) if "independent ones of either kind" in w.text
    ]
    assert [warn.level for warn in found] == ["note"] * bool(said)
    assert all(warn.text.startswith(said) for warn in found)


def test_overfitting_is_a_note_where_the_best_epoch_was_kept(tmp_path: Path) -> None:
    def told(**facts: Any) -> warnings.ReportWarning:
        _written(tmp_path, body, **facts)
        found = warnings.report_warnings(RunFolder(tmp_path))
        return next(warn for warn in found if warn.text.startswith("Overfitting"))

    body = _tiny_metrics() | {"overfitting": {"overfitting": True, "sentence": "Overfitting from epoch 4."}}
    best = {"epoch": 3, "monitor": "val_loss", "value": 1.0}
    assert told(keep="last", best=best) == warnings.ReportWarning(
        "serious", "Overfitting from epoch 4.", told().replaced_prefix
    )
    note = told(keep="best", best=best)
    assert (note.level, note.text) == ("note", "Overfitting from epoch 4. The weights kept are those of epoch 3.")
    assert told(keep="best").text.endswith("are those of the best epoch.")


def test_the_verdict_takes_the_stored_rule_where_there_is_one(nine: Path) -> None:
    verdict = judge_run(RunFolder(nine), "test")
    assert verdict.majority_class == "vascular lesion", "the commonest class of training"
    assert verdict.majority_metrics["balanced_accuracy"] == pytest.approx(1 / 9)
    assert verdict.metrics_key == "test.baselines.majority"


def test_the_verdict_falls_back_on_accuracy_and_then_says_nothing(tmp_path: Path) -> None:
    body = _tiny_metrics(0.51, 0.8)
    metrics = body["splits"]["test"]["metrics"]
    metrics["balanced_accuracy"] = metrics["auroc"]
    METRICS.write(tmp_path, body)
    assert judge_run(RunFolder(tmp_path), "test").metric == "accuracy"
    metrics["accuracy"] = metrics["auroc"]
    METRICS.write(tmp_path, body)
    assert judge_run(RunFolder(tmp_path), "test").outcome == "unknown"
    assert "cannot be told" in Page(write_report(tmp_path)).text


def test_warnings_come_first_once_and_with_their_counts(tmp_path: Path) -> None:
    leaks = {"n": 60, "total": 12, "identical_pixels": 5, "same_group": 9, "contradictions": 3,
             "per_class": {"melanoma": {"n": 7, "total": 6, "identical_pixels": 2, "same_group": 5}},
             "validation": {"n": 30, "total": 0, "identical_pixels": 0, "same_group": 0}}  # fmt: skip
    facts = _facts(NINE)
    facts["split"] |= {"scheme": "given-as-published", "leaks": leaks}
    facts["weights"]["note"] = "a stand-in for the published backbone"
    facts["warnings"] = ["Weights: a stand-in for the published backbone", "class 'nevus' is small"]
    run = make_run(tmp_path, **facts)
    found = warnings.report_warnings(RunFolder(run))
    texts = [warn.text for warn in found]
    serious = [warn.text for warn in found if warn.level == "serious"]
    assert found[: len(serious)] == [warn for warn in found if warn.level == "serious"]
    assert "12 of 60 test images" in serious[0]
    assert "given-as-published" in serious[0]
    assert any(text.startswith("3 images carry another label") for text in serious)
    assert any(text.startswith("Overfitting from epoch 4") for text in serious)
    for once in ("leaks", "stand-in", "actinic keratosis.", "no audit was run", "'nevus' is small"):
        assert sum(once in text for text in texts) == 1, once
    page = " ".join(Page(write_report(run)).text.split())
    assert "12 of 60 test images; contradictory exact copies: 3" in page


def test_what_the_import_found_is_told(tmp_path: Path) -> None:
    facts = _facts(NINE)
    facts["dataset"]["notes"] = {
        "malignancy_source": "a table of diagnoses; set by hand: nevus", "licence": "CC-BY-NC-4.0",
        "refused": {"n": 3, "reasons": {"not_an_image": 2, "truncated": 1}},
        "warnings": [{"code": "copies", "text": "Images with identical pixels.", "n": 18}],
        "defects": ["Two classes come from two archives."],
    }  # fmt: skip
    text = " ".join(Page(write_report(make_run(tmp_path, **facts))).text.split())
    for said in ("comes from a table of diagnoses; set by hand: nevus", "3 images: not an image 2, truncated 1",
                 "Images with identical pixels. (18)", "Known defect: Two classes"):  # fmt: skip
        assert said in text


def test_a_clean_split_raises_no_leak_warning(nine: Path) -> None:
    assert not [warn for warn in warnings.report_warnings(RunFolder(nine)) if "leak" in warn.text]


@pytest.mark.parametrize("contradictions", [0, 3])
def test_no_leak_is_only_what_the_manifest_can_show(tmp_path: Path, contradictions: int) -> None:
    leaks = {"n": 10, "total": 0, "contradictions": contradictions}
    warned = ["No lesion or patient ids: intervals may be too narrow."]
    blind = _written(tmp_path, _tiny_metrics(), split={"leaks": leaks}, warnings=warned)
    assert "Leaks of this split: 0 that the manifest can show (no lesion ids)" in Page(blind).text
    seeing = _written(tmp_path, _tiny_metrics(), split={"leaks": leaks}, warnings=[])
    assert "Leaks of this split: 0 of 10 test images" in Page(seeing).text
    noted = {"notes": {"warnings": [{"code": "no_ids", "text": warned[0], "n": 10}]}}
    told_by_import = _written(tmp_path, _tiny_metrics(), split={"leaks": leaks}, dataset=noted)
    assert "Leaks of this split: 0 that the manifest can show" in Page(told_by_import).text
    leaking = _written(tmp_path, _tiny_metrics(), split={"leaks": leaks | {"total": 2}}, warnings=warned)
    assert "Leaks of this split: 2 of 10 test images" in Page(leaking).text


def test_training_that_was_not_stable_is_told_first(tmp_path: Path) -> None:
    _written(tmp_path, _tiny_metrics(), warnings=["Weights are random.", f"{UNSTABLE_TRAINING}: twice."])
    first, *others = warnings.report_warnings(RunFolder(tmp_path))
    assert (first.level, first.text) == ("serious", f"{UNSTABLE_TRAINING}: twice.")
    assert "Weights are random." in [warn.text for warn in others if warn.level == "note"]


def test_a_known_defect_of_the_test_images_is_serious(tmp_path: Path) -> None:
    defects = ["18 of the 118 test images have a copy in Train.", "The latest images are dark."]
    _written(tmp_path, _tiny_metrics(), dataset={"notes": {"defects": defects}})
    found = {warn.text: warn.level for warn in warnings.report_warnings(RunFolder(tmp_path))}
    assert found[f"Known defect: {defects[0]}"] == "serious"
    assert found[f"Known defect: {defects[1]}"] == "data"
    folded = (
        (tmp_path / "report.html").read_text().split("more about the data set itself")[1].split("</details>")[0]
    )
    assert defects[1] in folded
    assert defects[0] not in folded


def test_methods_numbers_and_file_names_are_told_in_words(nine: Path, tmp_path: Path) -> None:
    page = Page(_written(tmp_path, _tiny_metrics()))
    assert "Wilson score interval" in page.text
    assert "wilson" not in page.text
    assert "precision is of the images that got its label, F1 of those that have or got it" in " ".join(
        page.text.split()
    )
    wrong = RunFolder(nine).figures_table("mistakes_test.csv")
    assert wrong is not None
    titles = [
        found["title"] for tag, found in Page(nine / "report.html").tags if tag == "span" and "title" in found
    ]
    assert titles == wrong["path"].head(24).tolist()
    assert f">{wrong['path'][0].split('/')[-1]}</span>" in (nine / "report.html").read_text()


def test_excluded_images_are_counted_by_reason(nine: Path) -> None:
    assert reporting_facts.exclusion_counts(RunFolder(nine)) == [
        ("same pixels as test image", 7),
        ("not drawn", 1),
    ]


def test_confusions_are_named_in_words(nine: Path) -> None:
    rows = reporting_facts.top_confusions(RunFolder(nine), "test")
    matrix = json.loads((nine / "metrics.json").read_text())["splits"]["test"]["confusion_matrix"]
    assert rows
    for row in rows:
        assert matrix[NINE.index(row["label"])][NINE.index(row["predicted"])] == row["n"]
        assert sum(matrix[NINE.index(row["label"])]) == row["total"]
        assert row["missed"] == (row["label"] in MALIGNANT and row["predicted"] not in MALIGNANT)
    text = " ".join(Page(nine / "report.html").text.split())
    assert f"{rows[0]['label']} taken for {rows[0]['predicted']}" in text


def _save_photographs(run: Path, root: Path) -> list[Path]:
    exif = Image.Exif()
    exif[0x010E] = "SECRET-PATIENT-NAME"
    rng = np.random.default_rng(0)
    paths = [root / f"test/{i:03}.jpg" for i in range(90)]
    (root / "test").mkdir(parents=True)
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)).save(
            path, exif=exif, comment=b"SECRET"
        )
    return paths


def _thumbnails(page: Page) -> list[bytes]:
    uris = [
        found["src"] for tag, found in page.tags if tag == "img" and found["src"].startswith("data:image/jpeg")
    ]
    return [base64.b64decode(uri.split(",")[1]) for uri in uris]


def test_thumbnails_are_made_from_pixels_and_the_file_stays_small(tmp_path: Path) -> None:
    run, root = make_run(tmp_path / "run"), tmp_path / "images"
    paths = _save_photographs(run, root)
    assert b"SECRET" in paths[0].read_bytes()
    path = write_report(run, images_root=root)
    thumbnails = _thumbnails(Page(path))
    assert len(thumbnails) == 24
    assert path.stat().st_size < report.MAX_REPORT_BYTES
    for data in thumbnails:
        assert b"SECRET" not in data
        with Image.open(io.BytesIO(data)) as image:
            assert not image.getexif()
            assert max(image.size) == mistakes.THUMBNAIL_EDGE
    assert str(tmp_path) not in path.read_text()


def test_a_missing_broken_or_outside_image_is_a_placeholder(tmp_path: Path) -> None:
    run, root = make_run(tmp_path / "run"), tmp_path / "images"
    _save_photographs(run, root)
    wrong = RunFolder(run).figures_table("mistakes_test.csv")
    assert wrong is not None
    (root / wrong["path"][0]).unlink()
    (root / wrong["path"][1]).write_bytes(b"not an image")
    Image.new("RGB", (30, 30)).save(tmp_path / "outside.jpg")
    wrong.loc[2, "path"] = "../outside.jpg"
    wrong.to_csv(run / "figures" / "mistakes_test.csv", index=False)
    page = Page(write_report(run, images_root=root))
    assert page.text.count("image not at hand") == 3
    assert len(_thumbnails(page)) == 21


def test_images_may_come_from_a_function(nine: Path) -> None:
    def find(image_id: str) -> NDArray[np.uint8] | None:
        return np.full((40, 50, 3), 90, np.uint8) if image_id.endswith(("1", "2")) else None

    page = Page(write_report(nine, pixel_finder=find))
    assert 0 < len(_thumbnails(page)) < 24
    assert "image not at hand" in page.text


def test_thumbnails_are_given_up_before_the_size(nine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (mistakes.THUMBNAIL_EDGE, mistakes.THUMBNAIL_EDGE, 3), dtype=np.uint8)
    full = write_report(nine, pixel_finder=lambda _: noise).stat().st_size
    monkeypatch.setattr(report, "MAX_REPORT_BYTES", full - 1)
    smaller = write_report(nine, pixel_finder=lambda _: noise)
    assert len(_thumbnails(Page(smaller))) == 8
    assert smaller.stat().st_size < full
    write_report(nine)


def test_every_picture_has_words_and_every_table_a_caption(nine: Path) -> None:
    page = Page(nine / "report.html")
    assert all(found["alt"] for tag, found in page.tags if tag == "img")
    count = {name: sum(tag == name for tag, _ in page.tags) for name in ("table", "caption", "h1")}
    assert count["table"] == count["caption"] > 5
    assert count["h1"] == 1
    for stem in ("confusion_test", "roc_test", "calibration_test", "intervals"):
        assert (nine / "figures" / f"{stem}.png").exists()
        assert (nine / "figures" / f"{stem}.csv").exists()


def test_a_long_log_is_thinned_and_says_so(nine: Path) -> None:
    log = RunFolder(nine).log
    assert log is not None
    rows = reporting_facts.log_rows(log.loc[np.arange(1001) % len(log)])
    assert rows["step"] == 3
    assert len(rows["rows"]) == 334


def test_the_recipe_is_told_in_words() -> None:
    rows = dict(recipe_rows(RECIPE))
    assert rows["Images"] == "128 x 128 px (squash, bilinear), pixels in 0 to 1"
    assert rows["Phase 1"].startswith("up to 6 epochs; backbone frozen, 2 augmented views per image")
    assert rows["Augmentation"] == "horizontal flip; rotate 20.0; shift 0.1; fill reflect"
    two = replace(RECIPE, phases=(RECIPE.phases[0], replace(RECIPE.phases[0], train_backbone=2, backbone_lr=1e-5)))
    assert "last 2 layer groups" in dict(recipe_rows(two))["Phase 2"]


def test_a_test_on_other_data_shows_the_mapping_and_what_was_left_out(tmp_path: Path) -> None:
    body = _tiny_metrics() | {
        "mapping": {"rule": "diagnosis", "data": {"NV": "a", "DF": None}, "model": {"nevus": "a", "other": "b"}},
        "unmapped": {"DF": 115}, "warnings": ["115 images have no target class: DF 115"],
    }  # fmt: skip
    text = " ".join(Page(_written(tmp_path, body)).text.split())
    assert "not scored (115 images)" in text
    assert "data set that it was not made from" in text
    first = warnings.report_warnings(RunFolder(tmp_path))[0]
    assert (first.level, first.text) == ("serious", "115 images have no target class: DF 115")


@pytest.mark.parametrize("broken", ["", "{}", '{"format": 1, "splits": {}}', '{"format": 99, "splits": {}}'])
def test_a_folder_without_sound_metrics_is_refused(tmp_path: Path, broken: str) -> None:
    if broken:
        (tmp_path / "metrics.json").write_text(broken)
    with pytest.raises(DataError, match=r"metrics\.json"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


# --- repeats ---


def _summary() -> dict[str, Any]:
    values = {"validation": (0.71, 0.74, 0.69), "test": (0.66, 0.70, None)}
    runs = [
        {"seed": seed, "fold": None, "folder": f"abc-s{seed}",
         **{split: {"accuracy": found[seed], "loss": 0.5 + seed} for split, found in values.items()}}
        for seed in range(3)
    ]  # fmt: skip
    spread = {"mean": 0.68, "std": 0.0283, "min": 0.66, "max": 0.7, "n_runs": 2}
    loss = {"mean": 1.5, "std": 1.0, "min": 0.5, "max": 2.5, "n_runs": 3}
    return {
        "recipe": "s3-repeated", "dataset": HOSTILE, "runs": runs,
        "final": {"seed": 1, "fold": None, "folder": "abc-s1", "chosen_by": "val_accuracy on validation (0.74)"},
        "metrics": {"validation": {"accuracy": spread | {"n_runs": 3}, "loss": loss},
                    "test": {"accuracy": spread, "loss": loss}},
    }  # fmt: skip


def test_the_summary_lists_every_seed_and_why_one_became_final(tmp_path: Path) -> None:
    SUMMARY.write(tmp_path, _summary())
    page = Page(write_summary_report(tmp_path))
    text = " ".join(page.text.split())
    assert all(f"seed {seed}" in text for seed in range(3))
    assert "the run with seed 1, chosen by val_accuracy on validation (0.74)" in text
    shown = {(place, full) for _, place, full, _ in page.numbers}
    assert {("test.accuracy", "0.66"), ("test.accuracy.mean", "0.68"), ("test.accuracy.std", "0.0283")} <= shown
    assert "not defined" in text, "the third run has no test accuracy"
    assert not [tag for tag, _ in page.tags if tag == "script"]
    links = [found["href"] for tag, found in page.tags if tag == "a"]
    assert "./abc-s1/report.html" in links
    assert (tmp_path / "spread_test.csv").read_text().count("accuracy") == 2


def test_the_summary_judges_the_final_run_and_repeats_its_serious_warnings_once(tmp_path: Path) -> None:
    summary = _summary()
    for run in summary["runs"]:
        body = _tiny_metrics(0.51, 0.8)
        body["splits"]["test"]["n"] = 40 + run["seed"]
        defects = ["It leaks into the test folder."]
        METRICS.write(tmp_path / run["folder"], body)
        RUN.write(tmp_path / run["folder"], {"dataset": {"notes": {"defects": defects}}})
    SUMMARY.write(tmp_path, summary)
    page = Page(write_summary_report(tmp_path))
    text = " ".join(page.text.split())
    assert "The final model on test: Better than always answering" in text
    assert text.count("It leaks into the test folder.") == 1
    assert "n = 40 to 42 images each" in text
    calls = [found["class"] for tag, found in page.tags if found.get("class", "").startswith("call")]
    assert calls == ["call", "call above"], "choosing is not a success; beating the rule is"
    assert "seed 0, fold" not in text


def test_folds_of_one_seed_are_headed_by_the_fold(tmp_path: Path) -> None:
    summary = _summary()
    for fold, run in enumerate(summary["runs"]):
        run |= {"seed": 7, "fold": fold}
    SUMMARY.write(tmp_path, summary)
    html = write_summary_report(tmp_path).read_text()
    assert ">fold 0</a>" in html
    summary["runs"][0]["seed"] = 8
    SUMMARY.write(tmp_path, summary)
    assert ">seed 8, fold 0</a>" in write_summary_report(tmp_path).read_text()


def test_a_summary_reads_no_run_outside_its_folder(tmp_path: Path) -> None:
    METRICS.write(tmp_path / "other", _tiny_metrics())
    summary = _summary()
    summary["final"]["folder"] = summary["runs"][1]["folder"] = "../other"
    SUMMARY.write(tmp_path / "parent", summary)
    text = Page(write_summary_report(tmp_path / "parent")).text
    assert "always answering" not in text
    assert "images each" not in text


def test_a_summary_link_cannot_leave_the_folder_by_a_scheme(tmp_path: Path) -> None:
    body = _summary()
    body["runs"][0]["folder"] = "javascript:alert(1)"
    SUMMARY.write(tmp_path, body)
    links = [found["href"] for tag, found in Page(write_summary_report(tmp_path)).tags if tag == "a"]
    assert all(link.startswith("./") and ":" not in link for link in links)


def test_a_parent_without_summary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"summary\.json"):
        write_summary_report(tmp_path)


@pytest.mark.parametrize("units", [1, 14])
def test_operating_points_of_few_lesions_are_marked(tmp_path: Path, units: int) -> None:
    run = make_run(tmp_path, ("melanoma", "nevus"), n=180)
    table = RunFolder(run).table("predictions.csv")
    assert table is not None
    malignant = (table["label"] == "melanoma") & (table["split"] == "test")
    groups = np.where(malignant, malignant.cumsum() % units, 1000 + np.arange(len(table)))
    write_rows(run / "groups.csv", ("image_id", "group"), zip(table["image_id"], groups.tolist(), strict=True))
    evaluate_run(run)
    page = Page(write_report(run))
    marked = {place: text for _, place, text in page.reasons}
    at = "test.policy.operating_points.0"
    if units == 1:
        assert marked[f"{at}.sensitivity.reason"] == "no interval: one group only"
        assert page.text.count("no interval") > 5
        assert not [place for _, place, *_ in page.numbers if place.startswith(f"{at}.per_prevalence.0.ppv.ci95")]
    else:
        assert marked[f"{at}.sensitivity.reason"] == "unreliable: 14 independent images, 30 needed"
        told = json.loads((run / "metrics.json").read_text())["splits"]["test"]["policy"]["operating_points"]
        assert (
            told[0]["per_prevalence"][0]["true_positives"]["reason"] == "interval unreliable: 14 units, 30 needed"
        )
        cells = sum(".per_prevalence." in place for _, place, _ in page.reasons)
        tables = len({point["threshold"] for point in told})
        assert tables == 2 and cells == tables * 3 * 5, "all but false alarms, of three prevalences"
    assert page.bare == []


def test_wishes_that_share_a_threshold_share_their_figures(tmp_path: Path) -> None:
    run = make_run(tmp_path, ("melanoma", "nevus"), n=180)
    body = json.loads((run / "metrics.json").read_text())
    points = body["splits"]["test"]["policy"]["operating_points"]
    table = 'scope="col">malignant among those looked at'
    for number, point in enumerate(points):
        point["threshold"] = 0.1 + 0.1 * number
    write_json(run / "metrics.json", body, format=3)
    apart = write_report(run).read_text().count(table)
    assert apart == len(points) == 3
    points[1] = {**points[0], "name": "sensitivity 0.9", "target": 0.9}
    write_json(run / "metrics.json", body, format=3)
    page = Page(write_report(run))
    assert (run / "report.html").read_text().count(table) == apart - 1
    assert "The same threshold as for sensitivity of 95\N{NO-BREAK SPACE}%, with the same figures." in page.text
    assert "test.policy.operating_points.1.threshold" in {place for _, place, *_ in page.numbers}
    assert page.bare == [] and _wrong(page, body) == []


# --- the page as a whole ---


class Unfolded(HTMLParser):
    """The words that stand outside closed parts, headings in their order, links inside the page, ids, table headers."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.words: list[str] = []
        self.headings: list[int] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag not in ("img", "br", "meta"):
            self._open.append(tag)
        if re.fullmatch(r"h\d", tag):
            self.headings.append(int(tag[1]))
        if tag == "a" and str(found.get("href")).startswith("#"):
            self.links.append(str(found["href"])[1:])
        if found.get("id"):
            self.ids.add(str(found["id"]))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        n_details = self._open.count("details")
        is_folded = n_details > ("summary" in self._open)
        if not is_folded and not {"style", "title"} & set(self._open):
            self.words += data.split()


@pytest.mark.parametrize("kind", ["nine", "full"])
def test_what_is_not_folded_away_is_short_and_every_link_leads_somewhere(
    kind: str, request: pytest.FixtureRequest
) -> None:
    page = Unfolded(request.getfixturevalue(kind) / "report.html")
    assert 200 < len(page.words) < 1500
    assert set(page.links) <= page.ids
    assert page.headings[0] == 1 and all(after - before <= 1 for before, after in pairwise(page.headings))


def test_the_first_screen_answers_before_anything_else(full: Path) -> None:
    html = (full / "report.html").read_text()
    head = html.split("</header>")[0]
    verdict = json.loads((full / "verdict.json").read_text())
    assert verdict["verdict"].capitalize() in head
    for doubt in verdict["doubts"][:1]:
        assert f'data-doubt="{doubt["code"]}"' in head
    assert head.count("<img") == 2, "confusion matrix and ROC curve"
    assert "Do next" in head
    text = " ".join(Page(full / "report.html").text.split())
    assert "unreliable" not in text.split("Details")[0]


def test_a_picture_marks_an_interval_as_the_page_does_and_names_its_probabilities(tmp_path: Path) -> None:
    body = _tiny_metrics()
    auroc = {"value": 0.9, "ci95": [0.5, 1.0], "n": 6, "method": "x", "reason": "interval unreliable: 3 units"}
    body["splits"]["test"]["metrics"]["auroc"] = auroc
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "roc_band_test.csv").write_text("fpr,tpr,low,high\n0,0,0,0\n1,1,1,1\n")
    for number, words in ((1, "calibrated"), (0, "raw probabilities")):
        (tmp_path / "figures" / "calibration_malignant_test.csv").write_text(
            f"n,stated,observed,low,high,calibrated\n6,0.5,0.5,0.1,0.9,{number}\n"
        )
        page = _written(tmp_path, body).read_text()
        svg = (tmp_path / "figures" / "calibration_malignant_test.svg").read_text()
        assert f"Calibration ({words})" in svg
    assert "AUROC 0.90 (0.50 to 1.00†)" in page
    auroc["ci95"] = [0.9, 0.9]
    assert "AUROC 0.90;" in _written(tmp_path, body).read_text()


def test_small_pictures_have_their_tables_and_bands(full: Path) -> None:
    for name in ("roc_band", "precision_recall", "calibration_malignant", "decision_curve"):
        table = RunFolder(full).figures_table(f"{name}_test.csv")
        assert table is not None and (full / "figures" / f"{name}_test.svg").is_file()
        low, high = (table[column].astype(float) for column in ("low", "high"))
        middle = table[{"roc_band": "tpr", "precision_recall": "precision", "calibration_malignant": "observed",
                        "decision_curve": "net_benefit"}[name]].astype(float)  # fmt: skip
        assert ((low <= middle) & (middle <= high)).all() and (low < high).mean() > 0.5
    decision = RunFolder(full).figures_table("decision_curve_test.csv")
    assert decision is not None
    assert (decision["threshold"].astype(float).min(), decision["threshold"].astype(float).max()) == (0.01, 0.5)


def test_the_table_for_a_paper_holds_the_figures_of_metrics_json(full: Path) -> None:
    table = RunFolder(full).figures_table("paper_table.csv")
    assert table is not None
    metrics = json.loads((full / "metrics.json").read_text())["splits"]
    for row in table.to_dict("records"):
        estimate = metrics[row["split"]]["metrics"][row["metric"]]
        assert float(row["value"]) == estimate["value"] and int(row["n"]) == estimate["n"]
    assert table["split"].iloc[0] == "test"
    tex = (full / "figures" / "paper_table.tex").read_text()
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == 1
    assert latex_text("50_% & #1") == r"50\_\% \& \#1"
