"""A run folder as one offline HTML file that a person reads from the top; reads files, never a model.

Figures are printed from metrics.json and nowhere computed again: the element that shows one names its place there
in `data-metric` and holds it in full in `data-value`.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from dermkit.errors import DataError
from dermkit.files import read_json, write_rows, write_text
from dermkit.lint.rules import read_lint
from dermkit.metrics.classification.reader_studies import ANCHORS
from dermkit.render import charts
from dermkit.reporting import facts, warnings
from dermkit.reporting.figures import Picture, embed, metric_names, pictures, worth_a_row
from dermkit.reporting.labels import BARS, FIRST, LABELS, page_templates
from dermkit.reporting.mistakes import Images, mistakes_of
from dermkit.runs import folder as runs_folder
from dermkit.runs.folder import Run

SUMMARY_FORMAT = 1
MAX_BYTES = 5_000_000
"""The file must travel by mail: the worst mistakes lose their thumbnails before it grows past this."""

THUMBNAILS = (24, 8, 0)
"""How many of the worst mistakes are shown; the first number that keeps the file under MAX_BYTES is taken."""


def write_report(run: Path, *, images: Images | None = None, images_root: Path | None = None) -> Path:
    """Write `run/report.html`, one offline file, and the charts it shows beside their numbers; returns its path.

    images: pixels (H, W, 3) of an image_id, None where they are not at hand; without it, images are opened below
    `images_root`. Raises `DataError` without a metrics.json, `OutputError`.
    """
    content = runs_folder.read_run(run)
    wrong = runs_folder.read_table(run / "figures" / f"mistakes_{content.headline}.csv")
    wrong = pd.DataFrame() if wrong is None else wrong
    context = {**_words(content), "pictures": pictures(content), "n_mistakes": len(wrong)}
    template = page_templates().get_template("report.html.j2")
    mistakes = mistakes_of(wrong.head(max(THUMBNAILS)), images, images_root)
    for count in THUMBNAILS:
        html = template.render(**context, mistakes=mistakes[:count])
        if len(html.encode()) < MAX_BYTES:
            break
    write_text(run / "report.html", html)
    return run / "report.html"


def _words(run: Run) -> dict[str, Any]:
    """Return what the template says, apart from pictures."""
    figures = run.folder / "figures"
    names = metric_names(run)
    used = {name: _methods(run, name) for name in names}
    first = list(LABELS)[: FIRST + 1]
    return {
        "run": run,
        "split_names": run.splits,
        "bodies": run.metrics["splits"],
        "names": [name for name in names if name in first],
        "more": [name for name in names if name not in first],
        "used": used,
        "methods": sorted({method for methods in used.values() for method in methods}),
        "verdict": facts.verdict(run, run.headline),
        "anchors": ANCHORS,
        "warnings": warnings.warnings(run),
        "trained": facts.training_counts(run),
        "excluded": facts.excluded(run),
        "confusions": {split: facts.confusions(run, split) for split in run.splits},
        "texts": {
            split: runs_folder.read_text(figures / f"classification_report_{split}.txt") for split in run.splits
        },
        "recipe_rows": facts.recipe_rows(run.recipe),
        "environment": list(facts.flat(run.environment)),
        "log": facts.log_rows(run.log),
        "lint": read_lint(run.folder),
    }


def _methods(run: Run, name: str) -> set[str]:
    """Return how the intervals of a figure were made; none where no split has one."""
    items = [run.metrics["splits"][split]["metrics"].get(name) for split in run.splits]
    return {str(item["method"]) for item in items if item and item.get("ci95")}


# --- repeats and folds ---


def write_summary_report(parent: Path) -> Path:
    """Write `parent/report.html` of repeats or folds from its summary.json: every run, the spread, the final model.

    Raises `DataError` without a summary.json, `OutputError`.
    """
    summary = read_json(parent / "summary.json", format=SUMMARY_FORMAT, error=DataError)
    splits = [name for name in ("validation", "test") if summary["metrics"].get(name)]
    names = {split: _summary_names(summary, split) for split in splits}
    html = (
        page_templates()
        .get_template("summary.html.j2")
        .render(
            title=str(summary.get("recipe") or parent.resolve().name),
            summary=summary,
            **_final(parent, summary["final"]["folder"]),
            images={split: _images(parent, summary, split) for split in splits},
            one_seed=len({run["seed"] for run in summary["runs"]}) == 1,
            split_names=splits,
            names=names,
            pictures={split: _spread(summary, split, names[split], parent) for split in splits},
        )
    )
    write_text(parent / "report.html", html)
    return parent / "report.html"


def _final(parent: Path, folder: str) -> dict[str, Any]:
    """Return the final run's verdict (None without its metrics.json) and its serious warnings."""
    if not _inside(parent, folder):
        return {"verdict": None, "serious": [], "final_run": None}
    run = runs_folder.read_run(parent / folder)
    serious = [warn.text for warn in warnings.warnings(run) if warn.level == "serious"]
    return {"verdict": facts.verdict(run, run.headline), "serious": serious, "final_run": run}


def _images(parent: Path, summary: dict[str, Any], split: str) -> list[int]:
    """Return the different numbers of images that the runs were evaluated on, ascending; runs not at hand left out."""
    folders = [parent / run["folder"] for run in summary["runs"] if _inside(parent, run["folder"])]
    bodies = [runs_folder.read_run(folder).metrics["splits"].get(split) for folder in folders]
    return sorted({body["n"] for body in bodies if body})


def _inside(parent: Path, folder: str) -> bool:
    """Say whether an evaluated run of this name lies in the folder itself."""
    path = parent / folder / "metrics.json"
    return path.exists() and path.resolve().is_relative_to(parent.resolve())


def _summary_names(summary: dict[str, Any], split: str) -> list[str]:
    found = dict.fromkeys(name for run in summary["runs"] for name in run.get(split) or {})
    runs = len(summary["runs"])
    return worth_a_row(found, {name for name, item in summary["metrics"][split].items() if item["n_runs"] == runs})


def _spread(summary: dict[str, Any], split: str, names: list[str], parent: Path) -> Picture:
    """Draw each run as a dot per figure, and write the dots as a table of the same stem."""
    rows = [
        (run["folder"], name, run[split][name])
        for name in names
        for run in summary["runs"]
        if name in BARS and (run.get(split) or {}).get(name) is not None
    ]
    path = parent / f"spread_{split}.png"
    write_rows(path.with_suffix(".csv"), ("run", "metric", "value"), rows)
    frame = pd.DataFrame(rows, columns=["run", "metric", "value"])
    frame["metric"] = frame["metric"].map(lambda name: LABELS.get(name, name))
    charts.draw_spread(frame, path, final=summary["final"]["folder"], title=f"{split.capitalize()}, a dot per run")
    return Picture(embed(path), f"{split.capitalize()} figures, a dot per run", path.with_suffix(".csv").name)
