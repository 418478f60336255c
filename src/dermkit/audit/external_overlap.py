"""The external check: does an external test set share images, lesions or patients with a reference data set?"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dermkit.audit.acceptance import check_codes, why_invalid
from dermkit.audit.checks.finding import CheckCard, Finding, Outcome, Severity, read_check_card
from dermkit.audit.checks.text import interval_text, join_words, plural, proportion_json
from dermkit.audit.dataset_links import (
    LINK_TYPES,
    SAME_IMAGE,
    SAME_LESION,
    SAME_PATIENT,
    DatasetLinks,
    NearDuplicateSearch,
    link_datasets,
)
from dermkit.audit.external_overlap_page import EXTERNAL_PAGE, write_external_check
from dermkit.audit.output import ReportedFinding, open_errors, report_unused_codes
from dermkit.data.identify import identify
from dermkit.data.manifest import Dataset, update_notes
from dermkit.errors import DataError, UsageError
from dermkit.files import lock, sweep_temp
from dermkit.progress import Progress

LinksCheck = Callable[[DatasetLinks], Outcome]

LINK_TYPE_TEXTS: Mapping[str, str] = {
    "exact": "identical pixels", "file": "identical files", "near": "near copies", "id": "the same ISIC id",
    "lesion": "the same lesion", "patient": "the same patient",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class ExternalCheckResult:
    """The result of checking an external set. is_external: near copies were searched too, and there is no link."""

    links: DatasetLinks
    verdict: str
    is_external: bool
    findings: list[ReportedFinding]
    folder: Path

    @property
    def page(self) -> Path:
        """The path of external.html."""
        return self.folder / EXTERNAL_PAGE

    @property
    def open_errors(self) -> list[ReportedFinding]:
        """The errors without a valid acceptance."""
        return open_errors(self.findings)

    def raise_for_errors(self) -> None:
        """Raise `DataError` (exit code 3) if there is an error that is not accepted."""
        errors = self.open_errors
        if not errors:
            return
        accept_flags = " ".join(f"--accept {error.card.code}" for error in errors)
        raise DataError(
            self.verdict,
            outcome=f"{self.page}, and pairs.csv beside it; no image and no row was changed",
            remedy=f"leave these images of {self.links.external.name} out, or accept by code: {accept_flags}",
        )


def da080_overlap(dataset_links: DatasetLinks) -> Outcome:
    """Images, lesions or patients of one set in the other.

    Threshold: one image of the second set has the pixels, the file, a near copy, the ISIC id, the lesion or the
    patient of an image of the first. Ids that every set numbers anew (a few digits) count only where two pictures
    with the same id are one image by another way.

    Severity: error.

    Effect: A figure on the second set of a model made on the first is not external: it has seen these images or
    lesions, and its accuracy on them is too high.
    """
    linked_mask = dataset_links.is_linked(LINK_TYPES)
    if not linked_mask.any():
        return None
    labels = dataset_links.external_rows["label"]
    class_sizes = {name: int((labels == name).sum()) for name in dataset_links.external.class_names}
    linked_per_class = {name: int((labels[linked_mask] == name).sum()) for name in class_sizes}
    linked_per_type = {
        link_type: int(dataset_links.is_linked((link_type,)).sum()) for link_type in dataset_links.searched_types
    }
    return Finding(
        severity=Severity.ERROR,
        n=int(linked_mask.sum()),
        sentence=_overlap_sentence(dataset_links),
        rows=dataset_links.pairs(),
        kind="pairs",
        per_class={name: n for name, n in linked_per_class.items() if n},
        figures={
            "shared_images": proportion_json(int(dataset_links.is_linked(SAME_IMAGE).sum()), len(labels)),
            "same_lesion": proportion_json(
                int(dataset_links.is_linked((*SAME_IMAGE, *SAME_LESION)).sum()), len(labels)
            ),
            "linked_images": proportion_json(int(linked_mask.sum()), len(labels)),
            "links_by_type": linked_per_type,
            "per_class": {name: proportion_json(linked_per_class[name], n) for name, n in class_sizes.items()},
            "links_by_reference_split": _linked_per_split(dataset_links),
        },
    )


def da081_contradictions(dataset_links: DatasetLinks) -> Outcome:
    """One image or lesion under contradictory labels in the two sets.

    Threshold: one pair of the same image (pixels, file, near copy or ISIC id) or lesion, whose two diagnoses differ
    or whose labels are benign and malignant; a diagnosis that a class such as bkl or akiec takes in does not differ.

    Severity: error.

    Effect: No model can be right on both sets: at least one of the two labels is wrong, and so is the accuracy on it.
    """
    contradictions = dataset_links.contradictions
    if contradictions.empty:
        return None
    pairs = dataset_links.pairs(contradictions)
    n = int(contradictions["b"].nunique())
    common_label_pairs = Counter(zip(pairs["label_a"], pairs["label_b"], strict=True)).most_common(3)
    examples = [f"{a} and {b} ({size})" for (a, b), size in common_label_pairs]
    labels = dataset_links.external_rows["label"].iloc[contradictions["b"].unique()]
    return Finding(
        severity=Severity.ERROR,
        n=n,
        sentence=f"{plural(n, 'image')} of {dataset_links.external.name} contradict{'s' * (n == 1)} the label that "
        f"{dataset_links.reference.name} gives the same image or lesion, such as {join_words(examples)}.",
        rows=pairs,
        kind="pairs",
        per_class={str(name): int(k) for name, k in labels.value_counts().items()},
    )


def da082_same_archive(dataset_links: DatasetLinks) -> Outcome:
    """Both sets are from one archive, though no overlap was found.

    Threshold: both are recognised as drawn from the same archive, or carry its ids, and nothing of DA080 was found.

    Severity: note.

    Effect: Clinics, cameras and labelling are shared, so that an accuracy falls less than on strangers' images.
    """
    archives = [_archive_of(dataset) for dataset in (dataset_links.reference, dataset_links.external)]
    if not archives[0] or archives[0] != archives[1] or dataset_links.is_linked(LINK_TYPES).any():
        return None
    rows = dataset_links.external_rows[["image_id", "path", "label", "split"]].head(0)
    return Finding(
        severity=Severity.NOTE,
        n=len(dataset_links.external_rows),
        sentence=f"Both sets draw from the {archives[0]}: no common image was found, but they are no strangers.",
        rows=rows,
    )


LINKS_CHECKS: tuple[LinksCheck, ...] = (da080_overlap, da081_contradictions, da082_same_archive)


def run_external_check(
    reference: Dataset,
    external: Dataset,
    *,
    progress: Progress,
    near_duplicate_search: NearDuplicateSearch | None = None,
    accept: Sequence[str] = (),
) -> ExternalCheckResult:
    """Check an external data set against a reference; writes into REFERENCE/audit/external-NAME.

    Files: external.json, external.html, pairs.csv (image_a of the reference), DA081.csv if labels contradict.
    near_duplicate_search: `run.pair_scanner`; without it only ids and hashes are compared, and no set is called
    external. accept: codes accepted for this pair of sets, recorded in the reference's dataset.json under
    `accepted_external`. Open errors do not raise (`ExternalCheckResult.raise_for_errors` does). Raises `UsageError`
    (the same folder twice, unknown code), `DataError`, `OutputError`.
    """
    if reference.folder.resolve() == external.folder.resolve():
        raise UsageError(f"{reference.folder}: is held against itself", remedy="name two data set folders")
    codes = check_codes(accept, [read_check_card(check).code for check in LINKS_CHECKS])
    folder = reference.work_folder / "audit" / f"external-{_file_safe(external.name)}"
    with lock(reference.work_folder):
        sweep_temp(reference.work_folder / "audit")
        dataset_links = link_datasets(
            reference, external, near_duplicate_search=near_duplicate_search, progress=progress
        )
        outcomes = [(read_check_card(check), check(dataset_links)) for check in LINKS_CHECKS]
        dataset_links = _record_acceptances(
            dataset_links, [(c, f) for c, f in outcomes if isinstance(f, Finding) and c.code in codes]
        )
        findings = [
            _report_finding(dataset_links, check_card, outcome)
            for check_card, outcome in outcomes
            if isinstance(outcome, Finding)
        ]
        verdict_text = external_verdict(dataset_links)
        write_external_check(folder, dataset_links, findings, verdict_text, is_external=is_external(dataset_links))
    report_unused_codes(codes, findings, progress)
    return ExternalCheckResult(dataset_links, verdict_text, is_external(dataset_links), findings, folder)


def external_verdict(dataset_links: DatasetLinks) -> str:
    """Return in one sentence whether the external set is external to the reference."""
    n, total = int(dataset_links.is_linked(LINK_TYPES).sum()), len(dataset_links.external_rows)
    if n:
        return (
            f"Your external test set is not external: {n:,} of {total:,} images of {dataset_links.external.name} "
            f"({interval_text(n, total)}) belong to images, lesions or patients of "
            f"{dataset_links.reference.name}."
        )
    link_type_names = join_words(
        [
            LINK_TYPE_TEXTS[link_type]
            for link_type in dataset_links.searched_types
            if link_type not in dataset_links.limitations
        ]
    )
    no_link_text = (
        f"no image of {dataset_links.external.name} shares "
        f"{link_type_names.replace(' and ', ' or ')} with {dataset_links.reference.name}"
    )
    limited_types = [
        link_type
        for link_type in dataset_links.searched_types
        if link_type in dataset_links.limitations and link_type != "near"
    ]
    ids = join_words([LINK_TYPE_TEXTS[link_type].removeprefix("the same ") for link_type in limited_types])
    unknown_ids_text = f"; not all images have a known {ids.replace(' and ', ' or ')}" if ids else ""
    if is_external(dataset_links):
        return f"Your external test set is external as far as can be seen: {no_link_text}{unknown_ids_text}."
    return (
        f"Your external test set cannot be called external: {no_link_text}{unknown_ids_text}, but "
        f"{dataset_links.limitations['near']}."
    )


def is_external(dataset_links: DatasetLinks) -> bool:
    """Return whether near copies were searched too and there is no link."""
    return "near" not in dataset_links.limitations and not dataset_links.is_linked(LINK_TYPES).any()


def _overlap_sentence(dataset_links: DatasetLinks) -> str:
    total = len(dataset_links.external_rows)
    same_image, same_lesion = dataset_links.is_linked(SAME_IMAGE), dataset_links.is_linked(SAME_LESION)
    same_patient = dataset_links.is_linked(SAME_PATIENT)
    n_same_image = int(same_image.sum())
    link_type_counts = [
        f"{LINK_TYPE_TEXTS[link_type]} {n:,}"
        for link_type in SAME_IMAGE
        if link_type in dataset_links.searched_types and (n := int(dataset_links.is_linked((link_type,)).sum()))
    ]
    clauses = [
        f"{n_same_image:,} of {total:,} images of {dataset_links.external.name} ({interval_text(n_same_image, total)}) "
        f"are pictures that {dataset_links.reference.name} has too"
        + (f" ({', '.join(link_type_counts)})" if link_type_counts else "")
    ]
    for flags, noun in (
        (same_lesion & ~same_image, "a lesion"),
        (same_patient & ~same_lesion & ~same_image, "a patient"),
    ):
        if flags.any():
            clauses.append(f"{int(flags.sum()):,} more show {noun} of {dataset_links.reference.name}")
    linked_per_split = _linked_per_split(dataset_links)
    if linked_per_split:
        clauses.append(
            f"by the sides of {dataset_links.reference.name}: "
            + ", ".join(f"{split_name} {n:,}" for split_name, n in linked_per_split.items())
        )
    return "; ".join(clauses) + "."


def _linked_per_split(dataset_links: DatasetLinks) -> dict[str, int]:
    """Return external images linked to each split of the reference: a model was trained on the training split alone."""
    links_with_split = dataset_links.links.assign(
        side=dataset_links.reference_rows["split"].to_numpy()[dataset_links.links["a"].to_numpy(dtype=int)]
    )
    counts = links_with_split[links_with_split["side"] != ""].groupby("side")["b"].nunique()
    return {str(split_name): int(n) for split_name, n in counts.items()}


def _archive_of(dataset: Dataset) -> str:
    """Return the archive that a data set comes from, "" if unknown."""
    identity = identify(dataset.manifest)
    if identity:
        return identity.known_dataset.archive
    stated_archive = str(dataset.notes.get("archive", ""))
    of_isic = (dataset.manifest["isic_id"] != "").mean() > 0.5  # most of its images
    return stated_archive or ("ISIC Archive" if of_isic else "")


def _file_safe(name: str) -> str:
    safe_name = "".join(
        character if (character.isalnum() and character.isascii()) or character in "._-" else "-"
        for character in name
    )
    return safe_name.strip(".-")[:80] or "other"


# Acceptances of this pair of sets, in the reference's dataset.json --------------------------------------------------


def _report_finding(dataset_links: DatasetLinks, check_card: CheckCard, finding: Finding) -> ReportedFinding:
    record = (
        _recorded_acceptances(dataset_links.reference).get(dataset_links.external.name, {}).get(check_card.code)
    )
    if record is None:
        return ReportedFinding(check_card, finding, None, "")
    reason = why_invalid(record, manifest_sha256=_manifest_hashes(dataset_links), n=finding.n)
    return ReportedFinding(check_card, finding, None if reason else record, reason)


def _record_acceptances(
    dataset_links: DatasetLinks, findings: Sequence[tuple[CheckCard, Finding]]
) -> DatasetLinks:
    """Record acceptances in the reference's dataset.json; returns the links with the updated reference."""
    if not findings:
        return dataset_links
    date = datetime.now(UTC).date().isoformat()
    new_records = {
        check_card.code: {"date": date, "manifest_sha256": _manifest_hashes(dataset_links), "n": finding.n}
        for check_card, finding in findings
    }
    earlier_records = _recorded_acceptances(dataset_links.reference)
    records = {
        **earlier_records,
        dataset_links.external.name: {**earlier_records.get(dataset_links.external.name, {}), **new_records},
    }
    return replace(dataset_links, reference=update_notes(dataset_links.reference, accepted_external=records))


def _recorded_acceptances(dataset: Dataset) -> dict[str, Any]:
    acceptances = dataset.notes.get("accepted_external", {})
    return dict(acceptances) if isinstance(acceptances, Mapping) else {}


def _manifest_hashes(dataset_links: DatasetLinks) -> str:
    return f"{dataset_links.reference.manifest_sha256} {dataset_links.external.manifest_sha256}"
