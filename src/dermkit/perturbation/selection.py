"""Which images are changed: test images of a run that has opened them, else its validation images, or a data set.

A sealed test split is not scored here unasked, and never before `dermkit evaluate --open-test` has opened it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dermkit.data.groups import distinct_codes, leakage_groups
from dermkit.data.manifest import Dataset, LesionClass
from dermkit.data.seal import find_seals_of_images
from dermkit.data.unknown import known_ids
from dermkit.errors import DataError, UsageError
from dermkit.metrics.stats.arrays import Bools, Floats, Ints
from dermkit.runs.folder import RunFolder
from dermkit.runs.predictions import ATTRIBUTES, class_indices, probabilities_of

if TYPE_CHECKING:
    from dermkit.prediction.predictor import Predictor

MIN_CHANGED_IMAGES = 10
"""Fewer images say nothing: the interval of a mean of nine is wider than most changes."""
_SPLIT_REASONS = {
    "test": "test images, which this run had scored before",
    "validation": "validation images: the test images of this run are sealed or were not scored by it",
}


@dataclass(frozen=True, eq=False)
class ImageSelection:
    """The images that are changed: N rows with image_id, path on this machine, label, and age, sex, site where known.

    groups: (N,) resampling unit, 0 to G - 1. is_malignant: (N,) by label; None where the class table has not both
    sides. label_index: (N,) the label's class of the model, -1 for none. has_units: lesions or patients are known.
    recorded: (N, K) probabilities that the run has of them, None for images that are new to it. split: test,
    validation or external. text: which images these are. n_available: before a sample was drawn.
    """

    rows: pd.DataFrame
    groups: Ints
    is_malignant: Bools | None
    label_index: Ints
    has_units: bool
    split: str
    text: str
    n_available: int
    recorded: Floats | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def n_units(self) -> int:
        """Return the number of resampling units."""
        return int(self.groups.max()) + 1 if len(self.groups) else 0

    def take(self, index: Sequence[int] | Ints) -> "ImageSelection":
        """Return some of the images; their units are numbered anew."""
        index = np.asarray(index, dtype=np.int64)
        return replace(
            self,
            rows=self.rows.iloc[index].reset_index(drop=True),
            groups=pd.factorize(self.groups[index])[0].astype(np.int64),
            is_malignant=None if self.is_malignant is None else self.is_malignant[index],
            label_index=self.label_index[index],
            recorded=None if self.recorded is None else self.recorded[index],
        )


def sample_units(selection: ImageSelection, n_images: int | None, seed: int) -> ImageSelection:
    """Return about `n_images` images: whole units, drawn at random until there are enough; None = all images."""
    if n_images is None or n_images >= len(selection):
        return selection
    order = np.random.default_rng(seed).permutation(selection.n_units)
    sizes = np.bincount(selection.groups, minlength=selection.n_units)[order]
    n_drawn_units = int(np.searchsorted(np.cumsum(sizes), n_images)) + 1
    return selection.take(np.flatnonzero(np.isin(selection.groups, order[:n_drawn_units])))


def check_enough(selection: ImageSelection) -> None:
    """Raise `DataError` for fewer than `MIN_CHANGED_IMAGES` images."""
    if len(selection) < MIN_CHANGED_IMAGES:
        raise DataError(
            f"only {len(selection)} images to change ({selection.text}): {MIN_CHANGED_IMAGES} are needed",
            outcome="no result was written",
            remedy=f"--images {MIN_CHANGED_IMAGES} or more"
            if selection.n_available >= MIN_CHANGED_IMAGES
            else "name a run or a data set (--on DATASET) with more images",
        )


# Of a run -----------------------------------------------------------------------------------------------------------


def images_of_run(run: RunFolder, *, split: str | None, images_root: Path | None) -> ImageSelection:
    """Return the scored images of a run: test images, or validation images where the test split is sealed or unscored.

    split: test or validation, to choose. images_root: where the images lie, None = where the run says. Raises
    `UsageError` for a split that this run has not scored, `DataError` where the images have moved.
    """
    predictions = run.predictions
    split_name = _choose_split(run, set(predictions["split"]), split)
    root = images_root or run.images_root()
    if root is None:
        raise DataError(
            f"{run.path}: its images are not where they were when it was trained",
            outcome="nothing was scored",
            remedy="add --on DATASET, the same data set where it lies now",
        )
    rows = predictions[predictions["split"] == split_name].drop_duplicates("image_id")
    rows = rows.sort_values("image_id", kind="stable").reset_index(drop=True)
    selection = _select(rows, run.classes, run.class_names, _run_groups(run, rows), split_name)
    table = selection.rows.assign(path=[str(root / path) for path in rows["path"]])
    attributes = run.attributes()
    if attributes is not None:
        table = table.join(attributes.reindex(table["image_id"]).fillna("").reset_index(drop=True))
    return replace(
        selection, rows=table, text=_split_text(run, split_name), recorded=probabilities_of(rows, run.class_names)
    )


def _choose_split(run: RunFolder, scored_splits: set[str], split: str | None) -> str:
    """Return the split to take; raises `UsageError` for one that this run has not scored, or that its nets saw.

    A sealed test split is never taken unasked, also where it is the only one.
    """
    is_of_folds = run.pooled is not None or run.ensemble.get("fitted_on") == "out-of-fold images"
    is_test_unseen = not is_of_folds or run.scores_test_by_ensemble or bool(run.ensemble)
    usable = [
        name
        for name, is_unseen in (("test", is_test_unseen), ("validation", not is_of_folds))
        if is_unseen and name in scored_splits
    ]
    if split is not None and split not in usable:
        raise UsageError(
            f"--split {split}: {run.path} holds no {split} images that its model has scored and did not learn from",
            outcome="nothing was scored",
            remedy=f"--split {usable[0]}" if usable else "name another run, or --on DATASET",
        )
    if not usable:
        raise DataError(
            f"{run.path}: the nets of its model learned from each other's validation images, and it has scored no test "
            "images" if is_of_folds else f"{run.path}: has scored neither test nor validation images",
            outcome="nothing was scored",
            remedy="name the run of one fold, or test the model on other data with --on DATASET",
        )  # fmt: skip
    if split is None and run.seal:
        if "validation" not in usable:
            raise UsageError(
                f"{run.path}: its test images are sealed, and it has no validation images that none of its nets "
                "learned from",
                outcome="nothing was scored",
                remedy="add --split test to take the sealed images that it has opened",
            )
        return "validation"
    return split or usable[0]


def _split_text(run: RunFolder, split_name: str) -> str:
    text = _SPLIT_REASONS.get(split_name, f"{split_name} images")
    if split_name == "validation":
        return f"{text}. Validation images also chose the epoch and the operating point"
    if run.seal:
        return f"sealed {text} in its opening {run.seal.get('opening_number')}; asked for with --split test"
    return text


def _run_groups(run: RunFolder, rows: pd.DataFrame) -> "pd.Series[int]":
    groups = run.groups()
    if groups is None:
        return pd.Series(np.arange(len(rows)))
    return rows["image_id"].map(groups)


# Of a data set ------------------------------------------------------------------------------------------------------


def images_of_dataset(predictor: "Predictor", dataset: Dataset) -> ImageSelection:
    """Return the images of a data set that are under no seal, and from no lesion that the model learned from.

    An image whose label is no class of the model stays where the class tables say which labels are malignant.
    """
    manifest = dataset.manifest.sort_values("image_id").reset_index(drop=True)
    sealed = find_seals_of_images(dataset.folder / "splits", manifest, manifest["image_id"])
    sealed_ids = {row[0] for _, rows in sealed for row in rows}
    sealed_pixels = {row[2] for _, rows in sealed for row in rows}
    is_sealed = (manifest["image_id"].isin(sealed_ids) | manifest["pixel_sha256"].isin(sealed_pixels)).to_numpy()
    is_seen = _is_seen_in_training(predictor, manifest)
    has_sides = _has_both_sides(predictor.classes) and _has_both_sides(dataset.classes)
    is_labelled = manifest["label"].isin(list(predictor.class_names)).to_numpy() | has_sides
    is_usable = ~is_sealed & ~is_seen & is_labelled
    counts = [
        (int((is_seen & ~is_sealed).sum()), "of lesions that the model learned from"),
        (int(is_sealed.sum()), "under a seal"),
        (int((~is_labelled & ~is_sealed & ~is_seen).sum()), "of labels that the model does not have"),
    ]
    left_out = ", ".join(f"{count:,} {reason}" for count, reason in counts if count)
    text = f"images of data set {dataset.name}{f'; left out: {left_out}' if left_out else ''}"
    rows = manifest[is_usable].reset_index(drop=True)
    groups = pd.Series(leakage_groups(manifest)[is_usable])
    selection = _select(rows, dataset.classes, predictor.class_names, groups, "external", has_sides=has_sides)
    paths = [str(dataset.image_root / path) for path in rows["path"]]
    table = rows[["image_id", "label", *ATTRIBUTES]].assign(path=paths)
    return replace(selection, rows=table, text=text)


def _is_seen_in_training(predictor: "Predictor", manifest: pd.DataFrame) -> Bools:
    """Return the images that training or validation used, by pixels or ISIC id, and others of their lesions, (N,)."""
    pixels = {pixel_sha256 for pixel_sha256, _, _ in predictor.training_images}
    isic_ids = {isic_id for _, isic_id, _ in predictor.training_images} - {""}
    is_training_image = (manifest["pixel_sha256"].isin(pixels) | manifest["isic_id"].isin(isic_ids)).to_numpy()
    groups = leakage_groups(manifest)
    return np.isin(groups, groups[is_training_image])


def _has_both_sides(classes: Sequence[LesionClass]) -> bool:
    is_malignant = [lesion_class.malignancy == "malignant" for lesion_class in classes]
    return any(is_malignant) and not all(is_malignant)


def _select(
    rows: pd.DataFrame, classes: Sequence[LesionClass], model_classes: Sequence[str], groups: "pd.Series[int]",
    split: str, *, has_sides: bool | None = None,
) -> ImageSelection:  # fmt: skip
    malignant_labels = [lesion_class.name for lesion_class in classes if lesion_class.malignancy == "malignant"]
    has_sides = _has_both_sides(classes) if has_sides is None else has_sides
    codes = distinct_codes(groups.astype("Int64").astype(str).replace("<NA>", ""))
    return ImageSelection(
        rows=rows[["image_id", "label"]],
        groups=pd.factorize(codes)[0].astype(np.int64),
        is_malignant=rows["label"].isin(malignant_labels).to_numpy() if has_sides else None,
        label_index=class_indices(rows["label"], model_classes),
        has_units=len(np.unique(codes)) < len(rows) or _knows_lesions(rows),
        split=split,
        text="",
        n_available=len(rows),
    )


def _knows_lesions(rows: pd.DataFrame) -> bool:
    columns = [known_ids(rows[name]) for name in ("lesion_id", "patient_id") if name in rows]
    return any((column != "").all() for column in columns)
