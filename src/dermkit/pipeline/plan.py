"""One run before it starts: what, on which data, and where; nothing left to choose."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from dermkit.data.manifest import Dataset
from dermkit.data.seal import Meeting, Seal, find_meetings, find_seal
from dermkit.data.split import Split, for_fold
from dermkit.errors import UsageError
from dermkit.files import fingerprint, sha256_bytes
from dermkit.recipes.schema import Recipe, recipe_fingerprint

if TYPE_CHECKING:
    import pandas as pd
    from lightning_fabric import Fabric

    from dermkit.models.net import Weights


@dataclass(frozen=True)
class Where:
    """Where a run happens: what may differ between machines without changing the experiment.

    devices: processes on this machine, each with a device of its own; nodes: machines; workers: threads that prepare
    batches ahead, in each process.
    """

    out: Path = Path("runs")
    device: str = "auto"
    devices: int = 1
    nodes: int = 1
    workers: int = 0
    weights: Path | None = None
    resume: bool = False


@dataclass(frozen=True)
class Plan:
    """One run, resolved: nothing left to choose."""

    recipe: Recipe
    dataset: Dataset
    split: Split
    sides: "pd.DataFrame"
    weights: "Weights"
    seed: int
    fold: int
    folder: Path
    trial: bool = False
    """A trial of a search: the test split is not scored and no report is written."""
    seal: "Seal | None" = None
    """Of this very test side: it is not scored until somebody opens it."""
    meetings: "tuple[Meeting, ...]" = ()
    """Seals of other splits, some of whose images lie on a side of this one."""

    @property
    def hides_test(self) -> bool:
        """Whether this run leaves its test images unscored."""
        return self.trial or self.seal is not None


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


def make_plans(recipe: Recipe, dataset: Dataset, chosen_split: Split, where: Where) -> list[Plan]:
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
