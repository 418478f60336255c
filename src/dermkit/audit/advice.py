"""What to do about the findings of an audit: the next commands, in order, each with its reason."""

import shlex
from collections.abc import Generator, Iterator
from dataclasses import dataclass

from dermkit.audit.checks.finding import Severity
from dermkit.audit.checks.text import plural
from dermkit.audit.cleaning import REPAIRED_BY_CLEANING, REPAIRED_BY_SPLIT, plan_cleaning
from dermkit.audit.output import Audit, ReportedFinding

SHORTCUTS = (
    "DA040",
    "DA041",
    "DA042",
    "DA043",
    "DA044",
    "DA045",
    "DA046",
    "DA047",
    "DA050",
    "DA051",
    "DA052",
    "DA053",
    "DA072",
)
"""Checks that find what a net can use in place of the lesion."""


@dataclass(frozen=True)
class Step:
    """A step: what to do, why, and the command, "" where it is none of dermkit's."""

    title: str
    reason: str
    command: str = ""


def next_steps(audit: Audit) -> list[Step]:
    """Return what to do next, in order. The last step trains, and says what to read in its report.

    Commands name the data set by its folder's own name: a page that travels tells no path of the machine.
    """
    return list(_steps(audit))


def _steps(audit: Audit) -> Iterator[Step]:
    found = {reported.card.code: reported for reported in audit.findings if reported.acceptance is None}
    folder = shlex.quote(audit.audit_input.dataset.folder.resolve().name)
    yield from _file_steps(found)
    yield from _import_steps(audit, found)  # before the cleaning, which is of the list that an import wrote
    cleaning = _cleaning_step(audit, found, folder)
    if cleaning:
        yield cleaning
    scheme = yield from _split_steps(audit, found, folder, is_cleaned=cleaning is not None)
    yield _training_step(found, folder, scheme)


def _file_steps(found: dict[str, ReportedFinding]) -> Iterator[Step]:
    if "DA001" in found and found["DA001"].finding.severity is not Severity.NOTE:
        yield Step(
            "Restore or import the images again",
            "some files changed, went missing or are damaged since the import, so later figures are of other images",
        )


def _cleaning_step(audit: Audit, found: dict[str, ReportedFinding], folder: str) -> Step | None:
    """Return the step that repairs copies and contradictions, None where a cleaning would change nothing of weight."""
    is_needed = any(
        reported.finding.severity is not Severity.NOTE
        for code, reported in found.items()
        if code in REPAIRED_BY_CLEANING
    )
    if not is_needed:
        return None
    accepted = {reported.card.code for reported in audit.findings if reported.acceptance}
    plan = plan_cleaning(audit.audit_input, accepted)
    n_dropped, total = len(plan.dropped_rows), len(audit.audit_input.frame)
    n_grouped = int((plan.copy_group[plan.keep_mask] != "").sum())
    if n_dropped == total or not (n_dropped or n_grouped):
        return None
    parts = []
    if n_dropped:
        parts.append(f"leaves out {n_dropped:,} of {plural(total, 'image')} (two labels, or stored twice)")
    if n_grouped:
        parts.append(f"keeps {n_grouped:,} near cop{'y' if n_grouped == 1 else 'ies'} together in every split")
    return Step(
        "Clean the list of images",
        f"{' and '.join(parts)}; no image file is touched, and the earlier list is kept",
        f"dermkit audit {folder} --clean",
    )


def _import_steps(audit: Audit, found: dict[str, ReportedFinding]) -> Iterator[Step]:
    missing = audit.audit_input.frame["lesion_id"] == ""
    if "DA023" in found and missing.any():
        yield Step(
            "Add lesion ids, if you can get them",
            f"{int(missing.sum()):,} images have none, so two photographs of one lesion may be in training and test: "
            "repeat your import with a metadata table (for ISIC images, the archive's)",
            "dermkit import ... --join METADATA.csv",
        )
    if "DA031" in found:
        classes = found["DA031"].finding.figures.get("missing_classes", {})
        names = list(dict.fromkeys(str(name) for missing_names in classes.values() for name in missing_names))
        if names:
            options = " ".join(f"--drop {shlex.quote(name)}" for name in names)
            yield Step(
                "Leave out or join the classes that a split lacks",
                f"{', '.join(names)} cannot be learnt or tested; import into a new folder, and join with "
                "--merge CLASS=OTHER",
                f"dermkit import ... {options}",
            )


def _split_steps(
    audit: Audit, found: dict[str, ReportedFinding], folder: str, *, is_cleaned: bool
) -> Generator[Step, None, str]:
    """Yield the steps that split the data and check the result; returns the name of the split to train on."""
    is_published = bool((audit.audit_input.dataset.manifest["given_split"] == "test").any())
    is_small = "DA032" in found
    leaks = any(found[code].finding.severity is Severity.ERROR for code in REPAIRED_BY_SPLIT & found.keys())
    own_split = "" if audit.split.name in ("", "given_split") else audit.split.name
    if own_split and not (leaks or is_cleaned):
        return own_split
    if is_published:
        scheme, options = "given", " --folds 5" if is_small else ""
        reason = (
            "keeps the published test images and takes copies and photographs of the same lesions out of training"
        )
        if is_small:
            n_test = int((audit.audit_input.frame["split"] == "test").sum())
            reason += (
                f"; {plural(n_test, 'test image')} cannot decide much, so five folds of the training images give "
                "a second, firmer figure"
            )
    else:
        scheme, options = ("kfold", "") if is_small else ("holdout", "")
        reason = "divides by lesion, patient and copy, so that no lesion is in training and test"
    yield Step("Make a split that does not leak", reason, f"dermkit split {folder} --scheme {scheme}{options}")
    yield Step("Check the split", "must end without an error", f"dermkit audit {folder} --split {scheme}")
    return scheme


def _training_step(found: dict[str, ReportedFinding], folder: str, scheme: str) -> Step:
    """Return the step that trains, with what to heed in its report."""
    has_shortcut = any(code in found for code in SHORTCUTS)
    reason = (
        "then read the image-blind rules in the report first: a net that is not better than colour, metadata or file "
        "size has not been shown to look at the lesion"
        if has_shortcut
        else "then read the report's first screen"
    )
    return Step("Train", reason, f"dermkit train quick {folder} --split {scheme}")
