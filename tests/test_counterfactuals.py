"""`dermkit counterfactuals`: what is drawn and measured, the planted shortcut that it names, and what it refuses."""

import json
import shutil
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from sklearn.linear_model import LogisticRegression

import dermkit as dk
from conftest import Invoke
from dermkit.data.manifest import LesionClass
from dermkit.data.synthetic.lesions import draw_photograph, make_lesion
from dermkit.errors import DataError, UsageError
from dermkit.images.preprocess import Preprocessing, resize_pixels
from dermkit.models import model_content
from dermkit.models.card import WEIGHTS_FILE, read_card, write_policy
from dermkit.models.checksums import VerifiedFiles, read_verified, write_checksums
from dermkit.models.net import build_net
from dermkit.models.weights import resolve_weights
from dermkit.perturbation.artefacts import ARTEFACTS, add_artefact
from dermkit.perturbation.changes import VariantAnswers, measure_changes, order_worst_first
from dermkit.perturbation.hiding import find_lesion, hide_background, hide_lesion
from dermkit.perturbation.run import parse_image_count
from dermkit.perturbation.selection import images_of_run, sample_units
from dermkit.perturbation.sentences import Wording, artefact_sentence, signed
from dermkit.prediction.model_folder import ModelMetadata, save_model
from dermkit.recipes.experiments import DEMO
from dermkit.reporting.counterfactual_lines import read_counterfactuals
from dermkit.runs.folder import RunFolder
from dermkit.runs.layout import COUNTERFACTUALS
from dermkit.runs.model_key import folder_model_key

NAMES = [artefact.name for artefact in ARTEFACTS]
SIDE = 32
CLASSES = (LesionClass("benign", "", "benign"), LesionClass("malignant", "", "malignant"))


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# What is drawn ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=3)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    strength=st.floats(0.01, 1.0),
    image_id=st.text(max_size=5),
)
def test_an_artefact_keeps_shape_and_type_and_is_repeatable(
    name: str, height: int, width: int, strength: float, image_id: str
) -> None:
    pixels = photograph(height, width)
    before = pixels.copy()
    altered = add_artefact(pixels, name, strength, image_id=image_id, seed=3)
    assert altered.dtype == np.uint8 and altered.shape == pixels.shape
    assert np.array_equal(pixels, before)
    assert np.array_equal(altered, add_artefact(pixels, name, strength, image_id=image_id, seed=3))
    assert np.array_equal(add_artefact(pixels, name, 0.0, image_id=image_id, seed=3), before)


@pytest.mark.parametrize("name", NAMES)
def test_an_artefact_grows_with_its_strength(name: str) -> None:
    pixels = draw_photograph(make_lesion("nevus", seed=5), photo_seed=1, size=64)
    distances = [
        float(np.abs(add_artefact(pixels, name, strength, image_id="a").astype(int) - pixels).mean())
        for strength in (1 / 3, 2 / 3, 1.0)
    ]
    assert 0 < distances[0] < distances[1] < distances[2], distances


def test_images_and_seeds_differ_in_what_is_drawn_and_hairs_stay_where_they_were() -> None:
    pixels = np.full((60, 80, 3), 200, np.uint8)
    pictures = {add_artefact(pixels, "ink", 1.0, image_id=str(number)).tobytes() for number in range(12)}
    assert len(pictures) > 6
    seeds = {add_artefact(pixels, "ink", 1.0, image_id="a", seed=seed).tobytes() for seed in range(12)}
    assert len(seeds) > 6
    few, many = (add_artefact(pixels, "hair", strength, image_id="a") for strength in (1 / 3, 1.0))
    dark = few.max(axis=2) < 120
    assert dark.any() and (many[dark].max(axis=1) < 140).all()


@pytest.mark.parametrize(("name", "strength"), [("fog", 0.5), ("ink", -0.1), ("ink", 1.1), ("ink", float("nan"))])
def test_an_unknown_artefact_or_strength_is_refused(name: str, strength: float) -> None:
    with pytest.raises(ValueError, match=r"strength|artefact"):
        add_artefact(photograph(8, 8), name, strength, image_id="a")


def test_known_answers_of_light_and_compression() -> None:
    grey = np.full((16, 16, 3), 128, np.uint8)
    dark = add_artefact(grey, "underexposure", 1.0, image_id="a")
    light = ((128 / 255 + 0.055) / 1.055) ** 2.4 * 2**-1.5  # sRGB by hand
    assert int(dark[0, 0, 0]) == round(255 * (1.055 * light ** (1 / 2.4) - 0.055))
    warm = add_artefact(grey, "warm_cast", 1.0, image_id="a")[0, 0].tolist()
    assert warm[0] > 128 == warm[1] > warm[2]
    buffer = BytesIO()
    Image.fromarray(photograph(24, 24)).save(buffer, "JPEG", quality=10)
    compressed = add_artefact(photograph(24, 24), "jpeg_quality", 1.0, image_id="a")
    assert np.array_equal(compressed, np.asarray(Image.open(buffer).convert("RGB")))


def test_the_lesion_is_found_and_hidden() -> None:
    skin, lesion = np.array([220, 180, 160]), np.array([110, 70, 60])
    y, x = np.mgrid[:90, :120]
    truth = ((x - 62) / 25) ** 2 + ((y - 43) / 18) ** 2 <= 1
    noise = np.random.default_rng(0).normal(0, 6, (90, 120, 3))
    pixels = np.clip(np.where(truth[:, :, None], lesion, skin) + noise, 0, 255).astype(np.uint8)
    area = find_lesion(pixels)
    assert area.source == "automatic"
    assert (area.mask & truth).sum() / (area.mask | truth).sum() > 0.9
    without_lesion, alone = hide_lesion(pixels, area.mask), hide_background(pixels, area.mask)
    assert np.abs(without_lesion[truth].mean(axis=0) - skin).max() < 12
    assert np.array_equal(alone[43, 62], pixels[43, 62]) and np.abs(alone[0, 0].astype(int) - skin).max() < 12
    flat = find_lesion(np.full((30, 40, 3), 200, np.uint8))
    assert flat.source == "ellipse" and 0.15 < flat.mask.mean() < 0.25
    given_mask = find_lesion(pixels, ~truth)
    assert given_mask.source == "mask" and np.array_equal(given_mask.mask, ~truth)


# What is measured ---------------------------------------------------------------------------------------------------


def test_changes_have_known_answers() -> None:
    rng = np.random.default_rng(0)
    n = 80
    is_malignant = np.arange(n) < 40
    original = np.where(is_malignant, 0.7, 0.3) + rng.uniform(-0.1, 0.1, n)
    score = np.stack([original, original, original + 0.2, original + rng.normal(0, 0.05, n)], axis=1)
    answers = VariantAnswers(
        score,
        (score >= 0.5).astype(np.int64),
        score >= 0.5,
        is_malignant,
        is_malignant.astype(np.int64),
        np.arange(n),
    )
    _, control, moved, noise = measure_changes(answers, tested=[2, 3])
    assert control.score.value == 0.0 and control.n_label_changes == 0 and control.p is None
    assert moved.score.value == pytest.approx(0.2) and moved.p_holm is not None and moved.p_holm < 0.01
    n_flipped = int(((original < 0.5) & (original >= 0.3)).sum())
    assert moved.n_label_changes == moved.n_to_positive == n_flipped and moved.n_to_negative == 0
    assert moved.specificity.value == pytest.approx(-n_flipped / 40) and moved.specificity.n == 40
    assert moved.sensitivity.value == 0.0
    assert noise.score.ci95 is not None and noise.score.ci95[0] < 0 < noise.score.ci95[1] and not noise.is_shown
    assert moved.decision_changes.value == pytest.approx(n_flipped / n) == moved.decisions.value
    assert order_worst_first([control, noise, moved]) == [2, 1, 0]


def test_the_worst_artefact_turns_most_decisions_round_and_labels_count_where_there_are_none() -> None:
    """One change moves every probability and no decision, another few of them across the operating point."""
    original = np.linspace(0.05, 0.45, 40)
    score = np.stack([original, original + 0.04, np.where(original > 0.4, original + 0.2, original)], axis=1)
    groups, labels = np.arange(40), np.zeros((40, 3), np.int64)
    labels[:7, 1] = 1
    is_malignant = np.arange(40) < 20
    with_point = VariantAnswers(score, labels, score >= 0.5, is_malignant, is_malignant.astype(np.int64), groups)
    _, every, few = measure_changes(with_point, tested=[1, 2])
    assert abs(every.score.value or 0) > abs(few.score.value or 0)
    assert (every.n_decisions, few.n_decisions) == (0, 5) and few.decisions.n == 40
    assert order_worst_first([every, few]) == [1, 0]
    without = VariantAnswers(score, labels, None, None, np.zeros(40, np.int64), groups)
    _, every, few = measure_changes(without, tested=[1, 2])
    assert every.decision_changes.value is None and every.decisions.value == 7 / 40
    assert order_worst_first([every, few]) == [0, 1]


def test_units_make_the_interval_wider() -> None:
    deltas = np.repeat(np.random.default_rng(1).normal(0.05, 0.1, 40), 4)
    score = np.stack([np.full(160, 0.4), 0.4 + deltas], axis=1)
    labels = np.zeros((160, 2), np.int64)

    def width(groups: np.ndarray) -> float:
        answers = VariantAnswers(score, labels, None, None, np.zeros(160, np.int64), groups)
        change = measure_changes(answers, tested=[1])[1]
        assert change.score.ci95 is not None and change.sensitivity.value is None
        assert "not both malignant and other" in change.sensitivity.reason
        return change.score.ci95[1] - change.score.ci95[0]

    assert 1.6 < width(np.repeat(np.arange(40), 4)) / width(np.arange(160)) < 2.4


def test_a_sentence_says_what_moved_with_n_and_interval() -> None:
    score = np.stack([np.full(118, 0.3), np.full(118, 0.42)], axis=1)
    score[:, 1] += np.random.default_rng(0).normal(0, 0.05, 118)
    labels = np.stack([np.zeros(118), np.arange(118) < 14], axis=1).astype(np.int64)
    is_malignant = np.arange(118) < 48
    answers = VariantAnswers(
        score, labels, score >= 0.9, is_malignant, is_malignant.astype(np.int64), np.arange(118)
    )
    change = measure_changes(answers, tested=[1])[1]
    text = artefact_sentence("Drawn hair", change, Wording("P(malignant)", 118, 118, True, "operating point x"))
    assert text == (
        "Drawn hair changes 0 of 118 decisions (operating point x): 0 become positive, 0 negative. P(malignant) moves "
        "by +.12 [.11, .13] on average."
    )
    by_label = artefact_sentence("Drawn hair", change, Wording("P(malignant)", 118, 118, True, ""))
    assert by_label.startswith("Drawn hair changes 14 of 118 labels.")
    assert [signed(value) for value in (0.1234, -0.5, 0.001, -0.001, 1.0)] == [
        "+.12",
        "-.50",
        ".00",
        ".00",
        "+1.00",
    ]


# A planted shortcut -------------------------------------------------------------------------------------------------


def made_photographs(n: int, dark_corners: str, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return photographs (n, S, S, 3) and whether each is malignant. dark_corners: on malignant ones, half, or none."""
    is_malignant, is_in_half = np.arange(n) % 2 == 1, np.arange(n) // 2 % 2 == 0
    is_dark = {"malignant": is_malignant, "half": is_in_half, "none": np.zeros(n, dtype=bool)}[dark_corners]
    lesions = [
        make_lesion("malignant" if edge else "benign", seed=1000 * seed + n) for n, edge in enumerate(is_malignant)
    ]
    photographs = [
        draw_photograph(
            lesion, photo_seed=n, size=SIDE, artefacts=frozenset({"dark_corners"} if is_dark[n] else ())
        )
        for n, lesion in enumerate(lesions)
    ]
    return np.stack(photographs), is_malignant


def train_model(folder: Path, *, dark_corners: str) -> Path:
    """Train the last layer of a small net on made photographs and save the model."""
    spec = replace(DEMO.model, backbone="dermkit/cnn-s1", hidden=(), weights="none", dropout=0.0)
    net = build_net(spec, 2, weights=resolve_weights(spec, None), seed=0).eval()
    head = next(module for module in net.head.modules() if isinstance(module, torch.nn.Linear))
    photographs, is_malignant = made_photographs(100, dark_corners, seed=1)
    features: list[torch.Tensor] = []
    handle = head.register_forward_pre_hook(lambda _module, inputs: features.append(inputs[0]))
    with torch.no_grad():
        net((torch.from_numpy(photographs).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25)
    handle.remove()
    fitted = LogisticRegression(C=0.003, max_iter=500).fit(features[0].numpy(), is_malignant)
    with torch.no_grad():
        head.weight.zero_()
        head.weight[1] = torch.from_numpy(fitted.coef_[0]).float()
        head.bias.copy_(torch.tensor([0.0, float(fitted.intercept_[0])]))
    preprocessing = Preprocessing(
        size=SIDE, resize="squash", interpolation="bilinear", divide_by=255.0, mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )  # fmt: skip
    metadata = ModelMetadata({"name": "made"}, {}, {}, {}, [])
    return save_model(folder, net, spec=spec, classes=CLASSES, preprocessing=preprocessing, metadata=metadata)


@pytest.fixture(scope="module")
def clean_test(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set of 40 clean made photographs."""
    folder = tmp_path_factory.mktemp("clean")
    photographs, is_malignant = made_photographs(40, "none", seed=2)
    for number, (pixels, malignant) in enumerate(zip(photographs, is_malignant, strict=True)):
        path = folder / "images" / ("malignant" if malignant else "benign") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return dk.import_dataset("folder", folder / "images", out=folder / "data").dataset.folder


def test_an_artefact_tied_to_a_class_is_the_worst_and_its_clean_twin_is_not(
    clean_test: Path, tmp_path: Path
) -> None:
    dataset = dk.load_dataset(clean_test)
    results = {}
    for name, dark_corners in (("planted", "malignant"), ("twin", "half")):
        model = train_model(tmp_path / name, dark_corners=dark_corners)
        pictures = ["ruler", "ink", "dark_corners", "jpeg_quality"]
        outcome = dk.counterfactuals(
            model, dataset=dataset, out=tmp_path / f"{name}-out", artefacts=pictures, device="cpu"
        )
        results[name] = json.loads((outcome.out / "counterfactuals.json").read_text())
        assert results[name]["control"]["largest_change"] == 0.0
    worst = results["planted"]["artefacts"][0]
    assert worst["name"] == "dark_corners" and worst["is_shown"]
    assert worst["by_strength"][-1]["change"]["ci95"][0] > 0.3
    twin = next(one for one in results["twin"]["artefacts"] if one["name"] == "dark_corners")
    assert abs(twin["by_strength"][-1]["change"]["value"]) < 0.1


# The verb -----------------------------------------------------------------------------------------------------------


def test_a_run_is_changed_on_its_test_images(trained: Path, tmp_path: Path, invoke: Invoke) -> None:
    out = tmp_path / "out"
    code, text, err = invoke("counterfactuals", trained, "--out", out, "--artefact", "ink", "--artefact", "crop")
    assert code == 0, err
    assert "Control: " in text and text.rstrip().endswith("counterfactuals.html")
    content = json.loads((out / "counterfactuals.json").read_text())
    assert content["is_complete"] and content["images"]["split"] == "test"
    assert content["largest_deviation_from_predictions"] < 1e-5
    rows = pd.read_csv(out / "counterfactuals.csv")
    predictions = RunFolder(trained).predictions
    n_test = int((predictions["split"] == "test").sum())
    assert len(rows) == n_test * (1 + 2 * 3 + 2)
    full = rows[(rows["artefact"] == "ink") & (rows["strength"] == 1)]
    ink = next(one for one in content["artefacts"] if one["name"] == "ink")
    assert ink["by_strength"][-1]["change"]["value"] == pytest.approx(full["change"].mean())
    assert ink["by_strength"][-1]["change"]["n"] == n_test and ink["by_strength"][-1]["change"]["ci95"]
    expected = predictions.set_index("image_id").loc[full["image_id"], "p_malignant"].to_numpy()
    assert np.allclose(full["score_original"], expected, atol=1e-5)
    page = (out / "counterfactuals.html").read_text()
    assert "Research use only. Not a medical device." in page and "http://" not in page.replace(
        "http://www.w3.org", ""
    )
    assert not (out / "scores.npz").exists()
    assert (out / "pictures" / "ink.svg").is_file() and (out / "pictures" / "lesion_hidden.jpg").is_file()
    check_report_lines(content, tmp_path)


def check_report_lines(content: dict[str, Any], folder: Path) -> None:
    """The report's three lines are those of the JSON; an unfinished one or none has no lines."""
    run = folder / "run"
    (run / "counterfactuals").mkdir(parents=True)
    path = run / "counterfactuals" / "counterfactuals.json"
    assert read_counterfactuals(run, "test") is None
    path.write_text(json.dumps(content))
    lines = read_counterfactuals(run, "test")
    assert lines is not None and len(lines.worst) == 2 and lines.worst[0] == content["artefacts"][0]["text"]
    path.write_text(json.dumps({**content, "is_complete": False}))
    assert read_counterfactuals(run, "test") is None


def interrupt_at_fifth_image(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Interrupt scoring at its fifth image, once; returns a list that gets an entry for each image."""
    from dermkit.perturbation import scoring

    score, n_scored = scoring._score, list[int]()

    def interrupt_at_fifth(*args: object) -> object:
        n_scored.append(1)
        if len(n_scored) == 5:
            raise KeyboardInterrupt
        return score(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(scoring, "_score", interrupt_at_fifth)
    return n_scored


def test_an_interrupted_run_is_continued(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, calls = tmp_path / "out", interrupt_at_fifth_image(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        dk.counterfactuals(trained, out=out, artefacts=["crop"], device="cpu")
    content = json.loads((out / "counterfactuals.json").read_text())
    assert not content["is_complete"] and not (out / "counterfactuals.html").exists()
    first = len(calls)
    outcome = dk.counterfactuals(trained, out=out, artefacts=["crop"], device="cpu")
    assert len(calls) - first == outcome.n_images - 4
    assert json.loads((out / "counterfactuals.json").read_text())["is_complete"]


def swap_nets(model: Path) -> None:
    """Put other weights beside the same card."""
    weights = load_safetensors((model / WEIGHTS_FILE).read_bytes())
    (model / WEIGHTS_FILE).write_bytes(save_safetensors({name: value + 1 for name, value in weights.items()}))
    write_checksums(model)


@pytest.mark.parametrize("change", ["note in the card", "other nets"])
def test_saved_answers_are_those_of_the_nets_whatever_was_noted_since(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    run, n_scored = Path(shutil.copytree(trained, tmp_path / "run")), interrupt_at_fifth_image(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        dk.counterfactuals(run, artefacts=["crop"], device="cpu")
    if change == "other nets":
        swap_nets(run / "model")
    else:
        card = read_card(run / "model")
        evaluation = {"split": "test", "n": 12, "outcome": "", "verdict": "Seen again.", "figures": {},
                      "broken_guarantees": [], "is_of_single_nets": False}  # fmt: skip
        write_policy(run / "model", card, evaluation=evaluation)
        assert read_card(run / "model") != card
    outcome = dk.counterfactuals(run, artefacts=["crop"], device="cpu")
    assert len(n_scored) - 5 == outcome.n_images - 4 * (change == "note in the card")


def test_counterfactuals_are_of_the_model_that_was_loaded(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other nets are put into the folder while the command runs."""
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    real, key = read_verified, folder_model_key(run / "model")

    def read_then_swap(folder: Path) -> VerifiedFiles:
        content = real(folder)
        swap_nets(folder)
        return content

    monkeypatch.setattr(model_content, "read_verified", read_then_swap)
    outcome = dk.counterfactuals(run, artefacts=["crop"], device="cpu")
    assert COUNTERFACTUALS.read(outcome.out)["model_key"] == key != folder_model_key(run / "model")


def test_a_sealed_test_split_is_left_alone(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    seal = {
        "format": 2,
        "name": "s",
        "date": "2026-01-01",
        "n": 1,
        "opening_number": 1,
        "openings": [],
        "sha256": "0",
    }
    (run / "seal.json").write_text(json.dumps(seal))
    assert images_of_run(RunFolder(run), split=None, images_root=None).split == "validation"
    run_images = images_of_run(RunFolder(run), split="test", images_root=None)
    assert run_images.split == "test" and "opening 1" in run_images.text
    predictions = pd.read_csv(run / "predictions.csv", dtype=str)
    predictions[predictions["split"] == "validation"].to_csv(run / "predictions.csv", index=False)
    with pytest.raises(UsageError, match="holds no test images"):
        images_of_run(RunFolder(run), split="test", images_root=None)
    predictions = pd.read_csv(trained / "predictions.csv", dtype=str)
    predictions[predictions["split"] == "test"].to_csv(run / "predictions.csv", index=False)
    with pytest.raises(UsageError, match="its test images are sealed"):  # the only ones, and nobody asked for them
        images_of_run(RunFolder(run), split=None, images_root=None)
    assert images_of_run(RunFolder(run), split="test", images_root=None).split == "test"


def test_an_ensemble_of_folds_has_no_validation_images(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    fields = json.loads((run / "run.json").read_text())
    for fitted_on, split in (("validation images", "validation"), ("out-of-fold images", None)):
        ensemble = {"weights": "equal", "fitted_on": fitted_on, "openings": []}
        (run / "run.json").write_text(json.dumps({**fields, "ensemble": ensemble}))
        assert images_of_run(RunFolder(run), split=None, images_root=None).split == "test"
        if split is None:
            with pytest.raises(UsageError, match="holds no validation images that its model"):
                images_of_run(RunFolder(run), split="validation", images_root=None)
        else:
            assert images_of_run(RunFolder(run), split=split, images_root=None).split == split
    rows = pd.read_csv(run / "predictions.csv", dtype=str)
    rows[rows["split"] == "validation"].to_csv(run / "predictions.csv", index=False)
    with pytest.raises(DataError, match="learned from each other's validation images"):
        images_of_run(RunFolder(run), split=None, images_root=None)


def test_a_sample_holds_whole_units(trained: Path) -> None:
    selection = images_of_run(RunFolder(trained), split=None, images_root=None)
    grouped = replace(selection, groups=np.arange(len(selection)) // 3)
    sample = sample_units(grouped, 5, seed=0)
    assert 5 <= len(sample) <= 8 and sample.n_available == len(selection)
    pictures = {
        grouped.groups[index] for index in np.flatnonzero(selection.rows["image_id"].isin(sample.rows["image_id"]))
    }
    assert sum(np.isin(grouped.groups, list(pictures))) == len(sample) and sample.n_units == len(pictures)
    assert sample_units(grouped, None, seed=0) is grouped


def test_what_cannot_be_changed_is_refused(trained: Path, binary: Path, tmp_path: Path, invoke: Invoke) -> None:
    out = tmp_path / "out"
    moved = tmp_path / "moved"
    shutil.copytree(trained, moved, ignore=shutil.ignore_patterns("location.json"))
    for arguments, code, text in (
        ((trained, "--artefact", "inc"), 2, "did you mean `ink`"),
        ((trained, "--images", "few"), 2, "neither a number"),
        ((trained, "--images", "2"), 3, "--images 10 or more"),
        ((moved,), 3, "are not where they were"),
        ((tmp_path / "nowhere",), 3, "there is no such folder"),
        ((trained / "model", "--on", binary, "--masks", tmp_path), 3, "holds no mask"),
    ):
        actual, _, err = invoke("counterfactuals", *arguments, "--out", out)
        assert actual == code and text in err, err
        assert not (out / "counterfactuals.json").exists()
    assert parse_image_count("all") is None and parse_image_count("30") == 30
    few = dk.load_dataset(binary)
    few = replace(few, manifest=few.manifest.head(9))
    with pytest.raises(DataError, match=r"only \d images"):
        dk.counterfactuals(trained, dataset=few, out=out, device="cpu")


def test_refused_images_are_listed_and_a_wrong_mask_stops(clean_test: Path, tmp_path: Path, trained: Path) -> None:
    dataset = dk.load_dataset(clean_test)
    damaged = tmp_path / "images"
    for path in sorted(dataset.image_root.rglob("*.png"))[:24]:
        copied = damaged / path.relative_to(dataset.image_root)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_bytes(path.read_bytes())
    damaged_dataset = replace(dataset, image_root=damaged)
    outcome = dk.counterfactuals(
        trained, dataset=damaged_dataset, out=tmp_path / "out", artefacts=["crop"], device="cpu"
    )
    assert (outcome.n_images, len(outcome.rejected_images)) == (24, 16)
    masks = tmp_path / "masks"
    masks.mkdir()
    Image.fromarray(np.full((SIDE + 1, SIDE), 255, np.uint8)).save(masks / "00.png")
    with pytest.raises(DataError, match="its image is 32 x 32"):
        dk.counterfactuals(
            trained, dataset=dataset, out=tmp_path / "out2", artefacts=["crop"], masks=masks, device="cpu"
        )


def test_resizing_is_that_of_prediction() -> None:
    preprocessing = Preprocessing(
        size=16,
        resize="crop",
        interpolation="bilinear",
        divide_by=255.0,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )
    pixels = photograph(40, 30)
    control = add_artefact(pixels, "hair", 0.0, image_id="a")
    assert np.array_equal(resize_pixels(control, preprocessing), resize_pixels(pixels, preprocessing))
