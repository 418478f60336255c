"""Lesion masks as a part of a data set: masks.csv beside its manifest, and the folder that they lie in.

A mask is a PNG of its image's size, the lesion bright on black (`images/lesion_masks.py`). Masks are optional: an image
may have none, and one that does not fit is listed with its reason and never used.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from dermkit.data.manifest import LOCATION, Dataset
from dermkit.errors import DataError, UsageError
from dermkit.files import open_regular, write_rows
from dermkit.images.lesion_masks import LesionMasks, find_mask, read_mask
from dermkit.threads import cpu_count, ordered_map

MASKS_TABLE = "masks.csv"
UNUSABLE_MASKS = "unusable_masks"
"""Code of the warning that the masks of an earlier import were dropped."""
_MAX_THREADS = 8
_SHARED = "belongs to several images by its name: name masks as the image's path, CLASS/IMAGE.png"


class MaskRow(NamedTuple):
    """A row of masks.csv, an image that has a mask. path: of the mask, below the folder of masks. lesion_area: part of
    the image that is lesion, 0..1, "" where the mask is refused. reason: why it is refused, "" where it is used.
    """

    image_id: str
    path: str
    lesion_area: float | str
    reason: str


class _MaskTask(NamedTuple):
    image_id: str
    mask: Path
    shape: tuple[int, int]
    is_shared: bool


def with_masks(
    dataset: Dataset, masks: Path | None, folder: Path, on_progress: Callable[[int, int], None] | None = None
) -> tuple[Dataset, list[MaskRow] | None]:
    """Return a data set that is imported into a folder with its masks, those given or else those it had there.

    The rows of masks.csv are None where that stays as it is: without masks, or where the folder of earlier ones is
    gone. There are no rows where no earlier mask can be used any more: these masks are dropped with a warning. Raises
    `UsageError` for masks inside the images of the layout `folder`, which takes every picture for an image, and as
    `check_masks` for masks that are given.
    """
    if (
        masks is not None
        and dataset.importer == "folder"
        and masks.resolve().is_relative_to(dataset.image_root.resolve())
    ):
        raise UsageError(
            f"--masks {masks}: lies in the folder of the images, where each picture counts as an image of a class",
            outcome="nothing was imported",
            remedy="move the folder of masks out of it",
        )
    if masks is not None:
        return replace(dataset, mask_root=masks), check_masks(dataset, masks, on_progress)
    earlier = str(LOCATION.read_optional(folder).get("masks", ""))
    if not earlier or not Path(earlier).is_dir():
        return replace(dataset, mask_root=Path(earlier) if earlier else None), None
    try:
        rows = check_masks(dataset, Path(earlier), on_progress)
    except DataError as error:  # nobody named these masks, so they stop no import
        return _without_masks(dataset, error.message.removeprefix(f"{Path(earlier)}: ")), []
    return replace(dataset, mask_root=Path(earlier)), rows


def _without_masks(dataset: Dataset, reason: str) -> Dataset:
    """Return the data set without masks, and with a warning that says why the earlier ones are dropped."""
    note = {
        "code": UNUSABLE_MASKS,
        "text": f"the lesion masks of the earlier import are dropped: {reason}; name others with --masks",
        "n": len(dataset.manifest),
    }
    notes = {**dataset.notes, "warnings": [*dataset.notes.get("warnings", []), note]}
    return replace(dataset, mask_root=None, notes=notes)


def check_masks(
    dataset: Dataset, folder: Path, on_progress: Callable[[int, int], None] | None = None
) -> list[MaskRow]:
    """Return a row for each image of a data set that has a mask in a folder, in the order of the manifest.

    Every mask is opened. Raises `UsageError` for no folder, `DataError` where it holds no mask that can be used.
    """
    if not folder.is_dir():
        raise UsageError(
            f"--masks {folder}: is no folder",
            outcome="nothing was imported",
            remedy="unpack the masks, and name the folder that holds them",
        )
    tasks = list(_mask_tasks(dataset, folder))
    rows = []
    results = ordered_map(lambda task: _checked(task, folder), tasks, n_threads=min(_MAX_THREADS, cpu_count()))
    for number, row in enumerate(results, start=1):
        rows.append(row)
        if on_progress is not None:
            on_progress(number, len(tasks))
    if all(row.reason for row in rows):
        raise _no_mask_error(dataset, folder, rows)
    return rows


def _mask_tasks(dataset: Dataset, folder: Path) -> Iterable[_MaskTask]:
    frame = dataset.manifest
    masks = {
        image_id: mask
        for image_id, path in zip(frame["image_id"], frame["path"], strict=True)
        if (mask := find_mask(folder, path)) is not None
    }
    pixels_of_mask: dict[Path, set[str]] = defaultdict(set)
    for image_id, pixels in zip(frame["image_id"], frame["pixel_sha256"], strict=True):
        if image_id in masks:
            pixels_of_mask[masks[image_id]].add(pixels)
    shapes = zip(frame["image_id"], frame["height"].tolist(), frame["width"].tolist(), strict=True)
    for image_id, height, width in shapes:
        if image_id in masks:
            mask = masks[image_id]
            yield _MaskTask(image_id, mask, (height, width), len(pixels_of_mask[mask]) > 1)


def _checked(task: _MaskTask, folder: Path) -> MaskRow:
    path = task.mask.relative_to(folder).as_posix()
    if task.is_shared:
        return MaskRow(task.image_id, path, "", _SHARED)
    try:
        mask = read_mask(task.mask, task.shape)
    except DataError as error:
        return MaskRow(task.image_id, path, "", error.message.removeprefix(f"{task.mask}: "))
    return MaskRow(task.image_id, path, round(float(mask.mean()), 6), "")


def _no_mask_error(dataset: Dataset, folder: Path, rows: Sequence[MaskRow]) -> DataError:
    example = Path(str(dataset.manifest["path"].iloc[0])).stem
    if not rows:
        return DataError(
            f"{folder}: holds no mask of these images",
            outcome="nothing was imported",
            remedy=f"name each mask as its image, such as {example}.png or {example}_segmentation.png",
        )
    return DataError(
        f"{folder}: none of {len(rows)} masks can be used; first: {rows[0].path} {rows[0].reason}",
        outcome="nothing was imported",
        remedy="give masks in the size of their images, white on black, or leave --masks out",
    )


def write_masks(rows: Sequence[MaskRow], folder: Path) -> None:
    """Write masks.csv into a folder."""
    write_rows(folder / MASKS_TABLE, MaskRow._fields, rows)


def masks_of_dataset(folder: Path) -> LesionMasks | None:
    """Return the usable masks of a data set's folder; None where it has none, or their folder is not there.

    Raises `DataError` for a masks.csv or a location.json that cannot be read.
    """
    location = LOCATION.read_optional(folder)
    masks = Path(str(location.get("masks", "")))
    if not location.get("masks") or not masks.is_dir() or not (folder / MASKS_TABLE).is_file():
        return None
    table = _read_table(folder / MASKS_TABLE)
    usable = table[(table["reason"] == "") & table["path"].map(_is_below)]
    return LesionMasks(masks, dict(zip(usable["image_id"], usable["path"], strict=True)))


def _read_table(path: Path) -> pd.DataFrame:
    try:
        with open_regular(path) as stream:
            table = pd.read_csv(stream, dtype=str, keep_default_na=False, na_filter=False, encoding="utf-8")
        return table[list(MaskRow._fields)]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path}: cannot be read as a table of masks: {error}", remedy="import the data set again with --masks"
        ) from error


def _is_below(path: str) -> bool:
    return not Path(path).is_absolute() and ".." not in Path(path).parts
