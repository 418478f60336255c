"""What a study found: its page with pictures, and its lines for a terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dermkit.files import write_text
from dermkit.metrics.stats.estimate import humanise
from dermkit.render.search_charts import draw_history, draw_importance
from dermkit.reporting.figures import png_data_uri
from dermkit.reporting.labels import page_templates
from dermkit.reporting.terminal import figure_lines, wrapped
from dermkit.runs.documents import saved_content
from dermkit.runs.folder import read_table
from dermkit.runs.layout import HISTORY_TABLE, IMPORTANCE_TABLE, STUDY, TUNE_PAGE, TUNE_TABLE

_CAVEAT = (
    "Only trials that were trained to their end count in the correction, so trials that ended early for falling behind "
    "are not part of it."
)


def write_search_page(folder: Path) -> Path:
    """Write history.png, importance.png and tune.html of a study's folder; returns the page's path."""
    with saved_content(folder):
        study = STUDY.read(folder)
        history, importance = (read_table(folder / name) for name in (HISTORY_TABLE, IMPORTANCE_TABLE))
        trials = read_table(folder / TUNE_TABLE)
        corrected = study["corrected"]["value"]
        draw_history(history, folder / "history.png", metric=study["monitor"], corrected=corrected)
        pictures = [("Value of each trial, and the best so far", "history.png", HISTORY_TABLE)]
        if len(importance):
            draw_importance(importance, folder / "importance.png")
            pictures.append(("Importance of each field", "importance.png", IMPORTANCE_TABLE))
        html = page_templates().get_template("search.html.j2").render(
            title=f"Study {study['study']}",
            study=study,
            sentence=selection_sentence(study),
            caveat=_CAVEAT,
            reason=humanise(str(study["corrected"].get("reason", ""))),
            method=study["corrected"]["method"],
            trials=trials.to_dict("records"),
            fields=list(study["space"]),
            pictures=[(alt, png_data_uri(folder / name), table) for alt, name, table in pictures],
        )  # fmt: skip
    write_text(folder / TUNE_PAGE, html)
    return folder / TUNE_PAGE


def selection_sentence(study: Mapping[str, Any]) -> str:
    """Return the value of the best trial and the corrected one: "best of 30 trials: .812; corrected: .791 [..]"."""
    monitor = study["monitor"].removeprefix("val_").replace("_", " ")
    text = f"validation {monitor}, best of {study['n_values']} trials: {study['best']['value']:.3f}"
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
        counts = study["counts"]
        rows = [(field, str(value)) for field, value in study["best"]["values"].items()]
        states = f"{counts['COMPLETE']} trained to the end, {counts['PRUNED']} ended early"
        repeated = f", {counts['FAIL']} interrupted and repeated" if counts["FAIL"] else ""
        return [
            *wrapped(selection_sentence(study), indent="  "),
            *wrapped(f"trials: {states}{repeated}", indent="  "),
            f"selected: trial {study['best']['trial']}, {study['best']['recipe']}",
            *figure_lines(rows),
            *wrapped(f"verdict: {verdict_of_search(study)}", indent="  "),
        ]


def verdict_of_search(study: Mapping[str, Any]) -> str:
    """Return what may be believed of the selected value."""
    optimism = study["optimism"]
    if optimism is None:
        return "the optimism of choosing cannot be estimated here; report test figures only."
    corrected = f"{study['corrected']['value']:.3f}"
    if study["corrected"].get("reason"):
        return "too few images to tell how much too good the validation value is; report test figures."
    if round(optimism, 3) <= 0:
        return f"choosing among these trials made the validation value no better than it is; expect {corrected}."
    return (
        f"the validation value is about {optimism:.3f} too good for having been chosen; expect {corrected} on new "
        "images of the same kind, and report test figures."
    )
