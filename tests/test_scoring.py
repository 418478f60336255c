"""Scoring many images: the fast net is the net, nothing is lost or doubled when it is stopped, memory is bounded."""

import errno
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from conftest import Invoke
from dermkit.data.cache.store import StoredRows
from dermkit.errors import DataError, OutputError, RunInterrupt, UntrustedError, UsageError
from dermkit.files import lock
from dermkit.images.decode import open_image
from dermkit.images.preprocess import Preprocessing
from dermkit.models import inference
from dermkit.models.checksums import write_checksums
from dermkit.models.cnn import cnn_s1, cnn_s4
from dermkit.models.inference import (
    InferenceEngine,
    fuse_batch_norm,
    fused_backbone,
    normalise_on_device,
    parallel_batches,
    pick_device,
)
from dermkit.models.net_engine import FUSED_NET, UNFUSED_NET, default_batch_size
from dermkit.models.weights import import_timm
from dermkit.prediction import pixels as prediction_pixels
from dermkit.prediction import resume
from dermkit.prediction.inputs import find_images
from dermkit.prediction.load import load_model
from dermkit.prediction.output import PredictOutcome
from dermkit.prediction.pixels import PixelStore, decode_image
from dermkit.prediction.predictor import Predictor
from dermkit.prediction.run import predict
from dermkit.progress import Progress
from made_images import speckled

OUTPUT = ("predictions.csv", "decisions.csv", "refused.csv", "predict.json", "sheet-1.png")
ODD = Preprocessing(
    size=32, resize="squash", interpolation="bilinear", divide_by=255.0, mean=(0.1, 0.52, 0.9), std=(0.3, 0.7, 1.1)
)


def write_images(folder: Path, n: int, *, first: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + n):
        speckled(30, 24, seed=number).save(folder / f"{number:04}.png")
    return folder


@pytest.fixture(scope="module")
def forty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of forty images, four of which are none, the first and the last among them."""
    folder = write_images(tmp_path_factory.mktemp("forty") / "images", 36, first=1)
    for name in ("0000.png", "0009a.png", "0009b.jpg", "0099.png"):
        (folder / name).write_bytes(b"this is no image")
    return folder


@pytest.fixture
def frequent_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "SAVE_IMAGES", 8)


def content(out: Path) -> dict[str, bytes]:
    assert not (out / "unfinished").exists(), "what is finished is no unfinished prediction"
    return {name: (out / name).read_bytes() for name in OUTPUT}


# The fast net is the net ----------------------------------------------------------------------------------------


def with_statistics(net: nn.Module, side: int = 32) -> nn.Module:
    """Give every batch norm statistics and scales of its own: folding untouched ones would prove nothing."""
    generator = torch.Generator().manual_seed(3)
    for module in net.modules():
        if (
            isinstance(module, nn.BatchNorm2d)
            and module.running_mean is not None
            and module.running_var is not None
        ):
            module.running_mean.copy_(torch.rand(module.num_features, generator=generator) - 0.5)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            if module.affine:
                with torch.no_grad():
                    module.weight.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
                    module.bias.copy_(torch.rand(module.num_features, generator=generator) - 0.5)
    return net.eval().requires_grad_(False)


def norms(net: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())


@pytest.mark.parametrize("name", ["cnn-s4", "mobilenetv2_035", "resnet10t", "efficientnet_b0"])
def test_folded_nets_give_the_same_probabilities_and_have_no_batch_norm_left(name: str) -> None:
    torch.manual_seed(0)  # one random net in some hundreds amplifies so much that it is folded in part
    args = {"pad_type": "same"} if name == "mobilenetv2_035" else {}
    backbone = cnn_s4() if name == "cnn-s4" else import_timm().create_model(name, num_classes=0, **args)
    probe = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) - 0.5
    width = backbone(probe).shape[1]
    net = with_statistics(nn.Sequential(backbone, nn.Linear(width, 3)))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    folded = fuse_batch_norm(net, probe)
    assert folded is not None
    assert norms(net) > 0 == norms(folded)
    other = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(1)) - 0.5
    torch.testing.assert_close(folded(other).softmax(1), net(other).softmax(1), rtol=0, atol=1e-5)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items()), (
        "the net stays as it was"
    )


@pytest.mark.parametrize("name", ["mobilenetv2_100", "resnet18", "efficientnet_b0", "regnety_008"])
def test_folded_weights_are_those_of_the_formula_in_double_precision_to_the_last_bit(name: str) -> None:
    """The formula is that of dermkit's models so far: their probabilities stay what they were."""
    torch.manual_seed(0)
    net = with_statistics(import_timm().create_model(name, num_classes=0))
    pairs = inference._conv_norm_pairs(net, torch.rand(1, 3, 64, 64))
    assert len(pairs) == norms(net) > 10
    for conv, norm in pairs:
        mean, var = norm.get_buffer("running_mean").double(), norm.get_buffer("running_var").double()
        scale = norm.weight.double() / torch.sqrt(var + norm.eps)
        bias = torch.zeros_like(mean) if conv.bias is None else conv.bias.double()
        expected_weight = (conv.weight.double() * scale.reshape(-1, 1, 1, 1)).float()
        expected_bias = (norm.bias.double() + (bias - mean) * scale).float()
        inference._fuse_pair(conv, norm)
        assert torch.equal(conv.weight.view(torch.int32), expected_weight.view(torch.int32))
        assert conv.bias is not None
        assert torch.equal(conv.bias.view(torch.int32), expected_bias.view(torch.int32))
        assert conv.weight.is_contiguous(memory_format=torch.channels_last)


class Standardised(nn.Conv2d):
    """A convolution that changes its weights on the way: what is folded into them would be lost."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        return nn.functional.conv2d(input, weight / weight.std(dim=(1, 2, 3), keepdim=True), self.bias, padding=1)


class Branched(nn.Module):
    """The convolution's output is used twice: it must stay what it is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        out: Tensor = self.head((x + self.norm(x)).mean((2, 3)))
        return out


class Repeated(nn.Module):
    """One convolution before two batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 2)
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.second(self.conv(self.first(self.conv(x)))).mean((2, 3)))
        return out


class Pooled(nn.Module):
    def __init__(self, *layers: nn.Module, width: int = 8) -> None:
        super().__init__()
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layers(x).mean((2, 3)))
        return out


def test_nets_that_cannot_be_folded_stay_as_they_are() -> None:
    torch.manual_seed(0)
    spoilt = Pooled(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    nn.init.constant_(spoilt.head.weight, float("nan"))
    between = Pooled(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8))
    without = Pooled(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False))
    assert fuse_batch_norm(with_statistics(spoilt), torch.rand(2, 3, 32, 32)) is None
    with pytest.raises(UntrustedError, match="not finite"):  # before, such a net scored, and called all negative
        InferenceEngine(with_statistics(spoilt), ODD)
    for built in (Branched(), Repeated(), between, without, cnn_s1()):
        net = with_statistics(built)
        forward = InferenceEngine(net, ODD)
        assert forward.net_variant == UNFUSED_NET, type(built)
        assert fuse_batch_norm(net, torch.rand(2, 3, 32, 32)) is None


def test_one_convolution_that_cannot_be_folded_does_not_keep_the_others_from_it() -> None:
    torch.manual_seed(0)
    net = with_statistics(
        Pooled(Standardised(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    )
    probe = torch.rand(2, 3, 16, 16)
    folded = fuse_batch_norm(net, probe)
    assert folded is not None
    assert norms(folded) == 1
    torch.testing.assert_close(folded(probe).softmax(1), net(probe).softmax(1), rtol=0, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    divide_by=st.sampled_from([1.0, 127.5, 255.0]),
    mean=st.floats(-2, 2, allow_subnormal=False),
    std=st.floats(0.01, 3),
)
def test_the_net_gets_the_numbers_of_the_one_preprocessing(
    seed: int, divide_by: float, mean: float, std: float
) -> None:
    geometry = Preprocessing(
        size=16, resize="squash", interpolation="bilinear", divide_by=divide_by, mean=(mean, 0.5, -mean),
        std=(std, 1.0, std),
    )  # fmt: skip
    batch = np.random.default_rng(seed).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    got: list[Tensor] = []

    class Listening(Pooled):
        def forward(self, x: Tensor) -> Tensor:
            got.append(x)
            return super().forward(x)

    InferenceEngine(Listening(nn.Conv2d(3, 8, 3)).eval(), geometry)(batch)
    assert got[-1].is_contiguous(memory_format=torch.channels_last)
    unit_pixels = batch.transpose(0, 3, 1, 2) / geometry.divide_by
    mean_pixel, std_pixel = (np.reshape(values, (1, 3, 1, 1)) for values in (geometry.mean, geometry.std))
    expected = ((unit_pixels - mean_pixel) / std_pixel).astype(np.float32)
    np.testing.assert_array_equal(got[-1].numpy(), expected)
    on_device = normalise_on_device(torch.from_numpy(batch), geometry)  # the way of a GPU
    assert on_device.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(on_device.numpy(), expected, rtol=0, atol=1e-6 * max(1.0, np.abs(expected).max()))


class Cramped(Pooled):
    """A net whose device takes so many images at once and no more."""

    def __init__(self, room: int, error: Exception) -> None:
        super().__init__(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        self.room, self.error = room, error

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.room:
            raise self.error
        return super().forward(x)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"
        ),
    ],
)
def test_where_memory_is_short_the_batch_is_halved_and_that_is_said(error: Exception) -> None:
    torch.manual_seed(0)
    batch = np.random.default_rng(0).integers(0, 256, (33, 32, 32, 3), dtype=np.uint8)
    net = Cramped(5, error).eval()
    said: list[str] = []
    forward = InferenceEngine(net, ODD, said.append)
    found = forward(batch)
    assert [line.split("; ")[1] for line in said] == [f"going on with {n}" for n in (16, 8, 4)]
    assert forward.max_batch_size == 4
    net.room = forward._net.room = 100  # type: ignore[assignment]
    np.testing.assert_allclose(found, InferenceEngine(net, ODD, said.append)(batch), rtol=0, atol=1e-6)
    forward(batch)
    assert len(said) == 3, "once it is halved it stays so"


def test_where_not_even_one_image_fits_or_the_error_is_another_it_is_raised() -> None:
    batch = np.zeros((4, 32, 32, 3), np.uint8)
    forward = InferenceEngine(Cramped(9, torch.OutOfMemoryError()).eval(), ODD)
    forward._net.room = 0  # type: ignore[assignment]
    with pytest.raises(UsageError, match="too small for one image") as caught:
        forward(batch)
    assert "--device cpu" in caught.value.remedy
    forward = InferenceEngine(Cramped(9, RuntimeError("shapes do not fit")).eval(), ODD)
    forward._net.room = 0  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        forward(batch)


def threads_here_and_in_a_new_thread() -> tuple[int, int]:
    with ThreadPoolExecutor(1) as pool:
        return torch.get_num_threads(), pool.submit(torch.get_num_threads).result()


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("build", [InferenceEngine, fused_backbone])
def test_an_engine_built_while_another_thread_predicts_leaves_the_number_of_threads(
    build: Callable[[nn.Module, Preprocessing], Any],
) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    begun, built = threading.Event(), threading.Event()

    def score(number: int) -> int:
        begun.set()
        assert built.wait(60)
        return number

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(lambda: list(parallel_batches(score, [1], workers=1)))
        try:
            assert begun.wait(60)
            build(net, ODD)
        finally:
            built.set()
        assert other.result() == [1]
    assert threads_here_and_in_a_new_thread() == (3, 3)


@pytest.mark.usefixtures("three_threads")
def test_a_caller_with_a_number_of_threads_of_its_own_does_not_hand_it_on() -> None:
    def score_on_one_thread() -> int:
        torch.set_num_threads(1)
        assert torch.get_num_threads() == 1
        set_elsewhere.set()
        assert restored.wait(60)
        list(parallel_batches(lambda number: number, [1], workers=1))
        return torch.get_num_threads()

    set_elsewhere, restored = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(score_on_one_thread)
        assert set_elsewhere.wait(60)
        torch.set_num_threads(3)  # what new threads take is 3 again, while the other thread keeps 1
        restored.set()
        assert other.result() == 1
    assert threads_here_and_in_a_new_thread() == (3, 3)


def test_a_caller_that_never_asked_for_its_number_keeps_it() -> None:
    script = (
        "import torch\n"
        "from dermkit.models.inference import parallel_batches\n"
        "torch.set_num_threads(3)\n"
        "stream = parallel_batches(lambda number: number, range(9), workers=2)\n"
        "print([torch.get_num_threads() for _ in stream], torch.get_num_threads())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"{[3] * 9} 3\n"


def test_a_prediction_that_is_left_when_python_ends_says_nothing() -> None:
    script = (
        "from dermkit.models.inference import parallel_batches\n"
        "stream = parallel_batches(lambda number: number, iter(range(100)), workers=2)\n"
        "print(next(stream))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_the_number_of_threads_is_given_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert set(parallel_batches(lambda _: torch.get_num_threads(), range(9), workers=3)) == {1}
        assert torch.get_num_threads() == 2
        stream = parallel_batches(lambda item: item, iter(range(100)), workers=2)
        assert next(stream) == 0
        stream.close()  # type: ignore[attr-defined]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_devices_are_picked_and_refused() -> None:
    assert pick_device("cpu").type == "cpu"
    assert default_batch_size("cpu") < default_batch_size("cuda")
    with pytest.raises(UsageError, match="unknown"):
        pick_device("tpu")
    if not torch.cuda.is_available():
        assert pick_device("auto").type == "cpu"
        with pytest.raises(UsageError, match="no CUDA device"):
            pick_device("cuda")


# Order, and equal figures however it is done --------------------------------------------------------------------


def test_neither_threads_nor_batches_nor_the_cache_change_what_is_written(
    trained: Path, forty: Path, tmp_path: Path
) -> None:
    wholes = {}
    for workers in (0, 1, 4):
        for kept in (None, tmp_path / "kept"):
            out = tmp_path / f"{workers}-{kept is None}"
            predict(trained, [str(forty)], out=out, workers=workers, batch_size=7, cache=kept)
            wholes[out.name] = {name: (out / name).read_bytes() for name in OUTPUT}
    first = wholes["0-True"]
    assert all(whole == first for whole in wholes.values())
    frame = pd.read_csv(tmp_path / "0-True" / "predictions.csv", dtype={"image_id": str})
    assert frame["image_id"].tolist() == [f"{number:04}" for number in range(1, 37)]
    for size in (1, 32, None):
        out = tmp_path / f"batch-{size}"
        predict(trained, [str(forty)], out=out, batch_size=size)
        other = pd.read_csv(out / "predictions.csv", dtype={"image_id": str})
        np.testing.assert_allclose(other[["p_benign", "p_malignant"]], frame[["p_benign", "p_malignant"]],
                                   rtol=0, atol=1e-6)  # fmt: skip
        assert (out / "refused.csv").read_bytes() == first["refused.csv"]


def test_rows_of_a_store_and_an_array_are_scored_alike(trained: Path, forty: Path, tmp_path: Path) -> None:
    model = load_model(trained)
    kept = PixelStore(tmp_path, model.resizings)
    paths = sorted(forty.glob("000[1-9].png"))
    looks = [
        decode_image(p, "", model.resizings, with_thumbnail=False, geometry_hash=kept.geometry_hash) for p in paths
    ]
    kept.add([look for look in looks if isinstance(look, prediction_pixels.DecodedImage)])
    kept.flush()
    array = np.stack([look.pixels[0] for look in looks if isinstance(look, prediction_pixels.DecodedImage)])
    keys = np.frombuffer(
        b"".join(look.key for look in looks if isinstance(look, prediction_pixels.DecodedImage)), np.uint8
    )
    rows = StoredRows(kept._store, kept._store.index(keys.reshape(-1, 32)))
    order = [8, 0, 3, 3, 5]
    steps: list[tuple[int, int]] = []
    direct = model.score_pixels(
        array, order, batch_size=2, on_progress=lambda done, total: steps.append((done, total))
    )
    assert steps == [(2, 5), (4, 5), (5, 5)]
    for workers in (1, 3):
        np.testing.assert_array_equal(model.score_pixels(rows, order, batch_size=2, workers=workers), direct)
    np.testing.assert_array_equal(direct[2], direct[3])
    np.testing.assert_allclose(model.score_pixels(array, order), direct, rtol=0, atol=1e-6)
    assert model.engine.net_variant in (UNFUSED_NET, FUSED_NET)


def test_the_output_says_how_it_was_made(trained: Path, forty: Path, tmp_path: Path) -> None:
    outcome = predict(trained, [str(forty)], out=tmp_path, batch_size=5, device="cpu")
    facts = json.loads((tmp_path / "predict.json").read_text())
    assert (facts["format"], facts["device"], facts["batch_size"], facts["inference_mode"]) == (
        5,
        "cpu",
        5,
        UNFUSED_NET,
    )
    assert (facts["n_scored"], facts["n_refused"]) == (outcome.n_scored, outcome.n_rejected) == (36, 4)
    assert [name for name, *_ in outcome.rejected_images] == ["0000.png", "0009a.png", "0009b.jpg", "0099.png"]
    assert outcome.notes == [] == outcome.training_images


# Kept pixels ----------------------------------------------------------------------------------------------------


def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows with every image that is opened."""
    opened: list[str] = []

    def counting(source: Path | bytes, *, name: str = "") -> object:
        opened.append(Path(str(source)).name)
        return open_image(source, name=name)

    monkeypatch.setattr(prediction_pixels, "open_image", counting)
    return opened


def test_kept_pixels_are_not_decoded_again_whatever_the_file_is_called(
    trained: Path, forty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = decoded(monkeypatch)
    cold = predict(trained, [str(forty)], out=tmp_path / "cold", cache=tmp_path / "kept")
    assert len(opened) == 40
    opened.clear()
    renamed = shutil.copytree(forty, tmp_path / "renamed")
    (renamed / "0001.png").rename(renamed / "0001x.png")
    speckled(30, 24, seed=99).save(renamed / "0002.png")
    warm = predict(trained, [str(renamed)], out=tmp_path / "warm", cache=tmp_path / "kept")
    once = [name for name in opened if opened.count(name) == 1]  # the others: for the sheet, by their thumbnails
    assert sorted(opened) == sorted({*opened}), "each at most once"
    assert "0002.png" in once
    a, b = (pd.read_csv(item.out / "predictions.csv") for item in (cold, warm))
    same = a["image_id"] != 2
    np.testing.assert_array_equal(a.loc[same, "p_benign"], b.loc[same, "p_benign"])
    assert not (a["p_benign"][~same].to_numpy() == b["p_benign"][~same].to_numpy()).any()


def test_what_the_gate_said_is_kept_with_the_pixels(trained: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 2)
    speckled(30, 24).convert("RGBA").save(images / "clear.png")
    image = speckled(30, 24, seed=5).convert("RGBA")
    image.putalpha(100)
    image.save(images / "veiled.png")
    outcomes = [
        predict(trained, [str(images)], out=tmp_path / str(number), cache=tmp_path / "kept") for number in (1, 2)
    ]
    assert outcomes[0].notes == outcomes[1].notes == [("veiled.png", "alpha composited on white")]


def test_a_damaged_segment_costs_time_and_no_figure(trained: Path, forty: Path, tmp_path: Path) -> None:
    predict(trained, [str(forty)], out=tmp_path / "a", cache=tmp_path / "kept")
    (segment,) = (tmp_path / "kept").rglob("*.seg")
    data = bytearray(segment.read_bytes())
    data[-1] ^= 255
    segment.write_bytes(data)
    done = run_cli(
        trained, forty, tmp_path / "b", "--cache", tmp_path / "kept"
    )  # this process has hashed it before
    assert done.returncode == 7, done.stderr
    assert content(tmp_path / "b") == content(tmp_path / "a")


def test_nothing_is_kept_unless_a_folder_is_named(trained: Path, forty: Path, tmp_path: Path) -> None:
    predict(trained, [str(forty)], out=tmp_path / "out")
    assert not list(tmp_path.rglob("*.seg"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*OUTPUT, ".lock"}


# Stopped and gone on --------------------------------------------------------------------------------------------


def stop_at(image: int) -> Progress:
    """Return a watch at which Ctrl-C is pressed as soon as so many images are done."""

    def step(what: str, done: int, total: int) -> None:
        if done >= image:
            raise KeyboardInterrupt

    return Progress(step=step)


@pytest.mark.usefixtures("frequent_saves")
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_what_was_interrupted_goes_on_and_ends_in_the_same_bytes(
    trained: Path, forty: Path, tmp_path: Path, batch_size: int
) -> None:
    predict(trained, [str(forty)], out=tmp_path / "whole", batch_size=batch_size)
    said: list[str] = []
    for image in (3, 10, 11, 25, 39):
        with pytest.raises(RunInterrupt, match="of 40 images are scored") as caught:
            predict(
                trained, [str(forty)], out=tmp_path / "out", batch_size=batch_size, progress=stop_at(image),
                cache=tmp_path / "kept" if image % 2 else None, workers=image % 3,
            )  # fmt: skip
        assert caught.value.exit_code == 130
        assert "same command again" in caught.value.remedy
        assert not (tmp_path / "out" / "predictions.csv").exists()
    predict(trained, [str(forty)], out=tmp_path / "out", batch_size=batch_size, progress=Progress(say=said.append))
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    line, *lines = said
    assert all(" of 40 images scored or refused" in item for item in lines)
    done = int(line.removeprefix("going on: ").split()[0])
    assert 25 <= done <= 40
    assert done % batch_size == 0 or done == 40


@pytest.mark.usefixtures("frequent_saves")
def test_what_is_finished_is_not_scored_again(
    trained: Path, forty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunInterrupt):
        predict(trained, [str(forty)], out=tmp_path, batch_size=4, progress=stop_at(20))
    finished = saved_images(tmp_path)
    assert finished >= 20
    looked: list[str] = []
    real = prediction_pixels.decode_image

    def counting(path: Path, name: str, *args: object, **kwargs: object) -> object:
        looked.append(name)
        return real(path, name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr("dermkit.prediction.pixels.decode_image", counting)
    predict(trained, [str(forty)], out=tmp_path, batch_size=4)
    assert len(looked) == 40 - finished


@pytest.mark.usefixtures("frequent_saves")
def test_a_file_that_changed_meanwhile_is_scored_again_and_that_is_said(
    trained: Path, forty: Path, tmp_path: Path
) -> None:
    images = shutil.copytree(forty, tmp_path / "images")
    with pytest.raises(RunInterrupt):
        predict(trained, [str(images)], out=tmp_path / "out", batch_size=4, progress=stop_at(30))
    speckled(31, 25, seed=500).save(images / "0002.png")
    said: list[str] = []
    predict(trained, [str(images)], out=tmp_path / "out", batch_size=4, progress=Progress(say=said.append))
    assert said[0].startswith("1 files changed since they were scored")
    predict(trained, [str(images)], out=tmp_path / "whole", batch_size=4)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.usefixtures("frequent_saves")
@pytest.mark.parametrize(
    "damage", ["other bytes", "short", "other rows", "another image", "no number", "not one class", "no job"]
)
def test_saved_scores_that_are_not_what_they_were_are_not_used(
    trained: Path, forty: Path, tmp_path: Path, damage: str
) -> None:
    with pytest.raises(RunInterrupt):
        predict(trained, [str(forty)], out=tmp_path / "out", batch_size=4, progress=stop_at(30))
    scores = tmp_path / "out" / "unfinished" / "scores.jsonl"
    first, second, *others = scores.read_bytes().splitlines(keepends=True)
    row = json.loads(second)
    if damage == "other bytes":
        scores.write_bytes(b"".join((b"\xff\xfe\x00" + first[3:], second, *others)))
    elif damage == "short":
        scores.write_bytes(scores.read_bytes()[:-20])
    elif damage == "other rows":
        scores.write_bytes(b"".join((second, second, *others)))
    elif damage == "no job":
        (scores.parent / "job.json").write_text("{")
        with pytest.raises(UsageError, match="unfinished prediction"):
            predict(trained, [str(forty)], out=tmp_path / "out", batch_size=4)
    else:
        changes = {"another image": (0, 40), "no number": (2, [math.nan, 0.5]), "not one class": (2, [1.0])}
        position, value = changes[damage]
        row[position] = value
        scores.write_bytes(b"".join((first, json.dumps(row).encode() + b"\n", *others)))
    predict(trained, [str(forty)], out=tmp_path / "out", batch_size=4, restart=damage == "no job")
    predict(trained, [str(forty)], out=tmp_path / "whole", batch_size=4)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_an_unfinished_prediction_of_an_older_dermkit_is_refused_unless_it_is_dropped(
    trained: Path, forty: Path, tmp_path: Path
) -> None:
    job = tmp_path / "parts" / "job.json"
    job.parent.mkdir()
    job.write_text('{"format": 1, "images": 40, "batch_size": 4, "classes": ["benign", "malignant"]}')
    with pytest.raises(UsageError, match="unfinished prediction of an older dermkit") as caught:
        predict(trained, [str(forty)], out=tmp_path)
    assert "--restart" in caught.value.remedy
    assert job.is_file()
    predict(trained, [str(forty)], out=tmp_path, restart=True)
    assert not job.parent.exists()
    assert content(tmp_path)


def test_the_table_of_decisions_of_an_older_dermkit_does_not_stay_beside_the_new_one(
    trained: Path, forty: Path, tmp_path: Path
) -> None:
    predict(trained, [str(forty)], out=tmp_path)
    (tmp_path / "decided.csv").write_text("of an older version")
    predict(trained, [str(forty)], out=tmp_path)
    assert not (tmp_path / "decided.csv").exists()


@pytest.mark.usefixtures("frequent_saves")
def test_another_prediction_is_refused_while_one_is_unfinished(trained: Path, forty: Path, tmp_path: Path) -> None:
    images = shutil.copytree(forty, tmp_path / "images")
    out = tmp_path / "out"
    with pytest.raises(RunInterrupt):
        predict(trained, [str(images)], out=out, batch_size=4, progress=stop_at(20))
    kept = {path.name: path.read_bytes() for path in (out / "unfinished").iterdir()}
    other = shutil.copytree(trained / "model", tmp_path / "model")
    (other / "MODEL_CARD.md").write_text("another")
    write_checksums(other)
    write_images(tmp_path / "more", 1)
    recipe = json.loads((other / "model.json").read_text())["recipe"]["name"]
    named = rf"\(model: {recipe} \([0-9a-f]{{12}}\) there, {recipe} \([0-9a-f]{{12}}\) now\)"
    refused: list[tuple[str, Callable[[], PredictOutcome]]] = [
        (named, lambda: predict(other, [str(images)], out=out, batch_size=4)),
        ("batch size: 4 there, 5 now", lambda: predict(trained, [str(images)], out=out, batch_size=5)),
        ("images: 40 there, 41 now", lambda: predict(trained, [str(images), str(tmp_path / "more")], out=out,
                                                     batch_size=4)),
        ("image 37: nothing there", lambda: predict(trained, [str(forty)], out=out, batch_size=4)),
    ]  # fmt: skip
    for words, act in refused[:3]:
        with pytest.raises(UsageError, match=words) as caught:
            act()
        assert "--restart" in caught.value.remedy
        assert {path.name: path.read_bytes() for path in (out / "unfinished").iterdir()} == kept
    (images / "0005.png").rename(images / "0005x.png")
    with pytest.raises(UsageError, match=r"image 6: .*0005\.png there, .*0005x\.png now"):
        predict(trained, [str(images)], out=out, batch_size=4)
    assert predict(trained, [str(images)], out=out, batch_size=4, restart=True).n_scored == 36
    assert sorted(path.name for path in out.iterdir()) == sorted((*OUTPUT, ".lock"))


def test_an_earlier_result_stays_until_the_new_one_is_whole(trained: Path, forty: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict(trained, [str(forty)], out=out)
    before = content(out)
    more = write_images(tmp_path / "more", 60)
    with pytest.raises(RunInterrupt):
        predict(trained, [str(more)], out=out, batch_size=4, progress=stop_at(20))
    assert {name: (out / name).read_bytes() for name in OUTPUT} == before
    assert predict(trained, [str(more)], out=out, batch_size=4).n_scored == 60


def test_two_predictions_into_one_folder_at_once(trained: Path, forty: Path, tmp_path: Path) -> None:
    with lock(tmp_path), pytest.raises(OutputError, match=f"in use by process {os.getpid()}"):
        predict(trained, [str(forty)], out=tmp_path)


def test_an_output_inside_the_images_is_not_predicted_itself(trained: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 10)
    out, kept = images / "predictions", images / "kept"
    with pytest.raises(RunInterrupt):
        predict(trained, [str(images)], out=out, cache=kept, batch_size=2, progress=stop_at(6))
    for _ in range(2):
        assert predict(trained, [str(images)], out=out, cache=kept, batch_size=2).n_scored == 10


@pytest.mark.usefixtures("frequent_saves")
def test_a_full_device_names_what_is_scored_and_the_same_command_goes_on(
    trained: Path, forty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, sizes = os.fsync, [0]

    def filling(descriptor: int) -> None:
        if not Path(f"/proc/self/fd/{descriptor}").readlink().name.endswith("scores.jsonl"):
            return real(descriptor)
        if len(sizes) > 3:  # the device is full: all that was written is the beginning of a line
            os.ftruncate(descriptor, sizes[-1] + 11)
            raise OSError(errno.ENOSPC, "No space left on device")
        sizes.append(os.fstat(descriptor).st_size)
        return real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", filling)
        with pytest.raises(OutputError, match="No space left") as caught:
            predict(trained, [str(forty)], out=tmp_path / "out", batch_size=4)
    assert caught.value.exit_code == 5
    assert caught.value.outcome == f"24 of 40 images, scored or refused, in {tmp_path / 'out' / 'unfinished'}"
    assert caught.value.remedy == "free space, then the same command again"
    predict(trained, [str(forty)], out=tmp_path / "out", batch_size=4)
    predict(trained, [str(forty)], out=tmp_path / "whole", batch_size=4)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ("dermkit.prediction.run.open_job", "the earlier files"),
        ("dermkit.prediction.run.PredictionJob.read_scores", "0 of 40"),
        ("dermkit.prediction.output._tiles", "40 of 40"),
        ("dermkit.prediction.output.render_sheets.save_png", "40 of 40"),
        ("dermkit.prediction.output.write_predictions", "40 of 40"),
        ("dermkit.prediction.output.write_rows", "40 of 40"),
        ("dermkit.prediction.decisions.write_decisions", "40 of 40"),
        ("dermkit.prediction.output._write_predict_json", "40 of 40"),
        ("dermkit.prediction.run.PredictionJob.remove", "40 of 40"),
    ],
)
def test_an_interrupt_anywhere_is_told_and_the_same_command_completes_it(
    trained: Path, forty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, kept: str
) -> None:
    def pressed(*_args: object, **_more: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(where, pressed)
        with pytest.raises(RunInterrupt) as caught:
            predict(trained, [str(forty)], out=out)
    assert kept in str(caught.value)
    assert "same command again" in caught.value.remedy
    if "save_png" in where or "_tiles" in where:
        assert not (out / "predictions.csv").exists(), "it would look finished"
    assert predict(trained, [str(forty)], out=out).n_scored == 36
    assert content(out)


@pytest.mark.usefixtures("frequent_saves")
def test_a_log_gets_a_line_for_each_save_and_a_bar_none(trained: Path, forty: Path, tmp_path: Path) -> None:
    said: list[str] = []
    predict(trained, [str(forty)], out=tmp_path, batch_size=4, progress=Progress(say=said.append))
    assert said == [f"{n} of 40 images scored or refused" for n in (8, 16, 24, 32, 40)]
    said.clear()
    predict(trained, [str(forty)], out=tmp_path, progress=Progress(say=said.append, step=lambda *_: None))
    assert said == []


@pytest.mark.usefixtures("frequent_saves")
def test_relative_paths_go_on_only_from_the_directory_they_were_given_in(
    trained: Path, forty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("here", "there"):
        shutil.copytree(forty, tmp_path / place / "images")
    monkeypatch.chdir(tmp_path / "here")
    absolute, out = str(tmp_path / "here" / "images"), tmp_path / "relative"
    for argument, folder in (("images", out), (absolute, tmp_path / "absolute")):
        with pytest.raises(RunInterrupt):
            predict(trained, [argument], out=folder, batch_size=4, progress=stop_at(20))
    monkeypatch.chdir(tmp_path / "there")
    with pytest.raises(UsageError, match=r"working directory: .*here there, .*there now"):
        predict(trained, ["images"], out=out, batch_size=4)
    assert predict(trained, [absolute], out=tmp_path / "absolute", batch_size=4).n_scored == 36
    monkeypatch.chdir(tmp_path / "here")
    predict(trained, ["images"], out=out, batch_size=4)
    assert pd.read_csv(out / "predictions.csv")["path"][0] == "images/0001.png"


def test_scores_that_lack_an_image_are_counted_and_no_result_is_written(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = write_images(tmp_path / "images", 4)
    real = Predictor.score_files

    def losing_the_last(predictor: Predictor, files: Any, **options: Any) -> Any:
        yield from list(real(predictor, files, **options))[:-1]

    monkeypatch.setattr(Predictor, "score_files", losing_the_last)
    with pytest.raises(DataError, match=r"unfinished: 3 of 4 images"):
        predict(trained, [str(images)], out=tmp_path / "out")
    assert not (tmp_path / "out" / "predictions.csv").exists()


# Killed, in processes of their own ------------------------------------------------------------------------------

SCRIPT = """
import signal, sys
from dermkit.cli import main
from dermkit.prediction import resume
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background of a script
resume.SAVE_IMAGES = 8
sys.argv = ["dermkit", *sys.argv[1:]]
main()
"""


def command(model: Path, images: Path, out: Path, *more: str | Path) -> list[str]:
    return [sys.executable, "-c", SCRIPT, "predict", *map(str, (model, images, "--out", out, *more))]


def run_cli(model: Path, images: Path, out: Path, *more: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(model, images, out, *more), capture_output=True, text=True, timeout=120, check=False
    )


def saved_images(out: Path) -> int:
    """Return how many images the table of an unfinished prediction holds."""
    scores = out / "unfinished" / "scores.jsonl"
    return scores.read_bytes().count(b"\n") if scores.exists() else 0


def stopped(model: Path, images: Path, out: Path, how: signal.Signals) -> "subprocess.Popen[str]":
    """Start a prediction, and send a signal when it has saved three times more."""
    before = saved_images(out)
    process = subprocess.Popen(
        command(model, images, out, "--batch-size", "4"),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    until = time.monotonic() + 60
    while saved_images(out) < before + 24 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    process.send_signal(how)
    return process


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of a thousand files, ten different images linked a hundred times, and a few that are none."""
    return linked(tmp_path_factory.mktemp("thousand"), 1000)


def linked(folder: Path, n: int) -> Path:
    source = write_images(folder / "source", 10)
    images = folder / "images"
    images.mkdir()
    for number in range(n):
        os.link(source / f"{number % 10:04}.png", images / f"ISIC_{number:07}.png")
    for number in range(3):
        (images / f"ISIC_{number * 40:07}b.jpg").write_bytes(b"no image")
    return images


def test_a_prediction_that_was_killed_and_interrupted_ends_in_the_same_bytes(
    trained: Path, thousand: Path, tmp_path: Path
) -> None:
    killed = stopped(trained, thousand, tmp_path / "out", signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    interrupted = stopped(trained, thousand, tmp_path / "out", signal.SIGINT)
    _, text = interrupted.communicate()
    assert interrupted.returncode == 130, text
    assert "going on: " in text
    assert "of 1003 images are scored or refused" in text
    assert "Kept: they are in" in text
    assert saved_images(tmp_path / "out") >= 24
    done = run_cli(trained, thousand, tmp_path / "out", "--batch-size", "4")
    assert done.returncode == 7, done.stderr
    assert "1000 images scored" in done.stdout
    predict(trained, [str(thousand)], out=tmp_path / "whole", batch_size=4)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.slow
def test_a_prediction_that_is_killed_at_any_moment_loses_and_doubles_nothing(
    trained: Path, thousand: Path, tmp_path: Path
) -> None:
    """Twenty-four kills at random moments of the whole life of the process: some minutes."""
    out, moments = tmp_path / "out", random.Random(4)
    began = time.monotonic()
    assert run_cli(trained, thousand, tmp_path / "whole", "--batch-size", "4").returncode == 7
    life, killed = time.monotonic() - began, 0
    for _ in range(24):
        process = subprocess.Popen(
            command(trained, thousand, out, "--batch-size", "4"),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        time.sleep(moments.uniform(0.3, 1.05) * life)
        process.kill()
        killed += process.wait() == -signal.SIGKILL
        if (out / "predict.json").is_file() and not (out / "unfinished").is_dir():
            assert content(out) == content(tmp_path / "whole")
            shutil.rmtree(out)
    assert killed > 5
    assert run_cli(trained, thousand, out, "--batch-size", "4").returncode == 7
    assert content(out) == content(tmp_path / "whole")


def peak_memory(model: Path, images: Path, out: Path, *more: str | Path) -> int:
    """Return the most memory that a prediction in a process of its own had, in KiB."""
    script = SCRIPT.replace(
        "main()\n",
        "import resource\ntry:\n    main()\nfinally:\n"
        "    sys.stderr.write(f'peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}\\n')\n",
    ).replace("SAVE_IMAGES = 8", "SAVE_IMAGES = 512")
    arguments = [sys.executable, "-c", script, "predict", *map(str, (model, images, "--out", out, *more))]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 7, done.stderr
    return int(done.stderr.rsplit("peak ", 1)[1])


def test_memory_grows_little_with_the_number_of_images(trained: Path, tmp_path: Path) -> None:
    """600 images fill the sheets and a save; 3,600 are six times that. Two processes, each of which loads torch."""
    few = peak_memory(trained, linked(tmp_path / "few", 600), tmp_path / "a")
    many = peak_memory(trained, linked(tmp_path / "many", 3600), tmp_path / "b")
    assert many < few + 8 * 1024


@pytest.mark.slow
def test_an_image_takes_less_than_a_kilobyte_of_memory(trained: Path, tmp_path: Path) -> None:
    """16 MiB for 19,000 images are 880 bytes each; measured: 600."""
    few = peak_memory(trained, linked(tmp_path / "few", 1000), tmp_path / "a", "--cache", tmp_path / "kept")
    many = peak_memory(trained, linked(tmp_path / "many", 20_000), tmp_path / "b", "--cache", tmp_path / "kept")
    assert many < few + 16 * 1024


# Names ----------------------------------------------------------------------------------------------------------

NAMES = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["x", "x.jpg", "x.png", "x.png.jpg", "x.jpg#2", "y.a.b"])),
    max_size=12,
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=NAMES)
def test_every_file_is_listed_once_under_a_name_and_an_id_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[tuple[str, str]]
) -> None:
    root = tmp_path / "tree"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    monkeypatch.chdir(root)
    for folder, name in files:
        (root / folder).mkdir(exist_ok=True)
        (root / folder / name).write_bytes(b"\xff\xd8\xff")  # begins like an image, whatever it is called
    arguments = [f"{folder}/{name}" for folder, name in files] + sorted({folder for folder, _ in files})
    found = find_images(arguments)
    n = len(found)
    assert n == len(set(files))
    assert sorted(item.path for item in found) == sorted({f"{folder}/{name}" for folder, name in files})
    assert len({item.name for item in found}) == len({item.image_id for item in found}) == n


def test_folders_are_walked_in_order_and_what_cannot_be_entered_is_listed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("b.jpg", "b/z.jpg", "b/a/c.png", "B/k.jpg", ".hidden/x.jpg", "b.d/e.jpg", "notes.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "linked").symlink_to(tmp_path, target_is_directory=True)
    (root / "broken.jpg").symlink_to(tmp_path / "absent")
    expected = ["B/k.jpg", "b/a/c.png", "b/z.jpg", "b.d/e.jpg", "b.jpg", "broken.jpg", "linked"]
    assert [item.name for item in find_images([str(root)])] == expected
    by_path = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*")) if path.is_file()]
    assert [name for name in expected if name not in ("broken.jpg", "linked")] == [
        name for name in by_path if not name.startswith(".") and name != "notes.txt"
    ]


def test_names_that_are_no_text_and_files_that_are_none_are_listed_and_the_rest_is_scored(
    trained: Path, tmp_path: Path, invoke: Invoke
) -> None:
    images = write_images(tmp_path / "images", 3)
    (images / "0002.png").rename(os.fsdecode(os.fsencode(images) + b"/\xff.png"))
    (images / "line\rfeed.png").write_bytes((images / "0001.png").read_bytes())
    os.mkfifo(images / "pipe.png")
    (images / "linked").symlink_to(tmp_path, target_is_directory=True)
    code, _, text = invoke("predict", trained, images, "--out", tmp_path / "out")
    assert code == 7, text
    refused = pd.read_csv(tmp_path / "out" / "refused.csv")
    assert refused.to_numpy().tolist() == [["linked", "unreadable", "not a file"]]
    scored = pd.read_csv(tmp_path / "out" / "predictions.csv", dtype=str)
    assert scored["image_id"].tolist() == ["0000", "0001", "line\rfeed", "\\udcff"]


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    folder = write_images(tmp_path / "images" / "closed", 1)
    folder.chmod(0)
    yield folder
    folder.chmod(0o755)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may enter any folder")
def test_a_closed_folder_is_listed(trained: Path, closed: Path, tmp_path: Path) -> None:
    write_images(closed.parent, 2)
    outcome = predict(trained, [str(closed.parent)], out=tmp_path / "out")
    assert (outcome.n_scored, outcome.n_rejected) == (2, 1)
    assert outcome.rejected_images[0][:2] == ("closed", "unreadable")


def test_all_refused_is_an_error_and_leaves_nothing_unfinished(
    trained: Path, tmp_path: Path, invoke: Invoke
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(20):
        (images / f"{number}.jpg").write_bytes(b"no image")
    code, _, text = invoke("predict", trained, images, "--out", tmp_path / "out", "--batch-size", "3")
    assert code == 3
    assert "none of 20 images" in text
    assert not (tmp_path / "out" / "unfinished").exists()
    assert len(pd.read_csv(tmp_path / "out" / "refused.csv")) == 20


def probabilities(pixels: NDArray[np.uint8], trained: Path) -> NDArray[np.float64]:
    return load_model(trained).probabilities(pixels)


@pytest.mark.parametrize("bad", [np.zeros((2, 24, 24, 3), np.float32), np.zeros((2, 3, 24, 24), np.uint8)])
def test_what_is_no_batch_of_pixels_is_refused(trained: Path, bad: NDArray[np.uint8]) -> None:
    with pytest.raises(Exception, match="expected \\(N, S, S, 3\\) uint8"):
        probabilities(bad, trained)
