"""`dermkit explain --metadata`: maps with the second input, and what each part of the input weighs in the answer."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

import dermkit as dk
from conftest import Invoke
from dermkit.data.manifest import LesionClass
from dermkit.errors import DataError
from dermkit.explanation.heat_maps import NetExplainer
from dermkit.explanation.metadata_weights import InputWeight, summarise_weights, summary_sentence, weigh_inputs
from dermkit.explanation.records import EXPLAIN
from dermkit.explanation.target import EvidenceTarget
from dermkit.files import write_json
from dermkit.metrics.stats.arrays import Floats
from dermkit.models.cnn import cnn_s1
from dermkit.models.metadata import MetadataEncoder
from dermkit.models.net import Net, build_net
from dermkit.models.weights import resolve_weights
from dermkit.prediction.load import load_model
from dermkit.prediction.model_folder import ModelMetadata, save_model
from dermkit.recipes.experiments import DEMO
from dermkit.recipes.training_specs import MetadataField, MetadataSpec
from test_heat_maps import make_backbone, preprocessing_of

SIZE = 64
CLASSES = (LesionClass("nevus", "nevus", "benign"), LesionClass("melanoma", "melanoma", "malignant"))
FIELDS: tuple[MetadataField, ...] = ("age", "sex", "site")
ENCODER = MetadataEncoder(
    FIELDS, 50.0, 10.0, {"sex": ("female", "male"), "site": ("back", "face")}, 100, dict.fromkeys(FIELDS, 90)
)
META_WEIGHTS = (0.7, 0.3, -0.5, 0.4, 0.0, 1.1)
"""Of the log-odds of melanoma: age in standard deviations, age known, female, male, back, face."""


def save_linear_model(folder: Path, *, has_metadata: bool) -> Path:
    """Write a model: log-odds of melanoma = a linear function of the image plus one of the metadata."""
    metadata = MetadataSpec(fields=FIELDS, p_unknown=0.1) if has_metadata else None
    spec = replace(
        DEMO.model, backbone="dermkit/cnn-s1", hidden=(), weights="none", dropout=0.0, metadata=metadata
    )
    width = ENCODER.width if has_metadata else 0
    net = build_net(spec, 2, weights=resolve_weights(spec, None), seed=0, n_metadata=width).eval()
    head = next(module for module in net.head.modules() if isinstance(module, nn.Linear))
    with torch.no_grad():
        head.weight.zero_()
        head.weight[1, :2048].reshape(128, 16)[:, 0] = 0.01
        head.weight[1, 2048:] = torch.tensor(META_WEIGHTS[:width])
        head.bias.copy_(torch.tensor([0.0, -0.5]))
    return save_model(
        folder, net, spec=spec, classes=CLASSES, preprocessing=preprocessing_of(SIZE),
        metadata=ModelMetadata({"name": "linear"}, {}, {}, {}, []), encoder=ENCODER if has_metadata else None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_linear_model(tmp_path_factory.mktemp("metadata") / "model", has_metadata=True)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"photo{number}.png")
    return folder


TABLE = "image,age,sex,site\nphoto0.png,70,F,face\nphoto1.png,40,,scalp\n"
"""Of the second image the sex is not known, and no training image has its site; the third has no row."""


def logit(p: Any) -> Any:
    return np.log(p / (1 - p))


def test_each_part_weighs_what_the_linear_model_says(
    model: Path, photos: Path, tmp_path: Path, invoke: Invoke
) -> None:
    (tmp_path / "ages.csv").write_text(TABLE)
    out = tmp_path / "out"
    command = ("explain", model, photos, "--out", out, "--class", "melanoma", "--no-checks")
    code, printed, err = invoke(*command, "--metadata", tmp_path / "ages.csv")
    assert code == 0, err
    assert "ages.csv has a row for 2 of 3 images" in printed + err
    table = pd.read_csv(out / "explanations.csv")
    frame = pd.read_csv(tmp_path / "ages.csv", dtype=str)
    np.testing.assert_allclose(table["p"], load_model(model).predict([photos], frame)["p_melanoma"], atol=1e-6)
    weights = pd.read_csv(out / "metadata_weights.csv")
    parts = [(image, part) for image, part in zip(weights["image_id"], weights["part"], strict=True)]
    assert parts == [
        *(("photo0", part) for part in (*FIELDS, "all metadata", "image")), ("photo1", "age"), ("photo1", "image"),
    ]  # fmt: skip
    age0, sex0, site0, age1 = 0.7 * 2 + 0.3, -0.5, 1.1, 0.7 * -1 + 0.3
    change = weights.set_index(["image_id", "part"])["log_odds_change"]
    expected = [age0, sex0, site0, age0 + sex0 + site0]
    np.testing.assert_allclose(change["photo0"].to_numpy()[:4], expected, atol=1e-4)
    assert change["photo1", "age"] == pytest.approx(age1, abs=1e-4)
    pixels = np.stack([np.asarray(Image.open(photos / f"photo{number}.png")) for number in range(2)])
    grey = np.broadcast_to(np.rint(pixels.mean(axis=(1, 2), keepdims=True)), pixels.shape).astype(np.uint8)
    logit_of_image, hidden = (logit(load_model(model).probabilities(one)[:, 1]) for one in (pixels, grey))
    np.testing.assert_allclose(change[:, "image"], logit_of_image - hidden, atol=1e-3)
    np.testing.assert_allclose(
        logit(weights["p"]) - logit(weights["p_without"]), weights["log_odds_change"], atol=1e-9
    )
    np.testing.assert_allclose(weights["p"], [table["p"][0]] * 5 + [table["p"][1]] * 2, atol=1e-6)

    document = json.loads((out / "explain.json").read_text())
    assert document["format"] == 3 and document["unknown_metadata"] == []
    assert document["metadata"]["table"] == "ages.csv" and document["metadata"]["n_known"]["age"] == 2
    assert {one["part"]: one["n"] for one in document["metadata"]["weights"]} == {
        "age": 2, "sex": 1, "site": 1, "all metadata": 1, "image": 2,
    }  # fmt: skip
    page = (out / "explain.html").read_text()
    without_age = weights["p_without"][0]
    assert f"Without the age (70), P(melanoma) would be {without_age:.3f} instead of {table['p'][0]:.3f}" in page
    assert (
        "ages.csv has a row for 2 of 3 images" in page
        and "The answer would be another class without the age in 0 of 2 images" in page
    )
    assert "Maps and probabilities are of images without them" not in page

    code, printed, err = invoke(*command)  # the same folder again, without a table
    assert code == 0 and "none were given (--metadata)" in printed + err
    assert not (out / "metadata_weights.csv").exists()
    again = json.loads((out / "explain.json").read_text())
    assert again["unknown_metadata"] == list(FIELDS) and again["metadata"]["weights"] == []
    unknown = load_model(model).predict([photos])["p_melanoma"]
    np.testing.assert_allclose(pd.read_csv(out / "explanations.csv")["p"], unknown, atol=1e-6)
    assert "Maps and probabilities are of images without them" in (out / "explain.html").read_text()


def test_the_checks_are_of_images_with_their_metadata(model: Path, photos: Path, tmp_path: Path) -> None:
    frame = pd.DataFrame({"image": ["photo1.png"], "age": [40]})
    image = str(photos / "photo1.png")
    outcome = dk.explain(model, [image], out=tmp_path / "out", class_name="melanoma", metadata=frame, device="cpu")
    assert outcome.random_net_check is not None and outcome.random_net_check.n_images == 1
    p = load_model(model).predict([image], frame)["p_melanoma"][0]
    curves = pd.read_csv(outcome.out / "curves.csv")
    assert curves["deletion"][0] == pytest.approx(p, abs=1e-6)
    assert curves["insertion"].iloc[-1] == pytest.approx(p, abs=1e-6)


def test_a_table_that_cannot_be_used_is_refused_before_work(
    model: Path, photos: Path, tmp_path: Path, invoke: Invoke
) -> None:
    (tmp_path / "table.csv").write_text("image,age\nphoto0.png,old\n")
    with pytest.raises(DataError, match="row 2: age 'old' is no number of years"):
        dk.explain(model, [str(photos)], out=tmp_path / "out", metadata=tmp_path / "table.csv", device="cpu")
    plain = save_linear_model(tmp_path / "plain", has_metadata=False)
    code, _, err = invoke(
        "explain",
        plain,
        photos,
        "--out",
        tmp_path / "out",
        "--metadata",
        tmp_path / "table.csv",
        "--device",
        "cpu",
    )
    assert code == 2 and "takes no metadata" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["gradient", "occlusion", "gradient-rollout", "rollout"])
def test_a_map_is_of_the_image_with_its_metadata(method: Any) -> None:
    is_rollout = method.endswith("rollout")
    small_vit = ("vit_tiny_patch16_224", {"img_size": 32, "depth": 2, "embed_dim": 24, "num_heads": 2})
    backbone, n = make_backbone(*small_vit) if is_rollout else (cnn_s1(), 2048)
    torch.manual_seed(1)
    first, relu, last = nn.Linear(n + 5, 8), nn.ReLU(), nn.Linear(8, 3)
    first.weight.data[:, n:] *= 30
    net = Net(backbone, nn.Sequential(first, relu, last), n, n_metadata=5).eval().requires_grad_(False)
    vector = np.random.default_rng(2).normal(0, 3, (1, 5)).astype(np.float32)
    folded = nn.Linear(n, 8)
    folded.weight.data = first.weight[:, :n]
    folded.bias.data = first.bias + first.weight[:, n:] @ torch.from_numpy(vector[0])
    plain = Net(backbone, nn.Sequential(folded, relu, last), n).eval().requires_grad_(False)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    explainers = [NetExplainer(one, preprocessing_of(32), method=method, batch_size=64) for one in (net, plain)]
    largest, changes = [], []
    for target in (EvidenceTarget(0), EvidenceTarget(1)):
        with_metadata = explainers[0](pixels, target, vector)
        np.testing.assert_allclose(with_metadata, explainers[1](pixels, target), atol=1e-4)
        largest.append(with_metadata.max())
        changes.append(np.abs(with_metadata - explainers[0](pixels, target)).max())
    assert max(largest) == 1
    assert (max(changes) > 0.01) == (method != "rollout")  # plain roll-out is the same whatever the answer is


def test_against_a_class_it_is_the_probability_among_the_two() -> None:
    def score(inputs: list[Any], table: pd.DataFrame) -> Floats:
        p = np.where((table["age"] == "").to_numpy()[:, None], [0.1, 0.3, 0.6], [0.2, 0.2, 0.6])
        return np.where((inputs[0] == 0).all(axis=(1, 2, 3))[:, None], [0.0, 1.0, 0.0], p)

    row = pd.DataFrame({"age": ["40"], "sex": [""]})
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[0, 0] = 1  # its mean colour is 0
    age, image = weigh_inputs(score, [pixels], row, EvidenceTarget(0, 1), ("a", "b", "c"))
    assert (age.part, age.value, age.p, age.p_without) == ("age", "40", 0.5, 0.25)
    assert age.log_odds_change == pytest.approx(np.log(3))
    assert image.p_without == 0 and np.isfinite(image.log_odds_change)
    assert age.sentence("a", "b") == (
        "Without the age (40), P(a), of a and b alone, would be 0.250 instead of 0.500."
    )
    assert image.sentence("a", None) == (
        "Without the image (filled with its mean colour), P(a) would be below 0.001 instead of 0.500, and the answer b."
    )
    assert weigh_inputs(score, [pixels], row.assign(age=""), EvidenceTarget(0), ("a", "b", "c")) == ()


def test_the_summary_counts_other_answers_with_an_interval() -> None:
    same = InputWeight("age", "40", 0.6, 0.55, 0.2, "a", "a")
    other = replace(same, predicted_without="b")
    (summary,) = summarise_weights([[same], [other], [same], []])
    assert (summary["n"], summary["n_other_answer"]) == (3, 1)
    assert summary["ci95"] == pytest.approx([0.0084, 0.9057], abs=1e-4)  # Clopper and Pearson, 1 of 3
    assert summary_sentence([summary]) == (
        "The answer would be another class without the age in 1 of 3 images (95 % interval 1 to 91 %*). "
        "* An interval of few images: take it as a hint."
    )
    (many,) = summarise_weights([[same], [other]] * 40)
    assert summary_sentence([many]).endswith("in 40 of 80 images (95 % interval 39 to 61 %).")
    assert summary_sentence([]) == ""


def test_an_explanation_of_format_2_has_no_metadata(tmp_path: Path) -> None:
    write_json(tmp_path / EXPLAIN.name, {"is_complete": True}, format=2)
    assert EXPLAIN.read(tmp_path)["metadata"] is None
