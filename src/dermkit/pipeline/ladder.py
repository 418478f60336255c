"""The leak ladder: one recipe trained and tested on the same images, divided by image, lesion, patient and source.

The rungs by image, and by lesion where patients are known, leak on purpose. Their runs say so first, and no rung keeps
a model. Called again with the same arguments, a ladder that was stopped goes on where it was.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermkit.comparison.rungs import (
    RungRun,
    RungSamples,
    repeat_spread,
    resample_rungs,
    rung_difference,
    rung_estimate,
)
from dermkit.data.groups import leakage_groups
from dermkit.data.manifest import Dataset
from dermkit.data.readers import reading
from dermkit.data.rungs import (
    RUNG_COLUMNS,
    RungName,
    RungOption,
    count_leaks,
    count_sides,
    make_rungs,
    rung_options,
)
from dermkit.data.seal import read_seals
from dermkit.data.split import GIVEN_SPLIT_ALIASES, Split
from dermkit.errors import DataError, UsageError
from dermkit.files import fingerprint, lock, write_rows
from dermkit.models.requirements import check_requirements
from dermkit.pipeline.plan import (
    Machine,
    RunPlan,
    RunSettings,
    check_classes,
    make_plans,
    prepare_machine,
    with_seed,
)
from dermkit.pipeline.run import run_plan
from dermkit.pipeline.trials import resuming
from dermkit.progress import Progress
from dermkit.recipes.schema import Recipe, SplitSpec, recipe_to_dict
from dermkit.reporting.ladder_page import write_ladder_page
from dermkit.runs.folder import RunFolder
from dermkit.runs.layout import CHECKPOINTS_FOLDER, LADDER, LADDER_TABLE, MODEL_FOLDER, RUNG_WARNING, RUNGS_FOLDER
from dermkit.runs.predictions import to_scored_set

DEFAULT_VALIDATION, DEFAULT_TEST = 0.15, 0.2
"""Fractions of the images for a recipe whose split does not draw them (a published split, or folds)."""
DEFAULT_REPEATS = 3
_MAX_NAME = 90
"""Characters of a recipe's name that are kept in that of its rungs."""


@dataclass(frozen=True)
class _Ladder:
    """A ladder that is going on. manifest: the rows that it may use; seeds: of each repeat's splits."""

    folder: Path
    recipe: Recipe
    dataset: Dataset
    manifest: pd.DataFrame
    options: list[RungOption]
    seeds: tuple[int, ...]
    machine: Machine

    @property
    def names(self) -> list[RungName]:
        return [option.name for option in self.options if not option.reason]


def ladder(
    recipe: Recipe,
    dataset: Dataset,
    *,
    out: Path,
    repeats: int = DEFAULT_REPEATS,
    seed: int | None = None,
    settings: RunSettings | None = None,
    progress: Progress | None = None,
) -> Path:
    """Train and test a recipe on splits by image, lesion, patient and source, and compare these; returns the folder.

    Published test images and sealed ones are left alone. repeats: splits and trainings of each rung, at least 2. seed:
    the first of both, in place of the recipe's. settings: `out` is not used. Raises `DataError` where fewer than two
    rungs apply to the data set, and otherwise as `train` does.
    """
    if repeats < 2:
        raise UsageError(
            f"repeats {repeats}: the spread over seeds needs two", outcome="nothing was trained", remedy="give 3"
        )
    check_classes(dataset)
    check_requirements(recipe, settings.weights if settings else None, settings.teacher if settings else None)
    machine = prepare_machine(replace(settings or RunSettings(), out=out, resume=False), progress)
    if machine.fabric.world_size > 1:
        raise UsageError(
            "ladder: trains with one process",
            outcome="nothing was trained",
            remedy="leave out --devices and --nodes",
        )
    with reading(dataset, "ladder"), lock(out):
        one = _begin(with_seed(recipe, seed), dataset, repeats, machine)
        runs = {name: [] for name in one.names}  # type: dict[RungName, list[tuple[Path, Split]]]
        splits = [_splits(one, split_seed) for split_seed in one.seeds]  # all of them first: a seed may have none
        for number, by_name in enumerate(splits):
            for name, split in by_name.items():
                runs[name].append((_train_rung(one, name, split, number), split))
        _write_results(one, runs)
    return out


def _begin(recipe: Recipe, dataset: Dataset, repeats: int, machine: Machine) -> _Ladder:
    """Return the ladder; raises for fewer than two rungs, and where the folder holds another one."""
    folder, manifest = machine.settings.out, _usable_rows(dataset)
    options = rung_options(manifest)
    if sum(not option.reason for option in options) < 2:
        reasons = "; ".join(f"by {option.name}: {option.reason}" for option in options if option.reason)
        raise DataError(
            f"{dataset.folder}: a leak ladder needs two rungs, and fewer apply ({reasons})",
            outcome="nothing was trained",
            remedy="import the data set with lesion, patient or source ids",
        )
    spec = recipe.split
    is_drawn = spec.scheme == "holdout" and not spec.folds
    spec = SplitSpec(
        scheme="holdout", seed=spec.seed, validation=spec.validation if is_drawn else DEFAULT_VALIDATION,
        test=spec.test if is_drawn else DEFAULT_TEST, folds=0, per_class=0, draw_from="",
    )  # fmt: skip
    recipe = replace(recipe, split=spec, repeats=1)
    identity = fingerprint(dataset.manifest_sha256, recipe_to_dict(recipe), sorted(manifest["image_id"]))
    if LADDER.exists(folder) and LADDER.read(folder)["identity"] != identity:
        raise UsageError(
            f"{folder}: holds the ladder of another recipe, data set or seed",
            outcome="that ladder, and nothing was trained",
            remedy="choose another folder with --out",
        )
    seeds = tuple(range(spec.seed, spec.seed + repeats))
    return _Ladder(folder, recipe, dataset, manifest, options, seeds, machine)


def _usable_rows(dataset: Dataset) -> pd.DataFrame:
    """Return the manifest without published test images, sealed images, and what is linked to either."""
    manifest = dataset.manifest
    sealed = {row[0] for seal in read_seals(dataset.folder / "splits") for row in seal.rows}
    published = manifest["given_split"].str.lower().map(GIVEN_SPLIT_ALIASES) == "test"
    groups = leakage_groups(manifest)
    is_reserved = np.isin(groups, groups[(published | manifest["image_id"].isin(sealed)).to_numpy()])
    return manifest[~is_reserved].reset_index(drop=True)


def _splits(one: _Ladder, seed: int) -> dict[RungName, Split]:
    spec = one.recipe.split
    return make_rungs(one.manifest, one.names, validation=spec.validation, test=spec.test, seed=seed)


def _train_rung(one: _Ladder, name: RungName, split: Split, number: int) -> Path:
    """Train one repeat of a rung, unless it is there; returns its run, without its model and checkpoints."""
    plan = _rung_plan(one, name, split, number)
    one.machine.progress.say(f"by {name}, repeat {number + 1} of {len(one.seeds)}")
    run_plan(plan, resuming(plan, one.machine))
    for folder in (MODEL_FOLDER, CHECKPOINTS_FOLDER):
        if (plan.folder / folder).exists():
            shutil.rmtree(plan.folder / folder)
    return plan.folder


def _rung_plan(one: _Ladder, name: RungName, split: Split, number: int) -> RunPlan:
    leaking = split.leaks["total"]
    warning = (
        f"{RUNG_WARNING}, split by {name}: a measurement of splits, not the result of a model. "
        f"{leaking} of {split.leaks['n']} test images share a lesion, a patient or their pixels with training images"
        f"{', on purpose' if leaking else ''}."
    )
    recipe = replace(
        one.recipe,
        name=f"{one.recipe.name[:_MAX_NAME]}-by-{name}",
        about=warning,
        seed=one.recipe.seed + number,
    )
    (plan,) = make_plans(recipe, one.dataset, replace(split, notes=(warning,)), one.machine)
    folder = one.folder / RUNGS_FOLDER / f"by-{name}" / f"repeat-{number + 1}-{plan.folder.name}"
    return replace(plan, is_rung=True, folder=folder)


# Results ----------------------------------------------------------------------------------------------------------


def _write_results(one: _Ladder, runs: Mapping[RungName, Sequence[tuple[Path, Split]]]) -> None:
    """Write ladder.json, ladder.csv and ladder.html."""
    one.machine.progress.say("comparing the rungs")
    groups = dict(zip(one.manifest["image_id"], leakage_groups(one.manifest).tolist(), strict=True))
    scored = {str(name): [_rung_run(run, groups) for run, _ in repeats] for name, repeats in runs.items()}
    samples = resample_rungs(scored, n_pool_groups=max(groups.values()) + 1, seed=one.recipe.split.seed)
    document = {
        **_describe(one),
        "rungs": [
            {
                "name": option.name,
                "reason": option.reason,
                **(_describe_rung(one, runs[option.name], samples[option.name]) if not option.reason else {}),
            }
            for option in one.options
        ],
        "differences": _describe_differences(one.names, samples),
    }
    LADDER.write(one.folder, document)
    _write_table(one.folder / LADDER_TABLE, document)
    write_ladder_page(one.folder)


def _rung_run(run: Path, groups: Mapping[str, int]) -> RungRun:
    folder = RunFolder(run)
    rows = folder.predictions[folder.predictions["split"] == "test"].sort_values("image_id", kind="stable")
    pool_groups = np.asarray(rows["image_id"].map(groups), dtype=np.int64)
    return RungRun(to_scored_set(rows, folder.classes, groups), pool_groups)


def _describe(one: _Ladder) -> dict[str, Any]:
    """Return what a ladder is of."""
    identity = fingerprint(
        one.dataset.manifest_sha256, recipe_to_dict(one.recipe), sorted(one.manifest["image_id"])
    )
    return {
        "identity": identity,
        "recipe": one.recipe.name,
        "dataset": one.dataset.name,
        "classes": [asdict(lesion_class) for lesion_class in one.dataset.classes],
        "n": len(one.manifest),
        "n_reserved": len(one.dataset.manifest) - len(one.manifest),
        "n_groups": len(np.unique(leakage_groups(one.manifest))),
        "repeats": len(one.seeds),
        "split": {"validation": one.recipe.split.validation, "test": one.recipe.split.test, "seeds": one.seeds},
        "reference": reference_rung(one.names),
    }


def reference_rung(names: Sequence[RungName]) -> RungName:
    """Return the rung that the others are compared with: the strictest one but that by source, which is a shift too."""
    return [name for name in names if name != "source"][-1]


def _describe_rung(one: _Ladder, repeats: Sequence[tuple[Path, Split]], samples: RungSamples) -> dict[str, Any]:
    return {
        "keeps_together": RUNG_COLUMNS[repeats[0][1].name.removeprefix("by-")],  # type: ignore[index]
        "runs": [str(run.relative_to(one.folder).as_posix()) for run, _ in repeats],
        "sides": [count_sides(one.manifest, split.frame) for _, split in repeats],
        "leaks": [count_leaks(one.manifest, split.frame) for _, split in repeats],
        "figures": [
            {
                "metric": metric,
                "class": class_name,
                **rung_estimate(samples, (metric, class_name)).as_dict(),
                "spread": _spread(samples, (metric, class_name)),
            }
            for metric, class_name in samples.values
        ],
    }


def _spread(samples: RungSamples, key: tuple[str, str]) -> dict[str, Any]:
    """Return a figure of each repeat, null where undefined, and its standard deviations."""
    values = [None if value != value else value for value in samples.values[key].tolist()]
    if None in values:
        return {"values": values, "sd": None, "sd_images": None}
    components = repeat_spread(samples, key)
    sd_images = components.sd_images
    return {
        "values": values,
        "sd": components.sd,
        "sd_images": None if sd_images is None or sd_images != sd_images else sd_images,
    }


def _describe_differences(names: Sequence[RungName], samples: Mapping[str, RungSamples]) -> list[dict[str, Any]]:
    """Return every finer rung less every coarser one, by figure."""
    return [
        {
            "first": first,
            "second": second,
            "metric": metric,
            "class": class_name,
            **rung_difference(samples[first], samples[second], (metric, class_name)).as_dict(),
        }
        for number, first in enumerate(names)
        for second in names[number + 1 :]
        for metric, class_name in samples[first].values
    ]


def _write_table(path: Path, document: Mapping[str, Any]) -> None:
    header = ("kind", "first", "second", "metric", "class", "value", "low", "high", "n", "sd_repeats", "reason")
    figures = [
        ("figure", rung["name"], "", row, row["spread"]["sd"])
        for rung in document["rungs"]
        for row in rung.get("figures", ())
    ]
    differences = [("difference", row["first"], row["second"], row, None) for row in document["differences"]]
    rows = [
        (kind, first, second, row["metric"], row["class"], _cell(row["value"]), *(row["ci95"] or ("", "")), row["n"],
         _cell(sd), row.get("reason", ""))
        for kind, first, second, row, sd in [*figures, *differences]
    ]  # fmt: skip
    write_rows(path, header, rows)


def _cell(value: float | None) -> object:
    return "" if value is None else value
