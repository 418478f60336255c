"""DA040 to DA047: what tells the class without a look at the lesion."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.audit.checks.finding import Finding, NotApplicable, Outcome, Severity, Subject, image_rows, per_class
from dermkit.audit.checks.predictability import FEWEST_IMAGES, FEWEST_UNITS, ClassSignal, Signal, is_grouped, look
from dermkit.audit.checks.text import listed
from dermkit.audit.scan.artefacts import ARTEFACT_COLUMNS
from dermkit.metrics.classification.roc import auroc

CHANCE = 0.60
"""A rule that knows less than this AUROC hardly moves an accuracy; weak true links of a lesion are as strong."""

STRONG = 0.80
"""What a lesion itself may carry (colour, fine detail in the file's size, age) is warned of only from here."""

METADATA = ("age", "sex", "site", "skin_type")
ORIGIN = ("source", "licence", "attribution")
NAMED = 3
"""Classes or columns that a sentence names; the CSV has all."""

METHOD = (
    "extremely randomised trees, 5 folds grouped and stratified; AUROC within folds; score interval with DeLong's "
    "variance by group"
)


def da040_file_size(subject: Subject) -> Outcome:
    """File size tells the class

    Threshold: cross-validated AUROC of a class against the rest, grouped, adjusted lower bound above 0.60.
    Severity: note; warning from a lower bound of 0.80, since fine structure of a lesion also makes a file larger.
    Effect: A model may have learned how the pictures were saved, and its accuracy would not hold for other pictures.
    """
    return _shortcut(subject, _measured(subject, "bytes"), "File size alone tells", carried=True)


def da041_dimensions(subject: Subject) -> Outcome:
    """Width and height tell the class

    Threshold: cross-validated AUROC of a class against the rest, grouped, adjusted lower bound above 0.60.
    Severity: warning.
    Effect: The classes come from different sources; resizing leaves traces that a model learns instead of the lesion.
    """
    wide, high = (subject.frame[name].astype(float) for name in ("width", "height"))
    columns = pd.DataFrame({"width": wide, "height": high, "aspect": wide / high})
    return _shortcut(subject, columns, "The size in pixels alone tells", carried=False)


def da042_jpeg_tables(subject: Subject) -> Outcome:
    """File format and JPEG tables tell the class

    Threshold: cross-validated AUROC of a class against the rest, grouped, adjusted lower bound above 0.60.
    Severity: warning.
    Effect: The classes were saved by different programs; a model can tell these apart, and its accuracy shows that.
    """
    columns = _measured(subject, "format", "jpeg_tables", "jpeg_quality")
    return _shortcut(subject, columns, "File format and JPEG tables alone tell", carried=False)


def da043_border_colour(subject: Subject) -> Outcome:
    """The colour of the border tells the class

    Threshold: cross-validated AUROC of a class against the rest, grouped, adjusted lower bound above 0.60.
    Severity: note; warning from a lower bound of 0.80, since skin and large lesions reach the border.
    Effect: An accuracy near that of this rule shows no knowledge of lesions: skin, light or a dark rim suffice for it.
    """
    columns = _measured(subject, "border_r", "border_g", "border_b", "border_spread")
    return _shortcut(subject, columns, "The colour of the border alone tells", carried=True)


def da044_mean_colour(subject: Subject) -> Outcome:
    """The mean colour tells the class

    Threshold: cross-validated AUROC of a class against the rest, grouped, adjusted lower bound above 0.60.
    Severity: note; warning from a lower bound of 0.80, since lesions of different kinds differ in colour.
    Effect: An accuracy near that of this rule shows no knowledge of lesions: the tint of the picture suffices for it.
    """
    return _shortcut(
        subject, _measured(subject, "mean_r", "mean_g", "mean_b"), "Mean colour alone tells", carried=True
    )


def da045_source(subject: Subject) -> Outcome:
    """Source, licence and attribution tell the class

    Threshold: cross-validated AUROC of a class against the rest, grouped, adjusted lower bound above 0.60.
    Severity: warning.
    Effect: A class comes from another archive than its opposite: accuracy then says how well archives are told apart.
    """
    columns = _described(subject, ORIGIN)
    known = listed([str(name) for name in columns]) if isinstance(columns, pd.DataFrame) else ""
    return _shortcut(
        subject, columns, f"{known.capitalize()} alone tell{'' if ' and ' in known else 's'}", carried=False
    )


def da046_metadata(subject: Subject) -> Outcome:
    """Age, sex, site and skin type, or their absence, tell the class

    Threshold: cross-validated AUROC of a class against the rest, grouped, adjusted lower bound above 0.60.
    Severity: note from their values, warning from a lower bound of 0.80; warning if which are missing tells it.
    Effect: A model that is given metadata can reach this without a picture; missing fields tell the source apart.
    """
    columns = _described(subject, METADATA)
    if isinstance(columns, NotApplicable):
        return columns
    numbers = columns.assign(age=pd.to_numeric(columns["age"], errors="coerce")) if "age" in columns else columns
    missing = pd.DataFrame({f"{name}_missing": (columns[name] == "").astype(float) for name in columns})
    values = _shortcut(
        subject, numbers, f"Metadata ({listed([str(name) for name in columns])}) alone tells", carried=True
    )
    absent = _shortcut(subject, missing, "The gaps in the metadata alone tell", carried=False)
    if isinstance(values, Finding) and isinstance(absent, Finding):
        return _joined(absent, values)
    return absent if isinstance(absent, Finding) else values


def da047_artefacts_jointly(subject: Subject) -> Outcome:
    """Artefact scores together tell the class

    Threshold: cross-validated AUROC of a class against the rest, grouped, adjusted lower bound above 0.60.
    Severity: note; warning from a lower bound of 0.80, since streaks and dark lesions resemble some artefacts.
    Effect: A model can use hair, rulers, ink and dark corners in place of the lesion; clean pictures will be misread.
    """
    columns = _measured(subject, *ARTEFACT_COLUMNS)
    return _shortcut(subject, columns, "Artefacts (hair, ruler, ink, dark corners) alone tell", carried=True)


def _measured(subject: Subject, *names: str) -> pd.DataFrame | NotApplicable:
    """Return those columns of the measures in which anything is known."""
    there = [name for name in names if name in subject.measures and _any_known(subject.measures[name])]
    return subject.measures[there] if there else NotApplicable(f"not measured: {listed(names)}")


def _described(subject: Subject, names: tuple[str, ...]) -> pd.DataFrame | NotApplicable:
    """Return those columns of the manifest in which anything is known."""
    there = [name for name in names if (subject.frame[name] != "").any()]
    return subject.frame[there] if there else NotApplicable(f"the manifest does not know {listed(names)}")


def _any_known(values: "pd.Series[Any]") -> bool:
    return bool((values.notna() & (values != "")).any())


def _shortcut(subject: Subject, columns: pd.DataFrame | NotApplicable, what: str, *, carried: bool) -> Outcome:
    """Return the finding of one signal. carried: a lesion itself may carry it, so a weak one is only a note."""
    if isinstance(columns, NotApplicable):
        return columns
    signal = look(subject, columns)
    if not signal.classes:
        return NotApplicable(
            f"no class and its rest both have {FEWEST_IMAGES} images in {FEWEST_UNITS} groups of which this is known"
        )
    found = [item for item in signal.classes if item.lower > CHANCE]
    if not found:
        return None
    rows = _rows(subject, columns, found)
    return Finding(
        severity=Severity.NOTE if carried and found[0].lower <= STRONG else Severity.WARNING,
        n=len(rows),
        sentence=_sentence(what, found, signal, columns, grouped=is_grouped(subject)),
        rows=rows,
        per_class=per_class(subject, np.concatenate([item.rows for item in found])),
        figures={"classes": [_figures(item, signal, columns) for item in signal.classes], "n": signal.n,
                 "images": signal.of, "skipped": list(signal.skipped), "method": METHOD},
    )  # fmt: skip


def _rows(subject: Subject, columns: pd.DataFrame, found: Sequence[ClassSignal]) -> pd.DataFrame:
    """Return the images of the classes found, those first that the signal knows best."""
    rows = np.concatenate([item.rows for item in found])
    outranks = np.concatenate([item.outranks for item in found])
    order = np.lexsort((rows, -np.nan_to_num(outranks, nan=-1.0)))
    table = image_rows(subject, rows[order]).assign(outranks=outranks[order].round(4))
    shown = columns.iloc[rows[order]].reset_index(drop=True)
    return table.join(shown.rename(columns=lambda name: f"signal_{name}"))


def _sentence(
    what: str, found: Sequence[ClassSignal], signal: Signal, columns: pd.DataFrame, *, grouped: bool
) -> str:
    parts = [
        f"{item.name} from {item.rest} with AUROC {item.auroc:.2f} [{item.ci95[0]:.2f}, {item.ci95[1]:.2f}]"
        for item in found[:NAMED]
    ]
    more = [f"{len(found) - NAMED} more classes"] if len(found) > NAMED else []
    how = "grouped" if grouped else "copies kept together"
    of = f" of {signal.of:,}" if signal.n < signal.of else ""
    told = f"{what} {listed([*parts, *more])} (n {signal.n:,}{of}, cross-validated, {how})."
    typical = f" {found[0].name}: {_typical_text(found[0], signal, columns)}."
    skipped = f" Too few images to ask: {listed(signal.skipped)}." if signal.skipped else ""
    doubt = "" if grouped else " Lesions are not known: siblings among the images may make this too high."
    return told + typical + skipped + doubt


def _typical_text(item: ClassSignal, signal: Signal, columns: pd.DataFrame) -> str:
    parts = []
    for row in _typical(item, signal, columns)[:NAMED]:
        name, mine, rest = _plain(row["column"]), row["class"], row["rest"]
        if row["figure"] == "share":
            value = repr(row["value"] or "unknown")
            parts.append(f"{name} {value} in {100 * mine:.0f} % against {100 * rest:.0f} %")
        else:
            parts.append(f"{row['figure']} {name} {_number(mine)} against {_number(rest)}")
    return listed(parts)


def _plain(name: str) -> str:
    """Return a column's name as people say it: `border_r` is the border's red."""
    colours = {"_r": " red", "_g": " green", "_b": " blue"}
    return (name[:-2] + colours[name[-2:]] if name[-2:] in colours else name).replace("_", " ")


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _typical(item: ClassSignal, signal: Signal, columns: pd.DataFrame) -> list[dict[str, Any]]:
    """Return what the class and the rest have in each column, the column first that parts them most by itself."""
    mine = np.isin(signal.rows, item.rows)
    seen = columns.iloc[signal.rows]
    rows = [
        _typical_number(str(name), seen[name], mine)
        if pd.api.types.is_numeric_dtype(seen[name])
        else _typical_text_value(str(name), seen[name].astype(str), mine)
        for name in columns
    ]
    return sorted(rows, key=lambda row: -row["gap"])


def _typical_number(name: str, values: "pd.Series[float]", mine: NDArray[np.bool_]) -> dict[str, Any]:
    """Return the medians, or the means where the medians are the same (a score that is 0 on most images)."""
    known = values.notna().to_numpy()
    sides = [values[side & known] for side in (mine, ~mine)]
    gap = (
        abs(2 * auroc(np.asarray(values[known], dtype=np.float64), mine[known]) - 1)
        if all(map(len, sides))
        else 0.0
    )
    figure = "median" if sides[0].median() != sides[1].median() else "mean"
    ours, rest = (float(side.agg(figure)) if len(side) else None for side in sides)
    return {"column": name, "figure": figure, "class": ours, "rest": rest, "gap": gap}


def _typical_text_value(name: str, values: "pd.Series[str]", mine: NDArray[np.bool_]) -> dict[str, Any]:
    """Return the share of the text that is commoner in the class by most."""
    ours, rest = (values[side].value_counts(normalize=True) for side in (mine, ~mine))
    gap = ours.sub(rest, fill_value=0.0).sort_index()
    value = str(gap.idxmax())
    shares = {"class": float(ours.get(value, 0.0)), "rest": float(rest.get(value, 0.0))}
    return {"column": name, "figure": "share", "value": value, **shares, "gap": float(gap.max())}


def _figures(item: ClassSignal, signal: Signal, columns: pd.DataFrame) -> dict[str, Any]:
    """Return the numbers of one class."""
    return {
        "class": item.name, "against": item.rest, "n_class": len(item.rows), "n": signal.n, "auroc": item.auroc,
        "ci95": list(item.ci95), "lower_adjusted": item.lower, "found": item.lower > CHANCE,
        "typical": _typical(item, signal, columns),
    }  # fmt: skip


def _joined(first: Finding, second: Finding) -> Finding:
    """Return two findings of one check as one, the worse severity first."""
    rows = pd.concat([first.rows, second.rows], ignore_index=True)
    rows = rows.drop_duplicates("image_id", ignore_index=True)
    counts = [item.per_class for item in (first, second)]
    names = list(dict.fromkeys(name for item in counts for name in item))
    return replace(
        first,
        n=len(rows),
        sentence=f"{first.sentence} {second.sentence}",
        rows=rows,
        per_class={name: max(item.get(name, 0) for item in counts) for name in names},
        figures={"missing": first.figures, "values": second.figures},
    )
