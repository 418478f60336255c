"""Go on from a run of a recipe that differs in how long it trains: `train --continue RUN`, and what `--resume` offers.

Well defined is what the earlier run has not done yet: more epochs or patience of the phase that it stands in, and
other phases after that one. Everything else (data, split, weights, batches, augmentation) must be as it was, which the
hash in the run's name proves.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dermkit.errors import DermkitError, UsageError, first_of
from dermkit.files import fingerprint, open_regular, shell_path, write_atomically
from dermkit.pipeline.plan import Continuation, Machine, RunPlan
from dermkit.recipes.schema import Recipe, load_recipe, recipe_fingerprint, recipe_to_dict
from dermkit.runs.layout import AUGMENTED_SHEET, CHECKPOINTS_FOLDER, ENVIRONMENT, RECIPE_FILE, REPORT_FILE, RUN

if TYPE_CHECKING:
    from dermkit.training.checkpoint import TrainingProgress

_WITHOUT_EFFECT = ("name", "about", "system", "seed", "repeats", "derived_from")
_MAX_NAMED_FIELDS = 4
_MAX_NAMED_RUNS = 3


@dataclass(frozen=True, eq=False)
class EarlierRun:
    """A run that was started. run_json: its run.json."""

    folder: Path
    recipe: Recipe
    run_json: Mapping[str, Any]

    @property
    def earlier_continuation(self) -> dict[str, Any]:
        """What it went on from itself, as its run.json says; {} if it began anew."""
        record = self.run_json.get("continued_from")
        return record if isinstance(record, dict) else {}

    @property
    def manifest_sha256(self) -> str:
        """The hash of the manifest that it was trained on."""
        dataset = self.run_json.get("dataset")
        return str(dataset.get("manifest_sha256")) if isinstance(dataset, dict) else ""

    @property
    def is_finished(self) -> bool:
        """Whether it was trained to its end and reported."""
        return (self.folder / REPORT_FILE).exists()

    def is_version_of(self, plan: RunPlan) -> bool:
        """Whether it has the seed and the fold of a plan."""
        fold = self.run_json.get("fold")
        return self.run_json.get("seed") == plan.seed and (-1 if fold is None else fold) == plan.fold

    @cached_property
    def progress(self) -> "TrainingProgress | None":
        """Where its training stands, None without a checkpoint; raises `UntrustedError` for a broken one."""
        from dermkit.training.checkpoint import LAST_CHECKPOINT, read_progress

        path = self.folder / CHECKPOINTS_FOLDER / LAST_CHECKPOINT
        return read_progress(path) if path.is_file() else None

    def state_text(self) -> str:
        """Return where it stands, such as "finished, 2 epochs"."""
        progress = self.progress
        epochs = len(progress.log_rows) if progress else 0
        return f"{'finished' if self.is_finished else 'unfinished'}, {epochs} epoch{'s' * (epochs != 1)}"


def read_earlier_run(folder: Path) -> EarlierRun | None:
    """Return the run in a folder, None where there is none that can be read."""
    if not (folder / RECIPE_FILE).is_file() or not RUN.exists(folder):
        return None
    try:
        return EarlierRun(folder, load_recipe(folder / RECIPE_FILE), RUN.read(folder))
    except DermkitError:
        return None


# What differs, and whether it can -----------------------------------------------------------------------------------


def changed_fields(before: Recipe, now: Recipe) -> dict[str, str]:
    """Return field -> "before -> now" of all fields that have an effect and differ, such as phases.0.epochs."""
    first, second = _flat(recipe_to_dict(before)), _flat(recipe_to_dict(now))
    names = dict.fromkeys([*first, *second])
    return {
        name: f"{first.get(name, 'none')} -> {second.get(name, 'none')}"
        for name in names
        if first.get(name) != second.get(name) and name.split(".")[0] not in _WITHOUT_EFFECT
    }


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict | list) or not value:
        return {prefix: value}
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    return {
        name: leaf
        for key, entry in entries
        for name, leaf in _flat(entry, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def why_not_continued(run: EarlierRun, plan: RunPlan) -> str:
    """Return why a plan cannot go on from a run, "" if it can."""
    progress = run.progress
    if progress is None:
        return "it has no checkpoint"
    fixed = [
        f"{name} ({change})"
        for name, change in changed_fields(run.recipe, plan.recipe).items()
        if not _may_change(name, progress.phase)
    ]
    if fixed:
        return f"{first_of(fixed, _MAX_NAMED_FIELDS)} cannot change on the way"
    if _name_with_inputs(run, plan) != run.folder.name:
        is_same_manifest = run.manifest_sha256 == plan.dataset.manifest_sha256
        return (
            "its split, classes or weights were others, or its folder was renamed, or its run.json changed"
            if is_same_manifest
            else "the data set's manifest has changed since"
        )
    if _trains_backbone(run.recipe) != _trains_backbone(plan.recipe):
        return "its checkpoints hold no backbone, and this recipe trains it"
    if progress.phase >= len(plan.recipe.phases):
        return f"it is in phase {progress.phase}, which this recipe does not have"
    return _why_too_far(progress, plan)


def _may_change(field: str, phase: int) -> bool:
    """Whether a field may differ once a run stands in a phase: what comes after it, and how long it lasts."""
    name, _, rest = field.partition(".")
    number, _, key = rest.partition(".")
    if name != "phases" or not number.isdigit():
        return False
    return int(number) > phase or (int(number) == phase and key in ("epochs", "patience"))


def _name_with_inputs(run: EarlierRun, plan: RunPlan) -> str:
    """Return the folder name that the run would have on the data, split, weights, seed and fold of the plan.

    Fields of run.json can be changed: weights of another fold have learned from the test images of this one.
    """
    earlier = run.earlier_continuation
    continued = {} if earlier.get("is_exact", True) else {"continued": str(earlier.get("key"))}
    run_hash = recipe_fingerprint(run.recipe, **plan.input_hashes, **continued)
    return _name_with_hash(plan, run_hash)


def _name_with_hash(plan: RunPlan, run_hash: str) -> str:
    """Return the folder name of a plan, HASH-sSEED[-fFOLD], with another hash."""
    return f"{run_hash}-{plan.folder.name.partition('-')[2]}"


def _trains_backbone(recipe: Recipe) -> bool:
    return any(phase.train_backbone != "none" for phase in recipe.phases)


def _why_too_far(progress: "TrainingProgress", plan: RunPlan) -> str:
    """Return why a run has gone further than the recipe would, "" if it has not."""
    phase = plan.recipe.phases[progress.phase]
    if progress.phase_epoch > phase.epochs:
        return f"it has trained {progress.phase_epoch} epochs of phase {progress.phase}, and this recipe {phase.epochs}"
    waited = 0
    monitor, best = plan.recipe.monitor, None
    for row in progress.log_rows[:-1]:
        score = -row[monitor] if monitor.endswith("loss") else row[monitor]
        is_best = best is None or best != best or score > best
        best, waited = (score, 0) if is_best else (best, waited + 1)
        waited = 0 if row["phase"] != progress.phase else waited
        if phase.patience and waited >= phase.patience:
            return f"with a patience of {phase.patience} it would have stopped after epoch {int(row['epoch'])}"
    return ""


# Going on -----------------------------------------------------------------------------------------------------------


def with_continuation(plans: Sequence[RunPlan], source: Path) -> list[RunPlan]:
    """Return plans that go on from a run, or each from its version in a folder of repeats or folds.

    Of several plans, those without a version there begin anew. Raises `UsageError` where none or one cannot go on.
    """
    runs = [
        run for folder in (source, *sorted(source.glob("*/"))) if (run := read_earlier_run(folder)) is not None
    ]
    earlier_runs = [next((run for run in runs if run.is_version_of(plan)), None) for plan in plans]
    if not any(earlier_runs):
        raise UsageError(
            f"{source}: is no run of seed {plans[0].seed}{f', fold {plans[0].fold}' if plans[0].fold >= 0 else ''}",
            outcome="nothing was trained",
            remedy="name a run folder that train printed, or give its --seed",
        )
    return [
        plan if run is None else _checked_continuation(run, plan)
        for run, plan in zip(earlier_runs, plans, strict=True)
    ]


def _checked_continuation(run: EarlierRun, plan: RunPlan) -> RunPlan:
    if reason := why_not_continued(run, plan):
        raise UsageError(
            f"{run.folder}: this recipe cannot go on from it: {reason}",
            outcome="that run, and nothing was trained",
            remedy="train it from the beginning, without --continue",
        )
    return _continued_plan(run, plan)


def _continued_plan(run: EarlierRun, plan: RunPlan) -> RunPlan:
    progress = run.progress
    assert progress is not None  # noqa: S101  why_not_continued has looked
    number, earlier_hash = progress.phase, run.folder.name.split("-")[0]
    before, now = run.recipe.phases[number].epochs, plan.recipe.phases[number].epochs
    is_new_schedule = plan.recipe.optim.schedule == "cosine" and before != now and progress.phase_epoch > 0
    earlier = run.earlier_continuation
    is_exact = not is_new_schedule and bool(earlier.get("is_exact", True))
    note = "" if is_exact else str(earlier.get("note", ""))
    if is_new_schedule:
        note = (
            f"Continued from {run.folder.name} after {len(progress.log_rows)} epochs: their learning rates follow a "
            f"cosine of {before} epochs and the others one of {now}, so this is not what the recipe gives from the "
            "start."
        )
    # Where the learning rates change makes another run; further epochs before it do not where they go on as they were.
    change = f"cosine after {len(progress.log_rows)}" if is_new_schedule else str(earlier.get("key", ""))
    key = fingerprint(earlier_hash, change)
    continued = Continuation(run.folder, len(progress.log_rows), is_exact, key, note)
    if is_exact:  # the same bits as from the beginning, so the same run
        return replace(plan, continued=continued)
    run_hash = recipe_fingerprint(plan.recipe, **plan.input_hashes, continued=key)
    return replace(plan, continued=continued, folder=plan.folder.with_name(_name_with_hash(plan, run_hash)))


def copy_checkpoints(plan: RunPlan, continued: Continuation) -> None:
    """Copy the checkpoints that a plan goes on from; the last one last, since it makes the others count."""
    from dermkit.training.checkpoint import (
        BEST_CHECKPOINT,
        LAST_CHECKPOINT,
        MID_EPOCH_CHECKPOINT,
        is_continuation,
        read_progress,
    )
    from dermkit.training.state import MICRO_BATCH

    source, target = continued.folder / CHECKPOINTS_FOLDER, plan.folder / CHECKPOINTS_FOLDER
    names = [BEST_CHECKPOINT, MICRO_BATCH.name]
    if continued.is_exact and is_continuation(
        source / MID_EPOCH_CHECKPOINT, read_progress(source / LAST_CHECKPOINT)
    ):
        names.append(MID_EPOCH_CHECKPOINT)
    paths = [(source / name, target / name) for name in (*names, LAST_CHECKPOINT)]
    beside = [(continued.folder / name, plan.folder / name) for name in (AUGMENTED_SHEET, ENVIRONMENT.name)]
    for old_path, new_path in [*beside, *paths]:
        if old_path.is_file():
            with open_regular(old_path, max_bytes=2**40) as stream:
                write_atomically(new_path, partial(_copy_stream, stream))


def _copy_stream(stream: IO[bytes], path: Path) -> None:
    """Copy in blocks: a checkpoint may take gigabytes."""
    with path.open("wb") as target:
        shutil.copyfileobj(stream, target)


# What --resume offers -----------------------------------------------------------------------------------------------


def offer_earlier_runs(plan: RunPlan, machine: Machine) -> None:
    """Say that there is nothing to resume; raises `UsageError` where a run could be gone on from, with the command."""
    if _is_begun(plan):
        return
    runs = [run for run in _runs_of(machine.settings.out) if run.is_version_of(plan)]
    near = sorted(runs, key=lambda run: (run.recipe.name != plan.recipe.name, _n_changes(run, plan)))
    near = [
        run for run in near if run.recipe.name == plan.recipe.name or _n_changes(run, plan) <= _MAX_NAMED_FIELDS
    ]
    usable = next((run for run in near if not why_not_continued(run, plan)), None)
    if usable is not None and not plan.is_trial:
        raise _offer(usable, plan, machine)
    machine.progress.say(
        f"nothing to resume: no run of this recipe and data in {machine.settings.out}; it starts anew"
    )
    for run in near[:_MAX_NAMED_RUNS]:
        machine.progress.say(f"{run.folder} ({run.state_text()}) is another run: {why_not_continued(run, plan)}")


def _offer(run: EarlierRun, plan: RunPlan, machine: Machine) -> UsageError:
    changes = changed_fields(run.recipe, plan.recipe)
    difference = first_of([f"{name} ({change})" for name, change in changes.items()], _MAX_NAMED_FIELDS)
    continuation = _continued_plan(run, plan).continued
    note = f". {continuation.note}" if continuation and continuation.note else ""
    command = machine.settings.command or "dermkit train RECIPE DATASET"
    return UsageError(
        f"nothing to resume: no run of this recipe in {machine.settings.out}. {run.folder} ({run.state_text()}) "
        f"differs from it only in {difference or 'its name or the number of its versions'}",
        outcome="that run, and nothing was trained",
        remedy=f"to go on from it: {command} --continue {shell_path(run.folder)}{note}\n"
        f"  to train from the beginning: {command}",
    )


def _n_changes(run: EarlierRun, plan: RunPlan) -> int:
    return len(changed_fields(run.recipe, plan.recipe))


def _is_begun(plan: RunPlan) -> bool:
    """Whether this run, or another version beside it, was started before."""
    is_version = plan.folder.parent.name.endswith("-versions")
    return (plan.folder / RECIPE_FILE).is_file() or (
        is_version and any(plan.folder.parent.glob(f"*/{RECIPE_FILE}"))
    )


def _runs_of(out: Path) -> Iterator[EarlierRun]:
    for pattern in ("*/*", "*/*-versions/*"):
        for path in sorted(out.glob(f"{pattern}/{RECIPE_FILE}")):
            if run := read_earlier_run(path.parent):
                yield run
