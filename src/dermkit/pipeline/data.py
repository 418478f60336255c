"""The commands about data as functions: audit, check an external data set, split."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from dermkit.data.manifest import Dataset
from dermkit.data.seal import Seal, check_sealable, check_sealed_split, find_seal, seal_split
from dermkit.data.split import Split, is_automatic_split, load_split, make_split, save_split
from dermkit.errors import UsageError
from dermkit.files import canonical_json, read_regular, sha256_bytes, shell_path, write_bytes
from dermkit.progress import Progress
from dermkit.recipes.schema import Recipe, SplitSpec

if TYPE_CHECKING:
    from dermkit.audit.checks.finding import PlannedUse
    from dermkit.audit.external_overlap import ExternalCheckResult
    from dermkit.audit.run import AuditOutcome


def audit_dataset(
    dataset: Dataset,
    *,
    split: str | Path | None = None,
    clean: bool = False,
    accept: Sequence[str] = (),
    use: "PlannedUse" = "research",
    workers: int = 0,
    progress: Progress | None = None,
) -> "AuditOutcome":
    """Check a data set for every known defect and write the findings to its `audit/` folder (`audit.run.run_audit`)."""
    from dermkit.audit.checks.catalogue import CHECKS
    from dermkit.audit.checks.finding import AUDIT_ALPHA
    from dermkit.audit.run import run_audit, scanner

    return run_audit(
        dataset,
        image_scanner=scanner(workers),
        checks=CHECKS,
        alpha=AUDIT_ALPHA,
        split=split,
        use=use,
        accept=accept,
        clean=clean,
        progress=progress,
    )


def check_external(
    reference: Dataset,
    other_dataset: Dataset,
    *,
    accept: Sequence[str] = (),
    workers: int = 0,
    progress: Progress | None = None,
) -> "ExternalCheckResult":
    """Find the images of the second data set that are in the first too, by every link that both record."""
    from dermkit.audit import external_overlap
    from dermkit.audit.run import pair_scanner

    progress = progress or Progress()
    return external_overlap.run_external_check(
        reference, other_dataset, progress=progress, near_duplicate_search=pair_scanner(workers), accept=accept
    )


def audit_codes() -> str:
    """Return the table of all checks, which is that of `docs/audit.md`."""
    from dermkit.audit.checks.catalogue import CHECKS
    from dermkit.audit.checks.finding import read_check_card
    from dermkit.audit.external_overlap import LINKS_CHECKS
    from dermkit.audit.output import codes_table

    return codes_table([*map(read_check_card, CHECKS), *map(read_check_card, LINKS_CHECKS)])


def split(dataset: Dataset, spec: SplitSpec, *, name: str, seal: bool = False) -> Split:
    """Make a split of a data set and write it to its `splits/` folder.

    seal: also seal its test images (docs/seal.md). Raises `UsageError` where a sealed split of that name has other test
    images, or for k folds of all images to be sealed; `DataError` where sealed images changed.
    """
    folder = dataset.folder / "splits"
    new_split = make_split(dataset.manifest, spec, name=name)
    check_sealed_split(folder, name, new_split.frame, dataset.manifest)
    if seal:
        check_sealable(name, new_split.frame)
    splits_folder = folder if seal else dataset.work_folder / "splits"
    kept_path = _keep_earlier_split(splits_folder, new_split)
    save_split(new_split, splits_folder)
    if seal:
        seal_split(folder, name, new_split.frame, dataset.manifest)
    note = (
        f"the other split that was called {name} is kept as {kept_path}; its runs go on with "
        f"--split {shell_path(kept_path)}"
        if kept_path
        else ""
    )
    return replace(new_split, notes=(*new_split.notes, note)) if note else new_split


def _keep_earlier_split(folder: Path, new_split: Split) -> Path | None:
    """Copy another split of the same name to `earlier/`; returns the copy, None if there is no such split.

    Splits that `train` names after their settings are made again whenever they are needed.
    """
    path = folder / f"{new_split.name}.csv"
    if not path.is_file() or is_automatic_split(new_split.name):
        return None
    division = _saved_division(path)
    with TemporaryDirectory() as new_folder:
        if _saved_division(save_split(new_split, Path(new_folder))) == division:
            return None
    kept_path = folder / "earlier" / f"{new_split.name}-{sha256_bytes(division)[:8]}.csv"
    for suffix in (".excluded.csv", ".json", ".csv"):
        if path.with_suffix(suffix).is_file():
            write_bytes(kept_path.with_suffix(suffix), read_regular(path.with_suffix(suffix)))
    return kept_path


def _saved_division(path: Path) -> bytes:
    """Return what tells a saved split from another: the rows of NAME.csv, and its settings in NAME.json.

    Two splits of k folds may have the same rows and other validation images, which `split.validation` says.
    """
    json_path = path.with_suffix(".json")
    settings = b""
    if json_path.is_file():
        content = read_regular(json_path)
        try:
            settings = canonical_json(json.loads(content)["spec"]).encode()
        except (ValueError, TypeError, KeyError):  # damaged: whatever it says is kept
            settings = content
    return read_regular(path) + settings


def find_split_seal(dataset: Dataset, dataset_split: Split) -> Seal | None:
    """Return the seal of a split's test images, under whichever name it was sealed."""
    return find_seal(dataset.folder / "splits", dataset.manifest, dataset_split.frame)


def resolve_split(recipe: Recipe, dataset: Dataset, name: str | None) -> Split:
    """Return the split of that name or file, or without one the recipe's own, checked against the manifest."""
    if name is None:
        spec_hash = sha256_bytes(canonical_json(asdict(recipe.split)).encode())[:8]
        return split(dataset, recipe.split, name=f"{recipe.split.scheme}-{spec_hash}")
    return load_dataset_split(dataset, name)


def load_dataset_split(dataset: Dataset, name: str) -> Split:
    """Return the split of that name or file, checked against the manifest; raises `UsageError` if there is none."""
    folder = dataset.folder / "splits"
    path = Path(name) if name.endswith(".csv") else folder / f"{name}.csv"
    if not path.is_file() and not name.endswith(".csv"):  # of a data set on a read-only drive
        path = dataset.work_folder / "splits" / f"{name}.csv"
    if not path.is_file():
        split_names = sorted(
            path_in_folder.stem
            for path_in_folder in folder.glob("*.csv")
            if not path_in_folder.stem.endswith(".excluded")
        )
        raise UsageError(
            f"{path}: there is no such split",
            remedy=f"splits there: {', '.join(split_names) or 'none'}; make one with `dermkit split`",
        )
    dataset_split = load_split(path, dataset.manifest)
    if path.resolve().parent == folder.resolve():
        check_sealed_split(folder, dataset_split.name, dataset_split.frame, dataset.manifest)
    return dataset_split
