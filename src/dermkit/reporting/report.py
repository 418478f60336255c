"""A run folder as one offline HTML file that a person reads from the top; reads files, never a model.

Figures are printed from metrics.json and nowhere computed again: the element that shows one names its place there
in `data-metric` and holds it in full in `data-value`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from dermkit.files import write_rows, write_text
from dermkit.lint.rules import read_lint
from dermkit.metrics.classification.reader_studies import READER_STUDIES
from dermkit.render import charts
from dermkit.render.cells import undefused
from dermkit.reporting import facts, warnings
from dermkit.reporting.blind_table import blind_table
from dermkit.reporting.counterfactual_lines import read_counterfactuals
from dermkit.reporting.figures import (
    EmbeddedFigure,
    draw_figures,
    metric_names,
    panel_stems,
    png_data_uri,
    visible_metrics,
)
from dermkit.reporting.first_screen import evidence_anchors, key_figures, rule_legend
from dermkit.reporting.labels import BAR_METRICS, FIRST_TABLE_END, METRIC_TITLES, page_templates
from dermkit.reporting.mistakes import PixelFinder, load_mistakes
from dermkit.reporting.out_of_distribution import outlier_text
from dermkit.reporting.paper_table import write_paper_table
from dermkit.reporting.recipe_rows import flatten_json, recipe_rows
from dermkit.reporting.run_heat_maps import read_heat_maps
from dermkit.runs.belief import judge_belief
from dermkit.runs.documents import saved_content
from dermkit.runs.folder import RunFolder
from dermkit.runs.layout import FIGURES_FOLDER, METRICS, REPORT_FILE, SUMMARY, VERDICT
from dermkit.runs.verdict import judge_run

MAX_REPORT_BYTES = 5_000_000
"""Largest report, so that it can be sent by e-mail; it shows fewer thumbnails to stay below."""

THUMBNAIL_COUNTS = (24, 8, 0)
"""Mistakes shown with thumbnails: the first number that keeps the report under `MAX_REPORT_BYTES`."""


def write_report(run: Path, *, pixel_finder: PixelFinder | None = None, images_root: Path | None = None) -> Path:
    """Write `run/report.html`, one offline file, and its charts next to their tables; returns its path.

    pixel_finder: image_id -> pixels (H, W, 3), None if it cannot be opened; without it, images are opened below
    `images_root`. Raises `DataError` without a metrics.json, `OutputError`.
    """
    with saved_content(run):
        return _write_report(RunFolder(run), pixel_finder, images_root)


def _write_report(run: RunFolder, pixel_finder: PixelFinder | None, images_root: Path | None) -> Path:
    mistake_table = run.figures_table(f"mistakes_{run.headline_split}.csv")
    mistake_table = pd.DataFrame() if mistake_table is None else mistake_table.map(undefused)
    heat_maps = read_heat_maps(run)
    context = {
        **_report_context(run),
        "folds": None if run.pooled is None else _runs_context(run.path, SUMMARY.read(run.path)),
        "pictures": draw_figures(run),
        "n_mistakes": len(mistake_table),
        "panels": panel_stems(run.headline_split),
    }
    template = page_templates().get_template("report.html.j2")
    if heat_maps is not None and len(mistake_table):  # these are shown with their maps
        mistake_table = mistake_table[~mistake_table["image_id"].isin(list(heat_maps.mistake_ids))]
    mistakes = load_mistakes(
        mistake_table.head(max(THUMBNAIL_COUNTS)), pixel_finder, images_root, run.pixel_hashes()
    )
    for count in THUMBNAIL_COUNTS:
        html = template.render(**context, mistakes=mistakes[:count], heat_maps=heat_maps)
        if len(html.encode()) < MAX_REPORT_BYTES:
            break
    from dermkit.reporting.paper_texts import write_paper_texts  # here, since the chain of imports to it is long

    write_paper_texts(run)
    write_text(run.path / REPORT_FILE, html)
    VERDICT.write(run.path, context["belief"].as_dict())
    write_paper_table(run)
    return run.path / REPORT_FILE


def _report_context(run: RunFolder) -> dict[str, Any]:
    """Return the template's context, without charts and thumbnails."""
    names, verdict, lint_rows = metric_names(run), judge_run(run), read_lint(run.path)
    belief = judge_belief(run, verdict, lint_rows)
    methods_by_name = {name: _interval_methods(run, name) for name in names}
    first_table = list(METRIC_TITLES)[: FIRST_TABLE_END + 1]
    outliers, counterfactuals = outlier_text(run), read_counterfactuals(run.path, belief.split)
    measured = {"foreign": bool(outliers), "counterfactuals": counterfactuals is not None}
    return {
        "run": run,
        "split_names": run.split_names,
        "bodies": run.metrics["splits"],
        "names": [name for name in names if name in first_table],
        "more": [name for name in names if name not in first_table],
        "used": methods_by_name,
        "methods": sorted({method for methods in methods_by_name.values() for method in methods}),
        "verdict": verdict,
        "belief": belief,
        "anchors": evidence_anchors(belief, _section_names(run, measured)),
        "key_figures": (rows := key_figures(run, verdict)),
        "rule_legend": rule_legend(rows),
        "blind": {split: blind_table(run.metrics["splits"][split], split) for split in run.split_names},
        "outliers": outliers,
        "reader_studies": READER_STUDIES,
        "counterfactuals": counterfactuals,
        "warnings": warnings.report_warnings(run),
        "trained": facts.recorded_train_counts(run),
        "excluded": facts.exclusion_counts(run),
        "confusions": {split: facts.top_confusions(run, split) for split in run.split_names},
        "texts": {
            split: run.text(f"{FIGURES_FOLDER}/classification_report_{split}.txt") for split in run.split_names
        },
        "recipe_rows": recipe_rows(run.recipe),
        "environment": list(flatten_json(run.environment)),
        "log": facts.log_rows(run.log),
        "lint": lint_rows,
    }


def _section_names(run: RunFolder, measured: Mapping[str, bool]) -> set[str]:
    """Return the ids of the sections that doubts may lead to and that this run's page has.

    measured: id of a section about what was measured beside the test -> whether the page has it.
    """
    body = run.metrics["splits"][run.headline_split]
    optional = {
        "blind": body.get("image_blind"), "groups": body.get("subgroups"), "decisions": body.get("policy"),
        "training": not run.is_foreign, "next": not run.is_foreign, **measured,
    }  # fmt: skip
    return {"results", "warnings", "lint", "classes", "data", *(name for name, has in optional.items() if has)}


def _interval_methods(run: RunFolder, name: str) -> set[str]:
    """Return the methods of a metric's intervals over the splits."""
    estimates = [run.metrics["splits"][split]["metrics"].get(name) for split in run.split_names]
    return {str(estimate["method"]) for estimate in estimates if estimate and estimate.get("ci95")}


# --- repeats and folds ---


def write_summary_report(parent: Path) -> Path:
    """Write `parent/report.html` of repeats or folds from its summary.json: every run, the spread, the final model.

    Of folds whose rows are pooled: their report as of a run, with the same tables of every run.

    Raises `DataError` without a summary.json, `OutputError`.
    """
    run = RunFolder(parent)
    if run.pooled is not None and METRICS.exists(parent):
        return write_report(parent, images_root=run.images_root())
    with saved_content(parent):
        return _write_summary_report(parent)


def _write_summary_report(parent: Path) -> Path:
    summary = SUMMARY.read(parent)
    title = str(summary.get("recipe") or parent.resolve().name)
    context = {**_runs_context(parent, summary), **_final_run_context(parent, summary["final"]["folder"])}
    html = page_templates().get_template("summary.html.j2").render(title=title, **context)
    write_text(parent / REPORT_FILE, html)
    return parent / REPORT_FILE


def _runs_context(parent: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """Return the context of the tables of every run."""
    splits = [name for name in ("validation", "test") if summary["metrics"].get(name)]
    names = {split: _summary_metrics(summary, split) for split in splits}
    return {
        "summary": summary,
        "images": {split: _image_counts(parent, summary, split) for split in splits},
        "one_seed": len({run["seed"] for run in summary["runs"]}) == 1,
        "split_names": splits,
        "names": names,
        "pictures": {split: _draw_spread(summary, split, names[split], parent) for split in splits},
    }


def _final_run_context(parent: Path, folder: str) -> dict[str, Any]:
    """Return the final run's verdict (None without its metrics.json) and its serious warnings."""
    if not _has_evaluated_run(parent, folder):
        return {"verdict": None, "serious": [], "final_run": None}
    run = RunFolder(parent / folder)
    serious = [warning.text for warning in warnings.report_warnings(run) if warning.level == "serious"]
    return {"verdict": judge_run(run), "serious": serious, "final_run": run}


def _image_counts(parent: Path, summary: dict[str, Any], split: str) -> list[int]:
    """Return the different numbers of images that the runs were evaluated on, ascending, as far as they are there."""
    folders = [parent / run["folder"] for run in summary["runs"] if _has_evaluated_run(parent, run["folder"])]
    metrics_by_run = [RunFolder(folder).metrics["splits"].get(split) for folder in folders]
    return sorted({split_metrics["n"] for split_metrics in metrics_by_run if split_metrics})


def _has_evaluated_run(parent: Path, folder: str) -> bool:
    """Return whether the folder holds an evaluated run of this name."""
    path = parent / folder / METRICS.name
    return path.exists() and path.resolve().is_relative_to(parent.resolve())


def _summary_metrics(summary: dict[str, Any], split: str) -> list[str]:
    names = dict.fromkeys(name for run in summary["runs"] for name in run.get(split) or {})
    n_runs = len(summary["runs"])
    return visible_metrics(
        names, {name for name, statistics in summary["metrics"][split].items() if statistics["n_runs"] == n_runs}
    )


def _draw_spread(summary: dict[str, Any], split: str, names: list[str], parent: Path) -> EmbeddedFigure:
    """Draw each run as a dot per metric, and write the dots as a table of the same stem."""
    rows = [
        (run["folder"], name, run[split][name])
        for name in names
        for run in summary["runs"]
        if name in BAR_METRICS and (run.get(split) or {}).get(name) is not None
    ]
    path = parent / f"spread_{split}.png"
    write_rows(path.with_suffix(".csv"), ("run", "metric", "value"), rows)
    frame = pd.DataFrame(rows, columns=["run", "metric", "value"])
    frame["metric"] = frame["metric"].map(lambda name: METRIC_TITLES.get(name, name))
    charts.draw_spread(
        frame, path, final_run=summary["final"]["folder"], title=f"{split.capitalize()}, a dot per run"
    )
    return EmbeddedFigure(
        png_data_uri(path), f"{split.capitalize()} figures, a dot per run", path.with_suffix(".csv").name
    )
