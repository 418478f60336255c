"""The verbs: each stage by its name, as the command line calls it and as Python code may.

Heavy imports are inside functions, so that a typo costs no torch.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pydantic import ValidationError

from dermkit.comparison.compare import Comparison, compare_runs
from dermkit.data.importers.run import ImportOutcome, import_dataset
from dermkit.data.manifest import Dataset, load_dataset
from dermkit.data.seal import Seal, check_kept, check_sealable, find_meetings, find_seal, seal_split
from dermkit.data.split import Split, for_fold, load_split, make_split, save_split
from dermkit.errors import UsageError
from dermkit.evaluation.external import evaluate_on
from dermkit.files import (
    canonical_json,
    check_writable,
    fingerprint,
    sha256_bytes,
    write_json,
    write_rows,
)
from dermkit.pipeline.plan import Plan, Where
from dermkit.pipeline.repeats import chosen, summarise, validation_value
from dermkit.pipeline.results import compare, evaluate, report
from dermkit.pipeline.run import run
from dermkit.prediction.run import PredictOutcome, predict
from dermkit.recipes.schema import Recipe, SplitSpec, recipe_fingerprint
from dermkit.watch import Watch

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from dermkit.audit.checks.finding import Use
    from dermkit.audit.external_overlap import AgainstOutcome
    from dermkit.audit.run import AuditOutcome

__all__ = [
    "Comparison", "Dataset", "ImportOutcome", "PredictOutcome", "Seal", "Split", "Watch", "Where", "audit",
    "audit_against", "audit_codes", "compare", "compare_runs", "evaluate", "evaluate_on", "import_dataset",
    "load_dataset", "predict", "report", "seal_of", "split", "train", "tune",
]  # fmt: skip


def audit(
    dataset: Dataset,
    *,
    split: str | Path | None = None,
    clean: bool = False,
    accept: Sequence[str] = (),
    use: "Use" = "research",
    workers: int = 0,
    watch: Watch | None = None,
) -> "AuditOutcome":
    """Look for every known defect, write what is found into DATASET/audit; `audit.run.audit_dataset` says the rest."""
    from dermkit.audit.checks.catalogue import CHECKS
    from dermkit.audit.checks.finding import ALPHA
    from dermkit.audit.run import audit_dataset, looking

    return audit_dataset(
        dataset, look=looking(workers), checks=CHECKS, alpha=ALPHA, split=split, use=use, accept=accept, clean=clean,
        watch=watch,
    )  # fmt: skip


def audit_against(
    first: Dataset, second: Dataset, *, accept: Sequence[str] = (), workers: int = 0, watch: Watch | None = None
) -> "AgainstOutcome":
    """Say which images of the second data set somebody has seen who has seen the first."""
    from dermkit.audit import external_overlap
    from dermkit.audit.run import looking_across

    watch = watch or Watch()
    return external_overlap.audit_against(first, second, watch=watch, look=looking_across(workers), accept=accept)


def audit_codes() -> str:
    """Return the table of all checks, as `docs/audit.md` has it."""
    from dermkit.audit.checks.catalogue import CHECKS
    from dermkit.audit.checks.finding import CheckFunction, card
    from dermkit.audit.external_overlap import MEETING_CHECKS
    from dermkit.audit.output import codes_table

    return codes_table([card(cast(CheckFunction, check)) for check in (*CHECKS, *MEETING_CHECKS)])


def split(dataset: Dataset, spec: SplitSpec, *, name: str, seal: bool = False) -> Split:
    """Make a split of a data set and write it to its `splits/` folder.

    seal: also seal its test side (docs/seal.md). Raises `UsageError` where a sealed split of that name has another test
    side, or for k folds to be sealed; `DataError` where sealed images changed.
    """
    folder = dataset.folder / "splits"
    made = make_split(dataset.manifest, spec, name=name)
    check_kept(folder, name, made.frame, dataset.manifest)
    if seal:
        check_sealable(name, made.frame)
    save_split(made, folder)
    if seal:
        seal_split(folder, name, made.frame, dataset.manifest)
    return made


def seal_of(dataset: Dataset, made: Split) -> Seal | None:
    """Return the seal of a split's test side, under whichever name it was sealed."""
    return find_seal(dataset.folder / "splits", dataset.manifest, made.frame)


def resolve_split(recipe: Recipe, dataset: Dataset, name: str | None) -> Split:
    """Return the split of that name or file, or without one the recipe's own, checked against the manifest."""
    if name is None:
        mark = sha256_bytes(canonical_json(asdict(recipe.split)).encode())[:8]
        return split(dataset, recipe.split, name=f"{recipe.split.scheme}-{mark}")
    folder = dataset.folder / "splits"
    path = Path(name) if name.endswith(".csv") else folder / f"{name}.csv"
    if not path.is_file():
        there = sorted(item.stem for item in folder.glob("*.csv") if not item.stem.endswith(".excluded"))
        raise UsageError(
            f"{path}: there is no such split",
            remedy=f"splits there: {', '.join(there) or 'none'}; make one with `dermkit split`",
        )
    found = load_split(path, dataset.manifest)
    if path.resolve().parent == folder.resolve():
        check_kept(folder, found.name, found.frame, dataset.manifest)
    return found


def train(
    recipe: Recipe,
    dataset: Dataset,
    *,
    where: Where | None = None,
    split: str | None = None,
    seed: int | None = None,
    watch: Watch | None = None,
) -> Path:
    """Do all that a recipe says; returns the run folder, or the parent folder of repeats and folds.

    Raises `Interrupted`, `Diverged`, `DataError`, `UntrustedError`, `OutputError`, `UsageError`.
    """
    where, watch = where or Where(), watch or Watch()
    check_writable(where.out)
    check_device(where.device)
    fabric = start(where)
    watch = watch if fabric.global_rank == 0 else Watch()
    recipe = settled_recipe(with_seed(recipe, seed), fabric)
    plans = _plans(recipe, dataset, resolve_split(recipe, dataset, split), where)
    if len(plans) == 1:
        return run(plans[0], where, watch, fabric)
    first = plans[0].folder
    parent = first.with_name(f"{first.name.split('-')[0]}-s{recipe.seed}-versions")
    folders = []
    for number, plan in enumerate(plans, start=1):
        watch.say(
            f"version {number} of {len(plans)}: seed {plan.seed}" + (f", fold {plan.fold}" * (plan.fold >= 0))
        )
        folders.append(run(replace(plan, folder=parent / plan.folder.name), where, watch, fabric))
    return summarise(parent, folders, monitor=recipe.monitor) if fabric.global_rank == 0 else parent


def with_seed(recipe: Recipe, seed: int | None) -> Recipe:
    """Return the recipe with another first seed; raises `UsageError` for one out of range."""
    try:
        return recipe if seed is None else replace(recipe, seed=seed)
    except ValidationError as error:
        raise UsageError(f"--seed {seed}: {error.errors()[0]['msg']}", remedy="give 0 to 4294967295") from error


def settled_recipe(recipe: Recipe, fabric: "Fabric") -> Recipe:
    """Return the recipe with its precision decided for this device, as the run's own recipe.json will say."""
    from dermkit.models.precision import settled

    return replace(recipe, compute=settled(recipe.compute, fabric.device.type))


def start(where: Where) -> "Fabric":
    """Return this process's device, and where it is one of several, join the others."""
    from dermkit.training.distributed import process_group

    return process_group.start(where.device, where.devices, where.nodes)


def check_device(device: str) -> None:
    """Refuse a device that this machine lacks before any work is done; raises `UsageError`."""
    from dermkit.models.inference import pick_device

    pick_device(device)


def _plans(recipe: Recipe, dataset: Dataset, chosen_split: Split, where: Where) -> list[Plan]:
    """Resolve a recipe into its runs: seeds times folds."""
    from dermkit.models.net import resolve_weights

    weights = resolve_weights(recipe.model, where.weights)
    if (
        chosen_split.spec is not None
    ):  # recipe.json must say the split that was used, or it would not repeat the run
        recipe = replace(recipe, split=chosen_split.spec)
    frame = chosen_split.frame
    mark = recipe_fingerprint(
        recipe,
        manifest=dataset.manifest_sha256,
        split=sha256_bytes(frame[["image_id", "split", "fold"]].to_csv(index=False).encode()),
        weights=fingerprint(weights.sha256, weights.mean, weights.std, weights.missing),
        classes=fingerprint([asdict(item) for item in dataset.classes]),
    )
    folds = [int(fold) for fold in sorted(set(frame["fold"]))] if (frame["split"] == "fold").any() else [-1]
    sides = {fold: for_fold(chosen_split, fold) if fold >= 0 else frame for fold in folds}
    seals, manifest = dataset.folder / "splits", dataset.manifest
    sealed = {fold: find_seal(seals, manifest, rows) for fold, rows in sides.items()}
    meetings = {fold: tuple(find_meetings(seals, manifest, rows)) for fold, rows in sides.items()}
    return [
        Plan(
            recipe=recipe,
            dataset=dataset,
            split=chosen_split,
            sides=sides[fold],
            weights=weights,
            seed=seed,
            fold=fold,
            folder=where.out / recipe.name / f"{mark}-s{seed}{f'-f{fold}' if fold >= 0 else ''}",
            seal=sealed[fold],
            meetings=meetings[fold],
        )
        for seed in range(recipe.seed, recipe.seed + recipe.repeats)
        for fold in folds
    ]


def tune(
    recipes: Sequence[Recipe],
    dataset: Dataset,
    *,
    name: str,
    where: Where | None = None,
    split: str | None = None,
    seed: int | None = None,
    watch: Watch | None = None,
) -> Path:
    """Train every recipe of a grid, choose one on validation alone, then run it whole; returns its run folder.

    `<out>/<name>/tune.csv` lists every trial. The trials never score the test split.
    """
    where, watch = where or Where(), watch or Watch()
    check_writable(where.out)
    check_device(where.device)
    fabric = start(where)
    watch = watch if fabric.global_rank == 0 else Watch()
    folders: list[Path] = []
    for number, recipe in enumerate(recipes, start=1):
        watch.say(f"trial {number} of {len(recipes)}: {recipe.name}")
        single = replace(settled_recipe(with_seed(recipe, seed), fabric), repeats=1)
        plan, *more = _plans(single, dataset, resolve_split(single, dataset, split), where)
        if more:
            raise UsageError(
                f"{recipe.name}: a grid is decided on one split, not on {1 + len(more)} folds",
                remedy="tune on a given or holdout split, then train the chosen recipe on folds",
            )
        folder = where.out / name / "trials" / plan.folder.parent.name / plan.folder.name
        folders.append(run(replace(plan, folder=folder, trial=True), where, watch, fabric))
    best = chosen(folders, recipes[0].monitor)
    if fabric.global_rank == 0:
        _write_trials(where.out / name, recipes, folders, best)
    watch.say(f"chosen on validation: {recipes[best].name}")
    return train(recipes[best], dataset, where=where, split=split, seed=seed, watch=watch)


def _write_trials(folder: Path, recipes: Sequence[Recipe], runs: Sequence[Path], best: int) -> None:
    monitor = recipes[0].monitor
    rows = [
        (item.name, item.phases[0].head_lr, item.optim.batch_size, item.model.dropout,
         validation_value(path, monitor), number == best)
        for number, (item, path) in enumerate(zip(recipes, runs, strict=True))
    ]  # fmt: skip
    write_rows(folder / "tune.csv", ("recipe", "head_lr", "batch_size", "dropout", monitor, "chosen"), rows)
    write_json(
        folder / "tune.json",
        {"chosen": recipes[best].name, "by": f"{monitor} on validation, {len(runs)} trials, test not scored"},
        format=1,
    )
