"""Every page that dermkit writes, made from small data: for the checks of pages with and without a browser."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

import dermkit as dk
from corner_net import SIZE, save_corner_model
from dermkit.data.synthetic.dataset import DatasetLayout, make_dataset_folder
from dermkit.evaluation.options import EvaluationOptions
from dermkit.pipeline.search import SearchOptions, search
from dermkit.recipes.augmentation import NO_AUGMENTATION
from dermkit.recipes.experiments import head_phase
from dermkit.recipes.schema import Recipe
from dermkit.recipes.search_space import parse_space
from test_auto_page import page_of as make_auto_page
from test_auto_page import race_of
from test_search_page import page_of as make_search_page
from test_search_page import study_of

WITHOUT_MAPS = EvaluationOptions(heat_maps=False)


def make_quick_pages(folder: Path, trained: Path, binary: Path) -> dict[str, Path]:
    """Return name -> page of what costs a few seconds. trained: a run on the data set `binary`."""
    data = shutil.copytree(binary, folder / "data")
    dk.audit_dataset(dk.load_dataset(data))
    foreign = _foreign_predictions(folder, trained)
    variant = dk.counterfactuals(trained, out=folder / "changed", artefacts=["dark_corners", "ink"], device="cpu")
    study, race = folder / "study", folder / "race"
    for part in (study, race):
        part.mkdir()
    make_search_page(study, study_of(), weights={"phases.0.head_lr": 0.8, "augment": 0.2})
    make_auto_page(race, race_of(audit="never"))
    return {
        "report": trained / "report.html", "overview": data / "overview.html", "audit": data / "audit" / "audit.html",
        "predictions of another tool": foreign / "report.html",
        "comparison": dk.compare([trained, foreign], out=folder / "comparison").page,
        "counterfactuals": variant.page, "explain": _explain_page(folder), "tune": study / "tune.html",
        "auto": race / "auto.html",
    }  # fmt: skip


def make_long_pages(folder: Path, trained: Path, binary: Path, tiny: Recipe) -> dict[str, Path]:
    """Return name -> page of what trains several nets, or needs other data."""
    data, settings = dk.load_dataset(binary), dk.RunSettings(out=folder / "runs", device="cpu")
    kfold = replace(tiny.split, scheme="kfold", folds=3, test=0.0, validation=0.34)
    folds = dk.train(replace(tiny, name="folds", split=kfold), data, settings=settings)
    repeats = dk.train(replace(tiny, name="repeats", repeats=2), data, settings=settings)
    other = _sample_dataset(folder, "other", "folder", ("benign", "malignant"))
    several = _sample_dataset(folder, "several", "ham10000", ("nevus", "melanoma"))
    frozen = replace(
        tiny, name="frozen", augment=NO_AUGMENTATION, phases=(head_phase(3),), monitor="val_accuracy"
    )  # fmt: skip
    space = parse_space({"phases.0.head_lr": [1e-3, 1e-2], "optim.batch_size": [8, 16, 24]}, frozen, "test")
    options = SearchOptions(trials=6, prunes=False)
    study = search(frozen, space, data, options=options, settings=settings)
    external = folder / "external"
    dk.evaluate(trained, dataset=other, out=external, options=WITHOUT_MAPS)
    leaks = dk.check_external(data, other)
    return {
        "folds": folds / "report.html", "repeats": repeats / "report.html", "trained tune": study / "tune.html",
        "external evaluation": external / "report.html", "external check": leaks.page,
        "ladder": dk.ladder(frozen, several, out=folder / "ladder", repeats=2, settings=settings) / "ladder.html",
    }  # fmt: skip


def _sample_dataset(folder: Path, name: str, layout: DatasetLayout, classes: tuple[str, str]) -> dk.Dataset:
    """Return a data set of two photographs of each of 40 lesions; `ham10000` has lesion ids."""
    images = folder / f"{name}-images"
    make_dataset_folder(
        images,
        lesions_per_class=dict.fromkeys(classes, 20),
        photos_per_lesion=(2, 2),
        size=48,
        seed=5,
        layout=layout,
    )
    return dk.import_dataset(layout, images, out=folder / name).dataset


def _foreign_predictions(folder: Path, trained: Path) -> Path:
    """Return the folder of the evaluation of another tool's predictions: those of a run, with a third moved."""
    rows = pd.read_csv(trained / "predictions.csv")
    rows = rows[rows["split"] == "test"]
    names = [name for name in rows.columns if name.startswith("p_")]
    moved = rows[names].to_numpy()
    moved[::3] = moved[::3, ::-1]
    table = pd.DataFrame(moved, columns=names)
    table.insert(0, "image_id", rows["image_id"].to_numpy())
    table.insert(1, "label", rows["label"].to_numpy())
    table.insert(2, "split", "test")
    table.to_csv(folder / "theirs.csv", index=False)
    return dk.evaluate(None, predictions=folder / "theirs.csv", out=folder / "theirs").parent


def _explain_page(folder: Path) -> Path:
    """Return the page of heat maps of a net that looks at one corner, one image refused, one with a mask."""
    photos, masks = folder / "photos", folder / "masks"
    for part in (photos, masks):
        part.mkdir()
    rng = np.random.default_rng(0)
    for number in range(2):
        Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(photos / f"photo{number}.png")
    (photos / "broken.png").write_bytes(b"no image")
    lesion = np.zeros((SIZE, SIZE), np.uint8)
    lesion[40:, 40:] = 255
    Image.fromarray(lesion).save(masks / "photo0.png")
    model = save_corner_model(folder / "corner" / "model")
    return dk.explain(model, [str(photos)], out=folder / "maps", masks=masks, device="cpu").page
