"""The run's own copy of a seal, and the log of openings in the seals of a data set."""

import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dermkit import __version__
from dermkit.data.manifest import Dataset
from dermkit.data.seal import (
    Opening,
    PartialOverlap,
    Seal,
    check_opening_log,
    check_sealed_unchanged,
    find_seals_of_images,
    log_opening,
    seal_path,
    utc_now,
)
from dermkit.errors import DataError, UsageError
from dermkit.files import sha256_file
from dermkit.models.checksums import CHECKSUM_FILE
from dermkit.runs.folder import RunFolder
from dermkit.runs.layout import RUN_SEAL

PlannedOpening = tuple[Path, Opening]
"""A seal's file, and the opening that is to be logged in it."""


def seal_folder(dataset: Dataset) -> Path:
    """Return the folder that a data set's seals lie in."""
    return dataset.folder / "splits"


# In the run's folder ----------------------------------------------------------------------------------------------


def write_run_seal(run: Path, seal: Seal, *, opening: int | None, notes: Sequence[str] = ()) -> None:
    """Write the run's own copy of a seal, which reports are made from.

    opening: number of this run's opening, from 1; None: the run opened nothing. notes: for the report.
    """
    seal_json = {**seal.summary(), "opening_number": opening, "notes": list(notes)}
    RUN_SEAL.write(run, seal_json)


def check_run_seal(run: Path, seal: Seal, path: Path) -> None:
    """Raise `DataError` for a seal of other images than the run's, or without an opening that the run knows of."""
    run_seal = RunFolder(run).seal
    if run_seal["sha256"] != seal.sha256:
        raise DataError(
            f"{run / RUN_SEAL.name}: is of other sealed rows than {path}",
            outcome="nothing was scored",
            remedy="restore the data set that the run was trained on, or train again",
        )
    check_opening_log(seal, run_seal["openings"], path)


# Openings ---------------------------------------------------------------------------------------------------------


def new_opening(model: Path, *, opened_by: str, recipe: str, run: str, n: int) -> Opening:
    """Return an opening by the model in a folder that is about to score n sealed images; without a folder, no hash."""
    checksum_file = model / CHECKSUM_FILE
    return Opening(
        date=utc_now(),
        opened_by=opened_by,
        recipe=recipe,
        run=run,
        model_sha256=sha256_file(checksum_file) if checksum_file.is_file() else "",
        dermkit=__version__,
        commit=git_commit(),
        n=n,
    )


def git_commit() -> str:
    """Return the git commit of the checkout that this dermkit runs from, with `-dirty` if it was changed; else ""."""
    from dermkit import __file__ as package_file

    root = Path(package_file).resolve().parents[2]
    # An installed dermkit may lie inside somebody else's repository, whose commit says nothing about it.
    if not (root / ".git").exists() or not (root / "src" / "dermkit").is_dir():
        return ""
    git_command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        process = subprocess.run(git_command, capture_output=True, text=True, check=False, timeout=30)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return process.stdout.strip() if process.returncode == 0 else ""


def openings_of_overlaps(
    dataset: Dataset, overlaps: Sequence[PartialOverlap], *, model: Path, recipe: str, run: str, split: str
) -> list[PlannedOpening]:
    """Return the openings of a run that scores sealed images of other splits in the test split of its own."""
    counts = [(overlap.seal.name, overlap.counts["test"]) for overlap in overlaps if overlap.counts["test"]]
    return [
        (
            seal_path(seal_folder(dataset), name),
            new_opening(model, opened_by=f"split {split}", recipe=recipe, run=run, n=n),
        )
        for name, n in counts
    ]


def openings_of_images(
    dataset: Dataset,
    image_ids: Iterable[str],
    *,
    is_allowed: bool,
    model: Path,
    opened_by: str,
    recipe: str,
    run: str,
) -> list[PlannedOpening]:
    """Return the openings of an evaluation of images of a data set: one for each seal that some of them are under.

    An image is sealed by its id or by its pixels, so duplicates count. Raises `UsageError` where some are sealed and
    that is not `is_allowed`, `DataError` where label or pixels of one are not those that were sealed.
    """
    folder = seal_folder(dataset)
    sealed_rows = find_seals_of_images(folder, dataset.manifest, image_ids)
    if sealed_rows and not is_allowed:
        seal_list = "; ".join(
            f"{len(rows)} of split {seal.name}, sealed {seal.date[:10]}" for seal, rows in sealed_rows
        )
        raise UsageError(
            f"{dataset.folder}: holds sealed test images ({seal_list}), and this would evaluate them",
            outcome="nothing was scored",
            remedy=f"add `--open-test {dataset.folder}`; the opening is logged and counted (docs/seal.md)",
        )
    check_sealed_unchanged(folder, dataset.manifest, sealed_rows)
    return [
        (
            seal_path(folder, seal.name),
            new_opening(model, opened_by=opened_by, recipe=recipe, run=run, n=len(rows)),
        )
        for seal, rows in sealed_rows
    ]


@contextmanager
def log_openings(openings: Sequence[PlannedOpening]) -> Iterator[list[str]]:
    """Log every opening before the block and mark all as finished after it (`data.seal.log_opening`).

    Yields a sentence for each: which opening it is, for the warnings of the report. The block ends when what was
    scored, and all that an evaluation of it reads, is on disk: from then on evaluating it needs no further opening.
    """
    with ExitStack() as stack:
        yield [_opening_text(stack.enter_context(log_opening(path, opening))) for path, opening in openings]


def _opening_text(seal: Seal) -> str:
    """Return which opening the last one of a seal is."""
    return (
        f"{seal.openings[-1].n} of these images are of the sealed test side of split {seal.name} "
        f"({len(seal.rows)} images): this is opening {len(seal.openings)} of it."
    )
