"""An exported folder predicts without torch, as the model folder that it was exported from does with torch."""

import csv
import io
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import dermkit as dk
from conftest import Invoke
from dermkit.data.manifest import LesionClass
from dermkit.errors import ResourceError, RunInterrupt, UntrustedError, UsageError
from dermkit.export.run import export_model
from dermkit.images.decode import open_image
from dermkit.metrics.decisions.guarantees import BrokenGuarantee
from dermkit.models.card import MODEL_JSON, write_policy
from dermkit.models.checksums import write_checksums
from dermkit.models.engines import packages
from dermkit.models.ensemble import write_ensemble
from dermkit.models.net import Net
from dermkit.models.training_features import ReferenceFeatures, fit_training_features
from dermkit.models.training_features_file import exported_features_bytes
from dermkit.models.views import ALL_VIEWS, IDENTITY_VIEW
from dermkit.prediction import exported_model
from dermkit.prediction.exported_model import load_exported_model
from dermkit.prediction.load import load_model
from dermkit.prediction.model_folder import ModelMetadata, save_model
from dermkit.prediction.output import PredictOutcome
from dermkit.prediction.predictor import Predictor
from dermkit.prediction.run import predict
from dermkit.progress import Progress
from dermkit.recipes.schema import ModelSpec
from dermkit.recipes.training_specs import MetadataSpec
from test_active_policy import settled
from test_export import CNN, ENCODER, preprocessing_of, random_net
from test_without_torch import HOOK, RUN, python

pytest.importorskip("onnx", reason="dermkit[export] is not installed")
pytest.importorskip("onnxscript", reason="dermkit[export] is not installed")
pytest.importorskip("onnxruntime", reason="dermkit[serve] is not installed")

CLASSES = (
    LesionClass("nævus", "nevus", "benign"), LesionClass("melanoma", "melanoma", "malignant"),
    LesionClass("carcinoma", "", "malignant"),
)  # fmt: skip
BROKEN = BrokenGuarantee("sensitivity", "", 0.9, 0.7, (0.6, 0.8), 50)
N_IMAGES = 33

# What a program does with an exported folder; without torch in one process.
SCRIPT = """
import json, sys
import dermkit as dk
exported, *images = sys.argv[1:]
SLOW = {"torch", "scipy.stats", "scipy.optimize", "sklearn", "matplotlib.pyplot", "onnx"}
model = dk.load_model(exported)
results = [list(one.probabilities.values()) for one in model.predict_images(images, batch_size=4)]
frame = model.predict(images)
print(json.dumps([results, frame["predicted"].tolist(), model.class_names, sorted(set(sys.modules) & SLOW)]))
"""


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 33 photographs and a broken one."""
    folder, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for number in range(N_IMAGES):
        coarse = rng.integers(0, 256, (6, 6, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((60 + number, 50)).save(folder / f"{number:02}.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def ages(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ages") / "ages.csv"
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([("image", "age"), *((f"{n:02}", 20 + n) for n in range(0, N_IMAGES, 2))])
    return path


def save(folder: Path, net: Net, spec: ModelSpec, size: int, photographs: Path, **options: Any) -> Path:
    """Save a net with the training features of noise, and the first photograph among its training images."""
    pixel_hash = open_image(photographs / "00.png").pixel_sha256
    metadata = ModelMetadata(
        {"name": "made"}, {"name": "made", "manifest_sha256": "m"}, {}, {"seed": 0, "fold": None},
        [(pixel_hash, "", "train")],
    )  # fmt: skip

    def write(training_reference: ReferenceFeatures | None) -> Path:
        return save_model(
            folder, net, spec=spec, preprocessing=preprocessing_of(size), metadata=metadata,
            training_features=training_reference, **options,
        )  # fmt: skip

    noise = np.random.default_rng(0).integers(0, 256, (90, size, size, 3), dtype=np.uint8)
    (features,) = load_model(write(None)).features(noise)
    assert features is not None
    return write(
        fit_training_features(
            features[:40], features[40:], labels=np.zeros(40, np.int64), groups=np.arange(40),
            validation_groups=np.arange(50), pixel_keys=np.arange(40, dtype=np.uint64),
            image_ids=[f"clinic/patient{n}" for n in range(40)],
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def ensemble(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model of two nets: one with all views and metadata, one of another size and order of classes.

    It has a decision policy, a guarantee that its test images broke, and training features.
    """
    folder = tmp_path_factory.mktemp("ensemble")
    with_age = replace(CNN, metadata=MetadataSpec(fields=("age",), p_unknown=0.0))
    members = [
        save(folder / "a", random_net(with_age, 0, ENCODER.width), with_age, 24, photographs, classes=CLASSES,
             views=ALL_VIEWS, encoder=ENCODER),
        save(folder / "b", random_net(CNN, 1), CNN, 32, photographs, classes=CLASSES[::-1], views=IDENTITY_VIEW),
    ]  # fmt: skip
    model = write_ensemble(folder / "model", members, weights=[0.6, 0.4])
    test_evaluation = {
        "split": "test", "n": 50, "outcome": "care", "verdict": "It broke a guarantee.",
        "figures": {"auroc": "0.7 (n = 50)"},
        "broken_guarantees": [{**BROKEN.as_dict(), "sentence": "Broken guarantee."}],
    }  # fmt: skip
    write_policy(model, settled().as_dict(), evaluation=test_evaluation)
    return model


@pytest.fixture(scope="module")
def exported_folder(ensemble: Path, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "onnx"
    return export_model(ensemble, to="onnx", out=out, images=[str(photographs)]).folder


@pytest.fixture
def folder_copy(exported_folder: Path, tmp_path: Path) -> Path:
    """Return a copy of the exported folder that a test may spoil."""
    return Path(shutil.copytree(exported_folder, tmp_path / "copy"))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object], name: str = "export.json") -> None:
    """Change a JSON of an exported folder, and make its checksums right again."""
    content = json.loads((folder / name).read_text(encoding="utf-8"))
    change(content)
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    write_checksums(folder)


# The same answers -----------------------------------------------------------------------------------------------------

NAMES = ("predictions.csv", "decisions.csv", "out_of_distribution.csv", "refused.csv", "metadata.csv")


def assert_same_table(one: Path, other: Path, tolerance: float) -> None:
    """Compare two tables: the same words, numbers within a tolerance."""
    first, second = (pd.read_csv(path, keep_default_na=False) for path in (one, other))
    assert first.columns.tolist() == second.columns.tolist() and len(first) == len(second)
    for column in first:
        if first[column].dtype == np.float64:
            np.testing.assert_allclose(second[column], first[column], rtol=0, atol=tolerance, err_msg=one.name)
        else:
            assert second[column].tolist() == first[column].tolist(), (one.name, column)


def test_the_command_gives_without_torch_what_torch_gives(
    ensemble: Path, exported_folder: Path, photographs: Path, ages: Path, tmp_path: Path
) -> None:
    """Two nets, all views, metadata, decisions, referral, foreign images, a refusal, a training image, warnings."""
    options: dict[str, Any] = {"target": "sensitivity=.95", "coverage": 0.8, "withhold_outside": True}
    lines: list[str] = []
    other_job = predict(
        ensemble, [str(photographs)], out=tmp_path / "torch", metadata=ages, batch_size=32,
        progress=Progress(say=lines.append), **options,
    )  # fmt: skip
    assert (other_job.n_scored, other_job.n_rejected, other_job.n_training_images) == (
        N_IMAGES,
        1,
        1,
    ) and other_job.n_outside
    (tmp_path / "sitecustomize.py").write_text(HOOK)
    words = [
        "predict",
        exported_folder,
        photographs,
        "--metadata",
        ages,
        "--target",
        "sensitivity=.95",
        "--coverage",
        "0.8",
    ]
    words.append("--withhold-outside")
    commands = [
        [*words, "--out", tmp_path / "free", "--batch-size", "32"],
        [*words, "--out", tmp_path / "alone", "--batch-size", "1"],
        ["predict", ensemble, photographs, "--out", tmp_path / "none"],
    ]
    process = python(tmp_path, "-c", RUN, json.dumps([[str(word) for word in line] for line in commands]))
    assert process.stdout.count("exit 7") == 2, process.stderr
    for name in NAMES:
        assert_same_table(tmp_path / "torch" / name, tmp_path / "free" / name, 1e-4)
        assert_same_table(tmp_path / "free" / name, tmp_path / "alone" / name, 1e-5)
    told_json, free_json = (
        json.loads((tmp_path / name / "predict.json").read_text()) for name in ("torch", "free")
    )
    assert free_json.pop("inference_mode").startswith("ONNX Runtime 1.") and told_json.pop("inference_mode")
    places = ("training_images", "policy", "metadata", "model_sha256", "notes", "n_scored", "n_refused", "device")
    assert {name: free_json[name] for name in places} == {name: told_json[name] for name in places}
    assert free_json["out_of_distribution"]["n_outside"] == other_job.n_outside
    assert (
        f"engine: ONNX Runtime {packages.installed_version('onnxruntime')}, which reads this folder"
        in process.stderr
    )
    remarks = [line for line in lines if "images scored or refused" not in line]
    assert any(line.startswith("warning: ") and "sensitivity" in line for line in remarks), (
        "of the broken guarantee"
    )
    assert [line for line in remarks if process.stderr.count(line) != 2] == [], "the same warnings and remarks"
    # A model folder there: refused, with the two ways on.
    assert "exit 2" in process.stdout and "are run by torch, which cannot be imported here: " in process.stderr
    assert "pip install 'dermkit[train]'" in process.stderr and "dermkit export MODEL --to onnx" in process.stderr
    assert not (tmp_path / "none").exists()


def test_python_gives_without_torch_what_torch_gives(
    ensemble: Path, exported_folder: Path, photographs: Path, tmp_path: Path
) -> None:
    images = [str(photographs / f"{number:02}.png") for number in range(9)]
    expected = load_model(ensemble).predict(images)
    (tmp_path / "sitecustomize.py").write_text(HOOK)
    process = python(tmp_path, "-c", SCRIPT, exported_folder, *images)
    assert process.returncode == 0, process.stderr
    results, labels, names, imported_modules = json.loads(process.stdout)
    assert (
        labels == expected["predicted"].tolist()
        and names == [one.name for one in CLASSES]
        and imported_modules == []
    )
    np.testing.assert_allclose(results, expected[[f"p_{name}" for name in names]], rtol=0, atol=1e-4)


def test_both_engines_run_an_onnx_folder_and_openvino_its_own(
    exported_folder: Path, ensemble: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openvino = pytest.importorskip("openvino")
    from dermkit.models.engines import graph

    nets = iter([(exported_folder / f"net-{number}.onnx").read_bytes() for number in range(2)])
    monkeypatch.setattr(graph, "onnx_bytes", lambda *_args, **_texts: next(nets))  # the same again takes seconds
    intel = export_model(ensemble, to="openvino", out=tmp_path / "intel", images=[str(photographs)]).folder
    pixels = [
        np.random.default_rng(n).integers(0, 256, (5, size, size, 3), np.uint8) for n, size in ((0, 24), (1, 32))
    ]
    expected = load_model(ensemble).probabilities(pixels)
    lines: list[str] = []
    models = [
        load_exported_model(exported_folder, engine="openvino", progress=Progress(say=lines.append)), load_model(intel),
        load_exported_model(intel, engine="auto"),
    ]  # fmt: skip
    assert lines[0].startswith(f"engine: OpenVINO {openvino.__version__.split('-')[0]}")
    for model in models:
        np.testing.assert_allclose(model.probabilities(pixels), expected, rtol=0, atol=1e-5)
        assert model.engine.net_variant.startswith("OpenVINO 20") and model.sha256 == load_model(ensemble).sha256
    with pytest.raises(UsageError, match="was exported to openvino: ONNX Runtime cannot read it"):
        load_exported_model(intel, engine="onnxruntime")
    (intel / "net-1.bin").write_bytes((intel / "net-1.bin").read_bytes()[:-1] + b"?")
    with pytest.raises(UntrustedError, match=r"net-1\.bin: its bytes are not those that were saved"):
        load_model(intel)


def test_a_stopped_prediction_goes_on(
    exported_folder: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = Predictor._score

    def stop(self: Predictor, batch: Any, names: Any = ()) -> Any:
        if any(name.startswith("2") for name in names):
            raise KeyboardInterrupt
        return score(self, batch, names)

    def run(folder: str, **options: Any) -> PredictOutcome:
        return predict(
            exported_folder, [str(photographs)], out=tmp_path / folder, batch_size=4, workers=1, **options
        )

    with monkeypatch.context() as patch, pytest.raises(RunInterrupt):
        patch.setattr(Predictor, "_score", stop)
        run("stopped")
    lines: list[str] = []
    run("stopped", progress=Progress(say=lines.append))
    assert any(line.startswith("going on: 20 of 34 images") for line in lines), lines
    run("whole")
    for name in ("predictions.csv", "decisions.csv", "refused.csv"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_model_travels_to_another_process_as_its_folder(exported_folder: Path) -> None:
    model = load_model(exported_folder)
    again: Predictor = pickle.loads(pickle.dumps(model))  # noqa: S301 - the test's own bytes
    assert again.files_sha256 == model.files_sha256 and again.runtime.device_type == "cpu"
    assert model.model_key and model.batch_size == 16


def test_other_commands_say_that_they_need_torch_nets(
    exported_folder: Path, photographs: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"its nets are run by ONNX Runtime 1.*, and this needs those of torch"):
        export_model(exported_folder, to="onnx", out=tmp_path / "again", images=[str(photographs)])
    with pytest.raises(UsageError, match="this needs those of torch"):
        dk.explain(exported_folder, [str(photographs / "01.png")], out=tmp_path / "maps")


# What the folder says -------------------------------------------------------------------------------------------------


def test_the_folder_names_no_training_image(exported_folder: Path, ensemble: Path) -> None:
    assert any(b"clinic/patient7" in path.read_bytes() for path in ensemble.iterdir())
    assert not any(b"clinic" in path.read_bytes() for path in exported_folder.iterdir())
    names = {path.name for path in exported_folder.iterdir()}
    assert names == {
        "net-0.onnx", "net-1.onnx", "export.json", "model.json", "seen.csv", "training_features-0.npz",
        "training_features-1.npz", "README.md", "MODEL_CARD.md", "SHA256SUMS",
    }  # fmt: skip
    for path in exported_folder.glob("*.npz"):
        with np.load(path) as archive:
            assert set(archive.files) == {"format", "mean", "axes", "points", "labels", "calibration"}


def test_a_later_format_of_the_card_breaks_no_exported_folder(
    folder_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def migrate(card: dict[str, Any]) -> dict[str, Any]:
        return {**card, "evaluation": {**card["evaluation"], "added": []}, "format": 10}

    assert MODEL_JSON.format == 9
    later = replace(MODEL_JSON, format=10, migrations={**MODEL_JSON.migrations, 9: migrate})
    for module in ("models.model_content", "models.exported_folder"):
        monkeypatch.setattr(f"dermkit.{module}.MODEL_JSON", later)
    assert load_model(folder_copy).card["evaluation"]["added"] == []
    rewrite(folder_copy, set_in("evaluation", "n", value=49))
    with pytest.raises(UntrustedError, match=r"evaluation is not what model\.json has"):
        load_model(folder_copy)


# Refused --------------------------------------------------------------------------------------------------------------


def set_in(*places: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        target: Any = content
        for place in places[:-1]:
            target = target[place]
        target[places[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (set_in("format", value=3), "format 3, this dermkit reads format 2"),
        (set_in("format", value=1), "format 1, this dermkit reads format 2"),
        (set_in("parity", "tolerance", value=0.01), "at tolerance 0.01, and at most 0.0001 is taken"),
        (set_in("parity", "max_probability_difference", value=0.01), "max_probability_difference 0.01"),
        (set_in("parity", "batch_tolerance", value="wide"), "not that of an exported model"),
        (set_in("exported_to", value="tflite"), "exported_to 'tflite' is not one of onnx, openvino"),
        (set_in("precision", value="int3"), "precision 'int3'"),
        (set_in("model_sha256", value="0" * 64), "of another model than model.json beside it"),
        (set_in("nets", value=[]), "0 nets, and the model has 2"),
        (set_in("nets", 1, "class_order", value=[0, 1, 2]), r"nets\[1\]\.class_order is not what model\.json has"),
        (set_in("nets", 0, "preprocessing", "size", value=25), r"nets\[0\]\.preprocessing is not what"),
        (set_in("policy", "operating_points", value=[]), r"policy is not what model\.json has"),
        (set_in("classes", 0, "malignancy", value="malignant"), r"classes is not what model\.json has"),
        (set_in("nets", 0, "test_pictures", value=[[0.5, 0.5]]), "test_pictures are"),
        (lambda content: content.pop("nets"), "not that of an exported model"),
        (lambda content: content["nets"][0].pop("test_pictures"), "not that of an exported model"),
    ],
)
def test_documents_that_do_not_fit_are_refused(folder_copy: Path, change: Any, problem: str) -> None:
    rewrite(folder_copy, change)
    with pytest.raises(UntrustedError, match=problem) as failure:
        load_model(folder_copy)
    assert failure.value.exit_code == 6 and str(folder_copy / "export.json") in failure.value.message


def test_a_changed_card_is_refused(folder_copy: Path) -> None:
    rewrite(folder_copy, set_in("operating_points", value=[]), MODEL_JSON.name)
    with pytest.raises(UntrustedError, match="of another model than"):
        load_model(folder_copy)


@pytest.mark.parametrize(
    "name", ["net-0.onnx", "export.json", "model.json", "seen.csv", "training_features-0.npz", "README.md"]
)
def test_a_changed_byte_is_refused(folder_copy: Path, invoke: Invoke, photographs: Path, name: str) -> None:
    content = (folder_copy / name).read_bytes()
    (folder_copy / name).write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    code, _, messages = invoke("predict", folder_copy, photographs, "--out", folder_copy.parent / "out")
    assert code == 6 and f"{folder_copy / name}: its bytes are not those that were saved" in messages
    assert not (folder_copy.parent / "out").exists()


@pytest.mark.parametrize("name", ["net-1.onnx", "training_features-1.npz", "model.json", "seen.csv"])
def test_a_file_that_is_absent_is_named(folder_copy: Path, name: str) -> None:
    (folder_copy / name).unlink()
    write_checksums(folder_copy)
    with pytest.raises(UntrustedError, match=name.replace(".", r"\.")):
        load_model(folder_copy)


def test_an_engine_of_other_numbers_is_refused(folder_copy: Path) -> None:
    """Another processor or version may compute otherwise: the test pictures show it before an image is scored."""
    pictures = json.loads((folder_copy / "export.json").read_text())["nets"][1]["test_pictures"]
    pictures[2][0] += 2e-4
    rewrite(folder_copy, set_in("nets", 1, "test_pictures", value=pictures))
    with pytest.raises(
        UntrustedError, match=r"net-1\.onnx: ONNX Runtime 1.* does not give here what was recorded"
    ):
        load_model(folder_copy)
    shutil.copyfile(folder_copy / "net-0.onnx", folder_copy / "net-1.onnx")  # another net, with right checksums
    write_checksums(folder_copy)
    with pytest.raises((UntrustedError, ResourceError)):
        load_model(folder_copy)


def test_a_file_that_is_no_net_is_refused(folder_copy: Path) -> None:
    (folder_copy / "net-0.onnx").write_bytes(b"no net")
    write_checksums(folder_copy)
    with pytest.raises(UntrustedError, match=r"net-0\.onnx: ONNX Runtime cannot load it"):
        load_model(folder_copy)


def archive(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"no archive", archive(), archive(format=np.array([1])), archive(mean=np.zeros(3 * 2**20)),
        archive(labels=np.array([{}], dtype=object)),
    ],
    ids=["text", "empty", "one array", "too large", "pickled"],
)  # fmt: skip
def test_training_features_that_are_none_are_refused(folder_copy: Path, content: bytes) -> None:
    (folder_copy / "training_features-0.npz").write_bytes(content)
    write_checksums(folder_copy)
    with pytest.raises(UntrustedError, match=r"training_features-0\.npz: holds no training features of this net"):
        load_model(folder_copy)


def test_training_features_of_another_net_are_refused(folder_copy: Path) -> None:
    training_reference = load_model(folder_copy).training_features[0]
    assert training_reference is not None
    other = replace(training_reference, mean=training_reference.mean[:-1], axes=training_reference.axes[:, :-1])
    (folder_copy / "training_features-0.npz").write_bytes(exported_features_bytes(other))
    write_checksums(folder_copy)
    with pytest.raises(UntrustedError, match="`mean` is"):
        load_model(folder_copy)


def test_what_is_absent_is_named_with_what_to_install(
    exported_folder: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invoke: Invoke
) -> None:
    def without(*absent: str) -> None:
        def installed(package: str) -> str | None:
            return None if package in absent else "2026.0"

        monkeypatch.setattr(packages, "installed_version", installed)
        monkeypatch.setattr(exported_model, "installed_version", installed)

    words = ("predict", exported_folder, photographs, "--out", tmp_path / "out")
    without("onnxruntime", "openvino")
    code, _, messages = invoke(*words)
    assert (
        code == 2 and f"{exported_folder}, exported to onnx: the package onnxruntime is not installed" in messages
    )
    assert "pip install 'dermkit[serve]'; or pip install openvino" in messages
    code, _, messages = invoke(*words, "--engine", "openvino")
    assert code == 2 and "the package openvino is not installed" in messages
    assert "pip install 'dermkit[export]'; or pip install onnxruntime, which reads it too" in messages
    without("onnxruntime")
    assert load_exported_model(exported_folder).engine.net_variant == "OpenVINO 2026.0", (
        "the other one reads it too"
    )
    for module in (packages, exported_model):
        monkeypatch.setattr(module, "installed_version", lambda _package: "1.1")
    code, _, messages = invoke(*words)
    assert code == 2 and "the package onnxruntime 1.1 is too old" in messages
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        ("--engine", "torch", "it holds no torch net"), ("--engine", "openvno", "did you mean `openvino`"),
        ("--device", "cuda", "an exported folder computes on the CPU"), ("--device", "tpu", "--device tpu: unknown"),
    ],
)  # fmt: skip
def test_an_option_that_does_not_fit_is_refused(
    exported_folder: Path, photographs: Path, tmp_path: Path, invoke: Invoke, option: str, value: str, problem: str
) -> None:
    code, _, messages = invoke("predict", exported_folder, photographs, "--out", tmp_path / "out", option, value)
    assert code == 2 and problem in messages and not (tmp_path / "out").exists()
