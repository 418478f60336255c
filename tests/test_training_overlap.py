"""An external test: what training looked at is found with its siblings, and what is said agrees with the counts."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import dermkit as dk
from dermkit.data.manifest import Dataset
from dermkit.evaluation import external
from dermkit.evaluation.external import TrainingOverlap, find_training_overlap
from dermkit.runs.folder import SEEN_SPLIT
from dermkit.runs.verdict import judge_metrics


@pytest.fixture
def dataset(binary: Path) -> Dataset:
    """Return 48 images without ids; the first three of one lesion."""
    loaded = dk.load_dataset(binary)
    manifest = loaded.manifest.assign(isic_id="", lesion_id="", patient_id="", copy_group="")
    manifest.loc[:2, "lesion_id"] = "L1"
    return replace(loaded, manifest=manifest)


def predictor_of(images: list[tuple[str, str, str]], *, archive: str = "", name: str = "trained set") -> Any:
    return SimpleNamespace(
        members=(),
        training_images=images,
        card={"dataset": {"name": name, "notes": {"archive": archive} if archive else {}}},
    )


def test_siblings_of_a_training_image_are_seen_too(dataset: Dataset) -> None:
    pixels = dataset.manifest["pixel_sha256"]
    overlap = find_training_overlap(
        predictor_of([(pixels[0], "", "train"), (pixels[7], "", "validation"), ("other", "", "train")]), dataset
    )
    assert overlap.image_ids == set(dataset.manifest["image_id"][[0, 1, 2, 7]])
    assert overlap.as_dict() == {
        "seen_images": 4, "same_pixels": 2, "same_isic_id": 0, "same_group": 2, "training_images_with_isic_id": 0,
        "training_images": 3,
    }  # fmt: skip
    (said, _) = external._warnings(predictor_of([]), dataset, {}, overlap)[:2]
    assert said == (
        "Not external: 2 of 48 images were looked at in training (2 by identical pixels, 0 by ISIC id), and 2 show the "
        "lesion or patient of one of them. They count in no test figure and stand beside as `seen_in_training`."
    )


def test_an_id_is_found_where_pixels_differ(dataset: Dataset) -> None:
    named = replace(dataset, manifest=dataset.manifest.assign(isic_id=[f"ISIC_{i:07d}" for i in range(48)]))
    overlap = find_training_overlap(predictor_of([("other", "ISIC_0000005", "train")]), named)
    assert overlap.image_ids == {named.manifest["image_id"][5]}
    nothing = find_training_overlap(predictor_of([("other", "", "train")]), named)
    assert nothing.image_ids == set()


NOTHING = TrainingOverlap(frozenset(), 0, 0, 0, 10, 10)


@pytest.mark.parametrize(
    ("without_id", "ids", "archive", "said"),
    [
        (0, True, "", []),
        (0, True, "ISIC Archive", ["All images carry its ids, so each image in both was found"]),
        (3, True, "", ["Overlap cannot be ruled out: 3 training images of trained set carry no ISIC id"]),
        (0, False, "", ["Overlap cannot be ruled out: 48 images of binary carry no ISIC id"]),
        (3, False, "ISIC Archive", ["3 training images of trained set and 48 images of binary carry no ISIC id"]),
    ],
)
def test_what_is_said_of_overlap_agrees_with_the_counts(
    dataset: Dataset, without_id: int, ids: bool, archive: str, said: list[str]
) -> None:
    manifest = dataset.manifest.assign(
        isic_id=[f"ISIC_{i:07d}" for i in range(48)] if ids else "", lesion_id=np.arange(48).astype(str)
    )
    notes = {**dataset.notes, "archive": archive}
    named = replace(dataset, manifest=manifest, notes=notes, name="binary")
    overlap = replace(NOTHING, n_training_images_with_id=10 - without_id)
    texts = external._warnings(predictor_of([], archive=archive), named, {}, overlap)
    assert len(texts) == len(said)
    for text, part in zip(texts, said, strict=True):
        assert part in text
    assert not any(" 0 " in text or "images overlap" in text for text in texts)


def test_where_all_was_seen_there_is_no_figure_of_new_images(dataset: Dataset) -> None:
    overlap = TrainingOverlap(frozenset(dataset.manifest["image_id"]), 48, 0, 0, 60, 0)
    said = external._warnings(predictor_of([]), dataset, {}, overlap)
    assert "There is no figure of images that are new to the model." in said[0]
    assert said[1].startswith("Further overlap cannot be ruled out: 60 training images")


def test_images_that_training_looked_at_prove_nothing() -> None:
    sure = {"value": 1.0, "ci95": [0.97, 1.0], "n": 200, "method": "wilson"}
    body = {
        "n": 200,
        "metrics": {"balanced_accuracy": sure, "accuracy": sure},
        "confusion_matrix": [[100, 0], [0, 100]],
    }
    metrics = {"classes": ["a", "b"], "positive": [], "splits": {SEEN_SPLIT: body, "test": body}}
    assert judge_metrics(metrics, "test").outcome == "above"
    verdict = judge_metrics(metrics, SEEN_SPLIT)
    assert verdict.outcome == "unknown"
    assert verdict.text.endswith("cannot be told: training looked at these images.")
