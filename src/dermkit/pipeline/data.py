"""The verbs about data: audit, compare two data sets, split."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, cast

from dermkit.data.manifest import Dataset
from dermkit.data.seal import Seal, check_kept, check_sealable, find_seal, seal_split
from dermkit.data.split import Split, load_split, make_split, save_split
from dermkit.errors import UsageError
from dermkit.files import (
    canonical_json,
    sha256_bytes,
)
from dermkit.progress import Watch
from dermkit.recipes.schema import Recipe, SplitSpec

if TYPE_CHECKING:
    from dermkit.audit.checks.finding import Use
    from dermkit.audit.external_overlap import AgainstOutcome
    from dermkit.audit.run import AuditOutcome


def audit_dataset(
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
    from dermkit.audit.run import audit_dataset as run_audit
    from dermkit.audit.run import looking

    return run_audit(
        dataset, look=looking(workers), checks=CHECKS, alpha=ALPHA, split=split, use=use, accept=accept, clean=clean,
        watch=watch,
    )  # fmt: skip


def check_external(
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


def find_split_seal(dataset: Dataset, made: Split) -> Seal | None:
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
