"""Images outside the training distribution: the test and its false alarms, the file, predictions, nearest cases."""

import json
import re
import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load, save
from sklearn.neighbors import NearestNeighbors

import dermkit as dk
from conftest import Invoke
from dermkit.data.manifest import LesionClass, load_dataset
from dermkit.data.synthetic.dataset import make_dataset_folder
from dermkit.errors import UntrustedError, UsageError
from dermkit.evaluation.external import evaluate_external
from dermkit.evaluation.out_of_distribution import pool_distances, read_distances, write_table
from dermkit.explanation.nearest_cases import training_cases
from dermkit.files import sha256_bytes
from dermkit.images.decode import open_image
from dermkit.images.preprocess import Preprocessing, resize_pixels
from dermkit.metrics.decisions.outlier_test import (
    combine_p_values,
    conformal_p_values,
    distance_threshold,
    largest_by_group,
)
from dermkit.models.card import MODEL_JSON, features_file
from dermkit.models.checksums import write_checksums
from dermkit.models.ensemble import write_ensemble
from dermkit.models.net import build_net
from dermkit.models.training_features import ReferenceFeatures, fit_training_features, select_training_rows
from dermkit.models.weights import resolve_weights
from dermkit.pipeline.training_features import fit_on_job, short_pixel_keys
from dermkit.prediction.decisions import write_decisions
from dermkit.prediction.inputs import ImageRef
from dermkit.prediction.load import load_model
from dermkit.prediction.model_folder import ModelMetadata, save_model
from dermkit.prediction.out_of_distribution import OutlierTest, is_outside
from dermkit.prediction.resume import PredictionJob, ScoreRow
from dermkit.progress import Progress
from dermkit.recipes.experiments import DEMO
from dermkit.reporting.out_of_distribution import outlier_text
from dermkit.runs.folder import RunFolder
from dermkit.runs.layout import DISTANCES_FILE, OUT_OF_DISTRIBUTION

if TYPE_CHECKING:
    from dermkit.training.state import TrainingJob

CLASSES = (LesionClass("benign", "", "benign"), LesionClass("malignant", "", "malignant"))
PREPROCESSING = Preprocessing(
    size=24,
    resize="squash",
    interpolation="bilinear",
    divide_by=255.0,
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
)
N_TRAIN, N_VALIDATION = 60, 40
TENSORS = dict[str, NDArray[np.generic]]


@pytest.fixture(scope="module")
def lesions(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return drawn lesions: the first 60 for training, 40 for validation, 20 new ones."""
    folder = tmp_path_factory.mktemp("drawn")
    make_dataset_folder(folder, lesions_per_class={"benign": 60, "malignant": 60}, photos_per_lesion=(1, 1), size=48,
                        seed=4)  # fmt: skip
    files = sorted(folder.rglob("*.jpg"))
    return [files[index] for index in np.random.default_rng(0).permutation(len(files))]


@pytest.fixture(scope="module")
def model(lesions: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the model folder of a net with random weights and the training features of drawn lesions."""
    spec = replace(DEMO.model, backbone="dermkit/cnn-s1", hidden=(), weights="none", dropout=0.0)
    net = build_net(spec, 2, weights=resolve_weights(spec, None), seed=0).eval()
    metadata = ModelMetadata({"name": "drawn"}, {}, {}, {"seed": 0, "fold": None}, [])
    run = tmp_path_factory.mktemp("run")

    def write(held: ReferenceFeatures | None) -> Path:
        return save_model(run / "model", net, spec=spec, classes=CLASSES, preprocessing=PREPROCESSING,
                          metadata=metadata, training_features=held)  # fmt: skip

    predictor = load_model(write(None))
    opened = [open_image(path) for path in lesions[: N_TRAIN + N_VALIDATION]]
    (features,) = predictor.features(np.stack([resize_pixels(image.pixels, PREPROCESSING) for image in opened]))
    assert features is not None
    root = lesions[0].parents[1]
    held = fit_training_features(
        features[:N_TRAIN], features[N_TRAIN:],
        labels=np.array([path.parent.name == "malignant" for path in lesions[:N_TRAIN]], dtype=np.int64),
        groups=np.arange(N_TRAIN), validation_groups=np.arange(N_VALIDATION),
        pixel_keys=short_pixel_keys(pd.Series([image.pixel_sha256 for image in opened[:N_TRAIN]])),
        image_ids=[str(path.relative_to(root).with_suffix("")) for path in lesions[:N_TRAIN]],
    )  # fmt: skip
    (run / "location.json").write_text(json.dumps({"format": 1, "images": str(root)}))
    return write(held)


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """Return a folder of twelve images of coloured noise."""
    folder = tmp_path / "noise"
    folder.mkdir()
    for seed in range(12):
        pixels = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((48, 48), Image.Resampling.NEAREST).save(folder / f"{seed}.png")
    return folder


# The test ----------------------------------------------------------------------------------------------------


def test_p_values_count_the_validation_lesions_that_lie_as_far() -> None:
    calibration = np.arange(1.0, 20)  # 19 lesions: the least with which 5 % can be had
    assert conformal_p_values(np.array([0.5, 19.0, 19.5, 10.0]), calibration) == pytest.approx(
        [1, 0.1, 0.05, 0.55]
    )
    assert distance_threshold(calibration) == 19
    assert distance_threshold(calibration[:18]) is None
    assert distance_threshold(np.empty(0)) is None
    assert largest_by_group(np.array([3.0, 1.0, 2.0]), np.array([7, 5, 7])).tolist() == [1, 3]
    assert combine_p_values(np.array([[0.02, 0.9], [0.04, 0.8]])) == pytest.approx([0.06, 1])
    assert combine_p_values(np.array([[0.02]])) == pytest.approx([0.02])


@pytest.mark.parametrize("n_groups", [19, 45, 200])
def test_false_alarms_stay_below_five_percent_for_few_lesions_of_several_images(n_groups: int) -> None:
    rng = np.random.default_rng(n_groups)
    marked = []
    for _ in range(400):  # each draw of validation lesions sets its own threshold
        lesion = rng.normal(size=n_groups + 20)
        distances = np.exp(np.repeat(lesion, 3) + 0.5 * rng.normal(size=3 * (n_groups + 20)))
        groups = np.repeat(np.arange(n_groups + 20), 3)
        is_new = groups >= n_groups
        calibration = largest_by_group(distances[~is_new], groups[~is_new])
        marked.append(is_outside(conformal_p_values(distances[is_new], calibration)).mean())
    assert np.mean(marked) < 0.05 + 2 * np.std(marked) / np.sqrt(len(marked))
    assert np.mean(marked) > 0.01  # and it does mark


def test_distances_are_those_of_features_scaled_to_length_one() -> None:
    rng = np.random.default_rng(0)
    features = rng.random((40, 12)).astype(np.float32)
    new = rng.random((9, 12)).astype(np.float32)
    held = fit_training_features(
        features, new[:0], labels=np.zeros(40, np.int64), groups=np.arange(40), validation_groups=np.arange(0),
        pixel_keys=np.arange(40, dtype=np.uint64), image_ids=[str(number) for number in range(40)],
    )  # fmt: skip
    assert held.axes.shape == (12, 12)  # all axes: nothing lies outside them
    assert held.threshold is None
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (features, new)]
    expected = NearestNeighbors(n_neighbors=5).fit(unit[0]).kneighbors(unit[1])[0][:, 4]
    assert held.distances(new) == pytest.approx(expected, abs=2e-3)  # float16


def test_validation_lesions_that_training_had_set_no_threshold() -> None:
    spec = replace(DEMO.model, backbone="dermkit/cnn-s1", hidden=(), weights="none", dropout=0.0)
    net = build_net(spec, 2, weights=resolve_weights(spec, None), seed=0).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (30, 24, 24, 3), dtype=np.uint8)
    groups = np.r_[np.arange(20), np.arange(4), 20 + np.arange(6)]  # images 20 to 23 are of lesions in training
    job = SimpleNamespace(
        image_ids=[str(row) for row in range(30)], groups=groups, labels=np.arange(30) % 2, pixels=pixels,
        train_rows=np.arange(20), validation_rows=np.arange(20, 30), preprocessing=PREPROCESSING,
    )  # fmt: skip
    manifest = pd.DataFrame({"pixel_sha256": [f"{row:016x}" for row in range(30)]})
    held = fit_on_job(cast("TrainingJob", job), net, manifest, Progress())
    assert len(held.calibration) == 6


def test_what_lies_outside_all_axes_of_the_training_images_is_far() -> None:
    rng = np.random.default_rng(1)
    inside = np.zeros((400, 300), np.float32)
    inside[:, :80] = 1 + 0.1 * rng.normal(size=(400, 80))
    foreign = inside[:20].copy()
    foreign[:, 200:] = 0.5  # on directions that no training image has
    held = fit_training_features(
        inside[:300], inside[300:], labels=np.zeros(300, np.int64), groups=np.arange(300),
        validation_groups=np.arange(100), pixel_keys=np.arange(300, dtype=np.uint64), image_ids=["x"] * 300,
    )  # fmt: skip
    assert is_outside(held.p_values(held.distances(foreign))).all()
    assert is_outside(held.p_values(held.distances(inside[:300]))).mean() < 0.05


def test_rare_classes_stay_whole_and_each_lesion_comes_once_first() -> None:
    labels = np.repeat([0, 1, 2], [100, 30, 4])
    groups = np.concatenate([np.repeat(np.arange(20), 5), 20 + np.arange(30), 50 + np.arange(4)])
    rows = select_training_rows(labels, groups, n_max=54)
    assert np.bincount(labels[rows]).tolist() == [25, 25, 4]
    counts = np.bincount(groups[rows[labels[rows] == 0]])
    assert sorted(counts.tolist()) == [1] * 15 + [2] * 5
    assert select_training_rows(labels, groups, n_max=200).tolist() == list(range(134))


# The model folder --------------------------------------------------------------------------------------------------


def test_noise_is_marked_and_new_lesions_are_not(
    model: Path, lesions: list[Path], noise: Path, tmp_path: Path, invoke: Invoke
) -> None:
    new = [str(path) for path in lesions[N_TRAIN + N_VALIDATION :]]
    tables = {}
    for size in (1, 32):
        code, _, err = invoke("predict", model, *new, noise, "--out", tmp_path / f"b{size}", "--batch-size", size)
        assert code == 0, err
        tables[size] = pd.read_csv(tmp_path / f"b{size}" / DISTANCES_FILE)
    assert "12 of 32 images lie outside the training distribution" in err or "13 of 32 images" in err
    pd.testing.assert_frame_equal(tables[1], tables[32], rtol=1e-5)
    assert (tables[1]["p_value"] == tables[32]["p_value"]).all()
    is_marked = tables[32]["outside_training_distribution"].eq("yes").to_numpy()
    assert is_marked[-12:].all()
    assert is_marked[:20].sum() <= 1
    fields = json.loads((tmp_path / "b32" / "predict.json").read_text())["out_of_distribution"]
    assert fields["n_outside"] == is_marked.sum()
    assert fields["n_validation_groups"] == N_VALIDATION
    assert {one["image"] for one in fields["outside"]} >= {f"{number}.png" for number in range(12)}


def test_distances_take_little_memory(tmp_path: Path) -> None:
    def bytes_of(distance: tuple[float, float] | None, n: int = 4000) -> int:
        tracemalloc.start()
        scores, _ = PredictionJob(
            tmp_path, [ImageRef("a", "a", "a")] * n, ("benign", "malignant"), 16
        ).read_scores()
        for position in range(n):
            pair = None if distance is None else (distance[0] + position * 1e-9, distance[1] + position * 1e-9)
            scores.add(ScoreRow(position, "", [0.4, 0.6], ("", ""), (), "", pair))
        is_marked = scores.is_outside
        assert (is_marked is None) if distance is None else (is_marked is not None and is_marked.all())
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return size // n

    assert bytes_of((1.0, 0.01)) - bytes_of(None) < 40


def test_no_image_scored_leaves_no_table(model: Path, tmp_path: Path, invoke: Invoke) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    code, _, _ = invoke("predict", model, tmp_path / "broken.jpg", "--out", tmp_path / "out")
    assert code == 3
    fields = json.loads((tmp_path / "out" / "predict.json").read_text())["out_of_distribution"]
    assert fields == {"file": None, "reason": "no image was scored"}


def test_an_answer_may_be_withheld(
    trained: Path, model: Path, noise: Path, tmp_path: Path, invoke: Invoke
) -> None:
    policy = load_model(trained).select_policy()
    assert policy is not None
    images = [ImageRef(name, name, name) for name in ("a", "b", "c")]
    p = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]])
    is_foreign = np.array([False, True, False])
    counts = write_decisions(
        tmp_path / "d.csv", policy, CLASSES, images, p, is_outside=is_foreign, withholds_outside=True
    )
    table = pd.read_csv(tmp_path / "d.csv", dtype=str, keep_default_na=False)
    assert counts.n_withheld == 1
    assert sum(counts.set_sizes) == 2
    assert table["outside_training_distribution"].tolist() == ["no", "yes", "no"]
    withheld = table.iloc[1].drop(["image_id", "path", "referral", "outside_training_distribution"])
    assert table["referral"][1] == "withheld"
    assert set(withheld) == {""}
    assert (table.iloc[0] != "").sum() > 5
    for folder, reason in ((model, "no decision policy"), (trained / "model", "validation lesions are too few")):
        code, _, err = invoke("predict", folder, noise, "--out", tmp_path / "w", "--withhold-outside")
        assert code == 2
        assert reason in err


def _spoil(model: Path, folder: Path, change: Callable[[TENSORS], object]) -> Path:
    copy = Path(shutil.copytree(model, folder))
    path = copy / features_file(0)
    tensors = load(path.read_bytes())
    change(tensors)
    path.write_bytes(save({name: np.ascontiguousarray(value) for name, value in tensors.items()}))
    write_checksums(copy)
    return copy


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.pop("points"), "its tensors are not"),
        (lambda t: t.update(more=t["mean"]), "its tensors are not"),
        (lambda t: t.update(format=np.array([9])), "format"),
        (lambda t: t.update(points=t["points"].astype(np.float64)), "float64"),
        (lambda t: t.update(points=t["points"][:, :-1]), "`points` is"),
        (lambda t: t.update(points=t["points"] * np.float16(100)), "no features of length 1"),
        (lambda t: t.update(points=np.full_like(t["points"], np.nan)), "not finite"),
        (lambda t: t.update(mean=t["mean"][1:]), "`mean` is"),
        (lambda t: t.update(labels=t["labels"] + 1), "not of 2 classes"),
        (lambda t: t.update(labels=t["labels"][:0]), "0 training images"),
        (lambda t: t.update(calibration=t["calibration"][::-1]), "not ascending"),
        (lambda t: t.update(calibration=t["calibration"] + np.inf), "not finite"),
        (lambda t: t.update(image_ids=t["image_ids"][:-1]), "no training features"),
        (lambda t: t.update(image_ids=np.frombuffer(b"[" * 50000, np.uint8)), "no training features"),
        (lambda t: t.update(groups=t["groups"][:, None]), "`groups` is"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    model: Path, tmp_path: Path, change: Callable[[TENSORS], object], reason: str
) -> None:
    with pytest.raises(UntrustedError, match=reason):
        load_model(_spoil(model, tmp_path / "model", change))


def test_cut_changed_and_unlisted_files_are_refused(model: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(model, tmp_path / "cut"))
    path = copy / features_file(0)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UntrustedError, match="SHA-256 differs"):
        load_model(copy)
    write_checksums(copy)
    with pytest.raises(UntrustedError, match="no training features"):
        load_model(copy)
    path.unlink()
    write_checksums(copy)
    with pytest.raises(UntrustedError, match="the training features 'training_features-0"):
        load_model(copy)


def test_a_model_of_an_older_version_says_why_it_cannot_tell(
    model: Path, noise: Path, tmp_path: Path, invoke: Invoke
) -> None:
    copy = Path(shutil.copytree(model, tmp_path / "old"))
    card = json.loads((copy / MODEL_JSON.name).read_text())
    members = [{key: value for key, value in one.items() if key != "training_features"} for one in card["members"]]
    (copy / MODEL_JSON.name).write_text(json.dumps({**card, "format": 6, "members": members}))
    (copy / features_file(0)).unlink()
    write_checksums(copy)
    code, _, err = invoke("predict", copy, noise, "--out", tmp_path / "out")
    assert code == 0
    assert "not applicable: the model folder holds no training features" in err
    assert not (tmp_path / "out" / DISTANCES_FILE).exists()
    fields = json.loads((tmp_path / "out" / "predict.json").read_text())["out_of_distribution"]
    assert fields["file"] is None
    assert "older version" in fields["reason"]
    with pytest.raises(UsageError, match="older version"):
        dk.predict(copy, [str(noise)], out=tmp_path / "withheld", withhold_outside=True)


def test_an_ensemble_has_the_features_of_its_members(
    model: Path, noise: Path, lesions: list[Path], tmp_path: Path
) -> None:
    both = load_model(write_ensemble(tmp_path / "both", [model, model]))
    assert (tmp_path / "both" / features_file(1)).is_file()
    pixels = np.stack([
        resize_pixels(open_image(path).pixels, PREPROCESSING) for path in [*sorted(noise.iterdir()), *lesions[-20:]]
    ])  # fmt: skip
    one = load_model(model)
    _, distances = both.score_with_distances(pixels, range(32))
    _, expected = one.score_with_distances(pixels, range(32))
    assert distances is not None
    assert expected is not None
    assert distances.distance == pytest.approx(expected.distance)
    assert distances.p_value == pytest.approx(np.minimum(1, 2 * expected.p_value))
    held = one.training_features[0]
    assert held is not None
    for n_groups, reason in (
        (38, "38 validation lesions are too few for a false-alarm rate of 5% with 2 nets"),
        (39, ""),
    ):
        few = replace(held, calibration=held.calibration[:n_groups])
        assert OutlierTest((few,)).reason == ""
        assert OutlierTest((few, few)).reason == reason  # with 38, no p of the two could be as low as 5 %
    write_ensemble(tmp_path / "both", [model])
    assert not (tmp_path / "both" / features_file(1)).exists()


# A run, and explanations ----------------------------------------------------------------------------------------------


def test_a_run_states_its_false_alarms(trained: Path, tmp_path: Path) -> None:
    assert "validation lesions are too few" in outlier_text(RunFolder(trained))
    assert "too few" in (trained / "report.html").read_text()
    held = load_model(trained).training_features[0]
    assert held is not None
    assert len(held.image_ids) == (pd.read_csv(trained / "split.csv")["split"] == "train").sum()
    table = pd.DataFrame({
        "image_id": [str(number) for number in range(40)], "split": ["validation"] * 10 + ["test"] * 30,
        "group": range(40), "distance": 1.0, "p_value": [0.01] * 12 + [0.5] * 28,
    })  # fmt: skip
    write_table(tmp_path, 50, table)
    assert read_distances(tmp_path)["p_value"].tolist() == table["p_value"].tolist()
    test = OUT_OF_DISTRIBUTION.read(tmp_path)["splits"]["test"]
    assert (test["n"], test["n_outside"]) == (30, 2)
    assert "marked 2 of 30: 6.7% (95 % interval" in outlier_text(RunFolder(tmp_path))
    parent, folds = tmp_path / "parent", [tmp_path / "fold0", tmp_path / "fold1"]
    for folder, number in ((parent, 0), (folds[0], 50), (folds[1], 45)):
        folder.mkdir()
        write_table(
            folder, number, table.assign(image_id=[f"{number}-{image_id}" for image_id in table["image_id"]])
        )
    pool_distances(parent, folds)
    pooled = OUT_OF_DISTRIBUTION.read(parent)
    assert (pooled["splits"]["test"]["n"], pooled["n_validation_groups"]) == (60, 45)
    pool_distances(parent, [folds[0], trained])
    assert "too few" in OUT_OF_DISTRIBUTION.read(parent)["reason"]


def test_another_data_set_is_told_how_many_of_its_images_are_foreign(
    model: Path, lesions: list[Path], noise: Path, tmp_path: Path, invoke: Invoke
) -> None:
    """Twenty new lesions, twelve pictures of noise, and two training images, which count in no test figure."""
    for path in [*lesions[:2], *lesions[N_TRAIN + N_VALIDATION :], *noise.iterdir()]:
        label = path.parent.name if path.suffix == ".jpg" else "benign"
        (tmp_path / "raw" / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "raw" / label)
    assert invoke("import", "folder", tmp_path / "raw", "--out", tmp_path / "other")[0] == 0
    folder = evaluate_external(
        model, load_dataset(tmp_path / "other"), mapping_path=None, out=tmp_path / "out", progress=Progress()
    )
    table = read_distances(folder).merge(RunFolder(folder).predictions[["image_id", "path", "split"]])
    scores = load_model(model).score_files([(path, tmp_path / "raw" / path) for path in table["path"]])
    expected = [score.distance for score in scores]
    assert table[["distance", "p_value"]].to_numpy() == pytest.approx(np.array(expected), abs=1e-6)
    is_noise = table["path"].str.endswith(".png")
    assert is_outside(table.loc[is_noise, "p_value"].to_numpy()).all()
    assert is_outside(table.loc[~is_noise, "p_value"].to_numpy()).sum() <= 1
    assert re.search("on the test images it marked 1[23] of 3[24]: ", outlier_text(RunFolder(folder)))


def test_the_nearest_cases_are_named_and_no_lesion_is_its_own(
    model: Path, lesions: list[Path], tmp_path: Path
) -> None:
    predictor = load_model(model)
    held = predictor.training_features[0]
    assert held is not None
    two_photos = replace(held, groups=np.where(held.groups == 1, 0, held.groups))  # 0 and 1 show one lesion
    cases = training_cases([two_photos], predictor.members, predictor.class_names)
    assert cases is not None
    image = open_image(lesions[0])
    (features,) = predictor.features(resize_pixels(image.pixels, PREPROCESSING)[None])
    assert features is not None
    found = cases.nearest([features], image.pixel_sha256)
    assert not {held.image_ids[0], held.image_ids[1]} & {case.image_id for case in found}
    as_new = cases.nearest([features], sha256_bytes(b"another image"))
    assert as_new[0].image_id == held.image_ids[0]
    assert as_new[0].distance < 0.05
    assert held.image_ids[1] not in {case.image_id for case in as_new}  # one of a lesion
    assert {case.label for case in found} == {"benign", "malignant"}
    distances = [case.distance for case in found if not case.is_nearest_of_class]
    assert distances == sorted(distances)
    assert {case.image_id.split("/")[0] == case.label for case in found} == {True}


def test_the_nearest_of_another_class_may_be_of_a_patient_who_is_shown(model: Path, lesions: list[Path]) -> None:
    predictor = load_model(model)
    held = predictor.training_features[0]
    assert held is not None
    image = open_image(lesions[N_TRAIN])
    (features,) = predictor.features(resize_pixels(image.pixels, PREPROCESSING)[None])
    assert features is not None
    order = np.argsort(held.pair_distances(features)[0])
    labels = np.zeros_like(held.labels)
    labels[order[[1, 9]]] = 1  # the second nearest image is of the nearest one's patient, and of the other class
    groups = held.groups.copy()
    groups[order[1]] = groups[order[0]]
    cases = training_cases([replace(held, labels=labels, groups=groups)], predictor.members, predictor.class_names)
    assert cases is not None
    (other,) = [case for case in cases.nearest([features], image.pixel_sha256) if case.is_nearest_of_class]
    assert (other.label, other.image_id) == ("malignant", held.image_ids[order[1]])


def test_explain_shows_nearest_cases(model: Path, lesions: list[Path], noise: Path, tmp_path: Path) -> None:
    outcome = dk.explain(model, [str(lesions[-1]), str(noise / "0.png")], out=tmp_path / "out", checks=False)
    page = outcome.page.read_text()
    assert "Nearest training cases" in page
    assert "outside the training distribution" in page
    assert page.count('alt="Training image ') >= 8
    table = pd.read_csv(tmp_path / "out" / "nearest_cases.csv")
    assert set(table["label"]) == {"benign", "malignant"}
    assert table.groupby("image_id")["rank"].max().min() >= 4
    assert json.loads((tmp_path / "out" / "explain.json").read_text())["nearest_cases"] == ""
