"""DA040 to DA047: shortcuts, which predict the class without the lesion."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

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
from dermkit.audit.checks.predictability import (
    MIN_CLASS_GROUPS,
    MIN_IMAGES,
    ClassPredictability,
    Predictability,
    class_predictability,
    is_grouped,
)
from dermkit.audit.checks.text import join_words
from dermkit.audit.scan.artefacts import ARTEFACT_COLUMNS
from dermkit.metrics.classification.roc import auroc

MIN_AUROC = 0.60
"""AUROC that counts as a shortcut: weaker ones hardly change an accuracy, and weak real associations are as strong."""

STRONG_AUROC = 0.80
"""AUROC from which a signal that the lesion itself may explain (colour, file size, age) becomes a warning."""

_METADATA_COLUMNS = ("age", "sex", "site", "skin_type")
ORIGIN_COLUMNS = ("source", "licence", "attribution")
_MAX_NAMED = 3
"""Classes or columns that a sentence names; the CSV has all."""

METHOD = (
    "extremely randomised trees, 5 folds grouped and stratified; AUROC within folds; score interval with DeLong's "
    "variance by group"
)


def da040_file_size(audit_input: AuditInput) -> Outcome:
    """File size predicts the class

    Threshold: cross-validated AUROC of a class against the rest, grouped, adjusted lower bound above 0.60.
    Severity: note; warning from a lower bound of 0.80, since fine structure of a lesion also makes a file larger.
    Effect: A model may have learned how the files were saved, and its accuracy would not hold for other images.
    """
    return _shortcut_finding(
        audit_input, _measured_columns(audit_input, "bytes"), "File size alone separates", expected=True
    )


def da041_dimensions(audit_input: AuditInput) -> Outcome:
    """Width and height predict the class

    Threshold: cross-validated AUROC of a class against the rest, grouped, adjusted lower bound above 0.60.
    Severity: warning.
    Effect: The classes come from different sources; resizing leaves traces that a model can learn in place of the
    lesion.
    """
    width, height = (audit_input.frame[name].astype(float) for name in ("width", "height"))
    columns = pd.DataFrame({"width": width, "height": height, "aspect": width / height})
    return _shortcut_finding(audit_input, columns, "The size in pixels alone separates", expected=False)


def da042_jpeg_tables(audit_input: AuditInput) -> Outcome:
    """File format and JPEG tables predict the class

    Threshold: cross-validated AUROC of a class against the rest, grouped, adjusted lower bound above 0.60.
    Severity: warning.
    Effect: The classes were saved by different programs; a model can recognise the program in place of the lesion.
    """
    columns = _measured_columns(audit_input, "format", "jpeg_tables", "jpeg_quality")
    return _shortcut_finding(audit_input, columns, "File format and JPEG tables alone separate", expected=False)


def da043_border_colour(audit_input: AuditInput) -> Outcome:
    """The colour of the border predicts the class

    Threshold: cross-validated AUROC of a class against the rest, grouped, adjusted lower bound above 0.60.
    Severity: note; warning from a lower bound of 0.80, since skin and large lesions reach the border.
    Effect: A model that is no more accurate than this rule may have learned skin, light or a dark rim, and nothing
    about lesions.
    """
    columns = _measured_columns(audit_input, "border_r", "border_g", "border_b", "border_spread")
    return _shortcut_finding(audit_input, columns, "The colour of the border alone separates", expected=True)


def da044_mean_colour(audit_input: AuditInput) -> Outcome:
    """The mean colour predicts the class

    Threshold: cross-validated AUROC of a class against the rest, grouped, adjusted lower bound above 0.60.
    Severity: note; warning from a lower bound of 0.80, since lesions of different kinds differ in colour.
    Effect: A model that is no more accurate than this rule may have learned the tint of the image, and nothing about
    lesions.
    """
    return _shortcut_finding(
        audit_input,
        _measured_columns(audit_input, "mean_r", "mean_g", "mean_b"),
        "Mean colour alone separates",
        expected=True,
    )


def da045_source(audit_input: AuditInput) -> Outcome:
    """Source, licence and attribution predict the class

    Threshold: cross-validated AUROC of a class against the rest, grouped, adjusted lower bound above 0.60.
    Severity: warning.
    Effect: Classes come from different archives: accuracy then says how well a model recognises the archive.
    """
    columns = _manifest_columns(audit_input, ORIGIN_COLUMNS)
    column_names = join_words([str(name) for name in columns]) if isinstance(columns, pd.DataFrame) else ""
    return _shortcut_finding(
        audit_input,
        columns,
        f"{column_names.capitalize()} alone separate{'' if ' and ' in column_names else 's'}",
        expected=False,
    )


def da046_metadata(audit_input: AuditInput) -> Outcome:
    """Age, sex, site and skin type, or their absence, predict the class

    Threshold: cross-validated AUROC of a class against the rest, grouped, adjusted lower bound above 0.60.
    Severity: note from their values, warning from a lower bound of 0.80; warning if the missing values predict it.
    Effect: A model that is given metadata can reach this without an image; missing values also reveal the source.
    """
    columns = _manifest_columns(audit_input, _METADATA_COLUMNS)
    if isinstance(columns, NotApplicable):
        return columns
    typed_columns = (
        columns.assign(age=pd.to_numeric(columns["age"], errors="coerce")) if "age" in columns else columns
    )
    missing_flags = pd.DataFrame({f"{name}_missing": (columns[name] == "").astype(float) for name in columns})
    value_finding = _shortcut_finding(
        audit_input,
        typed_columns,
        f"Metadata ({join_words([str(name) for name in columns])}) alone separates",
        expected=True,
    )
    gap_finding = _shortcut_finding(
        audit_input, missing_flags, "The missing metadata alone separate", expected=False
    )
    if isinstance(value_finding, Finding) and isinstance(gap_finding, Finding):
        return _merge_findings(gap_finding, value_finding)
    return gap_finding if isinstance(gap_finding, Finding) else value_finding


def da047_artefacts_combined(audit_input: AuditInput) -> Outcome:
    """Artefact scores together predict the class

    Threshold: cross-validated AUROC of a class against the rest, grouped, adjusted lower bound above 0.60.
    Severity: note; warning from a lower bound of 0.80, since streaks and dark lesions resemble some artefacts.
    Effect: A model can use hair, rulers, ink and dark corners in place of the lesion; images without them will be
    misread.
    """
    columns = _measured_columns(audit_input, *ARTEFACT_COLUMNS)
    return _shortcut_finding(
        audit_input, columns, "Artefacts (hair, ruler, ink, dark corners) alone separate", expected=True
    )


def _measured_columns(audit_input: AuditInput, *names: str) -> pd.DataFrame | NotApplicable:
    """Return those columns of the measures that have a known value."""
    available = [name for name in names if name in audit_input.measures and _any_known(audit_input.measures[name])]
    return audit_input.measures[available] if available else NotApplicable(f"not measured: {join_words(names)}")


def _manifest_columns(audit_input: AuditInput, names: tuple[str, ...]) -> pd.DataFrame | NotApplicable:
    """Return those columns of the manifest that have a known value."""
    available = [name for name in names if (audit_input.frame[name] != "").any()]
    return (
        audit_input.frame[available]
        if available
        else NotApplicable(f"the manifest does not know {join_words(names)}")
    )


def _any_known(values: "pd.Series[Any]") -> bool:
    return bool((values.notna() & (values != "")).any())


def _shortcut_finding(
    audit_input: AuditInput, columns: pd.DataFrame | NotApplicable, sentence_start: str, *, expected: bool
) -> Outcome:
    """Return the finding of one signal. expected: the lesion itself may explain it, so a weak one is only a note."""
    if isinstance(columns, NotApplicable):
        return columns
    predictability = class_predictability(audit_input, columns)
    if not predictability.classes:
        return NotApplicable(
            f"no class and its rest both have {MIN_IMAGES} images in {MIN_CLASS_GROUPS} groups of which this is known"
        )
    predictable_classes = [
        class_result for class_result in predictability.classes if class_result.lower_bound > MIN_AUROC
    ]
    if not predictable_classes:
        return None
    rows = _image_rows(audit_input, columns, predictable_classes)
    return Finding(
        severity=Severity.NOTE
        if expected and predictable_classes[0].lower_bound <= STRONG_AUROC
        else Severity.WARNING,
        n=len(rows),
        sentence=_sentence(
            sentence_start, predictable_classes, predictability, columns, has_groups=is_grouped(audit_input)
        ),
        rows=rows,
        per_class=images_per_class(
            audit_input, np.concatenate([class_result.rows for class_result in predictable_classes])
        ),
        figures={
            "classes": [
                _class_figures(class_result, predictability, columns) for class_result in predictability.classes
            ],
            "n": predictability.n,
            "images": predictability.n_images,
            "skipped_classes": list(predictability.skipped_classes),
            "method": METHOD,
        },
    )


def _image_rows(
    audit_input: AuditInput, columns: pd.DataFrame, predictable_classes: Sequence[ClassPredictability]
) -> pd.DataFrame:
    """Return the images of the predictable classes, the best predicted first."""
    rows = np.concatenate([class_result.rows for class_result in predictable_classes])
    placement_values = np.concatenate([class_result.placement_values for class_result in predictable_classes])
    order = np.lexsort((rows, -np.nan_to_num(placement_values, nan=-1.0)))
    table = image_table(audit_input, rows[order]).assign(placement_value=placement_values[order].round(4))
    signal_columns = columns.iloc[rows[order]].reset_index(drop=True)
    return table.join(signal_columns.rename(columns=lambda name: f"feature_{name}"))


def _sentence(
    sentence_start: str,
    predictable_classes: Sequence[ClassPredictability],
    predictability: Predictability,
    columns: pd.DataFrame,
    *,
    has_groups: bool,
) -> str:
    class_texts = [
        f"{class_result.name} from {class_result.rest_name} with AUROC {class_result.auroc:.2f} "
        f"[{class_result.ci95[0]:.2f}, {class_result.ci95[1]:.2f}]"
        for class_result in predictable_classes[:_MAX_NAMED]
    ]
    more_text = (
        [f"{len(predictable_classes) - _MAX_NAMED} more classes"] if len(predictable_classes) > _MAX_NAMED else []
    )
    grouping_text = "grouped" if has_groups else "copies kept together"
    total_text = f" of {predictability.n_images:,}" if predictability.n < predictability.n_images else ""
    main_sentence = (
        f"{sentence_start} {join_words([*class_texts, *more_text])} (n "
        f"{predictability.n:,}{total_text}, cross-validated, {grouping_text})."
    )
    typical_text = (
        f" {predictable_classes[0].name}: {_typical_text(predictable_classes[0], predictability, columns)}."
    )
    skipped_text = (
        f" Too few images to ask: {join_words(predictability.skipped_classes)}."
        if predictability.skipped_classes
        else ""
    )
    caveat = (
        ""
        if has_groups
        else " Lesion ids are missing: other photographs of the same lesion may make this too high."
    )
    return main_sentence + typical_text + skipped_text + caveat


def _typical_text(class_result: ClassPredictability, predictability: Predictability, columns: pd.DataFrame) -> str:
    column_texts = []
    for row in _typical_values(class_result, predictability, columns)[:_MAX_NAMED]:
        name, class_value, rest_value = _column_text(row["column"]), row["class"], row["rest"]
        if row["statistic"] == "fraction":
            value = repr(row["value"] or "unknown")
            column_texts.append(f"{name} {value} in {100 * class_value:.0f} % against {100 * rest_value:.0f} %")
        else:
            column_texts.append(
                f"{row['statistic']} {name} {_number_text(class_value)} against {_number_text(rest_value)}"
            )
    return join_words(column_texts)


def _column_text(name: str) -> str:
    """Return a column's name as text: `border_r` is `border red`."""
    colours = {"_r": " red", "_g": " green", "_b": " blue"}
    return (name[:-2] + colours[name[-2:]] if name[-2:] in colours else name).replace("_", " ")


def _number_text(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _typical_values(
    class_result: ClassPredictability, predictability: Predictability, columns: pd.DataFrame
) -> list[dict[str, Any]]:
    """Return typical values of the class and the rest in each column, the most separating column first."""
    in_class = np.isin(predictability.rows, class_result.rows)
    sampled_columns = columns.iloc[predictability.rows]
    rows = [
        _typical_number(str(name), sampled_columns[name], in_class)
        if pd.api.types.is_numeric_dtype(sampled_columns[name])
        else _typical_text_value(str(name), sampled_columns[name].astype(str), in_class)
        for name in columns
    ]
    return sorted(rows, key=lambda row: -row["separation"])


def _typical_number(name: str, values: "pd.Series[float]", in_class: NDArray[np.bool_]) -> dict[str, Any]:
    """Return the medians, or the means where the medians are the same (a score that is 0 on most images)."""
    is_known = values.notna().to_numpy()
    class_and_rest = [values[subset & is_known] for subset in (in_class, ~in_class)]
    separation = (
        abs(2 * auroc(np.asarray(values[is_known], dtype=np.float64), in_class[is_known]) - 1)
        if all(map(len, class_and_rest))
        else 0.0
    )
    statistic = "median" if class_and_rest[0].median() != class_and_rest[1].median() else "mean"
    class_value, rest_value = (float(subset.agg(statistic)) if len(subset) else None for subset in class_and_rest)
    return {
        "column": name,
        "statistic": statistic,
        "class": class_value,
        "rest": rest_value,
        "separation": separation,
    }


def _typical_text_value(name: str, values: "pd.Series[str]", in_class: NDArray[np.bool_]) -> dict[str, Any]:
    """Return the text whose frequency is most above that of the rest, and both frequencies."""
    class_frequencies, rest_frequencies = (
        values[subset].value_counts(normalize=True) for subset in (in_class, ~in_class)
    )
    frequency_gap = class_frequencies.sub(rest_frequencies, fill_value=0.0).sort_index()
    value = str(frequency_gap.idxmax())
    fractions = {
        "class": float(class_frequencies.get(value, 0.0)),
        "rest": float(rest_frequencies.get(value, 0.0)),
    }
    return {
        "column": name,
        "statistic": "fraction",
        "value": value,
        **fractions,
        "separation": float(frequency_gap.max()),
    }


def _class_figures(
    class_result: ClassPredictability, predictability: Predictability, columns: pd.DataFrame
) -> dict[str, Any]:
    """Return the numbers of one class."""
    return {
        "class": class_result.name,
        "reference": class_result.rest_name,
        "n_class": len(class_result.rows),
        "n": predictability.n,
        "auroc": class_result.auroc,
        "ci95": list(class_result.ci95),
        "lower_bound": class_result.lower_bound,
        "is_shortcut": class_result.lower_bound > MIN_AUROC,
        "typical": _typical_values(class_result, predictability, columns),
    }


def _merge_findings(first: Finding, second: Finding) -> Finding:
    """Return two findings of one check as one, the worse severity first."""
    rows = pd.concat([first.rows, second.rows], ignore_index=True)
    rows = rows.drop_duplicates("image_id", ignore_index=True)
    counts = [entry.per_class for entry in (first, second)]
    names = list(dict.fromkeys(name for entry in counts for name in entry))
    return replace(
        first,
        n=len(rows),
        sentence=f"{first.sentence} {second.sentence}",
        rows=rows,
        per_class={name: max(entry.get(name, 0) for entry in counts) for name in names},
        figures={"missing": first.figures, "values": second.figures},
    )
