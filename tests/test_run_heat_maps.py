"""Heat maps of a run's own mistakes and best hits: which images, where the maps lie, what is never opened."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image

import dermkit as dk
from conftest import Invoke
from corner_net import BOTTOM_RIGHT, CLASSES, SIZE, TOP_LEFT, save_corner_model
from dermkit.errors import UsageError
from dermkit.evaluation.options import EvaluationOptions, parse_options
from dermkit.explanation import model_maps, run_maps
from dermkit.explanation.run_images import MAX_HITS, MAX_MISTAKES, choose_run_images
from dermkit.explanation.run_maps import update_heat_maps
from dermkit.explanation.run_records import map_png
from dermkit.files import write_rows
from dermkit.images.decode import open_image
from dermkit.prediction.load import load_model
from dermkit.reporting import report
from dermkit.reporting.run_heat_maps import RunHeatMaps, read_heat_maps
from dermkit.runs.folder import RunFolder
from dermkit.runs.layout import HEAT_MAPS, LOCATION, METRICS, RUN, RUN_SEAL, SUMMARY
from dermkit.runs.predictions import prediction_columns, write_attributes
from test_explain_metadata import save_linear_model

NAMES = [lesion_class.name for lesion_class in CLASSES]
PHOTOS = {
    **{f"nevus/{i}": ("nevus", i < 2) for i in range(6)},
    **{f"melanoma/{i}": ("melanoma", i < 5) for i in range(6)},
}
"""Image -> its label, and whether its top left corner holds what the net calls melanoma. Two nevi and one melanoma are
answered wrongly."""
MISSED = "melanoma/5"


def photograph(seed: int, cell: int | None) -> NDArray[np.uint8]:
    """Return an image whose lesion, a patch of texture, lies in one cell of the corner net, or nowhere."""
    pixels = np.full((SIZE, SIZE, 3), 128, np.uint8)
    texture = np.random.default_rng(seed).integers(0, 256, (16, 16, 3))
    if cell == TOP_LEFT:
        pixels[:16, :16] = texture
    if cell == BOTTOM_RIGHT:
        pixels[-16:, -16:] = texture
    return pixels


def save_photographs(root: Path) -> Path:
    for number, (image_id, (_, has_lesion)) in enumerate(PHOTOS.items()):
        (root / image_id).parent.mkdir(parents=True, exist_ok=True)
        picture = photograph(number, TOP_LEFT if has_lesion else None)
        Image.fromarray(picture).save(root / f"{image_id}.png")
    return root


def score(model: Path, root: Path) -> NDArray[np.float64]:
    pixels = np.stack([np.asarray(Image.open(root / f"{image_id}.png")) for image_id in PHOTOS])
    return load_model(model, device="cpu").probabilities(pixels)


def write_predicted(run: Path, p: NDArray[np.float64], *, split: str = "test", fold: Any = "") -> None:
    rows = [
        (image_id, f"{image_id}.png", label, split, fold, 0, NAMES[int(row.argmax())], *map(float, row))
        for (image_id, (label, _)), row in zip(PHOTOS.items(), p, strict=True)
    ]
    write_rows(run / "predictions.csv", prediction_columns(NAMES), rows)


def make_run(folder: Path, root: Path) -> Path:
    """Write a run whose net looks at the top left corner, as a training leaves it before its evaluation."""
    save_corner_model(folder / "model")
    write_predicted(folder, score(folder / "model", root))
    dataset = {"name": "corners", "classes": [vars(one) for one in CLASSES], "n": len(PHOTOS), "notes": {}}
    RUN.write(folder, {"recipe": "corner", "dataset": dataset, "seed": 0, "fold": None, "warnings": [], "split": {
        "name": "given", "scheme": "given", "counts": {"test": len(PHOTOS)},
        "train_counts": dict.fromkeys(NAMES, 6), "leaks": {},
    }})  # fmt: skip
    LOCATION.write(folder, {"images": str(root)})
    return folder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_photographs(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(scope="module")
def evaluated(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an evaluated run with heat maps; tests leave it as it is."""
    run = make_run(tmp_path_factory.mktemp("runs") / "run", photographs)
    masks = run.parent / "masks"
    for image_id in PHOTOS:
        (masks / image_id).parent.mkdir(parents=True, exist_ok=True)
        mask = np.zeros((SIZE, SIZE), np.uint8)
        # One lesion is drawn where the net does not look.
        mask[(np.s_[-24:, -24:] if image_id == "nevus/0" else np.s_[:24, :24])] = 255
        Image.fromarray(mask).save(masks / f"{image_id}.png")
    dk.evaluate(run, options=EvaluationOptions(masks=masks))
    return run


@pytest.fixture
def run(evaluated: Path, tmp_path: Path) -> Path:
    """Return a copy of the evaluated run, for tests that change it."""
    return Path(shutil.copytree(evaluated, tmp_path / "run"))


def table_of(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "heat_maps" / "heat_maps.csv", keep_default_na=False)


def report_maps(run: Path) -> RunHeatMaps | None:
    return read_heat_maps(RunFolder(run))


def corner_mass(run: Path, name: str, size: int = 24) -> tuple[float, float]:
    """Return which parts of a saved map lie in the top left and in the bottom right corner of its image."""
    grey = np.asarray(Image.open(run / "heat_maps" / name).convert("LA"), dtype=np.float64)[..., 0]
    edge = size * len(grey) // SIZE
    return float(grey[:edge, :edge].sum() / grey.sum()), float(grey[-edge:, -edge:].sum() / grey.sum())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# Which images --------------------------------------------------------------------------------------------------------


def rows_of(*rows: tuple[str, str, str, float]) -> pd.DataFrame:
    """Return rows of predictions.csv of three classes. rows: (image_id, label, predicted, probability of that)."""
    names = ("a", "b", "malignant")
    table = [
        {"image_id": image_id, "path": image_id, "label": label, "predicted": predicted, "seed": "0", "fold": "",
         **{f"p_{name}": p if name == predicted else (1 - p) / 2 for name in names}}
        for image_id, label, predicted, p in rows
    ]  # fmt: skip
    return pd.DataFrame(table)


def chosen_ids(rows: pd.DataFrame, groups: dict[str, int] | None = None) -> list[str]:
    return [image.image_id for image in choose_run_images(rows, ("a", "b", "malignant"), ["malignant"], groups)]


def test_missed_malignant_lesions_come_first_then_the_surest_then_the_best_hits_of_each_class() -> None:
    rows = rows_of(
        ("sure", "a", "b", 0.99), ("false alarm", "a", "malignant", 0.98), ("missed", "malignant", "a", 0.5),
        ("missed surely", "malignant", "b", 0.7), ("b1", "b", "b", 0.9), ("b2", "b", "b", 0.95),
        ("a1", "a", "a", 0.97), ("found", "malignant", "malignant", 0.6),
    )  # fmt: skip
    assert chosen_ids(rows) == ["missed surely", "missed", "sure", "false alarm", "found", "a1", "b2"]
    assert [image.is_missed for image in choose_run_images(rows, ("a", "b", "malignant"), ["malignant"], None)] == [
        True, True, *[False] * 5
    ]  # fmt: skip


def test_one_photograph_of_a_lesion_and_no_more_than_a_row() -> None:
    many = [(f"wrong{i}", "a", "b", 0.9 - i / 100) for i in range(9)]
    right = [(f"right{i}", "a", "a", 0.9 - i / 100) for i in range(9)]
    rows = rows_of(*many, *right)
    ids = chosen_ids(rows)
    assert ids == [f"wrong{i}" for i in range(MAX_MISTAKES)] + [f"right{i}" for i in range(MAX_HITS)]
    groups = {image_id: i // 2 for i, image_id in enumerate(rows["image_id"])}
    assert chosen_ids(rows, groups)[:4] == ["wrong0", "wrong2", "wrong4", "wrong6"]
    assert chosen_ids(rows.tail(9), groups)[:2] == ["right0", "right1"], "two lesions"
    assert "right0" not in chosen_ids(rows, groups | {"right0": groups["wrong0"]}), "shown as a mistake"


# What is made and saved ----------------------------------------------------------------------------------------------


def test_the_saved_maps_lie_where_the_net_looks(evaluated: Path) -> None:
    table, document = table_of(evaluated), HEAT_MAPS.read(evaluated / "heat_maps")
    assert document["is_complete"] and document["split"] == "test" and not document["reason"]
    assert table["kind"].tolist() == ["mistake"] * 3 + ["hit"] * MAX_HITS
    assert table["image_id"][0] == MISSED and table["is_malignant_missed"].tolist() == [1, 0, 0, 0, 0, 0]
    of_melanoma = table[table["predicted"] == "melanoma"]
    assert {"nevus/0", "nevus/1"} < set(of_melanoma["image_id"])
    for name in of_melanoma["map"]:
        top_left, bottom_right = corner_mass(evaluated, name)
        assert top_left > 0.95 and bottom_right == 0
    inside = of_melanoma.set_index("image_id")["mask_inside"].astype(float)
    assert inside["nevus/0"] == 0 and (inside.drop("nevus/0") > 0.95).all()
    notes = table.set_index("image_id")["note"]
    assert "Most of the map lies outside the lesion: 100 %" in notes["nevus/0"] and notes["nevus/1"] == ""
    assert "Nothing in the image speaks for nevus" in notes[MISSED]
    assert document["random_nets"]["n_images"] == 4 and not document["random_nets"]["fails"]
    assert set(table["method"]) == {"HiResCAM"}


def test_the_report_shows_them_beside_the_images(evaluated: Path) -> None:
    html = (evaluated / "report.html").read_text()
    pictures = html.split('id="mistakes"')[1].split("</section>")[0].split('src="data:image/jpeg')
    assert len(pictures) - 1 == 2 * (3 + MAX_HITS), "each image and its map, and no mistake a second time"
    assert "The 3 costliest of 3 wrong answers, with heat maps" in html and "malignant missed" in pictures[2]
    assert (
        "evidence for melanoma" in html
        and "1: most in this image" in html
        and "linear-gradient(to right, #" in html
    )
    assert "not why it is evidence, nor that the class is right" in html and "HiResCAM at layer" in html
    assert "Most of the map lies outside the lesion" in html and "with 3 random nets, n = 4 images" in html
    assert "surest of 3 wrong answers" not in html
    assert html.index("with heat maps") < html.index("<details><summary>3 of the surest right answers")


def test_the_same_bytes_twice_and_nothing_anew_for_the_same_answers(
    run: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(run / "heat_maps")
    with monkeypatch.context() as patch:
        patch.setattr("dermkit.prediction.load.load_model", lambda *_args, **_options: pytest.fail("loaded"))
        update_heat_maps(run, photographs)
    assert contents(run / "heat_maps") == before, "those with masks stay"
    stamp = (run / "heat_maps" / "heat_maps.json").stat().st_mtime_ns
    lines: list[str] = []
    update_heat_maps(run, photographs, masks=run.parent, device="cpu", progress=dk.Progress(say=lines.append))
    assert lines == [f"warning: {run.parent}: holds no mask of these images that can be used"], (
        "made anew for masks"
    )
    assert (run / "heat_maps" / "heat_maps.json").stat().st_mtime_ns > stamp
    plain = contents(run / "heat_maps")
    shutil.rmtree(run / "heat_maps")
    update_heat_maps(run, photographs, device="cpu")
    assert contents(run / "heat_maps") == plain
    assert {name for name in before if before[name] != plain[name]} == {"heat_maps.csv"}, "masks change no map"


def test_other_answers_get_other_maps_and_leave_none_of_the_old(run: Path, photographs: Path) -> None:
    p = score(run / "model", photographs)
    p[list(PHOTOS).index("nevus/0")] = (0.9, 0.1)
    write_predicted(run, p)
    (run / "heat_maps" / "mine.txt").write_text("mine")
    update_heat_maps(run, photographs, device="cpu")
    assert table_of(run)["kind"].tolist() == ["mistake"] * 2 + ["hit"] * MAX_HITS
    assert not (run / "heat_maps" / "mistake-3.jpg").exists() and (run / "heat_maps" / "mine.txt").exists()


# What cannot be made -------------------------------------------------------------------------------------------------


def test_a_run_without_its_images_says_so_and_keeps_what_it_has(run: Path) -> None:
    (run / "location.json").unlink()
    before = contents(run / "heat_maps")
    update_heat_maps(run, None)
    assert contents(run / "heat_maps") == before
    heat_maps = report_maps(run)
    assert heat_maps is not None and all(item.overlay_uri for item in (*heat_maps.mistakes, *heat_maps.hits))
    shutil.rmtree(run / "heat_maps")
    assert report_maps(run) is None
    update_heat_maps(run, run / "nowhere")
    html = dk.report(run).read_text()
    assert (
        "No heat maps: the images are not at hand on this machine." in html and "surest of 3 wrong answers" in html
    )
    assert [path.name for path in (run / "heat_maps").iterdir()] == ["heat_maps.json"]


def test_an_image_that_cannot_be_read_any_more_is_said(run: Path, tmp_path: Path) -> None:
    root, lines = save_photographs(tmp_path / "photographs"), list[str]()
    (root / "nevus" / "0.png").write_bytes(b"no image")
    (root / "melanoma" / "5.png").unlink()
    shutil.rmtree(run / "heat_maps")
    update_heat_maps(run, root, device="cpu", progress=dk.Progress(say=lines.append))
    notes = table_of(run).set_index("image_id")["note"]
    assert notes["nevus/0"] == "The image cannot be read any more (not an image)." and "(missing)" in notes[MISSED]
    assert not HEAT_MAPS.read(run / "heat_maps")["is_complete"] and len(lines) == 2
    heat_maps = report_maps(run)
    assert heat_maps is not None
    assert [bool(item.overlay_uri) for item in heat_maps.mistakes] == [False, False, True]
    update_heat_maps(run, save_photographs(root), device="cpu")
    assert HEAT_MAPS.read(run / "heat_maps")["is_complete"], "made as soon as they can be"


def write_facts(run: Path, root: Path, *, ages: str = "") -> None:
    """Write attributes.csv as a training leaves it: every image of one age, with the hash of its pixels."""
    pictures = {image_id: open_image(root / f"{image_id}.png", name=image_id) for image_id in PHOTOS}
    manifest = pd.DataFrame({"image_id": list(PHOTOS), "age": ages, "sex": "", "site": "", "skin_type": "",
                             "pixel_sha256": [picture.pixel_sha256 for picture in pictures.values()]})  # fmt: skip
    write_attributes(run / "attributes.csv", manifest, manifest["image_id"])


def test_an_image_that_was_replaced_since_its_answer_has_no_map(run: Path, tmp_path: Path) -> None:
    root, lines = save_photographs(tmp_path / "photographs"), list[str]()
    unknown = f"Whether {3 + MAX_HITS} images shown here changed since the answers is not known"
    assert any(unknown in text for text in HEAT_MAPS.read(run / "heat_maps")["sentences"]), "no attributes.csv"
    write_facts(run, root)
    Image.fromarray(photograph(99, BOTTOM_RIGHT)).save(root / "nevus" / "0.png")
    shutil.rmtree(run / "heat_maps")
    update_heat_maps(run, root, device="cpu", progress=dk.Progress(say=lines.append))
    table = table_of(run).set_index("image_id")
    assert table["note"]["nevus/0"].startswith("The file holds another image than the one that was scored")
    assert table.index[table["overlay"] == ""].tolist() == ["nevus/0"] and not table["picture"]["nevus/0"]
    document = HEAT_MAPS.read(run / "heat_maps")
    assert not document["is_complete"] and not any("not known" in text for text in document["sentences"])
    assert lines == ["warning: no heat map of nevus/0: its file holds another image than was scored"]
    assert "holds another image than the one that was scored" in dk.report(run).read_text()
    shutil.rmtree(run / "heat_maps")
    page = report.write_report(run, images_root=root).read_text()
    assert "image not at hand" in page and page.count('src="data:image/jpeg') == 2, "the other two mistakes"
    update_heat_maps(run, save_photographs(root), device="cpu")
    assert HEAT_MAPS.read(run / "heat_maps")["is_complete"], "the scored image is back"


def test_a_net_with_metadata_is_mapped_with_those_that_its_answers_had(
    tmp_path: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", photographs)
    shutil.rmtree(run / "model")
    save_linear_model(run / "model", has_metadata=True)
    METRICS.write(run, {"classes": NAMES, "positive": ["melanoma"], "splits": {"test": {}}})
    calls: list[Any] = []

    def spy(which: str) -> Any:
        original = getattr(model_maps.ModelExplainer, which)

        def call(self: Any, inputs: Any, target: Any, shape: Any, metadata: Any = None) -> Any:
            calls.append(None if metadata is None else metadata["age"].tolist())
            return original(self, inputs, target, shape, metadata)

        return call

    for name in ("map_image", "random_maps"):
        monkeypatch.setattr(model_maps.ModelExplainer, name, spy(name))
    update_heat_maps(run, photographs, device="cpu")
    document = HEAT_MAPS.read(run / "heat_maps")
    assert set(map(str, calls)) == {"None"} and document["unknown_metadata"] == ["age", "sex", "site"]
    assert any("the maps are with them unknown, since this run" in text for text in document["sentences"])
    calls.clear()
    write_facts(run, photographs, ages="70")
    update_heat_maps(run, photographs, device="cpu")  # the same answers: made again with what was missing
    document = HEAT_MAPS.read(run / "heat_maps")
    assert len(calls) == 2 * len(table_of(run)) and all(ages == ["70"] for ages in calls)
    assert document["is_complete"] and document["unknown_metadata"] == []
    assert any("each map is of the image with its own, as its answer is" in text for text in document["sentences"])
    calls.clear()
    update_heat_maps(run, photographs, device="cpu")
    assert not calls, "nothing better can be made"


def test_an_image_outside_the_folder_is_not_opened(run: Path, photographs: Path) -> None:
    text = (run / "predictions.csv").read_text()
    (run / "predictions.csv").write_text(text.replace("nevus/0.png", f"../{photographs.name}/../secret.png"))
    Image.fromarray(photograph(0, TOP_LEFT)).save(photographs.parent / "secret.png")
    update_heat_maps(run, photographs, device="cpu")
    assert table_of(run).set_index("image_id")["note"]["nevus/0"] == "The image lies outside the folder of images."


def test_a_net_that_cannot_be_explained_ends_no_run(
    run: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise RuntimeError("out of memory\nand a long trace")

    monkeypatch.setattr(model_maps.ModelExplainer, "map_image", fail)
    shutil.rmtree(run / "heat_maps")
    lines: list[str] = []
    update_heat_maps(run, photographs, progress=dk.Progress(say=lines.append))
    heat_maps = report_maps(run)
    assert heat_maps is not None and heat_maps.reason == "they could not be made: out of memory"
    assert "warning: no heat maps: they could not be made: out of memory" in lines


def test_what_was_deleted_is_made_again_and_a_broken_model_ends_nothing(run: Path, photographs: Path) -> None:
    (run / "heat_maps" / "heat_maps.csv").unlink()
    assert report_maps(run) is None
    update_heat_maps(run, photographs, device="cpu")
    assert len(table_of(run)) == 3 + MAX_HITS
    (run / "model" / "SHA256SUMS").unlink()
    update_heat_maps(run, photographs, device="cpu")
    heat_maps = report_maps(run)
    assert heat_maps is not None and "SHA256SUMS is missing" in heat_maps.reason


def test_without_captum_a_run_has_none(run: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_maps.importlib.util, "find_spec", lambda _name: None)  # type: ignore[attr-defined]
    shutil.rmtree(run / "heat_maps")
    update_heat_maps(run, photographs)
    heat_maps = report_maps(run)
    assert heat_maps is not None and "captum is not installed" in heat_maps.reason


def test_sealed_test_images_are_never_opened(
    run: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of sealed images are not in predictions.csv; were they there, no image would be opened either."""
    monkeypatch.setattr(run_maps, "open_image", lambda *_args, **_options: pytest.fail("opened"))
    shutil.rmtree(run / "heat_maps")
    seal = {"name": "final", "date": "2026-01-01", "n": 12, "opening_number": None, "openings": []}
    RUN_SEAL.write(run, seal)
    update_heat_maps(run, photographs, device="cpu")
    assert "sealed" in HEAT_MAPS.read(run / "heat_maps")["reason"] and len(contents(run / "heat_maps")) == 1
    (run / "seal.json").unlink()
    split = {**RUN.read(run)["split"], "leaves_test_to_ensemble": True}
    RUN.write(run, {**RUN.read(run), "split": split})
    update_heat_maps(run, photographs, device="cpu")
    assert "left to an ensemble" in HEAT_MAPS.read(run / "heat_maps")["reason"]


def test_out_of_fold_answers_of_an_ensemble_are_not_explained_by_nets_that_learned_from_them(
    run: Path, photographs: Path
) -> None:
    write_predicted(run, score(run / "model", photographs), split="validation")
    METRICS.write(run, {**METRICS.read(run), "splits": {"validation": METRICS.read(run)["splits"]["test"]}})
    RUN.write(run, {**RUN.read(run), "ensemble": {"fitted_on": "out-of-fold images"}})
    update_heat_maps(run, photographs, device="cpu")
    assert "learned from it" in HEAT_MAPS.read(run / "heat_maps")["reason"]


# Folds, classifiers, options -----------------------------------------------------------------------------------------


def test_each_fold_explains_its_own_images(tmp_path: Path) -> None:
    """The net of fold 0 looks at the top left corner, that of fold 1 at the bottom right one."""
    parent, root, cells = tmp_path / "parent", tmp_path / "images", (TOP_LEFT, BOTTOM_RIGHT)
    rows, runs = [], []
    for fold, cell in enumerate(cells):
        save_corner_model(parent / f"f{fold}" / "model", cell=cell)
        runs.append({"seed": 0, "fold": fold, "folder": f"f{fold}"})
        (root / str(fold)).mkdir(parents=True)
        for number in range(2):
            name = f"{fold}/{number}"
            pixels = np.maximum(photograph(number, TOP_LEFT), photograph(number, BOTTOM_RIGHT))
            Image.fromarray(pixels).save(root / f"{name}.png")
            rows.append((name, f"{name}.png", "nevus", "test", fold, 0, "melanoma", 0.1, 0.9))
    write_rows(parent / "predictions.csv", prediction_columns(NAMES), rows)
    save_corner_model(parent / "model")
    METRICS.write(parent, {"classes": NAMES, "positive": ["melanoma"], "splits": {"test": {}}})
    RUN.write(parent, {"dataset": {"classes": [vars(one) for one in CLASSES]}, "split": {}})
    SUMMARY.write(parent, {"runs": runs, "pooled": {"shown_seed": 0, "scores_test_by_ensemble": False}})
    update_heat_maps(parent, root, device="cpu")
    table, document = table_of(parent).set_index("image_id"), HEAT_MAPS.read(parent / "heat_maps")
    for image_id, name in table["map"].items():
        masses = corner_mass(parent, name)
        assert masses[int(str(image_id)[0])] > 0.95
    assert "Each map is of the one net that scored the image." in document["sentences"]
    assert document["random_nets"] is None, "several nets: not compared with random ones"


def test_a_net_without_gradients_gets_coarse_occlusion(
    run: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dermkit.explanation.heat_maps.why_no_gradient", lambda _net: "it has none")
    update_heat_maps(run, photographs, masks=run, device="cpu")
    document, table = HEAT_MAPS.read(run / "heat_maps"), table_of(run).set_index("image_id")
    assert document["methods"] == ["occlusion"] and document["why_no_gradient"] == ["it has none"]
    assert document["random_nets"] is None
    assert corner_mass(run, table["map"]["nevus/0"])[0] > 0.7
    assert "windows of a quarter of the side, which needs no gradient: it has none." in document["sentences"][1]


def test_without_heat_maps(run: Path, photographs: Path, invoke: Invoke) -> None:
    shutil.rmtree(run / "heat_maps")
    assert invoke("evaluate", run, "--no-heat-maps")[0] == 0 and not (run / "heat_maps").exists()
    update_heat_maps(run, photographs, device="cpu")
    write_predicted(run, 1 - score(run / "model", photographs))
    update_heat_maps(run, photographs, is_wanted=False)
    assert not (run / "heat_maps").exists(), "those of other answers go"
    code, _, error = invoke("evaluate", run, "--no-heat-maps", "--masks", run)
    assert code == 2 and "--no-heat-maps makes none" in error
    code, _, error = invoke("evaluate", run, "--masks", run / "nowhere")
    assert code == 3 and "no such folder" in error
    with pytest.raises(UsageError, match="--masks: only for a run folder"):
        dk.evaluate(None, predictions=run / "predictions.csv", options=EvaluationOptions(masks=run))
    assert parse_options(official=False, targets=[], prevalences=[]).heat_maps
    assert not replace(dk.RunSettings(), heat_maps=False).options.heat_maps


def test_the_option_of_train_reaches_the_run(
    binary: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings_list: list[dk.RunSettings] = []

    def train(*_args: object, settings: dk.RunSettings, **_options: object) -> Path:
        settings_list.append(settings)
        raise UsageError("seen")

    monkeypatch.setattr(dk, "train", train)
    invoke("train", "demo", binary, "--no-heat-maps")
    invoke("train", "demo", binary)
    assert [settings.heat_maps for settings in settings_list] == [False, True]


def test_a_training_ends_with_heat_maps_of_its_test_images(trained: Path) -> None:
    document, table = HEAT_MAPS.read(trained / "heat_maps"), table_of(trained)
    test_ids = pd.read_csv(trained / "predictions.csv").query("split == 'test'")["image_id"]
    assert document["is_complete"] and document["split"] == "test" and set(table["image_id"]) <= set(test_ids)
    assert len(table) >= MAX_HITS and "heat maps" in (trained / "report.html").read_text()
    assert not any("not known" in text for text in document["sentences"]), "a training writes the hashes"


# The page ------------------------------------------------------------------------------------------------------------


def test_a_page_takes_no_file_from_elsewhere_and_no_style(run: Path) -> None:
    path = run / "heat_maps" / "heat_maps.csv"
    path.write_text(path.read_text().replace("mistake-1.jpg", "../report.html"))
    document = json.loads((run / "heat_maps" / "heat_maps.json").read_text())
    document["colours"] = "red); background: url(https://example.org"
    (run / "heat_maps" / "heat_maps.json").write_text(json.dumps(document))
    heat_maps = report_maps(run)
    assert heat_maps is not None and heat_maps.colours == "" and heat_maps.mistakes[0].picture_uri == ""
    assert heat_maps.mistakes[1].picture_uri.startswith("data:image/jpeg;base64,")


def test_the_pictures_are_small(evaluated: Path) -> None:
    sizes = [len(data) for name, data in contents(evaluated / "heat_maps").items() if name.endswith(".jpg")]
    assert len(sizes) == 2 * (3 + MAX_HITS) and max(sizes) < 20_000
    assert (evaluated / "report.html").stat().st_size < report.MAX_REPORT_BYTES


def test_a_saved_map_is_grey_and_transparent_where_nothing_was_seen() -> None:
    heat_map = np.array([[0.0, 1.0], [np.nan, 0.5]], dtype=np.float32)
    pixels = np.asarray(Image.open(io.BytesIO(map_png(heat_map))))
    assert pixels.tolist() == [[[0, 255], [255, 255]], [[0, 0], [128, 255]]]
