"""The command line as a person meets it: exit codes, messages with file and remedy, signals, and what is not loaded."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import save_file

import dermkit as dk
from conftest import Cli, Invoke
from dermkit import cli as command_line
from dermkit.errors import RejectionReason
from dermkit.files import sha256_file, write_json
from dermkit.models.weights import import_timm
from dermkit.recipes.experiments import GRIDS, RECIPES, full_phase
from dermkit.recipes.formats import RECIPE_FORMAT
from dermkit.recipes.schema import Recipe, load_recipe, recipe_to_dict, save_recipe
from made_images import encoded, frames, png, speckled

BAD = {
    "empty.jpg": (b"", RejectionReason.EMPTY),
    "truncated.jpg": (encoded(speckled(), "JPEG")[:400], RejectionReason.TRUNCATED),
    "renamed.png": (b"A text file that was given another name.\n", RejectionReason.NOT_AN_IMAGE),
    "bomb.png": (png(100_000, 100_000, 8, 2, b""), RejectionReason.TOO_LARGE),
    "animated.webp": (frames("WEBP"), RejectionReason.ANIMATED),
}


def draw(folder: Path, count: int, *, first: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(first, first + count):
        speckled(24, 20, seed=seed).save(folder / f"image-{seed}.png")
    return folder


def write_bad(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (data, _) in BAD.items():
        (folder / name).write_bytes(data)
    return folder


def check(done: subprocess.CompletedProcess[str] | tuple[int, str, str], code: int, *words: str) -> str:
    """Assert exit code and words of the message, and that no traceback came with it; returns all that was printed."""
    found, text = (
        (done.returncode, done.stdout + done.stderr)
        if isinstance(done, subprocess.CompletedProcess)
        else (done[0], done[1] + done[2])
    )
    assert found == code, text
    assert "Traceback" not in text, text
    for word in words:
        assert word in text, f"{word!r} is not in: {text}"
    return text


# Names and fields ---------------------------------------------------------------------------------------------------


def test_version_and_help(cli: Cli) -> None:
    check(cli("--version"), 0, "dermkit 0.1.0")
    check(cli("--help"), 0, "Research use only. Not a medical device.", "train", "predict")
    check(cli("nonsense"), 2, "nonsense")
    check(cli("train", "demo"), 2)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("train", "s2-resnet5", "data"), "did you mean `s2-resnet50`?"),
        (("tune", "s2-gird", "data"), "did you mean `s2-grid`?"),
        (("recipes", "show", "s4-cnm"), "did you mean `s4-cnn`?"),
    ],
)
def test_a_name_one_letter_off_is_met_with_the_closest_before_torch_is_loaded(
    tmp_path: Path, words: tuple[str, ...], meant: str
) -> None:
    script = (
        "import sys\nfrom dermkit import cli\n"
        f"sys.argv = ['dermkit', *{words!r}]\n"
        "try:\n    cli.main()\nfinally:\n"
        "    print('loaded:', sorted({'torch', 'timm', 'torchvision', 'lightning_fabric'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    check(done, 2, meant, "loaded: []")


def test_listing_and_showing_recipes(cli: Cli) -> None:
    text = check(cli("recipes", "list"), 0)
    assert all(name in text for name in (*RECIPES, *GRIDS))
    for name in ("s0-inception-v3", "s2-resnet50", "s4-cnn"):
        assert json.loads(check(cli("recipes", "show", name), 0)) == {
            "format": RECIPE_FORMAT,
            **recipe_to_dict(RECIPES[name]),
        }


def test_a_shown_recipe_can_be_edited_and_trained(invoke: Invoke, binary: Path, tmp_path: Path) -> None:
    code, shown, _ = invoke("recipes", "show", "s1-cnn")
    assert code == 0
    recipe = json.loads(shown)
    recipe |= {
        "name": "mine",
        "phases": [{**recipe["phases"][0], "epochs": 1}],
        "image": {**recipe["image"], "size": 16},
    }
    (tmp_path / "mine.json").write_text(json.dumps(recipe))
    out = check(invoke("train", tmp_path / "mine.json", binary, "--out", tmp_path / "runs", "--device", "cpu"), 0)
    report = Path(next(line for line in out.splitlines() if line.endswith("report.html") and ":" not in line))
    assert report.is_file()
    assert report.parent.parent == tmp_path / "runs" / "mine"
    assert load_recipe(report.parent / "recipe.json").phases[0].epochs == 1


def test_a_misspelt_field_is_named_with_the_closest(cli: Cli, tmp_path: Path) -> None:
    recipe = recipe_to_dict(RECIPES["demo"])
    optim = {("batchsize" if key == "batch_size" else key): value for key, value in recipe["optim"].items()}
    (tmp_path / "typo.json").write_text(json.dumps({"format": 1, **recipe, "optim": optim}))
    done = cli("train", "typo.json", "data")
    check(
        done, 2, "typo.json", "optim.batchsize: unknown field; did you mean `batch_size`?", "nothing was trained"
    )
    check(cli("train", "absent.json", "data"), 2, "absent.json")


# Data ---------------------------------------------------------------------------------------------------------------


def test_an_empty_folder_is_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    check(cli("import", "folder", "images", "--out", "data"), 3, "images", "To do:")
    check(cli("import", "folder", "absent", "--out", "data"), 3, "absent: does not exist", "To do:")
    check(cli("split", "data"), 3, "data/dataset.json", "To do:")
    check(cli("train", "demo", "data"), 3, "data/dataset.json", "To do:")


def test_a_class_with_one_image_is_refused_at_the_split(cli: Cli, tmp_path: Path) -> None:
    draw(tmp_path / "images" / "nevus", 12)
    draw(tmp_path / "images" / "melanoma", 1, first=50)
    check(cli("import", "folder", "images", "--out", "data"), 0)
    for scheme in ("holdout", "kfold"):
        check(cli("split", "data", "--scheme", scheme), 3, "class 'melanoma' has 1 image(s)", "To do: add images")
    assert not (tmp_path / "data" / "splits").exists()
    check(cli("split", "data", "--scheme", "given"), 3, "no published test images", "To do:")
    check(cli("split", "data", "--scheme", "given-as-publshed"), 2)
    check(cli("split", "data", "--validation", "0.9", "--test", "0.5"), 2, "To do:")
    check(cli("split", "data", "--name", "../x"), 2, "To do:")


def test_an_unknown_label_is_refused(cli: Cli, seven: Path, tmp_path: Path) -> None:
    source = shutil.copytree(seven.parent / "images", tmp_path / "images")
    table = source / "HAM10000_metadata.csv"
    table.write_text(table.read_text().replace(",mel,", ",mell,", 1))
    check(cli("import", "ham10000", source, "--out", "data"), 3, "HAM10000_metadata.csv", "mell", "To do:")
    data = shutil.copytree(seven, tmp_path / "edited")
    text = (data / "manifest.csv").read_text()
    (data / "manifest.csv").write_text(re.sub(r"^(([^,]*,){2})mel,", r"\1melanom,", text, count=1, flags=re.M))
    check(cli("split", "edited"), 3, "edited/manifest.csv", "unknown label", "'melanom'", "To do:")


def test_hostile_images_are_refused_at_import(cli: Cli, tmp_path: Path) -> None:
    draw(write_bad(tmp_path / "images" / "nevus"), 3)
    check(
        cli("import", "folder", "images", "--out", "data"),
        7,
        f"{len(BAD)} images were refused",
        "data/refused.csv",
    )
    refused = pd.read_csv(tmp_path / "data" / "refused.csv")
    found = dict(zip(refused["path"].str.removeprefix("nevus/"), refused["reason"], strict=True))
    assert found == {name: reason.value for name, (_, reason) in BAD.items()}
    assert len(pd.read_csv(tmp_path / "data" / "manifest.csv")) == 3
    write_bad(tmp_path / "bad" / "nevus")
    check(cli("import", "folder", "bad", "--out", "none"), 3, "every image was refused", "none/refused.csv")


def test_hostile_images_are_refused_at_prediction(cli: Cli, trained: Path, tmp_path: Path) -> None:
    write_bad(tmp_path / "bad")
    draw(tmp_path / "good", 2)
    done = cli("predict", trained / "model", "bad", "good/*.png", "--out", "out", "--batch-size", "3")
    check(done, 7, "2 images scored", f"{len(BAD)} images were refused", "out/refused.csv")
    refused = pd.read_csv(tmp_path / "out" / "refused.csv")
    assert dict(zip(refused["path"], refused["reason"], strict=True)) == {
        name: reason.value for name, (_, reason) in BAD.items()
    }
    assert (tmp_path / "out" / "sheet-1.png").is_file()
    assert len(pd.read_csv(tmp_path / "out" / "predictions.csv")) == 2


def test_prediction_without_anything_readable(invoke: Invoke, trained: Path, tmp_path: Path) -> None:
    bad = write_bad(tmp_path / "bad")
    check(invoke("predict", trained, bad, "--out", tmp_path / "out"), 3, "refused.csv", "To do:")
    check(
        invoke("predict", trained, tmp_path / "absent.jpg", "--out", tmp_path / "out"), 3, "absent.jpg", "missing"
    )
    check(
        invoke("predict", trained, tmp_path / "*.webp", "--out", tmp_path / "out"), 2, "no images there", "To do:"
    )


def test_a_missing_image_is_refused_at_training(
    invoke: Invoke, binary: Path, tiny: Recipe, tmp_path: Path
) -> None:
    shutil.copytree(binary.parent / "images", tmp_path / "images")
    data = dk.import_dataset("folder", tmp_path / "images", out=tmp_path / "data").dataset
    lost, spoilt = (data.image_root / path for path in data.manifest["path"][:2])
    lost.unlink()
    spoilt.write_bytes(encoded(speckled(48, 48), "JPEG"))
    save_recipe(tiny, tmp_path / "tiny.json")
    done = invoke("train", tmp_path / "tiny.json", tmp_path / "data", "--out", tmp_path / "runs")
    text = check(done, 3, "2 of", "(missing)", "changed since it was imported", "To do: restore these images")
    assert lost.name in text and spoilt.name in text


def test_a_lesion_on_both_sides_of_a_hand_written_split_is_refused(
    invoke: Invoke, seven: Path, tiny: Recipe, tmp_path: Path
) -> None:
    data = dk.load_dataset(seven)
    frame = data.manifest[["image_id", "lesion_id"]].assign(
        split=np.resize(["train", "validation", "test"], len(data.manifest))
    )
    frame[["image_id", "split"]].to_csv(tmp_path / "mine.csv", index=False)
    save_recipe(tiny, tmp_path / "tiny.json")
    done = invoke(
        "train", tmp_path / "tiny.json", seven, "--split", tmp_path / "mine.csv", "--out", tmp_path / "runs"
    )
    check(done, 3, "mine", "To do:")
    torn = frame[frame.groupby("lesion_id")["split"].transform("nunique") > 1]
    assert any(name in done[2] for name in torn["image_id"]) or any(name in done[2] for name in torn["lesion_id"])
    assert not list((tmp_path / "runs").rglob("model"))
    check(
        invoke("train", tmp_path / "tiny.json", seven, "--split", "nowhere"),
        2,
        "there is no such split",
        "dermkit split",
    )


# Trust --------------------------------------------------------------------------------------------------------------


def test_a_changed_byte_in_a_model_folder_is_refused(invoke: Invoke, trained: Path, tmp_path: Path) -> None:
    images = draw(tmp_path / "good", 1)
    model = shutil.copytree(trained / "model", tmp_path / "model")
    whole = bytearray((model / "member-0.safetensors").read_bytes())
    whole[-1] ^= 1
    (model / "member-0.safetensors").write_bytes(whole)
    done = invoke("predict", model, images, "--out", tmp_path / "out")
    check(done, 6, str(model / "member-0.safetensors"), "nothing was predicted", "To do:")
    assert not (tmp_path / "out" / "predictions.csv").exists()
    check(invoke("predict", images, images, "--out", tmp_path / "out"), 6, "not a model folder", "To do:")


@pytest.fixture
def pretrained(tiny: Recipe, tmp_path: Path) -> tuple[Path, Path]:
    """Return a recipe of a very small timm net with pretrained weights, and a file with such weights."""
    model = replace(tiny.model, backbone="test_resnet", weights="imagenet")
    image = replace(tiny.image, size=32, normalise="weights")
    save_recipe(
        replace(tiny, name="pretrained", model=model, image=image, phases=(full_phase(1, lr=1e-3),)),
        tmp_path / "recipe.json",
    )
    path = tmp_path / "weights.safetensors"
    save_file(import_timm().create_model("test_resnet", num_classes=0).state_dict(), path)
    facts = {
        "model": "test_resnet", "model_args": {}, "licence": "made", "sha256": sha256_file(path),
        "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.2],
    }  # fmt: skip
    write_json(Path(f"{path}.json"), facts, format=1)
    return tmp_path / "recipe.json", path


def test_weights_that_prove_nothing_are_refused(
    invoke: Invoke, pretrained: tuple[Path, Path], binary: Path, tmp_path: Path
) -> None:
    recipe, weights = pretrained
    card = Path(f"{weights}.json")
    facts = json.loads(card.read_text())

    def train(**changes: Any) -> tuple[int, str, str]:
        write_json(card, {**facts, **changes}, format=1)
        return invoke("train", recipe, binary, "--weights", weights, "--out", tmp_path / "runs", "--device", "cpu")

    check(train(sha256="0" * 64), 6, str(weights), "sha256 is", "nothing was trained", "To do:")
    check(train(model="test_vit"), 6, str(card), "is for test_vit", "To do:")
    check(train(model_args={"output_stride": 16}), 6, "output_stride", "To do:")
    card.unlink()
    done = invoke("train", recipe, binary, "--weights", weights, "--out", tmp_path / "runs")
    check(done, 6, f"has no {card.name} beside it", "To do:")
    done = invoke(
        "train", recipe, binary, "--weights", tmp_path / "absent.safetensors", "--out", tmp_path / "runs"
    )
    check(done, 6, "absent.safetensors", "no such weights file", "To do:")
    assert not list((tmp_path / "runs").rglob("run.json"))
    check(train(), 0, "report.html")
    (run,) = (tmp_path / "runs" / "pretrained").iterdir()
    assert json.loads((run / "run.json").read_text())["weights"]["sha256"] == facts["sha256"]
    assert json.loads((run / "model" / "model.json").read_text())["members"][0]["preprocessing"]["mean"] == [
        0.4,
        0.5,
        0.6,
    ]


def test_no_hub_and_no_file_names_the_three_ways_out(cli: Cli, binary: Path) -> None:
    done = cli("train", "s2-resnet50", binary)
    check(done, 6, "resnet50", "connect to the network", "--weights FILE.safetensors", "--set model.weights=none")


def test_a_file_for_a_recipe_without_weights_is_a_usage_error(
    invoke: Invoke, binary: Path, tmp_path: Path
) -> None:
    check(
        invoke("train", "s4-cnn", binary, "--weights", tmp_path / "x", "--out", tmp_path),
        2,
        "from scratch",
        "To do:",
    )


# Output -------------------------------------------------------------------------------------------------------------


def test_a_file_in_the_way_of_an_output_is_refused_before_any_work(
    invoke: Invoke, trained: Path, binary: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    images = draw(tmp_path / "images" / "nevus", 2).parent
    out = ("--out", tmp_path / "file" / "out")
    other = shutil.copytree(trained, tmp_path / trained.name)
    for words in (
        ("import", "folder", images, *out),
        ("train", "demo", binary, *out),
        ("tune", "s2-grid", binary, *out),
        ("predict", trained, images, *out),
        ("evaluate", trained, "--on", binary, *out),
        ("compare", trained, other, "--out", tmp_path / "file" / "table.csv"),
        ("demo", *out),
    ):
        check(invoke(*words), 5, str(tmp_path / "file"), "cannot be written", "To do:")
    assert (tmp_path / "file").read_text() == "in the way"
    data = shutil.copytree(binary, tmp_path / "data", ignore=shutil.ignore_patterns("splits"))
    (data / "splits").write_text("in the way")
    check(invoke("split", data), 5, "splits", "To do:")


@pytest.mark.parametrize("words", [("recipes", "list"), ("recipes", "show", "demo")])
def test_a_full_device_behind_standard_output(words: tuple[str, ...]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "dermkit.cli", *words],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=120,
        )  # fmt: skip
    assert done.returncode == 5, done.stderr
    assert done.stderr.startswith("error: standard output: cannot be written")
    assert "Traceback" not in done.stderr


def on_a_small_device(folder: Path, kilobytes: int, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `dermkit WORDS...` where `folder` is a device of its own, seen by that process alone."""
    folder.mkdir(exist_ok=True)
    script = f'mount -t tmpfs -o size={kilobytes}k none "$0" || exit 99; exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, folder, sys.executable, "-m", "dermkit.cli", *map(str, words)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip("a small device cannot be mounted here")
    return done


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
def test_a_full_device_is_told_at_every_stage(trained: Path, binary: Path, tiny: Recipe, tmp_path: Path) -> None:
    small = tmp_path / "small"
    images = binary.parent / "images"
    # 4 kB: not even the first probe fits; 12 kB: the manifest does not; 64 kB: the page of pictures does not.
    for kilobytes in (4, 12, 64):
        done = on_a_small_device(small, kilobytes, "import", "folder", images, "--out", small / "data")
        check(done, 5, str(small), "No space left on device", "To do:")
    done = on_a_small_device(small, 64, "predict", trained, images, "--out", small / "out")
    check(done, 5, str(small), "No space left on device", "To do:")
    save_recipe(tiny, tmp_path / "tiny.json")
    done = on_a_small_device(small, 256, "train", tmp_path / "tiny.json", binary, "--out", small / "runs")
    check(done, 5, str(small), "MB needed", "Kept:", "To do:")  # told before the first epoch


# Interrupts ---------------------------------------------------------------------------------------------------------


LONG = 12
"""Epochs: so many that a signal sent in the second arrives before the last, on a machine under any load."""


@pytest.fixture(scope="module")
def long(tiny: Recipe) -> Recipe:
    """Return a recipe with epochs long enough to be stopped inside."""
    return replace(
        tiny, name="long", image=replace(tiny.image, size=64), phases=(full_phase(LONG, lr=1e-3),),
        optim=replace(tiny.optim, batch_size=2),
    )  # fmt: skip


def command(recipe: Path, data: Path, out: Path, *more: str) -> list[str]:
    words = ["train", recipe, data, "--out", out, "--device", "cpu", *more]
    return [sys.executable, "-m", "dermkit.cli", *map(str, words)]


def start(words: list[str]) -> subprocess.Popen[str]:
    """Start a run with two threads: that is where sums could differ from run to run."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


def finish(words: list[str]) -> str:
    """Let a run end well; returns what came on standard error."""
    process = start(words)
    messages = process.communicate(timeout=300)[1]
    assert process.returncode == 0, messages
    return messages


def stop_inside_an_epoch(process: subprocess.Popen[str], number: int, how: signal.Signals) -> str:
    """Send a signal half an epoch's time after epoch `number` was told; returns what came on standard error."""
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        found = re.match(rf"epoch {number}/\d+ .* ([\d.]+) s$", line)
        if found:
            time.sleep(float(found[1]) / 2)
            break
    process.send_signal(how)
    return "".join([*said, process.communicate(timeout=120)[1]])


def only_run(out: Path) -> Path:
    (run,) = (path for path in (out / "long").iterdir() if path.is_dir())
    return run


def weights_of(out: Path) -> bytes:
    return (only_run(out) / "model" / "member-0.safetensors").read_bytes()


def test_a_run_that_was_killed_and_interrupted_ends_with_the_same_bits(
    binary: Path, long: Recipe, tmp_path: Path
) -> None:
    save_recipe(long, tmp_path / "long.json")
    recipe = tmp_path / "long.json"
    alone, out = tmp_path / "alone", tmp_path / "out"
    finish(command(recipe, binary, alone))
    facts = json.loads((only_run(alone) / "environment.json").read_text())
    assert facts["threads"] == 2

    process = start(command(recipe, binary, out))
    stop_inside_an_epoch(process, 2, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    run = only_run(out)
    done = len(pd.read_csv(run / "log.csv"))
    assert 2 <= done < LONG
    assert (run / "checkpoints" / "last.safetensors").is_file()
    assert not (run / "model").exists()
    again = subprocess.run(command(recipe, binary, out), capture_output=True, text=True, check=False, timeout=300)
    check(again, 2, str(run), "not finished", "add --resume")

    process = start(command(recipe, binary, out, "--resume"))
    messages = stop_inside_an_epoch(process, done + 1, signal.SIGINT)
    assert process.returncode == 130, messages
    assert f"epoch 1/{LONG}" not in messages, "finished epochs are not trained again"
    assert re.search(r"interrupted in epoch ([4-9]|1[0-2])\b", messages)
    assert "--resume" in messages
    assert "mid-epoch.safetensors" in messages
    assert "Traceback" not in messages
    messages = finish(command(recipe, binary, out, "--resume"))
    assert f"epoch {LONG}/{LONG}" in messages
    assert not re.search(rf"epoch [1-3]/{LONG}", messages), "finished epochs are not trained again"
    assert weights_of(out) == weights_of(alone)
    figures = ["epoch", "train_loss", "val_loss", "val_auroc_macro"]
    log, other = (pd.read_csv(only_run(folder) / "log.csv")[figures] for folder in (out, alone))
    pd.testing.assert_frame_equal(log, other, check_exact=True)
    for name in ("predictions.csv", "metrics.json"):
        assert (only_run(out) / name).read_bytes() == (only_run(alone) / name).read_bytes()


@pytest.mark.slow
def test_killed_at_ten_random_moments_it_still_ends_with_the_same_bits(
    binary: Path, long: Recipe, tmp_path: Path
) -> None:
    save_recipe(long, tmp_path / "long.json")
    recipe = tmp_path / "long.json"
    began = time.monotonic()
    finish(command(recipe, binary, tmp_path / "alone"))
    needed = time.monotonic() - began
    moments = random.Random(0)
    for kill in range(10):
        process = start(command(recipe, binary, tmp_path / "killed", "--resume"))
        time.sleep(moments.uniform(0.2, 1.0) * needed)
        process.kill()
        process.communicate(timeout=60)
        if list((tmp_path / "killed").rglob("report.html")) and kill < 9:
            assert weights_of(tmp_path / "killed") == weights_of(tmp_path / "alone")
            shutil.rmtree(tmp_path / "killed")
    finish(command(recipe, binary, tmp_path / "killed", "--resume"))
    assert weights_of(tmp_path / "killed") == weights_of(tmp_path / "alone")
    assert not list((tmp_path / "killed").rglob(".dermkit-tmp-*"))


def test_an_interrupt_outside_training_ends_with_130(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dermkit.data.importers.run.import_dataset", interrupt)
    check(invoke("import", "folder", tmp_path, "--out", tmp_path / "data"), 130)
    assert command_line.run_command(interrupt, debug=False) == 130


def test_a_traceback_comes_only_when_asked_for(cli: Cli) -> None:
    done = cli("--debug", "import", "folder", "absent", "--out", "data")
    assert done.returncode == 3
    assert "Traceback" in done.stderr
    check(cli("import", "folder", "absent", "--out", "data"), 3)


def test_a_second_process_on_the_same_run_is_refused(
    invoke: Invoke, trained: Path, binary: Path, tiny: Recipe, tmp_path: Path
) -> None:
    from dermkit.files import lock

    save_recipe(tiny, tmp_path / "tiny.json")
    folder = tmp_path / trained.parent.name / trained.name
    with lock(folder):
        done = invoke("train", tmp_path / "tiny.json", binary, "--out", tmp_path, "--device", "cpu")
    check(done, 5, str(folder), f"is in use by process {os.getpid()}")


def test_no_verb_writes_over_what_it_did_not_make(
    invoke: Invoke, trained: Path, binary: Path, tmp_path: Path
) -> None:
    run, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(trained, run)
    shutil.copytree(binary, data)
    before = {path: path.read_bytes() for folder in (run, data) for path in folder.rglob("*") if path.is_file()}
    image = draw(tmp_path / "images" / "nevus", 2) / "image-0.png"
    draw(tmp_path / "images" / "melanoma", 2, first=2)
    check(invoke("predict", trained, image, "--out", run), 2, "is not empty", "To do: name a new folder")
    check(invoke("predict", trained, image, "--out", data), 2, "is not empty")
    check(invoke("evaluate", trained, "--on", binary, "--out", run), 2, "is not empty")
    check(invoke("import", "folder", image.parent, "--out", run), 2, "is not empty")
    check(invoke("import", "folder", image.parent, "--out", image.parent), 2, "is not empty")
    check(invoke("import", "folder", tmp_path / "images", "--out", data), 2, "another source")
    assert before == {path: path.read_bytes() for path in before}


def test_a_second_prediction_leaves_no_sheet_of_the_first(invoke: Invoke, trained: Path, tmp_path: Path) -> None:
    draw(tmp_path / "many", 50)
    out = tmp_path / "out"
    check(invoke("predict", trained, tmp_path / "many", "--out", out), 0)
    assert sorted(path.name for path in out.glob("*.png")) == ["sheet-1.png", "sheet-2.png"]
    check(invoke("predict", trained, tmp_path / "many" / "image-1.png", "--out", out), 0)
    assert sorted(path.name for path in out.glob("*.png")) == ["sheet-1.png"]
    assert pd.read_csv(out / "predictions.csv")["path"].tolist() == [str(tmp_path / "many" / "image-1.png")]


@pytest.mark.parametrize("device", ["cuda", "banana"])
def test_a_device_that_is_not_there_is_refused_before_any_work(
    invoke: Invoke, binary: Path, tiny: Recipe, tmp_path: Path, device: str
) -> None:
    save_recipe(tiny, tmp_path / "tiny.json")
    done = invoke("train", tmp_path / "tiny.json", binary, "--out", tmp_path / "runs", "--device", device)
    check(done, 2, f"--device {device}", "To do:")
    assert not list((tmp_path / "runs").glob("*"))
    done = invoke("train", tmp_path / "tiny.json", binary, "--out", tmp_path / "runs", "--seed", str(2**32))
    check(done, 2, "--seed 4294967296", "To do:")


def test_more_devices_than_cores_are_refused_before_one_is_started(
    invoke: Invoke, binary: Path, tiny: Recipe, tmp_path: Path
) -> None:
    save_recipe(tiny, tmp_path / "tiny.json")
    done = invoke("train", tmp_path / "tiny.json", binary, "--out", tmp_path / "runs", "--devices", "3000")
    check(done, 2, "--devices 3000", "cores", "To do:")
    assert not (tmp_path / "runs").exists()


def test_a_stop_by_a_scheduler_is_told_like_one_by_a_person() -> None:
    script = (
        "import importlib, time\ncli = importlib.import_module('dermkit.cli.app')\n"
        "def app(**_):\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "cli.app = app\ncli.main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 130
    assert messages.startswith("interrupted")
