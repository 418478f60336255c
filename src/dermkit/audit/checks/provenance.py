"""DA060 and DA061: columns that leak the label, and what the licences allow."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dermkit.audit.checks.finding import (
    AuditInput,
    Finding,
    NotApplicable,
    Outcome,
    Severity,
    image_table,
    images_per_class,
)
from dermkit.audit.checks.licences import Licence, LicenceVerdict, read_licences, strictest
from dermkit.audit.checks.text import join_words, plural


@dataclass(frozen=True)
class LeakingColumn:
    """A column that leaks the label. pattern: regular expression of the full name in lower case. reveals: its content.

    is_label: the column is itself a label, so that an import has to read it, or one like it.
    """

    pattern: str
    reveals: str
    is_label: bool = False


LEAKING_COLUMNS = (
    LeakingColumn(
        r"dx_type|diagnosis_confirm_type|confirm(ation)?_type|diagnosis_method", "how the diagnosis was confirmed"
    ),
    LeakingColumn(r"concomitant_biopsy|biops(y|ied)|biopsed|histopath\w*", "whether the lesion was cut out"),
    LeakingColumn(
        r"mel_(thick_mm|mitotic_index|ulcer|class|type)|breslow\w*|nevus_type", "what only its class has"
    ),
    LeakingColumn(r"tbp_lv_dnn_lesion_confidence", "how sure another model was"),
    LeakingColumn(r"melanocytic", "whether melanocytes make up the lesion, a part of its diagnosis"),
    LeakingColumn(r"benign_malignant|malignan(t|cy)|target", "whether the lesion is malignant", is_label=True),
    LeakingColumn(r"diagnosis(_\d|_full)?|diagnostic|iddx_(full|\d)|dx", "the diagnosis", is_label=True),
)
"""Columns of HAM10000, ISIC 2018 to 2024, the ISIC Archive, PAD-UFES-20, and names like theirs."""


def da060_label_leaking_columns(audit_input: AuditInput) -> Outcome:
    """Columns that reveal the label

    Threshold: a column whose name is known to do so (dx_type, diagnosis_confirm_type, concomitant_biopsy, ...).
    Severity: warning if its values are in the manifest, note if it only lies in the source.
    Effect: A model that is given such a column knows the answer; its accuracy says nothing about images.
    """
    read_columns, used_columns = _source_columns(audit_input.dataset.notes)
    if not read_columns:
        return NotApplicable("the import kept no column names")
    candidates = [(name, _find_leaking_column(name)) for name in read_columns]
    leaks = [
        (name, leak, name in used_columns)
        for name, leak in candidates
        if leak and not (leak.is_label and name in used_columns)
    ]
    if not leaks:
        return None
    leaks_in_manifest = [entry for entry in leaks if entry[2]]
    column_texts = [f"{name} ({leak.reveals})" for name, leak, _ in leaks_in_manifest or leaks]
    sentence = (
        f"The manifest holds columns that reveal the label: {join_words(column_texts)}."
        if leaks_in_manifest
        else f"Beside the label the source's tables hold {join_words(column_texts)}; the manifest left "
        f"that out, as a model must."
    )
    n = len(audit_input.frame)
    rows = [{"column": name, "reveals": leak.reveals, "in_manifest": is_used} for name, leak, is_used in leaks]
    return Finding(
        severity=Severity.WARNING if leaks_in_manifest else Severity.NOTE,
        n=n,
        sentence=sentence,
        rows=pd.DataFrame(rows),
        kind="table",
        per_class=images_per_class(audit_input, np.arange(n)),
        figures={"columns": rows},
    )


def da061_licence_forbids(audit_input: AuditInput) -> Outcome:
    """Licences forbid the planned use, or are unknown

    Threshold: an image whose licence forbids the planned use, may forbid it, or is not known.
    Severity: warning if forbidden for any image, else note.
    Effect: None on the accuracy; but results from these images may not be used as planned.
    """
    texts = audit_input.frame["licence"]
    licences_by_text = {str(text): read_licences(str(text)) for text in texts.unique()}
    verdicts = texts.map(
        {text: strictest(licences, audit_input.use) for text, licences in licences_by_text.items()}
    ).to_numpy()
    is_questionable = verdicts != "allowed"
    if not is_questionable.any():
        return None
    rows = np.flatnonzero(is_questionable)
    rows = rows[np.lexsort((rows, verdicts[rows] != "forbidden"))]
    table = image_table(audit_input, rows).assign(licence=texts.to_numpy()[rows], verdict=verdicts[rows])
    counts = _licence_counts(texts, licences_by_text, audit_input)
    forbidden = bool((verdicts == "forbidden").any())
    return Finding(
        severity=Severity.WARNING if forbidden else Severity.NOTE, n=len(rows),
        sentence=_licence_sentence(audit_input, counts), rows=table, per_class=images_per_class(audit_input, rows),
        figures={"use": audit_input.use, "licences": counts},
    )  # fmt: skip


def _source_columns(notes: Mapping[str, Any]) -> tuple[list[str], set[str]]:
    """Return the names of the columns that an import read, and of those whose values are in the manifest.

    notes: entries of dataset.json, of which `columns` and `columns_used` are lists of names.
    """
    read_columns, used_columns = (
        [str(name) for name in notes.get(key) or ()] for key in ("columns", "columns_used")
    )
    return list(dict.fromkeys([*read_columns, *used_columns])), set(used_columns)


def _find_leaking_column(name: str) -> LeakingColumn | None:
    normalised_name = re.sub(r"[\s\-.]+", "_", name.strip().casefold())
    return next((column for column in LEAKING_COLUMNS if re.fullmatch(column.pattern, normalised_name)), None)


def _licence_counts(
    texts: "pd.Series[str]", licences_by_text: Mapping[str, Sequence[Licence]], audit_input: AuditInput
) -> list[dict[str, Any]]:
    """Return licences, images, verdict and conditions, the forbidden ones first."""
    name_by_text = {
        text: " or ".join(licence.name for licence in licences) for text, licences in licences_by_text.items()
    }
    verdicts: dict[str, tuple[LicenceVerdict, str]] = {}
    for text, licences in licences_by_text.items():
        conditions = dict.fromkeys(
            clause for licence in licences for clause in licence.condition.split("; ") if clause
        )
        verdicts[name_by_text[text]] = (strictest(licences, audit_input.use), "; ".join(conditions))
    counts = texts.map(name_by_text).value_counts()
    rows = [
        {"licence": name, "images": int(counts[name]), "verdict": use_verdict, "condition": condition}
        for name, (use_verdict, condition) in verdicts.items()
    ]
    order = ("forbidden", "unknown", "allowed")
    return sorted(rows, key=lambda row: (order.index(row["verdict"]), -row["images"]))


def _licence_sentence(audit_input: AuditInput, counts: Sequence[Mapping[str, Any]]) -> str:
    licence_texts = []
    for row in counts:
        has_several = " or " in row["licence"]
        verdict_texts = {
            "forbidden": "may forbid it" if has_several else "forbids it",
            "unknown": "none is recorded",
            "allowed": "allows it",
        }
        name = "no known licence" if row["licence"] == "unknown" else row["licence"]
        licence_texts.append(f"{name} on {plural(row['images'], 'image')} ({verdict_texts[row['verdict']]})")
    return f"Planned use, {audit_input.use}: {join_words(licence_texts)}."
