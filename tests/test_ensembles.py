"""Model folders whose members come from several recipes: each with its own preprocessing, classes' order and weight."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import dermkit as dk
from dermkit.data.manifest import LesionClass
from dermkit.errors import DataError, DermkitError, UsageError
from dermkit.images.preprocess import Preprocessing, resize_pixels
from dermkit.models.card import MAX_NETS, MODEL_JSON
from dermkit.models.checksums import write_checksums
from dermkit.models.ensemble import check_members, write_ensemble
from dermkit.models.net import build_net
from dermkit.models.weights import resolve_weights
from dermkit.pipeline.ensemble import ensemble
from dermkit.prediction.load import load_model
from dermkit.prediction.model_folder import ModelMetadata, save_model
from dermkit.prediction.pixels import DecodedImage, PixelStore, decode_image
from dermkit.prediction.run import predict
from dermkit.recipes.experiments import find_recipe
from dermkit.recipes.schema import Recipe
from dermkit.reporting.paper_facts import paper_facts
from dermkit.runs.folder import RunFolder

CLASSES = (
    LesionClass("nevus", "nevus", "benign"),
    LesionClass("melanoma", "melanoma", "malignant"),
    LesionClass("other", "", "indeterminate"),
)
SMALL = Preprocessing(
    size=24, resize="squash", interpolation="bilinear", divide_by=255.0, mean=(0.0,) * 3, std=(1.0,) * 3
)
LARGE = Preprocessing(
    size=32, resize="crop", interpolation="bicubic", divide_by=1.0, mean=(120.0, 110.0, 100.0), std=(40.0,) * 3
)


def model_of(
    folder: Path, seed: int, preprocessing: Preprocessing, classes: tuple[LesionClass, ...] = CLASSES
) -> Path:
    """Return a model folder of a small net of random weights, with a temperature of its own."""
    spec = replace(find_recipe("demo").model, backbone="dermkit/cnn-s1", hidden=(8,))
    net = build_net(spec, len(classes), weights=resolve_weights(spec, None), seed=seed)
    metadata = ModelMetadata(
        recipe={"name": f"recipe-{seed}"},
        dataset={"name": "made", "manifest_sha256": "m"},
        weights={},
        training={"seed": seed, "fold": None, "best": None, "stopped": None, "keep": "best"},
        training_images=[(f"train-{seed}", "", "train"), ("shared", "", "validation")],
    )
    save_model(folder, net, spec=spec, classes=classes, preprocessing=preprocessing, metadata=metadata)
    card = json.loads((folder / "model.json").read_text())
    card["members"][0]["calibration"] = {"kind": "temperature", "temperature": 0.2 + seed, "bias": [0.0] * 3}
    (folder / "model.json").write_text(json.dumps(card))
    write_checksums(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return two models of other sizes, normalisation and order of classes."""
    folder = tmp_path_factory.mktemp("members")
    reverse = model_of(folder / "b", 1, LARGE, (CLASSES[2], CLASSES[0], CLASSES[1]))
    return model_of(folder / "a", 0, SMALL), reverse


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for number in range(37):
        shape = (40 + number, 50, 3)
        coarse = rng.integers(0, 256, (5, 5, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize(shape[1::-1]).save(folder / f"{number:02}.png")
    return folder


def expected_probabilities(models: tuple[Path, Path], photographs: Path) -> np.ndarray[Any, Any]:
    """Return a quarter of the first model's and three quarters of the second's probabilities, class by class."""
    pixels = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(photographs.glob("*.png"))]
    total = np.zeros((len(pixels), 3))
    for model, weight, columns in zip(models, (0.25, 0.75), ([0, 1, 2], [1, 2, 0]), strict=True):
        predictor = load_model(model)
        (preprocessing,) = predictor.resizings
        own = predictor.probabilities(np.stack([resize_pixels(image, preprocessing) for image in pixels]))
        total += weight * own[:, columns]
    return total


def test_members_of_other_sizes_give_the_weighted_mean_alone_and_in_batches(
    models: tuple[Path, Path], photographs: Path, tmp_path: Path
) -> None:
    folder = write_ensemble(tmp_path / "model", models, weights=[0.25, 0.75])
    expected = expected_probabilities(models, photographs)
    tables = {}
    for batch_size in (1, 32):
        out = predict(folder, [str(photographs)], out=tmp_path / f"{batch_size}", batch_size=batch_size).out
        rows = [line.split(",") for line in (out / "predictions.csv").read_text().splitlines()[1:]]
        tables[batch_size] = np.array([[float(p) for p in row[-3:]] for row in rows]), [row[-4] for row in rows]
    np.testing.assert_allclose(tables[1][0], tables[32][0], rtol=0, atol=1e-5)
    assert tables[1][1] == tables[32][1]
    np.testing.assert_allclose(tables[32][0], expected, rtol=0, atol=1e-6)
    single = load_model(models[0])
    assert np.abs(expected - single.probabilities(np.zeros((1, 24, 24, 3), np.uint8))).max() > 0.01


def test_a_batch_for_members_of_several_sizes_is_one_array_each(models: tuple[Path, Path], tmp_path: Path) -> None:
    model = load_model(write_ensemble(tmp_path / "model", models))
    assert [one.size for one in model.resizings] == [24, 32]
    small, large = np.zeros((2, 24, 24, 3), np.uint8), np.zeros((2, 32, 32, 3), np.uint8)
    assert model.probabilities([small, large]) == pytest.approx(model.score_pixels([small, large], [0, 1]), abs=0)
    for batch in (small, [small], [small, large, large]):
        with pytest.raises(DataError, match="resized in 2 ways"):
            model.probabilities(batch)
    with pytest.raises(UsageError, match="2 ways of preprocessing"):
        _ = model.preprocessing


def test_members_that_differ_in_normalisation_alone_share_their_pixels(tmp_path: Path) -> None:
    other = replace(SMALL, mean=(0.5,) * 3, std=(0.2,) * 3)
    model = load_model(
        write_ensemble(tmp_path / "m", [model_of(tmp_path / "a", 0, SMALL), model_of(tmp_path / "b", 1, other)])
    )
    assert len(model.resizings) == 1
    assert model.probabilities(np.zeros((1, 24, 24, 3), np.uint8)).shape == (1, 3)
    with pytest.raises(UsageError, match="2 ways of preprocessing"):
        _ = model.preprocessing


def test_pixels_of_several_sizes_come_back_from_the_store(
    models: tuple[Path, Path], photographs: Path, tmp_path: Path
) -> None:
    paths = sorted(photographs.glob("0*.png"))
    store = PixelStore(tmp_path, (SMALL, LARGE))
    images = [
        decode_image(path, "", (SMALL, LARGE), with_thumbnail=False, geometry_hash=store.geometry_hash)
        for path in paths
    ]
    store.add([image for image in images if isinstance(image, DecodedImage)])
    store.flush()
    for image, again in zip(images, PixelStore(tmp_path, (SMALL, LARGE)).find(paths), strict=True):
        assert isinstance(image, DecodedImage) and again is not None
        assert [array.shape for array in again.pixels] == [(24, 24, 3), (32, 32, 3)]
        for array, stored in zip(image.pixels, again.pixels, strict=True):
            np.testing.assert_array_equal(array, stored)
    assert PixelStore(tmp_path, (LARGE, SMALL)).find(paths) == [None] * len(paths)


def test_weights_are_shared_by_the_nets_of_a_model_and_those_of_weight_0_are_left_out(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    two = write_ensemble(tmp_path / "two", models)
    third = model_of(tmp_path / "c", 2, SMALL)
    four = write_ensemble(tmp_path / "four", [two, third, models[0]], weights=[0.8, 0.2, 0.0])
    members = MODEL_JSON.read(four)["members"]
    assert [member["weight"] for member in members] == pytest.approx([0.4, 0.4, 0.2])
    assert [member["class_order"] for member in members] == [[0, 1, 2], [1, 2, 0], [0, 1, 2]]
    assert sorted(path.name for path in four.glob("member-*")) == [f"member-{k}.safetensors" for k in range(3)]
    text = (four / "MODEL_CARD.md").read_text()
    assert "Members 0, 2: RGB, 24 x 24 px, squash" in text and "Members 1: RGB, 32 x 32 px, crop" in text
    # Another order of the models is another order of the classes; each name keeps its probability.
    back = load_model(write_ensemble(tmp_path / "back", [models[1], two], weights=[0.5, 0.5]))
    assert back.class_names == ("other", "nevus", "melanoma")
    batch = [np.full((1, size, size, 3), 90, np.uint8) for size in (32, 24)]
    p = dict(zip(back.class_names, back.probabilities(batch)[0], strict=True))
    own = [load_model(model).probabilities(array) for model, array in zip(models, batch[::-1], strict=True)]
    assert p["melanoma"] == pytest.approx(0.25 * own[0][0, 1] + 0.75 * own[1][0, 2], abs=1e-9)


def test_models_that_cannot_be_members_of_one_are_refused(models: tuple[Path, Path], tmp_path: Path) -> None:
    cards = [(model, MODEL_JSON.read(model)) for model in models]
    check_members(cards)
    other = {**cards[0][1], "classes": [{**cards[0][1]["classes"][0], "malignancy": "malignant"}, *CLASSES[1:]]}
    with pytest.raises(DataError, match=r"other classes .*nevus.* differ") as caught:
        check_members(
            [cards[1], (models[0], {**other, "classes": other["classes"][:1] + cards[0][1]["classes"][1:]})]
        )
    assert caught.value.exit_code == 3
    with pytest.raises(DataError, match=r"other classes .*\(other differ"):
        check_members([cards[0], (models[1], {**cards[1][1], "classes": cards[1][1]["classes"][1:]})])
    with pytest.raises(DataError, match=f"33 nets: a model holds at most {MAX_NETS}"):
        check_members([cards[0]] * 33)
    two = write_ensemble(tmp_path / "two", models)
    card = MODEL_JSON.read(two)
    check_members([cards[0], (two, {**card, "calibration": {**card["calibration"], "kind": "temperature"}})])


# Recipes of one split, trained -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def larger(binary: Path, tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of another size and head on the split of `trained`."""
    recipe = replace(
        tiny, name="larger", image=replace(tiny.image, size=32), model=replace(tiny.model, hidden=(16,))
    )
    settings = dk.RunSettings(out=tmp_path_factory.mktemp("larger"), device="cpu")
    return dk.train(recipe, dk.load_dataset(binary), settings=settings)


@pytest.fixture(scope="module")
def both(trained: Path, larger: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the ensemble of the two runs."""
    return ensemble([trained, larger], out=tmp_path_factory.mktemp("both") / "ensemble", weights="equal").folder


def table_of(folder: Path, split: str = "validation") -> pd.DataFrame:
    rows = pd.read_csv(folder / "predictions.csv", dtype={"fold": str, "seed": str}, keep_default_na=False)
    return rows[rows["split"] == split].sort_values("image_id").reset_index(drop=True)


def test_the_validation_predictions_are_those_of_the_model(
    both: Path, trained: Path, larger: Path, binary: Path
) -> None:
    """What weights, thresholds and figures were fitted on is what the model folder gives for these images."""
    rows, dataset = table_of(both), dk.load_dataset(binary)
    assert rows["image_id"].tolist() == table_of(trained)["image_id"].tolist()
    out = predict(both, [str(dataset.image_root / path) for path in rows["path"]], out=both / "predicted").out
    found = pd.read_csv(out / "predictions.csv")
    np.testing.assert_allclose(found[["p_benign", "p_malignant"]], rows[["p_benign", "p_malignant"]], atol=1e-5)
    means = np.zeros((len(rows), 2))
    for run in (trained, larger):  # independently: each one's own temperature, then the mean
        calibration = json.loads((run / "model" / "model.json").read_text())["calibration"]
        logits = np.log(table_of(run)[["p_benign", "p_malignant"]].to_numpy()) / calibration["temperature"]
        e = np.exp(logits)
        means += e / e.sum(axis=1, keepdims=True) / 2
    np.testing.assert_allclose(rows[["p_benign", "p_malignant"]], means, atol=1e-12)
    shutil.rmtree(both / "predicted")


def test_the_test_side_is_opened_once_when_asked_and_logged(
    both: Path, trained: Path, larger: Path, binary: Path, tmp_path: Path
) -> None:
    assert set(pd.read_csv(both / "predictions.csv")["split"]) == {"validation"}
    folder = Path(shutil.copytree(both, tmp_path / "opened"))
    dk.evaluate(folder, open_test=dk.load_dataset(binary))
    (opening,) = json.loads((folder / "run.json").read_text())["ensemble"]["openings"]
    rows = table_of(folder, "test")
    assert opening["n"] == len(rows) == len(table_of(trained, "test"))
    calibrations = [
        json.loads((run / "model" / "model.json").read_text())["calibration"] for run in (trained, larger)
    ]
    p = np.zeros((len(rows), 2))
    for run, calibration in zip((trained, larger), calibrations, strict=True):
        logits = np.log(table_of(run, "test")[["p_benign", "p_malignant"]].to_numpy()) / calibration["temperature"]
        e = np.exp(logits)
        p += e / e.sum(axis=1, keepdims=True) / 2
    np.testing.assert_allclose(rows[["p_benign", "p_malignant"]], p, atol=1e-5)
    with pytest.raises(UsageError, match="test images were scored on 20"):
        dk.evaluate(folder, open_test=dk.load_dataset(binary))
    outcome = dk.compare([folder, trained, larger], out=tmp_path / "compared")
    assert outcome.same_images["test"]
    measured = folder / "counterfactuals" / "counterfactuals.json"
    measured.parent.mkdir()
    measured.write_text(json.dumps({"format": 1, "is_complete": True, "artefacts": []}))
    assert (folder / "out_of_distribution.json").is_file()
    again = ensemble([trained, larger], out=folder)
    assert not (folder / "out_of_distribution.json").exists()  # of the test images that the earlier model scored
    assert not json.loads(measured.read_text())["is_complete"]
    assert "test" not in set(pd.read_csv(folder / "predictions.csv")["split"])
    assert json.loads((folder / "run.json").read_text())["ensemble"]["openings"] == [opening]
    assert again.sentences[0].startswith("Weights (")


def test_the_card_says_members_weights_and_where_they_come_from(both: Path) -> None:
    card = json.loads((both / "model" / "model.json").read_text())
    assert [(s["recipe"], s["n_nets"], s["weight"]) for s in card["ensemble"]["sources"]] == [
        ("tiny", 1, 0.5), ("larger", 1, 0.5),
    ]  # fmt: skip
    assert card["ensemble"]["n"] == len(table_of(both)) == card["n_validation_images"]
    text = (both / "model" / "MODEL_CARD.md").read_text()
    assert "| larger |" in text and "had also stopped or selected each single net" in text
    assert "one of each fold of a cross-validation" not in text
    methods = (both / "METHODS.md").read_text()
    assert "The net was tiny: " in methods and "; larger: " in methods and "Training: tiny: " in methods
    assert "so not in this text" not in methods
    assert "Randomness: seed 0." in methods and methods.count("torch 2") == 1, "what both share is said once"


def test_seeds_and_versions_that_differ_are_said_of_each_model(both: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(both, tmp_path / "both"))
    run_json = json.loads((folder / "run.json").read_text())
    first, second = run_json["ensemble"]["sources"]
    first["seed"], second["seed"] = "seeds 0 and 1", ""
    del first["software"], second["software"]  # as an earlier version wrote them
    (folder / "run.json").write_text(json.dumps(run_json))
    facts = paper_facts(RunFolder(folder))
    assert facts["seed"] == "tiny: seeds 0 and 1; larger: not recorded" and "software" not in facts


def test_members_that_cannot_be_weighed_are_refused_before_work(
    both: Path, trained: Path, larger: Path, tmp_path: Path
) -> None:
    out, alone = tmp_path / "out", Path(shutil.copytree(larger / "model", tmp_path / "alone"))
    other_data = changed_run(larger, tmp_path / "data", lambda card: card["dataset"].update(manifest_sha256="x"))
    learned = changed_images(
        larger, tmp_path / "learned", lambda rows: [row.replace("validation", "train") for row in rows]
    )
    fewer = Path(shutil.copytree(larger, tmp_path / "fewer"))
    rows = (fewer / "predictions.csv").read_text().splitlines(keepends=True)
    first = next(row for row in rows if ",validation," in row)
    (fewer / "predictions.csv").write_text("".join(row for row in rows if row != first))
    for second, message, code in (
        (trained, "two different models", 2),
        (trained / "model", "two different models", 2),
        (both, "is an ensemble of recipes itself", 2),
        (alone, "a model without its run", 2),
        (tmp_path / "absent", "no such folder", 3),
        (tmp_path, "neither a finished run nor a model", 3),
        (other_data, "another data set", 3),
        (learned, "validation images of .* are training images of", 3),
        (fewer, "of which .* are common", 3),
    ):
        with pytest.raises(DermkitError, match=message) as caught:
            ensemble([trained, second], out=out)
        assert caught.value.exit_code == code
        assert not out.exists()
    with pytest.raises(UsageError, match="is a run, not an ensemble"):
        ensemble([trained, larger], out=fewer)
    outcome = ensemble([trained, alone], out=out, weights="equal")
    assert outcome.report is None and "No thresholds and no figures" in outcome.sentences[0]
    assert load_model(out).policy is None


def changed_run(run: Path, folder: Path, change: Any) -> Path:
    """Return a copy of a run whose model.json is changed and vouched for."""
    copy = Path(shutil.copytree(run, folder))
    card = json.loads((copy / "model" / "model.json").read_text())
    change(card)
    (copy / "model" / "model.json").write_text(json.dumps(card))
    write_checksums(copy / "model")
    return copy


def changed_images(run: Path, folder: Path, change: Any) -> Path:
    """Return a copy of a run whose table of training images is changed and vouched for."""
    copy = Path(shutil.copytree(run, folder))
    path = copy / "model" / "seen.csv"
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))
    write_checksums(copy / "model")
    return copy
