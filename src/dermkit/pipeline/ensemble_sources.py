"""The models that an ensemble is made of, and the check that weights may be fitted on their validation images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermkit.errors import DataError, DermkitError, UsageError
from dermkit.metrics.decisions.mixture_weights import ModelScores
from dermkit.metrics.decisions.policy import calibration_from_dict
from dermkit.metrics.decisions.recalibration import ProbabilityCalibration, identity
from dermkit.models.card import TRAINING_IMAGES_FILE, card_policy, read_card
from dermkit.models.checksums import CHECKSUM_FILE
from dermkit.models.ensemble import check_members
from dermkit.models.training_images import parse_training_images
from dermkit.prediction.locate import check_folder, check_no_rung, suggest_run
from dermkit.runs.folder import RunFolder
from dermkit.runs.layout import MODEL_FOLDER, RUN, SUMMARY, run_of_model
from dermkit.runs.predictions import probabilities_of

_Json = dict[str, Any]
_NOTHING = "nothing was written"


@dataclass(frozen=True)
class EnsembleSource:
    """A model whose nets become members.

    folder: as it was named. model: its model folder. run: the folder with its validation predictions, None for a model
    alone. nets: fold -> the model folder of the net that scored the fold's images; {"": model} for one net.
    """

    folder: Path
    model: Path
    run: RunFolder | None
    nets: Mapping[str, Path]

    @cached_property
    def card(self) -> _Json:
        """model.json."""
        return read_card(self.model)

    @property
    def name(self) -> str:
        """The recipe's name."""
        return str(self.card["recipe"].get("name", "?"))

    @property
    def is_folds(self) -> bool:
        """Whether it is the ensemble of a cross-validation, whose validation predictions are out of fold."""
        return "" not in self.nets

    @cached_property
    def rows(self) -> pd.DataFrame:
        """The validation predictions, each image once, sorted by image_id."""
        assert self.run is not None  # noqa: S101  check_fittable says so before
        rows = self.run.predictions[self.run.predictions["split"] == "validation"]
        rows = rows[rows["fold"].isin(list(self.nets))] if self.is_folds else rows
        return rows.sort_values("image_id", kind="stable").reset_index(drop=True)

    def scores(self, class_names: Sequence[str]) -> ModelScores:
        """Return the validation predictions of `rows` in this order of classes, with each net's temperature."""
        folds = list(self.nets)
        nets = np.array([folds.index(fold) if self.is_folds else 0 for fold in self.rows["fold"]], dtype=np.int64)
        calibrations = [_calibration(read_card(model), len(class_names)) for model in self.nets.values()]
        return ModelScores(probabilities_of(self.rows, class_names), nets, calibrations)


def _calibration(card: Mapping[str, Any], n_classes: int) -> ProbabilityCalibration:
    """Return the calibration that a model of one net has as a member, which has no biases."""
    policy = card_policy(card)
    return identity(n_classes) if policy is None else calibration_from_dict(policy["calibration"]).without_bias()


def find_sources(folders: Sequence[Path]) -> list[EnsembleSource]:
    """Return the models of these folders; raises `UsageError` or `DataError` for what cannot be one ensemble.

    They have the same classes, by name, and were trained on one data set; together they have at most `MAX_NETS` nets.
    """
    sources = [find_source(folder) for folder in folders]
    if len({source.model.resolve() for source in sources}) < max(2, len(sources)):
        raise UsageError(
            "an ensemble needs two different models or more",
            outcome=_NOTHING,
            remedy="dermkit ensemble RUN RUN... --out FOLDER",
        )
    check_members([(source.model, source.card) for source in sources])
    first = sources[0]
    for source in sources[1:]:
        hashes = [str(one.card["dataset"].get("manifest_sha256", "")) for one in (first, source)]
        if hashes[0] != hashes[1]:
            names = [str(one.card["dataset"].get("name", "?")) for one in (first, source)]
            raise DataError(
                f"{source.folder}: was trained on another data set ({names[1]}) than {first.folder} ({names[0]}), or "
                "on another version of its manifest",
                outcome=_NOTHING,
                remedy="name models that were trained on one data set",
            )
    return sources


def find_source(folder: Path, *, is_ensemble_allowed: bool = False) -> EnsembleSource:
    """Return the model of a run, of repeats or folds, or of a model folder.

    Raises `DataError` or `UsageError` for what is none, `UntrustedError` for a rung of a leak ladder.
    """
    check_folder(folder)
    check_no_rung(folder)
    named = folder
    if any(file.exists(run_of_model(folder)) for file in (RUN, SUMMARY)):
        folder = run_of_model(folder)
    if SUMMARY.exists(folder):
        return _of_parent(folder, named)
    if RUN.exists(folder) and (folder / MODEL_FOLDER / CHECKSUM_FILE).is_file():
        run = RunFolder(folder)
        if run.ensemble and not is_ensemble_allowed:
            raise UsageError(
                f"{named}: is an ensemble of recipes itself",
                outcome=_NOTHING,
                remedy="name the runs that it was made of",
            )
        return EnsembleSource(named, folder / MODEL_FOLDER, run, {"": folder / MODEL_FOLDER})
    if (folder / CHECKSUM_FILE).is_file():
        return EnsembleSource(named, folder, None, {"": folder})
    raise DataError(
        f"{named}: is neither a finished run nor a model",
        outcome=_NOTHING,
        remedy=suggest_run(folder, "name a run, a folder of repeats or folds, or a model folder"),
    )


def _of_parent(folder: Path, named: Path) -> EnsembleSource:
    """Return the final model of repeats, with the run that it is of, or of folds, with the nets of its folds."""
    summary = SUMMARY.read(folder)
    final = summary["final"]
    if summary["pooled"] is None:
        run = folder / str(final["folder"])
        return EnsembleSource(named, run / MODEL_FOLDER, RunFolder(run), {"": run / MODEL_FOLDER})
    members, shown_seed = set(final["members"]), summary["pooled"]["shown_seed"]
    nets = {  # of the seed whose rows `RunFolder.predictions` holds; the model may have those of others too
        str(row["fold"]): folder / row["folder"] / MODEL_FOLDER
        for row in summary["runs"]
        if row["folder"] in members and row["seed"] == shown_seed
    }
    return EnsembleSource(named, folder / MODEL_FOLDER, RunFolder(folder), nets)


# May weights be fitted? -------------------------------------------------------------------------------------------


def check_fittable(sources: Sequence[EnsembleSource]) -> None:
    """Raise `DataError` or `UsageError` unless every model scored the same images, which no net here learned from."""
    for source in sources:
        if source.run is None:
            raise UsageError(
                f"{source.folder}: is a model without its run, so there are no predictions of validation images to fit "
                "weights on",
                outcome=_NOTHING,
                remedy="name its run folder, or add --weights equal",
            )
    first = sources[0]
    for source in sources[1:]:
        if source.is_folds != first.is_folds:
            folds, single = (source, first) if source.is_folds else (first, source)
            raise _unfittable(
                f"{folds.folder} is of folds and {single.folder} is not: every image that one validated on, nets of "
                "the other learned from"
            )
        _check_same_rows(first, source)
        for one, other in ((first, source), (source, first)):
            _check_unlearned(one, other)


def is_fittable(sources: Sequence[EnsembleSource]) -> str:
    """Return why weights, thresholds and figures cannot be fitted, "" where they can."""
    try:
        check_fittable(sources)
    except DermkitError as error:
        return str(error).split("\n")[0]
    return ""


def _unfittable(problem: str) -> DataError:
    return DataError(
        f"weights cannot be fitted: {problem}",
        outcome=_NOTHING,
        remedy="train all models with one `--split` (or the same folds), or add --weights equal",
    )


def _check_same_rows(first: EnsembleSource, second: EnsembleSource) -> None:
    """Raise `DataError` unless both scored the same validation images, with the same labels, in the same folds."""
    rows = first.rows.merge(second.rows, on="image_id", how="outer", suffixes=("", "_second"))
    n_common = int((rows["label"].notna() & rows["label_second"].notna()).sum())
    if n_common < len(rows):
        raise _unfittable(
            f"{first.folder} and {second.folder} validated on {len(first.rows)} and {len(second.rows)} images, "
            f"of which {n_common} are common"
        )
    if n_other := int((rows["label"] != rows["label_second"]).sum()):
        raise _unfittable(f"{n_other} validation images have other labels in {second.folder}")
    n_moved = int((rows["fold"] != rows["fold_second"]).sum())
    if first.is_folds and n_moved:
        raise _unfittable(
            f"{n_moved} of {len(rows)} images are in another fold in {second.folder} than in {first.folder}"
        )


def _check_unlearned(source: EnsembleSource, other: EnsembleSource) -> None:
    """Raise `DataError` where an image that one model validated on is a training image of the other's same fold."""
    for fold, model in source.nets.items():
        validated, _ = _images_of(model)
        _, learned = _images_of(other.nets[fold])
        if common := validated & learned:
            raise _unfittable(
                f"{len(common)} validation images of {source.folder}{f' (fold {fold})' if fold else ''} are training "
                f"images of {other.folder} (same pixels or ISIC id)"
            )


def _images_of(model: Path) -> tuple[set[str], set[str]]:
    """Return what identifies the validation and the training images of a model: pixel hashes and ISIC ids."""
    path = model / TRAINING_IMAGES_FILE
    signs: dict[str, set[str]] = {"validation": set(), "train": set()}
    for pixels, isic_id, split in parse_training_images(path.read_bytes(), model):
        signs[split] |= {pixels, isic_id} - {""}
    return signs["validation"], signs["train"]
