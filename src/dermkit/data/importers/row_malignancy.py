"""Malignancy that a table says row by row, in columns beside the label, and what it means for the classes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

import pandas as pd

from dermkit.data.diagnoses import is_known_label, with_given_malignancy
from dermkit.data.importers.csv_tables import TextTable, find_column
from dermkit.data.importers.records import Note
from dermkit.data.importers.table_rows import MALIGNANCY, TableRows, with_column
from dermkit.data.manifest import LesionClass, Malignancy
from dermkit.data.unknown import or_unknown

WORD_COLUMNS = ("diagnosis_1", "benign_malignant", "iddx_1", "three_partition_label", "malignancy", "malignant")
"""Columns of the ISIC Archive and challenges, of Fitzpatrick17k and of DDI; the first known value of a row is used."""

BINARY_COLUMNS = ("target",)
"""Columns of ISIC 2020 and 2024 in which 1 is malignant; in other tables the name may mean anything."""

_WORDS: Mapping[str, Malignancy] = MappingProxyType(
    {"benign": "benign", "malignant": "malignant", "indeterminate": "indeterminate", "non-neoplastic": "benign"}
)
_BINARY: Mapping[str, Malignancy] = MappingProxyType(
    {"0": "benign", "0.0": "benign", "false": "benign", "1": "malignant", "1.0": "malignant", "true": "malignant"}
)
_ISIC_COLUMNS = ("isic_id", "image_name")


def with_row_malignancy(table_rows: TableRows, table: TextTable) -> TableRows:
    """Return the rows with the malignancy that the table's own columns say, unchanged if it has no such column."""
    columns = [name for known in WORD_COLUMNS if (name := find_column(table.columns, known))]
    if any(find_column(table.columns, name) for name in _ISIC_COLUMNS):
        columns += [name for known in BINARY_COLUMNS if (name := find_column(table.columns, known))]
    columns = [name for name in columns if name in table.frame]
    if not columns:
        return table_rows
    malignancy = pd.Series([""] * len(table.row_numbers), dtype="str")
    for name in columns:
        has_codes = not {or_unknown(value).strip().casefold() for value in table.frame[name].unique()} <= {
            "",
            *_BINARY,
        }
        values = table.frame[name].map(_malignancy_of_word if has_codes else _malignancy_of)
        malignancy = malignancy.where(malignancy != "", values.reset_index(drop=True))
    return with_column(table_rows, MALIGNANCY, malignancy, ())


def _malignancy_of_word(value: str) -> str:
    """Return the malignancy of a word; a number beside others than 0 and 1 is a code or a score, and says nothing."""
    return "" if or_unknown(value).strip().casefold() in _BINARY else _malignancy_of(value)


def _malignancy_of(value: str) -> str:
    text = or_unknown(value).strip().casefold()
    if text.startswith("indeterminate"):  # "indeterminate/benign" of older downloads
        return "indeterminate"
    return {**_WORDS, **_BINARY}.get(text, "")


class ClassMalignancy(NamedTuple):
    """Classes with the malignancy of their rows, the names of those that rows decided, and notes on contradictions."""

    classes: tuple[LesionClass, ...]
    decided: tuple[str, ...]
    notes: tuple[Note, ...]


def decide_classes(
    classes: Sequence[LesionClass],
    frame: pd.DataFrame,
    malignancy_of_path: Mapping[str, str],
    *,
    given: Mapping[str, str],
) -> ClassMalignancy:
    """Return the classes with the malignancy that a person gave, else that of their rows, else that of the table.

    frame: manifest rows. malignancy_of_path: what the table says of its images, if anything. given: class -> one of
    `MALIGNANCIES`. Of two classes of which one is given as malignant, the other is benign if nothing is known of it.
    """
    values = [malignancy_of_path.get(path, "") for path in frame["path"]]
    row_malignancies = pd.Series(values, index=frame.index, dtype="str")
    decision = _decide_by_rows([c for c in classes if c.name not in given], frame["label"], row_malignancies)
    of_rows = {c.name: c.malignancy for c in decision.classes}
    by_rows = tuple(replace(c, malignancy=of_rows.get(c.name, c.malignancy)) for c in classes)
    return decision._replace(classes=with_given_malignancy(by_rows, given, decision.decided))


def _decide_by_rows(
    classes: Sequence[LesionClass], labels: "pd.Series[str]", malignancies: "pd.Series[str]"
) -> ClassMalignancy:
    """Give every class the malignancy that all of its rows say.

    labels, malignancies: (n,) of each image, "" = unknown. Where rows of one class contradict each other, a class that
    the table of diagnoses knows stays as it is, and any other one gets what most rows say; a note tells the counts.
    """
    decided: list[LesionClass] = []
    names: list[str] = []
    notes: list[Note] = []
    is_known = (malignancies != "").to_numpy(dtype=bool)
    rows_by_label = malignancies[is_known].groupby(labels[is_known])
    counts_of = {str(name): Counter(values.tolist()) for name, values in rows_by_label}
    for lesion_class in classes:
        counts = counts_of.get(lesion_class.name, Counter())
        malignancy = _decide(lesion_class, counts)
        if len(counts) > 1:
            notes.append(_contradiction_note(lesion_class.name, counts, malignancy or lesion_class.malignancy))
        names += [lesion_class.name] if malignancy else []
        decided.append(replace(lesion_class, malignancy=malignancy) if malignancy else lesion_class)
    return ClassMalignancy(tuple(decided), tuple(names), tuple(notes))


def _decide(lesion_class: LesionClass, counts: Counter[str]) -> Malignancy | None:
    ranked = counts.most_common(2)
    if not ranked or (len(ranked) > 1 and (is_known_label(lesion_class.name) or ranked[0][1] == ranked[1][1])):
        return None
    return _WORDS[ranked[0][0]]


def _contradiction_note(name: str, counts: Counter[str], malignancy: str) -> Note:
    counts_text = ", ".join(f"{n:,} {word}" for word, n in counts.most_common())
    text = (
        f"Rows of class {name} contradict each other on malignancy ({counts_text}); it counts as {malignancy}: look at "
        f'them, or set it with --malignancy "{name}=benign|malignant|indeterminate".'
    )
    return Note("class_contradiction", text, sum(counts.values()))
