"""Model folders whose members come from several recipes: each with its own preprocessing, classes' order and weight."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dermkit.data.manifest import LesionClass
from dermkit.errors import DataError, UsageError
from dermkit.images.preprocess import Preprocessing, resize_pixels
from dermkit.models.card import MAX_NETS, MODEL_JSON
from dermkit.models.checksums import write_checksums
from dermkit.models.ensemble import check_members, write_ensemble
from dermkit.models.net import build_net
from dermkit.models.weights import resolve_weights
from dermkit.prediction.pixels import DecodedImage, PixelStore, decode_image
from dermkit.prediction.predictor import ModelMetadata, load_model, save_model
from dermkit.prediction.run import predict
from dermkit.recipes.experiments import find_recipe

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
    calibrated = {**card, "calibration": {**card["calibration"], "kind": "temperature"}}
    with pytest.raises(DataError, match="an ensemble with a calibration of its own"):
        check_members([cards[0], (two, calibrated)])
    shutil.rmtree(two)
