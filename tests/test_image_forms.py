"""Images from Python: paths, Pillow images, arrays and tensors give the same bits, in order, and none is lost."""

import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset

import dermkit as dk
from dermkit.errors import ImageRejected, RejectionReason, UntrustedError, UsageError
from dermkit.images.decode import open_image
from dermkit.images.in_memory import read_pixels
from dermkit.images.preprocess import resize_pixels
from dermkit.models.checksums import write_checksums
from dermkit.models.engines.scoring import SessionRuntime
from dermkit.models.inference import InferenceEngine, exact_float32
from dermkit.runs.predictions import prediction_columns
from dermkit.threads import RESULTS_PER_THREAD, SharedSetting
from made_images import ADOBE_RGB, chunk, encoded, flat, frames, orientation_exif, png, speckled, tiff
from test_images import MODES as FILE_MODES

DOCUMENT = Path(__file__).parents[1] / "docs" / "predict.md"
Pixels = NDArray[np.uint8]


def noise(seed: int, height: int = 30, width: int = 41) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def as_tensor(pixels: Pixels) -> torch.Tensor:
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


@pytest.fixture(scope="module")
def model(trained: Path) -> dk.Predictor:
    return dk.load_model(trained)


def bits(predictions: Iterator[dk.ImagePrediction] | list[dk.ImagePrediction]) -> list[tuple[float, ...]]:
    return [tuple(one.probabilities.values()) for one in predictions]


# The same pixels ----------------------------------------------------------------------------------------------------


def test_every_form_gives_the_bits_of_the_file(model: dk.Predictor, tmp_path: Path) -> None:
    pixels = [noise(seed, 30 + seed, 41) for seed in range(20)]
    paths = [tmp_path / f"{seed}.png" for seed in range(20)]
    for path, one in zip(paths, pixels, strict=True):
        Image.fromarray(one).save(path)
    expected = bits(model.predict_images(paths))
    resized = np.stack([resize_pixels(one, model.preprocessing) for one in pixels])
    np.testing.assert_allclose(np.array(expected), model.probabilities(resized), rtol=0, atol=1e-6)
    assert np.unique(np.array(expected)[:, 0]).size > 10, "the net tells these images apart"
    forms: dict[str, Any] = {
        "texts": list(map(str, paths)),
        "lazy Pillow images": [Image.open(path) for path in paths],
        "arrays": pixels,
        "strided arrays": [np.repeat(one, 2, axis=1)[:, ::2] for one in pixels],
        "tensors": [as_tensor(one) for one in pixels],
        "tensors with channels last": [torch.from_numpy(one) for one in pixels],
        "an iterator of all": ([paths[n], pixels[n], as_tensor(pixels[n])][n % 3] for n in range(20)),
    }
    for name, images in forms.items():
        assert bits(model.predict_images(images)) == expected, name
    frame = model.predict(pixels)
    assert [tuple(row) for row in frame[["p_benign", "p_malignant"]].itertuples(index=False)] == expected
    assert frame["image_id"].tolist() == list(map(str, range(20))) and (frame["path"] == "").all()
    assert frame.columns.tolist() == model.predict(paths).columns.tolist()
    equal = np.stack([noise(seed) for seed in range(3)])
    batches: list[Any] = [
        equal,
        list(equal),
        torch.from_numpy(equal),
        torch.from_numpy(equal.transpose(0, 3, 1, 2).copy()),
    ]
    assert len({tuple(bits(model.predict_images(batch))) for batch in batches}) == 1


def as_mode(image: Image.Image, mode: str) -> Image.Image:
    grey = np.asarray(image.convert("L"))
    if mode == "F":
        return Image.fromarray(grey.astype(np.float32) / 255)
    if mode == "I;16":
        return Image.fromarray(grey.astype(np.uint16) * 257)
    return (image.convert("P") if mode == "PA" else image.convert("RGB")).convert(mode)


MODES = {stored: modes for stored, modes in FILE_MODES.items() if stored != "BMP"}


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from([(stored, mode) for stored, modes in MODES.items() for mode in modes]),
    st.tuples(st.integers(8, 50), st.integers(8, 50)),
    st.integers(1, 8),
    st.booleans(),
    st.booleans(),
)
def test_a_pillow_image_has_the_pixels_of_its_file(
    kind: tuple[str, str], size: tuple[int, int], orientation: int, has_profile: bool, is_loaded: bool
) -> None:
    options: dict[str, Any] = {"icc_profile": ADOBE_RGB} if has_profile else {}
    options |= {"exif": orientation_exif(orientation)} if orientation > 1 else {}
    data = encoded(as_mode(speckled(*size, channels=4).convert("RGBA"), kind[1]), kind[0], **options)
    image = Image.open(io.BytesIO(data))
    if is_loaded:
        image.load()
    assert np.array_equal(read_pixels(image, name="x")[0], open_image(data).pixels)


RAMP = np.tile(np.arange(256, dtype=np.uint16) * 257, (16, 1))
TRANSPARENT = {
    "four bits": png(16, 16, 4, 0, bytes([0x33] * 8) * 16, chunk(b"tRNS", b"\0\3")),
    "sixteen bits": png(16, 16, 16, 0, bytes([1, 44] * 16) * 16, chunk(b"tRNS", b"\1\54")),
    "a colour": png(16, 16, 8, 2, bytes([9, 8, 7] * 256), chunk(b"tRNS", b"\0\t\0\b\0\a")),
}


@pytest.mark.parametrize("data", TRANSPARENT.values(), ids=TRANSPARENT)
def test_a_transparent_colour_is_white_and_the_callers_image_keeps_it(data: bytes) -> None:
    image = Image.open(io.BytesIO(data))
    pixels, notes = read_pixels(image, name="x")
    assert (pixels == 255).all() and notes[-1] == "alpha composited on white"
    assert "transparency" in image.info
    assert np.array_equal(pixels, open_image(data).pixels)


def test_a_scale_that_is_forgotten_is_refused_and_not_guessed() -> None:
    image = Image.open(io.BytesIO(TRANSPARENT["four bits"]))
    image.load()  # its values are scaled to 8 bits now, its transparent colour is not
    with pytest.raises(ImageRejected, match="a transparent colour of unknown scale"):
        read_pixels(image, name="x")


@pytest.mark.parametrize(
    "data",
    [
        tiff("<", 256, 16, 16, 1, RAMP.astype("<u2").tobytes()),
        tiff("<", 256, 16, 16, 0, (65535 - RAMP).astype("<u2").tobytes()),  # white is zero
        tiff("<", 16, 16, 12, 1, np.tile(np.array([0xFF, 0xF8, 0x00], np.uint8), (16, 8)).tobytes()),
    ],
    ids=["16 bits", "white is zero", "12 bits"],
)
def test_more_than_eight_bits_are_scaled_as_in_the_file(data: bytes) -> None:
    pixels = read_pixels(Image.open(io.BytesIO(data)), name="x")[0]
    assert np.array_equal(pixels, open_image(data).pixels) and pixels.max() == 255


def test_an_orientation_that_pillow_applied_is_not_applied_twice() -> None:
    image = Image.open(io.BytesIO(encoded(speckled(40, 20), "PNG", exif=orientation_exif(6))))
    upright = ImageOps.exif_transpose(image)
    assert upright.size == (20, 40)
    assert np.array_equal(read_pixels(upright, name="x")[0], np.asarray(upright))
    assert np.array_equal(read_pixels(image, name="x")[0], np.asarray(upright))


@settings(max_examples=40, deadline=None)
@given(st.integers(8, 40), st.integers(8, 40), st.integers(0, 9))
def test_grey_is_three_equal_channels(height: int, width: int, seed: int) -> None:
    grey = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    of_file = open_image(encoded(Image.fromarray(grey), "PNG")).pixels
    for image in (grey, grey[..., None], torch.from_numpy(grey), torch.from_numpy(grey)[None]):
        assert np.array_equal(read_pixels(image, name="x")[0], of_file)


# What is refused ----------------------------------------------------------------------------------------------------

UNDEFINED = RejectionReason.UNDEFINED_PIXELS
WRONG: dict[str, tuple[Any, RejectionReason, str]] = {
    "fractions": (noise(0) / 255, UNDEFINED, "values of type float64, whose range is not defined: give uint8"),
    "float tensor": (as_tensor(noise(0)).float() / 255, UNDEFINED, "values of type float32"),
    "16 bits": (noise(0).astype(np.uint16), UNDEFINED, "values of type uint16"),
    "flags": (noise(0) > 9, UNDEFINED, "values of type bool"),
    "channels first": (noise(0).transpose(2, 0, 1), UNDEFINED, "the colour channels come first"),
    "either axis": (torch.zeros(3, 9, 3, dtype=torch.uint8), UNDEFINED, "may be the first axis or the last"),
    "opacity": (np.zeros((9, 9, 4), np.uint8), UNDEFINED, "four channels"),
    "opacity first": (torch.zeros(4, 9, 9, dtype=torch.uint8), UNDEFINED, "four channels"),
    "two channels": (np.zeros((9, 9, 2), np.uint8), UNDEFINED, "shape (9, 9, 2): not an image"),
    "a row": (np.zeros(9, np.uint8), UNDEFINED, "shape (9,): not an image"),
    "a batch in a list": (np.zeros((2, 9, 9, 3), np.uint8), UNDEFINED, "give them one by one"),
    "masked": (np.ma.masked_array(noise(0), noise(0) > 9), UNDEFINED, "a masked array"),
    "sparse": (torch.zeros(9, 9, dtype=torch.uint8).to_sparse(), UNDEFINED, "a dense one"),
    "small": (np.zeros((7, 30, 3), np.uint8), RejectionReason.TOO_SMALL, "30 x 7; at least 8"),
    "empty": (np.zeros((0, 0, 3), np.uint8), RejectionReason.TOO_SMALL, "0 x 0"),
    "large": (np.broadcast_to(np.uint8(0), (9000, 9000, 3)), RejectionReason.TOO_LARGE, "9000 x 9000; at most"),
    "long": (torch.zeros(1, dtype=torch.uint8).expand(3, 8, 20_000), RejectionReason.TOO_LARGE, "20000 x 8"),
    "small Pillow": (flat("red", size=(5, 5)), RejectionReason.TOO_SMALL, "5 x 5"),
    "large fractions": (Image.fromarray(np.full((9, 9), 2.0, np.float32)), UNDEFINED, "only 0 to 1 is defined"),
    "unknown range": (Image.fromarray(np.full((9, 9), 200, np.int32)), UNDEFINED, "of unknown range"),
    "colour space": (flat(0, "HSV"), UNDEFINED, "colours of mode HSV"),
    "animation": (Image.open(io.BytesIO(frames("WEBP"))), RejectionReason.ANIMATED, "several pictures"),
    "pages": (Image.open(io.BytesIO(frames("TIFF"))), RejectionReason.MULTI_PAGE, "several pictures"),
    "half a file": (
        Image.open(io.BytesIO(encoded(speckled(99, 99), "PNG")[:9000])), RejectionReason.TRUNCATED, "truncated"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_has_no_defined_pixels_is_refused_with_its_reason(case: str) -> None:
    image, reason, text = WRONG[case]
    with pytest.raises(ImageRejected) as error:
        read_pixels(image, name="image 3")
    assert error.value.reason is reason and text in error.value.detail
    assert error.value.message.startswith("image 3: refused (")


def test_a_refused_image_keeps_its_place_and_says_why(model: dk.Predictor, tmp_path: Path) -> None:
    good = noise(1)
    images: list[Any] = [good, good / 255, tmp_path / "absent.jpg", np.zeros((4, 4, 3), np.uint8), good, tmp_path]
    found = list(model.predict_images(images, batch_size=2))
    assert [one.position for one in found] == list(range(6))
    assert [one.reason for one in found] == [
        None, UNDEFINED, RejectionReason.MISSING, RejectionReason.TOO_SMALL, None, RejectionReason.UNREADABLE
    ]  # fmt: skip
    refused = found[1]
    assert refused.refused.startswith("image 1: refused (undefined_pixels): values of type float64")
    assert (refused.predicted, refused.probabilities, refused.decisions) == ("", {}, None)
    assert found[2].refused == "absent.jpg: refused (missing): no such file"
    frame = model.predict(images)
    assert frame["refused"].tolist() == [one.refused for one in found]
    assert frame["p_benign"].isna().tolist() == [not one.probabilities for one in found]
    assert model.to_frame(found)["refused"].tolist() == frame["refused"].tolist()
    assert model.to_frame([refused])["p_benign"].isna().all()


@pytest.mark.parametrize(
    ("images", "text"),
    [
        (7, "images: of type int"),
        (b"bytes", "images: of type bytes"),
        (None, "images: of type NoneType"),
        ([noise(0), [[1, 2], [3, 4]]], "image 1: of type list"),
        (iter([None]), "image 0: of type NoneType"),
    ],
)
def test_what_is_no_image_in_any_form_ends_the_call(model: dk.Predictor, images: Any, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        list(model.predict_images(images))


def test_wrong_options_are_refused_before_the_first_image(model: dk.Predictor, trained: Path) -> None:
    with pytest.raises(UsageError, match="no such operating point"):
        model.predict_images(noise(0), target="sensitivity=.123")
    for images in ([noise(0)], iter([noise(0)])):
        with pytest.raises(UsageError, match=r"takes no metadata|given for an iterator"):
            model.predict_images(images, pd.DataFrame({"image": ["0"], "age": ["40"]}))


# Many images --------------------------------------------------------------------------------------------------------


def test_one_buffer_that_is_filled_again_gives_each_image(model: dk.Predictor) -> None:
    buffer = np.empty((30, 41, 3), np.uint8)

    def filled() -> Iterator[Pixels]:
        for seed in range(40):
            buffer[:] = noise(seed)
            yield buffer

    assert bits(model.predict_images(filled())) == bits(model.predict_images([noise(seed) for seed in range(40)]))


def test_an_iterator_is_read_only_a_few_batches_ahead(model: dk.Predictor) -> None:
    n_read, threads, size = 0, 2, 4

    def endless() -> Iterator[Pixels]:
        nonlocal n_read
        while True:
            n_read += 1
            yield noise(n_read % 7)

    predictions = model.predict_images(endless(), batch_size=size, workers=threads)
    for n_given in range(1, 101):
        assert next(predictions).position == n_given - 1
        assert n_read - n_given <= size * (RESULTS_PER_THREAD * threads + 2)
    predictions.close()


# Typed results ------------------------------------------------------------------------------------------------------


def test_the_fields_are_what_the_files_hold(
    model: dk.Predictor, trained: Path, binary: Path, tmp_path: Path
) -> None:
    data = dk.load_dataset(binary)
    paths = [str(data.image_path(name)) for name in data.manifest["image_id"][:9]]
    assert model.policy is not None
    target, coverage = model.policy.operating_points[0], model.policy.referral_thresholds[-1].target_coverage
    wish = f"{target.rate}={target.target}"
    dk.predict(trained, paths, out=tmp_path / "out", target=wish, coverage=coverage, device="cpu")
    found = list(model.predict_images(paths, target=wish, coverage=coverage))
    frame = model.to_frame(found)
    written = pd.read_csv(tmp_path / "out" / "predictions.csv", keep_default_na=False)
    assert frame.columns.tolist() == [*prediction_columns(model.class_names), "refused"]
    pd.testing.assert_frame_equal(frame.drop(columns="refused"), written, check_dtype=False)
    decisions = pd.read_csv(tmp_path / "out" / "decisions.csv", keep_default_na=False)
    for row, one in zip(decisions.to_dict("records"), found, strict=True):
        decision = one.decisions
        assert decision is not None and decision.operating_point == target.name
        yes_no = {True: "yes", False: "no", None: ""}
        assert row == {
            "image_id": one.image_id, "path": one.path, "predicted": decision.predicted,
            "confidence": decision.confidence, "referral": decision.referral,
            "outside_training_distribution": yes_no[one.outside_training_distribution],
            "positive": yes_no[decision.positive], "malignant_probability": decision.malignant_probability,
            "prediction_set": "; ".join(decision.prediction_set), "set_size": len(decision.prediction_set),
            **{f"positive_at_{name.replace(' ', '_')}": yes_no[at] for name, at in decision.positive_at.items()},
            **{f"p_{name}": p for name, p in decision.probabilities.items()},
        }  # fmt: skip
    assert {one.decisions.referral for one in found if one.decisions} <= {"answered", "referred"}
    seen = json.loads((tmp_path / "out" / "predict.json").read_text())["training_images"]
    assert [one.training_split for one in found if one.training_split] == [entry["split"] for entry in seen] != []


def test_a_training_image_is_known_by_its_pixels(model: dk.Predictor, binary: Path, trained: Path) -> None:
    split = pd.read_csv(trained / "split.csv", dtype=str)
    image_id = split.loc[split["split"] == "train", "image_id"].iloc[0]
    pixels = open_image(dk.load_dataset(binary).image_path(image_id)).pixels
    (one,) = model.predict_images(pixels)
    (other,) = model.predict_images(255 - pixels)
    assert (one.training_split, other.training_split) == ("train", "")


def test_no_decision_is_none_and_not_negative(model: dk.Predictor) -> None:
    (one,) = model.predict_images(noise(0))
    assert one.decisions is not None
    policy = model.select_policy()
    assert policy is not None and policy.point_index is None, "so few images guarantee nothing"
    assert one.decisions.positive is None and one.decisions.operating_point == ""
    assert set(one.decisions.positive_at) == {point.name for point in policy.policy.operating_points}


def test_names_of_a_list_are_those_of_predictions_csv(model: dk.Predictor, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        speckled().save(tmp_path / folder / "x.png")
    speckled().save(tmp_path / "2.png")
    paths = [tmp_path / "a" / "x.png", tmp_path / "b" / "x.png", tmp_path / "2.png", tmp_path / "a" / "x.png"]
    assert [one.image_id for one in model.predict_images(paths)] == ["x.png", "x.png#2", "2", "x.png"]
    assert [one.image_id for one in model.predict_images(map(str, paths))] == list(map(str, paths))
    mixed = [one.image_id for one in model.predict_images([paths[0], noise(0), noise(1), paths[2]])]
    assert mixed == ["x", "1", "2", "2.png"], "an image in memory has its position, and no other has its name"
    for images in (tmp_path, str(tmp_path), (path for path in [tmp_path]), [tmp_path / "*.png", tmp_path / "a"]):
        frame = model.predict(images)
        assert len(frame) == (2 if isinstance(images, list) else 3)
    assert model.predict(paths)["image_id"].tolist() == ["x.png", "x.png#2", "2"]


# Threads and processes ----------------------------------------------------------------------------------------------


def test_eight_threads_give_the_numbers_of_one(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [noise(seed) for seed in range(24)]
    expected = bits(dk.load_model(trained).predict_images(images, batch_size=5))
    shared, n_engines, barrier = dk.load_model(trained), [0], threading.Barrier(8)

    def counted(*args: Any, **options: Any) -> Any:
        n_engines[0] += 1
        return InferenceEngine(*args, **options)

    monkeypatch.setattr("dermkit.models.inference.InferenceEngine", counted)
    before = torch.get_num_threads()

    def score(_: int) -> list[tuple[float, ...]]:
        barrier.wait()
        return bits(shared.predict_images(images, batch_size=5, workers=2))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(score, range(8))) == [expected] * 8
    assert n_engines == [1]
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == torch.get_num_threads() == before


def test_a_shared_setting_is_restored_when_the_last_is_done() -> None:
    values = [4]
    setting = SharedSetting(lambda: values[-1], values.append)
    first, second = setting.restored(), setting.restored()
    first.__enter__()
    values.append(1)
    second.__enter__()
    first.__exit__(None, None, None)
    assert values[-1] == 1, "the second is still at work"
    second.__exit__(None, None, None)
    assert values[-1] == 4


def test_float32_is_exact_until_the_last_thread_is_done() -> None:
    """Two nets score at once on a GPU: the end of one must not let cuDNN round the inputs of the other."""

    def settings() -> tuple[bool, bool, bool]:
        cudnn = torch.backends.cudnn
        return cudnn.enabled, cudnn.deterministic, cudnn.allow_tf32

    before, exact = settings(), (True, True, False)
    assert before != exact
    first, second = (exact_float32(torch.device("cuda")) for _ in range(2))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert settings() == exact, "the second is still at work"
    second.__exit__(None, None, None)
    assert settings() == before
    with pytest.raises(ZeroDivisionError), exact_float32(torch.device("cuda")):
        assert settings() == exact, "it is set anew"
        raise ZeroDivisionError
    assert settings() == before


def test_a_model_travels_as_the_path_of_its_folder(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(trained / "model", tmp_path / "model"))
    monkeypatch.chdir(tmp_path)
    model = dk.load_model("model", progress=dk.Progress(say=lambda _line: None))
    data = pickle.dumps(model)
    assert len(data) < 1000
    monkeypatch.chdir(tmp_path.parent)
    images = [noise(seed) for seed in range(3)]
    assert bits(unpickled(data).predict_images(images)) == bits(model.predict_images(images))
    assert unpickled(pickle.dumps(list(model.predict_images(images)))) == list(model.predict_images(images))
    card = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**card, "notice": "another"}))
    write_checksums(folder)
    with pytest.raises(UntrustedError, match="is another model than the process loaded that sent it"):
        unpickled(data)


def test_a_model_on_another_engine_does_not_travel_as_one_on_torch(model: dk.Predictor) -> None:
    other: Any = replace(model, runtime=SessionRuntime((), {}), reload=None)
    with pytest.raises(UsageError, match="on another engine than torch"):
        pickle.dumps(other)


def unpickled(data: bytes) -> Any:
    return pickle.loads(data)  # noqa: S301 - the test's own bytes


class ScoredImages(Dataset[dk.ImagePrediction]):
    """A data set whose workers score an image each."""

    def __init__(self, model: dk.Predictor, images: list[Pixels]) -> None:
        self.model, self.images = model, images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dk.ImagePrediction:
        return next(self.model.predict_images(self.images[index]))


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_the_workers_of_a_data_loader_score_images(model: dk.Predictor) -> None:
    images = [noise(seed) for seed in range(5)]
    expected = [bits(model.predict_images(image))[0] for image in images]
    loader = DataLoader(
        ScoredImages(model, images), batch_size=2, num_workers=1, collate_fn=list, multiprocessing_context="fork"
    )
    assert bits([one for batch in loader for one in batch]) == expected


FORK = """
import multiprocessing, sys
import numpy as np, torch
import dermkit as dk

folder, images = sys.argv[1], list(np.load(sys.argv[2]))
torch.set_num_threads(4)
torch.rand(600, 600).mm(torch.rand(600, 600)).sin().sum()  # a team of four threads, which no fork brings along
model = dk.load_model(folder)

def score(answers, loads):
    predictor = dk.load_model(folder) if loads else model
    answers.put([list(one.probabilities.values()) for one in predictor.predict_images(images)])

context, expected = multiprocessing.get_context("fork"), None
for loads in (False, True):
    answers = context.Queue()
    worker = context.Process(target=score, args=(answers, loads), daemon=True)
    worker.start()
    worker.join(40)
    if worker.exitcode != 0:
        worker.kill()
        sys.exit(f"the forked worker that {'loads' if loads else 'inherits'} the model: {worker.exitcode}")
    scores = answers.get()
    expected = expected or [list(one.probabilities.values()) for one in model.predict_images(images)]
    assert scores == expected, (scores, expected)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_of_a_process_that_computed_with_several_threads_scores_images(
    trained: Path, tmp_path: Path
) -> None:
    """Its first operation on several threads would wait for ever for threads that only its parent has."""
    np.save(tmp_path / "images.npy", np.stack([noise(seed) for seed in range(3)]))
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, str(trained), str(tmp_path / "images.npy")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout + process.stderr


# The page -----------------------------------------------------------------------------------------------------------


def test_the_example_of_the_page_runs(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    section = DOCUMENT.read_text(encoding="utf-8").split("## In Python", 1)[1].split("\n## ", 1)[0]
    (example,) = re.findall(r"^```python\n(.*?)^```", section, re.M | re.S)
    shutil.copytree(trained / "model", tmp_path / "model")
    speckled().save(tmp_path / "lesion.jpg")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "docs/predict.md", "exec"), {})  # noqa: S102 - the page's own lines
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and "float64" in lines[3]
    for name in re.findall(r"`(\w+)`", section.split("| field", 1)[1].split("\n\n")[0]):
        assert name in {*dk.ImagePrediction.__annotations__, *dk.ImageDecisions.__annotations__}, name
