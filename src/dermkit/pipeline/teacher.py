"""The teacher of a distillation: a trained model, what it must not have seen, and its probabilities of training images.

Out of fold where the teacher is of folds that hold every training image: each is then predicted by the net that was
trained without it. Otherwise by the model, which as a rule has learned from these very images, and the card says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.data.manifest import Dataset
from dermkit.errors import DataError
from dermkit.files import canonical_json, fingerprint, read_regular, sha256_bytes, shell_path, write_rows
from dermkit.models.card import TRAINING_IMAGES_FILE
from dermkit.models.checksums import check_hashes, expected_hashes
from dermkit.models.training_images import parse_training_images
from dermkit.pipeline.ensemble_sources import EnsembleSource, find_source
from dermkit.recipes.distil_checks import check_distillation
from dermkit.recipes.schema import Recipe
from dermkit.runs.folder import read_table

if TYPE_CHECKING:
    from dermkit.progress import Progress

TEACHER_FILE = "teacher.csv"
"""In the run's folder: the teacher's probability of each class for every training image."""

_NOTHING = "nothing was trained"


@dataclass(frozen=True)
class Teacher:
    """A trained model whose probabilities a net learns. source: its folder, as ensembles name it."""

    source: EnsembleSource

    @cached_property
    def sha256(self) -> str:
        """What the teacher's probabilities depend on: weights, members, calibration, and out-of-fold predictions."""
        hashes = expected_hashes(self.source.model)
        files = [hashes[member["file"]] for member in self.source.card["members"]]
        fields = [files, self.source.card["members"], self.source.card["calibration"], self.source.card["classes"]]
        rows = self.source.rows.to_csv(index=False) if self.source.is_folds else ""
        return fingerprint(canonical_json(fields), sha256_bytes(rows.encode()))

    def check(self, dataset: Dataset, split_table: pd.DataFrame) -> None:
        """Raise `DataError` for other classes, or where the teacher has seen images that the net is judged by.

        The net's validation images choose its epoch and calibrate it: no teacher may have been trained on them. Test
        images may not be the teacher's validation images either.
        """
        names = [entry["name"] for entry in self.source.card["classes"]]
        if sorted(names) != sorted(dataset.class_names):
            raise DataError(
                f"{self.source.folder}: knows other classes ({', '.join(names[:6])}) than {dataset.folder} "
                f"({', '.join(dataset.class_names[:6])}), so it cannot teach them",
                outcome=_NOTHING,
                remedy="name a teacher that was trained on these classes",
            )
        table = read_regular(self.source.model / TRAINING_IMAGES_FILE)
        seen = parse_training_images(table, self.source.model)
        manifest = dataset.manifest.set_index("image_id")
        for split_name, seen_as in (("validation", {"train"}), ("test", {"train", "validation"})):
            signs = {sign for pixels, isic_id, split in seen if split in seen_as for sign in (pixels, isic_id)} - {
                ""
            }
            ids = split_table.loc[split_table["split"] == split_name, "image_id"]
            rows = manifest.loc[ids]
            n_seen = int((rows["pixel_sha256"].isin(signs) | rows["isic_id"].isin(signs)).sum())
            if n_seen:
                raise DataError(
                    f"{self.source.folder}: has seen {n_seen} of the {len(rows)} {split_name} images in its training, "
                    "so what a net learns from it would make their figures too good",
                    outcome=_NOTHING,
                    remedy="train the teacher on the same split (`--split`), or name one that has not seen them",
                )

    def probabilities(
        self, dataset: Dataset, image_ids: Sequence[str], progress: "Progress", device: str
    ) -> NDArray[np.float64]:
        """Return the probabilities of images, (N, K), in the data set's order of classes."""
        names = dataset.class_names
        if self.is_out_of_fold(dataset, image_ids):
            p = self.source.scores(names).calibrated()
            order = pd.Index(self.source.rows["image_id"]).get_indexer(pd.Index(image_ids))
            return np.asarray(p[order], dtype=np.float64)
        return _predicted(self.source.model, dataset, image_ids, progress, device)

    def is_out_of_fold(self, dataset: Dataset, image_ids: Sequence[str]) -> bool:
        """Return whether it is of folds of this data set that hold all of these images."""
        is_same = self.source.card["dataset"].get("manifest_sha256") == dataset.manifest_sha256
        return self.source.is_folds and is_same and set(image_ids) <= set(self.source.rows["image_id"])

    def describe(self, dataset: Dataset, image_ids: Sequence[str]) -> dict[str, Any]:
        """Return what run.json and the model say of the teacher."""
        folder = "/".join(self.source.folder.resolve().parts[-2:])
        n_nets, is_out = len(self.source.card["members"]), self.is_out_of_fold(dataset, image_ids)
        how = (
            "each training image by the net that was trained without it"
            if is_out
            else "training images by the whole model, which has learned from those that are its own"
        )
        return {
            "recipe": self.source.name,
            "folder": folder,
            "n_nets": n_nets,
            "sha256": self.sha256,
            "is_out_of_fold": is_out,
            "note": f"Distilled from {self.source.name} ({folder}, {n_nets} nets), which predicted {how}.",
        }


def find_teacher(recipe: Recipe, folder: Path | None) -> Teacher | None:
    """Return the verified teacher of a recipe, None where it needs none; raises `UsageError` where they do not fit."""
    check_distillation(recipe, folder)
    if folder is None:
        return None
    source = find_source(folder, is_ensemble_allowed=True)
    check_hashes(source.model, preserved="the teacher as it is")
    return Teacher(source)


def teacher_table(
    run: Path, teacher: Teacher, dataset: Dataset, image_ids: Sequence[str], progress: "Progress", device: str
) -> NDArray[np.float64]:
    """Return the teacher's probabilities of training images, (N, K), from the run's table, which is made at first.

    A resumed run and other processes read what was written, to the last bit.
    """
    path, names = run / TEACHER_FILE, list(dataset.class_names)
    columns = [f"p_{name}" for name in names]
    if not path.is_file():
        p = teacher.probabilities(dataset, image_ids, progress, device)
        rows = ((name, *map(float, row)) for name, row in zip(image_ids, p, strict=True))
        write_rows(path, ("image_id", *columns), rows)
    table = read_table(path, "image_id", *columns)
    if table["image_id"].tolist() != list(image_ids):
        raise DataError(
            f"{path}: is not of the training images of this run",
            outcome="the run as it is",
            remedy=f"delete it, and give the command again: {shell_path(path)}",
        )
    return np.array([[float(cell) for cell in row] for row in table[columns].to_numpy()], dtype=np.float64)


def _predicted(
    model: Path, dataset: Dataset, image_ids: Sequence[str], progress: "Progress", device: str
) -> NDArray[np.float64]:
    """Return the model's probabilities of images, after its temperature, in the data set's order of classes."""
    from dermkit.data.cache.pixels import dataset_pixels
    from dermkit.prediction.load import load_model

    predictor = load_model(model, device=device, progress=progress)
    pixels = [
        dataset_pixels(dataset, image_ids, preprocessing, progress).pixels for preprocessing in predictor.resizings
    ]
    p = predictor.score_pixels(
        pixels,
        range(len(image_ids)),
        on_progress=lambda count, total: progress.step("teacher", count, total),
        metadata=dataset.manifest.set_index("image_id").loc[list(image_ids)],
    )
    if predictor.policy is not None:
        p = predictor.policy.calibration.without_bias().apply(p)
    return p[:, [predictor.class_names.index(name) for name in dataset.class_names]]
