"""An export in int8: what it costs is measured on labelled images, and it is refused where too many labels change."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray

import dermkit as dk
from conftest import Invoke
from dermkit.errors import UntrustedError, UsageError
from dermkit.export import run as export_run
from dermkit.export.run import ExportOutcome, export_model
from dermkit.models.engines.graph import onnx_bytes
from dermkit.models.engines.quantisation import quantise
from dermkit.prediction.load import load_model
from dermkit.prediction.parity_images import choose_images
from dermkit.progress import Progress
from test_exported_model import rewrite, set_in

for _package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(_package, reason="dermkit[export] is not installed")


@pytest.fixture(scope="module")
def outcome(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportOutcome:
    """Return the trained net in int8, whatever it costs."""
    out = tmp_path_factory.mktemp("int8") / "out"
    return export_model(trained, to="onnx", out=out, int8=True, max_label_changes=1.0)


def test_the_products_of_the_net_are_in_8_bits(outcome: ExportOutcome) -> None:
    import onnx

    net = onnx.load(outcome.nets[0])
    kinds = [node.op_type for node in net.graph.node]
    assert kinds.count("QuantizeLinear") >= 4 and "BatchNormalization" not in kinds
    outputs = {name: node.op_type for node in net.graph.node for name in node.output}
    products = [node for node in net.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    assert products
    assert all(outputs[name] == "DequantizeLinear" for node in products for name in node.input[:2])
    about = {entry.key: entry.value for entry in net.metadata_props}
    assert json.loads(about["classes"]) == ["benign", "malignant"] and "Research use only" in net.doc_string


def test_the_cost_is_that_of_the_images_that_set_no_range(outcome: ExportOutcome, trained: Path) -> None:
    parity = json.loads((outcome.folder / "export.json").read_text())["parity"]
    images = choose_images(trained, [])
    others = images.files[1::2]
    assert parity["n_calibration_images"] == len(images.files[::2]) and parity["n_images"] == len(others) > 3
    assert parity["max_label_changes"] == 1.0 and "tolerance" not in parity
    labels = [images.labels[name][0] for name, _ in others]
    paths = [path for _, path in others]
    accuracy = []
    for folder in (outcome.folder, trained):
        model = load_model(folder)
        p = model.predict(paths)[["p_benign", "p_malignant"]].to_numpy()
        assert model.policy is not None
        predicted = model.policy.calibration.apply(p).argmax(axis=1)
        accuracy.append(
            np.mean([model.class_names[k] == label for k, label in zip(predicted, labels, strict=True)])
        )
    cost = {entry["metric"]: entry for entry in parity["cost"]}
    assert list(cost) == ["accuracy", "auroc", "loss", "brier"]
    assert cost["accuracy"]["difference"] == pytest.approx(accuracy[0] - accuracy[1], abs=1e-12)
    assert {entry["n"] for entry in cost.values()} == {len(others)}
    assert parity["max_probability_difference"] < 0.2
    readme = (outcome.folder / "README.md").read_text()
    for line in outcome.comparison_lines:
        assert line.replace("_", "\\_").replace("[", "\\[") in readme
    assert f"n = {len(others)})" in readme and "int8 minus float32" in readme


def test_a_prediction_says_that_it_is_in_int8(outcome: ExportOutcome, trained: Path) -> None:
    lines: list[str] = []
    model = load_model(outcome.folder, progress=Progress(say=lines.append))
    assert lines[1].startswith("warning: its nets are in int8: ") and "README.md" in lines[1]
    assert model.engine.net_variant.endswith(", int8")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 24, 24, 3), dtype=np.uint8)
    together = model.probabilities(pixels)
    alone = np.concatenate([model.probabilities(pixels[n : n + 1]) for n in range(32)])
    np.testing.assert_allclose(alone, together, rtol=0, atol=1e-5)
    difference = np.abs(together - load_model(trained).probabilities(pixels)).max()
    assert 1e-6 < difference < 0.2, "other numbers than in float32, and near them"
    assert "exported in int8" in model.outlier_test.reason


def test_an_exported_folder_is_evaluated_on_other_images(
    outcome: ExportOutcome, binary: Path, tmp_path: Path
) -> None:
    data = dk.load_dataset(binary)
    folder = dk.evaluate(outcome.folder, dataset=data, out=tmp_path / "other").parent
    scored = pd.read_csv(folder / "predictions.csv")
    again = load_model(outcome.folder).predict([data.image_path(image_id) for image_id in scored["image_id"]])
    assert len(scored) == len(data.manifest) == len(again)
    np.testing.assert_allclose(scored["p_malignant"], again["p_malignant"], rtol=0, atol=1e-5)
    assert set(json.loads((folder / "metrics.json").read_text())["splits"])


def test_a_folder_in_int8_is_checked_too(outcome: ExportOutcome, tmp_path: Path) -> None:
    import shutil

    for number, (change, problem) in enumerate([
        (set_in("parity", "max_label_changes", value=-0.1), "labels changed in int8, and at most -0.1"),
        (set_in("parity", "n_different_labels", value=1000), "1000 of"),
        (set_in("parity", "max_label_changes", value=2.0), "at most 2.0 of them"),
        (set_in("nets", 0, "test_pictures", value=[[1.0, 0.0]] * 4), "int8 does not give here what was recorded"),
        (lambda content: content["parity"].pop("max_label_changes"), "not that of an exported model"),
        (set_in("precision", value="float32"), "not that of an exported model"),
    ]):  # fmt: skip
        copied = Path(shutil.copytree(outcome.folder, tmp_path / str(number)))
        rewrite(copied, change)
        with pytest.raises(UntrustedError, match=problem):
            load_model(copied)


@pytest.fixture
def flipped(trained: Path) -> bytes:
    """Return the trained net with the signs of its last layer changed, as what a broken quantisation gives."""
    model = load_model(trained)
    net = copy.deepcopy(model.nets[0])
    with torch.no_grad():
        for parameter in net.head[-1].parameters():  # type: ignore[index]
            parameter.neg_()
    return onnx_bytes(net, model.preprocessing, model.members[0].views, properties={}, description="")


def test_too_many_labels_that_change_are_refused_unless_asked(
    trained: Path, flipped: bytes, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_run, "quantise", lambda *_: flipped)
    words = ("export", trained, "--to", "onnx", "--out", tmp_path / "out", "--int8")
    code, _, messages = invoke(*words)
    assert code == 6 and "have another label than in float32 (at most 5% may)" in messages.replace(" %", "%")
    assert list(tmp_path.iterdir()) == []
    code, said, _ = invoke(*words, "--max-label-changes", "1")
    assert code == 0 and "have another label than in float32" in said and "accuracy, int8 minus float32: " in said


def test_int8_needs_real_images(trained: Path, tmp_path: Path, photograph: Path) -> None:
    lonely = load_model(trained).folder
    with pytest.raises(UsageError, match=r"--int8: 1 images are at hand \(the images that were named\)"):
        export_model(lonely, to="onnx", out=tmp_path / "out", images=[str(photograph)], int8=True)
    with pytest.raises(UsageError, match="cannot be written in int8"):
        quantise(b"", [])


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    from PIL import Image

    pixels: NDArray[Any] = np.zeros((30, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    return tmp_path / "one.png"
