"""An export in int8: what it costs is measured on labelled images, and it is refused where too many labels change."""

import copy
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import dermkit as dk
from conftest import Invoke
from dermkit.errors import DataError, OutputError, UntrustedError, UsageError
from dermkit.export import run as export_run
from dermkit.export.int8 import (
    CalibrationInputs,
    check_compared,
    check_label_changes,
    cost_lines,
    divide_images,
    int8_parity,
)
from dermkit.export.run import ExportOutcome, export_model
from dermkit.models.card import MODEL_CARD_FILE
from dermkit.models.checksums import write_checksums
from dermkit.models.engines.graph import onnx_bytes
from dermkit.models.engines.quantisation import quantise
from dermkit.monitoring.model_reference import read_monitored_model
from dermkit.prediction.load import load_model
from dermkit.prediction.parity import ParityReport
from dermkit.prediction.parity_images import BATCH_SIZE, ParityImages
from dermkit.prediction.pixels import decode_image
from dermkit.progress import Progress
from dermkit.serving.jobs import WorkerSettings
from dermkit.serving.schemas import ModelAnswer
from dermkit.serving.served_model import ServedModel
from test_exported_model import rewrite, set_in

for _package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(_package, reason="dermkit[export] is not installed")


N_IMAGES = 80


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ParityImages:
    """Return pictures with a label each, as many as an export in int8 needs, in place of those of a larger run."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    files, labels = [], {}
    for number in range(N_IMAGES):
        coarse = rng.integers(0, 256, (6, 6, 3)).astype(np.uint8)
        path = folder / f"{number:02}.png"
        Image.fromarray(coarse).resize((40, 40)).save(path)
        files.append((path.name, path))
        labels[path.name] = (("benign", "malignant")[number // 2 % 2], number)
    return ParityImages("validation images of the run", tuple(files), labels)


@pytest.fixture(scope="module")
def decodings() -> Counter[str]:
    """Return how often `outcome` decoded each image."""
    return Counter()


@pytest.fixture(scope="module")
def outcome(
    trained: Path, images: ParityImages, decodings: Counter[str], tmp_path_factory: pytest.TempPathFactory
) -> ExportOutcome:
    """Return the trained net in int8, whatever it costs."""
    out = tmp_path_factory.mktemp("int8") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_run, "choose_images", lambda *_: images)

        def count_decoding(path: Path, name: str, *arguments: Any, **options: Any) -> Any:
            decodings[name] += 1
            return decode_image(path, name, *arguments, **options)

        patch.setattr("dermkit.prediction.parity_images.decode_image", count_decoding)
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


def test_an_image_is_decoded_for_what_it_is_used_for_and_not_to_be_counted(
    outcome: ExportOutcome, images: ParityImages, decodings: Counter[str]
) -> None:
    """Once more are decoded those of the first batch of each half, which show that there is an image at all."""
    for half in (images.files[::2], images.files[1::2]):
        names = [name for name, _ in half]
        assert [decodings[name] for name in names] == [2] * BATCH_SIZE + [1] * (len(names) - BATCH_SIZE)


def test_images_that_set_no_range_since_they_are_broken_are_not_counted(
    trained: Path, images: ParityImages, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    files = (*images.files[:5], ("broken.png", tmp_path / "broken.png"), *images.files[5:40])
    inputs = CalibrationInputs(load_model(trained), 0, replace(images, files=files), size=16)
    assert inputs.n_images == 0
    parts = [len(batch["pixels"]) for batch in inputs]
    assert sum(parts) == inputs.n_images == 40 and max(parts) == 16


def test_the_cost_is_that_of_the_images_that_set_no_range(
    outcome: ExportOutcome, trained: Path, images: ParityImages
) -> None:
    parity = json.loads((outcome.folder / "export.json").read_text())["parity"]
    comparison = images.files[1::2]
    assert parity["n_calibration_images"] == len(images.files[::2]) and parity["n_images"] == len(comparison) > 3
    assert parity["max_label_changes"] == 1.0 and "tolerance" not in parity
    labels = [images.labels[name][0] for name, _ in comparison]
    paths = [path for _, path in comparison]
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
    assert {entry["n"] for entry in cost.values()} == {len(comparison)}
    assert parity["max_probability_difference"] < 0.2
    readme = (outcome.folder / "README.md").read_text()
    for line in outcome.comparison_lines:
        assert line.replace("_", "\\_").replace("[", "\\[") in readme
    assert f"n = {len(comparison)})" in readme and "int8 minus float32" in readme


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
    table = pd.read_csv(folder / "predictions.csv")
    again = load_model(outcome.folder).predict([data.image_path(image_id) for image_id in table["image_id"]])
    assert len(table) == len(data.manifest) == len(again)
    np.testing.assert_allclose(table["p_malignant"], again["p_malignant"], rtol=0, atol=1e-5)
    assert set(json.loads((folder / "metrics.json").read_text())["splits"])


def test_a_folder_in_int8_is_checked_too(outcome: ExportOutcome, tmp_path: Path) -> None:
    for number, (change, problem) in enumerate([
        (set_in("parity", "max_label_changes", value=-0.1), "labels changed in int8, and at most -0.1"),
        (set_in("parity", "n_different_labels", value=1000), "1000 of"),
        (set_in("parity", "max_label_changes", value=2.0), "at most 2.0 of them"),
        (set_in("nets", 0, "test_pictures", value=[[1.0, 0.0]] * 4), "int8 does not give here what was recorded"),
        (
            lambda content: content["parity"].update(n_different_labels=0, max_label_changes=0.05),
            "more than 0.05 of all",
        ),
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
    trained: Path,
    flipped: bytes,
    images: ParityImages,
    tmp_path: Path,
    invoke: Invoke,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(export_run, "quantise", lambda *_: flipped)
    monkeypatch.setattr(export_run, "choose_images", lambda *_: images)
    words = ("export", trained, "--to", "onnx", "--out", tmp_path / "out", "--int8")
    code, _, messages = invoke(*words)
    assert (
        code == 6
        and "have another label than in float32 (95 % interval " in messages
        and "at most 5% may" in messages
    )
    assert list(tmp_path.iterdir()) == []
    code, sentences, _ = invoke(*words, "--max-label-changes", "1")
    assert (
        code == 0
        and "have another label than in float32" in sentences
        and "accuracy, int8 minus float32: " in sentences
    )


def test_int8_needs_real_images(trained: Path, tmp_path: Path, photograph: Path) -> None:
    lonely = load_model(trained).folder
    with pytest.raises(UsageError, match=r"--int8: 1 images are at hand \(the images that were named\)"):
        export_model(lonely, to="onnx", out=tmp_path / "out", images=[str(photograph)], int8=True)
    with pytest.raises(UsageError, match="cannot be written in int8"):
        quantise(b"", [])


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    pixels: NDArray[Any] = np.zeros((30, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    return tmp_path / "one.png"


# Which images, and how many ------------------------------------------------------------------------------------------


def test_the_images_that_set_the_ranges_lie_at_equal_steps_over_all_of_them() -> None:
    for n, n_calibration in ((60, 30), (257, 86), (1000, 125)):
        files = tuple((f"{number:04}", Path(f"{number:04}")) for number in range(n))
        halves = divide_images(ParityImages("made", files))
        places = [int(name) for name, _ in halves.calibration.files]
        assert len(places) == n_calibration and places[-1] > 0.98 * n - 8 and len(set(np.diff(places))) == 1
        assert sorted({*halves.calibration.files, *halves.comparison.files}) == list(files)
        assert len(halves.comparison.files) == n - n_calibration
    with pytest.raises(UsageError, match=r"59 images are at hand .* at least 60 real ones"):
        divide_images(ParityImages("made", files[:59]))


def report_of(n_images: int, n_changes: int) -> ParityReport:
    p = np.full((n_images, 2), 0.5)
    return ParityReport("made", n_images, "", 0.0, n_changes, 0, 0.0, 32, 0.0, (), p, p)


def test_few_images_do_not_show_that_few_labels_change() -> None:
    for n_images, n_changes, limit in ((72, 0, 0.05), (73, 1, 0.05), (400, 12, 0.05), (30, 9, 0.3)):
        with pytest.raises(UntrustedError, match=r"95 % interval \d+\.\d% to \d+\.\d%; at most"):
            check_label_changes(report_of(n_images, n_changes), limit)
    for n_images, n_changes, limit in ((73, 0, 0.05), (400, 11, 0.05), (30, 30, 1.0)):
        check_label_changes(report_of(n_images, n_changes), limit)
    with pytest.raises(UsageError, match="29 images are at hand"):
        check_compared(report_of(29, 0))
    check_compared(report_of(30, 0))


def test_images_that_cannot_be_opened_are_said_whichever_half_they_are_in(
    trained: Path, images: ParityImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    monkeypatch.setattr(export_run, "_write_net", lambda *_: pytest.fail("a net was written first"))
    for half in (0, 1):
        files = [(f"{n}", broken) if n % 2 == half else file for n, file in enumerate(images.files)]
        changed_folder = ParityImages("made", tuple(files))
        monkeypatch.setattr(export_run, "choose_images", lambda *_, changed_folder=changed_folder: changed_folder)
        with pytest.raises(DataError, match="none of 40 files can be used as an image"):
            export_model(trained, to="onnx", out=tmp_path / "out", int8=True)


# What the comparison cannot tell -------------------------------------------------------------------------------------


@dataclass
class OtherModel:
    """What the comparison asks of a model."""

    metadata_fields: tuple[str, ...]
    members: tuple[int, ...]


def test_the_cost_of_random_metadata_is_unknown_and_several_nets_are_said(images: ParityImages) -> None:
    parity = int8_parity(
        cast(Any, OtherModel(("age",), (0, 1))), report_of(40, 0), divide_images(images).comparison, 0.2,
        n_calibration_images=40,
    )  # fmt: skip
    assert parity["cost"] is None and parity["n_calibration_images"] == 40
    lines = " ".join(cost_lines(parity))
    assert "age" in lines and "random numbers" in lines and "training images of the others" in lines
    assert "not measured, since the other inputs were random numbers" in lines


# Not passed for float32 ----------------------------------------------------------------------------------------------


def serving_model(folder: Path) -> ServedModel:
    return ServedModel(WorkerSettings(folder, None, None, "cpu", 1, 10**7, 10**9))


def test_what_is_served_and_monitored_is_not_passed_for_float32(
    outcome: ExportOutcome, trained: Path, tmp_path: Path
) -> None:
    original, model = load_model(trained), load_model(outcome.folder)
    assert (original.precision, model.precision) == ("float32", "int8")
    facts, floats = (
        ModelAnswer(**serving_model(folder).facts(), limits={}) for folder in (outcome.folder, original.folder)
    )
    assert (facts.model.precision, floats.model.precision) == ("int8", "float32")
    assert facts.model.model_key != floats.model.model_key and facts.model.sha256 == floats.model.sha256
    assert floats.operating_points and floats.evaluation and not floats.why_no_test_figures
    assert any(point.test_sensitivity for point in floats.operating_points)
    assert not any(point.test_sensitivity or point.test_specificity for point in facts.operating_points)
    assert facts.evaluation is None and "in int8" in facts.performance and "in int8" in facts.warnings[0]
    monitored, reference = (read_monitored_model(folder) for folder in (outcome.folder, original.folder))
    assert (monitored.key, reference.key) == (facts.model.model_key, floats.model.model_key)
    assert reference.test_rates and not monitored.test_rates
    other = Path(shutil.copytree(outcome.folder, tmp_path / "other"))
    (other / "net-0.onnx").write_bytes(outcome.nets[0].read_bytes() + b"\x72\x00")
    write_checksums(other)
    assert read_monitored_model(other).key != monitored.key, "other nets, other answers"


def test_the_served_card_is_the_verified_one(trained: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained / "model", tmp_path / "model"))
    model = serving_model(folder)
    (folder / MODEL_CARD_FILE).write_text("Always right.")
    assert model.facts()["card"] == (trained / "model" / MODEL_CARD_FILE).read_text(encoding="utf-8")


# What went wrong while it was quantised ------------------------------------------------------------------------------


def test_a_full_disk_and_a_broken_image_are_not_faults_of_the_net(
    flipped: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(error: Exception) -> Iterator[Any]:
        raise error
        yield

    for error in (MemoryError(), DataError("an image")):
        with pytest.raises(type(error)):
            quantise(flipped, fail(error))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(OutputError, match="absent: cannot be written"):
        quantise(flipped, [])
