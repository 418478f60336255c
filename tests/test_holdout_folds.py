"""Folds beside test images that are drawn: a fifth aside by group, the others in folds."""

from pathlib import Path

import pandas as pd
import pytest

import dermkit as dk
from dermkit.data.groups import leakage_groups
from dermkit.data.split import check_split, make_split, tables_by_fold
from dermkit.errors import DataError
from dermkit.recipes.schema import SplitSpec


def spec(folds: int, *, test: float = 0.25, seed: int = 0) -> SplitSpec:
    return SplitSpec(
        scheme="holdout", seed=seed, validation=0.2, test=test, folds=folds, per_class=0, draw_from=""
    )


@pytest.mark.parametrize("seed", range(5))
def test_no_group_lies_on_two_sides_and_every_image_outside_the_test_is_validated_once(
    seven: Path, seed: int
) -> None:
    manifest = dk.load_dataset(seven).manifest
    split = make_split(manifest, spec(2, seed=seed), name="x")
    assert not split.leaks["total"] and check_split(manifest, split)
    frame = manifest[["image_id", "label"]].assign(group=leakage_groups(manifest)).merge(split.frame)
    assert len(frame) == len(manifest) and set(frame["split"]) == {"fold", "test"}
    assert (frame.groupby("group")[["split", "fold"]].nunique() == 1).all().all()
    assert set(frame.loc[frame["split"] == "test", "fold"]) == {-1}
    assert frame[frame["split"] == "test"]["label"].nunique() == manifest["label"].nunique()
    tables = list(tables_by_fold(split, manifest).values())
    validated = pd.concat(table[table["split"] == "validation"] for table in tables)
    assert sorted(validated["image_id"]) == sorted(frame.loc[frame["split"] == "fold", "image_id"])
    tests = [sorted(table.loc[table["split"] == "test", "image_id"]) for table in tables]
    assert tests[0] == tests[1] == sorted(frame.loc[frame["split"] == "test", "image_id"])


def test_the_same_test_images_are_drawn_whatever_the_number_of_folds(seven: Path) -> None:
    manifest = dk.load_dataset(seven).manifest
    drawn = [make_split(manifest, spec(folds), name="x").frame.query("split == 'test'") for folds in (2, 3)]
    assert drawn[0]["image_id"].tolist() == drawn[1]["image_id"].tolist()


def test_a_class_of_two_groups_is_refused(seven: Path) -> None:
    manifest = dk.load_dataset(seven).manifest
    label = manifest["label"].iloc[0]
    lesions = manifest.loc[manifest["label"] == label, "lesion_id"].unique()[:2]
    few = manifest[(manifest["label"] != label) | manifest["lesion_id"].isin(lesions)]
    with pytest.raises(DataError, match="one each for train, validation and test"):
        make_split(few.reset_index(drop=True), spec(2), name="x")
