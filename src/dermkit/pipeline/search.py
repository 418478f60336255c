"""Search: trials of one recipe with other values of its fields, the best by validation trained in full.

The value of the best is too good, as the best of many; what is left of it is estimated from the trials' predictions.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from dermkit.data.manifest import Dataset
from dermkit.data.readers import reading
from dermkit.errors import DataError, DermkitError, RunInterrupt, UsageError
from dermkit.evaluation.selection import selected_value
from dermkit.files import lock, write_rows
from dermkit.models.requirements import check_requirements
from dermkit.pipeline.plan import (
    Machine,
    RunPlan,
    RunSettings,
    check_classes,
    prepare_machine,
    say_licence,
    with_seed,
)
from dermkit.pipeline.study import Study, check_optuna, importances, open_study
from dermkit.pipeline.study_database import database_errors
from dermkit.pipeline.train import train_recipe
from dermkit.pipeline.trials import TrialResult, run_trial, trial_plans
from dermkit.pipeline.validation_values import monitored_metric
from dermkit.progress import Progress
from dermkit.recipes.schema import Recipe, recipe_fingerprint
from dermkit.recipes.search_space import SearchSpace
from dermkit.reporting.search_page import write_search_page
from dermkit.runs.layout import HISTORY_TABLE, IMPORTANCE_TABLE, STUDY, TUNE, TUNE_TABLE

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

DEFAULT_TRIALS = 30
_LONGEST_WAIT = 24 * 3600.0
"""Seconds to wait for another process that trains the selected recipe."""


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How long to search, and where the study is.

    trials: finished trials of the whole study, None = as many as the time allows. seconds: no trial begins that would
    probably not end in this time. study: its name. storage: a journal file or the URL of a database. prunes: whether
    trials that fall behind end early. trains_final: whether the selected recipe is trained in full.
    """

    trials: int | None = DEFAULT_TRIALS
    seconds: float | None = None
    study: str = ""
    storage: str | None = None
    prunes: bool = True
    trains_final: bool = True


@dataclass(frozen=True)
class _Search:
    recipe: Recipe
    dataset: Dataset
    split: str | None
    machine: Machine
    folder: Path
    options: SearchOptions
    study: Study


def search(
    recipe: Recipe,
    space: SearchSpace,
    dataset: Dataset,
    *,
    options: SearchOptions | None = None,
    settings: RunSettings | None = None,
    split: str | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Search a space with a study's trials, and train the best in full; returns the study's folder.

    Several processes with the same arguments share the study; one that ended goes on if it is called again. Raises as
    `train` does, and `UsageError`, `DataError` or `UntrustedError` for a study of something else.
    """
    options = options or SearchOptions()
    check_classes(dataset)
    check_requirements(recipe, settings.weights if settings else None)
    check_optuna()
    machine = prepare_machine(settings, progress)
    if machine.fabric.world_size > 1:
        raise UsageError(
            "a study's trials are trained by one process each",
            outcome="nothing was trained",
            remedy="give the same command several times, without --devices and --nodes: they share the study",
        )
    with reading(dataset, "tune"), database_errors():
        return _search(with_seed(recipe, seed), space, dataset, split, machine, options)


def _search(
    recipe: Recipe,
    space: SearchSpace,
    dataset: Dataset,
    split: str | None,
    machine: Machine,
    options: SearchOptions,
) -> Path:
    name = options.study or f"{recipe.name}-study"
    folder = machine.settings.out / name
    first_plan = trial_plans(recipe, dataset, split, machine, folder)[0]
    say_licence(first_plan, machine.progress)
    study = open_study(
        folder, name, storage=options.storage, space=space, seed=recipe.seed,
        identity=_identity(recipe, space, first_plan), higher_is_better=recipe.monitor != "val_loss",
        prunes=options.prunes,
    )  # fmt: skip
    if first_plan.fold >= 0 and not first_plan.leaves_test_to_ensemble:
        machine.progress.say(
            "warning: every image of the folds takes part in choosing, so the final test figures are of images that "
            "chose; the corrected value is the one to state (docs/tuning.md: how to keep published test images out)"
        )
    job = _Search(recipe, dataset, split, machine, folder, options, study)
    _run_trials(job)
    with lock(folder, timeout=_LONGEST_WAIT):
        best = _write_results(job)
        if options.trains_final:
            machine.progress.say(f"training the selected recipe in full: {best.name}")
            final = train_recipe(best, dataset, split, machine)
            STUDY.write(folder, {**STUDY.read(folder), "final": str(final)})
        write_search_page(folder)
    return folder


def _identity(recipe: Recipe, space: SearchSpace, plan: RunPlan) -> dict[str, str]:
    hashes = plan.input_hashes
    return {
        "recipe": recipe_fingerprint(recipe), "data set": hashes["manifest"] + hashes["classes"],
        "split": hashes["split"], "weights": hashes["weights"], "search space": space.fingerprint(),
        "seed": str(recipe.seed),
    }  # fmt: skip


# Trials -------------------------------------------------------------------------------------------------------------


def _run_trials(job: _Search) -> None:
    """Take trials until the study has enough or the time is over; then wait for those of other processes."""
    start, study, progress = time.monotonic(), job.study, job.machine.progress
    size = study.space.size
    limits = [limit for limit in (job.options.trials, size) if limit is not None]
    n_trials = min(limits) if limits else None
    if size is not None and n_trials == size:
        progress.say(f"the space has {size} combinations: each is tried once")
    durations: list[float] = []
    while True:
        while (trial := _next_trial(job, n_trials, start, durations)) is not None:
            trial_start = time.monotonic()
            _run_one(job, trial, n_trials)
            durations.append(time.monotonic() - trial_start)
        if job.options.seconds is not None or not study.wait_for_others():
            return


def _next_trial(job: _Search, n_trials: int | None, start: float, durations: Sequence[float]) -> "Trial | None":
    seconds = job.options.seconds
    if seconds is not None and durations and time.monotonic() - start + fmean(durations) > seconds:
        return None
    return job.study.claim(n_trials)


def _run_one(job: _Search, trial: "Trial", n_trials: int | None) -> None:
    study, progress = job.study, job.machine.progress
    values = study.values_of(trial)
    text = ", ".join(f"{path} {json.dumps(value)}" for path, value in values.items())
    progress.say(f"trial {trial.number}{f' of {n_trials}' if n_trials else ''}: {text}")
    start = time.monotonic()
    try:
        recipe = study.space.recipe_for(job.recipe, values)
        plans = trial_plans(recipe, job.dataset, job.split, job.machine, job.folder)
    except UsageError as error:  # values that each are allowed may not go together
        study.finish(trial, "PRUNED", {"values": values, "reason": error.message})
        return
    runs = [str(plan.folder.relative_to(job.folder)) for plan in plans]
    trial.set_user_attr("runs", runs)
    attributes: dict[str, Any] = {"values": values, "recipe": recipe.name}
    if (earlier := _same_trial(study, trial.number, runs)) is not None:
        progress.say(f"trial {trial.number} is trial {earlier.number} again: its value is taken")
        reason = str(earlier.user_attrs.get("reason", ""))
        attributes |= {"same_as": earlier.number, "seconds": 0.0, "reason": reason}
        study.finish(trial, earlier.state.name, attributes, value=_value(earlier))
        return

    def report(value: float, step: int) -> bool:
        trial.report(value, step)
        return trial.should_prune()

    try:
        result = run_trial(plans, job.machine, report)
    except (RunInterrupt, KeyboardInterrupt):
        study.give_back(trial, "interrupted")
        raise
    except DermkitError:
        study.give_back(trial, "an error of the machine or the data")
        raise
    attributes |= {"seconds": time.monotonic() - start, "reason": result.reason}
    study.finish(trial, result.state, attributes, value=result.value)
    progress.say(f"trial {trial.number}: {_result_text(job, result)}")


def _same_trial(study: Study, number: int, runs: Sequence[str]) -> "FrozenTrial | None":
    """Return an earlier finished trial with these runs; waits while another process trains it."""
    while True:
        same = [
            trial
            for trial in study.trials("COMPLETE", "PRUNED", "RUNNING")
            if trial.number < number and trial.user_attrs.get("runs") == runs
        ]
        finished = [trial for trial in same if trial.state.name != "RUNNING"]
        if finished or not same:
            return finished[0] if finished else None
        study.wait_for_others()


def _value(trial: "FrozenTrial") -> float | None:
    return trial.value if trial.state.name == "COMPLETE" else None


def _result_text(job: _Search, result: TrialResult) -> str:
    return f"{job.recipe.monitor} {result.value:.4f}" if result.value is not None else f"ended, {result.reason}"


# Results ------------------------------------------------------------------------------------------------------------


def _write_results(job: _Search) -> Recipe:
    """Write the tables and study.json; returns the selected recipe. Raises `DataError` where no trial has a value."""
    trials = job.study.trials("COMPLETE")
    if not trials:
        raise DataError(
            f"{job.folder}: no trial has a value",
            outcome=f"{len(job.study.trials())} trials",
            remedy="look at their reasons with --debug, and correct the space",
        )
    is_distinct = [trial for trial in trials if "same_as" not in trial.user_attrs]
    folders = [[job.folder / run for run in trial.user_attrs["runs"]] for trial in is_distinct]
    metric = monitored_metric(folders[0][0], job.recipe.monitor)
    selected = selected_value(folders, _plain_metric(metric), seed=job.recipe.seed)
    best = is_distinct[selected.best]
    _write_tables(job, best)
    best_recipe = job.study.space.recipe_for(job.recipe, best.user_attrs["values"])
    selected_by = f"{job.recipe.monitor} on validation, {len(trials)} trials, test not scored"
    TUNE.write(job.folder, {"best_recipe": best_recipe.name, "selected_by": selected_by})
    STUDY.write(job.folder, {
        "study": job.options.study or job.folder.name, "recipe": job.recipe.name,
        "dataset": job.dataset.name, "monitor": job.recipe.monitor, "n_folds": len(folders[0]),
        "space": job.study.space.as_dict(), "counts": _state_counts(job.study),
        "n_values": len(is_distinct),
        "best": {
            "trial": best.number, "recipe": best_recipe.name, "values": best.user_attrs["values"],
            "runs": best.user_attrs["runs"], "value": selected.value,
        },
        "corrected": selected.corrected.as_dict(), "optimism": selected.optimism, "final": "",
    })  # fmt: skip
    return best_recipe


def _plain_metric(metric: str) -> str:
    return {"recall_macro_present": "balanced_accuracy", "auroc_macro_present": "auroc_macro"}.get(metric, metric)


def _state_counts(study: Study) -> dict[str, int]:
    states = [trial.state.name for trial in study.trials()]
    return {state: states.count(state) for state in ("COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING")}


def _write_tables(job: _Search, best: "FrozenTrial") -> None:
    fields = tuple(job.study.space.dimensions)
    header = ("trial", "state", job.recipe.monitor, "is_best", "recipe", "seconds", "same_as", "repeats", "reason",
              "runs", *fields)  # fmt: skip
    trials = job.study.trials()
    write_rows(job.folder / TUNE_TABLE, header, [_trial_row(trial, best, fields) for trial in trials])
    best_so_far, rows = None, []
    choose = min if job.recipe.monitor == "val_loss" else max
    for trial in job.study.trials("COMPLETE"):
        assert trial.value is not None  # noqa: S101  for the type checker: a complete trial has one
        best_so_far = trial.value if best_so_far is None else choose(best_so_far, trial.value)
        rows.append((trial.number, trial.value, best_so_far))
    write_rows(job.folder / HISTORY_TABLE, ("trial", "value", "best_so_far"), rows)
    write_rows(job.folder / IMPORTANCE_TABLE, ("field", "importance"), importances(job.study))


def _trial_row(trial: "FrozenTrial", best: "FrozenTrial", fields: Sequence[str]) -> tuple[object, ...]:
    attributes: Mapping[str, Any] = trial.user_attrs
    values = attributes.get("values", {})
    value = _value(trial)
    return (
        trial.number, trial.state.name.lower(), "" if value is None else value, trial.number == best.number,
        attributes.get("recipe", ""), attributes.get("seconds", ""), attributes.get("same_as", ""),
        attributes.get("repeats", ""), attributes.get("reason", ""), " ".join(attributes.get("runs", [])),
        *(json.dumps(values[field]) if field in values else "" for field in fields),
    )  # fmt: skip
