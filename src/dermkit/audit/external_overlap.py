"""Is an external test set really external? Two data sets of one's own held against each other."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from dermkit.audit.acceptance import check_codes, void
from dermkit.audit.checks.finding import Card, CheckFunction, Finding, Outcome, Severity, card
from dermkit.audit.checks.text import counted, interval_text, listed, share_figures
from dermkit.audit.dataset_links import SAME_IMAGE, SAME_LESION, SAME_PATIENT, WAYS, Meeting, NearLook, meet
from dermkit.audit.external_overlap_page import write_against
from dermkit.audit.output import Reported, open_errors, say_unfound
from dermkit.data.identify import identify
from dermkit.data.manifest import FORMAT, Dataset
from dermkit.errors import DataError, UsageError
from dermkit.files import lock, read_json, sweep_temp, write_json
from dermkit.progress import Watch

MeetingCheck = Callable[[Meeting], Outcome]

WAY_WORDS: Mapping[str, str] = {
    "exact": "identical pixels", "file": "identical files", "near": "near copies", "id": "the same ISIC id",
    "lesion": "the same lesion", "patient": "the same patient",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class AgainstOutcome:
    """What holding b against a left. external: near copies were searched too, and nothing of a was found in b."""

    meeting: Meeting
    verdict: str
    external: bool
    findings: list[Reported]
    folder: Path

    @property
    def page(self) -> Path:
        """The page for people."""
        return self.folder / "against.html"

    @property
    def open_errors(self) -> list[Reported]:
        """The errors that nobody accepted."""
        return open_errors(self.findings)

    def refuse_errors(self) -> None:
        """Raise `DataError` (exit code 3) where an error is open."""
        errors = self.open_errors
        if not errors:
            return
        accepting = " ".join(f"--accept {item.card.code}" for item in errors)
        raise DataError(
            self.verdict,
            kept=f"{self.page}, and pairs.csv beside it; no image and no row was changed",
            remedy=f"leave these images of {self.meeting.b.name} out, or accept by code: {accepting}",
        )


def da080_overlap(meeting: Meeting) -> Outcome:
    """Images, lesions or patients of one set in the other.

    Threshold: one image of the second set has the pixels, the file, a near copy, the ISIC id, the lesion or the
    patient of an image of the first. Ids that every set numbers anew (a few digits) count only where two pictures
    with the same id are one image by another way.

    Severity: error.

    Effect: A figure on the second set of a model made on the first is not external: it has seen these images or
    lesions, and its accuracy on them is too high.
    """
    found = meeting.found(WAYS)
    if not found.any():
        return None
    labels = meeting.frame_b["label"]
    totals = {name: int((labels == name).sum()) for name in meeting.b.class_names}
    inside = {name: int((labels[found] == name).sum()) for name in totals}
    ways = {way: int(meeting.found((way,)).sum()) for way in meeting.searched}
    return Finding(
        severity=Severity.ERROR,
        n=int(found.sum()),
        sentence=_overlap_sentence(meeting),
        rows=meeting.pairs(),
        kind="pairs",
        per_class={name: n for name, n in inside.items() if n},
        figures={
            "not_new": share_figures(int(meeting.found(SAME_IMAGE).sum()), len(labels)),
            "same_lesion": share_figures(int(meeting.found((*SAME_IMAGE, *SAME_LESION)).sum()), len(labels)),
            "found": share_figures(int(found.sum()), len(labels)),
            "ways": ways,
            "per_class": {name: share_figures(inside[name], n) for name, n in totals.items()},
            "sides_of_a": _sides_of_a(meeting),
        },
    )


def da081_contradictions(meeting: Meeting) -> Outcome:
    """One image or lesion under contradictory labels in the two sets.

    Threshold: one pair of the same image (pixels, file, near copy or ISIC id) or lesion, whose two diagnoses differ
    or whose labels are benign and malignant; a diagnosis that a class such as bkl or akiec takes in does not differ.

    Severity: error.

    Effect: No model can be right on both sets: at least one of the two labels is wrong, and so is the accuracy on it.
    """
    wrong = meeting.contradictions
    if wrong.empty:
        return None
    pairs = meeting.pairs(wrong)
    n = int(wrong["b"].nunique())
    commonest = Counter(zip(pairs["label_a"], pairs["label_b"], strict=True)).most_common(3)
    examples = [f"{a} and {b} ({size})" for (a, b), size in commonest]
    labels = meeting.frame_b["label"].iloc[wrong["b"].unique()]
    return Finding(
        severity=Severity.ERROR,
        n=n,
        sentence=f"{counted(n, 'image')} of {meeting.b.name} contradict{'s' * (n == 1)} the label that "
        f"{meeting.a.name} gives the same image or lesion, such as {listed(examples)}.",
        rows=pairs,
        kind="pairs",
        per_class={str(name): int(k) for name, k in labels.value_counts().items()},
    )


def da082_same_archive(meeting: Meeting) -> Outcome:
    """Both sets are from one archive, though no overlap was found.

    Threshold: both are recognised as drawn from the same archive, or carry its ids, and nothing of DA080 was found.

    Severity: note.

    Effect: Clinics, cameras and labelling are shared, so that an accuracy falls less than on strangers' images.
    """
    archives = [_archive(dataset) for dataset in (meeting.a, meeting.b)]
    if not archives[0] or archives[0] != archives[1] or meeting.found(WAYS).any():
        return None
    rows = meeting.frame_b[["image_id", "path", "label", "split"]].head(0)
    return Finding(
        severity=Severity.NOTE,
        n=len(meeting.frame_b),
        sentence=f"Both sets draw from the {archives[0]}: no common image was found, but they are no strangers.",
        rows=rows,
    )


MEETING_CHECKS: tuple[MeetingCheck, ...] = (da080_overlap, da081_contradictions, da082_same_archive)


def audit_against(
    a: Dataset, b: Dataset, *, watch: Watch, look: NearLook | None = None, accept: Sequence[str] = ()
) -> AgainstOutcome:
    """Say how much of data set b is new to somebody who has seen a; writes into A/audit/against-<name of b>.

    Files: against.json, pairs.csv (image_a of a, image_b of b), DA081.csv where labels contradict, against.html.
    look: the search for near copies (`run.looking_across`); without it ids and hashes alone are compared, and no set
    is called external.
    accept: codes accepted for this pair of sets as they are found now; recorded in A's dataset.json under
    `accepted_against`. Errors that are found do not raise (`AgainstOutcome.refuse_errors` does). Raises `UsageError`
    (the same folder twice, unknown code), `DataError`, `OutputError`.
    """
    if a.folder.resolve() == b.folder.resolve():
        raise UsageError(f"{a.folder}: is held against itself", remedy="name two data set folders")
    codes = check_codes(accept, [card(cast(CheckFunction, check)).code for check in MEETING_CHECKS])
    folder = a.folder / "audit" / f"against-{_plain(b.name)}"
    with lock(a.folder):
        sweep_temp(a.folder / "audit")
        meeting = meet(a, b, look=look, watch=watch)
        cards = [(card(cast(CheckFunction, check)), check(meeting)) for check in MEETING_CHECKS]
        meeting = _accepted(meeting, [(c, f) for c, f in cards if isinstance(f, Finding) and c.code in codes])
        findings = [_report(meeting, read, found) for read, found in cards if isinstance(found, Finding)]
        text = verdict(meeting)
        write_against(folder, meeting, findings, text, is_external=is_external(meeting))
    say_unfound(codes, findings, watch)
    return AgainstOutcome(meeting, text, is_external(meeting), findings, folder)


def verdict(meeting: Meeting) -> str:
    """Return whether b is external to a, in one sentence."""
    n, total = int(meeting.found(WAYS).sum()), len(meeting.frame_b)
    if n:
        return (
            f"Your external test set is not external: {n:,} of {total:,} images of {meeting.b.name} "
            f"({interval_text(n, total)}) belong to images, lesions or patients of "
            f"{meeting.a.name}."
        )
    ways = listed([WAY_WORDS[way] for way in meeting.searched if way not in meeting.blind])
    nothing = f"no image of {meeting.b.name} shares {ways.replace(' and ', ' or ')} with {meeting.a.name}"
    unknown = [way for way in meeting.searched if way in meeting.blind and way != "near"]
    ids = listed([WAY_WORDS[way].removeprefix("the same ") for way in unknown])
    but = f"; not all images have a known {ids.replace(' and ', ' or ')}" if ids else ""
    if is_external(meeting):
        return f"Your external test set is external as far as can be seen: {nothing}{but}."
    return f"Your external test set cannot be called external: {nothing}{but}, but {meeting.blind['near']}."


def is_external(meeting: Meeting) -> bool:
    """Say whether near copies were searched too, and nothing was found."""
    return "near" not in meeting.blind and not meeting.found(WAYS).any()


def _overlap_sentence(meeting: Meeting) -> str:
    total = len(meeting.frame_b)
    image, lesion = meeting.found(SAME_IMAGE), meeting.found(SAME_LESION)
    patient = meeting.found(SAME_PATIENT)
    seen = int(image.sum())
    ways = [
        f"{WAY_WORDS[way]} {n:,}"
        for way in SAME_IMAGE
        if way in meeting.searched and (n := int(meeting.found((way,)).sum()))
    ]
    parts = [
        f"{seen:,} of {total:,} images of {meeting.b.name} ({interval_text(seen, total)}) "
        f"are pictures that {meeting.a.name} has too" + (f" ({', '.join(ways)})" if ways else "")
    ]
    for flags, words in ((lesion & ~image, "a lesion"), (patient & ~lesion & ~image, "a patient")):
        if flags.any():
            parts.append(f"{int(flags.sum()):,} more show {words} of {meeting.a.name}")
    sides = _sides_of_a(meeting)
    if sides:
        parts.append(
            f"by the sides of {meeting.a.name}: " + ", ".join(f"{side} {n:,}" for side, n in sides.items())
        )
    return "; ".join(parts) + "."


def _sides_of_a(meeting: Meeting) -> dict[str, int]:
    """Return images of b linked to each side of a: a model has learned from the training side alone."""
    sides = meeting.links.assign(side=meeting.frame_a["split"].to_numpy()[meeting.links["a"].to_numpy(dtype=int)])
    counts = sides[sides["side"] != ""].groupby("side")["b"].nunique()
    return {str(side): int(n) for side, n in counts.items()}


def _archive(dataset: Dataset) -> str:
    """Return the archive that a set draws from, "" where it is unknown."""
    known = identify(dataset.manifest)
    if known:
        return known.known.archive
    stated = str(dataset.notes.get("archive", ""))
    of_isic = (dataset.manifest["isic_id"] != "").mean() > 0.5  # most of its images
    return stated or ("ISIC Archive" if of_isic else "")


def _plain(name: str) -> str:
    kept = "".join(sign if (sign.isalnum() and sign.isascii()) or sign in "._-" else "-" for sign in name)
    return kept.strip(".-")[:80] or "other"


# Acceptance: for this pair of sets, in A's dataset.json -------------------------------------------------------------


def _report(meeting: Meeting, read: Card, finding: Finding) -> Reported:
    record = _records(meeting.a).get(meeting.b.name, {}).get(read.code)
    if record is None:
        return Reported(read, finding, None, "")
    reason = void(record, manifest_sha256=_both(meeting), n=finding.n)
    return Reported(read, finding, None if reason else record, reason)


def _accepted(meeting: Meeting, found: Sequence[tuple[Card, Finding]]) -> Meeting:
    """Record acceptances in A's dataset.json; returns the meeting whose `a` says so."""
    if not found:
        return meeting
    date = datetime.now(UTC).date().isoformat()
    new = {read.code: {"date": date, "manifest_sha256": _both(meeting), "n": item.n} for read, item in found}
    before = _records(meeting.a)
    records = {**before, meeting.b.name: {**before.get(meeting.b.name, {}), **new}}
    path = meeting.a.folder / "dataset.json"
    body = read_json(path, format=FORMAT, error=DataError)
    write_json(path, {**body, "accepted_against": records}, format=FORMAT)
    return replace(meeting, a=replace(meeting.a, notes={**meeting.a.notes, "accepted_against": records}))


def _records(dataset: Dataset) -> dict[str, Any]:
    found = dataset.notes.get("accepted_against", {})
    return dict(found) if isinstance(found, Mapping) else {}


def _both(meeting: Meeting) -> str:
    return f"{meeting.a.manifest_sha256} {meeting.b.manifest_sha256}"
