"""Test images beside folds: the ensemble of all folds scores them, once, and no net of a fold does.

docs/decisions/0012-folds-beside-test-images.md says why.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from dermkit.data.folds import rows_for_ensemble
from dermkit.data.manifest import Dataset
from dermkit.data.seal import Seal, find_partial_overlaps, find_seal
from dermkit.data.split import Split, save_split
from dermkit.evaluation.openings import log_openings, openings_of_overlaps, seal_folder, write_run_seal
from dermkit.evaluation.predict_splits import predict_splits
from dermkit.pipeline.cross_validation import ensemble_key, has_scored_test
from dermkit.pipeline.next_steps import write_parent_next_steps
from dermkit.pipeline.plan import Machine, RunPlan
from dermkit.runs.layout import ENSEMBLE_TEST, MODEL_FOLDER, RUN, RUN_SEAL

if TYPE_CHECKING:
    pass


def score_test_by_ensemble(parent: Path, members: Sequence[Path], plan: RunPlan, machine: Machine) -> None:
    """Score the test images by the model of a parent folder, unless that is done, or they are sealed.

    members: the runs whose nets the model holds. plan: of any of them. Openings of seals of other splits that hold some
    of the images are logged.
    """
    dataset, progress, rows = plan.dataset, machine.progress, rows_for_ensemble(plan.split.frame)
    seal = find_seal(seal_folder(dataset), dataset.manifest, rows)
    if has_scored_test(parent, members):
        progress.say(f"{parent}: the ensemble has scored the test images already; nothing to do")
        if seal is not None and not RUN_SEAL.exists(parent):
            progress.say(f"warning: it scored these test images before they were sealed as {seal.name}")
        return
    if seal is not None:
        _withhold_sealed(parent, seal, dataset)
        progress.say(f"test split sealed ({len(seal.rows)} images): it is not scored (docs/seal.md)")
        return
    _score(parent, members, plan, machine, rows)


def withhold_test(parent: Path, dataset: Dataset, split: Split) -> None:
    """Leave the test images of a parent folder unscored, until `open_test` scores them: once, and logged."""
    save_split(replace(split, name="split"), parent)
    rows = rows_for_ensemble(split.frame)
    seal = find_seal(seal_folder(dataset), dataset.manifest, rows)
    if seal is not None:
        _withhold_sealed(parent, seal, dataset)
        return
    RUN.write(parent, {"openings": [], **RUN.read(parent)})
    if not ENSEMBLE_TEST.exists(parent):
        write_parent_next_steps(parent, scores_test=True, opens_in=dataset.folder, is_sealed=False)


def _withhold_sealed(parent: Path, seal: Seal, dataset: Dataset) -> None:
    if not RUN_SEAL.exists(parent):  # an opening that did not end stays known
        write_run_seal(parent, seal, opening=None)
    write_parent_next_steps(parent, scores_test=True, opens_in=dataset.folder)


def _score(parent: Path, members: Sequence[Path], plan: RunPlan, machine: Machine, rows: pd.DataFrame) -> None:
    from dermkit.data.cache.pixels import dataset_pixels
    from dermkit.prediction.load import load_model

    dataset, progress = plan.dataset, machine.progress
    predictor = load_model(parent / MODEL_FOLDER, device=machine.fabric.device.type)
    image_ids = rows["image_id"].drop_duplicates().tolist()  # images of folds stand there twice
    pixels = dataset_pixels(dataset, image_ids, predictor.preprocessing, progress)
    openings = openings_of_overlaps(
        dataset, find_partial_overlaps(seal_folder(dataset), dataset.manifest, rows), model=parent / MODEL_FOLDER,
        recipe=plan.recipe.name, run=parent.name, split=plan.split.name,
    )  # fmt: skip
    progress.say(f"the ensemble of {len(members)} nets scores {int((rows['split'] == 'test').sum())} test images")
    # The image-blind rules are fitted on all images of the folds.
    with log_openings(openings):
        predict_splits(
            parent, dataset, rows, ["test"], predictor=predictor, pixels=pixels, seed=int(RUN.read(parent)["seed"]),
            fold=-1, progress=progress, retained_splits=["validation"],
        )  # fmt: skip
        ENSEMBLE_TEST.write(parent, {"key": ensemble_key(members)})
