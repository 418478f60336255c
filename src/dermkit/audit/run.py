"""One audit, from a data set folder to its pages: look at every image once, run the checks, write what they found."""

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
from dermkit.audit.checks.finding import CheckFunction, Finding, PlannedUse, Subject, read_check_card
from dermkit.audit.checks.text import plural
from dermkit.audit.cleaning import REPAIRED_BY_CLEANING, REPAIRED_BY_SPLIT, apply_cleaning, plan_cleaning
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
from dermkit.data.manifest import DATASET_FORMAT, Dataset, load_dataset
from dermkit.errors import DataError
from dermkit.files import lock, read_json, sha256_file, sweep_temp
from dermkit.progress import Progress

AUDIT_FOLDER = "audit"
"""Of the data set folder; everything that an audit writes is in it."""


@dataclass(frozen=True, eq=False)
class ScanResult:
    """What the pixels of all images say. measures: a row per image. pairs: copies, `Subject.pairs`."""

    measures: pd.DataFrame
    pairs: pd.DataFrame

    def restricted_to(self, original: Dataset, cleaned: Dataset) -> "ScanResult":
        """Return what was seen of the rows that `cleaned` still has, numbered as they are there."""
        rows = pd.Index(cleaned.manifest["image_id"]).get_indexer(pd.Index(original.manifest["image_id"]))
        renumbered = self.pairs.assign(a=rows[self.pairs["a"]], b=rows[self.pairs["b"]])
        remaining_pairs = renumbered[(renumbered["a"] >= 0) & (renumbered["b"] >= 0)].reset_index(drop=True)
        return ScanResult(self.measures[rows >= 0].reset_index(drop=True), remaining_pairs)


ImageScanner = Callable[[Dataset, Progress], ScanResult]
"""Opens every image of a data set once and finds the copies among them."""


def scanner(workers: int = 0) -> ImageScanner:
    """Return the look at the pixels with so many threads (0 = all cores)."""

    def scan_dataset(dataset: Dataset, progress: Progress) -> ScanResult:
        dataset_scan = scan_images(dataset, workers=workers, progress=progress)
        return ScanResult(
            dataset_scan.table, find_duplicates(dataset.manifest, dataset_scan, workers=workers, progress=progress)
        )

    return scan_dataset


def pair_scanner(workers: int = 0) -> Callable[[Dataset, Dataset, Progress], pd.DataFrame]:
    """Return the search for copies across two data sets: row `a` of the first, `b` of the second, distance, kind."""

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
            if (n := int((dataset_scan.table["changed"] != "").sum()))
        )
        return pairs

    return scan_pair


@dataclass(frozen=True, eq=False)
class AuditOutcome:
    """What an audit left: its findings (worst first), the page, and the data set as it is now.

    cleaned: whether this audit wrote another manifest, if only one with other copy groups. dropped: rows that went.
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
        """The errors that nobody accepted."""
        return open_errors(self.findings)

    def raise_for_errors(self) -> None:
        """Raise `DataError` (exit code 3) where an error is open: which codes, how many images, what to do."""
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
        """What became of the manifest."""
        if not self.was_cleaned:
            return "no image and no row was changed"
        cleaning_record = self.dataset.notes["cleaned"][-1]
        cleaning_text = (
            "audit/dropped.csv has what was dropped"
            if self.n_dropped
            else "no row was dropped, copies were grouped"
        )
        return f"no image was changed; {cleaning_text}; the manifest before is {cleaning_record['manifest']}"

    def _remedies(self, errors: Sequence[ReportedFinding]) -> list[str]:
        """Return what can be done about these errors."""
        folder, codes = self.dataset.folder, {reported.card.code for reported in errors}
        scheme = "given" if (self.dataset.manifest["given_split"] == "test").any() else "holdout"
        steps = []
        cleanings = self.dataset.notes.get("cleaned") or [{}]
        # A manifest that a cleaning left is one that another would leave alone.
        is_clean = cleanings[-1].get("to_manifest_sha256") == self.dataset.manifest_sha256
        if codes & REPAIRED_BY_CLEANING and not is_clean:
            steps.append(f"`dermkit audit {folder} --clean`")
        if codes & REPAIRED_BY_SPLIT:
            steps += [f"`dermkit split {folder} --scheme {scheme}`", f"`dermkit audit {folder} --split {scheme}`"]
        accept_text = "accept by code: " + " ".join(f"--accept {code}" for code in sorted(codes))
        return ["repair with " + ", then ".join(steps), accept_text] if steps else [accept_text]


def run_checks(
    subject: Subject, checks: Sequence[CheckFunction], progress: Progress | None = None
) -> list[CheckResult]:
    """Run the checks in order; returns each one's card and outcome."""
    progress = progress or Progress()
    results = []
    for n_done, check in enumerate(checks, start=1):
        results.append(CheckResult(read_check_card(check), check(subject)))
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

    split: a split by name or file; default the published one. accept: codes that are accepted as they are found now.
    clean: afterwards write a clean manifest (`clean.plan_cleaning`), and audit what remains; the first audit is then
    in audit/before-clean. Raises `UsageError` (unknown code or split), `DataError`, `OutputError`; errors that are
    found do not raise (`AuditOutcome.refuse_errors` does).
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
        # Before the cleaning too: where that is refused or stopped, what was found is there to be read.
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
    final_dataset = audit.subject.dataset
    return AuditOutcome(
        audit,
        page,
        final_dataset,
        len(dataset.manifest) - len(final_dataset.manifest),
        cleaned_dataset is not None,
    )


def _reload_if_changed(dataset: Dataset) -> Dataset:
    """Return the data set as its folder has it now: another command may have changed it before the lock was ours."""
    folder = dataset.folder
    if all((folder / name).is_file() for name in ("manifest.csv", "dataset.json")):
        notes = read_json(folder / "dataset.json", format=DATASET_FORMAT, error=DataError)
        is_same_manifest = sha256_file(folder / "manifest.csv") == dataset.manifest_sha256
        if is_same_manifest and notes.get("accepted", {}) == acceptances_of(dataset):
            return dataset
    return load_dataset(folder)


def _write_audit(folder: Path, audit: Audit) -> Path:
    """Write all that an audit leaves; returns the path of its page."""
    write_audit_tables(folder, audit)
    return write_audit_page(folder / "audit.html", audit)


@dataclass(frozen=True, eq=False)
class _AuditRunner:
    """What stays the same from the audit before a cleaning to the one after it."""

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
        """Run the checks, and record what is accepted of what they find. before: the audit that a cleaning followed."""
        subject = _build_subject(dataset, scan_result, audited_split, self.planned_use)
        check_results = run_checks(subject, self.checks, self.progress)
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
        subject = replace(subject, dataset=save_records(subject.dataset, records))
        return Audit(
            subject=subject,
            split=audited_split,
            check_results=check_results,
            acceptance_records=records,
            alpha=self.alpha,
            date=date,
            seconds=time.perf_counter() - self.start_time,
        )


def _clean(audit: Audit, progress: Progress) -> Dataset | None:
    """Write the clean manifest, and beside it the audit that it answers; returns the data set if it changed."""
    dataset = audit.subject.dataset
    plan = plan_cleaning(audit.subject, {reported.card.code for reported in audit.findings if reported.acceptance})
    cleaned_dataset = apply_cleaning(dataset, plan, date=audit.date)
    if cleaned_dataset is dataset:
        progress.say("nothing to clean")
        return None
    cleaning_record = cleaned_dataset.notes["cleaned"][-1]
    _write_audit(dataset.folder / cleaning_record["audit"], audit)
    progress.say(
        f"cleaned: {cleaning_record['dropped']} of {plural(len(dataset.manifest), 'image')} dropped "
        f"(audit/dropped.csv), "
        f"{cleaning_record['copy_groups']} groups of copies are kept together; the old manifest is "
        f"{cleaning_record['manifest']}"
    )
    return cleaned_dataset


def _build_subject(
    dataset: Dataset, scan_result: ScanResult, audited_split: AuditedSplit, use: PlannedUse
) -> Subject:
    frame = dataset.manifest.reset_index(drop=True)
    frame = frame.assign(split=audited_split.names_for(frame))
    pairs = _duplicate_pairs(frame, scan_result)
    first, second = (pairs[column].to_numpy(np.int64) for column in ("a", "b"))
    group_ids = connect_rows(len(frame), first, second, leakage_groups(frame))
    return Subject(
        dataset=replace(dataset, manifest=frame[list(dataset.manifest.columns)]),
        frame=frame, measures=scan_result.measures, pairs=pairs, group_ids=group_ids, use=use,
    )  # fmt: skip


def _duplicate_pairs(frame: pd.DataFrame, scan_result: ScanResult) -> pd.DataFrame:
    """Return the copies, the identical ones so that every label and every side of this split is among the pairs."""
    is_unchanged = (
        (scan_result.measures["changed"] == "").to_numpy()
        if "changed" in scan_result.measures
        else np.ones(len(frame), bool)
    )
    identical_pairs = exact_duplicate_pairs(
        frame["pixel_sha256"].where(is_unchanged, ""), frame["label"], frame["split"]
    )
    return pd.concat([identical_pairs, scan_result.pairs[scan_result.pairs["kind"] != "exact"]], ignore_index=True)
