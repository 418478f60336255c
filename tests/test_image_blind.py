"""Image-blind rules find what is planted and see no test image; a net that is no better than one is told so."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression

from dermkit.data.cache.pixels import pixel_cache
from dermkit.data.importers.run import import_dataset
from dermkit.data.manifest import Dataset, LesionClass
from dermkit.data.synthetic.dataset import PlantedFaults, make_dataset_folder
from dermkit.errors import DataError
from dermkit.evaluation import blind_features, repeated_rules
from dermkit.evaluation.blind_features import file_columns, pixel_columns
from dermkit.evaluation.blind_rules import BlindRules, FittedRule, predict_by_rules, rule_folds
from dermkit.evaluation.evaluate import EvaluationInput, evaluate_predictions, evaluate_run
from dermkit.files import write_rows
from dermkit.images.preprocess import Preprocessing
from dermkit.metrics.classification.paired import differences_from_others, paired_differences
from dermkit.metrics.classification.roc import auroc
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.stats.arrays import Floats
from dermkit.reporting.report import write_report
from dermkit.reporting.terminal import result_lines
from dermkit.runs.image_blind import RULE_TITLES
from dermkit.runs.layout import IMAGE_BLIND, IMAGE_BLIND_FILE, METRICS, RUN
from dermkit.runs.predictions import prediction_columns, read_rule_predictions, write_rule_predictions
from dermkit.runs.verdict import judge_metrics

SIZE = Preprocessing(
    size=32, resize="squash", interpolation="bilinear", divide_by=255.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
)


def make_images(folder: Path, faults: PlantedFaults | None = None) -> Dataset:
    """Return 2 classes of 70 lesions, a photograph each."""
    lesions = {"melanoma": 70, "nevus": 70}
    make_dataset_folder(
        folder / "images",
        lesions_per_class=lesions,
        photos_per_lesion=(1, 1),
        size=48,
        seed=3,
        planted_faults=faults,
    )
    table = folder / "images" / "metadata.csv"
    dataset = import_dataset("folder", folder / "images", out=folder / "data", metadata_tables=[table]).dataset
    sources = pd.read_csv(table, dtype=str).set_index("image")["source"]
    return replaced(dataset, dataset.manifest.assign(source=dataset.manifest["path"].map(sources)))


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_images(tmp_path_factory.mktemp("clean"))


@pytest.fixture(scope="module")
def other_archive(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_images(tmp_path_factory.mktemp("archive"), PlantedFaults(source=("melanoma", 0.95)))


def halves(dataset: Dataset) -> tuple[list[str], list[str]]:
    """Return training and test images; patients are not divided."""
    patients = dataset.manifest["patient_id"]
    is_test = patients.isin(sorted(set(patients))[::2])
    return dataset.manifest.loc[~is_test, "image_id"].tolist(), dataset.manifest.loc[is_test, "image_id"].tolist()


def rules_of(dataset: Dataset, cache: Path | None = None) -> tuple[BlindRules, NDArray[np.bool_]]:
    """Return the rules and whether each test image is a melanoma."""
    train, test = halves(dataset)
    folder = cache or dataset.work_folder / "cache"
    pixels = pixel_cache(dataset, dataset.manifest["image_id"].tolist(), SIZE, folder=folder)
    rules = predict_by_rules(dataset, pixels, train_ids=train, score_ids=test, class_names=dataset.class_names)
    labels = dataset.manifest.set_index("image_id")["label"].loc[test]
    return rules, (labels == "melanoma").to_numpy()


@pytest.fixture(scope="module")
def clean_rules(clean: Dataset) -> tuple[BlindRules, NDArray[np.bool_]]:
    return rules_of(clean)


def aurocs(rules: BlindRules, is_melanoma: Any, dataset: Dataset) -> dict[str, float]:
    column = dataset.class_names.index("melanoma")
    return {name: auroc(p[:, column], is_melanoma) for name, p in rules.probabilities.items()}


def test_another_archive_is_found_by_its_files_border_and_name_and_by_nothing_else(other_archive: Dataset) -> None:
    reached = aurocs(*rules_of(other_archive), other_archive)
    assert min(reached[name] for name in ("source", "file", "border")) > 0.9
    assert reached["majority"] == 0.5
    assert abs(reached["metadata"] - 0.5) < 0.17


def test_metadata_is_found_where_it_tells_the_class(
    clean: Dataset, clean_rules: tuple[BlindRules, NDArray[np.bool_]]
) -> None:
    is_melanoma = clean.manifest["label"] == "melanoma"
    planted = clean.manifest.assign(age=np.where(is_melanoma, "70", np.where(clean.manifest.index % 7, "40", "")))
    reached = aurocs(*rules_of(replaced(clean, planted)), clean)
    assert reached["metadata"] > 0.95
    rules, truth = clean_rules
    assert abs(aurocs(rules, truth, clean)["metadata"] - 0.5) < 0.17
    assert rules.not_applicable["source"] == "the training images are of one source"


def replaced(dataset: Dataset, manifest: pd.DataFrame) -> Dataset:
    return replace(dataset, manifest=manifest)


def test_jpeg_tables_are_found_without_any_name(tmp_path: Path, clean: Dataset) -> None:
    """The same pixels in size, coded with other tables for one class: the file tells it, the border does not."""
    folder = tmp_path / "images"
    for number, row in enumerate(clean.manifest.itertuples()):
        path = folder / str(row.label) / Path(str(row.path)).name
        path.parent.mkdir(parents=True, exist_ok=True)
        grey = np.random.default_rng(number).integers(90, 170, (64, 64, 3)).astype(np.uint8)
        quality = (
            {"quality": 90, "subsampling": 0} if row.label == "melanoma" else {"quality": 91, "subsampling": 2}
        )
        Image.fromarray(grey).save(path, "JPEG", **quality)
    dataset = import_dataset("folder", folder, out=tmp_path / "data").dataset
    tables = file_columns(dataset, dataset.manifest["image_id"].tolist())["jpeg_tables"]
    assert tables.nunique() == 2
    train, test = dataset.manifest["image_id"].tolist()[::2], dataset.manifest["image_id"].tolist()[1::2]
    pixels = pixel_cache(dataset, [*train, *test], SIZE, folder=tmp_path / "cache")
    rules = predict_by_rules(dataset, pixels, train_ids=train, score_ids=test, class_names=dataset.class_names)
    truth = dataset.manifest.set_index("image_id")["label"].loc[test] == "melanoma"
    reached = aurocs(rules, truth.to_numpy(), dataset)
    assert reached["file"] > 0.99 and "metadata" in rules.not_applicable
    assert rules.not_applicable["metadata"] == "age, sex and site of the training images are not known"


def test_no_label_or_column_of_a_test_image_is_used(
    clean: Dataset, clean_rules: tuple[BlindRules, NDArray[np.bool_]]
) -> None:
    train, _ = halves(clean)
    is_test = ~clean.manifest["image_id"].isin(train)
    rules, _ = clean_rules
    flipped = clean.manifest["label"].map({"melanoma": "nevus", "nevus": "melanoma"})
    last = clean.manifest.index[is_test][-1]
    sites = clean.manifest["site"].where(clean.manifest.index != last, "a site of its own")
    changed = clean.manifest.assign(label=clean.manifest["label"].where(~is_test, flipped), site=sites)
    other, _ = rules_of(replaced(clean, changed))
    for name, p in rules.probabilities.items():
        others = len(p) - 1 if name == "metadata" else len(p)  # the site of the last image is its own
        np.testing.assert_array_equal(p[:others], other.probabilities[name][:others], err_msg=name)


def test_a_group_is_never_in_two_folds_of_a_rule() -> None:
    groups = np.repeat(np.arange(60), 3)
    fold = rule_folds(np.random.default_rng(0).integers(0, 3, 180), groups)
    assert all(len(set(fold[groups == group])) == 1 for group in range(60)) and set(fold) == set(range(5))


def test_a_linear_rule_is_that_of_scikit_learn() -> None:
    """By hand: standardised numbers with marks of unknown ones, indicators of texts, classes weighed alike."""
    rng = np.random.default_rng(5)
    labels = (rng.random(300) < 0.25).astype(np.int64)
    age = np.where(rng.random(300) < 0.1, np.nan, rng.normal(50 + 8 * labels, 10))
    sex = np.where(rng.random(300) < 0.5 + 0.2 * labels, "male", "female")
    frame = pd.DataFrame({"age": age, "sex": sex})
    rule = FittedRule.fit(frame.iloc[:200], labels[:200], np.arange(200))
    assert rule.classifier == "logistic regression"
    known = np.where(np.isnan(age), np.nanmedian(age[:200]), age)
    numbers = np.stack([known, np.isnan(age)], axis=1)
    numbers = (numbers - numbers[:200].mean(axis=0)) / numbers[:200].std(axis=0)
    features = np.column_stack([numbers, sex == "female", sex == "male"])
    weights = np.where(labels[:200] == 1, 100 / labels[:200].sum(), 100 / (1 - labels[:200]).sum())
    reference = LogisticRegression(max_iter=5000, tol=1e-8).fit(
        features[:200], labels[:200], sample_weight=weights
    )
    np.testing.assert_allclose(
        rule.predict(frame.iloc[200:], 3)[:, :2], reference.predict_proba(features[200:]), atol=2e-3
    )
    assert (rule.predict(frame.iloc[200:], 3)[:, 2] == 0).all()


def test_too_few_images_and_one_class_have_no_rule(clean: Dataset) -> None:
    pixels = pixel_cache(clean, clean.manifest["image_id"].tolist(), SIZE, folder=clean.work_folder / "cache")
    ids = clean.manifest["image_id"].tolist()
    few = predict_by_rules(clean, pixels, train_ids=ids[:12], score_ids=ids[20:25], class_names=clean.class_names)
    assert set(few.probabilities) == {"majority", "mean_colour"}
    assert set(few.not_applicable) == set(RULE_TITLES) - {"majority", "mean_colour"}
    assert few.not_applicable["border"].startswith("12 training images in ")
    one = clean.manifest.loc[clean.manifest["label"] == "nevus", "image_id"].tolist()
    alone = predict_by_rules(clean, pixels, train_ids=one, score_ids=ids[:5], class_names=clean.class_names)
    assert set(alone.not_applicable.values()) == {"the training images are of one class"}


def test_what_the_pixels_and_files_tell(clean: Dataset, tmp_path: Path) -> None:
    images = np.zeros((3, 40, 40, 3), np.uint8)
    images[1, 2:-2, 2:-2] = 255  # all but the border
    images[2, :2] = (200, 0, 0)
    seen = pixel_columns(images, np.arange(3))
    assert seen.border[1].max() == 0 and seen.border[2, 6:9].tolist() == [200, 0, 0]
    np.testing.assert_allclose((seen.histogram**2).sum(axis=1), 1.0)
    np.testing.assert_allclose((seen.histogram[1] ** 2)[[0, 63]], [1 - 36**2 / 1600, 36**2 / 1600])
    ids = clean.manifest["image_id"].tolist()[:5]
    table = file_columns(clean, ids)
    sizes = [(clean.image_root / path).stat().st_size for path in clean.manifest["path"][:5]]
    np.testing.assert_allclose(np.exp(table["bytes"]), sizes)
    assert (table["jpeg_tables"] != "").all() and (table["jpeg_quality"] == 92).all()


def test_files_are_opened_once(clean: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = clean.manifest["image_id"].tolist()
    first = file_columns(clean, ids)
    monkeypatch.setattr(blind_features, "_measure_file", lambda path: pytest.fail(f"opened {path} again"))
    pd.testing.assert_frame_equal(first, file_columns(clean, ids))


# Figures ----------------------------------------------------------------------------------------------------------

TWO = (LesionClass("nevus", "", "benign"), LesionClass("melanoma", "", "malignant"))
NAMES = [entry.name for entry in TWO]


def table_of(skill: float, *, n: int = 400, seed: int = 0, split: str = "test") -> pd.DataFrame:
    """Return predictions whose scores differ between the classes by so many standard deviations."""
    rng = np.random.default_rng(seed)
    true = np.arange(n) % 2
    p = 1 / (1 + np.exp(-rng.normal(skill * (true - 0.5), 1.0)))
    rows = [
        [f"{split}-{i}", f"{i}.jpg", NAMES[true[i]], split, "", "", NAMES[int(p[i] > 0.5)], 1 - p[i], p[i]]
        for i in range(n)
    ]
    return pd.DataFrame(rows, columns=prediction_columns(NAMES))


def evaluated(net: pd.DataFrame, rules: Mapping[str, pd.DataFrame], **more: Any) -> dict[str, Any]:
    groups = {name: number // 2 for number, name in enumerate(net["image_id"])}
    return evaluate_predictions(
        EvaluationInput(
            net,
            classes=TWO,
            groups=groups,
            train_counts={"nevus": 50, "melanoma": 50},
            rule_predictions=rules,
            **more,
        )
    )


def test_a_net_no_better_than_a_rule_gets_the_headline_and_a_better_one_does_not() -> None:
    rules = {"metadata": table_of(0.1, seed=1), "file": table_of(1.6, seed=2)}
    verdict = judge_metrics(evaluated(table_of(1.2, seed=3), rules), "test")
    text = "".join(map(str, verdict.rule_headline))
    assert text.startswith(
        "Not shown to be better than a rule that never looks at the lesion: on these test images a rule that sees only "
        "file size"
    )
    assert verdict.outcome == "unclear"
    assert (
        "its AUROC is not shown to be above that of a rule that sees only file size, pixel dimensions"
        in verdict.text
    )
    better = judge_metrics(evaluated(table_of(4.0, seed=3), rules), "test")
    assert better.rule_headline == () and better.outcome == "above"


def test_clean_rules_do_not_beat_chance_and_cause_no_headline(
    clean: Dataset, clean_rules: tuple[BlindRules, NDArray[np.bool_]]
) -> None:
    """Of rules fitted on images without a shortcut, those that see no lesion stay at chance within their interval."""
    _, test = halves(clean)
    rules, truth = clean_rules
    names = clean.class_names
    labels = np.where(truth, "melanoma", "nevus")
    rng = np.random.default_rng(0)

    def frame(p: Floats) -> pd.DataFrame:
        rows = [
            [name, "x.jpg", label, "test", "", "", names[int(row.argmax())], *row]
            for name, label, row in zip(test, labels, p, strict=True)
        ]
        return pd.DataFrame(rows, columns=prediction_columns(names))

    right = np.where(rng.random(len(test)) < 0.97, truth, ~truth)
    p = np.where(right, 0.9, 0.1) + rng.uniform(-0.05, 0.05, len(test))
    net = frame(np.stack([p if name == "melanoma" else 1 - p for name in names], axis=1))
    blind = {name: frame(p) for name, p in rules.probabilities.items() if name in ("metadata", "file", "majority")}
    classes = [LesionClass(name, "", "malignant" if name == "melanoma" else "benign") for name in names]
    metrics = evaluate_predictions(EvaluationInput(net, classes=classes, groups=None, rule_predictions=blind))
    for name, rule in metrics["splits"]["test"]["image_blind"]["rules"].items():
        assert rule["metrics"]["balanced_accuracy"]["ci95"][0] <= 0.5, name
    assert judge_metrics(metrics, "test").rule_headline == ()


def test_differences_are_those_of_a_comparison() -> None:
    rng = np.random.default_rng(2)
    y = rng.integers(0, 3, 240)

    def scored(skill: float) -> ScoredSet:
        p = rng.random((240, 3)) + skill * np.eye(3)[y] * rng.random((240, 1))
        p /= p.sum(axis=1, keepdims=True)
        return ScoredSet(
            ["a", "b", "c"], np.array([False, True, False]), y, p.argmax(axis=1), p, np.arange(240) // 2
        )

    net, rule, other = scored(1.5), scored(0.5), scored(0.0)
    quick = differences_from_others(net, {"rule": rule, "other": other}, seed=4, resamples=300)
    for name, second in (("rule", rule), ("other", other)):
        full = {d.metric: d.estimate for d in paired_differences(net, second, seed=4, resamples=300)}
        for metric, estimate in quick[name].items():
            assert estimate.value == pytest.approx(full[metric].value)
            assert estimate.ci95 == pytest.approx(full[metric].ci95)
            assert estimate.reason == full[metric].reason
    with pytest.raises(ValueError, match="same images"):
        differences_from_others(
            net,
            {
                "rule": ScoredSet(
                    ["a", "b", "c"], net.malignant_classes, (y + 1) % 3, y, net.probabilities, net.groups
                )
            },
            seed=0,
        )


def test_a_rule_of_other_images_is_not_compared() -> None:
    net = table_of(3.0)
    metrics = evaluated(net, {"file": net.iloc[:-1]}, rules_not_applicable={"source": "one source"})
    body = metrics["splits"]["test"]["image_blind"]
    assert body["rules"] == {} and body["best"] == {}
    assert body["not_applicable"] == {
        "source": "one source",
        "file": "it did not score the same images as the net",
    }
    assert judge_metrics(metrics, "test").rule_headline == ()


# Folders ----------------------------------------------------------------------------------------------------------


def make_run(folder: Path, rules: Mapping[str, pd.DataFrame], skill: float) -> Path:
    table = [{"name": c.name, "diagnosis": c.diagnosis, "malignancy": c.malignancy} for c in TWO]
    RUN.write(folder, {"dataset": {"name": "made", "classes": table}, "split": {}, "seed": 0})
    net = table_of(skill, seed=3)
    write_rows(folder / "predictions.csv", list(net.columns), net.itertuples(index=False, name=None))
    if rules:
        write_rule_predictions(folder / IMAGE_BLIND_FILE, NAMES, rules)
        IMAGE_BLIND.write(
            folder, {"rules": {}, "not_applicable": {"source": "the training images are of one source"}}
        )
    evaluate_run(folder)
    return folder


def test_report_and_terminal_begin_and_end_with_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"file": table_of(1.6, seed=2), "border": table_of(0.0, seed=5)}, 1.2)
    page = write_report(run).read_text()
    head, body = page.split("</header>", 1)
    assert "Not shown to be better than a rule that never looks at the lesion" in head
    assert "What an image-blind rule reaches" in body
    assert "the archive that the image is from): the training images are of one source" in body
    assert (
        (run / "figures" / "image_blind_test.csv").read_text().startswith("rule,metric,value,low,high,difference")
    )
    assert any("image-blind rules: not shown to be better" in line for line in result_lines(run))
    better = make_run(tmp_path / "better", {"file": table_of(0.3, seed=2)}, 4.0)
    assert "Not shown to be better" not in write_report(better).read_text()
    assert any("clearly better than the best rule" in line for line in result_lines(better))


@pytest.mark.parametrize("name", ["colour_baseline.csv", "colour_rule.csv"])
def test_an_old_run_with_the_colour_baseline_alone_still_has_a_report(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run", {}, 3.0)
    colour = table_of(0.5, seed=9)
    write_rows(run / name, list(colour.columns), colour.itertuples(index=False, name=None))
    old = METRICS.read(run)
    assert "image_blind" not in old["splits"]["test"], "nothing is made up for a run without rules"
    (run / METRICS.name).write_text(
        (run / METRICS.name).read_text().replace(f'"format": {METRICS.format}', '"format": 3')
    )
    assert "What an image-blind rule reaches" not in write_report(run).read_text()
    evaluate_run(run)
    assert "image_blind" not in METRICS.read(run)["splits"]["test"]
    assert METRICS.read(run)["splits"]["test"]["baselines"]["mean_colour"]["auroc"]["value"] > 0.5
    assert "mean colour alone" in write_report(run).read_text()


def test_tables_of_rules_read_back_to_the_same_bits(tmp_path: Path) -> None:
    rules = {"file": table_of(1.0), "border": table_of(2.0, seed=4)}
    write_rule_predictions(tmp_path / "rules.csv", NAMES, rules)
    back = read_rule_predictions(tmp_path / "rules.csv", NAMES)
    assert list(back) == list(rules)
    for name, frame in rules.items():
        pd.testing.assert_frame_equal(back[name], frame, check_exact=True)
    (tmp_path / "rules.csv").write_text("image_id\nx\n")
    with pytest.raises(DataError, match="no column rule"):
        read_rule_predictions(tmp_path / "rules.csv", NAMES)


def test_rules_of_repeats_are_fitted_once_for_the_same_images(
    clean: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = clean.manifest["image_id"].tolist()
    pixels = pixel_cache(clean, ids, SIZE, folder=clean.work_folder / "cache")
    n_fits = [0]

    def count(*args: Any, **options: Any) -> BlindRules:
        n_fits[0] += 1
        return predict_by_rules(*args, **options)

    monkeypatch.setattr(repeated_rules, "predict_by_rules", count)

    def rules(train: list[str], score: list[str]) -> BlindRules:
        return repeated_rules.rules_of_repeats(
            clean, pixels, train_ids=train, score_ids=score, class_names=clean.class_names
        )

    first = rules(ids[:30], ids[30:36])
    assert rules(ids[:30], ids[30:36]) is first and n_fits == [1]
    assert rules(ids[:30], ids[30:35]) is not first and rules(ids[:29], ids[30:35]) is not first
    assert n_fits == [3]
