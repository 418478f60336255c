"""What is not finite is never called, averaged or written: the command ends with 6, or names the line of a table."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from conftest import Invoke
from dermkit.errors import DataError, UntrustedError
from dermkit.evaluation.foreign_predictions import evaluate_foreign
from dermkit.files import read_json
from dermkit.images.preprocess import Preprocessing
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.decisions.policy import policy_from_dict
from dermkit.models.checksums import write_checksums
from dermkit.models.inference import InferenceEngine, check_finite
from dermkit.prediction.load import load_model
from dermkit.prediction.pixels import ImageScore
from dermkit.prediction.resume import score_row
from dermkit.prediction.run import predict
from dermkit.progress import Progress
from dermkit.recipes.training_specs import ComputeSpec
from dermkit.runs.predictions import write_predictions
from dermkit.training.features import _compute_features

PLAIN = Preprocessing(
    size=16, resize="squash", interpolation="bilinear", divide_by=1.0, mean=(0.0,) * 3, std=(1.0,) * 3
)


class Overflowing(nn.Module):
    """Finite on ordinary pictures, inf on an image that is white all over."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        grey = x.mean(dim=(1, 2, 3))[:, None]
        return torch.where(grey > 254, torch.inf, grey) * self.weight


@pytest.fixture
def model(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained / "model", tmp_path / "model"))


def spoil(model: Path, number: float) -> None:
    """Put one number into the head and make the checksums right again."""
    path = model / "member-0.safetensors"
    state = load_file(path)
    name = next(name for name in state if name.startswith("head") and name.endswith("bias"))
    state[name][0] = number
    save_file(state, path)
    write_checksums(model)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_model_whose_weights_are_not_finite_ends_predict_and_evaluate_with_6(
    model: Path, binary: Path, tmp_path: Path, invoke: Invoke, number: float
) -> None:
    spoil(model, number)
    images = str(next((binary.parent / "images").rglob("*.jpg")))
    code, _, said = invoke("predict", model, images, "--out", tmp_path / "out")
    assert code == 6
    assert "not finite (nan or inf): head" in said
    assert not (tmp_path / "out" / "predictions.csv").exists()
    code, _, said = invoke("evaluate", model, "--on", binary, "--out", tmp_path / "evaluated")
    assert code == 6
    assert "not finite" in said
    assert not (tmp_path / "evaluated" / "metrics.json").exists()


def test_weights_that_are_finite_and_overflow_are_seen_before_any_image(model: Path, tmp_path: Path) -> None:
    path = model / "member-0.safetensors"
    state = {
        name: tensor * 1e30 if tensor.is_floating_point() else tensor for name, tensor in load_file(path).items()
    }
    save_file(state, path)
    write_checksums(model)
    picture = tmp_path / "lesion.png"
    Image.new("RGB", (32, 32)).save(picture)
    with pytest.raises(UntrustedError, match=r"not finite .* for 4 of 4 images: test picture 1"):
        predict(model, [str(picture)], out=tmp_path / "out")


def test_one_image_that_overflows_is_named_and_never_called_negative() -> None:
    engine = InferenceEngine(Overflowing().eval(), PLAIN)
    batch = np.zeros((3, 16, 16, 3), np.uint8)
    assert np.isfinite(engine(batch)).all()
    batch[1] = 255
    with pytest.raises(UntrustedError, match=r"for 1 of 3 images: b\.jpg\n") as refusal:
        engine(batch, ["a.jpg", "b.jpg", "c.jpg"])
    assert refusal.value.exit_code == 6
    with pytest.raises(UntrustedError, match=r"image 2 of the batch"):
        engine(batch)


def test_a_frozen_backbone_that_overflows_is_not_cached() -> None:
    def make_batch(rows: Any) -> torch.Tensor:
        return torch.full((len(rows), 3, 4, 4), 255.0)

    with pytest.raises(UntrustedError, match=r"frozen backbone, in float32, .* for 2 of 2 images"):
        _compute_features(Overflowing(), ComputeSpec(precision="float32", compile=False), make_batch, np.arange(2))
    with pytest.raises(UntrustedError, match=r"for 6 of 6 .*image 5 of the batch, "):
        check_finite(torch.full((6, 2), float("nan")), "it")


def test_no_table_and_no_figure_takes_what_is_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    with pytest.raises(UntrustedError, match=r"b: its probabilities are not finite"):
        write_predictions(path, ["x", "y"], [("a", *[""] * 6, 0.5, 0.5), ("b", *[""] * 6, float("nan"), 0.5)])
    assert not path.exists()
    score = ImageScore("a.jpg", np.array([np.nan, np.nan]), None, None, "", (), None)
    with pytest.raises(UntrustedError, match=r"a\.jpg"):
        score_row(0, score, {})
    one = np.zeros(1, np.int64)
    with pytest.raises(ValueError, match=r"finite"):
        ScoredSet(["x", "y"], np.array([True, False]), one, one, np.array([[np.nan, 1.0]]), one)


@pytest.mark.parametrize("text", ["nan", "", "inf", "1e999", "NA"])
@pytest.mark.parametrize("column", ["mel", "nv", "bcc"])
def test_a_table_names_the_line_and_the_class_of_a_number_that_is_none(
    tmp_path: Path, text: str, column: str
) -> None:
    rows = [{"image": f"i{n}", "label": "mel", "mel": "0.6", "nv": "0.4", "bcc": "0.0"} for n in range(3)]
    rows[1][column] = text
    file = tmp_path / "p.csv"
    file.write_text("\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)]))
    with pytest.raises(DataError, match=rf"p_{column} is not a finite number: line 3"):
        evaluate_foreign(file, dataset=None, out=tmp_path / "out", progress=Progress())
    assert not (tmp_path / "out").exists()


def test_a_number_of_json_that_overflows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"format": 1, "threshold": 1e999}')
    with pytest.raises(DataError, match=r"1e999 is not a finite number"):
        read_json(path, format=1, error=DataError)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("calibration", "temperature"), 0.0),
        (("calibration", "temperature"), 1e-300),
        (("calibration", "bias", 0), 1e6),
        (("operating_points", 0, "threshold"), 1.5),
        (("operating_points", 0, "threshold"), True),
        (("operating_points", 0, "guaranteed"), "false"),
        (("operating_points", 0, "rate"), "accuracy"),
        (("conformal", "min_probability", 0), -1),
        (("conformal", "n_images", 0), -1),
        (("referral", 0, "min_confidence"), float("nan")),
        (("n_validation_images",), 2.5),
    ],
)
def test_every_number_of_a_policy_has_its_range(trained: Path, path: tuple[str | int, ...], value: Any) -> None:
    policy = json.loads((trained / "model" / "model.json").read_text())
    policy_from_dict(policy)
    place: Any = policy
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises((ValueError, TypeError)):
        policy_from_dict(policy)


def test_the_model_of_the_tests_is_finite(trained: Path) -> None:
    assert load_model(trained).policy is not None
