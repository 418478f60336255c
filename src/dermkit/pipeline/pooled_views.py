"""Test-time views of folds beside test images: chosen once, on the out-of-fold predictions of all their nets.

Each run notes what every set of views gave on its validation images, so that nothing has to be scored for the choice;
only runs that had chosen another set score their validation images again. docs/decisions/0014-pooled-views.md says why
folds of all images keep their own choices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dermkit.models.card import write_views
from dermkit.pipeline.plan import Machine, RunPlan
from dermkit.pipeline.saved_targets import saved_targets
from dermkit.pipeline.view_choice import CHOICE_TITLE, ViewChoice, pool_choices
from dermkit.reporting.report import write_report
from dermkit.runs.layout import MODEL_FOLDER, RUN, SAVED_TARGETS, VIEW_CHOICE


def share_view_choice(plans: Sequence[RunPlan], runs: Sequence[Path], machine: Machine) -> None:
    """Give all runs of folds beside test images the views that are best on all their validation images.

    Before the ensemble scores a test image. A killed call is repeated by the next one; runs that have the choice are
    left as they are, and all of them where one was trained by a version that did not note what each set gave.
    """
    if not plans[0].leaves_test_to_ensemble or plans[0].recipe.test_views != "choose":
        return
    if not all(VIEW_CHOICE.exists(run) for run in runs):
        machine.progress.say(
            "test-time views: each fold keeps its own, as its run does not say what the others gave"
        )
        return
    documents = [VIEW_CHOICE.read(run) for run in runs]
    pooled = pool_choices([ViewChoice(**document["own"]) for document in documents])
    machine.progress.say(pooled.sentence())
    for plan, run, document in zip(plans, runs, documents, strict=True):
        if document["pooled"] != asdict(pooled):
            _take_choice(plan, run, document, pooled, machine)


def _take_choice(
    plan: RunPlan, run: Path, document: Mapping[str, Any], pooled: ViewChoice, machine: Machine
) -> None:
    """Give a run's model the views; where it had others, score and evaluate its validation images by them."""
    from dermkit.pipeline.run import evaluate_and_report

    has_views = document["applied"] == pooled.name
    if not has_views:
        VIEW_CHOICE.write(run, {**document, "applied": ""})  # from here on its files may be of either set
        if targets := saved_targets(run):
            SAVED_TARGETS.write(run, {"targets": targets})  # the model that holds them is written anew
        write_views(run / MODEL_FOLDER, pooled.views)
        _score_validation(plan, run, machine)
    run_json = RUN.read(run)
    warnings = [text for text in run_json["warnings"] if not text.startswith(CHOICE_TITLE)]
    RUN.write(run, {**run_json, "warnings": [*warnings, pooled.sentence()]})
    if has_views:
        write_report(run, images_root=plan.dataset.image_root)
    else:
        evaluate_and_report(
            run, plan.dataset.image_root, options=machine.settings.options, device=machine.fabric.device.type,
            progress=machine.progress,
        )  # fmt: skip
    VIEW_CHOICE.write(run, {**document, "pooled": asdict(pooled), "applied": pooled.name})


def _score_validation(plan: RunPlan, run: Path, machine: Machine) -> None:
    from dermkit.data.cache.pixels import dataset_pixels
    from dermkit.evaluation.predict_splits import predict_splits
    from dermkit.prediction.load import load_model

    dataset, progress = plan.dataset, machine.progress
    predictor = load_model(run / MODEL_FOLDER, device=machine.fabric.device.type)
    pixels = dataset_pixels(dataset, dataset.manifest["image_id"].tolist(), predictor.preprocessing, progress)
    predict_splits(
        run, dataset, plan.split_table, ["validation"], predictor=predictor, pixels=pixels, seed=plan.seed,
        fold=plan.fold, progress=progress,
    )  # fmt: skip
