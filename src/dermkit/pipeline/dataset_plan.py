"""Plan: what a data set, a time and this machine allow, before anything is trained."""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dermkit.data.manifest import Dataset
from dermkit.data.readers import reading
from dermkit.models.hub import licence_sentence, resolve_hub_net
from dermkit.models.hub_names import is_hub_name
from dermkit.pipeline.auto_nets import input_size, nets_at_hand
from dermkit.pipeline.auto_plan import AutoPlan, make_plan
from dermkit.pipeline.auto_recipes import KIND_NAMES, MeasuredNet, fastest_net
from dermkit.pipeline.dataset_profile import DatasetProfile, profile_dataset
from dermkit.pipeline.estimate_cost import FitTime
from dermkit.pipeline.measure_speed import measure_decoding, measure_fits, measure_net
from dermkit.pipeline.plan import Machine, RunSettings, check_classes, prepare_machine
from dermkit.progress import Progress
from dermkit.recipes.schema import recipe_to_dict
from dermkit.recipes.strong import STRONG_1H
from dermkit.reporting.auto_page import plan_lines

_FEWEST_SECONDS_FOR_FITS = 120.0
"""Of a race whose classifiers are measured, which takes some seconds. Chosen."""
_MEASURING_PART = 0.02
"""Of the time, after which no further kind of classifier is measured. Chosen."""


@dataclass(frozen=True, kw_only=True)
class AutoOptions:
    """What a race may take. seconds: the whole time. weights: files of nets, or hf-hub:OWNER/NAME as a
    path; none = what the hub's cache holds.
    """

    seconds: float
    weights: tuple[Path, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class DatasetPlan:
    """What is known of a data set, and the recipes that a time allows: `plan.candidates`, `plan.choices`."""

    profile: DatasetProfile
    plan: AutoPlan

    def to_json(self) -> dict[str, Any]:
        """Return both as JSON values, as `dermkit plan --json` prints them."""
        return {"profile": asdict(self.profile), "plan": plan_json(self.plan)}

    def lines(self) -> list[str]:
        """Return what `dermkit plan` prints: every choice with its reason, its evidence and what would change it."""
        return plan_lines(asdict(self.profile), plan_json(self.plan))


def plan(
    dataset: Dataset,
    options: AutoOptions,
    *,
    settings: RunSettings | None = None,
    progress: Progress | None = None,
) -> DatasetPlan:
    """Measure nets on this machine for seconds, and plan what `train_auto` would train in `options.seconds`.

    Nothing is trained, and no test image is scored. Raises `DataError`, `UntrustedError`, `UsageError`.
    """
    check_classes(dataset)
    machine = prepare_machine(settings, progress)
    with reading(dataset, "plan"):
        return DatasetPlan(*plan_auto(dataset, options, machine))


def plan_auto(dataset: Dataset, options: AutoOptions, machine: Machine) -> tuple[DatasetProfile, AutoPlan]:
    """Return what is known of a data set, and the plan for it on this machine, whose speed is measured."""
    start = time.monotonic()
    profile = profile_dataset(dataset)
    device = machine.fabric.device
    nets = []
    for model, weights_file in nets_at_hand(options.weights, has_gpu=device.type != "cpu"):
        image = replace(STRONG_1H.image, size=input_size(model, profile.median_side))
        base = replace(STRONG_1H, model=model, image=image)
        if is_hub_name(model.backbone):
            machine.progress.say(licence_sentence(resolve_hub_net(model.backbone)))
        machine.progress.say(f"measuring {model.backbone} at {image.size} px")
        speed = measure_net(base, weights_file, len(dataset.classes), device)
        nets.append(MeasuredNet(model, weights_file, speed, image.size))
    decoded = measure_decoding(dataset, image)
    fits = _measure_fits(profile, fastest_net(nets), options, machine)
    auto_plan = make_plan(
        profile, nets, images_decoded_per_second=decoded, seconds=options.seconds, seed=options.seed,
        elapsed=time.monotonic() - start, fits=fits,
    )  # fmt: skip
    return profile, auto_plan


def _measure_fits(
    profile: DatasetProfile, net: MeasuredNet, options: AutoOptions, machine: Machine
) -> tuple[FitTime, ...]:
    """Return the times of classifiers; none for a net of random weights, and where the time is too short."""
    if net.model.weights == "none" or options.seconds < _FEWEST_SECONDS_FOR_FITS:
        return ()
    machine.progress.say(f"measuring classifiers on {net.speed.n_features:,} features")
    return measure_fits(
        KIND_NAMES, net.speed.n_features, list(profile.class_counts.values()), seed=options.seed,
        limit=_MEASURING_PART * options.seconds,
    )  # fmt: skip


def plan_json(plan: AutoPlan) -> dict[str, Any]:
    """Return a plan as JSON values."""
    candidates = [
        {
            "recipe": recipe_to_dict(candidate.recipe),
            "weights": str(candidate.weights_file or ""),
            "seconds": candidate.seconds,
        }
        for candidate in plan.candidates
    ]
    choices = [asdict(choice) for choice in plan.choices]
    return {
        "seconds": plan.seconds, "decoding": plan.decoding, "n_folds": plan.n_folds,
        "n_trained_folds": plan.n_trained_folds, "candidates": candidates,
        "choices": choices,
    }  # fmt: skip
