"""What a run keeps of a seal in its own folder, and the openings that it logs in the data set's."""

import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from dermkit import __version__
from dermkit.data.manifest import Dataset
from dermkit.data.seal import (
    Meeting,
    Opening,
    Seal,
    check_log,
    check_looks,
    end_opening,
    find_looks,
    log_opening,
    now,
    number_of,
    read_seals,
)
from dermkit.errors import DataError, UsageError
from dermkit.files import sha256_file, write_json
from dermkit.models.checksums import SUMS
from dermkit.runs.reader import KEPT_SEAL, KEPT_SEAL_FORMAT, kept_seal

Logged = tuple[str, Opening]
"""A seal's name, and the opening that was logged in it."""


def seals_of(dataset: Dataset) -> Path:
    """Return the folder that a data set's seals lie in."""
    return dataset.folder / "splits"


# In the run's folder ----------------------------------------------------------------------------------------------


def write_kept(run: Path, seal: Seal, *, opening: int | None, notes: Sequence[str] = ()) -> None:
    """Write the run's own copy: reports are made from it alone. opening: which of its openings is this run's, from 1.

    notes: what a reader of the test figures should know of the opening.
    """
    body = {**seal.facts(), "opening": opening, "notes": list(notes)}
    write_json(run / KEPT_SEAL, body, format=KEPT_SEAL_FORMAT)


def check_kept_log(run: Path, seal: Seal, path: Path) -> None:
    """Refuse a seal that is not the run's own, or that lacks openings which the run knows of; raises `DataError`."""
    kept = kept_seal(run)
    if kept["sha256"] != seal.sha256:
        raise DataError(
            f"{run / KEPT_SEAL}: is of other sealed rows than {path}",
            kept="nothing was scored",
            remedy="restore the data set that the run was trained on, or train again",
        )
    check_log(seal, kept["openings"], path)


# Openings ---------------------------------------------------------------------------------------------------------


def new_opening(model: Path, *, how: str, recipe: str, run: str, n: int) -> Opening:
    """Return the entry of a model folder that is about to score n sealed images; no folder, no hash."""
    sums = model / SUMS
    return Opening(
        date=now(), how=how, recipe=recipe, run=run, model_sha256=sha256_file(sums) if sums.is_file() else "",
        dermkit=__version__, commit=commit(), n=n,
    )  # fmt: skip


def commit() -> str:
    """Return the git commit of the checkout that this dermkit runs from, `-dirty` where it was changed; "" for none."""
    from dermkit import __file__ as package_file

    root = Path(package_file).resolve().parents[2]
    # An installed dermkit may lie inside somebody else's repository, whose commit says nothing about it.
    if not (root / ".git").exists() or not (root / "src" / "dermkit").is_dir():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def log_meetings(
    dataset: Dataset, meetings: Sequence[Meeting], *, model: Path, recipe: str, run: str, split: str
) -> list[Logged]:
    """Log that a run is about to score sealed images of other splits on the test side of its own."""
    met = [(item.seal.name, item.counts["test"]) for item in meetings if item.counts["test"]]
    return [
        _log(dataset, name, new_opening(model, how=f"split {split}", recipe=recipe, run=run, n=n))
        for name, n in met
    ]


def log_looks(
    dataset: Dataset, image_ids: Iterable[str], *, allowed: bool, model: Path, how: str, recipe: str, run: str
) -> list[Logged]:
    """Log that images of a data set are about to be evaluated, in every seal that they are of.

    Copies count: an image is of a seal by its id or its pixels. Raises `UsageError` where some are sealed and that is
    not `allowed`, `DataError` where label or pixels of one are not those that were sealed.
    """
    found = find_looks(seals_of(dataset), dataset.manifest, image_ids)
    if found and not allowed:
        listed = "; ".join(f"{len(rows)} of split {seal.name}, sealed {seal.date[:10]}" for seal, rows in found)
        raise UsageError(
            f"{dataset.folder}: holds sealed test images ({listed}), and this would evaluate them",
            kept="nothing was scored",
            remedy=f"add `--open-test {dataset.folder}`; the opening is logged and counted (docs/seal.md)",
        )
    check_looks(seals_of(dataset), dataset.manifest, found)
    return [
        _log(dataset, seal.name, new_opening(model, how=how, recipe=recipe, run=run, n=len(rows)))
        for seal, rows in found
    ]


def _log(dataset: Dataset, name: str, opening: Opening) -> Logged:
    log_opening(seals_of(dataset), name, opening)
    return name, opening


def end_openings(dataset: Dataset, logged: Iterable[Logged]) -> None:
    """Note that the scoring came to its end."""
    for name, opening in logged:
        end_opening(seals_of(dataset), name, opening)


def looks_in_words(dataset: Dataset, logged: Iterable[Logged]) -> list[str]:
    """Return for each opening which one it is, for the warnings of the report."""
    seals = {seal.name: seal for seal in read_seals(seals_of(dataset))}
    return [
        f"{opening.n} of these images are of the sealed test side of split {name} ({len(seals[name].rows)} images): "
        f"this is opening {number_of(seals[name], opening)} of it."
        for name, opening in logged
    ]
