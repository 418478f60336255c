"""Which images several runs have in common: ids of tables without a data set, and what is said of shared images."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import pandas as pd

from dermkit.data.importers.match_files import normalised_stem
from dermkit.errors import first_of
from dermkit.files import sha256_file
from dermkit.images.formats import IMAGE_SUFFIXES
from dermkit.runs.folder import RunFolder
from dermkit.runs.layout import FOREIGN, OLD_FOREIGN_FILE

MAX_FILES_READ = 50_000
"""Files that a comparison of runs of several data sets reads to pair them: some minutes on a slow drive."""


def is_without_dataset(folder: Path) -> bool:
    """Return whether a folder is an evaluation of a table without a data set: its image ids are all that it names."""
    is_foreign = any((folder / name).is_file() for name in (FOREIGN.name, OLD_FOREIGN_FILE))
    return is_foreign and not RunFolder(folder).run_json.get("dataset", {}).get("name")


def common_ids(id_columns: Sequence["pd.Series[str]"]) -> list[dict[str, str]]:
    """Return for each table image id -> the id that it is paired by.

    Ids stay as they are, except where file names without folder and ending pair more images: a/ISIC_1.jpg of one
    table is then isic_1 of the other. Names that are not unique in a table are no ids.
    """
    raw_ids = [{text: text for text in column} for column in id_columns]
    stems = [{text: normalised_stem(text, IMAGE_SUFFIXES) for text in ids} for ids in raw_ids]
    is_unique = all(len(set(names.values())) == len(names) for names in stems)
    return stems if is_unique and _n_common(stems) > _n_common(raw_ids) else raw_ids


def _n_common(ids: Sequence[Mapping[str, str]]) -> int:
    return len(set.intersection(*(set(names.values()) for names in ids)))


def ids_of_equal_files(files_by_dataset: Sequence[Mapping[str, Path | None]]) -> list[dict[str, str]] | None:
    """Return for each data set image id -> an id that equal files share, None if there are no equal files.

    files_by_dataset: image id -> file, None where it may not be read. The first data set keeps its ids. A file that
    is several images of one data set is paired with none, nor is one that cannot be read. Nothing is read of more than
    `MAX_FILES_READ` files.
    """
    if not all(files_by_dataset) or sum(map(len, files_by_dataset)) > MAX_FILES_READ:
        return None
    id_by_hash: dict[str, str] = {}
    ids: list[dict[str, str]] = []
    for number, files in enumerate(files_by_dataset):
        hashes = {image_id: _file_hash(path) for image_id, path in files.items()}
        counts = Counter(hashes.values())
        names = {
            image_id: id_by_hash.get(file_hash, "") if counts[file_hash] == 1 else ""
            for image_id, file_hash in hashes.items()
        }
        ids.append({image_id: name or _own_id(image_id, number) for image_id, name in names.items()})
        for image_id, file_hash in hashes.items():
            if file_hash and counts[file_hash] == 1:
                id_by_hash.setdefault(file_hash, _own_id(image_id, number))
    return (
        ids if any(set(first.values()) & set(second.values()) for first, second in combinations(ids, 2)) else None
    )


def _own_id(image_id: str, number: int) -> str:
    return image_id if number == 0 else f"{image_id} (of data set {number + 1})"


def _file_hash(path: Path | None) -> str:
    try:
        return "" if path is None else sha256_file(path)
    except OSError:
        return ""


def file_pairing_note(paired_images: Sequence[tuple[str, int]]) -> str:
    """Return how runs of several data sets were paired. paired_images: split and images of each tested pair."""
    numbers = _numbers_text(paired_images) or "none"
    return f"The runs are of different data sets: images were paired where their files are equal ({numbers})."


def _numbers_text(paired_images: Sequence[tuple[str, int]]) -> str:
    return ", ".join(dict.fromkeys(f"{n:,} on {split}" for split, n in paired_images))


def describe_shared_images(n_images: Mapping[str, int], n_shared: int, *, is_same: bool, is_paired: bool) -> str:
    """Return what is said of the images of one split.

    n_images: images that each entry scored. n_shared: those that all scored. is_paired: whether any two entries were
    tested image by image.
    """
    numbers = ", ".join(f"{n:,}" for n in n_images.values())
    if is_same:
        return f"the same {n_shared:,} images" if len(n_images) > 1 else f"{n_shared:,} images"
    if not is_paired:
        return f"NOT the same images ({numbers}): not comparable"
    shared_text = f"{n_shared:,} images were scored by " + (
        "both" if len(n_images) == 2 else f"all {len(n_images)}"
    )
    return (
        f"NOT the same images: {shared_text}, of {numbers}. Each one's own figures are of its own images; "
        "differences are tested on the images that two have in common"
    )


def pairing_note(paired_images: Sequence[tuple[str, int]], unnamed_names: Sequence[str], *, is_mixed: bool) -> str:
    """Return how tables without a data set were paired.

    paired_images: split and images of each tested pair. is_mixed: whether runs of a data set are compared too.
    """
    if not paired_images:
        return ""
    subject = f"No data set is named by {first_of(unnamed_names, 3)}" if is_mixed else "No table names a data set"
    return (
        f"{subject}: images were paired by image id, and their labels agree "
        f"({_numbers_text(paired_images)}). "
        "Whether equal ids are equal pictures is not known."
    )
