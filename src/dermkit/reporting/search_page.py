"""What a study found: its page with pictures, and its lines for a terminal."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dermkit.files import write_text
from dermkit.render.forest import forest_rows
from dermkit.render.search_charts import draw_history, draw_importance
from dermkit.reporting.figures import png_data_uri
from dermkit.reporting.labels import page_templates
from dermkit.reporting.terminal import figure_lines, wrapped
from dermkit.runs.documents import saved_content
from dermkit.runs.folder import read_table
from dermkit.runs.layout import HISTORY_TABLE, IMPORTANCE_TABLE, REPORT_FILE, STUDY, TUNE_PAGE, TUNE_TABLE

_EDGE = 0.05
"""Part of a range that counts as its end: a better value may lie beyond."""
_LEAST_WEIGHT = 0.1
"""Of a field for which a wider range is worth a trial."""
_NO_IMPORTANCE = "too few trials were trained to the end, or all have one value"

_Json = Mapping[str, Any]


def write_search_page(folder: Path) -> Path:
    """Write history.png, importance.png and tune.html of a study's folder; returns the page's path."""
    with saved_content(folder):
        study = STUDY.read(folder)
        history, importance = (read_table(folder / name) for name in (HISTORY_TABLE, IMPORTANCE_TABLE))
        trials = read_table(folder / TUNE_TABLE)
        draw_history(
            history, folder / "history.png", metric=metric_name(study), corrected=study["corrected"]["value"]
        )
        if len(importance) > 0:
            draw_importance(importance, folder / "importance.png")
        weights = dict(zip(importance["field"], map(float, importance["importance"]), strict=True))
        html = page_templates().get_template("search.html.j2").render(
            title=f"Tuning of {study['recipe']} on {study['dataset']}",
            study=study,
            lead=search_lead(study),
            answer=_search_answer(study),
            rows=_value_rows(study),
            metric=metric_name(study),
            scale="0 to 1" if metric_name(study) != "loss" else f"0 to {_loss_scale(study):g}",
            remedies=list(search_remedies(study, weights)),
            report=_report_link(folder, study),
            history_uri=png_data_uri(folder / "history.png"),
            history_alt=f"Validation {metric_name(study)} of each trial, and the best so far",
            fields=list(_field_rows(study, weights)),
            has_importance=bool(weights),
            why_no_importance=_NO_IMPORTANCE,
            counts=trial_counts(study),
            reason=str(study["corrected"].get("reason", "")),
            method=study["corrected"]["method"],
            trials=trials.to_dict("records"),
        )  # fmt: skip
    write_text(folder / TUNE_PAGE, html)
    return folder / TUNE_PAGE


def metric_name(study: _Json) -> str:
    """Return the name of the metric that a study chooses by, without its split."""
    return str(study["monitor"]).removeprefix("val_").replace("_", " ")


def trial_counts(study: _Json) -> str:
    """Return how many trials were trained to the end, ended early, or were interrupted."""
    counts = study["counts"]
    repeated = f", {counts['FAIL']} interrupted and repeated" if counts["FAIL"] else ""
    return f"{counts['COMPLETE']} trained to the end, {counts['PRUNED']} ended early{repeated}"


def search_lead(study: _Json) -> str:
    """Return what was done, in plain words."""
    n_trials = study["counts"]["COMPLETE"] + study["counts"]["PRUNED"]
    where = "out of fold" if study["n_folds"] > 1 else "on the same validation images"
    n_images = study["corrected"]["n"]
    return (
        f"{n_trials} settings of the recipe {study['recipe']} were tried ({trial_counts(study)}) and compared by "
        f"{metric_name(study)} {where}, {n_images:,} in all. No trial scored a test image."
    )


def _search_answer(study: _Json) -> dict[str, Any]:
    """Return the word, what it is about, its kind and its sentences for the first screen."""
    corrected, metric = study["corrected"], metric_name(study)
    if corrected["value"] is None:
        word, about, kind = "Not known", f"what {metric} to expect on new images", "care"
    else:
        kind = "care" if corrected.get("reason") else "good"
        word, about = f"Expect {corrected['value']:.3f}", f"{metric} on new images of the same kind"
    verdict = verdict_of_search(study)
    return {"word": word, "about": about, "kind": kind, "sentences": [verdict[0].upper() + verdict[1:]]}


def _value_rows(study: _Json) -> list[dict[str, Any]]:
    """Return the rows of the forest plot: the selected value as measured, and corrected."""
    n, corrected = study["corrected"]["n"], study["corrected"]
    measured = {"value": study["best"]["value"], "ci95": None, "n": n}
    name = f"best of {study['n_values']}, as measured"
    high = _loss_scale(study) if metric_name(study) == "loss" else 1.0
    return forest_rows([(name, measured), ("corrected for choosing", corrected)], low=0.0, high=high)


def _loss_scale(study: _Json) -> float:
    """Return the end of the scale of a loss, a whole number."""
    values = [study["best"]["value"], study["corrected"]["value"] or 0.0, *(study["corrected"]["ci95"] or ())]
    return float(max(1, math.ceil(max(values))))


def _report_link(folder: Path, study: _Json) -> str:
    """Return the address of the selected recipe's report from the page, "" where there is none."""
    report = Path(study["final"]) / REPORT_FILE if study["final"] else None
    if report is None or not report.is_file():
        return ""
    return Path(os.path.relpath(report.resolve(), folder.resolve())).as_posix()


def search_remedies(study: _Json, weights: Mapping[str, float]) -> Iterator[str]:
    """Yield what to do next after a study, in plain words. weights: importance of fields, empty where not known."""
    if not study["final"]:
        yield "Train the selected recipe in full: the same command without `--no-final`."
    if study["n_folds"] > 1:
        yield (
            "State the corrected value, or figures of test images that took no part in choosing: the images of the "
            "folds chose the recipe."
        )
    elif study["corrected"]["value"] is None or study["corrected"].get("reason"):
        yield (
            "Choose by more images: `--folds 5` with another `--study` (docs/tuning.md says how to keep published test "
            "images out of it)."
        )
    if at_an_end := _selected_at_an_end(study, weights):
        values = study["best"]["values"]
        fields = ", ".join(
            f"{field} = {values[field]:g} of {low:g} to {high:g}" for field, (low, high) in at_an_end
        )
        yield (
            f"Try values beyond what was tried: the selected one lies at an end ({fields}). Wider ranges go into "
            "`--space FILE`, with another `--study`."
        )
    yield "Test it on images of another clinic: `dermkit evaluate MODEL --on DATASET`."


def _selected_at_an_end(study: _Json, weights: Mapping[str, float]) -> list[tuple[str, tuple[float, float]]]:
    """Return the fields that weigh something and whose selected number lies at an end of what was tried: its bounds."""
    ends = []
    for field, dimension in study["space"].items():
        value, bounds = study["best"]["values"].get(field), _number_bounds(dimension)
        if bounds is None or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        is_log = isinstance(dimension, Mapping) and dimension.get("log", False)
        scale = math.log if is_log else float
        place = (scale(value) - scale(bounds[0])) / (scale(bounds[1]) - scale(bounds[0]))
        if not _EDGE < place < 1 - _EDGE and weights.get(field, 1.0) >= _LEAST_WEIGHT:
            ends.append((field, bounds))
    return ends


def _number_bounds(dimension: Any) -> tuple[float, float] | None:
    """Return the least and the greatest value of a field of numbers; None for another, or where two were tried."""
    if isinstance(dimension, Mapping):
        return float(dimension["low"]), float(dimension["high"])
    is_numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in dimension)
    return (float(min(dimension)), float(max(dimension))) if is_numbers and len(dimension) > 2 else None


def _field_rows(study: _Json, weights: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    """Yield each field with what was tried, what was selected and how much it weighs, the heaviest first."""
    for field in sorted(study["space"], key=lambda name: -weights.get(name, 0.0)):
        yield {
            "name": field,
            "tried": _tried_text(study["space"][field]),
            "selected": json.dumps(study["best"]["values"].get(field)).strip('"'),
            "importance": weights.get(field),
        }


def _tried_text(dimension: Any) -> str:
    """Return the values that a field could take, for people."""
    if not isinstance(dimension, Mapping):
        return ", ".join(json.dumps(value).strip('"') for value in dimension)
    spacing = ", log scale" if dimension.get("log") else ""
    return f"{dimension['low']:g} to {dimension['high']:g}{spacing}"


def selection_sentence(study: _Json) -> str:
    """Return the value of the best trial and the corrected one: "best of 30 trials: .812; corrected: .791 [..]"."""
    text = f"validation {metric_name(study)}, best of {study['n_values']} trials: {study['best']['value']:.3f}"
    corrected = study["corrected"]
    if corrected["value"] is None:
        return f"{text}; not corrected for choosing: {corrected.get('reason', '')}"
    low, high = corrected["ci95"]
    mark = ", unreliable" if corrected.get("reason") else ""
    interval = f"[{low:.3f}, {high:.3f}]{mark}, n = {corrected['n']}"
    return f"{text}; corrected for choosing: {corrected['value']:.3f} {interval}"


def search_lines(folder: Path) -> list[str]:
    """Return what to read first of a study: the selected value, its optimism, the counts, the selected fields."""
    with saved_content(folder):
        study = STUDY.read(folder)
        rows = [(field, str(value)) for field, value in study["best"]["values"].items()]
        return [
            *wrapped(selection_sentence(study), indent="  "),
            *wrapped(f"trials: {trial_counts(study)}", indent="  "),
            f"selected: trial {study['best']['trial']}, {study['best']['recipe']}",
            *figure_lines(rows),
            *wrapped(f"verdict: {verdict_of_search(study)}", indent="  "),
        ]


def verdict_of_search(study: _Json) -> str:
    """Return what may be believed of the selected value."""
    optimism = study["optimism"]
    if optimism is None:
        return "how much too good the validation value is cannot be estimated here; report test figures only."
    corrected = f"{study['corrected']['value']:.3f}"
    if study["corrected"].get("reason"):
        return "too few images to tell how much too good the validation value is; report test figures."
    if round(optimism, 3) <= 0:
        return f"choosing among these trials made the validation value no better than it is; expect {corrected}."
    return (
        f"the validation value is about {optimism:.3f} too good because it is the best of many; expect {corrected} on "
        "new images of the same kind, and report test figures."
    )
