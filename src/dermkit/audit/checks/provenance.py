"""DA060 and DA061: what the tables of the source give away, and what its licences allow."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dermkit.audit.checks.finding import Finding, NotApplicable, Outcome, Severity, Subject, image_rows, per_class
from dermkit.audit.checks.licences import Licence, Verdict, read_licences, verdict
from dermkit.audit.checks.text import counted, listed


@dataclass(frozen=True)
class Leaking:
    """A column name that gives the label away. pattern: of the whole name in small letters. tells: what is in it.

    is_label: the column is itself a label, so that an import has to read it, or one like it.
    """

    pattern: str
    tells: str
    is_label: bool = False


LEAKING = (
    Leaking(
        r"dx_type|diagnosis_confirm_type|confirm(ation)?_type|diagnosis_method", "how the diagnosis was confirmed"
    ),
    Leaking(r"concomitant_biopsy|biops(y|ied)|biopsed|histopath\w*", "whether the lesion was cut out"),
    Leaking(r"mel_(thick_mm|mitotic_index|ulcer|class|type)|breslow\w*|nevus_type", "what only its class has"),
    Leaking(r"tbp_lv_dnn_lesion_confidence", "how sure another model was"),
    Leaking(r"melanocytic", "whether melanocytes make up the lesion, a part of its diagnosis"),
    Leaking(r"benign_malignant|malignan(t|cy)|target", "whether the lesion is malignant", is_label=True),
    Leaking(r"diagnosis(_\d|_full)?|diagnostic|iddx_(full|\d)|dx", "the diagnosis", is_label=True),
)
"""Columns of HAM10000, ISIC 2018 to 2024, the ISIC Archive, PAD-UFES-20, and names like theirs."""


def da060_label_leaking_columns(subject: Subject) -> Outcome:
    """Columns of the source give the label away

    Threshold: a column whose name is known to do so (dx_type, diagnosis_confirm_type, concomitant_biopsy, ...).
    Severity: warning if its values are in the manifest, note if it only lies in the source.
    Effect: A model that is given such a column knows the answer; its accuracy says nothing about pictures.
    """
    read, used = _columns(subject.dataset.notes.get("columns"))
    if not read:
        return NotApplicable("the import kept no column names")
    known = [(name, _leaking(name)) for name in read]
    found = [(name, leak, name in used) for name, leak in known if leak and not (leak.is_label and name in used)]
    if not found:
        return None
    reached = [item for item in found if item[2]]
    parts = [f"{name} ({leak.tells})" for name, leak, _ in reached or found]
    sentence = (
        f"In the manifest stands what gives the label away: {listed(parts)}."
        if reached
        else f"Beside the label the source's tables hold {listed(parts)}; the manifest left that out, as a model must."
    )
    n = len(subject.frame)
    rows = [{"column": name, "tells": leak.tells, "in_manifest": is_used} for name, leak, is_used in found]
    return Finding(
        severity=Severity.WARNING if reached else Severity.NOTE, n=n, sentence=sentence, rows=pd.DataFrame(rows),
        kind="table", per_class=per_class(subject, np.arange(n)), figures={"columns": rows},
    )  # fmt: skip


def da061_licence_forbids(subject: Subject) -> Outcome:
    """Licences forbid the planned use, or are unknown

    Threshold: an image whose licence forbids the planned use, may forbid it, or is not known.
    Severity: warning if forbidden for any image, else note.
    Effect: None on the figure; but a result that rests on these images may not be used as planned.
    """
    texts = subject.frame["licence"]
    named = {str(text): read_licences(str(text)) for text in texts.unique()}
    verdicts = texts.map({text: verdict(found, subject.use) for text, found in named.items()}).to_numpy()
    asked = verdicts != "allowed"
    if not asked.any():
        return None
    rows = np.flatnonzero(asked)
    rows = rows[np.lexsort((rows, verdicts[rows] != "forbidden"))]
    table = image_rows(subject, rows).assign(licence=texts.to_numpy()[rows], verdict=verdicts[rows])
    counts = _licence_counts(texts, named, subject)
    forbidden = bool((verdicts == "forbidden").any())
    return Finding(
        severity=Severity.WARNING if forbidden else Severity.NOTE, n=len(rows),
        sentence=_licence_sentence(subject, counts), rows=table, per_class=per_class(subject, rows),
        figures={"use": subject.use, "licences": counts},
    )  # fmt: skip


def _columns(noted: Any) -> tuple[list[str], set[str]]:
    """Return the names of the columns that an import read, and those whose values it kept.

    noted: a list of names, or an object with `read` and `used` (a list, or column -> manifest column).
    """
    body: Mapping[str, Any] = noted if isinstance(noted, Mapping) else {"read": noted}
    read, used = ([str(name) for name in body.get(key) or ()] for key in ("read", "used"))
    return list(dict.fromkeys([*read, *used])), set(used)


def _leaking(name: str) -> Leaking | None:
    plain = re.sub(r"[\s\-.]+", "_", name.strip().casefold())
    return next((item for item in LEAKING if re.fullmatch(item.pattern, plain)), None)


def _licence_counts(
    texts: "pd.Series[str]", named: Mapping[str, Sequence[Licence]], subject: Subject
) -> list[dict[str, Any]]:
    """Return licences, images, verdict and conditions, the forbidden ones first."""
    words = {text: " or ".join(item.name for item in found) for text, found in named.items()}
    verdicts: dict[str, tuple[Verdict, str]] = {}
    for text, found in named.items():
        conditions = dict.fromkeys(part for item in found for part in item.condition.split("; ") if part)
        verdicts[words[text]] = (verdict(found, subject.use), "; ".join(conditions))
    counts = texts.map(words).value_counts()
    rows = [
        {"licence": name, "images": int(counts[name]), "verdict": said, "condition": condition}
        for name, (said, condition) in verdicts.items()
    ]
    order = ("forbidden", "unknown", "allowed")
    return sorted(rows, key=lambda row: (order.index(row["verdict"]), -row["images"]))


def _licence_sentence(subject: Subject, counts: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for row in counts:
        several = " or " in row["licence"]
        said = {
            "forbidden": "may forbid it" if several else "forbids it",
            "unknown": "nobody says",
            "allowed": "allows it",
        }
        name = "no known licence" if row["licence"] == "unknown" else row["licence"]
        parts.append(f"{name} on {counted(row['images'], 'image')} ({said[row['verdict']]})")
    return f"Planned use, {subject.use}: {listed(parts)}."
