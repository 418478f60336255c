"""Warnings about rows that do not fit each other: labels, splits, copies, ids. None ends an import."""

from collections.abc import Iterator, Sequence

import pandas as pd

from dermkit.data.diagnoses import malignancy_question, unknown_malignancy
from dermkit.data.importers.earlier import has_outdated_splits
from dermkit.data.importers.records import Note
from dermkit.data.manifest import Dataset
from dermkit.data.small_classes import drop_or_merge_advice
from dermkit.errors import first_of

_N_EXAMPLES = 3


def row_warnings(dataset: Dataset) -> Iterator[Note]:
    """Yield what is wrong with the rows of a data set that is imported."""
    frame = dataset.manifest
    unknown_classes = unknown_malignancy(dataset.classes, dataset.notes["malignancy_decided"])
    if question := malignancy_question(dataset.classes, unknown_classes):
        yield Note(
            "unknown_class",
            f"{question[0].upper()}{question[1:]}.",
            int(frame["label"].isin(unknown_classes).sum()),
        )
    if title := dataset.notes.get("title"):
        yield Note("known_set", f"Looks like {title}, by its content ({dataset.notes['known']}).", len(frame))
    counts = frame["label"].value_counts()
    if len(counts) == 1:
        text = (
            f"All images are of one class, {counts.index[0]}: nothing can be trained or evaluated on them alone."
        )
        yield Note("one_class", text, len(frame))
    for name in sorted(counts.index[counts == 1]):
        text = f"Class {name} has one image, so it cannot be split; {drop_or_merge_advice([name])}."
        yield Note("one_image_class", text, 1)
    yield from _inconsistency_note(frame, "lesion_id", "label", "lesion_labels", "One lesion under two labels")
    yield from _inconsistency_note(
        frame, "pixel_sha256", "label", "contradictory_copies", "Identical pixels under two labels"
    )
    yield from _inconsistency_note(
        frame, "pixel_sha256", "given_split", "copies_across", "Identical pixels in two given splits"
    )
    repeated_ids = frame[(frame["isic_id"] != "") & frame["isic_id"].duplicated(keep=False)]
    # Rows with the same pixels are duplicates, noted above.
    repeated_ids = repeated_ids[repeated_ids.groupby("isic_id")["pixel_sha256"].transform("nunique") > 1]
    yield from _inconsistency_note(repeated_ids, "isic_id", "label", "isic_labels", "One ISIC id under two labels")
    yield from _inconsistency_note(
        repeated_ids, "isic_id", "given_split", "isic_across", "One ISIC id in two given splits"
    )
    yield from _inconsistency_note(
        frame, "lesion_id", "given_split", "lesion_across", "One lesion in two given splits"
    )
    is_duplicate = frame["pixel_sha256"].duplicated(keep=False)
    if is_duplicate.any():
        yield Note("copies", "Images with identical pixels, whatever their label.", int(is_duplicate.sum()))
    if not (frame["lesion_id"].any() or frame["patient_id"].any()):
        text = "No lesion or patient ids: photographs of one lesion cannot be kept in one split."
        yield Note("no_groups", text, len(frame))
    if has_outdated_splits(dataset.folder, frame):
        text = "The folder splits/ was made from an earlier manifest of this folder: make the splits again."
        yield Note("old_splits", text, 0)


def _inconsistency_note(frame: pd.DataFrame, id_column: str, value: str, code: str, text: str) -> Iterator[Note]:
    """Note the images that share a known `id_column` and differ in `value`."""
    # Keep only repeated ids: grouping a million unique ones takes minutes and a gigabyte.
    shared_rows = frame[(frame[id_column] != "") & frame[id_column].duplicated(keep=False)]
    is_inconsistent = shared_rows.groupby(id_column)[value].transform("nunique") > 1
    inconsistent_rows = shared_rows[is_inconsistent]
    if inconsistent_rows.empty:
        return
    ids = inconsistent_rows[id_column].drop_duplicates()
    examples = "; ".join(
        _join_paths(inconsistent_rows.loc[inconsistent_rows[id_column] == group_id, "path"].tolist())
        for group_id in ids[:_N_EXAMPLES]
    )
    overflow = f" (and {len(ids) - _N_EXAMPLES} more)" if len(ids) > _N_EXAMPLES else ""
    yield Note(code, f"{text}, such as {examples}{overflow}.", len(inconsistent_rows))


def _join_paths(paths: Sequence[str]) -> str:
    """Return a text of the first paths of images that belong together, and the number of others."""
    return first_of(paths, _N_EXAMPLES, " = ")
