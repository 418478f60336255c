"""DA050 to DA053: artefacts that one class shows more often than the rest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import fisher_exact

from dermkit.audit.checks.finding import (
    Finding,
    NotApplicable,
    Outcome,
    Severity,
    Subject,
    image_rows,
    per_class,
    share_of_alpha,
)
from dermkit.audit.checks.text import share_figures, share_text
from dermkit.audit.scan.artefacts import PRESENT
from dermkit.metrics.stats.power import effective_size

DIFFERENCE = 0.10
"""Least difference of prevalence between a class and the rest that is warned of: a model that uses nothing else gains
half of it in balanced accuracy."""
NOTED = 0.05
"""Least difference that is noted."""
FEWEST_UNITS = 10
"""Lesions (or what else belongs together) that a class and the rest must have, those with many photographs counted
for what they leave of the others: with two that hold nearly all photographs, the test finds what is chance."""

_NAMED = 9


def da050_hair(subject: Subject) -> Outcome:
    """Hair goes with a class

    Threshold: prevalence (score >= 0.10: dark lines of 0.4 sides together) of a class differs from the rest by 10
    points, and Fisher's exact test, lesions as clusters, passes at 0.05 shared among all statistical tests and classes.
    Severity: warning; note from 5 points.
    Effect: A model can score hair in place of the lesion; its accuracy would not hold where hair is spread otherwise.
    """
    return _associated(subject, "hair", "Hair")


def da051_ruler(subject: Subject) -> Outcome:
    """A ruler goes with a class

    Threshold: prevalence (score >= 0.50: five evenly spaced marks in a row) of a class differs from the rest by 10
    points, and Fisher's exact test, lesions as clusters, passes at 0.05 shared among all statistical tests and classes.
    Severity: warning; note from 5 points.
    Effect: Suspicious lesions are measured more often; a model that sees the ruler knows what a physician suspected.
    """
    return _associated(subject, "ruler", "A ruler")


def da052_ink(subject: Subject) -> Outcome:
    """Ink goes with a class

    Threshold: prevalence (score >= 0.06: 0.06 % of the picture blue, violet or green away from its middle) of a class
    differs from the rest by 10 points, and Fisher's exact test, lesions as clusters, passes at 0.05 shared among all
    statistical tests and classes.
    Severity: warning; note from 5 points.
    Effect: Pen marks around a lesion raise a net's melanoma score; benign lesions that are marked will be misread.
    """
    return _associated(subject, "ink", "Ink")


def da053_dark_corners(subject: Subject) -> Outcome:
    """Dark corners go with a class

    Threshold: prevalence (score >= 0.50: half of two corners black) of a class differs from the rest by 10 points, and
    Fisher's exact test, lesions as clusters, passes at 0.05 shared among all statistical tests and classes.
    Severity: warning; note from 5 points.
    Effect: Dark corners tell the camera or archive of a picture; a model that uses them has not looked at the lesion.
    """
    return _associated(subject, "dark_corner", "Dark corners")


@dataclass(frozen=True, eq=False)
class _Contrast:
    """A class against the rest. with_it, of: images; the same of the rest.

    p: of Fisher's exact test, all counts divided by the design effect.
    """

    name: str
    with_it: int
    of: int
    rest_with: int
    rest_of: int
    p: float

    @property
    def difference(self) -> float:
        return self.with_it / self.of - self.rest_with / self.rest_of


def _associated(subject: Subject, artefact: str, words: str) -> Outcome:
    if artefact not in subject.measures or subject.measures[artefact].isna().all():
        return NotApplicable(f"{artefact.replace('_', ' ')}: not measured, or the images are too small to tell")
    score = subject.measures[artefact].to_numpy(np.float64)
    known = np.isfinite(score)
    shown = known & (score >= PRESENT[artefact])
    contrasts, tested = _contrasts(subject, known, shown)
    if not tested:
        return NotApplicable(
            f"no class and its rest have {FEWEST_UNITS} lesions each, or a few of them have nearly all photographs"
        )
    alpha = share_of_alpha(tested)
    sure = [item for item in contrasts if item.p < alpha and abs(item.difference) >= NOTED]
    if not sure:
        return None
    worst = max(sure, key=lambda item: abs(item.difference))
    rows = np.flatnonzero(shown)
    shares = {name: shown[mine].sum() / max(1, known[mine].sum()) for name, mine in _classes(subject)}
    order = subject.frame["label"].map(shares).to_numpy(np.float64)[rows]
    rows = rows[np.lexsort((-score[rows], -order))]
    return Finding(
        severity=Severity.WARNING if abs(worst.difference) >= DIFFERENCE else Severity.NOTE, n=len(rows),
        sentence=_sentence(subject, words, worst, known, shown), rows=image_rows(subject, rows, score=score[rows]),
        per_class=per_class(subject, rows), figures=_figures(subject, artefact, contrasts, known, shown, alpha),
    )  # fmt: skip


def _classes(subject: Subject) -> list[tuple[str, NDArray[np.bool_]]]:
    label = subject.frame["label"].to_numpy()
    return [
        (name, np.asarray(label == name, np.bool_))
        for name in subject.dataset.class_names
        if (label == name).any()
    ]


def _contrasts(
    subject: Subject, known: NDArray[np.bool_], shown: NDArray[np.bool_]
) -> tuple[list[_Contrast], int]:
    """Return every class against the rest, and how many tests that took: of two classes one is the other's mirror."""
    units, classes = subject.units, _classes(subject)
    pooled = _design_effect(units, shown, [mine & known for _, mine in classes])
    found = []
    for name, mine in classes:
        sides = (mine & known, ~mine & known)
        if min(effective_size(units[side]) for side in sides) < FEWEST_UNITS:
            continue
        table = np.zeros((2, 2), np.int64)
        for row, side in enumerate(sides):
            effect = max(pooled, _design_effect(units, shown, [side]))
            table[row] = np.rint([(shown & side).sum() / effect, (~shown & side).sum() / effect])
        contrast = _Contrast(
            name,
            with_it=int((shown & mine).sum()),
            of=int(sides[0].sum()),
            rest_with=int((shown & ~mine).sum()),
            rest_of=int(sides[1].sum()),
            p=float(fisher_exact(table).pvalue),
        )
        found.append(contrast)
    return found, 1 if len(found) == 2 == len(classes) else len(found)


def _design_effect(
    units: NDArray[np.int64], shown: NDArray[np.bool_], groups: Sequence[NDArray[np.bool_]]
) -> float:
    """Return how many photographs are worth one, because those of a lesion are alike; at least 1.

    The variance of the prevalence by lesion over that of as many independent photographs, within the groups; where
    that is 0 / 0 the photographs of a lesion count as one. Rao and Scott, Biometrics 48 (1992), 577.
    """
    own = independent = squares = total = 0.0
    for group in groups:
        if not group.any():
            continue
        _, unit = np.unique(units[group], return_inverse=True)
        size = np.bincount(unit)
        share = float(shown[group].mean())
        own += float(np.square(np.bincount(unit, shown[group]) - share * size).sum())
        independent += len(unit) * share * (1 - share)
        squares += float(np.square(size).sum())
        total += len(unit)
    if independent == 0:
        return squares / total if total else 1.0
    return max(1.0, own / independent)


def _sentence(
    subject: Subject, words: str, worst: _Contrast, known: NDArray[np.bool_], shown: NDArray[np.bool_]
) -> str:
    classes = _classes(subject)
    rest = next((name for name, _ in classes if name != worst.name), "") if len(classes) == 2 else "the rest"
    verb = "show" if words.endswith("s") else "shows"
    text = (
        f"{words} {verb} in {share_text(worst.with_it, worst.of)} of {worst.of:,} images of {worst.name} and in "
        f"{share_text(worst.rest_with, worst.rest_of)} of {worst.rest_of:,} of {rest}: {100 * worst.difference:+.0f} "
        f"points (Fisher's exact test, lesions as clusters, p = {worst.p:.1g})."
    )
    if len(classes) == 2:
        return text
    each = [
        f"{name} {share_text(int(shown[mine].sum()), int(known[mine].sum()))} of {int(known[mine].sum()):,}"
        for name, mine in classes[:_NAMED]
    ]
    return f"{text} Per class: {'; '.join(each)}."


def _figures(
    subject: Subject, artefact: str, contrasts: list[_Contrast], known: NDArray[np.bool_],
    shown: NDArray[np.bool_], alpha: float,
) -> dict[str, Any]:  # fmt: skip
    return {
        "artefact": artefact,
        "present_from_score": PRESENT[artefact],
        "prevalence": {
            name: share_figures(int(shown[mine].sum()), int(known[mine].sum())) for name, mine in _classes(subject)
        },
        "against_the_rest": {item.name: {"difference": item.difference, "p": item.p} for item in contrasts},
        "alpha": alpha,
    }
