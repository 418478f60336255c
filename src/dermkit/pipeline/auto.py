"""The race of `train auto`: the recipes of a plan, one after the other on the same folds, until the time is over.

Every recipe leaves out-of-fold predictions of the same images; the leaderboard compares these. No test image is scored.
The plan is written before anything is trained, and every finished fold is kept: a race that was killed goes on with the
same plan, from its last checkpoint, to the same leaderboard.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dermkit.data.manifest import Dataset
from dermkit.data.readers import reading
from dermkit.errors import DivergenceError, RunInterrupt, UsageError
from dermkit.files import fingerprint, lock
from dermkit.pipeline.auto_nets import weights_identity
from dermkit.pipeline.auto_plan import AutoPlan
from dermkit.pipeline.auto_reasons import PlanChoice
from dermkit.pipeline.auto_recipes import Candidate
from dermkit.pipeline.auto_results import FinishedRecipe, write_results
from dermkit.pipeline.dataset_plan import AutoOptions, plan_auto, plan_json
from dermkit.pipeline.plan import (
    EpochWatch,
    Machine,
    RunPlan,
    RunSettings,
    check_classes,
    parent_of_runs,
    prepare_machine,
)
from dermkit.pipeline.run import run_plan
from dermkit.pipeline.trials import resuming, trial_plans
from dermkit.progress import Progress
from dermkit.recipes.schema import parse_recipe
from dermkit.runs.layout import AUTO, METRICS

_RESERVED_SECONDS, _RESERVED_PER_IMAGE, _MOST_RESERVED = 15.0, 0.003, 0.3
"""For what comes after the last training (ensemble, models, reports): seconds, and at most this part of the time."""
_FOREVER = float("inf")

COMPLETE, OUT_OF_TIME, DIVERGED = "complete", "out of time", "diverged"


@dataclass
class Race:
    """A race that is going on. document: what auto.json holds."""

    folder: Path
    dataset: Dataset
    machine: Machine
    plan: AutoPlan
    document: dict[str, Any]
    deadline: float

    def save(self) -> None:
        """Write auto.json."""
        AUTO.write(self.folder, self.document)

    def machine_for(self, candidate: Candidate) -> Machine:
        """Return the machine with the weights file of a recipe's net."""
        return replace(self.machine, settings=replace(self.machine.settings, weights=candidate.weights_file))

    def finished(self) -> list[FinishedRecipe]:
        """Return the recipes that were trained on every fold, in the order of the plan."""
        finished, seconds = [], self.document["seconds_of_runs"]
        for candidate in self.plan.candidates:
            if self.document["states"].get(candidate.recipe.name) == COMPLETE:
                plans = self.runs_of(candidate)
                runs = tuple(plan.folder for plan in plans)
                spent = sum(seconds.get(_run_key(run), 0.0) for run in runs)
                finished.append(FinishedRecipe(candidate.recipe.name, plans[0].split, runs, spent))
        return finished

    def runs_of(self, candidate: Candidate) -> list[RunPlan]:
        """Return the runs of a recipe, one for each fold that is trained, all in one parent folder."""
        plans = trial_plans(candidate.recipe, self.dataset, None, self.machine_for(candidate), self.folder)
        plans = plans[: self.plan.n_trained_folds]
        return [replace(plan, folder=parent_of_runs(plans[0]) / plan.folder.name) for plan in plans]


def _run_key(run: Path) -> str:
    """Return the key of a run in `seconds_of_runs`."""
    return f"{run.parent.name}/{run.name}"


def train_auto(
    dataset: Dataset,
    options: AutoOptions,
    *,
    settings: RunSettings | None = None,
    progress: Progress | None = None,
) -> Path:
    """Train the strongest classifier that a time allows; returns the race's folder, with its leaderboard and model.

    Called again with the same arguments, it goes on where it was stopped. Raises as `train` does.
    """
    start = time.monotonic()
    check_classes(dataset)
    machine = prepare_machine(settings, progress)
    if machine.fabric.world_size > 1:
        raise UsageError(
            "train auto: measures and trains with one process",
            outcome="nothing was trained",
            remedy="leave out --devices and --nodes",
        )
    folder = machine.settings.out / f"auto-{dataset.name}-{_identity(dataset, options)}"
    with reading(dataset, "train"), lock(folder):
        race = _begin_or_go_on(folder, dataset, options, machine, start)
        for number, candidate in enumerate(race.plan.candidates):
            _train_candidate(race, candidate, deadline=race.deadline if number else _FOREVER)
        write_results(folder, race.document, dataset, race.finished(), machine.progress)
    return folder


def _identity(dataset: Dataset, options: AutoOptions) -> str:
    identities = [weights_identity(weights) for weights in options.weights]
    weights = [identity for identity in identities if identity is not None]
    classes = [asdict(lesion_class) for lesion_class in dataset.classes]
    return fingerprint(dataset.manifest_sha256, classes, options.seconds, weights, options.seed)[:10]


def _begin_or_go_on(folder: Path, dataset: Dataset, options: AutoOptions, machine: Machine, start: float) -> Race:
    spent = 0.0
    if AUTO.exists(folder):
        document = AUTO.read(folder)
        plan = _plan_of(document["plan"], folder)
        # What a killed process had not finished does not count: the same work is done again.
        spent = document["planning_seconds"] + sum(document["seconds_of_runs"].values())
        machine.progress.say(f"{folder}: goes on with the plan that it holds")
    else:
        profile, plan = plan_auto(dataset, options, machine)
        document = {
            "dataset": dataset.name, "seconds": options.seconds, "seed": options.seed,
            "profile": asdict(profile), "plan": plan_json(plan), "states": {}, "seconds_of_runs": {},
            "planning_seconds": time.monotonic() - start, "chosen": None,
        }  # fmt: skip
        AUTO.write(folder, document)
    n_images = document["profile"]["n_training"]
    reserved = min(_RESERVED_SECONDS + n_images * _RESERVED_PER_IMAGE, _MOST_RESERVED * options.seconds)
    deadline = start + options.seconds - reserved - spent
    return Race(folder, dataset, machine, plan, document, deadline)


def _plan_of(plan_json: Mapping[str, Any], folder: Path) -> AutoPlan:
    candidates = tuple(
        Candidate(
            parse_recipe(candidate["recipe"], f"{folder / AUTO.name}"),
            Path(candidate["weights"]) if candidate["weights"] else None,
            float(candidate["seconds"]),
        )
        for candidate in plan_json["candidates"]
    )
    choices = tuple(PlanChoice(**choice) for choice in plan_json["choices"])
    return AutoPlan(
        seconds=plan_json["seconds"], decoding=plan_json["decoding"], n_folds=plan_json["n_folds"],
        n_trained_folds=plan_json["n_trained_folds"], candidates=candidates, choices=choices,
    )  # fmt: skip


def _train_candidate(race: Race, candidate: Candidate, *, deadline: float) -> None:
    """Train a recipe on every fold, unless the time is over before; its state stands in auto.json."""
    name = candidate.recipe.name
    if race.document["states"].get(name) in (COMPLETE, DIVERGED):
        return
    race.machine.progress.say(f"{name}: about {candidate.seconds:,.0f} s on {race.plan.folds_text}")
    for plan in race.runs_of(candidate):
        if METRICS.exists(plan.folder):
            continue
        if (state := _train_fold(race, plan, candidate, deadline)) != COMPLETE:
            race.document["states"][name] = state
            race.save()
            race.machine.progress.say(f"{name}: {state}")
            return
    race.document["states"][name] = COMPLETE
    race.save()


def _unbroken_seconds(race: Race, plan: RunPlan, candidate: Candidate) -> float:
    """Return the seconds of a fold within which a recipe cannot be ended: of a classifier, its fit and what follows.

    As planned, or as the slowest of its folds that are finished took.
    """
    if candidate.recipe.model.classifier is None:
        return 0.0
    seconds_of_runs: Mapping[str, float] = race.document["seconds_of_runs"]
    siblings = _run_key(plan.folder).removesuffix(plan.folder.name)
    finished = [seconds for key, seconds in seconds_of_runs.items() if key.startswith(siblings)]
    return max([candidate.seconds / race.plan.n_trained_folds, *finished])


def _train_fold(race: Race, plan: RunPlan, candidate: Candidate, deadline: float) -> str:
    """Train one fold and note its seconds; returns how it ended."""
    start = time.monotonic()
    # The time of a fit is reserved once, before its fold begins: reserved within too, a fold begun in time is lost.
    if start > deadline - _unbroken_seconds(race, plan, candidate):
        return OUT_OF_TIME
    watch = EpochWatch(lambda _row: False, deadline=deadline)
    try:
        run_plan(replace(plan, watch=watch), resuming(plan, race.machine_for(candidate)))
    except RunInterrupt:
        if not watch.is_ended:
            raise
        return OUT_OF_TIME
    except DivergenceError:
        return DIVERGED
    race.document["seconds_of_runs"][_run_key(plan.folder)] = time.monotonic() - start
    race.save()
    return COMPLETE
