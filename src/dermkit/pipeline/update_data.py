"""Old and new data as one data set: old images stay on their side, new ones are divided, and nothing lies on two sides.

A new image that is a copy of an old one is left out. One of an old patient or lesion goes where that is, or nowhere:
never into a test, and never out of one. New images that are copies of each other stay together.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from dermkit.audit.dataset_links import (
    LINK_COLUMNS,
    SAME_IMAGE,
    SAME_LESION,
    SAME_PATIENT,
    DatasetLinks,
    link_datasets,
)
from dermkit.data.folds import fold_numbers
from dermkit.data.groups import connect_rows, id_codes, leakage_groups
from dermkit.data.manifest import ID_COLUMNS, Dataset, load_dataset, save_dataset
from dermkit.data.seal import SEAL_SUFFIX, find_seals_of_images, seal_split
from dermkit.data.split import GIVEN_SPLIT_ALIASES, Split, check_split, make_split, save_split
from dermkit.data.split_file import excluded_frame, read_split_rows
from dermkit.errors import DataError, UsageError
from dermkit.files import lock, make_folder, output_errors
from dermkit.pipeline.data import load_dataset_split
from dermkit.pipeline.update_champion import Champion
from dermkit.progress import Progress
from dermkit.recipes.schema import SplitSpec

OLD, NEW = "old", "new"
SPLIT_NAME = "update"
SOURCES_NOTE = "update_sources"
"""The note of a joined data set: part -> the folder of the data set that it is of."""
LIMITS_NOTE = "update_limits"
"""The note of a joined data set: sentences on what could not be looked for between old and new images."""
DEFAULT_VALIDATION, DEFAULT_TEST = 0.15, 0.35
"""Fractions of new images. The test is large: a decision needs malignant images more than the training does."""

_COPY, _OTHER_SIDE = (
    "copy of an image of the old data",
    "of a patient or lesion of the old test or of several sides",
)
_LEARNED, _OF_TEST = (
    "test image of a patient or lesion of the old training or validation",
    "of a patient, lesion or copy of a new test image",
)


@dataclass(frozen=True, eq=False)
class UpdateData:
    """The data of an update. dataset: old and new together, ids and paths begin with `old/` or `new/`. split: of it.

    counts: part -> side -> images, with what was excluded and why.
    """

    dataset: Dataset
    split: Split
    counts: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class NewSplitOptions:
    """How new data is divided. name: a split of it, None = draw one (published test images stay test images).

    validation, test: fractions of the new images. Raises `UsageError` where they leave nothing to train on.
    """

    name: str | None = None
    validation: float = DEFAULT_VALIDATION
    test: float = DEFAULT_TEST
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.validation < 1 and 0 < self.test < 1 and self.validation + self.test < 1):
            raise UsageError(
                f"--validation {self.validation:g} --test {self.test:g}: leave no images for training, or none for one "
                "of the two",
                outcome="nothing was trained",
                remedy="give fractions above 0 with a sum below 1, such as --validation 0.15 --test 0.35",
            )


def join_data(
    champion: Champion, new: Dataset, folder: Path, options: NewSplitOptions, *, workers: int, progress: Progress
) -> UpdateData:
    """Join the champion's data set and a new one in a folder, with the split `update`, sealed; again as it is there.

    Raises `DataError` where the new data cannot be divided, or sealed images of it would be trained on.
    """
    from dermkit.audit.run import pair_scanner, scanner

    if (folder / "splits" / f"{SPLIT_NAME}{SEAL_SUFFIX}").is_file():  # the seal is written last
        return _read_again(folder)
    progress.say(f"looking for images, lesions and patients of {champion.dataset.name} in {new.name}")
    with lock(champion.dataset.work_folder, timeout=60.0):
        links = link_datasets(
            champion.dataset, new, near_duplicate_search=pair_scanner(workers), progress=progress
        )
    with lock(new.work_folder, timeout=60.0):
        copy_groups = _copy_groups(new.manifest, scanner(workers)(new, progress).pairs)
    links = replace(links, external_rows=links.external_rows.assign(copy_group=copy_groups))
    new_rows = _divide_new(champion, new, links, options)
    _check_sealed_images(new, new_rows)
    dataset = _joined(champion.dataset, new, links, folder)
    split = _joined_split(dataset, champion, new_rows)
    split = replace(split, leaks=check_split(dataset.manifest, split, allow_leaks=True))
    save_split(split, folder / "splits")
    seal_split(folder / "splits", SPLIT_NAME, split.frame, dataset.manifest)
    return UpdateData(dataset, split, _counts(split))


def _read_again(folder: Path) -> UpdateData:
    """Return what an earlier call joined. The champion's split may leak, as a published one does, and is kept so."""
    dataset = load_dataset(folder)
    frame, excluded = read_split_rows(folder / "splits" / f"{SPLIT_NAME}.csv", dataset.manifest)
    split = Split(SPLIT_NAME, frame, excluded, {}, None)
    split = replace(split, leaks=check_split(dataset.manifest, split, allow_leaks=True))
    return UpdateData(dataset, split, _counts(split))


# New images ---------------------------------------------------------------------------------------------------------


def _copy_groups(manifest: pd.DataFrame, pairs: pd.DataFrame) -> list[str]:
    """Return the copy group of each new image, "" = alone: the champion was trained on no copy of a new test image.

    pairs: row numbers a and b of images that are copies of each other.
    """
    first, second = pairs["a"].to_numpy(np.int64), pairs["b"].to_numpy(np.int64)
    groups = connect_rows(len(manifest), first, second, id_codes(manifest["copy_group"]))
    sizes = np.bincount(groups, minlength=1)
    return [f"copies-{group}" if sizes[group] > 1 else "" for group in groups.tolist()]


def _divide_new(champion: Champion, new: Dataset, links: DatasetLinks, options: NewSplitOptions) -> pd.DataFrame:
    """Return image_id, split ("" = excluded) and reason of every new image."""
    rows = links.external_rows
    is_copy = links.is_linked(SAME_IMAGE)
    sides = _sides_of_links(champion, links)
    groups = leakage_groups(rows)
    is_tied = np.isin(groups, groups[[bool(side) for side in sides]]) if len(rows) else np.zeros(0, dtype=bool)
    free = rows.loc[~is_tied & ~is_copy]
    drawn = _free_split(new, free, options)
    split = _look_up(rows["image_id"], drawn.frame["image_id"], drawn.frame["split"])
    reason = _look_up(rows["image_id"], drawn.excluded["image_id"], drawn.excluded["reason"])
    is_new_test = _look_up(rows["image_id"], *_published_sides(new, rows, options)) == "test"
    side_of_group: dict[int, set[str]] = {}
    for group, side in zip(groups[is_tied].tolist(), np.array(sides, dtype=object)[is_tied], strict=True):
        side_of_group.setdefault(group, set()).update(side)
    for row in np.flatnonzero(is_tied & ~is_copy).tolist():
        tied_sides = side_of_group[int(groups[row])]
        side = next(iter(tied_sides)) if len(tied_sides) == 1 else "test"
        split[row], reason[row] = ("", _OTHER_SIDE) if side == "test" else (side, "")
        if side != "test" and is_new_test[row]:
            split[row], reason[row] = "", _LEARNED
    split[is_copy], reason[is_copy] = "", _COPY
    # A split of the user's may have one patient on two sides, and knows nothing of copies.
    is_leak = np.isin(groups, groups[split == "test"]) & np.isin(split.astype(str), ["train", "validation"])
    split[is_leak], reason[is_leak] = "", _OF_TEST
    return pd.DataFrame({"image_id": rows["image_id"], "split": split, "reason": reason})


def _published_sides(
    new: Dataset, rows: pd.DataFrame, options: NewSplitOptions
) -> tuple["pd.Series[str]", "pd.Series[str]"]:
    """Return ids and sides of new images as the named split has them, else as they were published."""
    if options.name is not None:
        frame = load_dataset_split(new, options.name).frame
        return frame["image_id"], frame["split"]
    return rows["image_id"], rows["given_split"].str.lower().map(GIVEN_SPLIT_ALIASES)


def _look_up(ids: "pd.Series[str]", names: "pd.Series[str]", values: "pd.Series[str]") -> "np.ndarray[Any, Any]":
    """Return the value of each id, (N,) objects, "" where it has none."""
    table = dict(zip(names.tolist(), values.tolist(), strict=True))
    return np.array([table.get(one, "") for one in ids.tolist()], dtype=object)


def _sides_of_links(champion: Champion, links: DatasetLinks) -> list[set[str]]:
    """Return for each new image the sides of the old patients and lesions that it is linked to.

    Of all their images: a link names one old image of several, which the champion's split may have left out.
    """
    old_sides = _look_up(links.reference_rows["image_id"], champion.split["image_id"], champion.split["split"])
    old_groups = leakage_groups(links.reference_rows)
    sides_of_group: dict[int, set[str]] = {}
    for group, side in zip(old_groups.tolist(), old_sides.tolist(), strict=True):
        if side:
            sides_of_group.setdefault(group, set()).add(str(side))
    sides: list[set[str]] = [set() for _ in range(len(links.external_rows))]
    for a, b in zip(links.links["a"].tolist(), links.links["b"].tolist(), strict=True):
        sides[int(b)] |= sides_of_group.get(int(old_groups[int(a)]), set())
    return sides


def _free_split(new: Dataset, free: pd.DataFrame, options: NewSplitOptions) -> Split:
    """Return the split of the new images that nothing ties to an old one."""
    if free.empty:
        raise DataError(
            f"{new.folder}: every image is a copy of an old one, or of an old patient or lesion",
            outcome="nothing was trained", remedy="name data with images of new patients",
        )  # fmt: skip
    if options.name is not None:
        split = load_dataset_split(new, options.name)
        if fold_numbers(split.frame):
            raise UsageError(
                f"--split {options.name}: has folds, and an update trains one net",
                outcome="nothing was trained",
                remedy="name a split into training, validation and test, or leave out --split",
            )
        is_free = split.frame["image_id"].isin(free["image_id"])
        return replace(split, frame=split.frame[is_free].reset_index(drop=True))
    published = free["given_split"].str.lower().map(GIVEN_SPLIT_ALIASES)
    scheme: Literal["given", "holdout"] = "given" if (published == "test").any() else "holdout"
    spec = SplitSpec(
        scheme=scheme, seed=options.seed, validation=options.validation,
        test=options.test if scheme == "holdout" else 0.0, folds=0, per_class=0, draw_from="",
    )  # fmt: skip
    return make_split(free[new.manifest.columns].reset_index(drop=True), spec, name=SPLIT_NAME)


def _check_sealed_images(new: Dataset, new_rows: pd.DataFrame) -> None:
    """Raise `DataError` where images of the new data that are sealed would be trained on."""
    learned = new_rows.loc[new_rows["split"].isin(["train", "validation"]), "image_id"]
    sealed = find_seals_of_images(new.folder / "splits", new.manifest, learned)
    if sealed:
        names = ", ".join(seal.name for seal, _ in sealed)
        raise DataError(
            f"{new.folder}: {sum(len(rows) for _, rows in sealed)} images would be trained on that are sealed as test "
            f"images ({names})",
            outcome="nothing was trained",
            remedy="divide the new data by the split that was sealed: --split NAME",
        )


# One data set -------------------------------------------------------------------------------------------------------


def _joined(old: Dataset, new: Dataset, links: DatasetLinks, folder: Path) -> Dataset:
    """Write the data set of old and new images into a folder, which holds links to both image folders."""
    images = make_folder(folder / "images")
    for part, dataset in ((OLD, old), (NEW, new)):
        _link_folder(images / part, dataset.image_root.resolve())
    new_manifest = new.manifest.assign(copy_group=links.external_rows["copy_group"].to_numpy())
    frames = [_with_part(old.manifest, OLD, {}), _with_part(new_manifest, NEW, _shared_ids(links))]
    sources = {OLD: str(old.folder.resolve()), NEW: str(new.folder.resolve())}
    joined = Dataset(
        folder, images, f"{old.name} and {new.name}"[:120], old.classes, pd.concat(frames, ignore_index=True),
        "update", {SOURCES_NOTE: sources, LIMITS_NOTE: _limits(links)},
    )  # fmt: skip
    save_dataset(joined)
    return load_dataset(folder)


def _limits(links: DatasetLinks) -> list[str]:
    """Return what could not be looked for between old and new images, a sentence each."""
    sentences = [
        f"Not everything that old and new images share is known: {links.limitations[link_type]}."
        for link_type in ("near", *SAME_LESION, *SAME_PATIENT)
        if link_type in links.limitations
    ]
    return sentences + [
        f"{n} {link_type} ids are in both data sets and are mere numbers, so they were taken for different ones: if "
        f"they are the same, a {link_type} may be in training and in a test."
        for link_type, n in links.ambiguous_ids.items()
    ]


def _link_folder(link: Path, target: Path) -> None:
    """Make a link to a folder of images, so that no path of this machine enters the manifest."""
    with output_errors(link):
        if link.is_symlink() and link.resolve() != target:
            link.unlink()
        if not link.exists():
            link.symlink_to(target, target_is_directory=True)


def _shared_ids(links: DatasetLinks) -> dict[str, dict[str, str]]:
    """Return column -> id of the new data -> id of the old data, of ids that name one lesion or patient in both."""
    shared: dict[str, dict[str, str]] = {"lesion_id": {}, "patient_id": {}}
    for link_type, column in ((SAME_PATIENT, "patient_id"), (SAME_LESION, "lesion_id")):
        rows = links.links[links.link_types.isin(link_type)]
        for a, b in zip(rows["a"].tolist(), rows["b"].tolist(), strict=True):
            old_row, new_row = links.reference_rows.iloc[int(a)], links.external_rows.iloc[int(b)]
            shared[column][str(new_row[LINK_COLUMNS[link_type[0]]])] = str(old_row[column])
            if old_row["patient_id"] and new_row["patient_id"]:  # one lesion is of one patient
                shared["patient_id"][str(new_row["patient_id"])] = str(old_row["patient_id"])
    return shared


def _with_part(manifest: pd.DataFrame, part: str, shared: Mapping[str, Mapping[str, str]]) -> pd.DataFrame:
    """Return the rows with ids and paths that begin with the part; ids that both parts share are those of the old."""
    columns = {name: part + "/" + manifest[name] for name in ("image_id", "path")}
    for name in ID_COLUMNS:
        known = shared.get(name, {})
        columns[name] = manifest[name].map(
            lambda value, known=known: (
                "" if not value else f"{OLD}/{known[value]}" if value in known else f"{part}/{value}"
            )
        )
    return manifest.assign(**columns, given_split="")


def _joined_split(dataset: Dataset, champion: Champion, new_rows: pd.DataFrame) -> Split:
    old = champion.split[champion.split["split"].isin(["train", "validation", "test"])]
    is_used = new_rows["split"] != ""
    ids = [*(f"{OLD}/" + old["image_id"]), *(f"{NEW}/" + new_rows.loc[is_used, "image_id"])]
    names = [*old["split"], *new_rows.loc[is_used, "split"]]
    frame = pd.DataFrame({"image_id": ids, "split": names, "fold": -1}).sort_values("image_id", ignore_index=True)
    reasons = dict(zip(NEW + "/" + new_rows["image_id"], new_rows["reason"], strict=True))
    left_out = dataset.manifest.loc[~dataset.manifest["image_id"].isin(frame["image_id"]), "image_id"].tolist()
    excluded = excluded_frame(
        left_out, [reasons.get(name) or "not used by the champion's split" for name in left_out]
    )
    return Split(SPLIT_NAME, frame, excluded, {}, None)


def _counts(split: Split) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for part in (OLD, NEW):
        rows = split.frame[split.frame["image_id"].str.startswith(f"{part}/")]
        excluded = split.excluded[split.excluded["image_id"].str.startswith(f"{part}/")]
        counts[part] = {
            **{side: int((rows["split"] == side).sum()) for side in ("train", "validation", "test")},
            **{str(reason): int(n) for reason, n in excluded["reason"].value_counts().items()},
        }
    return counts
