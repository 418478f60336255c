"""DA070 to DA072: which known data set this is, whether the name fits the content, and which others it contains."""

from typing import Any

import pandas as pd

from dermkit.audit.checks.finding import AuditInput, Finding, Outcome, Severity, image_table, images_per_class
from dermkit.audit.checks.text import interval_text
from dermkit.data.diagnoses import canonical_name
from dermkit.data.identify import DatasetIdentity, find_claimed, find_contained, identify, member_mask
from dermkit.data.known_datasets import KNOWN_DATASETS, KnownDataset
from dermkit.data.manifest import Dataset
from dermkit.metrics.stats.intervals import wilson_interval

MIN_CLASS_GAP = 0.5
"""Least gap between the intervals of two classes' fractions from which the archive predicts the class."""

_MIN_IMAGES_COMPARED = 10
"""Fewest images of a class that is compared: with fewer its interval is wider than `MIN_CLASS_GAP`."""


def da070_known_set(audit_input: AuditInput) -> Outcome:
    """A known data set, recognised by its content.

    Threshold: its counts per class, or the ids or names of 95 % of its images, are those of a published set; folder
    names do not count.

    Severity: note.

    Effect: The known defects of the published data set affect every accuracy published on it, and yours.
    """
    identity = identify(audit_input.dataset.manifest)
    if identity is None:
        return None
    known_dataset = identity.known_dataset
    fact_rows = [
        ("recognised as", identity.description),
        ("licence", known_dataset.licence),
        ("cite", known_dataset.citation),
    ]
    fact_rows += [("known defect", text) for text in known_dataset.defects]
    fact_rows += [("published figure", text) for text in known_dataset.published_results]
    sentence = f"This is {identity.description}. " + (
        f"Known of it: {' '.join(known_dataset.defects)}" if known_dataset.defects else "No defect of it is known."
    )
    return Finding(
        severity=Severity.NOTE,
        n=identity.n_images,
        sentence=sentence,
        rows=pd.DataFrame(fact_rows, columns=["fact", "text"]),
        kind="table",
        figures={
            **_identity_json(identity), "licence": known_dataset.licence, "citation": known_dataset.citation,
            "defects": list(known_dataset.defects), "published": list(known_dataset.published_results),
        },
    )  # fmt: skip


def da071_name_and_content(audit_input: AuditInput) -> Outcome:
    """Named after a known data set, but with other content.

    Threshold: the name of the data set or of its folder names a published set; its counts, classes, ids or file
    names are not those of that set, nor of one that holds it or that it holds; and it was not recognised at import and
    changed by dermkit alone since.

    Severity: warning where the content speaks against the name, note where it only cannot confirm it.

    Effect: An accuracy on it cannot be set beside those published on the set that it is named after.
    """
    dataset = audit_input.dataset
    claims = _claimed_sets(dataset)
    identity = identify(dataset.manifest)
    if not claims or (identity and any(_is_related(identity.known_dataset, claim) for claim in claims)):
        return None
    if any(claim.key in _keys_before_changes(dataset) for claim in claims):
        return None
    contradictions = {claim.key: _content_contradictions(dataset.manifest, claim) for claim in claims}
    is_contradicted = bool(identity) or all(contradictions.values())
    reasons = (
        [f"recognised as {identity.description}"]
        if identity
        else [text for texts in contradictions.values() for text in texts]
    )
    titles = " and ".join(claim.title for claim in claims)
    sentence = (
        f"Its name says {titles}; its content does not: {'; '.join(reasons)}."
        if is_contradicted
        else f"Its name says {titles}; its content cannot confirm that (counts differ from those published)."
    )
    return Finding(
        severity=Severity.WARNING if is_contradicted else Severity.NOTE,
        n=len(audit_input.frame),
        sentence=sentence,
        rows=_class_count_table(dataset.manifest, claims),
        kind="table",
        figures={
            "claims": [claim.key for claim in claims],
            "recognised_as": identity.known_dataset.key if identity else None,
            "contradictions": contradictions,
        },
    )


def da072_contains_known_set(audit_input: AuditInput) -> Outcome:
    """Images of another known data set in this one.

    Threshold: one image carries an ISIC id, lesion id or file name that only the other set has.

    Severity: warning where their proportion separates the classes (bounds of the 95 % intervals of two classes with at
    least 10 images lie 50 points apart), else note.

    Effect: A model made on either set and tested on the other has seen its test images; and where a class comes from
    one archive and its opposite from another, a net can tell archives apart instead of lesions.
    """
    manifest = audit_input.dataset.manifest
    self_identity = identify(manifest)
    contained_sets = [
        contained
        for contained in find_contained(manifest)
        if self_identity is None or contained.known_dataset.key != self_identity.known_dataset.key
    ]
    if not contained_sets:
        return None
    set_figures = [_contained_fractions(audit_input, contained) for contained in contained_sets]
    is_member = sum(
        (member_mask(manifest, contained.known_dataset) for contained in contained_sets[1:]),
        member_mask(manifest, contained_sets[0].known_dataset),
    )
    class_related = [figures for figures in set_figures if figures["class_gap"] >= MIN_CLASS_GAP]
    return Finding(
        severity=Severity.WARNING if class_related else Severity.NOTE,
        n=int(is_member.sum()),
        sentence=" ".join(
            _contained_sentence(contained, figures, len(manifest))
            for contained, figures in zip(contained_sets, set_figures, strict=True)
        ),
        rows=image_table(audit_input, is_member, isic_id=manifest.loc[is_member, "isic_id"].to_numpy()),
        per_class=images_per_class(audit_input, is_member),
        figures={"contained_sets": set_figures},
    )


def _identity_json(identity: DatasetIdentity) -> dict[str, Any]:
    return {
        "key": identity.known_dataset.key,
        "relation": identity.relation,
        "n_images": identity.n_images,
        "n_missing": identity.n_missing,
        "n_extra": identity.n_extra,
        "n_published_images": identity.known_dataset.n_images,
    }


def _claimed_sets(dataset: Dataset) -> list[KnownDataset]:
    """Return the known sets that the data set's name claims, or else the name of its folders."""
    names = (dataset.name, dataset.folder.resolve().name, dataset.image_root.resolve().name)
    return next((claims for name in names if (claims := find_claimed([name]))), [])


def _keys_before_changes(dataset: Dataset) -> set[str]:
    """Return the published set that was recognised at import and those it holds, if only dermkit changed it since.

    That is: by a cleaning, or by `--merge`, `--rename` and `--drop` at import; not by hand.
    """
    notes = dataset.notes
    recognised = next((known for known in KNOWN_DATASETS if known.key == notes.get("known")), None)
    cleanings = notes.get("cleanings")
    last_cleaning = cleanings[-1] if isinstance(cleanings, list) and cleanings else None
    cleaned_sha256 = last_cleaning.get("to_manifest_sha256") if isinstance(last_cleaning, dict) else None
    known_manifests = (notes.get("imported_manifest_sha256"), cleaned_sha256)
    if recognised is None or dataset.manifest_sha256 not in known_manifests:
        return set()
    return {recognised.key, *recognised.contained_keys}


def _is_related(first: KnownDataset, second: KnownDataset) -> bool:
    return first.key == second.key or first.key in second.contained_keys or second.key in first.contained_keys


def _content_contradictions(manifest: pd.DataFrame, claim: KnownDataset) -> list[str]:
    """Return what in the content contradicts a claimed set, as texts."""
    published_labels = {
        canonical_name(name) for counts in (claim.class_counts, *claim.other_counts) for name in counts
    }
    labels = {canonical_name(str(name)) for name in manifest["label"].unique()}
    unknown_labels = sorted(labels - published_labels)
    matching_fraction = manifest["path"].str.fullmatch(rf"(.*/)?({claim.file_pattern})(\.[^./]*)?").mean()
    reasons = [f"it has no class {', '.join(unknown_labels[:3])}"] if unknown_labels else []
    if len(manifest) > claim.n_images:
        reasons.append(f"it has {claim.n_images:,} images, not {len(manifest):,}")
    if matching_fraction < 0.5:  # half of the files: some may have been renamed
        reasons.append(f"only {100 * matching_fraction:.0f} % of the files are named as there")
    return reasons


def _class_count_table(manifest: pd.DataFrame, claims: list[KnownDataset]) -> pd.DataFrame:
    """Return images per class here and in each claimed set, classes by their canonical names."""
    dataset_counts = manifest["label"].map(lambda label: canonical_name(str(label))).value_counts()
    rows = []
    for claim in claims:
        published_counts = pd.Series(claim.class_counts).groupby(canonical_name).sum()
        rows += [
            (claim.title, name, int(dataset_counts.get(name, 0)), int(published_counts.get(name, 0)))
            for name in sorted({*dataset_counts.index, *published_counts.index})
        ]
    return pd.DataFrame(rows, columns=["set", "class", "images_here", "images_published"])


def _contained_fractions(audit_input: AuditInput, identity: DatasetIdentity) -> dict[str, Any]:
    """Return the images of each class that are of a known set, and the gap between intervals of two classes."""
    is_member = member_mask(audit_input.dataset.manifest, identity.known_dataset)
    labels = audit_input.frame["label"]
    class_sizes = {name: int((labels == name).sum()) for name in audit_input.dataset.class_names}
    members_per_class = {name: int((labels[is_member] == name).sum()) for name in class_sizes}
    bounds = [
        wilson_interval(members_per_class[name], n) for name, n in class_sizes.items() if n >= _MIN_IMAGES_COMPARED
    ]
    gap = max((low for low, _ in bounds), default=0.0) - min((high for _, high in bounds), default=1.0)
    return {
        **_identity_json(identity),
        "per_class": {name: {"n": members_per_class[name], "total": n} for name, n in class_sizes.items()},
        "class_gap": max(gap, 0.0),
    }


def _contained_sentence(identity: DatasetIdentity, figures: dict[str, Any], n: int) -> str:
    title, n_distinct = identity.known_dataset.title, identity.known_dataset.n_images - identity.n_missing
    text = (
        f"{identity.n_images:,} of {n:,} images ({interval_text(identity.n_images, n)}) carry ids of "
        f"{title}: {n_distinct:,} of its {identity.known_dataset.n_images:,} images."
    )
    if figures["class_gap"] < MIN_CLASS_GAP:
        return text
    class_counts = [
        (name, cell["n"], cell["total"])
        for name, cell in figures["per_class"].items()
        if cell["total"] >= _MIN_IMAGES_COMPARED
    ]
    lowest_class, n_lowest, total_lowest = min(class_counts, key=lambda row: (row[1] / row[2], -row[2]))
    highest_class, n_highest, total_highest = max(class_counts, key=lambda row: (row[1] / row[2], row[2]))
    return (
        f"{text} They separate the classes: {n_lowest:,} of {total_lowest:,} {lowest_class}, but "
        f"{n_highest:,} of {total_highest:,} {highest_class}."
    )
