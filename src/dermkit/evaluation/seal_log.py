"""What a run keeps of a seal in its own folder, and the openings that it logs in the data set's."""

import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from dermkit import __version__
from dermkit.data.manifest import Dataset
from dermkit.data.seal import (
    Opening,
    PartialOverlap,
    Seal,
    check_opening_log,
    check_sealed_unchanged,
    end_opening,
    find_seals_of_images,
    log_opening,
    opening_number,
    read_seals,
    utc_now,
)
from dermkit.errors import DataError, UsageError
from dermkit.files import sha256_file
from dermkit.models.checksums import CHECKSUM_FILE
from dermkit.runs.layout import RUN_SEAL
from dermkit.runs.reader import read_run_seal

LoggedOpening = tuple[str, Opening]
"""A seal's name, and the opening that was logged in it."""


def seal_folder(dataset: Dataset) -> Path:
    """Return the folder that a data set's seals lie in."""
    return dataset.folder / "splits"


# In the run's folder ----------------------------------------------------------------------------------------------


def write_run_seal(run: Path, seal: Seal, *, opening: int | None, notes: Sequence[str] = ()) -> None:
    """Write the run's own copy: reports are made from it alone. opening: which of its openings is this run's, from 1.

    notes: what a reader of the test figures should know of the opening.
    """
    seal_json = {**seal.summary(), "opening_number": opening, "notes": list(notes)}
    RUN_SEAL.write(run, seal_json)


def check_run_seal(run: Path, seal: Seal, path: Path) -> None:
    """Refuse a seal that is not the run's own, or that lacks openings which the run knows of; raises `DataError`."""
    run_seal = read_run_seal(run)
    if run_seal["sha256"] != seal.sha256:
        raise DataError(
            f"{run / RUN_SEAL.name}: is of other sealed rows than {path}",
            outcome="nothing was scored",
            remedy="restore the data set that the run was trained on, or train again",
        )
    check_opening_log(seal, run_seal["openings"], path)


# Openings ---------------------------------------------------------------------------------------------------------


def new_opening(model: Path, *, command: str, recipe: str, run: str, n: int) -> Opening:
    """Return the entry of a model folder that is about to score n sealed images; no folder, no hash."""
    checksum_file = model / CHECKSUM_FILE
    return Opening(
        date=utc_now(),
        how=command,
        recipe=recipe,
        run=run,
        model_sha256=sha256_file(checksum_file) if checksum_file.is_file() else "",
        dermkit=__version__,
        commit=git_commit(),
        n=n,
    )


def git_commit() -> str:
    """Return the git commit of the checkout that this dermkit runs from, `-dirty` where it was changed; "" for none."""
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


def log_overlap_openings(
    dataset: Dataset, overlaps: Sequence[PartialOverlap], *, model: Path, recipe: str, run: str, split: str
) -> list[LoggedOpening]:
    """Log that a run is about to score sealed images of other splits on the test side of its own."""
    seal_counts = [(overlap.seal.name, overlap.counts["test"]) for overlap in overlaps if overlap.counts["test"]]
    return [
        _log_opening(dataset, name, new_opening(model, command=f"split {split}", recipe=recipe, run=run, n=n))
        for name, n in seal_counts
    ]


def log_openings(
    dataset: Dataset,
    image_ids: Iterable[str],
    *,
    is_allowed: bool,
    model: Path,
    command: str,
    recipe: str,
    run: str,
) -> list[LoggedOpening]:
    """Log that images of a data set are about to be evaluated, in every seal that they are of.

    Copies count: an image is of a seal by its id or its pixels. Raises `UsageError` where some are sealed and that is
    not `is_allowed`, `DataError` where label or pixels of one are not those that were sealed.
    """
    sealed_rows = find_seals_of_images(seal_folder(dataset), dataset.manifest, image_ids)
    if sealed_rows and not is_allowed:
        seal_list = "; ".join(
            f"{len(rows)} of split {seal.name}, sealed {seal.date[:10]}" for seal, rows in sealed_rows
        )
        raise UsageError(
            f"{dataset.folder}: holds sealed test images ({seal_list}), and this would evaluate them",
            outcome="nothing was scored",
            remedy=f"add `--open-test {dataset.folder}`; the opening is logged and counted (docs/seal.md)",
        )
    check_sealed_unchanged(seal_folder(dataset), dataset.manifest, sealed_rows)
    return [
        _log_opening(dataset, seal.name, new_opening(model, command=command, recipe=recipe, run=run, n=len(rows)))
        for seal, rows in sealed_rows
    ]


def _log_opening(dataset: Dataset, name: str, opening: Opening) -> LoggedOpening:
    log_opening(seal_folder(dataset), name, opening)
    return name, opening


def end_openings(dataset: Dataset, openings: Iterable[LoggedOpening]) -> None:
    """Note that the scoring came to its end."""
    for name, opening in openings:
        end_opening(seal_folder(dataset), name, opening)


def describe_openings(dataset: Dataset, openings: Iterable[LoggedOpening]) -> list[str]:
    """Return for each opening which one it is, for the warnings of the report."""
    seals = {seal.name: seal for seal in read_seals(seal_folder(dataset))}
    return [
        f"{opening.n} of these images are of the sealed test side of split {name} ({len(seals[name].rows)} images): "
        f"this is opening {opening_number(seals[name], opening)} of it."
        for name, opening in openings
    ]
