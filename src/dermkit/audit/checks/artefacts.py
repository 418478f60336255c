"""DA050 to DA053: artefacts that one class shows more often than the rest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import fisher_exact

from dermkit.audit.checks.finding import (
    AuditInput,
    Finding,
    NotApplicable,
    Outcome,
    Severity,
    alpha_per_test,
    image_table,
    images_per_class,
)
from dermkit.audit.checks.text import proportion_json, proportion_text
from dermkit.audit.scan.artefacts import PRESENCE_THRESHOLDS
from dermkit.metrics.stats.power import effective_sample_size

WARNING_DIFFERENCE = 0.10
"""Difference in prevalence from which a warning is raised: a model that used the artefact alone would gain half of it
in balanced accuracy."""
NOTE_DIFFERENCE = 0.05
"""Difference in prevalence from which a note is made."""
_MIN_GROUPS = 10
"""Effective number of groups (lesion, patient, duplicates) that a class and the rest need: if a few groups hold
nearly all photographs, Fisher's test rejects by chance."""

_MAX_CLASSES = 9


def da050_hair(audit_input: AuditInput) -> Outcome:
    """Hair goes with a class

    Threshold: prevalence (score >= 0.10: dark lines of 0.4 sides together) of a class differs from the rest by 10
    points, and Fisher's exact test, lesions as clusters, passes at 0.05 shared among all statistical tests and classes.
    Severity: warning; note from 5 points.
    Effect: A model can use hair in place of the lesion; its accuracy would not hold where hair is distributed
    differently.
    """
    return _artefact_association(audit_input, "hair", "Hair")


def da051_ruler(audit_input: AuditInput) -> Outcome:
    """A ruler goes with a class

    Threshold: prevalence (score >= 0.50: five evenly spaced marks in a row) of a class differs from the rest by 10
    points, and Fisher's exact test, lesions as clusters, passes at 0.05 shared among all statistical tests and classes.
    Severity: warning; note from 5 points.
    Effect: Suspicious lesions are measured more often; a model that sees the ruler knows what a physician suspected.
    """
    return _artefact_association(audit_input, "ruler", "A ruler")


def da052_ink(audit_input: AuditInput) -> Outcome:
    """Ink goes with a class

    Threshold: prevalence (score >= 0.06: 0.06 % of the picture blue, violet or green away from its middle) of a class
    differs from the rest by 10 points, and Fisher's exact test, lesions as clusters, passes at 0.05 shared among all
    statistical tests and classes.
    Severity: warning; note from 5 points.
    Effect: Pen marks around a lesion raise a net's melanoma score; benign lesions that are marked will be misread.
    """
    return _artefact_association(audit_input, "ink", "Ink")


def da053_dark_corners(audit_input: AuditInput) -> Outcome:
    """Dark corners go with a class

    Threshold: prevalence (score >= 0.50: half of two corners black) of a class differs from the rest by 10 points, and
    Fisher's exact test, lesions as clusters, passes at 0.05 shared among all statistical tests and classes.
    Severity: warning; note from 5 points.
    Effect: Dark corners reveal the camera or archive of an image; a model that uses them has not looked at the lesion.
    """
    return _artefact_association(audit_input, "dark_corner", "Dark corners")


@dataclass(frozen=True, eq=False)
class _Contrast:
    """A class against the rest: images with the artefact and in total. p: Fisher's exact test on effective counts."""

    class_name: str
    class_positive: int
    class_total: int
    rest_positive: int
    rest_total: int
    p: float

    @property
    def difference(self) -> float:
        return self.class_positive / self.class_total - self.rest_positive / self.rest_total


def _artefact_association(audit_input: AuditInput, artefact: str, artefact_text: str) -> Outcome:
    if artefact not in audit_input.measures or audit_input.measures[artefact].isna().all():
        return NotApplicable(f"{artefact.replace('_', ' ')}: not measured, or the images are too small to tell")
    score = audit_input.measures[artefact].to_numpy(np.float64)
    is_measured = np.isfinite(score)
    has_artefact = is_measured & (score >= PRESENCE_THRESHOLDS[artefact])
    contrasts, n_tests = _class_contrasts(audit_input, is_measured, has_artefact)
    if not n_tests:
        return NotApplicable(
            f"no class and its rest have {_MIN_GROUPS} lesions each, or a few of them have nearly all photographs"
        )
    alpha = alpha_per_test(n_tests)
    significant = [
        contrast for contrast in contrasts if contrast.p < alpha and abs(contrast.difference) >= NOTE_DIFFERENCE
    ]
    if not significant:
        return None
    largest = max(significant, key=lambda contrast: abs(contrast.difference))
    rows = np.flatnonzero(has_artefact)
    prevalences = {
        name: has_artefact[in_class].sum() / max(1, is_measured[in_class].sum())
        for name, in_class in _class_masks(audit_input)
    }
    order = audit_input.frame["label"].map(prevalences).to_numpy(np.float64)[rows]
    rows = rows[np.lexsort((-score[rows], -order))]
    return Finding(
        severity=Severity.WARNING if abs(largest.difference) >= WARNING_DIFFERENCE else Severity.NOTE,
        n=len(rows),
        sentence=_sentence(audit_input, artefact_text, largest, is_measured, has_artefact),
        rows=image_table(audit_input, rows, score=score[rows]),
        per_class=images_per_class(audit_input, rows),
        figures=_figures(audit_input, artefact, contrasts, is_measured, has_artefact, alpha),
    )


def _class_masks(audit_input: AuditInput) -> list[tuple[str, NDArray[np.bool_]]]:
    labels = audit_input.frame["label"].to_numpy()
    return [
        (name, np.asarray(labels == name, np.bool_))
        for name in audit_input.dataset.class_names
        if (labels == name).any()
    ]


def _class_contrasts(
    audit_input: AuditInput, is_measured: NDArray[np.bool_], has_artefact: NDArray[np.bool_]
) -> tuple[list[_Contrast], int]:
    """Return every class against the rest, and the number of tests: for two classes it is one."""
    group_ids, classes = audit_input.group_ids, _class_masks(audit_input)
    pooled_effect = _design_effect(group_ids, has_artefact, [in_class & is_measured for _, in_class in classes])
    contrasts = []
    for name, in_class in classes:
        class_and_rest = (in_class & is_measured, ~in_class & is_measured)
        if min(effective_sample_size(group_ids[subset]) for subset in class_and_rest) < _MIN_GROUPS:
            continue
        table = np.zeros((2, 2), np.int64)
        for row, subset in enumerate(class_and_rest):
            design_effect = max(pooled_effect, _design_effect(group_ids, has_artefact, [subset]))
            table[row] = np.rint(
                [(has_artefact & subset).sum() / design_effect, (~has_artefact & subset).sum() / design_effect]
            )
        contrast = _Contrast(
            name,
            class_positive=int((has_artefact & in_class).sum()),
            class_total=int(class_and_rest[0].sum()),
            rest_positive=int((has_artefact & ~in_class).sum()),
            rest_total=int(class_and_rest[1].sum()),
            p=float(fisher_exact(table).pvalue),
        )
        contrasts.append(contrast)
    return contrasts, 1 if len(contrasts) == 2 == len(classes) else len(contrasts)


def _design_effect(
    group_ids: NDArray[np.int64], has_artefact: NDArray[np.bool_], subsets: Sequence[NDArray[np.bool_]]
) -> float:
    """Return the design effect of the prevalence: its clustered variance over that of independent images, at least 1.

    Where that is 0 / 0 the images of a group count as one. Rao and Scott, Biometrics 48 (1992), 577.
    """
    cluster_variance = independent_variance = squared_sizes = total = 0.0
    for subset in subsets:
        if not subset.any():
            continue
        _, group_index = np.unique(group_ids[subset], return_inverse=True)
        group_sizes = np.bincount(group_index)
        prevalence = float(has_artefact[subset].mean())
        cluster_variance += float(
            np.square(np.bincount(group_index, has_artefact[subset]) - prevalence * group_sizes).sum()
        )
        independent_variance += len(group_index) * prevalence * (1 - prevalence)
        squared_sizes += float(np.square(group_sizes).sum())
        total += len(group_index)
    if independent_variance == 0:
        return squared_sizes / total if total else 1.0
    return max(1.0, cluster_variance / independent_variance)


def _sentence(
    audit_input: AuditInput,
    artefact_text: str,
    largest: _Contrast,
    is_measured: NDArray[np.bool_],
    has_artefact: NDArray[np.bool_],
) -> str:
    classes = _class_masks(audit_input)
    rest_name = (
        next((name for name, _ in classes if name != largest.class_name), "") if len(classes) == 2 else "the rest"
    )
    verb = "show" if artefact_text.endswith("s") else "shows"
    text = (
        f"{artefact_text} {verb} in {proportion_text(largest.class_positive, largest.class_total)} of "
        f"{largest.class_total:,} images of {largest.class_name} and in "
        f"{proportion_text(largest.rest_positive, largest.rest_total)} of {largest.rest_total:,} of "
        f"{rest_name}: {100 * largest.difference:+.0f} "
        f"points (Fisher's exact test, lesions as clusters, p = {largest.p:.1g})."
    )
    if len(classes) == 2:
        return text
    class_texts = [
        f"{name} {proportion_text(int(has_artefact[in_class].sum()), int(is_measured[in_class].sum()))} "
        f"of {int(is_measured[in_class].sum()):,}"
        for name, in_class in classes[:_MAX_CLASSES]
    ]
    return f"{text} Per class: {'; '.join(class_texts)}."


def _figures(
    audit_input: AuditInput, artefact: str, contrasts: list[_Contrast], is_measured: NDArray[np.bool_],
    has_artefact: NDArray[np.bool_], alpha: float,
) -> dict[str, Any]:  # fmt: skip
    return {
        "artefact": artefact,
        "presence_threshold": PRESENCE_THRESHOLDS[artefact],
        "prevalence": {
            name: proportion_json(int(has_artefact[in_class].sum()), int(is_measured[in_class].sum()))
            for name, in_class in _class_masks(audit_input)
        },
        "class_against_rest": {
            contrast.class_name: {"difference": contrast.difference, "p": contrast.p} for contrast in contrasts
        },
        "alpha": alpha,
    }
