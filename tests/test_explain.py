"""`dermkit explain`: pictures, tables, the page, the checks of maps, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image

import dermkit as dk
from conftest import Cli, Invoke
from corner_net import SIZE, save_corner_model
from dermkit.errors import DataError, UntrustedError, UsageError
from dermkit.explanation import heat_maps
from dermkit.explanation.deletion import curve_area
from dermkit.explanation.overlay import blend_map
from dermkit.explanation.random_net_check import compare_with_random_nets
from dermkit.images.lesion_masks import find_mask, lesion_share
from dermkit.metrics.decisions.conformal import ConformalRule
from dermkit.metrics.decisions.policy import DecisionPolicy
from dermkit.metrics.decisions.recalibration import ProbabilityCalibration
from dermkit.models.card import read_card, write_policy
from dermkit.runs.layout import VERDICT
from dermkit.runs.model_verdict import read_model_verdict


@pytest.fixture(scope="module")
def corner_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model folder whose net calls an image melanoma for what is in its top left corner, and nothing else."""
    return save_corner_model(tmp_path_factory.mktemp("corner") / "model")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of two images: texture in two corners of the square that is cut out of them."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(2):
        rng = np.random.default_rng(seed)
        pixels = np.full((SIZE, SIZE + 20, 3), 128, np.uint8)
        pixels[:16, 10:26] = rng.integers(0, 256, (16, 16, 3))
        pixels[-16:, -26:-10] = rng.integers(0, 256, (16, 16, 3))
        Image.fromarray(pixels).save(folder / f"photo{seed}.png")
    return folder


def test_the_corner_net_is_explained_by_its_corner(corner_model: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (photos / "broken.jpg").write_bytes(b"no image")
    masks = tmp_path / "masks"
    masks.mkdir()
    mask = np.zeros((SIZE, SIZE + 20), np.uint8)
    mask[-16:, -26:-10] = 255  # a lesion where the net does not look
    Image.fromarray(mask).save(masks / "photo0_segmentation.png")
    outcome = dk.explain(corner_model, [str(photos)], out=out, class_name="melanoma", masks=masks, device="cpu")
    assert (outcome.n_explained, [reason for _, reason, _ in outcome.rejected_images]) == (2, ["not_an_image"])
    assert outcome.curves is not None and outcome.curves.n_better_deletion == 2
    assert outcome.curves.deletion_gain > 0.2
    assert outcome.random_net_check is not None and not outcome.random_net_check.fails

    table = pd.read_csv(out / "explanations.csv")
    assert table["image_id"].tolist() == ["photo0", "photo1"]
    assert set(table["class"]) == {"melanoma"} and set(table["method"]) == {"HiResCAM"}
    assert table["mask_inside"][0] < 0.05 and np.isnan(table["mask_inside"][1])
    assert "Most of the map lies outside the lesion" in table["note"][0]
    assert "was cut off" in table["note"][1]
    predictions = dk.predict(corner_model, [str(photos)], out=tmp_path / "predictions", device="cpu")
    p = pd.read_csv(predictions.out / "predictions.csv")["p_melanoma"]
    np.testing.assert_array_equal(table["p"], p)

    for stem in ("0001-photo0", "0002-photo1"):
        with Image.open(out / "overlays" / f"{stem}.png") as overlay:
            assert overlay.width > 200
        maps = np.load(out / "maps" / f"{stem}.npz")
        member_map, framed = maps["member_0"], maps["image"]
        assert (
            member_map.shape == (SIZE, SIZE)
            and member_map.dtype == np.float32
            and member_map.min() >= 0
            and member_map.max() == 1
        )
        assert member_map[:24, :24].sum() > 0.9 * member_map.sum()
        assert framed.shape == (SIZE, SIZE + 20)
        assert np.isnan(framed[:, :10]).all() and np.isnan(framed[:, -10:]).all()
        assert not np.isnan(framed[:, 10:-10]).any()
    html = (out / "explain.html").read_text()
    assert "Research use only. Not a medical device." in html and "melanoma, p " in html
    assert "http" not in html.replace("http-equiv", "")
    curves = pd.read_csv(out / "curves.csv")
    own_area = curve_area(curves[curves["image_id"] == "photo0"]["deletion"].to_numpy())
    assert own_area == pytest.approx(table["deletion_area"][0])
    document = json.loads((out / "explain.json").read_text())
    assert document["is_complete"] and document["checks"]["random_nets"]["n_images"] == 2


@pytest.mark.parametrize("bias", [(20.0, -20.0), (-20.0, 20.0)])
def test_the_class_that_is_explained_is_the_one_that_the_policy_answers(
    corner_model: Path, photos: Path, tmp_path: Path, bias: tuple[float, float]
) -> None:
    model = Path(shutil.copytree(corner_model, tmp_path / "model"))
    rule = ConformalRule(0.1, np.array([0.5, 0.5]), np.array([50, 50]))
    policy = DecisionPolicy(ProbabilityCalibration("bias", 20.0, bias), {"none": 1.0}, (), rule, 100, ())
    write_policy(model, policy.as_dict())
    decisions = dk.predict(model, [str(photos)], out=tmp_path / "predictions", device="cpu").out
    explained = dk.explain(model, [str(photos)], out=tmp_path / "maps", checks=False, device="cpu").out
    table = pd.read_csv(explained / "explanations.csv")
    raw = pd.read_csv(decisions / "predictions.csv")["predicted"].tolist()
    answers = pd.read_csv(decisions / "decisions.csv")["predicted"].tolist()
    assert answers == [read_card(model)["classes"][int(np.argmax(bias))]["name"]] * 2
    assert table["predicted"].tolist() == table["class"].tolist() == answers
    assert table["predicted_uncalibrated"].tolist() == raw
    is_said = "most probable without calibration" in (explained / "explain.html").read_text()
    assert is_said == (raw != answers)


def test_a_map_of_the_image_alone_fails_the_check(
    corner_model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def texture(
        self: object, pixels: NDArray[np.uint8], target: object, metadata: object = None
    ) -> NDArray[np.float32]:
        return heat_maps.scale_to_one(np.abs(pixels[..., 0] - 128.0))

    monkeypatch.setattr(heat_maps.NetExplainer, "__call__", texture)
    outcome = dk.explain(corner_model, [str(photos)], out=tmp_path / "out", device="cpu")
    assert outcome.random_net_check is not None and outcome.random_net_check.fails
    assert "do not depend on what was learned" in (tmp_path / "out" / "explain.html").read_text()


def smooth_map(rng: np.random.Generator) -> NDArray[np.float32]:
    rows, columns = np.indices((32, 32))
    top, left = rng.uniform(4, 28, 2)
    return np.asarray(np.exp(-((rows - top) ** 2 + (columns - left) ** 2) / 60), dtype=np.float32)


def test_maps_at_random_places_pass_and_equal_maps_fail() -> None:
    rng = np.random.default_rng(0)
    n_failed = sum(
        compare_with_random_nets([(smooth_map(rng), [smooth_map(rng) for _ in range(3)]) for _ in range(4)]).fails
        for _ in range(20)
    )
    assert n_failed <= 1
    same = smooth_map(rng)
    noisy = [np.asarray(same + 0.05 * rng.random((32, 32)), np.float32) for _ in range(3)]
    check = compare_with_random_nets([(same, noisy)])
    assert check.fails and check.n_nets == 3
    empty = compare_with_random_nets([(np.zeros((32, 32), np.float32), noisy)])
    assert empty.correlation is None and not empty.fails and "Not applicable" in empty.sentence


def test_the_share_inside_a_lesion() -> None:
    heat_map = np.zeros((10, 10), np.float32)
    heat_map[:5, :5] = 1
    heat_map[:, 8:] = np.nan
    mask = np.zeros((20, 20), np.bool_)
    mask[:10, :6] = True
    share = lesion_share(heat_map, mask)
    assert share.inside == pytest.approx(15 / 25)
    assert share.area == pytest.approx(15 / 80)
    assert share.sentence == ""
    outside = lesion_share(heat_map, np.flipud(mask))
    assert outside.inside == 0 and "100 % of it; an even map would have 81 % outside" in outside.sentence


def test_a_mask_is_found_by_the_name_of_its_image(tmp_path: Path) -> None:
    for name in ("a_segmentation.png", "b.png"):
        Image.new("L", (4, 4)).save(tmp_path / name)
    assert find_mask(tmp_path, "folder/a.jpg") == tmp_path / "a_segmentation.png"
    assert find_mask(tmp_path, "b.png") == tmp_path / "b.png"
    assert find_mask(tmp_path, "c.jpg") is None


def test_no_evidence_leaves_the_picture_as_it_is() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    heat_map = np.zeros((8, 8), np.float32)
    np.testing.assert_array_equal(blend_map(pixels, heat_map), pixels)
    heat_map[0] = np.nan
    blended = blend_map(pixels, heat_map)
    assert (blended[0] != pixels[0]).any()
    np.testing.assert_array_equal(blended[1:], pixels[1:])


def small_mask(folder: Path) -> None:
    (folder / "masks").mkdir()
    Image.new("L", (8, 8), 255).save(folder / "masks" / "photo1.png")


def foreign_output(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "thesis.txt").write_text("mine")


@pytest.mark.parametrize(
    ("prepare", "options", "error", "message"),
    [
        (None, {"class_name": "melanom"}, UsageError, "did you mean `melanoma`"),
        (None, {"against": "wart"}, UsageError, "no such class"),
        (
            None,
            {"method": "rollout", "against": "nevus"},
            UsageError,
            "plain roll-out is the same for every class",
        ),
        (small_mask, {"masks": "masks"}, DataError, "is 8 x 8 pixels, and its image is 84 x 64"),
        (None, {"masks": "photos/.."}, DataError, "holds no mask of these images"),
        (None, {"masks": "nowhere"}, DataError, "there is no such folder"),
        (foreign_output, {}, UsageError, "is not a folder of explanations"),
    ],
)
def test_bad_input_is_refused_before_work(
    prepare: Callable[[Path], None] | None, options: dict[str, str], error: type[Exception], message: str,
    corner_model: Path, photos: Path, tmp_path: Path,
) -> None:  # fmt: skip
    if prepare is not None:
        prepare(tmp_path)
    masks = tmp_path / options["masks"] if "masks" in options else None
    names = {name: value for name, value in options.items() if name != "masks"}
    with pytest.raises(error, match=message):
        dk.explain(
            corner_model, [str(photos)], out=tmp_path / "out", masks=masks, device="cpu",
            class_name=names.get("class_name"), against=names.get("against"),
            method=names.get("method", "auto"),  # type: ignore[arg-type]
        )  # fmt: skip
    assert not (tmp_path / "out" / "explain.json").exists()


def test_no_image_and_no_model(corner_model: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UntrustedError, match="not a model folder"):
        dk.explain(photos, [str(photos)], out=tmp_path / "out")
    with pytest.raises(DataError, match="no such folder"):
        dk.explain(tmp_path / "nothing", [str(photos)], out=tmp_path / "out")
    (tmp_path / "broken").mkdir()
    with pytest.raises(UsageError, match="no images there"):
        dk.explain(corner_model, [str(tmp_path / "broken")], out=tmp_path / "out")
    (tmp_path / "broken" / "a.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match="none of 1 images could be read"):
        dk.explain(corner_model, [str(tmp_path / "broken")], out=tmp_path / "out")
    assert "a.jpg,not_an_image" in (tmp_path / "out" / "refused.csv").read_text()


def test_without_captum_it_says_what_to_install(
    corner_model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(UsageError, match="captum") as failure:
        dk.explain(corner_model, [str(photos)], out=tmp_path / "out")
    assert "pip install" in failure.value.remedy


def test_a_second_explanation_replaces_the_first(
    corner_model: Path, photos: Path, tmp_path: Path, invoke: Invoke
) -> None:
    out = tmp_path / "out"
    command = ("explain", corner_model, "--out", out, "--no-checks", "--device", "cpu")
    code, printed, _ = invoke(*command, photos, "--method", "occlusion")
    assert code == 0 and "2 images explained" in printed
    code, printed, _ = invoke(*command, photos / "photo1.png", "--class", "melanoma", "--against", "nevus")
    assert code == 0 and "1 image explained" in printed
    assert [path.name for path in (out / "overlays").iterdir()] == ["0001-photo1.png"]
    table = pd.read_csv(out / "explanations.csv")
    assert table["against"].tolist() == ["nevus"]
    assert table["p"][0] + table["p_against"][0] == pytest.approx(1)
    assert not (out / "curves.csv").exists()


def test_a_models_verdict_is_found_however_its_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "run" / "model"
    model.mkdir(parents=True)
    doubt = {"code": "majority", "weight": "refuse", "sentence": "", "evidence": "blind", "remedy": ""}
    VERDICT.write(model.parent, {"split": "test", "verdict": "do not believe", "doubts": [doubt]})
    (tmp_path / "linked").symlink_to(model)
    monkeypatch.chdir(model)
    for name in (Path(), Path("../model"), tmp_path / "linked", model):
        verdict = read_model_verdict(name)
        assert verdict is not None and verdict.word == "do not believe", name
    assert read_model_verdict(model.parent) is None


def test_the_page_begins_with_what_the_models_report_said(
    corner_model: Path, photos: Path, tmp_path: Path
) -> None:
    """Heat maps of an untrained net look like any other: its report has to say that its answers are not right."""

    def page_of(model: Path) -> str:
        out = dk.explain(model, [str(photos)], out=tmp_path / "out", checks=False, device="cpu").out
        document = json.loads((out / "explain.json").read_text())["verdict"]
        assert (document or {}).get("word") == ({} if model == corner_model else content).get("verdict")
        return (out / "explain.html").read_text()

    content = {
        "split": "test", "verdict": "do not believe",
        "doubts": [{"code": "majority", "weight": "refuse", "sentence": "Not better than <chance>.",
                    "evidence": "blind", "remedy": "Train longer."}],
    }  # fmt: skip
    assert "nothing is known here of how often its answers are right" in page_of(corner_model)
    run = shutil.copytree(corner_model.parent, tmp_path / "run")
    VERDICT.write(run, content)
    html = page_of(run / corner_model.name)
    assert html.count('<li class="serious"><b>Verdict of the model') == 1
    assert "Do not believe (on the test images). Not better than &lt;chance&gt;." in html
    content = {**content, "verdict": "believe", "doubts": []}
    VERDICT.write(run, content)
    assert '<li class="passed"><b>Verdict of the model' in page_of(run)


def test_the_command_in_a_process_of_its_own(corner_model: Path, photos: Path, tmp_path: Path, cli: Cli) -> None:
    (photos / "broken.jpg").write_bytes(b"no image")
    process = cli("explain", corner_model, photos, "--out", tmp_path / "out", "--device", "cpu")
    assert process.returncode == 7, process.stderr
    assert "2 images explained" in process.stdout and "random weights: " in process.stdout
    assert "1 image was refused" in process.stderr
    assert (tmp_path / "out" / "explain.html").is_file()
