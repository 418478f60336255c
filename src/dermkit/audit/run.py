"""One audit, from a data set folder to its pages: look at every image once, run the checks, write what they found."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from dermkit.audit.acceptance import Division, carried, check_codes, records_of, save_records, with_accepted
from dermkit.audit.checks.finding import CheckFunction, Finding, Subject, Use, card
from dermkit.audit.checks.text import counted
from dermkit.audit.cleaning import CLEANED, PARTED, apply_cleaning, plan_cleaning
from dermkit.audit.near_duplicates.pairs import exact_pairs, find_common, find_copies
from dermkit.audit.output import Audit, Checked, Reported, open_errors, say_unfound, write_tables
from dermkit.audit.page import write_page
from dermkit.audit.scan.scan import scan
from dermkit.audit.split_view import Sides, read_sides
from dermkit.data.groups import join
from dermkit.data.manifest import FORMAT, Dataset, load_dataset
from dermkit.data.split import split_groups
from dermkit.errors import DataError
from dermkit.files import lock, read_json, sha256_file, sweep_temp
from dermkit.progress import Watch

FOLDER = "audit"
"""Of the data set folder; everything that an audit writes is in it."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What the pixels of all images say. measures: a row per image. pairs: copies, `Subject.pairs`."""

    measures: pd.DataFrame
    pairs: pd.DataFrame

    def within(self, before: Dataset, after: Dataset) -> "Seen":
        """Return what was seen of the rows that `after` still has, numbered as they are there."""
        rows = pd.Index(after.manifest["image_id"]).get_indexer(pd.Index(before.manifest["image_id"]))
        ends = self.pairs.assign(a=rows[self.pairs["a"]], b=rows[self.pairs["b"]])
        left = ends[(ends["a"] >= 0) & (ends["b"] >= 0)].reset_index(drop=True)
        return Seen(self.measures[rows >= 0].reset_index(drop=True), left)


Look = Callable[[Dataset, Watch], Seen]
"""Opens every image of a data set once and finds the copies among them."""


def looking(workers: int = 0) -> Look:
    """Return the look at the pixels with so many threads (0 = all cores)."""

    def look(dataset: Dataset, watch: Watch) -> Seen:
        found = scan(dataset, workers=workers, watch=watch)
        return Seen(found.table, find_copies(dataset.manifest, found, workers=workers, watch=watch))

    return look


def looking_across(workers: int = 0) -> Callable[[Dataset, Dataset, Watch], pd.DataFrame]:
    """Return the search for copies across two data sets: row `a` of the first, `b` of the second, distance, kind."""

    def look(first: Dataset, second: Dataset, watch: Watch) -> pd.DataFrame:
        scans = (scan(first, workers=workers, watch=watch), scan(second, workers=workers, watch=watch))
        pairs = find_common((first.manifest, second.manifest), scans, workers=workers, watch=watch)
        pairs.attrs["unseen"] = "; ".join(
            f"{n:,} of {len(of.manifest):,} images of {of.name} could not be opened, or changed since the import"
            for of, seen in zip((first, second), scans, strict=True)
            if (n := int((seen.table["changed"] != "").sum()))
        )
        return pairs

    return look


@dataclass(frozen=True, eq=False)
class AuditOutcome:
    """What an audit left: its findings (worst first), the page, and the data set as it is now.

    cleaned: whether this audit wrote another manifest, if only one with other copy groups. dropped: rows that went.
    """

    audit: Audit
    page: Path
    dataset: Dataset
    dropped: int
    cleaned: bool

    @property
    def findings(self) -> list[Reported]:
        """The findings, worst first."""
        return self.audit.findings

    @property
    def open_errors(self) -> list[Reported]:
        """The errors that nobody accepted."""
        return open_errors(self.findings)

    def refuse_errors(self) -> None:
        """Raise `DataError` (exit code 3) where an error is open: which codes, how many images, what to do."""
        errors = self.open_errors
        if not errors:
            return
        folder = self.dataset.folder
        listed = "; ".join(f"{it.card.code} {it.card.title} ({counted(it.finding.n, 'image')})" for it in errors)
        raise DataError(
            f"{folder}: {len(errors)} error{'s' * (len(errors) > 1)} not accepted: {listed}",
            kept=f"{self.page} and the tables beside it; {self._changed}",
            remedy="look at the page; then " + "; or ".join(self._ways(errors)),
        )

    @property
    def _changed(self) -> str:
        """What became of the manifest."""
        if not self.cleaned:
            return "no image and no row was changed"
        facts = self.dataset.notes["cleaned"][-1]
        done = (
            "audit/dropped.csv has what was dropped" if self.dropped else "no row was dropped, copies were grouped"
        )
        return f"no image was changed; {done}; the manifest before is {facts['manifest']}"

    def _ways(self, errors: Sequence[Reported]) -> list[str]:
        """Return what can be done about these errors."""
        folder, codes = self.dataset.folder, {item.card.code for item in errors}
        scheme = "given" if (self.dataset.manifest["given_split"] == "test").any() else "holdout"
        steps = []
        earlier = self.dataset.notes.get("cleaned") or [{}]
        # A manifest that a cleaning left is one that another would leave alone.
        is_clean = earlier[-1].get("to_manifest_sha256") == self.dataset.manifest_sha256
        if codes & CLEANED and not is_clean:
            steps.append(f"`dermkit audit {folder} --clean`")
        if codes & PARTED:
            steps += [f"`dermkit split {folder} --scheme {scheme}`", f"`dermkit audit {folder} --split {scheme}`"]
        accepting = "accept by code: " + " ".join(f"--accept {code}" for code in sorted(codes))
        return ["repair with " + ", then ".join(steps), accepting] if steps else [accepting]


def run_checks(subject: Subject, checks: Sequence[CheckFunction], watch: Watch | None = None) -> list[Checked]:
    """Run the checks in order; returns each one's card and outcome."""
    watch = watch or Watch()
    done = []
    for number, check in enumerate(checks, start=1):
        done.append(Checked(card(check), check(subject)))
        watch.step("checks", number, len(checks))
    return done


def audit_dataset(
    dataset: Dataset,
    *,
    look: Look,
    checks: Sequence[CheckFunction],
    alpha: float,
    split: str | Path | None = None,
    use: Use = "research",
    accept: Sequence[str] = (),
    clean: bool = False,
    watch: Watch | None = None,
) -> AuditOutcome:
    """Audit a data set: writes audit.json, a CSV per finding and audit.html into DATASET/audit.

    split: a split by name or file; default the published one. accept: codes that are accepted as they are found now.
    clean: afterwards write a clean manifest (`clean.plan_cleaning`), and audit what remains; the first audit is then
    in audit/before-clean. Raises `UsageError` (unknown code or split), `DataError`, `OutputError`; errors that are
    found do not raise (`AuditOutcome.refuse_errors` does).
    """
    watch = watch or Watch()
    codes = check_codes(accept, [card(check).code for check in checks])
    judge = _Judge(checks, alpha, use, codes, watch, time.perf_counter())
    with lock(dataset.folder):
        folder = dataset.folder / FOLDER
        sweep_temp(folder)
        dataset = _as_on_disk(dataset)
        sides = read_sides(dataset, split)
        seen = look(dataset, watch)
        audit = judge.audit(dataset, seen, sides)
        # Before the cleaning too: where that is refused or stopped, what was found is there to be read.
        page = _write(folder, audit)
        cleaned = _cleaned(audit, watch) if clean else None
        if cleaned:
            left = sides.within(cleaned.manifest)
            audit = judge.audit(cleaned, seen.within(dataset, cleaned), left, before=audit)
            page = _write(folder, audit)
    say_unfound(codes, audit.findings, watch)
    now = audit.subject.dataset
    return AuditOutcome(audit, page, now, len(dataset.manifest) - len(now.manifest), cleaned is not None)


def _as_on_disk(dataset: Dataset) -> Dataset:
    """Return the data set as its folder has it now: another command may have changed it before the lock was ours."""
    folder = dataset.folder
    if all((folder / name).is_file() for name in ("manifest.csv", "dataset.json")):
        notes = read_json(folder / "dataset.json", format=FORMAT, error=DataError)
        same = sha256_file(folder / "manifest.csv") == dataset.manifest_sha256
        if same and notes.get("accepted", {}) == records_of(dataset):
            return dataset
    return load_dataset(folder)


def _write(folder: Path, audit: Audit) -> Path:
    """Write all that an audit leaves; returns the path of its page."""
    write_tables(folder, audit)
    return write_page(folder / "audit.html", audit)


@dataclass(frozen=True, eq=False)
class _Judge:
    """What stays the same from the audit before a cleaning to the one after it."""

    checks: Sequence[CheckFunction]
    alpha: float
    use: Use
    codes: Sequence[str]
    watch: Watch
    began: float

    def audit(self, dataset: Dataset, seen: Seen, sides: Sides, *, before: Audit | None = None) -> Audit:
        """Run the checks, and record what is accepted of what they find. before: the audit that a cleaning followed."""
        subject = _subject(dataset, seen, sides, self.use)
        checked = run_checks(subject, self.checks, self.watch)
        found = {item.card.code: item.outcome for item in checked if isinstance(item.outcome, Finding)}
        date = datetime.now(UTC).date().isoformat()
        records, division = records_of(dataset), Division(sides.name, sides.sha256)
        if before:
            standing = [item.card.code for item in before.findings if item.accepted]
            records = carried(records, standing, found, dataset=dataset, division=division)
        records = with_accepted(records, self.codes, found, dataset=dataset, date=date, division=division)
        subject = replace(subject, dataset=save_records(subject.dataset, records))
        return Audit(
            subject=subject, sides=sides, checked=checked, records=records, alpha=self.alpha, date=date,
            seconds=time.perf_counter() - self.began,
        )  # fmt: skip


def _cleaned(audit: Audit, watch: Watch) -> Dataset | None:
    """Write the clean manifest, and beside it the audit that it answers; returns the data set if it changed."""
    dataset = audit.subject.dataset
    plan = plan_cleaning(audit.subject, {item.card.code for item in audit.findings if item.accepted})
    cleaned = apply_cleaning(dataset, plan, date=audit.date)
    if cleaned is dataset:
        watch.say("nothing to clean")
        return None
    facts = cleaned.notes["cleaned"][-1]
    _write(dataset.folder / facts["audit"], audit)
    watch.say(
        f"cleaned: {facts['dropped']} of {counted(len(dataset.manifest), 'image')} dropped (audit/dropped.csv), "
        f"{facts['copy_groups']} groups of copies are kept together; the old manifest is {facts['manifest']}"
    )
    return cleaned


def _subject(dataset: Dataset, seen: Seen, sides: Sides, use: Use) -> Subject:
    frame = dataset.manifest.reset_index(drop=True)
    frame = frame.assign(split=sides.of(frame))
    pairs = _pairs(frame, seen)
    first, second = (pairs[end].to_numpy(np.int64) for end in ("a", "b"))
    units = join(len(frame), first, second, split_groups(frame))
    return Subject(
        dataset=replace(dataset, manifest=frame[list(dataset.manifest.columns)]),
        frame=frame, measures=seen.measures, pairs=pairs, units=units, use=use,
    )  # fmt: skip


def _pairs(frame: pd.DataFrame, seen: Seen) -> pd.DataFrame:
    """Return the copies, the identical ones so that every label and every side of this split is among the pairs."""
    known = (
        (seen.measures["changed"] == "").to_numpy() if "changed" in seen.measures else np.ones(len(frame), bool)
    )
    exact = exact_pairs(frame["pixel_sha256"].where(known, ""), frame["label"], frame["split"])
    return pd.concat([exact, seen.pairs[seen.pairs["kind"] != "exact"]], ignore_index=True)
