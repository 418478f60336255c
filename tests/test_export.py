"""Exported models: the numbers of torch, files that a stranger can read and run, nothing left where one is refused."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image

from conftest import Cli, Invoke
from dermkit.data.manifest import LesionClass
from dermkit.errors import DataError, OutputError, ResourceError, UntrustedError, UsageError
from dermkit.export import folder as export_folder
from dermkit.export import run as export_run
from dermkit.export.folder import check_export_folder, export_place, move_into_place, scratch_folder
from dermkit.export.run import export_model, open_sessions
from dermkit.files import lock
from dermkit.images.preprocess import Preprocessing
from dermkit.models.checksums import check_hashes, write_checksums
from dermkit.models.engines import graph, packages
from dermkit.models.engines.graph import PixelNet
from dermkit.models.engines.packages import check_packages
from dermkit.models.engines.scoring import BATCH_TOLERANCE
from dermkit.models.engines.sessions import NetOutputs, OnnxRuntimeSession, OpenVinoSession, Session
from dermkit.models.ensemble import write_ensemble
from dermkit.models.metadata import MetadataEncoder
from dermkit.models.net import Net, build_net
from dermkit.models.views import ALL_VIEWS, IDENTITY_VIEW
from dermkit.models.weights import resolve_weights
from dermkit.prediction import parity
from dermkit.prediction.load import load_model
from dermkit.prediction.model_folder import ModelMetadata, save_model
from dermkit.prediction.parity import compare_nets
from dermkit.prediction.parity_images import ParityImages, choose_images
from dermkit.prediction.predictor import Predictor
from dermkit.progress import Progress
from dermkit.recipes.experiments import find_recipe
from dermkit.recipes.schema import ClassifierSpec, ModelSpec
from dermkit.recipes.training_specs import MetadataSpec
from test_without_torch import HOOK

pytest.importorskip("onnx", reason="dermkit[export] is not installed")
pytest.importorskip("onnxscript", reason="dermkit[export] is not installed")

PAGE = Path(__file__).parents[1] / "docs" / "export.md"
CLASSES = (
    LesionClass("nævus", "nevus", "benign"), LesionClass("melanoma", "melanoma", "malignant"),
    LesionClass("other", "", "indeterminate"),
)  # fmt: skip
ENCODER = MetadataEncoder(("age",), 50.0, 10.0, {}, 40, {"age": 30})
CNN = replace(find_recipe("demo").model, backbone="dermkit/cnn-s1", hidden=(8,))


def preprocessing_of(size: int, divide_by: float = 255.0) -> Preprocessing:
    scale = divide_by / 255.0
    return Preprocessing(
        size=size, resize="squash", interpolation="bilinear", divide_by=divide_by,
        mean=(0.7 / scale, 0.5 / scale, 0.4 / scale), std=(0.2 / scale, 0.3 / scale, 0.25 / scale),
    )  # fmt: skip


def random_net(spec: ModelSpec, seed: int, n_metadata: int = 0) -> Net:
    """Return a net whose weights and batch-norm statistics are random, so that a part left out is seen."""
    net = build_net(spec, len(CLASSES), weights=resolve_weights(spec, None), seed=seed, n_metadata=n_metadata)
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_(generator=generator).mul_(0.1)
            assert module.running_var is not None
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    with torch.no_grad():  # probabilities that are neither all a third nor all 0 and 1
        spread = net.eval()(torch.randn(8, 3, 32, 32, generator=generator)).std()
        for parameter in net.head[-1].parameters():  # type: ignore[index]
            parameter.div_(spread)
    return net


def save(
    folder: Path, net: Net, spec: ModelSpec, preprocessing: Preprocessing, *, views: Sequence[str] = IDENTITY_VIEW,
    classes: Sequence[LesionClass] = CLASSES, encoder: MetadataEncoder | None = None,
) -> Path:  # fmt: skip
    metadata = ModelMetadata(
        recipe={"name": "made"}, dataset={"name": "made", "manifest_sha256": "m"}, weights={},
        training={"seed": 0, "fold": None, "best": None, "stopped": None, "keep": "best"}, training_images=[],
    )  # fmt: skip
    return save_model(
        folder, net, spec=spec, classes=classes, preprocessing=preprocessing, metadata=metadata, views=views,
        encoder=encoder,
    )  # fmt: skip


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 33 images of several shapes, one of them broken."""
    folder, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for number in range(33):
        coarse = rng.integers(0, 256, (6, 6, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((60 + number, 50)).save(folder / f"{number:02}.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model of three families: an own CNN with all views and metadata, a ResNet, a vision transformer.

    They differ in size, normalisation, order of classes and weight.
    """
    folder = tmp_path_factory.mktemp("ensemble")
    metadata_spec = replace(CNN, metadata=MetadataSpec(fields=("age",), p_unknown=0.0))
    members = [
        save(folder / "a", random_net(metadata_spec, 0, ENCODER.width), metadata_spec, preprocessing_of(24),
             views=ALL_VIEWS, encoder=ENCODER)
    ]  # fmt: skip
    timm_nets: tuple[tuple[str, dict[str, Any], tuple[str, ...], float], ...] = (
        ("test_resnet", {}, ("layer3", "layer4"), 1.0), ("test_vit", {"img_size": 32, "depth": 1}, (), 255.0)
    )  # fmt: skip
    for number, (backbone, arguments, skipped, divide_by) in enumerate(timm_nets, start=1):
        spec = replace(CNN, backbone=backbone, backbone_args=arguments, skip_blocks=skipped)
        order = CLASSES if number == 1 else (CLASSES[2], CLASSES[0], CLASSES[1])
        members.append(
            save(folder / backbone, random_net(spec, number), spec, preprocessing_of(32, divide_by), classes=order)
        )
    return write_ensemble(folder / "model", members, weights=[0.5, 0.3, 0.2])


@pytest.fixture(scope="module")
def exported_folder(ensemble: Path, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the ensemble as ONNX files."""
    pytest.importorskip("onnxruntime")
    out = tmp_path_factory.mktemp("exported") / "onnx"
    outcome = export_model(ensemble, to="onnx", out=out, images=[str(photographs)])
    assert outcome.folder == out and [path.is_file() for path in outcome.nets] == [True] * 3
    return out


@pytest.fixture(scope="module")
def predictor(ensemble: Path) -> Predictor:
    return load_model(ensemble)


# The same numbers ---------------------------------------------------------------------------------------------------


def test_the_export_says_how_far_it_is_from_torch(exported_folder: Path) -> None:
    parity = json.loads((exported_folder / "export.json").read_text())["parity"]
    assert parity["n_images"] == 33 and parity["n_in_batch"] == 32
    assert parity["images"] == "the images that were named"
    assert 0 < parity["max_probability_difference"] <= 1e-5 < parity["tolerance"] == 1e-4
    assert parity["n_different_labels"] == parity["n_different_calls"] == 0
    assert parity["max_batch_difference"] <= 1e-6 and parity["max_feature_difference"] <= 1e-4
    assert "png" not in json.dumps(parity), "a name of an image may be that of a patient"


def test_openvino_runs_the_same_files_to_the_same_numbers(
    exported_folder: Path, predictor: Predictor, photographs: Path
) -> None:
    pytest.importorskip("openvino")
    sessions = [OpenVinoSession(exported_folder / f"net-{number}.onnx", n_threads=1) for number in range(3)]
    report = compare_nets(predictor, sessions, choose_images(exported_folder, [str(photographs)]))
    assert report.problem == ""
    assert report.max_probability_difference <= 1e-5 and report.n_images == 33


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda logits, features, _: (logits + np.array([0.05, 0, 0], np.float32), features), "a probability of"),
        (lambda logits, features, n: (logits * (1 + 1e-3 * (n == 1)), features), "alone and in a batch"),
        (lambda logits, features, _: (logits, features * 1.01), "a feature differs"),
        (lambda logits, features, _: (logits * np.float32("nan"), features), "a probability of"),
        (lambda logits, features, _: (logits[:, :, ::-1], features), "a probability of"),
    ],
    ids=["logits", "batch", "features", "nan", "columns"],
)
def test_a_planted_difference_is_refused(
    exported_folder: Path, predictor: Predictor, photographs: Path, change: Any, problem: str
) -> None:
    sessions: list[Any] = open_sessions(exported_folder, "onnx", 3)
    net = sessions[0]

    def altered_session(pixels: NDArray[np.uint8], metadata: NDArray[np.float32] | None = None) -> NetOutputs:
        return NetOutputs(*change(*net(pixels, metadata), len(pixels)))

    files = tuple((path.name, path) for path in sorted(photographs.glob("0*.png")))
    report = compare_nets(predictor, [altered_session, *sessions[1:]], ParityImages("these", files))
    assert problem in report.problem
    with pytest.raises(UntrustedError, match=re.escape(report.problem)):
        report.check("onnx")


def test_a_net_that_depends_on_the_batch_is_refused_on_one_image(
    exported_folder: Path, predictor: Predictor, photographs: Path
) -> None:
    sessions: list[Any] = open_sessions(exported_folder, "onnx", 3)
    net = sessions[0]

    def altered_session(pixels: NDArray[np.uint8], metadata: NDArray[np.float32] | None = None) -> NetOutputs:
        logits, features = net(pixels, metadata)
        return NetOutputs(logits * np.float32(1 + 1e-3 * (len(pixels) > 1)), features)

    one = ParityImages("this", (("01.png", photographs / "01.png"),))
    assert "alone and in a batch" in compare_nets(predictor, [altered_session, *sessions[1:]], one).problem


def test_the_comparison_is_bounded_in_memory_and_says_its_batch(
    exported_folder: Path, predictor: Predictor, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first net has 13 views; a net that depends on the batch is found in smaller ones too."""
    monkeypatch.setattr(parity, "MAX_PIXELS_AT_ONCE", 60 * 24**2)
    sessions: list[Any] = open_sessions(exported_folder, "onnx", 3)
    sizes: list[list[int]] = [[], [], []]

    def recorded(number: int, factor: float = 0.0) -> Session:
        def score(pixels: NDArray[np.uint8], metadata: NDArray[np.float32] | None = None) -> NetOutputs:
            sizes[number].append(len(pixels))
            logits, features = sessions[number](pixels, metadata)
            return NetOutputs(logits * np.float32(1 + factor * (len(pixels) > 1)), features)

        return score

    images = choose_images(exported_folder, [str(photographs)])
    report = compare_nets(predictor, [recorded(number) for number in range(3)], images)
    assert report.problem == "" and report.n_images == 33 and report.n_in_batch == 4
    assert list(map(max, sizes)) == [4, 32, 32]
    assert [sizes[0].count(size) for size in (4, 1)] == [16, 33], "32 images alone and together, 33 compared"
    report = compare_nets(predictor, [recorded(0, 1e-3), *sessions[1:]], images)
    assert report.max_batch_difference > BATCH_TOLERANCE


def test_the_graph_has_the_views_of_torch(predictor: Predictor) -> None:
    """Crops are made without antialiasing there, rotations in one batch."""
    member, images = (
        predictor.members[0],
        np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), dtype=np.uint8),
    )
    net = PixelNet(predictor.nets[0], member.preprocessing, member.views)
    with torch.inference_mode():
        probabilities, logits, _ = net(torch.from_numpy(images), torch.zeros(3, ENCODER.width))
    engine: Any = predictor.engine
    expected = engine.engines[0].view_probabilities(images)
    assert logits.shape == (3, len(ALL_VIEWS), 3)
    np.testing.assert_allclose(torch.softmax(logits, 2).permute(1, 0, 2).numpy(), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(probabilities.numpy(), expected.mean(axis=0), rtol=0, atol=1e-5)
    assert np.ptp(expected, axis=0).max() > 0.01, "the views must differ"


# What a stranger reads ------------------------------------------------------------------------------------------------


def test_the_folder_says_what_the_model_is(exported_folder: Path, ensemble: Path) -> None:
    check_hashes(exported_folder, preserved="")
    content, card = (
        json.loads((folder / name).read_text(encoding="utf-8"))
        for folder, name in ((exported_folder, "export.json"), (ensemble, "model.json"))
    )
    assert content["format"] == 2 and content["notice"] == "Research use only. Not a medical device."
    assert content["classes"] == card["classes"]
    assert content["policy"]["operating_points"] == [] and content["policy"]["conformal"] is None
    for net, member in zip(content["nets"], card["members"], strict=True):
        same = ("preprocessing", "views", "calibration", "class_order", "weight", "metadata")
        assert {name: net[name] for name in same} == {name: member[name] for name in same}
    assert sorted(content["nets"][0]["inputs"]) == ["metadata", "pixels"]
    assert content["versions"]["onnxruntime"]
    readme = (exported_folder / "README.md").read_text(encoding="utf-8")
    assert "Research use only. Not a medical device." in readme and "| 1 | melanoma | malignant |" in readme


def test_the_file_of_a_net_says_what_it_is(exported_folder: Path) -> None:
    import onnx

    net = onnx.load(exported_folder / "net-2.onnx")
    about = {entry.key: entry.value for entry in net.metadata_props}
    assert json.loads(about["classes"]) == ["other", "nævus", "melanoma"], "the columns of this net's own outputs"
    assert json.loads(about["malignant_classes"]) == ["melanoma"]
    assert json.loads(about["preprocessing"])["size"] == 32
    assert "Research use only" in net.doc_string
    (pixels,) = net.graph.input
    assert [dim.dim_param or dim.dim_value for dim in pixels.type.tensor_type.shape.dim] == ["batch", 32, 32, 3]
    data = b"".join(path.read_bytes() for path in exported_folder.iterdir())
    places = [str(Path(torch.__file__).parent), str(Path(export_run.__file__).parent), str(exported_folder.parent)]
    assert [place for place in places if place.encode() in data] == []


def test_the_scripts_of_the_docs_give_the_models_numbers(
    tmp_path: Path, photographs: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real command exports; the scripts run where torch cannot be imported."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    model = save(tmp_path / "model", random_net(CNN, 5), CNN, preprocessing_of(24))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # as of a phone that was held upright
    Image.open(photographs / "07.png").save(tmp_path / "lesion.png", exif=exif)
    (tmp_path / "sitecustomize.py").write_text(HOOK)
    process = cli("export", model, "--to", "onnx", "--out", "exported")
    assert process.returncode == 0, process.stderr
    assert "drawn lesions, since no validation images of the run are at hand" in process.stdout
    assert "exported/net-0.onnx" in process.stdout
    content = (tmp_path / "exported" / "net-0.onnx").read_bytes()
    monkeypatch.setattr(graph, "onnx_bytes", lambda *_args, **_texts: content)  # the same again takes seconds
    export_model(model, to="openvino", out=tmp_path / "intel", images=[str(photographs)])
    assert "melanoma" in (tmp_path / "intel" / "net-0.xml").read_text(encoding="utf-8")
    assert not (tmp_path / "intel" / "net-0.onnx").exists()
    for suffix in (".xml", ".bin"):
        (tmp_path / "intel" / f"net-0{suffix}").rename(tmp_path / "exported" / f"net-0{suffix}")
    scripts = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert len(scripts) == 2 and all(len(script.strip().splitlines()) <= 14 for script in scripts)
    check = "import sys\nassert 'openvino_telemetry' not in [n for n, m in sys.modules.items() if m]\n"
    ran = subprocess.run(
        [sys.executable, "-c", "".join(scripts) + check], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    expected = load_model(model).predict([tmp_path / "lesion.png"]).iloc[0]
    for line in ran.stdout.strip().splitlines():
        printed = dict(re.findall(r"'([^']+)': ([\d.e-]+)", line))
        assert len(printed) == 3
        for name, p in printed.items():
            assert float(p) == pytest.approx(expected[f"p_{name}"], abs=1e-5)


# Refused --------------------------------------------------------------------------------------------------------------


def test_validation_images_of_the_run_are_taken(trained: Path, tmp_path: Path) -> None:
    for folder in (trained, trained / "model"):
        images = choose_images(folder, [])
        assert images.source == "validation images of the run" and len(images.files) >= 5
    lonely = tmp_path / "model"
    assert choose_images(lonely, []).files == ()


def test_a_failed_export_leaves_nothing_and_an_earlier_one_stays(
    exported_folder: Path, ensemble: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy_net(_predictor: Predictor, number: int, _to: str, folder: Path, _int8: object) -> None:
        (folder / f"net-{number}.onnx").write_bytes((exported_folder / f"net-{number}.onnx").read_bytes())

    monkeypatch.setattr(export_run, "_write_net", copy_net)
    out = tmp_path / "out"
    export_model(ensemble, to="onnx", out=out, images=[str(photographs)])
    number = out.stat().st_ino
    export_model(ensemble, to="onnx", out=out, images=[str(photographs)])
    assert out.stat().st_ino != number, "an earlier export is replaced as a whole"
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(DataError, match="none of 1 files"):
        export_model(ensemble, to="onnx", out=out, images=[str(photographs / "broken.png")])
    monkeypatch.setattr(
        export_run, "open_sessions", lambda *_: [OnnxRuntimeSession(exported_folder / "net-1.onnx")] * 3
    )
    with pytest.raises(ResourceError, match="ONNX Runtime failed on 32 images"):
        export_model(ensemble, to="onnx", out=out, images=[str(photographs)])
    with pytest.raises(ResourceError, match="ONNX Runtime failed on 32 images"):
        export_model(ensemble, to="onnx", out=tmp_path / "new" / "parents" / "out", images=[str(photographs)])
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("out", "problem"),
    [
        (".", "is the folder that you are in, or holds it"), ("..", "is the folder that you are in"),
        ("link", "is a link"), ("lost", "is a link"), ("file", "is a file"), ("empty/", "is a mount point"),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_replaced_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, problem: str
) -> None:
    work = tmp_path / "my work"
    (work / "empty").mkdir(parents=True)
    (work / "link").symlink_to("empty")
    (work / "lost").symlink_to("nowhere")
    (work / "file").write_text("years of work")
    mounted = f"36 35 98:0 /vol {str(work).replace(' ', chr(92) + '040')}/empty rw - ext4 /dev/sda1 rw\n"
    (tmp_path / "mounts").write_text(mounted)
    monkeypatch.setattr(export_folder, "_MOUNTS", tmp_path / "mounts")
    monkeypatch.chdir(work)
    with pytest.raises(UsageError, match=problem) as failure:
        check_export_folder(Path(out))
    assert failure.value.remedy.startswith("name a new folder with --out, such as ")
    (tmp_path / "mounts").write_text("")
    check_export_folder(work / "empty")


def test_a_folder_that_cannot_be_written_is_told_before_the_model_is_loaded(
    ensemble: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dermkit.prediction.load.load_model", lambda *_args, **_options: pytest.fail("loaded"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        export_model(ensemble, to="onnx", out=tmp_path / "file" / "out")


def built(out: Path, lines: list[str] | None = None) -> None:
    with scratch_folder(out, Progress(say=(lines if lines is not None else []).append)) as scratch:
        (scratch / "export.json").write_text("new")
        write_checksums(scratch)
        move_into_place(scratch, out)


def test_an_export_has_the_mode_of_new_folders(tmp_path: Path) -> None:
    earlier = os.umask(0o027)
    try:
        built(tmp_path / "a" / "out")
    finally:
        os.umask(earlier)
    assert (tmp_path / "a" / "out").stat().st_mode & 0o777 == 0o750
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["out"]


def test_what_a_killed_export_left_is_removed(tmp_path: Path) -> None:
    """Killed between the two renames: the earlier export is in the scratch folder alone."""
    at_work, killed = tmp_path / ".dermkit-tmp-export-1", tmp_path / ".dermkit-tmp-export-2"
    for folder in (at_work, killed):
        (folder / "new" / "out").mkdir(parents=True)
        (folder / ".lock").write_text("")
    (killed / "earlier" / "out").mkdir(parents=True)
    (killed / "earlier" / "out" / "export.json").write_text("earlier")
    lines: list[str] = []
    with lock(at_work):
        built(tmp_path / "another", lines)
    assert (tmp_path / "out" / "export.json").read_text() == "earlier"
    assert lines == [
        f"{tmp_path / 'out'}: put back as it was before an export that was killed",
        f"{killed}: removed, left by an export that was killed",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == [at_work.name, "another", "out"]


def test_a_closed_scratch_folder_of_another_user_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed_folder, is_file = tmp_path / ".dermkit-tmp-export-1", Path.is_file
    closed_folder.mkdir()

    def fail(self: Path, **options: Any) -> bool:
        if self.parent == closed_folder:
            raise PermissionError(13, "Permission denied")
        return is_file(self, **options)

    monkeypatch.setattr(Path, "is_file", fail)
    lines: list[str] = []
    built(tmp_path / "out", lines)
    assert lines == [] and closed_folder.is_dir() and is_file(tmp_path / "out" / "export.json")


def test_an_earlier_export_whose_place_is_taken_is_not_removed(tmp_path: Path) -> None:
    killed = tmp_path / ".dermkit-tmp-export-1"
    (killed / "earlier" / "out").mkdir(parents=True)
    (killed / ".lock").write_text("")
    (tmp_path / "out").mkdir()
    lines: list[str] = []
    built(tmp_path / "another", lines)
    assert (killed / "earlier" / "out").is_dir() and "holds an earlier export" in lines[0]
    (tmp_path / "out" / "export.json").write_text("the new one, in its place before the kill")
    built(tmp_path / "third")
    assert not killed.exists()


def test_an_earlier_export_goes_back_where_the_new_one_cannot_be_put(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built(tmp_path / "out")
    (tmp_path / "out" / "export.json").write_text("earlier")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.parent.name == "new":
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OutputError, match="cannot be written: no"):
        built(tmp_path / "out")
    assert (tmp_path / "out" / "export.json").read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_net_that_onnx_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_options: object) -> None:
        try:
            raise NotImplementedError("no ONNX operator for aten.strange\n(and a page of advice)")
        except NotImplementedError as error:
            raise RuntimeError("the export failed, see the report") from error

    net = random_net(CNN, 0)
    monkeypatch.setattr(torch.onnx, "export", fail)
    problem = "dermkit/cnn-s1: cannot be written as ONNX: NotImplementedError: no ONNX operator for aten.strange"
    with pytest.raises(UsageError, match=f"^{re.escape(problem)}\n") as failure:
        graph.onnx_bytes(net, preprocessing_of(24), IDENTITY_VIEW, properties={}, description="")
    assert failure.value.exit_code == 2 and "dermkit predict" in failure.value.remedy
    monkeypatch.setattr(graph, "MAX_BYTES", 1000)
    with pytest.raises(UsageError, match="an ONNX file holds 2 GB"):
        graph.onnx_bytes(net, preprocessing_of(24), IDENTITY_VIEW, properties={}, description="")


def test_a_graph_that_openvino_cannot_read_is_refused(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(graph, "onnx_bytes", lambda *_args, **_texts: b"no graph")
    with pytest.raises(UsageError, match="net 0: OpenVINO cannot write it: ") as failure:
        export_run._write_net(predictor, 0, "openvino", tmp_path)
    assert "--to onnx" in failure.value.remedy


def test_a_head_of_neighbours_is_refused_before_it_is_tried() -> None:
    neighbours = ClassifierSpec(
        kind="k_nearest", penalty=1.0, neighbours=3, iterations=1, learning_rate=0.1, max_leaves=2
    )
    spec = replace(CNN, hidden=(), classifier=neighbours)
    net = build_net(spec, 3, weights=resolve_weights(spec, None), seed=0)
    with pytest.raises(UsageError, match=r"dermkit/cnn-s1: cannot be written as ONNX: its head, k nearest"):
        graph.onnx_bytes(net, preprocessing_of(24), IDENTITY_VIEW, properties={}, description="")


def test_a_graph_of_one_batch_size_is_refused(exported_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch falls back to such a graph without an error."""
    import onnx

    model = onnx.load(exported_folder / "net-1.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    monkeypatch.setattr(graph, "_translate", lambda *_: model)
    with pytest.raises(UsageError, match="for one number of images alone"):
        graph.onnx_bytes(random_net(CNN, 0), preprocessing_of(24), IDENTITY_VIEW, properties={}, description="")


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("--to", "tflite"), 2, "there is no export to this format: its converter"),
        (("--to", "torchscript"), 2, "PyTorch has deprecated it"),
        (("--to", "onxx"), 2, "did you mean `onnx`"),
        (("--to", "onnx", "--images", "nowhere"), 3, "none of 1 files can be used as an image"),
        (("--to", "onnx", "--images", "nowhere"), 3, "(nowhere: there is no such file)"),
        (
            ("--to", "onnx", "--images", "nowhere/*"),
            2,
            "--images nowhere/*: no images there\nKept: nothing was written",
        ),
        (("--to", "onnx", "--images", __file__), 3, "test_export.py: refused (not_an_image)"),
    ],
)
def test_wrong_arguments_say_what_to_do(
    ensemble: Path, tmp_path: Path, invoke: Invoke, words: tuple[str, ...], code: int, text: str
) -> None:
    status, _, messages = invoke("export", ensemble, *words, "--out", tmp_path / "out")
    assert status == code and text in messages and "To do:" in messages
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_files_is_not_written_into(ensemble: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match=r"is not empty and is not an exported model"):
        export_model(ensemble, to="onnx", out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("name", [".git", ".env", "refused.csv"])
def test_hidden_files_are_a_folder_of_other_files(ensemble: Path, tmp_path: Path, name: str) -> None:
    """The folder is replaced as a whole: a repository that has no commit yet would go with it."""
    (tmp_path / "hub" / name).mkdir(parents=True)
    (tmp_path / "hub" / name / "HEAD").write_text("years of work")
    with pytest.raises(UsageError, match=rf"is not empty and is not an exported model \(it holds {name}\)"):
        export_model(ensemble, to="onnx", out=tmp_path / "hub")
    assert (tmp_path / "hub" / name / "HEAD").read_text() == "years of work"


def test_the_folder_that_is_checked_is_the_one_that_is_replaced(ensemble: Path, tmp_path: Path) -> None:
    """A path through a folder that does not exist leads nowhere, and without its dots to another folder."""
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("years of work")
    out = tmp_path / "nosuch" / ".." / "thesis"
    with pytest.raises(UsageError, match=r"is not empty and is not an exported model"):
        export_model(ensemble, to="onnx", out=out)
    assert (tmp_path / "thesis" / "thesis.txt").read_text() == "years of work"
    assert export_place(tmp_path / "nosuch" / ".." / "new" / ".." / "out") == tmp_path / "out"
    (tmp_path / "link").symlink_to("out")
    with pytest.raises(UsageError, match="is a link"):
        export_place(tmp_path / "link")


def test_a_folder_that_was_filled_meanwhile_stays(tmp_path: Path) -> None:
    """Nets are written for minutes, in which another command can take the same folder."""
    out = tmp_path / "out"
    with (
        pytest.raises(UsageError, match=r"is not empty and is not an exported model \(it holds thesis.txt\)"),
        scratch_folder(out, Progress()) as scratch,
    ):
        out.mkdir()
        (out / "thesis.txt").write_text("years of work")
        move_into_place(scratch, out)
    assert (out / "thesis.txt").read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_files_of_others_beside_an_earlier_export_stay(
    exported_folder: Path, ensemble: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(exported_folder, tmp_path / "out"))
    (out / "notes.txt").write_text("years of work")
    with pytest.raises(UsageError, match=r"holds notes.txt beside an earlier export"):
        export_model(ensemble, to="onnx", out=out)
    assert (out / "notes.txt").read_text() == "years of work" and (out / "net-2.onnx").is_file()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_threads_share_a_session(exported_folder: Path, engine: str) -> None:
    pytest.importorskip(engine)
    path, rng = exported_folder / "net-1.onnx", np.random.default_rng(0)
    session: Session = OnnxRuntimeSession(path) if engine == "onnxruntime" else OpenVinoSession(path, n_threads=2)
    batches = [rng.integers(0, 256, (1 + number % 3, 32, 32, 3), dtype=np.uint8) for number in range(24)]
    alone = [session(batch).logits for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda batch: session(batch).logits, batches))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_telemetry_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    packages.load_onnxruntime()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    packages.load_onnxruntime()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0", "a user who asks for it gets it"


def test_openvino_is_loaded_without_its_telemetry() -> None:
    pytest.importorskip("openvino")
    script = (
        "import sys\nfrom dermkit.models.engines.packages import load_openvino\nload_openvino()\n"
        "print(sys.modules['openvino_telemetry'], 'openvino.tools.ovc.telemetry_stub' in sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert process.stdout.split() == ["None", "True"], process.stderr


@pytest.mark.parametrize(
    ("present", "problem"), [(None, "is not installed"), ("1.9.1", "1.9.1 is too old: 1.20 or newer is needed")]
)
def test_a_package_that_is_absent_or_too_old_is_named(
    monkeypatch: pytest.MonkeyPatch, present: str | None, problem: str
) -> None:
    monkeypatch.setattr(packages, "installed_version", lambda _package: present)
    with pytest.raises(UsageError, match=problem) as failure:
        check_packages(["onnxruntime"], purpose="export --to onnx", extra="export")
    assert "pip install 'dermkit[export]'" in failure.value.remedy


def test_a_newer_package_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "installed_version", lambda _package: "1.100.0")
    check_packages(["onnxruntime"], purpose="export", extra="export")


def test_a_broken_file_says_which_engine_could_not_load_it(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "net-0.onnx").write_bytes(b"no net")
    with pytest.raises(UntrustedError, match=r"net-0.onnx: ONNX Runtime cannot load it"):
        OnnxRuntimeSession(tmp_path / "net-0.onnx")
