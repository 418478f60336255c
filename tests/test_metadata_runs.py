"""Metadata as a second input from the data set to a prediction: the run, its model, other data, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import dermkit as dk
from conftest import Cli, Invoke
from dermkit.errors import DataError, UntrustedError, UsageError
from dermkit.files import write_json
from dermkit.models.checksums import write_checksums
from dermkit.models.ensemble import write_ensemble
from dermkit.pipeline.metadata_input import fit_encoder
from dermkit.pipeline.next_steps import write_parent_next_steps
from dermkit.prediction.load import load_model
from dermkit.prediction.run import predict
from dermkit.recipes.experiments import full_phase
from dermkit.recipes.schema import Recipe
from dermkit.recipes.training_specs import MetadataSpec

SPEC = MetadataSpec(fields=("age", "sex", "site"), p_unknown=0.1)
N = 60


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set of noise, whose label is in the site, or in the sex where that is unknown."""
    folder = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(3)
    rows = []
    for number in range(N):
        is_malignant = number % 2
        Image.fromarray(rng.integers(0, 256, (40, 40, 3)).astype(np.uint8)).save(folder / f"image{number:02}.png")
        site = "" if number % 10 == 3 else "face" if is_malignant else "back"
        age = "" if number % 7 == 0 else str(int(rng.integers(20, 90)))
        rows.append((f"image{number:02}.png", ("nevus", "melanoma")[is_malignant], age, "MF"[is_malignant], site))
    table = pd.DataFrame(rows, columns=["image", "label", "age", "sex", "site"])
    table.to_csv(folder / "table.csv", index=False)
    options = dk.ImportOptions(columns={"image": "image"}, label="label")
    return dk.import_dataset("csv", folder, out=folder / "data", options=options).dataset.folder


@pytest.fixture(scope="module")
def recipe(tiny: Recipe) -> Recipe:
    split = replace(tiny.split, scheme="holdout", validation=0.2, test=0.25, folds=0)
    model = replace(tiny.model, hidden=(), dropout=0.0, metadata=SPEC)
    return replace(
        tiny, name="with", split=split, model=model, phases=(full_phase(16, lr=3e-3),), keep="last",
        test_views="dihedral",
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(noise: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = dk.RunSettings(out=tmp_path_factory.mktemp("runs"), device="cpu")
    return dk.train(recipe, dk.load_dataset(noise), settings=where)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def columns_of(frame: pd.DataFrame) -> np.ndarray[Any, Any]:
    return frame[["p_melanoma", "p_nevus"]].to_numpy(dtype=float)


def test_a_run_learns_from_metadata_and_says_which_fields_of_how_many_images(run: Path) -> None:
    scores = pd.read_csv(run / "predictions.csv")
    assert (scores["predicted"] == scores["label"]).mean() > 0.9, "noise alone gives one half"
    (member,) = read(run / "model" / "model.json")["members"]
    encoder = member["metadata"]
    assert encoder["categories"] == {"sex": ["female", "male"], "site": ["back", "face"]}
    n, known = encoder["n_images"], encoder["n_known"]
    sentence = (
        f"Second input beside the image: age (known of {known['age']}), sex (known of {n}), site (known of "
        f"{known['site']}) of {n} training images."
    )
    assert known["age"] < n
    assert any(sentence in warning for warning in read(run / "run.json")["warnings"])
    page = (run / "report.html").read_text()
    assert sentence in page and "fields age, sex, site; p unknown 0.1" in page
    assert "--out predictions --metadata TABLE.csv" in (run / "NEXT_STEPS.txt").read_text()
    card = (run / "model" / "MODEL_CARD.md").read_text()
    assert sentence in card and "Probabilities change with them" in card


def test_the_encoder_is_of_training_images_alone(noise: Path, run: Path) -> None:
    dataset = dk.load_dataset(noise)
    split = pd.read_csv(run / "split.csv")
    encoder = fit_encoder(SPEC, dataset, split)
    assert encoder.as_dict() == read(run / "model" / "model.json")["members"][0]["metadata"]
    assert encoder.n_images == int((split["split"] == "train").sum()) < N

    def changed(split_name: str) -> Any:
        manifest = dataset.manifest.copy()
        of_split = manifest["image_id"].isin(split.loc[split["split"] == split_name, "image_id"])
        first = np.flatnonzero(of_split & (manifest["age"] != ""))[0]
        manifest.loc[first, "age"] = "0" if float(manifest.loc[first, "age"]) > 60 else "120"
        manifest.loc[first, "site"] = "palm"
        return fit_encoder(SPEC, replace(dataset, manifest=manifest), split)

    assert changed("test") == changed("validation") == encoder
    assert changed("train") != encoder and changed("train").categories["site"] == ("back", "face", "palm")


def test_the_saved_model_gives_the_probabilities_of_its_run_for_any_batch(noise: Path, run: Path) -> None:
    dataset, scores = dk.load_dataset(noise), pd.read_csv(run / "predictions.csv")
    manifest = dataset.manifest.set_index("image_id").loc[scores["image_id"]]
    table = manifest[["age", "sex", "site"]].assign(image=manifest["path"].to_numpy())
    model = dk.load_model(run)
    files = [dataset.image_path(image_id) for image_id in scores["image_id"]]
    assert model.metadata_fields == ("age", "sex", "site")
    found = model.predict(files, metadata=table)
    assert found["predicted"].tolist() == scores["predicted"].tolist() and (found["refused"] == "").all()
    np.testing.assert_allclose(columns_of(found), columns_of(scores), atol=1e-5)
    for size in (1, 32):
        images = [(path.name, path) for path in files]
        single = [score.probabilities for score in model.score_files(images, batch_size=size, metadata=manifest)]
        np.testing.assert_allclose(np.array(single), columns_of(scores), atol=1e-5)
    unknown = model.predict(files)
    blank = model.predict(files, metadata=table.assign(age="", sex="unknown", site=np.nan))
    np.testing.assert_array_equal(columns_of(unknown), columns_of(blank))
    assert np.abs(columns_of(unknown) - columns_of(found)).max() > 0.05


def test_another_data_set_is_scored_by_its_manifest(noise: Path, run: Path, tmp_path: Path) -> None:
    dataset = dk.load_dataset(noise)
    manifest = dataset.manifest.copy()
    manifest.loc[:2, "site"] = "scalp"
    other = tmp_path / "other"
    shutil.copytree(noise, other)
    from dermkit.data.manifest import save_dataset

    save_dataset(replace(dataset, folder=other, name="other", manifest=manifest))
    report = dk.evaluate(run / "model", dataset=dk.load_dataset(other), out=tmp_path / "external")
    scores = pd.read_csv(report.parent / "predictions.csv").set_index("image_id")
    of_run = pd.read_csv(run / "predictions.csv").set_index("image_id")
    same = [name for name in of_run.index if name not in set(manifest["image_id"][:3])]
    np.testing.assert_allclose(columns_of(scores.loc[same]), columns_of(of_run.loc[same]), atol=1e-5)
    (said,) = [text for text in read(report.parent / "run.json")["warnings"] if "Metadata" in text]
    assert "known among these 60 images" in said and "site scalp (3)" in said


# Prediction ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def photos(noise: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(6):
        shutil.copy(noise.parent / f"image{number:02}.png", folder)
    return folder


def test_the_command_takes_a_table_and_records_what_it_used(
    run: Path, photos: Path, tmp_path: Path, cli: Cli
) -> None:
    table = (
        "image,age,sex,site\nimage00.png,40,M,back\nimage01,41,f,FACE\nimage02.png,,,scalp\nimage99.png,1,M,back\n"
    )
    (tmp_path / "table.csv").write_text(table)
    done = cli("predict", run, photos, "--out", "out", "--metadata", "table.csv")
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert "table.csv has a row for 3 of 6 images" in said
    assert "3 images have no row and are scored with all fields unknown" in said
    assert "1 rows of the table are about none of these images" in said and "site scalp (1)" in said
    used = pd.read_csv(tmp_path / "out" / "metadata.csv", keep_default_na=False, dtype=str)
    assert used.to_numpy().tolist() == [
        ["image00", "40", "male", "back"], ["image01", "41", "female", "face"],
        *([f"image0{number}", "", "", ""] for number in range(2, 6)),
    ]  # fmt: skip
    facts = read(tmp_path / "out" / "predict.json")
    assert facts["format"] == 5 and facts["metadata"]["n_known"] == {"age": 2, "sex": 2, "site": 3}
    scores = pd.read_csv(tmp_path / "out" / "predictions.csv")
    frame = pd.DataFrame(
        {"image": ["image00", "image01"], "age": [40, 41], "sex": ["M", "F"], "site": ["back", "face"]}
    )
    direct = dk.load_model(run).predict([photos], metadata=frame)
    np.testing.assert_allclose(columns_of(scores), columns_of(direct), atol=1e-6)


def test_without_a_table_all_is_unknown_and_that_is_said(run: Path, photos: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    predict(run, [str(photos)], out=tmp_path / "out", progress=dk.Progress(say=lines.append))
    assert lines[0].startswith("warning: this model takes age, sex, site beside the image, and none were given")
    used = pd.read_csv(tmp_path / "out" / "metadata.csv", keep_default_na=False, dtype=str)
    assert (used[["age", "sex", "site"]] == "").all(axis=None) and len(used) == 6


def test_images_in_memory_take_the_row_of_their_position(run: Path, photos: Path) -> None:
    files = sorted(photos.iterdir())[:3]
    lines: list[str] = []
    model = dk.load_model(run, progress=dk.Progress(say=lines.append))
    table = pd.DataFrame({"image": [2, 0], "age": [40, 70], "sex": ["M", "F"], "site": ["back", "face"]})
    named = table.assign(image=[files[2].name, files[0].name])
    arrays = [np.array(Image.open(file).convert("RGB")) for file in files]
    expected = columns_of(model.predict(files, metadata=named))
    np.testing.assert_array_equal(columns_of(model.predict(arrays, metadata=table)), expected)
    found = model.predict_images([arrays[0], files[1], arrays[2]], metadata=table)
    np.testing.assert_array_equal(columns_of(model.to_frame(found)), expected)
    assert sum("metadata has a row for 2 of 3 images" in line for line in lines) == 3
    unknown = columns_of(model.predict(arrays))
    assert np.abs(unknown - expected).max() > 0.01
    lines.clear()
    np.testing.assert_array_equal(columns_of(model.to_frame(model.predict_images(iter(arrays)))), unknown)
    (said,) = lines
    assert said.startswith("warning: this model takes age, sex, site beside the image: all images are scored")
    with pytest.raises(UsageError, match="given for an iterator"):
        model.predict_images(iter(arrays), metadata=table)


def test_a_row_without_an_image_name_is_about_no_image_in_memory(run: Path, photos: Path) -> None:
    model, array = load_model(run), np.full((40, 40, 3), 90, np.uint8)
    files = sorted(map(str, photos.iterdir()))[:1]
    named = pd.DataFrame({"image": [None, Path(files[0]).name], "age": [80, 40]})
    found = columns_of(model.predict([array, *files], metadata=named))
    np.testing.assert_array_equal(found, columns_of(model.predict([array, *files], metadata=named[1:])))
    lines: list[str] = []
    for nameless in ("", " ", ".jpg", "folder/.jpg"):
        told = load_model(run, progress=dk.Progress(say=lines.append))
        told.predict([array, *files], metadata=pd.DataFrame({"image": [nameless, files[0]], "age": [80, 40]}))
    assert sum("1 rows of the table are about none of these images" in line for line in lines) == 4


def test_each_mention_of_a_path_has_its_row_of_the_table(
    run: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    first, other = sorted(path.name for path in photos.iterdir())[:2]
    table = pd.DataFrame({"image": [first], "age": [80], "sex": ["male"], "site": ["face"]})
    lines: list[str] = []
    model = load_model(run, progress=dk.Progress(say=lines.append))
    images = [first, other, first, str(photos / first)]
    found = columns_of(model.to_frame(model.predict_images(images, metadata=table)))
    single = columns_of(model.predict([first, other], metadata=table))
    np.testing.assert_allclose(found, single[[0, 1, 0, 0]], rtol=0, atol=1e-6)
    assert not np.allclose(single[0], columns_of(model.predict([first]))[0], rtol=0, atol=1e-3)
    assert any("metadata has a row for 3 of 4 images" in line for line in lines)


def test_a_model_without_metadata_takes_no_table(
    trained: Path, photos: Path, tmp_path: Path, invoke: Invoke
) -> None:
    (tmp_path / "table.csv").write_text("image,age\nimage00.png,40\n")
    code, _, err = invoke(
        "predict", trained, photos, "--out", tmp_path / "out", "--metadata", tmp_path / "table.csv"
    )
    assert code == 2 and "takes no metadata" in err and not (tmp_path / "out").exists()
    assert load_model(trained).metadata_fields == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image,age,sxe\nimage00.png,40,M\n", "unknown column 'sxe'; did you mean `sex`"),
        ("image,age\nimage00.png,old\n", "row 2: age 'old' is no number of years from 0 to 120"),
        ("image,age\nimage00.png,121\n", "row 2: age '121'"),
        ("image,sex\nimage00.png,1\n", "row 2: sex '1' is a number"),
        ("image,site\nimage00.png,4\n", "row 2: site '4' is a number"),
        ("age,sex\n40,M\n", "has no column 'image'"),
        ("image\nimage00.png\n", "no column is one of age, sex, site"),
        ("image,age\nother.png,40\n", "has a row for none of the 6 images"),
        ("image,age\nelsewhere/photos2/image00.png,40\n", "has a row for none of the 6 images"),
        ("image,age\nimage00.png,40\nimage00,41\n", "row 3: 'image00' again, with other values than row 2"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_before_anything_is_scored(
    text: str, words: str, run: Path, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(DataError) as error:
        predict(run, [str(photos)], out=tmp_path / "out", metadata=tmp_path / "table.csv")
    assert words in str(error.value) and not (tmp_path / "out").exists()


def test_two_images_of_one_name_need_their_folder(run: Path, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, photos / "sub")
    table = tmp_path / "table.csv"
    table.write_text("image,age\nimage00.png,40\nsub/image01.png,50\nphotos/image01.png,20\n")
    predict(run, [str(photos)], out=tmp_path / "out", metadata=table)
    used = pd.read_csv(tmp_path / "out" / "metadata.csv", dtype=str, keep_default_na=False).set_index("image_id")
    assert used.loc[["image00", "sub/image00", "image01", "sub/image01"], "age"].tolist() == ["40", "", "20", "50"]
    table.write_text("image,age\nIMAGE02.png,40\n")
    with pytest.raises(DataError, match="may be any of 2 images"):
        predict(run, [str(photos)], out=tmp_path / "out2", metadata=table)


def test_a_stopped_prediction_goes_on_with_the_same_metadata_alone(
    run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "table.csv"
    table.write_text("image,age\nimage00.png,40\n")
    with monkeypatch.context() as patch, pytest.raises(UsageError):
        patch.setattr(
            "dermkit.prediction.run.write_output", lambda *_, **__: (_ for _ in ()).throw(UsageError("stop"))
        )
        predict(run, [str(photos)], out=tmp_path / "out", metadata=table)
    with pytest.raises(UsageError, match=r"it is another one.*metadata"):
        predict(run, [str(photos)], out=tmp_path / "out")
    predict(run, [str(photos)], out=tmp_path / "out", metadata=table)
    assert (tmp_path / "out" / "metadata.csv").is_file()


# Models and refusals ------------------------------------------------------------------------------------------------


def rewritten(model: Path, into: Path, change: Any, format: int = 6) -> Path:
    shutil.copytree(model, into)
    card = read(into / "model.json")
    change(card)
    del card["format"]
    write_json(into / "model.json", card, format=format)
    write_checksums(into)
    return into


@pytest.mark.parametrize(
    "change",
    [
        lambda member: member.update(metadata=None),
        lambda member: member["metadata"].update(age={"mean": 50, "sd": 0}),
        lambda member: member["metadata"]["categories"].update(sex=["female", "male", "other"]),
        lambda member: member["metadata"]["categories"].update(sex=["female", "female"]),
        lambda member: member["metadata"].update(fields=["age", "sex"]),
        lambda member: member["spec"].update(metadata=None),
        lambda member: member["spec"]["metadata"].update(fields=["age"]),
        lambda member: member["spec"].update(metadata=3),
        lambda member: member.update(metadata=["age"]),
    ],
)
def test_a_model_whose_metadata_cannot_be_those_of_its_net_is_refused(
    change: Any, run: Path, tmp_path: Path
) -> None:
    model = rewritten(run / "model", tmp_path / "model", lambda card: change(card["members"][0]))
    with pytest.raises(UntrustedError):
        load_model(model)


def test_a_model_of_format_5_is_read_and_has_the_image_alone(trained: Path, tmp_path: Path) -> None:
    def as_before(card: Any) -> None:
        for member in card["members"]:
            del member["metadata"], member["spec"]["metadata"]

    model = load_model(rewritten(trained / "model", tmp_path / "model", as_before, format=5))
    images = np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3)).astype(np.uint8)
    np.testing.assert_array_equal(model.probabilities(images), load_model(trained).probabilities(images))
    assert model.metadata_fields == ()


def test_members_with_and_without_metadata_make_one_model(
    noise: Path, run: Path, recipe: Recipe, tmp_path: Path
) -> None:
    alone = replace(
        recipe,
        name="alone",
        model=replace(recipe.model, metadata=None),
        phases=(replace(recipe.phases[0], epochs=1),),
    )
    dataset = dk.load_dataset(noise)
    other = dk.train(alone, dataset, settings=dk.RunSettings(out=tmp_path / "runs", device="cpu"))
    both = load_model(write_ensemble(tmp_path / "model", [run / "model", other / "model"]))
    manifest = dataset.manifest
    images = np.random.default_rng(0).integers(0, 256, (len(manifest), 24, 24, 3)).astype(np.uint8)
    p = [
        member.calibrate(load_model(path).probabilities(images, manifest))
        for member, path in zip(both.members, (run, other), strict=True)
    ]
    np.testing.assert_allclose(both.probabilities(images, manifest), np.mean(p, axis=0), atol=1e-12)
    assert both.metadata_fields == ("age", "sex", "site")
    assert not np.allclose(both.probabilities(images, manifest), both.probabilities(images))


def test_next_steps_of_several_runs_name_the_table_before_their_model_is_there(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "model", tmp_path / "hash-s0-f0" / "model")
    write_parent_next_steps(tmp_path)
    assert "--out predictions --metadata TABLE.csv" in (tmp_path / "NEXT_STEPS.txt").read_text()


def test_a_field_that_is_unknown_for_all_is_refused_before_training(
    binary: Path, tmp_path: Path, invoke: Invoke, trained: Path
) -> None:
    code, _, err = invoke(
        "train",
        trained / "recipe.json",
        binary,
        "--metadata",
        "age,site",
        "--out",
        tmp_path / "runs",
        "--device",
        "cpu",
    )
    assert code == 3 and "age and site is unknown for all" in err and "--metadata none" in err
    assert not list((tmp_path / "runs").glob("*/*/checkpoints"))
