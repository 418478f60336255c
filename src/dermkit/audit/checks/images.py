"""DA001 to DA006: files that could not be read, were read with a decision, or show too little."""

import csv
from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.audit.checks.finding import Finding, NotApplicable, Outcome, Severity, Subject, image_rows, per_class
from dermkit.audit.checks.text import counted, listed

TINY = 64
"""Shorter side in pixels. Below it neither network nor hair can be drawn; the smallest common input of a net is 64."""

DARK_LEVEL = 70
"""Grey level, 0..255, that 95 % of a dark picture stay below: of 7,357 public dermoscopic pictures none did."""

WHITE_SHARE = 0.6
"""Share of an overexposed picture at 245 or above; round fields on white ground stay below 0.3."""

BLURRED = 0.44
"""Sharpness as a share of the set's median. A Gaussian blur of 4 pixels at 450 pixels a side brought all of 600
pictures of three public sets below it, one of 5 pixels 99 % of made ones; of 7,357 of the sets as they are, three."""

FEWEST = 10
"""Pictures that a median needs."""

EMPTY = 3.0
"""Standard deviation of the grey levels; the faintest lesion of 7,357 public pictures has 4.8."""
EMPTY_SHARE = 0.05
"""The same as a share of the mean grey level, for dark pictures: a lesion in the dark varies little too."""

MATTERS = 0.05
"""Share of a class's pictures from which bad ones can move its figures."""
MATTERS_FROM = 20
"""Pictures that such a class has; in a smaller one a single bad picture would be a twentieth."""

NAMED = 3


def da001_unreadable(subject: Subject) -> Outcome:
    """Files that could not be read, or changed

    Threshold: any file refused at import, and any that is missing, refused or has another hash since.
    Severity: note for files refused at import; warning for files that changed or went missing since.
    Effect: The figures are about fewer or other pictures than the data set is known for, and cannot be compared.
    """
    refused = _refused(subject)
    since = (
        subject.measures["changed"] if "changed" in subject.measures else pd.Series("", index=subject.frame.index)
    )
    now = (since != "").to_numpy()
    if not len(refused) and not now.any():
        return None
    later = subject.frame.loc[now, ["path"]].assign(reason=since[now], detail="since the import")
    rows = pd.concat([later, refused], ignore_index=True).astype(str)
    said: list[str] = []
    if now.any():
        said.append(
            f"{counted(int(now.sum()), 'image')} changed, went missing or became unreadable since the import"
        )
    if len(refused):
        reasons = refused["reason"].value_counts()
        kinds = listed([f"{n:,} {reason}" for reason, n in reasons.head(NAMED).items()])
        said.append(f"the import refused {counted(len(refused), 'file')} of the source ({kinds})")
    text = "; ".join(said)
    return Finding(
        severity=Severity.WARNING if now.any() else Severity.NOTE, n=len(rows), kind="table", rows=rows,
        sentence=text[0].upper() + text[1:] + ".", per_class=per_class(subject, now),
        figures={"refused": len(refused), "since_import": int(now.sum())},
    )  # fmt: skip


def _refused(subject: Subject) -> pd.DataFrame:
    """Return what the import refused: path, reason, detail; from the list beside the manifest."""
    path = subject.dataset.folder / "refused.csv"
    columns = ["path", "reason", "detail"]
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as stream:
            rows = [[row.get(name) or "" for name in columns] for row in csv.DictReader(stream)]
        return pd.DataFrame(rows, columns=columns)
    noted = subject.dataset.notes.get("refused")
    reasons = noted.get("reasons", {}) if isinstance(noted, Mapping) else {}
    many = [["", str(reason), "refused.csv is gone"] for reason, n in reasons.items() for _ in range(int(n))]
    return pd.DataFrame(many, columns=columns)


def da002_odd_images(subject: Subject) -> Outcome:
    """Images that were decoded with a decision

    Threshold: any transparency, EXIF turn, 16-bit or grey scale, or colour profile that had to be decided upon.
    Severity: note.
    Effect: Another program may decide otherwise and see other pixels, so its figures differ from those measured here.
    """
    if "notes" not in subject.measures:
        return NotApplicable("the images were not measured")
    notes = subject.measures["notes"].fillna("")
    odd = (notes != "").to_numpy()
    if not odd.any():
        return None
    kinds = notes[odd].str.split("; ").explode().str.replace(r" \(.*", "", regex=True).value_counts()
    first = listed([f"{kind} ({n:,})" for kind, n in kinds.head(NAMED).items()])
    return Finding(
        severity=Severity.NOTE, n=int(odd.sum()), rows=image_rows(subject, odd, decision=notes[odd].to_numpy()),
        sentence=f"Decoded with a decision: {counted(int(odd.sum()), 'image')} of {len(notes):,}: {first}.",
        per_class=per_class(subject, odd), figures={"decisions": {str(kind): int(n) for kind, n in kinds.items()}},
    )  # fmt: skip


def da003_tiny(subject: Subject) -> Outcome:
    """Tiny images

    Threshold: shorter side below 64 pixels. Where half of the set is, this is said once, of the set.
    Severity: note; warning from 5 % of the images of a class, unless the whole set is small.
    Effect: A net sees these enlarged and empty of detail; their figures say little about pictures of usual size.
    """
    side = subject.frame[["width", "height"]].astype(int).min(axis=1)
    tiny = (side < TINY).to_numpy()
    if not tiny.any():
        return None
    if tiny.mean() < 0.5:
        return _bad(
            subject, tiny, side.to_numpy(), "shorter_side",
            f"a shorter side below {TINY} pixels", f"median of the others: {side[~tiny].median():.0f}",
        )  # fmt: skip
    sizes = subject.frame.loc[tiny, ["width", "height"]].value_counts().reset_index(name="images")
    return Finding(
        severity=Severity.NOTE, n=int(tiny.sum()), kind="table", rows=sizes,
        sentence=f"The set is small by design: {int(tiny.sum()):,} of {len(side):,} images have a shorter side below "
        f"{TINY} pixels (median {side.median():.0f}). Hair, rulers and pigment network cannot be seen in them, and "
        "the checks on artefacts do not apply.",
        per_class=per_class(subject, tiny), figures={"median_shorter_side": float(side.median())},
    )  # fmt: skip


def da004_dark_or_overexposed(subject: Subject) -> Outcome:
    """Dark or overexposed images

    Threshold: 95 % of the pixels below a grey level of 70, or 60 % of them at 245 and above (of 255).
    Severity: note; warning from 5 % of the images of a class.
    Effect: What a model says of them rests on the light; where a class has more, its accuracy is partly one of light.
    """
    if (absent := _absent(subject, "high_level", "bright_share", "contrast", "brightness")) is not None:
        return absent
    high = subject.measures["high_level"].to_numpy(np.float64)
    bad = _badly_lit(subject) & ~_near_empty(subject)
    dark = int((bad & (high < DARK_LEVEL)).sum())
    return _bad(
        subject, bad, high, "grey_level_95",
        "hardly any light or too much of it", f"{dark:,} dark, {int(bad.sum()) - dark:,} overexposed",
    )  # fmt: skip


def da005_blurred(subject: Subject) -> Outcome:
    """Blurred images

    Threshold: sharpness (detail of 1 to 2 pixels over that of 2 to 5, on at most 256 pixels a side) below 0.44 of the
    set's median; a Gaussian blur of 4 pixels at 450 pixels a side lies below. Tiny, empty and badly lit images apart.
    Severity: note; warning from 5 % of the images of a class.
    Effect: Network and dots are lost in them; a class that is blurred more often is told by its blur.
    """
    if (
        absent := _absent(subject, "sharpness", "contrast", "brightness", "high_level", "bright_share")
    ) is not None:
        return absent
    sharp = subject.measures["sharpness"].to_numpy(np.float64)
    side = subject.frame[["width", "height"]].astype(int).min(axis=1).to_numpy()
    comparable = np.isfinite(sharp) & (side >= TINY) & ~_near_empty(subject) & ~_badly_lit(subject)
    if comparable.sum() < FEWEST:
        return NotApplicable(f"fewer than {FEWEST} images of {TINY} pixels a side to compare with")
    relative = np.where(comparable, sharp, np.nan) / np.median(sharp[comparable])
    return _bad(
        subject, relative < BLURRED, relative, "sharpness_of_median",
        f"less than {BLURRED} of the set's median sharpness", f"median {np.median(sharp[comparable]):.2f}",
    )  # fmt: skip


def da006_near_empty(subject: Subject) -> Outcome:
    """Images that show next to nothing

    Threshold: standard deviation of the grey levels below 3 of 255; in dark images below 5 % of their mean, or 1.
    Severity: note; warning from 5 % of the images of a class.
    Effect: No lesion can be seen in them, so whatever a model answers counts as right or wrong by chance.
    """
    if (absent := _absent(subject, "contrast", "brightness")) is not None:
        return absent
    contrast = subject.measures["contrast"].to_numpy(np.float64)
    return _bad(
        subject, _near_empty(subject), contrast, "contrast", f"grey levels that vary by less than {EMPTY:.0f} of 255",
        f"median of the set: {np.nanmedian(contrast):.0f}",
    )  # fmt: skip


def _near_empty(subject: Subject) -> NDArray[np.bool_]:
    contrast, mean = (subject.measures[name].to_numpy(np.float64) for name in ("contrast", "brightness"))
    return np.asarray(contrast < np.clip(EMPTY_SHARE * mean, 1.0, EMPTY), np.bool_)


def _badly_lit(subject: Subject) -> NDArray[np.bool_]:
    high, white = (subject.measures[name].to_numpy(np.float64) for name in ("high_level", "bright_share"))
    return np.asarray((high < DARK_LEVEL) | (white > WHITE_SHARE), np.bool_)


def _absent(subject: Subject, *columns: str) -> NotApplicable | None:
    missing = [name for name in columns if name not in subject.measures or subject.measures[name].isna().all()]
    return NotApplicable(f"not measured: {listed(missing)}") if missing else None


def _bad(
    subject: Subject, bad: NDArray[np.bool_], value: NDArray[np.floating], column: str, what: str, detail: str
) -> Outcome:
    """Return the finding of images of bad quality, the worst class first, or None where there is none."""
    if not bad.any():
        return None
    counts = per_class(subject, bad)
    sizes = subject.frame["label"].value_counts()
    shares = {name: n / int(sizes[name]) for name, n in counts.items()}
    worst = max(shares, key=lambda name: shares[name])
    matters = any(share >= MATTERS and sizes[name] >= MATTERS_FROM for name, share in shares.items())
    rows = np.flatnonzero(bad)
    rows = rows[np.lexsort((value[rows], subject.frame["label"].map(shares).to_numpy()[rows] * -1))]
    return Finding(
        severity=Severity.WARNING if matters else Severity.NOTE, n=len(rows),
        sentence=f"{counted(len(rows), 'image')} of {len(bad):,} with {what} ({detail}); by share most of them in "
        f"{worst}: {counts[worst]:,} of {int(sizes[worst]):,}.",
        rows=image_rows(subject, rows, **{column: value[rows]}), per_class=counts,
        figures={"share_per_class": shares},
    )  # fmt: skip
