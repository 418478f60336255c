"""The warnings of a report: leaks, small classes, the data set's audit, and those recorded in the run's files."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dermkit.data.diagnoses import UNKNOWN_MALIGNANCY, malignancy_question, unknown_malignancy
from dermkit.data.manifest import LesionClass
from dermkit.metrics.stats.power import expected_maximum_of_k
from dermkit.runs.doubts import MIN_OUTCOME_IMAGES, differ_in_seed_alone
from dermkit.runs.layout import RUNG_WARNING, SPLIT_FILE, SUMMARY, UNSTABLE_TRAINING

if TYPE_CHECKING:
    from dermkit.runs.folder import RunFolder

MIN_CLASS_IMAGES = 10
"""Fewer images of a class are warned of: at a recall of 0.5 Wilson's 95 % interval is wider than 50 points."""

SERIOUS_PREFIXES = (UNSTABLE_TRAINING, RUNG_WARNING, "Sealed test images")
"""Prefixes of recorded warnings that are always serious."""

WarningLevel = Literal["serious", "note", "data"]


@dataclass(frozen=True)
class ReportWarning:
    """A warning at the head of a report; level `data`: of the data set in every run, shown last and folded.

    replaced_prefix: beginning of the recorded warning that it replaces.
    """

    level: WarningLevel
    text: str
    replaced_prefix: str = ""


def report_warnings(run: "RunFolder") -> list[ReportWarning]:
    """Return every warning once, in the order serious, note, data."""
    derived_warnings = [
        *_leak_warnings(run),
        *_seal_warnings(run),
        *_member_warnings(run),
        *_audit_warnings(run),
        *_outcome_warnings(run),
        *_class_warnings(run),
        *_training_and_data_warnings(run),
    ]
    covered_prefixes = tuple(
        warning.replaced_prefix for warning in derived_warnings if warning.replaced_prefix
    ) + (() if run.leaks.get("total") else ("the split leaks",))
    recorded_warnings = [*run.metrics.get("warnings", []), *run.run_json.get("warnings", [])]
    # A model on another data set: what its files warn of (overlap, images left out) decides what the figures mean.
    level: WarningLevel = "serious" if run.is_external else "note"
    recorded_notes = [
        ReportWarning("serious" if str(text).startswith(SERIOUS_PREFIXES) else level, str(text))
        for text in recorded_warnings
        if not str(text).startswith(covered_prefixes)
    ]
    unique_warnings = {warning.text: warning for warning in [*derived_warnings, *recorded_notes]}.values()
    return sorted(unique_warnings, key=lambda warning: ("serious", "note", "data").index(warning.level))


def _leak_warnings(run: "RunFolder") -> Iterator[ReportWarning]:
    leaks = run.leaks
    leaks_by_split = (
        ("test", leaks, "a training or validation"),
        ("validation", leaks.get("validation", {}), "a training"),
    )
    for split_name, counts, source_splits in leaks_by_split:
        if total := counts.get("total", 0):
            scheme = run.run_json.get("split", {}).get("scheme", "of this name")
            yield ReportWarning(
                "serious",
                f"The split leaks (scheme {scheme}): {total} of {counts.get('n', '?')} {split_name} "
                f"images share a lesion or "
                f"the exact pixels with {source_splits} image ({counts.get('identical_pixels', 0)} identical, "
                f"{counts.get('same_group', 0)} of the same group). The {split_name} figures are not "
                f"those of unseen lesions:"
                " too good as a rule, too bad where the copies carry another label.",
                replaced_prefix="the split leaks",
            )
    if contradictions := leaks.get("contradictions", 0):
        yield ReportWarning(
            "serious",
            f"{contradictions} images carry another label in an exact copy of themselves: no model can be right.",
        )


def _seal_warnings(run: "RunFolder") -> Iterator[ReportWarning]:
    """Yield warnings about repeated openings of the sealed test split; a single opening by this run needs none."""
    seal = run.seal
    if not seal or seal["opening_number"] is None:
        return
    for note in seal["notes"]:
        yield ReportWarning("note", str(note))
    if "test" not in run.split_names:
        yield ReportWarning(
            "serious",
            f"Opening {seal['opening_number']} of the test side was logged and did not end: it counts all the same.",
        )
    openings = seal["openings"]
    if len(openings) < 2:
        return
    best_of_openings = f"up to {expected_maximum_of_k(len(openings)):.1f} standard errors too good by chance alone"
    if differ_in_seed_alone(openings):
        yield ReportWarning(
            "note",
            f"The test side was opened {len(openings)} times, by runs of one recipe that differ in their seed alone: "
            f"their mean is that of an untouched test side; the best of them would be {best_of_openings}.",
        )
        return
    yield ReportWarning(
        "serious",
        f"The test side was opened {len(openings)} times: these are no longer the figures of an untouched test side. "
        f"Of {len(openings)} equally good models, the best one's figures are {best_of_openings}; and "
        f"whatever was decided after an "
        "opening was decided with the test side in view.",
    )


def _member_warnings(run: "RunFolder") -> Iterator[ReportWarning]:
    if run.leaves_test_to_ensemble:
        n_test = int(run.split_json["counts"]["test"])
        yield ReportWarning(
            "note",
            f"This is the run of one fold: the {n_test} test images are for the ensemble of all folds, whose folder is "
            "the one above, and were not scored by this net.",
        )


def _outcome_warnings(run: "RunFolder") -> Iterator[ReportWarning]:
    """Yield a warning if the headline split has few malignant or few other images."""
    split_metrics, positive_classes = run.metrics["splits"][run.headline_split], run.metrics.get("positive", [])
    counts = {name: int(row["n"]) for name, row in split_metrics["per_class"].items()}
    n_malignant = sum(n for name, n in counts.items() if name in positive_classes)
    n_other = sum(counts.values()) - n_malignant
    n_groups = int(split_metrics.get("n_groups", split_metrics["n"]))
    # So few groups cannot be enough of both outcomes, however many images they have.
    if (
        not n_malignant
        or not n_other
        or (min(n_malignant, n_other) >= MIN_OUTCOME_IMAGES and n_groups >= 2 * MIN_OUTCOME_IMAGES)
    ):
        return
    groups_text = (
        f", in {n_groups} groups (images of one lesion or patient)" if n_groups < split_metrics["n"] else ""
    )
    yield ReportWarning(
        "note",
        f"{n_malignant} malignant and {n_other} other {run.headline_split} images{groups_text}: with "
        f"fewer than {MIN_OUTCOME_IMAGES} independent "
        "ones of either kind, figures on new lesions may differ much from these, even where no interval is marked.",
    )


def _class_warnings(run: "RunFolder") -> Iterator[ReportWarning]:
    for split in run.split_names:
        counts = {
            name: class_metrics["n"] for name, class_metrics in run.metrics["splits"][split]["per_class"].items()
        }
        absent_classes = [name for name, n in counts.items() if n == 0]
        small_classes = [f"{name} ({n})" for name, n in counts.items() if 0 < n < MIN_CLASS_IMAGES]
        if absent_classes:
            yield ReportWarning(
                "serious", f"No {split} images of {', '.join(absent_classes)}: what needs them is not defined."
            )
        if small_classes:
            yield ReportWarning(
                "note",
                f"Fewer than {MIN_CLASS_IMAGES} {split} images of {', '.join(small_classes)}: their "
                f"figures say little.",
            )
    unknown_classes = _unknown_classes(run)
    if unknown_classes:
        yield ReportWarning(
            "serious",
            malignancy_question(_lesion_classes(run), unknown_classes),
            replaced_prefix=UNKNOWN_MALIGNANCY,
        )
    indeterminate_classes = [
        str(lesion_class["name"])
        for lesion_class in run.class_rows
        if lesion_class.get("malignancy") == "indeterminate" and str(lesion_class["name"]) not in unknown_classes
    ]
    if indeterminate_classes:
        yield ReportWarning(
            "note",
            f"Neither benign nor malignant by the class table: {', '.join(indeterminate_classes)}. The "
            f"malignant-against-the-rest "
            "figures count them among the rest; counting them as malignant would change each of these figures.",
            replaced_prefix="indeterminate, counted",
        )


def _lesion_classes(run: "RunFolder") -> list[LesionClass]:
    return [
        LesionClass(str(row["name"]), str(row.get("diagnosis", "")), row["malignancy"])
        for row in run.class_rows
        if row.get("malignancy")
    ]


def _unknown_classes(run: "RunFolder") -> list[str]:
    """Return the classes that count as not malignant because nothing says what they are."""
    return unknown_malignancy(_lesion_classes(run), run.notes.get("malignancy_decided", ()))


def _training_and_data_warnings(run: "RunFolder") -> Iterator[ReportWarning]:
    if (overfitting := run.metrics.get("overfitting") or {}).get("overfitting"):
        is_best_epoch, epoch = run.run_json.get("keep") == "best", (run.run_json.get("best") or {}).get("epoch")
        weights_sentence = (
            f" The weights kept are those of {f'epoch {epoch}' if epoch else 'the best epoch'}."
            if is_best_epoch
            else ""
        )
        sentence = str(overfitting["sentence"])
        yield ReportWarning(
            "note" if is_best_epoch else "serious", sentence + weights_sentence, replaced_prefix=sentence
        )
    for entry in run.notes.get("warnings", []):
        if isinstance(entry, Mapping) and entry.get("code") == "class_contradiction":
            yield ReportWarning("serious", str(entry["text"]))
            continue
        yield ReportWarning(
            "data", f"{entry['text']} ({entry['n']})" if isinstance(entry, Mapping) else str(entry)
        )
    n_cleaned = sum(int(entry.get("dropped", 0)) for entry in run.notes.get("cleanings", []))
    for defect in run.notes.get("defects", []):
        is_about_test = re.search(r"\btest\b", str(defect), re.IGNORECASE)
        if run.notes.get("cleanings"):
            yield ReportWarning(
                "data", f"Known defect, before {n_cleaned} images were dropped by a cleaning: {defect}"
            )
        else:
            yield ReportWarning("serious" if is_about_test else "data", f"Known defect: {defect}")
    if note := run.run_json.get("weights", {}).get("note"):
        yield ReportWarning("note", f"Weights: {note}", replaced_prefix="Weights:")


def _audit_warnings(run: "RunFolder") -> Iterator[ReportWarning]:
    """Yield warnings of the data's audits: of the set tested on, and of the one an external model was trained on."""
    dataset_json, training_dataset = run.run_json.get("dataset", {}), run.run_json.get("training_dataset")
    yield from _dataset_audit_warnings(
        str(dataset_json.get("name") or "this data set"),
        dataset_json.get("audit") or {},
        audit_advice=_audit_advice(run.path),
    )
    if training_dataset:
        yield from _dataset_audit_warnings(
            f"{training_dataset.get('name') or '?'} (what the model was trained on)", training_dataset["audit"]
        )


_AUDIT_OF_NAMED_SPLIT = "`dermkit audit DATASET --split NAME` does"


def _audit_advice(run: Path) -> str:
    """Return the command that audits the split of a run; that of a fold has no name, and its file is in the run."""
    if (run / SPLIT_FILE).is_file():
        return f"`dermkit audit DATASET --split RUN/{SPLIT_FILE}` does"
    if SUMMARY.exists(run):
        return f"`dermkit audit DATASET --split FOLD/{SPLIT_FILE}` does, for each fold"
    return _AUDIT_OF_NAMED_SPLIT


def _dataset_audit_warnings(
    name: str, audit: Mapping[str, Any], *, audit_advice: str = _AUDIT_OF_NAMED_SPLIT
) -> Iterator[ReportWarning]:
    state, errors = audit.get("state", "never"), audit.get("errors", [])
    if state == "never":
        missing_checks = "near duplicates, contradictory labels and shortcuts were not (no audit was run)."
        yield ReportWarning("note", f"{name}: only identical pixels were looked for; {missing_checks}")
        return
    scope_text = ""
    if state == "outdated" and audit.get("reason") == "manifest":
        scope_text = " before its manifest changed"
        text = f"{name}: the audit of {audit['date']} is outdated, the manifest has changed since: audit it again."
        yield ReportWarning("serious" if errors else "note", text)
    elif state == "outdated":
        audited_split = {"": "", "given_split": "the published split"}.get(
            audit["split"], f"split {audit['split']}"
        )
        scope_text = f" on {audited_split}" if audited_split else ""
        audited_text = (
            f"was of {audited_split}, not of the one used here, on which"
            if audited_split
            else ("was made without a split: in the one used here,")
        )
        yield ReportWarning(
            "note",
            f"{name}: the audit of {audit['date']} {audited_text} near copies and "
            f"shortcuts across sides were not looked for: {audit_advice}.",
        )
    for finding in errors:
        yield ReportWarning(
            "serious",
            f"{finding['code']} {finding['title']}: {finding['n']} images of {name}{scope_text}. {finding['effect']}",
        )
    for finding in audit.get("accepted", []):
        acceptance_text = f"was accepted, not repaired ({finding['date']})"
        yield ReportWarning(
            "serious",
            f"{finding['code']} {finding['title']} ({finding['n']} images of {name}) {acceptance_text}. "
            f"{finding['effect']}",
        )
    if audit_warnings := audit.get("warnings", []):
        warning_list = "; ".join(
            f"{finding['code']} {finding['title']} ({finding['n']})" for finding in audit_warnings
        )
        yield ReportWarning(
            "note", f"The audit of {name} warns of what may distort a figure{scope_text}: {warning_list}."
        )
