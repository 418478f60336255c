"""The model folder and predictions on new images: trusted bytes, equal figures, no image lost without a word."""

import errno
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dermkit as dk
from dermkit import files
from dermkit.errors import DataError, RejectionReason, UntrustedError, UsageError
from dermkit.files import sha256_bytes, sha256_file
from dermkit.images.decode import open_image
from dermkit.images.preprocess import resize_pixels
from dermkit.models import card as models_card
from dermkit.models.checksums import CHECKSUM_FILE, write_checksums
from dermkit.models.training_images import read_training_images
from dermkit.prediction.inputs import find_images
from dermkit.prediction.load import load_model
from dermkit.prediction.run import predict
from dermkit.recipes.formats import RECIPE_FORMAT
from made_images import encoded, frames, png, speckled

BAD = {
    "empty.jpg": (b"", RejectionReason.EMPTY),
    "truncated.jpg": (encoded(speckled(), "JPEG")[:400], RejectionReason.TRUNCATED),
    "renamed.png": (b"A text file that was given another name.\n", RejectionReason.NOT_AN_IMAGE),
    "bomb.png": (png(100_000, 100_000, 8, 2, b""), RejectionReason.TOO_LARGE),
    "animated.webp": (frames("WEBP"), RejectionReason.ANIMATED),
}


@pytest.fixture
def model(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of the trained model that a test may spoil."""
    return Path(shutil.copytree(trained / "model", tmp_path / "model"))


def write_bad(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (data, _) in BAD.items():
        (folder / name).write_bytes(data)
    return folder


def rewrite(model: Path, **changes: Any) -> None:
    """Change the card of a model folder and make its checksums right again."""
    card = json.loads((model / "model.json").read_text())
    (model / "model.json").write_text(json.dumps({**card, **changes}))
    write_checksums(model)


def probabilities(path: Path) -> pd.DataFrame:
    frame = pd.read_csv(path)
    return frame.set_index("image_id").sort_index()


# The same figures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 32])
def test_predict_gives_the_figures_that_the_run_was_evaluated_on(
    trained: Path, binary: Path, tmp_path: Path, batch_size: int
) -> None:
    data = dk.load_dataset(binary)
    run = probabilities(trained / "predictions.csv")
    test = run[run["split"] == "test"]
    files = [str(data.image_path(image_id)) for image_id in test.index]
    outcome = predict(trained, files, out=tmp_path, batch_size=batch_size)
    assert outcome.n_scored == len(test) > 10
    new = probabilities(tmp_path / "predictions.csv")
    new.index = pd.Index([path.rsplit("/", 1)[-1] for path in new["path"]])
    old = test.set_index(test["path"].str.rsplit("/", n=1).str[-1])
    assert new.loc[old.index, "predicted"].tolist() == old["predicted"].tolist()
    columns = ["p_benign", "p_malignant"]
    np.testing.assert_allclose(new.loc[old.index, columns], old[columns], rtol=0, atol=1e-5)
    np.testing.assert_allclose(new[columns].sum(axis=1), 1.0, rtol=0, atol=1e-12)


def test_the_cache_and_the_files_give_the_same_probabilities(trained: Path, binary: Path) -> None:
    model, data = load_model(trained), dk.load_dataset(binary)
    paths = [(name, data.image_path(name)) for name in data.manifest["image_id"][:7]]
    pixels = np.stack([resize_pixels(open_image(path).pixels, model.preprocessing) for _, path in paths])
    direct = model.score_pixels(pixels, range(7), batch_size=3)
    scored = list(model.score_files(paths, batch_size=2))
    assert [item.name for item in scored] == [name for name, _ in paths]
    for item, expected in zip(scored, direct, strict=True):
        assert item.probabilities is not None
        np.testing.assert_allclose(item.probabilities, expected, rtol=0, atol=1e-6)
    assert model.score_pixels(pixels, []).shape == (0, 2)


def test_the_folder_says_what_the_model_is(trained: Path, binary: Path) -> None:
    data, card = dk.load_dataset(binary), json.loads((trained / "model" / "model.json").read_text())
    model = load_model(trained / "model")
    assert model.class_names == data.class_names == ("benign", "malignant")
    assert card["classes"] == [asdict(item) for item in data.classes]
    assert card["members"][0]["preprocessing"]["size"] == model.preprocessing.size == 24
    assert {"format": RECIPE_FORMAT, **card["recipe"]} == json.loads((trained / "recipe.json").read_text())
    assert card["dataset"]["manifest_sha256"] == data.manifest_sha256
    text = (trained / "model" / "MODEL_CARD.md").read_text()
    assert "Research use only. Not a medical device." in text
    assert "| malignant | not known | malignant |" in text
    split = pd.read_csv(trained / "split.csv", dtype=str)
    looked_at = split[split["split"] != "test"]
    assert len(read_training_images(trained / "model")) == len(looked_at)


def test_no_path_of_this_machine_travels_with_a_model(trained: Path, binary: Path) -> None:
    for path in (trained / "model").iterdir():
        data = path.read_bytes()
        assert str(binary.parent).encode() not in data
        assert str(Path.home()).encode() not in data or str(Path.home()) == "/"


# Trust ----------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_byte_is_refused(trained: Path, tmp_path: Path, data: st.DataObject) -> None:
    model = tmp_path / "model"
    if not model.exists():
        shutil.copytree(trained / "model", model)
    name = data.draw(
        st.sampled_from([path.name for path in sorted(model.iterdir()) if path.name != CHECKSUM_FILE])
    )
    whole = (model / name).read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda value: value != whole[at]))
    (model / name).write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
    try:
        with pytest.raises(UntrustedError, match="SHA-256 differs") as caught:
            load_model(model)
        assert caught.value.exit_code == 6
        assert str(model / name) in str(caught.value)
        assert "copy the model folder anew" in str(caught.value)
    finally:
        (model / name).write_bytes(whole)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_byte_in_the_checksums_is_refused(trained: Path, tmp_path: Path, data: st.DataObject) -> None:
    model = tmp_path / "model"
    if not model.exists():
        shutil.copytree(trained / "model", model)
    whole = (trained / "model" / CHECKSUM_FILE).read_bytes()
    # A line end may become another kind of line end: the list stays the same.
    at = data.draw(st.integers(0, len(whole) - 1).filter(lambda at: whole[at : at + 1] != b"\n"))
    value = data.draw(st.integers(0, 255).filter(lambda value: value != whole[at]))
    (model / CHECKSUM_FILE).write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
    with pytest.raises(UntrustedError):
        load_model(model)


@pytest.mark.parametrize("name", ["model.json", "member-0.safetensors", "seen.csv", CHECKSUM_FILE])
def test_a_missing_file_is_refused(model: Path, name: str) -> None:
    (model / name).unlink()
    with pytest.raises(UntrustedError, match=name):
        load_model(model)


def test_a_list_that_leaves_a_file_out_or_points_outside_is_refused(model: Path) -> None:
    lines = (model / CHECKSUM_FILE).read_text().splitlines(keepends=True)
    for left_out in ("model.json", "member-0.safetensors", "seen.csv"):
        (model / CHECKSUM_FILE).write_text("".join(line for line in lines if left_out not in line))
        with pytest.raises(UntrustedError, match=left_out):
            load_model(model)
    for outside in ("../split.csv", "/etc/hostname", ".."):
        (model / CHECKSUM_FILE).write_text("".join(lines) + f"{'0' * 64}  {outside}\n")
        with pytest.raises(UntrustedError, match="outside the folder"):
            load_model(model)


class Killed(BaseException):
    """What a kill looks like from inside: nobody catches it."""


@pytest.mark.parametrize("at", range(1, 5))
@pytest.mark.parametrize("cause", [OSError(errno.ENOSPC, "No space left on device"), Killed()])
def test_a_model_that_is_settled_anew_is_one_or_the_other_wherever_that_stops(
    model: Path, monkeypatch: pytest.MonkeyPatch, at: int, cause: BaseException
) -> None:
    before = models_card.read_card(model)
    wish = {
        "rate": "sensitivity",
        "target": 0.6,
        "threshold": 0.5,
        "confidence": 0.95,
        "guaranteed": False,
        "n": 5,
    }
    points = [*before["operating_points"], {**wish, "name": "sensitivity 0.6", "requested": True}]
    decision = {name: before[name] for name in models_card.POLICY_FIELDS} | {"operating_points": points}
    calls = []

    def stopped(path: Path, data: bytes) -> None:
        calls.append(path.name)
        if len(calls) == at:
            raise cause
        path.write_bytes(data)

    with monkeypatch.context() as patched, pytest.raises((OSError, Killed)):
        patched.setattr(files, "write_bytes", stopped)
        models_card.write_policy(model, decision)
    assert calls == [CHECKSUM_FILE, "model.json", "MODEL_CARD.md", CHECKSUM_FILE][:at]
    assert load_model(model).card["operating_points"] in (before["operating_points"], points)
    other = {**decision, "n_validation_images": 1}
    for last in (other, decision):  # a stopped one is finished by the next, whatever that settles
        models_card.write_policy(model, last)
        assert models_card.card_policy(models_card.read_card(model)) == last
        said = [line.split("  ") for line in (model / CHECKSUM_FILE).read_text().splitlines()]
        assert all(sha256_file(model / name) == expected for expected, name in said)
        assert sorted(name for _, name in said) == sorted(
            {path.name for path in model.iterdir()} - {CHECKSUM_FILE}
        )


def test_a_file_that_nobody_announced_is_not_vouched_for(model: Path) -> None:
    text = (model / "model.json").read_text()
    with (model / CHECKSUM_FILE).open("a") as stream:
        stream.write(f"# next {sha256_bytes(text.replace('24', '25').encode())}  model.json\n")
    load_model(model)
    (model / "model.json").write_text(text.replace("24", "26"))
    for use in (lambda: load_model(model), lambda: models_card.write_policy(model, {"n_validation_images": 1})):
        with pytest.raises(UntrustedError, match="SHA-256 differs"):
            use()


def test_a_card_that_does_not_fit_its_weights_is_refused(model: Path) -> None:
    card = json.loads((model / "model.json").read_text())
    (member,) = card["members"]
    changes: dict[str, dict[str, Any]] = {
        "format 99": {"format": 99},
        "two members have one weights file": {"members": [member, member]},
        "not a model folder": {"classes": [{"label": "benign"}]},
        "size": {"members": [{**member, "preprocessing": {**member["preprocessing"], "size": "24"}}]},
        "class_order": {"classes": [*card["classes"], {**card["classes"][0], "name": "third"}]},
        "weights do not fit": {
            "classes": [*card["classes"], {**card["classes"][0], "name": "third"}],
            "members": [{**member, "class_order": [0, 1, 2]}],
        },
        "weights do not fit dermkit/cnn-s4": {
            "members": [{**member, "spec": {**member["spec"], "backbone": "dermkit/cnn-s4"}}]
        },
        "no such backbone": {"members": [{**member, "spec": {**member["spec"], "backbone": "dermkit/cnn-s5"}}]},
        "extra": {"members": [{**member, "spec": {**member["spec"], "extra": 1}}]},
        "malignancy": {"classes": [{**card["classes"][0], "malignancy": "harmless"}, card["classes"][1]]},
    }
    for words, change in changes.items():
        rewrite(model, **change)
        with pytest.raises(UntrustedError, match=words):
            load_model(model)
        rewrite(model, **card)
    assert load_model(model).class_names == ("benign", "malignant")


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UntrustedError, match="not a model folder") as caught:
            load_model(folder)
        assert "name the run folder" in caught.value.remedy


# New images -----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_listed_and_the_rest_is_scored(trained: Path, binary: Path, tmp_path: Path) -> None:
    images = write_bad(tmp_path / "images")
    shutil.copy(dk.load_dataset(binary).image_path(a_training_image(trained)), images / "good.jpg")
    outcome = predict(trained, [str(images)], out=tmp_path / "out", batch_size=2)
    assert outcome.n_scored == 1
    assert {name: reason for name, reason, _ in outcome.rejected_images} == {
        name: reason.value for name, (_, reason) in BAD.items()
    }
    listed = pd.read_csv(tmp_path / "out" / "refused.csv")
    assert sorted(listed["path"]) == sorted(BAD)
    assert pd.read_csv(tmp_path / "out" / "predictions.csv")["image_id"].tolist() == ["good"]
    sheet = open_image(tmp_path / "out" / "sheet-1.png")
    assert sheet.pixels.std() > 5
    facts = json.loads((tmp_path / "out" / "predict.json").read_text())
    assert (facts["n_scored"], facts["n_refused"], facts["sheets"]) == (1, len(BAD), ["sheet-1.png"])
    assert facts["model_sha256"] == load_model(trained).sha256


def a_training_image(run: Path) -> str:
    split = pd.read_csv(run / "split.csv", dtype=str)
    return str(split.loc[split["split"] == "train", "image_id"].iloc[0])


def test_an_image_of_the_training_side_is_named_as_such(trained: Path, binary: Path, tmp_path: Path) -> None:
    path = dk.load_dataset(binary).image_path(a_training_image(trained))
    outcome = predict(trained, [str(path)], out=tmp_path)
    assert outcome.training_images == [(path.name, "train")]


def test_nothing_readable_is_an_error_and_still_listed(trained: Path, tmp_path: Path) -> None:
    images = write_bad(tmp_path / "images")
    with pytest.raises(DataError, match=f"none of {len(BAD)} images") as caught:
        predict(trained, [str(images)], out=tmp_path / "out")
    assert caught.value.exit_code == 3
    assert len(pd.read_csv(tmp_path / "out" / "refused.csv")) == len(BAD)
    assert not (tmp_path / "out" / "sheet-1.png").exists()


def test_many_images_fill_several_sheets(trained: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(50):
        speckled(30, 24, seed=number).save(images / f"{number:02}.png")
    outcome = predict(trained, [str(images)], out=tmp_path / "out")
    assert outcome.n_scored == 50
    assert sorted(path.name for path in (tmp_path / "out").glob("sheet-*.png")) == ["sheet-1.png", "sheet-2.png"]


# Names ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (
        "a/x.jpg",
        "a/deep/y.PNG",
        "b/x.jpg",
        "a/notes.txt",
        "a/.hidden/z.jpg",
        "odd[1].jpg",
        "c/readme.md",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*arguments: str) -> list[str]:
    return [image.name for image in find_images(arguments)]


def test_files_folders_and_patterns_are_found(tree: Path) -> None:
    assert names("a/x.jpg") == ["x.jpg"]
    assert names("a") == ["deep/y.PNG", "x.jpg"]
    assert names("a/*.jpg") == ["x.jpg"]
    assert names("**/*.jpg") == ["x.jpg", "x.jpg#2", "odd[1].jpg"]
    assert names(str(tree / "a" / "x*")) == ["x.jpg"]
    assert names("a/*") == ["y.PNG", "notes.txt", "x.jpg"], "a folder that a pattern matches is searched through"
    assert names("a/notes.txt") == ["notes.txt"], "a file that is named is tried: its content decides"
    assert names("odd[1].jpg") == ["odd[1].jpg"], "a file whose name looks like a pattern is that file"


def test_a_path_is_taken_once_and_equal_names_are_numbered(tree: Path) -> None:
    assert names("a/x.jpg", "a/x.jpg") == ["x.jpg"]
    assert names("a/x.jpg", "./a/x.jpg", str(tree / "a" / "x.jpg")) == ["x.jpg"]
    assert names("a", "a/x.jpg") == ["deep/y.PNG", "x.jpg"]
    assert names("a/x.jpg", "b/x.jpg") == ["x.jpg", "x.jpg#2"]
    assert not any(str(tree) in name for name in names(str(tree)))


def test_what_matches_nothing_is_a_usage_error(tree: Path) -> None:
    for argument in ("c", "*.webp"):
        with pytest.raises(UsageError, match="no images there"):
            names(argument)
    assert names("absent.jpg") == ["absent.jpg"], "a missing file is refused and listed with the others"
