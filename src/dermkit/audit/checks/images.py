"""DA001 to DA006: files that cannot be read, have an ambiguous decoding, or show too little."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.audit.checks.finding import (
    AuditInput,
    Finding,
    NotApplicable,
    Outcome,
    Severity,
    image_table,
    images_per_class,
)
from dermkit.audit.checks.text import join_words, plural
from dermkit.data.importers.records import Rejected, read_rejected
from dermkit.images.jpeg_damage import DAMAGE_PREFIX

TINY_SIDE = 64
"""Shorter side in pixels. Below it neither network nor hair can be drawn; the smallest common input of a net is 64."""

DARK_LEVEL = 70
"""Grey level, 0..255, that 95 % of a dark picture stay below: of 7,357 public dermoscopic pictures none did."""

WHITE_FRACTION = 0.6
"""Fraction of an overexposed image at 245 or above; round fields on a white background stay below 0.3."""

BLURRED_RATIO = 0.44
"""Sharpness divided by the median of the set. At 450 pixels a side a Gaussian blur of 4 pixels puts all of 600 public
images below it, one of 5 pixels 99 % of synthetic ones; without blur 3 of 7,357 lie below."""

MIN_IMAGES_FOR_MEDIAN = 10
"""Fewest images for a median."""

EMPTY_CONTRAST = 3.0
"""Standard deviation of the grey levels; the faintest lesion of 7,357 public pictures has 4.8."""
EMPTY_CONTRAST_RATIO = 0.05
"""The same as a fraction of the mean grey level, for dark images, in which a lesion has little contrast too."""

WARNING_FRACTION = 0.05
"""Fraction of a class's images from which bad ones can change its metrics."""
WARNING_MIN_IMAGES = 20
"""Fewest images of such a class; in a smaller one a single bad image would be a twentieth."""

_MAX_NAMED = 3


def da001_unreadable(audit_input: AuditInput) -> Outcome:
    """Files that could not be read, changed, or are damaged

    Threshold: any file refused at import, any that is missing, refused or has another hash since, and any JPEG that
    lost a part of its pixels.
    Severity: note for files refused at import; warning for files that changed or went missing since, or are damaged.
    Effect: Results are about fewer or other images than the published data set has, and cannot be compared.
    """
    rejected = _rejected_files(audit_input)
    changes = (
        audit_input.measures["state"]
        if "state" in audit_input.measures
        else pd.Series("", index=audit_input.frame.index)
    )
    is_changed = (changes != "").to_numpy()
    is_damaged = _damaged(audit_input)
    if not len(rejected) and not is_changed.any() and not is_damaged.any():
        return None
    changed_rows = audit_input.frame.loc[is_changed, ["path"]].assign(
        reason=changes[is_changed], detail="since the import"
    )
    damaged_rows = audit_input.frame.loc[is_damaged, ["path"]].assign(
        reason="damaged", detail="its pixels are in part lost"
    )
    rows = pd.concat([damaged_rows, changed_rows, rejected], ignore_index=True).astype(str)
    clauses: list[str] = []
    if is_changed.any():
        clauses.append(
            f"{plural(int(is_changed.sum()), 'image')} changed, went missing or became unreadable since the import"
        )
    if is_damaged.any():
        clauses.append(f"{plural(int(is_damaged.sum()), 'JPEG')} lost a part of the pixels and still open")
    if len(rejected):
        reasons = rejected["reason"].value_counts()
        kinds = join_words([f"{n:,} {reason}" for reason, n in reasons.head(_MAX_NAMED).items()])
        clauses.append(f"the import refused {plural(len(rejected), 'file')} of the source ({kinds})")
    text = "; ".join(clauses)
    return Finding(
        severity=Severity.WARNING if (is_changed | is_damaged).any() else Severity.NOTE, n=len(rows), kind="table",
        rows=rows, sentence=text[0].upper() + text[1:] + ".",
        per_class=images_per_class(audit_input, is_changed | is_damaged),
        figures={
            "refused": len(rejected),
            "changed_since_import": int(is_changed.sum()),
            "damaged": int(is_damaged.sum()),
        },
    )  # fmt: skip


def _damaged(audit_input: AuditInput) -> NDArray[np.bool_]:
    """Return which images are JPEG files that lost a part of their pixels, (N,)."""
    if "notes" not in audit_input.measures:
        return np.zeros(len(audit_input.frame), dtype=bool)
    return audit_input.measures["notes"].fillna("").str.contains(DAMAGE_PREFIX, regex=False).to_numpy(dtype=bool)


def _rejected_files(audit_input: AuditInput) -> pd.DataFrame:
    """Return the files that the import refused: path, reason, detail."""
    rejected = read_rejected(audit_input.dataset.folder)
    if rejected is not None:
        return pd.DataFrame(rejected, columns=Rejected._fields)
    refused_note = audit_input.dataset.notes.get("refused")
    reasons = refused_note.get("reasons", {}) if isinstance(refused_note, Mapping) else {}
    reason_rows = [
        ["", str(reason), "refused.csv is gone"] for reason, n in reasons.items() for _ in range(int(n))
    ]
    return pd.DataFrame(reason_rows, columns=Rejected._fields)


def da002_ambiguous_decoding(audit_input: AuditInput) -> Outcome:
    """Images whose decoding needed a choice

    Threshold: any transparency, EXIF turn, 16-bit or grey scale, or colour profile whose handling is a choice.
    Severity: note.
    Effect: Another program may decode them differently, so its results can differ from those measured here.
    """
    if "notes" not in audit_input.measures:
        return NotApplicable("the images were not measured")
    notes = audit_input.measures["notes"].fillna("")
    is_ambiguous = (notes != "").to_numpy()
    if not is_ambiguous.any():
        return None
    kinds = notes[is_ambiguous].str.split("; ").explode().str.replace(r" \(.*", "", regex=True).value_counts()
    kinds_text = join_words([f"{kind} ({n:,})" for kind, n in kinds.head(_MAX_NAMED).items()])
    return Finding(
        severity=Severity.NOTE,
        n=int(is_ambiguous.sum()),
        rows=image_table(audit_input, is_ambiguous, decoding_choice=notes[is_ambiguous].to_numpy()),
        sentence=f"Decoding needed a choice: {plural(int(is_ambiguous.sum()), 'image')} of "
        f"{len(notes):,}: {kinds_text}.",
        per_class=images_per_class(audit_input, is_ambiguous),
        figures={"decoding_choices": {str(kind): int(n) for kind, n in kinds.items()}},
    )


def da003_tiny(audit_input: AuditInput) -> Outcome:
    """Tiny images

    Threshold: shorter side below 64 pixels. Where half of the set is, this is said once, of the set.
    Severity: note; warning from 5 % of the images of a class, unless the whole set is small.
    Effect: A net sees these enlarged and without detail; results on them say little about images of usual size.
    """
    shorter_side = audit_input.frame[["width", "height"]].astype(int).min(axis=1)
    is_tiny = (shorter_side < TINY_SIDE).to_numpy()
    if not is_tiny.any():
        return None
    if is_tiny.mean() < 0.5:
        return _quality_finding(
            audit_input, is_tiny, shorter_side.to_numpy(), "shorter_side",
            f"a shorter side below {TINY_SIDE} pixels", f"median of the others: {shorter_side[~is_tiny].median():.0f}",
        )  # fmt: skip
    sizes = audit_input.frame.loc[is_tiny, ["width", "height"]].value_counts().reset_index(name="images")
    return Finding(
        severity=Severity.NOTE,
        n=int(is_tiny.sum()),
        kind="table",
        rows=sizes,
        sentence=f"The set is small by design: {int(is_tiny.sum()):,} of {len(shorter_side):,} images "
        f"have a shorter side below "
        f"{TINY_SIDE} pixels (median {shorter_side.median():.0f}). Hair, rulers and pigment network "
        f"cannot be seen in them, and "
        "the checks on artefacts do not apply.",
        per_class=images_per_class(audit_input, is_tiny),
        figures={"median_shorter_side": float(shorter_side.median())},
    )


def da004_dark_or_overexposed(audit_input: AuditInput) -> Outcome:
    """Dark or overexposed images

    Threshold: 95 % of the pixels below a grey level of 70, or 60 % of them at 245 and above (of 255).
    Severity: note; warning from 5 % of the images of a class.
    Effect: Little of the lesion can be seen; where a class has more of them, a model can use the light in place of the
    lesion.
    """
    if (
        not_measured := _missing_measures(audit_input, "high_level", "bright_fraction", "contrast", "brightness")
    ) is not None:
        return not_measured
    high_level = audit_input.measures["high_level"].to_numpy(np.float64)
    is_badly_lit = _is_badly_lit(audit_input) & ~_is_near_empty(audit_input)
    n_dark = int((is_badly_lit & (high_level < DARK_LEVEL)).sum())
    return _quality_finding(
        audit_input, is_badly_lit, high_level, "grey_level_95",
        "hardly any light or too much of it", f"{n_dark:,} dark, {int(is_badly_lit.sum()) - n_dark:,} overexposed",
    )  # fmt: skip


def da005_blurred(audit_input: AuditInput) -> Outcome:
    """Blurred images

    Threshold: sharpness (detail of 1 to 2 pixels over that of 2 to 5, on at most 256 pixels a side) below 0.44 of the
    set's median; a Gaussian blur of 4 pixels at 450 pixels a side lies below. Tiny, empty and badly lit images apart.
    Severity: note; warning from 5 % of the images of a class.
    Effect: Fine structures are lost; a class that is blurred more often can be recognised by its blur.
    """
    if (
        not_measured := _missing_measures(
            audit_input, "sharpness", "contrast", "brightness", "high_level", "bright_fraction"
        )
    ) is not None:
        return not_measured
    sharpness = audit_input.measures["sharpness"].to_numpy(np.float64)
    shorter_side = audit_input.frame[["width", "height"]].astype(int).min(axis=1).to_numpy()
    is_comparable = (
        np.isfinite(sharpness)
        & (shorter_side >= TINY_SIDE)
        & ~_is_near_empty(audit_input)
        & ~_is_badly_lit(audit_input)
    )
    if is_comparable.sum() < MIN_IMAGES_FOR_MEDIAN:
        return NotApplicable(
            f"fewer than {MIN_IMAGES_FOR_MEDIAN} images of {TINY_SIDE} pixels a side to compare with"
        )
    relative_sharpness = np.where(is_comparable, sharpness, np.nan) / np.median(sharpness[is_comparable])
    return _quality_finding(
        audit_input, relative_sharpness < BLURRED_RATIO, relative_sharpness, "relative_sharpness",
        f"less than {BLURRED_RATIO} of the set's median sharpness", f"median {np.median(sharpness[is_comparable]):.2f}",
    )  # fmt: skip


def da006_near_empty(audit_input: AuditInput) -> Outcome:
    """Nearly empty images

    Threshold: standard deviation of the grey levels below 3 of 255; in dark images below 5 % of their mean, or 1.
    Severity: note; warning from 5 % of the images of a class.
    Effect: No lesion can be seen, so a model's answer is right or wrong by chance.
    """
    if (not_measured := _missing_measures(audit_input, "contrast", "brightness")) is not None:
        return not_measured
    contrast = audit_input.measures["contrast"].to_numpy(np.float64)
    return _quality_finding(
        audit_input,
        _is_near_empty(audit_input),
        contrast,
        "contrast",
        f"grey levels that vary by less than {EMPTY_CONTRAST:.0f} of 255",
        f"median of the set: {np.nanmedian(contrast):.0f}",
    )


def _is_near_empty(audit_input: AuditInput) -> NDArray[np.bool_]:
    contrast, brightness = (audit_input.measures[name].to_numpy(np.float64) for name in ("contrast", "brightness"))
    return np.asarray(contrast < np.clip(EMPTY_CONTRAST_RATIO * brightness, 1.0, EMPTY_CONTRAST), np.bool_)


def _is_badly_lit(audit_input: AuditInput) -> NDArray[np.bool_]:
    high_level, white_fraction = (
        audit_input.measures[name].to_numpy(np.float64) for name in ("high_level", "bright_fraction")
    )
    return np.asarray((high_level < DARK_LEVEL) | (white_fraction > WHITE_FRACTION), np.bool_)


def _missing_measures(audit_input: AuditInput, *columns: str) -> NotApplicable | None:
    missing_columns = [
        name for name in columns if name not in audit_input.measures or audit_input.measures[name].isna().all()
    ]
    return NotApplicable(f"not measured: {join_words(missing_columns)}") if missing_columns else None


def _quality_finding(
    audit_input: AuditInput,
    is_bad: NDArray[np.bool_],
    values: NDArray[np.floating],
    column: str,
    condition: str,
    detail: str,
) -> Outcome:
    """Return the finding of images of bad quality, the worst class first; None if there are none."""
    if not is_bad.any():
        return None
    counts = images_per_class(audit_input, is_bad)
    class_sizes = audit_input.frame["label"].value_counts()
    fractions = {name: n / int(class_sizes[name]) for name, n in counts.items()}
    worst_class = max(fractions, key=lambda name: fractions[name])
    is_serious = any(
        fraction >= WARNING_FRACTION and class_sizes[name] >= WARNING_MIN_IMAGES
        for name, fraction in fractions.items()
    )
    rows = np.flatnonzero(is_bad)
    rows = rows[np.lexsort((values[rows], audit_input.frame["label"].map(fractions).to_numpy()[rows] * -1))]
    return Finding(
        severity=Severity.WARNING if is_serious else Severity.NOTE,
        n=len(rows),
        sentence=f"{plural(len(rows), 'image')} of {len(is_bad):,} with {condition} ({detail}); by "
        f"share most of them in "
        f"{worst_class}: {counts[worst_class]:,} of {int(class_sizes[worst_class]):,}.",
        rows=image_table(audit_input, rows, **{column: values[rows]}),
        per_class=counts,
        figures={"fraction_per_class": fractions},
    )
