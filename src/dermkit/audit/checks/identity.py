"""Which known data set is this, is it the one that its name says, and whose images does it hold besides?"""

from typing import Any

import pandas as pd

from dermkit.audit.checks.finding import Finding, Outcome, Severity, Subject, image_rows, per_class
from dermkit.audit.checks.text import interval_text
from dermkit.data.identify import Identity, Known, canonical, claimed, held, identify, members
from dermkit.data.manifest import Dataset
from dermkit.metrics.stats.intervals import wilson

FOLLOWS = 0.5
"""Least gap between the shares of two classes (bounds of their intervals) at which the archive tells the class."""

FEW = 10
"""Images below which a class's share is not compared: its interval is wider than the gap that is asked for."""


def da070_known_set(subject: Subject) -> Outcome:
    """A known data set, recognised by its content.

    Threshold: its counts per class, or the ids or names of 95 % of its images, are those of a published set; folder
    names do not count.

    Severity: note.

    Effect: The known defects of the published set are in every accuracy published on it, and in yours.
    """
    found = identify(subject.dataset.manifest)
    if found is None:
        return None
    known = found.known
    facts = [("recognised as", found.words), ("licence", known.licence), ("cite", known.citation)]
    facts += [("known defect", text) for text in known.defects]
    facts += [("published figure", text) for text in known.published]
    sentence = f"This is {found.words}. " + (
        f"Known of it: {' '.join(known.defects)}" if known.defects else "No defect of it is known."
    )
    return Finding(
        severity=Severity.NOTE,
        n=found.images,
        sentence=sentence,
        rows=pd.DataFrame(facts, columns=["fact", "text"]),
        kind="table",
        figures={
            **_numbers(found), "licence": known.licence, "citation": known.citation,
            "defects": list(known.defects), "published": list(known.published),
        },
    )  # fmt: skip


def da071_name_and_content(subject: Subject) -> Outcome:
    """Its name claims a known set that its content is not.

    Threshold: the name of the data set or of its folder names a published set; its counts, classes, ids or file
    names are not those of that set, nor of one that holds it or that it holds.

    Severity: warning where the content speaks against the name, note where it only cannot confirm it.

    Effect: An accuracy on it cannot be set beside those published on the set that it is named after.
    """
    dataset = subject.dataset
    claims = _claims(dataset)
    found = identify(dataset.manifest)
    if not claims or (found and any(_related(found.known, claim) for claim in claims)):
        return None
    against = {claim.key: _against(dataset.manifest, claim) for claim in claims}
    is_wrong = bool(found) or all(against.values())
    reasons = [f"recognised as {found.words}"] if found else [text for texts in against.values() for text in texts]
    titles = " and ".join(claim.title for claim in claims)
    sentence = (
        f"Its name says {titles}; its content does not: {'; '.join(reasons)}."
        if is_wrong
        else f"Its name says {titles}; its content cannot confirm that (counts differ from those published)."
    )
    return Finding(
        severity=Severity.WARNING if is_wrong else Severity.NOTE,
        n=len(subject.frame),
        sentence=sentence,
        rows=_compared(dataset.manifest, claims),
        kind="table",
        figures={
            "claims": [claim.key for claim in claims],
            "recognised": found.known.key if found else None,
            "against": against,
        },
    )


def da072_held_set(subject: Subject) -> Outcome:
    """Images of another known set inside this one.

    Threshold: one image carries an ISIC id, lesion id or file name that only the other set has.

    Severity: warning where their share tells the classes apart (bounds of the 95 % intervals of two classes with at
    least 10 images lie 50 points apart), else note.

    Effect: A model made on either set and tested on the other has seen its test images; and where a class comes from
    one archive and its opposite from another, a net can tell archives apart instead of lesions.
    """
    manifest = subject.dataset.manifest
    own = identify(manifest)
    others = [item for item in held(manifest) if own is None or item.known.key != own.known.key]
    if not others:
        return None
    parts = [_shares(subject, item) for item in others]
    ours = sum((members(manifest, item.known) for item in others[1:]), members(manifest, others[0].known))
    follows = [part for part in parts if part["gap"] >= FOLLOWS]
    return Finding(
        severity=Severity.WARNING if follows else Severity.NOTE,
        n=int(ours.sum()),
        sentence=" ".join(
            _held_sentence(item, part, len(manifest)) for item, part in zip(others, parts, strict=True)
        ),
        rows=image_rows(subject, ours, isic_id=manifest.loc[ours, "isic_id"].to_numpy()),
        per_class=per_class(subject, ours),
        figures={"sets": parts},
    )


def _numbers(found: Identity) -> dict[str, Any]:
    return {
        "key": found.known.key, "relation": found.relation, "images": found.images, "missing": found.missing,
        "extra": found.extra, "images_published": found.known.images,
    }  # fmt: skip


def _claims(dataset: Dataset) -> list[Known]:
    """Return the known sets that the data set's name claims; where it claims none, of its folders."""
    names = (dataset.name, dataset.folder.resolve().name, dataset.images.resolve().name)
    return next((claims for name in names if (claims := claimed([name]))), [])


def _related(one: Known, other: Known) -> bool:
    return one.key == other.key or one.key in other.holds or other.key in one.holds


def _against(manifest: pd.DataFrame, claim: Known) -> list[str]:
    """Return what in the content speaks against a claimed set, in words."""
    names = {canonical(name) for counts in (claim.totals, *claim.also) for name in counts}
    found = {canonical(str(name)) for name in manifest["label"].unique()}
    strange = sorted(found - names)
    fitting = manifest["path"].str.fullmatch(rf"(.*/)?({claim.file_name})(\.[^./]*)?").mean()
    reasons = [f"it has no class {', '.join(strange[:3])}"] if strange else []
    if len(manifest) > claim.images:
        reasons.append(f"it has {claim.images:,} images, not {len(manifest):,}")
    if fitting < 0.5:  # half of the files: some may have been renamed
        reasons.append(f"only {100 * fitting:.0f} % of the files are named as there")
    return reasons


def _compared(manifest: pd.DataFrame, claims: list[Known]) -> pd.DataFrame:
    """Return images per class here and in each claimed set, classes by their canonical names."""
    here = manifest["label"].map(lambda label: canonical(str(label))).value_counts()
    rows = []
    for claim in claims:
        there = pd.Series(claim.totals).groupby(canonical).sum()
        rows += [
            (claim.title, name, int(here.get(name, 0)), int(there.get(name, 0)))
            for name in sorted({*here.index, *there.index})
        ]
    return pd.DataFrame(rows, columns=["set", "class", "images_here", "images_published"])


def _shares(subject: Subject, item: Identity) -> dict[str, Any]:
    """Return how many images of each class are of a known set, and by how much two classes surely differ."""
    ours = members(subject.dataset.manifest, item.known)
    labels = subject.frame["label"]
    counts = {name: int((labels == name).sum()) for name in subject.dataset.class_names}
    inside = {name: int((labels[ours] == name).sum()) for name in counts}
    bounds = [wilson(inside[name], n) for name, n in counts.items() if n >= FEW]
    gap = max((low for low, _ in bounds), default=0.0) - min((high for _, high in bounds), default=1.0)
    return {
        **_numbers(item),
        "per_class": {name: {"n": inside[name], "of": n} for name, n in counts.items()},
        "gap": max(gap, 0.0),
    }


def _held_sentence(item: Identity, part: dict[str, Any], n: int) -> str:
    title, different = item.known.title, item.known.images - item.missing
    text = (
        f"{item.images:,} of {n:,} images ({interval_text(item.images, n)}) carry ids of "
        f"{title}: {different:,} of its {item.known.images:,} images."
    )
    if part["gap"] < FOLLOWS:
        return text
    shares = [(name, cell["n"], cell["of"]) for name, cell in part["per_class"].items() if cell["of"] >= FEW]
    least, a, of_a = min(shares, key=lambda row: (row[1] / row[2], -row[2]))
    most, b, of_b = max(shares, key=lambda row: (row[1] / row[2], row[2]))
    return f"{text} They tell classes apart: {a:,} of {of_a:,} {least}, but {b:,} of {of_b:,} {most}."
