"""One audit of a data set folder: scan every image once, run the checks, write the findings."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from dermkit.audit.acceptance import (
    SplitId,
    acceptances_of,
    add_acceptances,
    carry_over,
    check_codes,
    save_records,
)
from dermkit.audit.checks.finding import AuditInput, CheckFunction, Finding, PlannedUse, read_check_card
from dermkit.audit.checks.text import plural
from dermkit.audit.cleaning import (
    REPAIRED_BY_CLEANING,
    REPAIRED_BY_SPLIT,
    SMALL_CLASS,
    apply_cleaning,
    plan_cleaning,
)
from dermkit.audit.near_duplicates.pairs import exact_duplicate_pairs, find_duplicates, find_duplicates_across
from dermkit.audit.output import (
    Audit,
    CheckResult,
    ReportedFinding,
    open_errors,
    report_unused_codes,
    write_audit_tables,
)
from dermkit.audit.page import write_audit_page
from dermkit.audit.scan.scan import scan_images
from dermkit.audit.split_view import AuditedSplit, read_audited_split
from dermkit.data.groups import connect_rows, leakage_groups
from dermkit.data.manifest import DATASET, Dataset, load_dataset
from dermkit.data.staging import finish_changes
from dermkit.errors import DataError
from dermkit.files import lock, sha256_file, sweep_temp
from dermkit.progress import Progress

AUDIT_FOLDER = "audit"
"""Folder inside the data set folder that an audit writes into."""


@dataclass(frozen=True, eq=False)
class ScanResult:
    """The result of a scan. measures: one row per image. pairs: duplicates, as `AuditInput.pairs`."""

    measures: pd.DataFrame
    pairs: pd.DataFrame

    def restricted_to(self, original: Dataset, cleaned: Dataset) -> "ScanResult":
        """Return the result for the rows that `cleaned` still has, renumbered."""
        rows = pd.Index(cleaned.manifest["image_id"]).get_indexer(pd.Index(original.manifest["image_id"]))
        renumbered = self.pairs.assign(a=rows[self.pairs["a"]], b=rows[self.pairs["b"]])
        remaining_pairs = renumbered[(renumbered["a"] >= 0) & (renumbered["b"] >= 0)].reset_index(drop=True)
        return ScanResult(self.measures[rows >= 0].reset_index(drop=True), remaining_pairs)


ImageScanner = Callable[[Dataset, Progress], ScanResult]
"""Opens every image of a data set once and finds duplicates among them."""


def scanner(workers: int = 0) -> ImageScanner:
    """Return an `ImageScanner` that uses `workers` threads (0 = all cores)."""

    def scan_dataset(dataset: Dataset, progress: Progress) -> ScanResult:
        dataset_scan = scan_images(dataset, workers=workers, progress=progress)
        return ScanResult(
            dataset_scan.table, find_duplicates(dataset.manifest, dataset_scan, workers=workers, progress=progress)
        )

    return scan_dataset


def pair_scanner(workers: int = 0) -> Callable[[Dataset, Dataset, Progress], pd.DataFrame]:
    """Return the search for duplicates across data sets: row `a` of the first, `b` of the second, distance, kind."""

    def scan_pair(first: Dataset, second: Dataset, progress: Progress) -> pd.DataFrame:
        scans = (
            scan_images(first, workers=workers, progress=progress),
            scan_images(second, workers=workers, progress=progress),
        )
        pairs = find_duplicates_across(
            (first.manifest, second.manifest), scans, workers=workers, progress=progress
        )
        pairs.attrs["unseen"] = "; ".join(
            f"{n:,} of {len(dataset.manifest):,} images of {dataset.name} could not be opened, or "
            f"changed since the import"
            for dataset, dataset_scan in zip((first, second), scans, strict=True)
            if (n := int((dataset_scan.table["state"] != "").sum()))
        )
        return pairs

    return scan_pair


@dataclass(frozen=True, eq=False)
class AuditOutcome:
    """The result of `run_audit`: the audit, its page, and the data set after it.

    n_dropped: rows that a cleaning dropped. was_cleaned: whether it changed the manifest, be it copy groups alone.
    """

    audit: Audit
    page: Path
    dataset: Dataset
    n_dropped: int
    was_cleaned: bool

    @property
    def findings(self) -> list[ReportedFinding]:
        """The findings, worst first."""
        return self.audit.findings

    @property
    def open_errors(self) -> list[ReportedFinding]:
        """The errors without a valid acceptance."""
        return open_errors(self.findings)

    def raise_for_errors(self) -> None:
        """Raise `DataError` (exit code 3) if an error is not accepted: which codes, how many images, what to do."""
        errors = self.open_errors
        if not errors:
            return
        folder = self.dataset.folder
        error_texts = "; ".join(
            f"{reported.card.code} {reported.card.title} ({plural(reported.finding.n, 'image')})"
            for reported in errors
        )
        raise DataError(
            f"{folder}: {len(errors)} error{'s' * (len(errors) > 1)} not accepted: {error_texts}",
            outcome=f"{self.page} and the tables beside it; {self._manifest_change_text}",
            remedy="look at the page; then " + "; or ".join(self._remedies(errors)),
        )

    @property
    def _manifest_change_text(self) -> str:
        """How the manifest was changed, as text."""
        if not self.was_cleaned:
            return "no image and no row was changed"
        cleaning_record = self.dataset.notes["cleanings"][-1]
        cleaning_text = (
            "audit/dropped.csv has what was dropped"
            if self.n_dropped
            else "no row was dropped, copies were grouped"
        )
        return f"no image was changed; {cleaning_text}; the manifest before is {cleaning_record['manifest']}"

    def _remedies(self, errors: Sequence[ReportedFinding]) -> list[str]:
        """Return the possible remedies for these errors."""
        folder, codes = self.dataset.folder, {reported.card.code for reported in errors}
        scheme = "given" if (self.dataset.manifest["given_split"] == "test").any() else "holdout"
        steps = []
        cleanings = self.dataset.notes.get("cleanings") or [{}]
        # A manifest as a cleaning left it would not be changed by another one.
        is_clean = cleanings[-1].get("to_manifest_sha256") == self.dataset.manifest_sha256
        if codes & REPAIRED_BY_CLEANING and not is_clean:
            steps.append(f"`dermkit audit {folder} --clean`")
        if codes & REPAIRED_BY_SPLIT:
            steps += [f"`dermkit split {folder} --scheme {scheme}`", f"`dermkit audit {folder} --split {scheme}`"]
        accept_text = "accept by code: " + " ".join(f"--accept {code}" for code in sorted(codes))
        return ["repair with " + ", then ".join(steps), accept_text] if steps else [accept_text]


def run_checks(
    audit_input: AuditInput, checks: Sequence[CheckFunction], progress: Progress | None = None
) -> list[CheckResult]:
    """Run the checks in order; returns each one's card and outcome."""
    progress = progress or Progress()
    results = []
    for n_done, check in enumerate(checks, start=1):
        results.append(CheckResult(read_check_card(check), check(audit_input)))
        progress.step("checks", n_done, len(checks))
    return results


def run_audit(
    dataset: Dataset,
    *,
    image_scanner: ImageScanner,
    checks: Sequence[CheckFunction],
    alpha: float,
    split: str | Path | None = None,
    use: PlannedUse = "research",
    accept: Sequence[str] = (),
    clean: bool = False,
    progress: Progress | None = None,
) -> AuditOutcome:
    """Audit a data set: writes audit.json, a CSV per finding and audit.html into DATASET/audit.

    split: a split by name or file; default the published one. accept: codes whose current findings are accepted.
    clean: afterwards write a clean manifest (`cleaning.plan_cleaning`) and audit what remains; the first audit is then
    in audit/before-clean. Raises `UsageError` (unknown code or split), `DataError`, `OutputError`; findings do not
    raise (`AuditOutcome.raise_for_errors` does).
    """
    progress = progress or Progress()
    codes = check_codes(accept, [read_check_card(check).code for check in checks])
    runner = _AuditRunner(checks, alpha, use, codes, progress, time.perf_counter())
    with lock(dataset.work_folder):
        folder = dataset.work_folder / AUDIT_FOLDER
        sweep_temp(folder)
        dataset = _reload_if_changed(dataset)
        audited_split = read_audited_split(dataset, split)
        scan_result = image_scanner(dataset, progress)
        audit = runner.audit(dataset, scan_result, audited_split)
        # Before the cleaning too: if that is refused or stopped, the findings can be read.
        page = _write_audit(folder, audit)
        cleaned_dataset = _clean(audit, progress) if clean else None
        if cleaned_dataset:
            remaining_split = audited_split.restricted_to(cleaned_dataset.manifest)
            audit = runner.audit(
                cleaned_dataset,
                scan_result.restricted_to(dataset, cleaned_dataset),
                remaining_split,
                audit_before_cleaning=audit,
            )
            page = _write_audit(folder, audit)
    report_unused_codes(codes, audit.findings, progress)
    final_dataset = audit.audit_input.dataset
    return AuditOutcome(
        audit,
        page,
        final_dataset,
        len(dataset.manifest) - len(final_dataset.manifest),
        cleaned_dataset is not None,
    )


def _reload_if_changed(dataset: Dataset) -> Dataset:
    """Return the data set as its folder has it now: another command may have changed it before we got the lock."""
    folder = dataset.folder
    finish_changes(folder)
    if (folder / "manifest.csv").is_file() and DATASET.exists(folder):
        notes = DATASET.read(folder)
        is_same_manifest = sha256_file(folder / "manifest.csv") == dataset.manifest_sha256
        if is_same_manifest and notes.get("accepted", {}) == acceptances_of(dataset):
            return dataset
    return load_dataset(folder)


def _write_audit(folder: Path, audit: Audit) -> Path:
    """Write an audit's files; returns the path of its page."""
    write_audit_tables(folder, audit)
    return write_audit_page(folder / "audit.html", audit)


@dataclass(frozen=True, eq=False)
class _AuditRunner:
    """The settings that the audits before and after a cleaning share."""

    checks: Sequence[CheckFunction]
    alpha: float
    planned_use: PlannedUse
    accepted_codes: Sequence[str]
    progress: Progress
    start_time: float

    def audit(
        self,
        dataset: Dataset,
        scan_result: ScanResult,
        audited_split: AuditedSplit,
        *,
        audit_before_cleaning: Audit | None = None,
    ) -> Audit:
        """Run the checks and record acceptances. audit_before_cleaning: given for the audit that follows a cleaning."""
        audit_input = _build_subject(dataset, scan_result, audited_split, self.planned_use)
        check_results = run_checks(audit_input, self.checks, self.progress)
        findings = {
            entry.card.code: entry.outcome for entry in check_results if isinstance(entry.outcome, Finding)
        }
        date = datetime.now(UTC).date().isoformat()
        records, split_id = acceptances_of(dataset), SplitId(audited_split.name, audited_split.sha256)
        if audit_before_cleaning:
            valid_codes = [entry.card.code for entry in audit_before_cleaning.findings if entry.acceptance]
            records = carry_over(records, valid_codes, findings, dataset=dataset, split_id=split_id)
        records = add_acceptances(
            records, self.accepted_codes, findings, dataset=dataset, date=date, split_id=split_id
        )
        audit_input = replace(audit_input, dataset=save_records(audit_input.dataset, records))
        return Audit(
            audit_input=audit_input,
            split=audited_split,
            check_results=check_results,
            acceptance_records=records,
            alpha=self.alpha,
            date=date,
            seconds=time.perf_counter() - self.start_time,
        )


def _clean(audit: Audit, progress: Progress) -> Dataset | None:
    """Write the clean manifest and a copy of the audit before it; returns the data set, None if nothing changed."""
    dataset = audit.audit_input.dataset
    plan = plan_cleaning(
        audit.audit_input, {reported.card.code for reported in audit.findings if reported.acceptance}
    )
    cleaned_dataset = apply_cleaning(dataset, plan, date=audit.date)
    if cleaned_dataset is dataset:
        progress.say("nothing to clean")
        return None
    cleaning_record = cleaned_dataset.notes["cleanings"][-1]
    _write_audit(dataset.folder / cleaning_record["audit"], audit)
    progress.say(
        f"cleaned: {cleaning_record['dropped']} of {plural(len(dataset.manifest), 'image')} dropped "
        f"(audit/dropped.csv), "
        f"{cleaning_record['copy_groups']} groups of copies are kept together; the old manifest is "
        f"{cleaning_record['manifest']}"
    )
    for warning in cleaned_dataset.notes["warnings"]:
        if warning["code"] in (SMALL_CLASS, "classes_removed"):
            progress.say(f"warning: {warning['text']}")
    return cleaned_dataset


def _build_subject(
    dataset: Dataset, scan_result: ScanResult, audited_split: AuditedSplit, use: PlannedUse
) -> AuditInput:
    frame = dataset.manifest.reset_index(drop=True)
    frame = frame.assign(split=audited_split.names_for(frame))
    pairs = _duplicate_pairs(frame, scan_result)
    first, second = (pairs[column].to_numpy(np.int64) for column in ("a", "b"))
    group_ids = connect_rows(len(frame), first, second, leakage_groups(frame))
    return AuditInput(
        dataset=replace(dataset, manifest=frame[list(dataset.manifest.columns)]),
        frame=frame, measures=scan_result.measures, pairs=pairs, group_ids=group_ids, use=use,
    )  # fmt: skip


def _duplicate_pairs(frame: pd.DataFrame, scan_result: ScanResult) -> pd.DataFrame:
    """Return the duplicates; identical images are paired so that each label and split is among the pairs."""
    is_unchanged = (
        (scan_result.measures["state"] == "").to_numpy()
        if "state" in scan_result.measures
        else np.ones(len(frame), bool)
    )
    identical_pairs = exact_duplicate_pairs(
        frame["pixel_sha256"].where(is_unchanged, ""), frame["label"], frame["split"]
    )
    return pd.concat([identical_pairs, scan_result.pairs[scan_result.pairs["kind"] != "exact"]], ignore_index=True)
