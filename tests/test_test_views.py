"""Test-time views: what an engine averages, what a model folder may say of them, and how they are chosen."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dermkit as dk
from dermkit.errors import UntrustedError
from dermkit.images.preprocess import Preprocessing
from dermkit.models.checksums import write_checksums
from dermkit.models.inference import InferenceEngine
from dermkit.models.view_pixels import view_of
from dermkit.models.views import ALL_VIEWS, DIHEDRAL_VIEWS, check_views
from dermkit.pipeline.view_choice import choose_views
from dermkit.prediction.load import load_model
from dermkit.recipes.schema import Recipe

SIZE = 16
PLAIN = Preprocessing(
    size=SIZE,
    resize="squash",
    interpolation="bilinear",
    divide_by=255.0,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
)


class Corner(nn.Module):
    """Logits from weights of single pixels: another view is another score."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * SIZE * SIZE, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layer(x.contiguous(memory_format=torch.contiguous_format).flatten(1))
        return logits


class Mean(nn.Module):
    """Logits from the mean colour: every symmetry gives the same."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layer(x.double().mean((2, 3)).float())
        return logits


@pytest.fixture(scope="module")
def images() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(4).integers(0, 256, (9, SIZE, SIZE, 3)).astype(np.uint8)


def corner() -> Corner:
    torch.manual_seed(1)
    return Corner().eval()


def test_eight_symmetries_are_the_mean_over_those_of_numpy(images: np.ndarray[Any, Any]) -> None:
    net = corner()
    weight, bias = (tensor.detach().double().numpy() for tensor in (net.layer.weight, net.layer.bias))
    expected = np.zeros((9, 3))
    for flipped in (images, images[:, :, ::-1]):
        for turns in range(4):
            turned = np.rot90(flipped, turns, axes=(1, 2)).transpose(0, 3, 1, 2).reshape(9, -1) / 255.0
            e = np.exp(turned @ weight.T + bias)
            expected += e / e.sum(axis=1, keepdims=True) / 8
    found = InferenceEngine(net, PLAIN, views=DIHEDRAL_VIEWS)(images)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found - InferenceEngine(net, PLAIN)(images)).max() > 0.01


def test_one_view_is_bit_for_bit_what_it_was_and_a_symmetric_net_is_not_changed(
    images: np.ndarray[Any, Any],
) -> None:
    net = corner()
    with torch.inference_mode():
        logits = net(torch.from_numpy(images / np.float32(255.0)).permute(0, 3, 1, 2))
    plain = InferenceEngine(net, PLAIN)(images)
    np.testing.assert_allclose(plain, torch.softmax(logits.double(), 1).numpy(), atol=1e-6)
    np.testing.assert_array_equal(plain, InferenceEngine(net, PLAIN, views=["identity"])(images))
    symmetric = Mean().eval()
    np.testing.assert_allclose(
        InferenceEngine(symmetric, PLAIN, views=DIHEDRAL_VIEWS)(images),
        InferenceEngine(symmetric, PLAIN)(images), atol=1e-7,
    )  # fmt: skip


def test_an_image_has_the_same_score_alone_and_among_others(images: np.ndarray[Any, Any]) -> None:
    engine = InferenceEngine(corner(), PLAIN, views=ALL_VIEWS)
    together = engine(images)
    alone = np.concatenate([engine(images[number : number + 1]) for number in range(9)])
    np.testing.assert_allclose(alone, together, atol=1e-6)
    assert (alone.argmax(1) == together.argmax(1)).all()


def test_crops_show_their_corner() -> None:
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    inputs = torch.stack([y, x, y + x])[None]
    means = {
        corner: view_of(inputs, f"crop_{corner}")[0, :2].mean((1, 2)).tolist()
        for corner in ("top_left", "top_right", "bottom_left", "bottom_right", "centre")
    }
    expected = {  # of 14 of 16 pixels, from 0, 1 or 2 on
        "top_left": [6.5, 6.5], "top_right": [6.5, 8.5], "bottom_left": [8.5, 6.5], "bottom_right": [8.5, 8.5],
        "centre": [7.5, 7.5],
    }  # fmt: skip
    assert {name: pytest.approx(values, abs=0.02) for name, values in expected.items()} == means
    assert view_of(inputs, "crop_centre").shape == inputs.shape


@pytest.mark.parametrize(
    ("views", "said"),
    [
        ([], "0 views"), (["identity"] * 2, "twice"), (["identity"] * 10**5, "100000 views"), (["turn"], "'turn'"),
        ([["identity"]], "is not one of"), ("identity", "no list of views"), ([None], "is not one of"),
        ({"identity": 1}, "no list of views"), (["identity\u0000" * 1000], "is not one of"),
    ],
)  # fmt: skip
def test_hostile_views_are_refused(views: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        check_views(views)
    assert len(str(caught.value)) < 400


def test_the_set_with_the_lowest_loss_is_chosen_and_of_equals_the_smallest() -> None:
    labels = np.zeros(4, dtype=np.int64)
    p = np.full((13, 4, 2), 0.5)
    assert choose_views(p, labels).name == "identity"
    p[1:8] = [0.9, 0.1]
    choice = choose_views(p, labels)
    assert (choice.name, choice.n) == ("dihedral", 4)
    assert choice.log_loss == pytest.approx(
        {name: -np.log(value) for name, value in (("identity", 0.5), ("dihedral", 0.85), ("dihedral_crops", 9.3 / 13))}
    )  # fmt: skip
    assert choice.views == DIHEDRAL_VIEWS
    assert "on the 4 validation images (identity 0.6931, dihedral 0.1625" in choice.sentence()


@pytest.fixture(scope="module")
def chosen(binary: Path, tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = replace(tiny, name="tiny-views", test_views="choose")
    settings = dk.RunSettings(out=tmp_path_factory.mktemp("views"), device="cpu")
    return dk.train(recipe, dk.load_dataset(binary), settings=settings)


def test_a_run_scores_with_the_views_that_its_model_says(chosen: Path, trained: Path, binary: Path) -> None:
    model = load_model(chosen)
    choice = [
        text for text in json.loads((chosen / "run.json").read_text())["warnings"] if "Test-time views" in text
    ]
    assert len(choice) == 1
    losses = dict(part.split(" ") for part in choice[0].partition("(")[2].partition(")")[0].split(", "))
    rows = dk.load_model(trained)  # the same weights: views are no part of training
    assert {name: bool(torch.equal(a, rows.nets[0].state_dict()[name])) for name, a in
            model.nets[0].state_dict().items()} == dict.fromkeys(model.nets[0].state_dict(), True)  # fmt: skip
    import pandas as pd

    table = pd.read_csv(chosen / "predictions.csv")
    validation = table[table["split"] == "validation"]
    p = np.array([row[f"p_{row['label']}"] for row in validation.to_dict("records")])
    assert -np.log(p).mean() == pytest.approx(min(map(float, losses.values())), rel=1e-3)
    assert "lowest log loss" in (chosen / "report.html").read_text()


def test_a_model_folder_with_other_views_gives_other_scores_or_is_refused(trained: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(trained / "model", folder)
    card = json.loads((folder / "model.json").read_text())
    pixels = np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3)).astype(np.uint8)
    before = load_model(folder).probabilities(pixels)
    for views in (list(DIHEDRAL_VIEWS), ["identity", "identity"], ["turn"], [], None):
        card["members"][0]["views"] = views
        (folder / "model.json").write_text(json.dumps(card))
        write_checksums(folder)
        if views == list(DIHEDRAL_VIEWS):
            found = load_model(folder).probabilities(pixels)
            turned = [
                np.rot90(flipped, turns, (1, 2)) for flipped in (pixels, pixels[:, :, ::-1]) for turns in range(4)
            ]
            direct = np.mean(
                [load_model(trained).probabilities(np.ascontiguousarray(view)) for view in turned], axis=0
            )
            np.testing.assert_allclose(found, direct, atol=1e-6)
            assert np.abs(found - before).max() > 0
            continue
        with pytest.raises(UntrustedError, match="view"):
            load_model(folder)
